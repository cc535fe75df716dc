//! jail - giving up privileges for good
//!
//! Groups, root directory, group id, user id, in this order; then a proof that root cannot be had
//! back. What needs privileges or the whole file system (names, log, certificates) is done before.

use std::path::Path;

use nix::unistd::{Uid, User, chdir, chroot, getuid, initgroups, setgid, setuid};

use crate::diagnostic::Fault;

/// What to give up.
#[derive(Debug, Clone, Copy)]
pub struct Jail<'a> {
    /// The new root directory (`-c`).
    pub root: Option<&'a Path>,
    /// The account to become (`-u`).
    pub user: Option<&'a str>,
}

impl Jail<'_> {
    /// Enters it. A process that is not root has nothing to give up and stays who it is.
    ///
    /// # Errors
    /// A step fails; the process is then of no use and must end.
    pub fn enter(self) -> Result<(), Fault> {
        if !getuid().is_root() {
            return Ok(());
        }
        let user = self.user.map(mail_owner).transpose()?;
        if let Some(user) = &user {
            let name = std::ffi::CString::new(user.name.clone()).unwrap_or_default();
            initgroups(&name, user.gid).map_err(|e| Fault::io("initgroups", &e.into()))?;
        }
        if let Some(root) = self.root {
            let subject = || format!("chroot {}", root.display());
            chroot(root).map_err(|e| Fault::io(subject(), &e.into()))?;
            chdir("/").map_err(|e| Fault::io(subject(), &e.into()))?;
        }
        if let Some(user) = &user {
            setgid(user.gid).map_err(|e| Fault::io("setgid", &e.into()))?;
            setuid(user.uid).map_err(|e| Fault::io("setuid", &e.into()))?;
            if setuid(Uid::from_raw(0)).is_ok() {
                return Err(Fault::new("setuid", "root could be had back"));
            }
        }
        Ok(())
    }
}

/// The account that `mail_owner` names. The passwd file is outside the jail, so it is asked first.
///
/// # Errors
/// There is none of that name, or it is the superuser.
pub fn mail_owner(name: &str) -> Result<User, Fault> {
    let subject = format!("parameter mail_owner: user \"{name}\"");
    match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => {
            Err(Fault::new(subject, "must not be the superuser"))
        }
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Fault::new(subject, "no such account")),
        Err(errno) => Err(Fault::io(subject, &errno.into())),
    }
}

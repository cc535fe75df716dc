//! owner - the account that owns sockets and the second lock
//!
//! What is made for the workers belongs to `mail_owner`, from its first moment on: the effective ids
//! are changed around the call, as no later chown(2) is as safe in a directory that account owns.

use nix::unistd::{Gid, Uid, getegid, geteuid, setegid, seteuid};
use worker_proto::diagnostic::Fault;
use worker_proto::jail::mail_owner;

/// User and group of `mail_owner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: Uid,
    /// Primary group id.
    pub gid: Gid,
}

impl Owner {
    /// Looks an account up.
    ///
    /// # Errors
    /// There is none of that name, or it is the superuser.
    pub fn named(name: &str) -> Result<Self, Fault> {
        let user = mail_owner(name)?;
        Ok(Self { uid: user.uid, gid: user.gid })
    }

    /// Runs a piece of work with the account's effective ids. A master that is not root (tests)
    /// stays who it is.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        if !geteuid().is_root() {
            return work();
        }
        let _guard = Guard { uid: geteuid(), gid: getegid() };
        // Root can take any id; should that fail, the work is done as root and its files are root's.
        let _ = setegid(self.gid).and_then(|()| seteuid(self.uid));
        work()
    }
}

/// Gives the ids back, also when the work panics.
struct Guard {
    uid: Uid,
    gid: Gid,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = seteuid(self.uid);
        let _ = setegid(self.gid);
    }
}

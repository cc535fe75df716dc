//! identity - acting as the account that owns the queue
//!
//! Whatever root does in a directory of the mail owner it does with that account's rights: a link or
//! a swapped name there then leads to nothing that the account could not reach itself. It fails
//! closed: where the ids cannot be changed or restored the process ends, as anything it did next it
//! would do with the wrong ones.

use nix::unistd::{
    Gid, Uid, getegid, geteuid, getgroups, setegid, seteuid, setgroups, setresgid, setresuid,
};

use crate::diagnostic::Fault;

/// Runs a piece of work with an account's effective ids and no supplementary groups. A process that
/// is not root (tests) stays who it is.
pub fn run_as<T>(uid: Uid, gid: Gid, work: impl FnOnce() -> T) -> T {
    if !geteuid().is_root() {
        return work();
    }
    let groups = getgroups().unwrap_or_else(|e| give_up("getgroups", e));
    // In place before the first change, so that a panic in the work restores them as well.
    let _guard = Guard { uid: geteuid(), gid: getegid(), groups };
    setgroups(&[gid]).unwrap_or_else(|e| give_up("setgroups", e));
    setegid(gid).unwrap_or_else(|e| give_up("setegid", e));
    seteuid(uid).unwrap_or_else(|e| give_up("seteuid", e));
    work()
}

/// Becomes an account for good, with no way back. A process that is not root stays who it is.
///
/// # Errors
/// A step fails; the process must end.
pub fn become_for_good(uid: Uid, gid: Gid) -> Result<(), Fault> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let fault = |call: &'static str| move |e: nix::Error| Fault::io(call, &e.into());
    setgroups(&[gid]).map_err(fault("setgroups"))?;
    setresgid(gid, gid, gid).map_err(fault("setresgid"))?;
    setresuid(uid, uid, uid).map_err(fault("setresuid"))?;
    if seteuid(Uid::from_raw(0)).is_ok() {
        return Err(Fault::new("setresuid", "privileges were not dropped permanently"));
    }
    Ok(())
}

/// Restores the ids, also when the work panics.
struct Guard {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The user id first: only root may set the others.
        seteuid(self.uid).unwrap_or_else(|e| give_up("seteuid", e));
        setegid(self.gid).unwrap_or_else(|e| give_up("setegid", e));
        setgroups(&self.groups).unwrap_or_else(|e| give_up("setgroups", e));
    }
}

fn give_up(call: &str, errno: nix::Error) -> ! {
    let cause = crate::sys::errno_text(&errno.into());
    log::error!("{call}: {cause}; ending, as to go on with the wrong ids would be unsafe");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_has_the_accounts_ids_and_groups_and_nothing_is_left_of_them() {
        if !geteuid().is_root() {
            return;
        }
        let before = (geteuid(), getegid(), getgroups().unwrap());
        let (uid, gid) = (Uid::from_raw(12345), Gid::from_raw(23456));
        let seen = run_as(uid, gid, || (geteuid(), getegid(), getgroups().unwrap()));
        assert_eq!(seen, (uid, gid, vec![gid]));
        assert_eq!((geteuid(), getegid(), getgroups().unwrap()), before);
        let panicked = std::panic::catch_unwind(|| run_as(uid, gid, || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!((geteuid(), getegid(), getgroups().unwrap()), before);
    }
}

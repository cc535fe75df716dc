//! owner - the account that owns sockets and the second lock
//!
//! What is made for the workers belongs to `mail_owner`, from its first moment on: the effective ids
//! are changed around the call, as no later chown(2) is as safe in a directory that account owns.

use nix::unistd::{Gid, Uid};
use worker_proto::diagnostic::Fault;
use worker_proto::identity;
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
    /// stays who it is. Where the ids cannot be changed or restored the process ends.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        identity::run_as(self.uid, self.gid, work)
    }
}

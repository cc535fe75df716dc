//! kind - which master

use std::env;
use std::path::PathBuf;

use crate::binaries;

/// Which master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Ours,
    /// Debian's Postfix's.
    Postfix,
}

/// The program of Debian's package.
const POSTFIX_MASTER: &str = "/usr/lib/postfix/sbin/master";

impl Kind {
    /// The masters that were asked for, as far as they are installed.
    ///
    /// # Panics
    /// Something else was asked for.
    #[must_use]
    pub fn under_test() -> Vec<Self> {
        match env::var("MASTER_UNDER_TEST").as_deref() {
            Ok("ours") => vec![Self::Ours],
            Ok("postfix") => vec![Self::Postfix],
            Ok(word) => panic!("MASTER_UNDER_TEST={word}: write ours or postfix"),
            Err(_) if cfg!(peer_postfix) => vec![Self::Postfix, Self::Ours],
            Err(_) => vec![Self::Ours],
        }
    }

    pub(super) fn program(self) -> PathBuf {
        match self {
            Self::Ours => binaries::directory().join("master"),
            Self::Postfix => PathBuf::from(POSTFIX_MASTER),
        }
    }
}

//! peer - the foreign programs that tests talk to

use std::env;
use std::path::{Path, PathBuf};

/// The variable that makes a missing peer a failure.
pub const REQUIRE: &str = "BELFRY_REQUIRE_PEERS";

/// Programs that come together.
#[derive(Debug)]
pub struct Peer {
    /// What stands behind `peer_` in the cfg.
    pub name: &'static str,
    /// All of them are needed.
    pub programs: &'static [&'static str],
}

/// Every peer.
pub const ALL: &[Peer] = &[
    Peer { name: "postfix", programs: &["smtp-source", "smtp-sink"] },
    Peer { name: "swaks", programs: &["swaks"] },
    Peer { name: "python", programs: &["python3"] },
];

/// Whether a missing peer is a failure.
#[must_use]
pub fn required() -> bool {
    env::var_os(REQUIRE).is_some_and(|v| v == "1")
}

/// Where a program is: in PATH, or where Debian puts those that are not meant for users.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/lib/postfix/sbin", "/usr/lib/postfix"];
    env::split_paths(&path)
        .chain(more.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| Path::is_file(file))
}

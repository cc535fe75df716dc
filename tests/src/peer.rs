//! peer - the foreign programs that tests talk to

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable that makes a missing peer a failure.
pub const REQUIRE: &str = "BELFRY_REQUIRE_PEERS";

/// Programs that come together.
#[derive(Debug)]
pub struct Peer {
    /// What stands behind `peer_` in the cfg.
    pub name: &'static str,
    /// All of them are needed.
    pub programs: &'static [&'static str],
    /// A module that the program, which is Python, must know.
    pub module: Option<&'static str>,
}

/// Every peer.
pub const ALL: &[Peer] = &[
    Peer { name: "postfix", programs: &["smtp-source", "smtp-sink"], module: None },
    Peer { name: "swaks", programs: &["swaks"], module: None },
    Peer { name: "python", programs: &["python3"], module: None },
    Peer { name: "prometheus", programs: &["python3"], module: Some("prometheus_client") },
];

impl Peer {
    /// Where its programs are; None for what is missing.
    #[must_use]
    pub fn find(&self) -> Vec<Option<PathBuf>> {
        let imports = |program: &PathBuf, module: &str| {
            let import = Command::new(program).args(["-c", &format!("import {module}")]).output();
            import.is_ok_and(|output| output.status.success())
        };
        let one = |program: &&str| match self.module {
            None => find(program),
            Some(module) => places(program).find(|place| imports(place, module)),
        };
        self.programs.iter().map(one).collect()
    }
}

/// Whether a missing peer is a failure.
#[must_use]
pub fn required() -> bool {
    env::var_os(REQUIRE).is_some_and(|v| v == "1")
}

/// Where a program is: in PATH, or where Debian puts those that are not meant for users.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    places(program).next()
}

fn places(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/bin", "/usr/sbin", "/usr/lib/postfix/sbin", "/usr/lib/postfix"];
    let directories: Vec<_> =
        env::split_paths(&path).chain(more.iter().map(PathBuf::from)).collect();
    let files = directories.into_iter().map(move |dir| dir.join(program));
    files.collect::<Vec<_>>().into_iter().filter(|file| Path::is_file(file))
}

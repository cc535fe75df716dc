//! world - what a process has from its parent

use std::env;
use std::fs;
use std::os::fd::OwnedFd;

use nix::sys::socket::{getsockopt, sockopt};
use worker_proto::clock::Time;

use crate::descriptors::{self, Descriptor};
use crate::process;

/// What a process found at its start and cannot find later.
#[derive(Debug)]
pub struct World {
    born: Time,
    descriptors: Vec<Descriptor>,
    fds: Vec<(i32, String)>,
}

impl World {
    /// Looks around, before the process opens or closes anything.
    #[must_use]
    pub fn now() -> Self {
        let born = Time::now();
        let mut fds = process::descriptors(own_pid()).unwrap_or_default();
        fds.retain(|(_, target)| !target.ends_with("/fd"));
        let kind = |target: String| target.split(':').next().unwrap_or("").to_owned();
        let fds = fds.into_iter().map(|(number, target)| (number, kind(target))).collect();
        Self { born, fds, descriptors: descriptors::of(own_pid()) }
    }

    /// Number and kind of each descriptor.
    #[must_use]
    pub fn fds(&self) -> &[(i32, String)] {
        &self.fds
    }

    /// `number=kind` of each descriptor.
    #[must_use]
    pub fn words(&self) -> String {
        let words = self.fds.iter().map(|(number, kind)| format!("{number}={kind}"));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Everything, a line each; an empty line ends it. The signals it ignores are those of Rust's
    /// start-up as well, which ignores SIGPIPE.
    #[must_use]
    pub fn report(&self, listens: &[OwnedFd]) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
            let words = line.split_whitespace().skip(1);
            words.collect::<Vec<_>>().join(" ")
        };
        let mut environment: Vec<_> = env::vars().map(|(n, v)| format!("{n}={v}")).collect();
        environment.sort();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let files = limits.lines().find(|l| l.starts_with("Max open files")).unwrap_or_default();
        let files: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
        let descriptors: Vec<_> = self.descriptors.iter().map(ToString::to_string).collect();
        let mut text = String::new();
        for (name, value) in [
            ("pid", field("Pid:")),
            ("ppid", field("PPid:")),
            ("argv", env::args().collect::<Vec<_>>().join("|")),
            ("env", environment.join("|")),
            ("born", self.born.since_start().as_micros().to_string()),
            ("fds", self.words()),
            ("descriptors", descriptors.join("|")),
            ("options", listens.iter().map(options).collect::<Vec<_>>().join("|")),
            ("cwd", env::current_dir().map(|d| d.display().to_string()).unwrap_or_default()),
            ("umask", field("Umask:")),
            ("uid", field("Uid:")),
            ("gid", field("Gid:")),
            ("groups", field("Groups:")),
            ("blocked", field("SigBlk:")),
            ("ignored", field("SigIgn:")),
            ("session", nix::unistd::getsid(None).map(|s| s.to_string()).unwrap_or_default()),
            ("group", nix::unistd::getpgrp().to_string()),
            ("files", files.join(":")),
            ("limits", limits.lines().skip(1).collect::<Vec<_>>().join("|")),
            ("no_new_privs", field("NoNewPrivs:")),
            ("oom", fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default()),
        ] {
            text += &format!("{name}: {}\n", value.trim());
        }
        text + "\n"
    }
}

/// The options of a listen socket that the master may have set.
fn options(listen: &OwnedFd) -> String {
    let set = [
        ("reuseaddr", getsockopt(listen, sockopt::ReuseAddr)),
        ("reuseport", getsockopt(listen, sockopt::ReusePort)),
        ("v6only", getsockopt(listen, sockopt::Ipv6V6Only)),
    ];
    let set = set.iter().filter(|(_, value)| *value == Ok(true));
    set.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

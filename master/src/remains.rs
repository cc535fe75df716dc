//! remains - what workers have started and left behind when the last of them has ended
//!
//! A process whose parent has ended becomes a child of the master when that is process 1 or a
//! subreaper, whatever group or session it has made for itself (W14, W23).

use std::collections::HashSet;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp};
use worker_proto::clock::Time;
use worker_proto::sys;

/// Who is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// The processes of the master's group.
    Group,
    /// They, and whoever has become the master's child.
    Adopted,
    /// Every process that the master, as process 1, can see (P02).
    Everybody,
}

/// The most time between SIGKILL and the end of a process.
const DYING: Duration = Duration::from_secs(2);

/// Ends them: SIGTERM, and SIGKILL for a child that is still there after `patience`. The caller
/// ignores SIGTERM.
pub fn end(remains: Remains, group: bool, patience: Duration) {
    match remains {
        Remains::Everybody => drop(kill(Pid::from_raw(-1), Signal::SIGTERM)),
        Remains::Group | Remains::Adopted if group => drop(killpg(getpgrp(), Signal::SIGTERM)),
        Remains::Group | Remains::Adopted => {}
    }
    if remains == Remains::Group {
        return;
    }
    let start = Time::now();
    let mut told = HashSet::new();
    while any_child() {
        let waited = Time::now().since(start);
        if waited > patience + DYING {
            return;
        }
        for pid in children() {
            if waited > patience {
                let _ = kill(pid, Signal::SIGKILL);
            } else if told.insert(pid) {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
        // There is no loop any more that could be told of their end.
        sleep(Duration::from_millis(10));
    }
}

/// Waits for those that have ended; whether any has not.
fn any_child() -> bool {
    loop {
        match sys::reap() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// The children of this process, which has one thread (proc(5)).
fn children() -> Vec<Pid> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).map(Pid::from_raw).collect()
}

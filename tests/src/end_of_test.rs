//! end_of_test - what holds of every instance at the end of a test
//!
//! A running master has no zombie and exactly the descriptors that it knows of; every probe worker
//! had from it exactly what the interface says.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::logbook::Logbook;
use crate::process::{self, Process};
use crate::wait;

/// Where probe workers write what was wrong with their descriptors, below the instance's directory.
pub const STRANGERS: &str = "strangers";

/// How many descriptors of each kind.
type Kinds = BTreeMap<String, i64>;

/// Waits until the master has reaped the workers that have ended by now.
///
/// # Panics
/// It does not: only what stays is a fault.
pub fn no_zombie(master: i32) {
    let mut zombies = process::children(master);
    zombies.retain(Process::zombie);
    wait::until("the master to reap its workers", wait::LONG, || {
        let all = process::children(master);
        let stays = |z: &Process| all.iter().any(|p| p.pid == z.pid && p.zombie());
        (!zombies.iter().any(stays)).then_some(())
    });
}

/// Waits until the master has open what it says it has. A moment in which both differ is none: a
/// worker may be started between the two looks.
///
/// # Panics
/// They go on to differ.
pub fn no_stray_descriptor(master: i32, queue: &Path) {
    let mut last = None;
    let agreed = wait::within(wait::LONG, || {
        let (said, found) = (said(queue), found(master));
        let agreed = said.is_some() && said == found;
        last = Some((said, found));
        agreed.then_some(())
    });
    assert!(agreed.is_some(), "descriptors the master knows, descriptors it has: {last:#?}");
}

/// Checks what the probe workers wrote.
///
/// # Panics
/// One had other descriptors than it should.
pub fn no_stranger(root: &Path) {
    let strangers = fs::read_to_string(root.join(STRANGERS)).unwrap_or_default();
    assert!(strangers.is_empty(), "workers with other descriptors than they should:\n{strangers}");
}

/// Checks that every complaint in the log is expected or possible, and what is expected was made.
///
/// # Panics
/// A complaint was not expected, or one that was expected was not made.
pub fn only_expected_complaints(log: &Logbook, expected: &[&str], possible: &[&str]) {
    let mut complaints = log.complaints();
    let missing: Vec<_> =
        expected.iter().filter(|part| !complaints.iter().any(|c| c.contains(**part))).collect();
    complaints.retain(|line| !expected.iter().chain(possible).any(|part| line.contains(part)));
    assert!(complaints.is_empty(), "unexpected in the log: {complaints:#?}");
    assert!(missing.is_empty(), "expected in vain in the log: {missing:#?}");
}

/// What a running master says it has open. None when it gives no answer.
fn said(queue: &Path) -> Option<Kinds> {
    let mut stream = UnixStream::connect(queue.join(master::control::PATH)).ok()?;
    stream.set_read_timeout(Some(wait::LONG)).ok()?;
    stream.write_all(b"status --json\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let line = answer.lines().nth(1)?;
    let row: serde_json::Value = serde_json::from_str(line).ok()?;
    let mut kinds = Kinds::new();
    for (purpose, count) in row["descriptors"].as_object()? {
        *kinds.entry(kind_for(purpose).to_owned()).or_default() += count.as_i64()?;
    }
    // The connection of this question: it was closed with the end of the answer.
    *kinds.get_mut("socket")? -= 1;
    Some(kinds)
}

/// What kind of descriptor a purpose has, in an instance that logs to a file.
fn kind_for(purpose: &str) -> &'static str {
    match purpose {
        "standard" => "standard",
        "flow" | "helpers" => "pipe",
        "poll" => "anon_inode:[eventpoll]",
        "locks" | "log" | "fifos" => "file",
        "signals" | "control" | "operators" | "listen" | "workers" | "wakeups" => "socket",
        other => panic!("a purpose that the harness does not know: {other}"),
    }
}

/// What a process has open. None when it is gone.
fn found(pid: i32) -> Option<Kinds> {
    let mut kinds = Kinds::new();
    for (number, target) in process::descriptors(pid)? {
        let kind = match target.as_str() {
            _ if number <= 2 => "standard",
            file if file.starts_with('/') => "file",
            other => other.split_once(":[").map_or(other, |(kind, _)| match kind {
                "socket" | "pipe" => kind,
                _ => other,
            }),
        };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    Some(kinds)
}

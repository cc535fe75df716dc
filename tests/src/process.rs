//! process - what runs, as /proc shows it

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    /// Its name, cut by the kernel to 15 bytes.
    pub name: String,
    /// Its arguments, apart by blanks.
    pub command: String,
    /// Its working directory.
    pub cwd: PathBuf,
}

impl Process {
    /// Reads one; None when it is gone.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold any character.
        let (head, tail) = stat.rsplit_once(')')?;
        let mut fields = tail.split_whitespace();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Self {
            pid,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            name: head.split_once('(')?.1.to_owned(),
            command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " "),
            cwd: fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default(),
        })
    }

    /// Whether it has ended and nobody has asked how.
    #[must_use]
    pub const fn zombie(&self) -> bool {
        self.state == 'Z'
    }

    /// Sends a signal; that it is gone is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid), signal);
    }
}

/// The open descriptors of a process, those that read the list included: number and what it
/// is. None when the process is gone.
#[must_use]
pub fn descriptors(pid: i32) -> Option<Vec<(i32, String)>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, target.display().to_string()))
        })
        .collect();
    found.sort();
    Some(found)
}

/// Every process.
#[must_use]
pub fn all() -> Vec<Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect()
}

/// Every process that works in or below a directory, chrooted or not.
#[must_use]
pub fn below(directory: &Path) -> Vec<Process> {
    let mut found = all();
    found.retain(|p| p.cwd.starts_with(directory));
    found
}

/// Every child of a process.
#[must_use]
pub fn children(parent: i32) -> Vec<Process> {
    let mut found = all();
    found.retain(|p| p.parent == parent);
    found
}

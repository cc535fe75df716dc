//! space - room on the disk, and a reserve of it
//!
//! A file without meaning takes up a megabyte; it is removed when the disk is full, so that what was
//! sent can still be marked (Q9). It comes back when there is room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

const BALLAST: &str = "ballast";
const BALLAST_SIZE: usize = 1 << 20;

/// The store's file system.
#[derive(Debug)]
pub(super) struct Space {
    directory: PathBuf,
    /// Least free space, in bytes, for a submission.
    min_free: u64,
}

impl Space {
    pub(super) fn new(directory: &Path, min_free: u64) -> Self {
        Self { directory: directory.to_path_buf(), min_free }
    }

    /// Whether there is too little for a submission. What was freed by giving up the reserve is not
    /// for submissions.
    pub(super) fn is_short(&self) -> bool {
        self.fill_ballast();
        let reserve = if self.path().exists() { 0 } else { BALLAST_SIZE as u64 };
        self.free().is_some_and(|free| free < self.min_free.max(reserve))
    }

    fn path(&self) -> PathBuf {
        self.directory.join(BALLAST)
    }

    /// Free bytes; None where it cannot be told. No inodes are no space.
    fn free(&self) -> Option<u64> {
        let found = statvfs(&self.directory).ok()?;
        if found.files() > 0 && found.files_available() == 0 {
            return Some(0);
        }
        Some(found.blocks_available() * found.fragment_size())
    }

    /// Gives up the reserve, if it is there.
    pub(super) fn release_ballast(&self) {
        let _ = fs::remove_file(self.path());
    }

    /// Makes the reserve, if it is not there and there is room for it.
    pub(super) fn fill_ballast(&self) {
        let path = self.path();
        let enough = || self.free().is_none_or(|free| free > self.min_free + BALLAST_SIZE as u64);
        if path.exists() || !enough() {
            return;
        }
        let fill = || -> io::Result<()> {
            let options = File::options().write(true).create_new(true).mode(0o600).open(&path);
            options?.write_all(&vec![0; BALLAST_SIZE])
        };
        if fill().is_err() {
            // Half a reserve is none.
            let _ = fs::remove_file(&path);
        }
    }
}

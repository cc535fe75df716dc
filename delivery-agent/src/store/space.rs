//! space - room on the disk, and a reserve of it
//!
//! A file without meaning takes up some megabytes; it is removed when the disk is full, so that what was
//! sent can still be marked (Q9). It comes back when there is room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

const BALLAST: &str = "ballast";
/// The WAL is written back after `schema::WAL_PAGES`: twice as much is enough for the marks of
/// a turn and for what the database file grows by.
const BALLAST_SIZE: usize = 4 << 20;

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

    /// Whether there is too little for submissions of so many bytes, where so much is unused within
    /// the file. What was freed by giving up the reserve is not for submissions.
    pub(super) fn is_short(&self, bytes: u64, unused: u64) -> bool {
        self.fill_ballast();
        let reserve = if self.path().exists() { 0 } else { BALLAST_SIZE as u64 };
        // Once in the WAL, and once in the file unless it has room.
        let wanted = 2 * bytes.saturating_sub(unused);
        self.free().is_some_and(|free| {
            free + unused < self.min_free.max(reserve).saturating_add(bytes) || free < wanted
        })
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
            let mut file = options?;
            let size = i64::try_from(BALLAST_SIZE).unwrap_or(0);
            match fallocate(&file, FallocateFlags::empty(), 0, size) {
                // The file system does not know it.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.write_all(&vec![0; BALLAST_SIZE]),
                other => Ok(other?),
            }
        };
        if fill().is_err() {
            // Half a reserve is none.
            let _ = fs::remove_file(&path);
        }
    }
}

//! maildrop - messages handed in while qmgr does not answer (Q11)
//!
//! A file is a frame of [`crate::wire`], written under a temporary name, synchronised, renamed, and
//! the directory synchronised. Names cannot be guessed, so that nobody waits for one. qmgr takes
//! files in at its start and at each wakeup, a bounded number at a time; whoever may write here can put
//! anything here, and none of it concerns another file. A file that is not a valid message is moved to `corrupt/`.

use std::fs;
use std::io;
use std::path::Path;

use crate::wire::Submission;

mod collect;
mod draft;

pub use collect::{Collector, Dropped, Found, Limits};
pub use draft::Draft;

/// The directory below the queue directory.
pub const DIRECTORY: &str = "maildrop";

/// Most recipients of one message, however it comes in from a user of this host.
pub const MAX_RECIPIENTS: usize = 50_000;
/// The largest message where `message_size_limit` is 0.
pub const MAX_SIZE: u64 = 500_000_000;

/// Start of the names of files that are not whole yet, and of whole ones.
const PARTIAL: &str = "tmp.";
const WHOLE: &str = "new.";
/// Where files go that are no messages.
const CORRUPT: &str = "corrupt";

/// Stores a message; it is on disk when this returns.
///
/// # Errors
/// There is no room, or the directory may not be written to.
pub fn drop_message(directory: &Path, submission: &Submission) -> io::Result<()> {
    Draft::new(directory, submission)?.finish()
}

/// The token under which qmgr knows a message with this name, whichever way it comes: that of the file
/// it would be in.
#[must_use]
pub fn token(name: &str) -> String {
    format!("{WHOLE}{name}")
}

/// How many messages wait in the directory; 0 for who may not read it.
#[must_use]
pub fn count(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|e| e.file_name().as_encoded_bytes().starts_with(WHOLE.as_bytes())).count()
}

/// Neither follow a link nor wait for the other end of a pipe.
const fn careful() -> i32 {
    nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits()
}

#[cfg(test)]
mod tests;

//! collect - takes messages out of the drop directory
//!
//! A step looks at a bounded number of names and bytes, whatever there is. A file that is no message,
//! or not one within the limits, is put aside and told once; one that cannot be read for now stays; one
//! that has vanished is ignored. No file delays another one.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, ReadDir};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::geteuid;
use worker_proto::sys::errno_text;

use super::{CORRUPT, MAX_RECIPIENTS, MAX_SIZE, PARTIAL, WHOLE, careful};
use crate::wire::{Header, Submission};
use crate::{address, message};

/// What a message may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of a message; 0 for [`MAX_SIZE`].
    pub bytes: u64,
    /// Most recipients.
    pub recipients: usize,
}

impl Limits {
    /// With a `message_size_limit`.
    #[must_use]
    pub const fn new(message_size_limit: u64) -> Self {
        let bytes = if message_size_limit == 0 { MAX_SIZE } else { message_size_limit };
        Self { bytes, recipients: MAX_RECIPIENTS }
    }

    /// Whether a message of this size, complete as it is queued, is taken. Who hands one in is told
    /// before; a file that is found larger is nobody's mail.
    #[must_use]
    pub const fn admit(self, complete: u64) -> bool {
        complete <= self.bytes.saturating_add(FIELDS_EXTRA)
    }
}

/// A message and its file, which is to be removed once it is queued.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The file.
    pub path: PathBuf,
    /// The message.
    pub submission: Submission,
}

/// What a step has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Messages.
    pub messages: Vec<Dropped>,
    /// What was put aside, or is left where it is, each with the reason: told once.
    pub complaints: Vec<String>,
    /// The directory was not read to its end.
    pub more: bool,
}

/// Looks through the directory, step by step.
#[derive(Debug)]
pub struct Collector {
    directory: PathBuf,
    limits: Limits,
    entries: Option<ReadDir>,
    /// Names about which something was told that is still true.
    told: HashSet<OsString>,
}

/// How much is looked at in a step.
const MOST_NAMES: usize = 1000;
const MOST_FILES: usize = 200;
const MOST_BYTES: u64 = 16 << 20;
const MOST_RECIPIENTS: usize = 20_000;
/// How many names are remembered.
const MOST_TOLD: usize = 1000;
/// What a drop file has beside the message: the envelope, and fields such as Received.
const FRAME_EXTRA: u64 = 32 << 20;
const FIELDS_EXTRA: u64 = 16 << 10;
/// A partial file of this age, in seconds, belongs to nobody any more.
const STALE: u64 = 36 * 3600;

impl Collector {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new(directory: PathBuf, limits: Limits) -> Self {
        Self { directory, limits, entries: None, told: HashSet::new() }
    }

    /// The next step begins at the beginning.
    pub fn rewind(&mut self) {
        self.entries = None;
    }

    /// Reads on. `now` is seconds since 1970.
    ///
    /// # Errors
    /// The directory cannot be read, or the process is short of something.
    pub fn step(&mut self, now: u64) -> io::Result<Found> {
        let mut found = Found::default();
        let mut entries = match self.entries.take() {
            Some(entries) => entries,
            None => fs::read_dir(&self.directory)?,
        };
        let (mut bytes, mut recipients) = (0, 0);
        for _ in 0..MOST_NAMES {
            if found.messages.len() >= MOST_FILES
                || bytes >= MOST_BYTES
                || recipients >= MOST_RECIPIENTS
            {
                break;
            }
            let Some(entry) = entries.next() else { return Ok(found) };
            let name = entry?.file_name();
            let path = self.directory.join(&name);
            match kind(&name) {
                Name::Own => {}
                Name::Partial => remove_if_stale(&path, now),
                Name::Other => self.put_aside(&mut found, &name, "not a file of sendmail"),
                Name::Whole => match read(&path, self.limits, &mut bytes) {
                    Ok(submission) => {
                        recipients += submission.recipients.len();
                        found.messages.push(Dropped { path, submission });
                    }
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    // Not the file's fault: it is tried again.
                    Err(e) if is_shortage(&e) => return Err(e),
                    Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => {
                        self.tell_once(&mut found, &name, &errno_text(&e), "it stays there");
                    }
                    Err(e) => self.put_aside(&mut found, &name, &errno_text(&e)),
                },
            }
        }
        self.entries = Some(entries);
        found.more = true;
        Ok(found)
    }

    /// Puts a file aside that qmgr cannot take.
    pub fn refuse(&mut self, found: &mut Found, path: &Path, reason: &str) {
        if let Some(name) = path.file_name() {
            self.put_aside(found, name, reason);
        }
    }

    fn put_aside(&mut self, found: &mut Found, name: &OsStr, reason: &str) {
        match self.move_to_corrupt(name) {
            Ok(()) => {
                let directory = self.directory.display();
                let name = name.display();
                found.complaints.push(format!("{directory}/{name}: {reason}; moved to {CORRUPT}/"));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                let end = format!("it cannot be moved to {CORRUPT}/: {}", errno_text(&e));
                self.tell_once(found, name, reason, &end);
            }
        }
    }

    fn tell_once(&mut self, found: &mut Found, name: &OsStr, reason: &str, end: &str) {
        if self.told.len() < MOST_TOLD && self.told.insert(name.to_owned()) {
            let directory = self.directory.display();
            found.complaints.push(format!("{directory}/{}: {reason}; {end}", name.display()));
        }
    }

    fn move_to_corrupt(&self, name: &OsStr) -> io::Result<()> {
        let corrupt = self.directory.join(CORRUPT);
        let uid = geteuid().as_raw();
        let is_ours = |m: &fs::Metadata| m.is_dir() && (m.uid() == uid || m.uid() == 0);
        match fs::symlink_metadata(&corrupt) {
            Ok(meta) if is_ours(&meta) => {}
            Ok(_) => {
                // Somebody else has put something there; it is put aside itself later.
                let other = self.directory.join(format!("bad.{}", message::unique()));
                fs::rename(&corrupt, other)?;
                DirBuilder::new().mode(0o700).create(&corrupt)?;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                DirBuilder::new().mode(0o700).create(&corrupt)?;
            }
            Err(e) => return Err(e),
        }
        let from = self.directory.join(name);
        let to = corrupt.join(name);
        // An earlier one of this name stays.
        let taken = fs::symlink_metadata(&to).is_ok();
        fs::rename(from, if taken { corrupt.join(message::unique()) } else { to })
    }
}

enum Name {
    Whole,
    Partial,
    /// Of this module or of the file system.
    Own,
    Other,
}

fn kind(name: &OsStr) -> Name {
    let bytes = name.as_bytes();
    if bytes.starts_with(WHOLE.as_bytes()) {
        Name::Whole
    } else if bytes.starts_with(PARTIAL.as_bytes()) {
        Name::Partial
    } else if bytes.starts_with(b".") || bytes == CORRUPT.as_bytes() || bytes == b"lost+found" {
        Name::Own
    } else {
        Name::Other
    }
}

fn remove_if_stale(path: &Path, now: u64) {
    let age = fs::symlink_metadata(path).map(|m| now.saturating_sub(m.mtime().unsigned_abs()));
    if age.is_ok_and(|age| age > STALE) {
        let _ = fs::remove_file(path);
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EINTR))
}

/// Reads a file that anybody may have put there: no link, one name, and it is its owner's message
/// whatever it says. `bytes` counts what was read.
fn read(path: &Path, limits: Limits, bytes: &mut u64) -> io::Result<Submission> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).custom_flags(careful()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(io::Error::other("not a regular file with one name"));
    }
    let size = meta.len();
    if size > limits.bytes.saturating_add(FRAME_EXTRA) {
        return Err(too_large(limits));
    }
    let mut submission = frame(&mut file, size, bytes)?;
    if !limits.admit(submission.body.len() as u64) {
        return Err(too_large(limits));
    }
    if submission.recipients.len() > limits.recipients {
        let most = limits.recipients;
        return Err(io::Error::other(format!("more than {most} recipients")));
    }
    let sender = Some(&submission.sender).filter(|s| !s.is_empty());
    for text in submission.recipients.iter().chain(sender) {
        if let Err(cause) = address::check(text) {
            return Err(io::Error::other(format!("bad address in the envelope: {cause}")));
        }
    }
    submission.body = message::clean(submission.body);
    let why = std::mem::take(&mut submission.origin);
    let why: String = why.chars().filter(|c| !c.is_control()).take(100).collect();
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    submission.origin = format!("uid {} by maildrop{why}", meta.uid());
    // The file may outlive the commit that queues it.
    submission.token =
        path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    Ok(submission)
}

/// The frame that a file of this size is, if its first bytes say that it may be one.
fn frame(file: &mut File, size: u64, bytes: &mut u64) -> io::Result<Submission> {
    let no_message = || io::Error::other("not a message");
    let mut head = [0; 4];
    if size < 4 {
        return Err(no_message());
    }
    file.read_exact(&mut head)?;
    if u64::from(u32::from_be_bytes(head)) != size - 4 {
        return Err(no_message());
    }
    let mut text = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // It may grow while it is read.
    file.take(size - 4).read_to_end(&mut text)?;
    *bytes += size;
    match Header::decode(&text) {
        Ok(Header::Offer(submission)) if !submission.recipients.is_empty() => Ok(submission),
        _ => Err(no_message()),
    }
}

fn too_large(limits: Limits) -> io::Error {
    let limit = limits.bytes;
    io::Error::other(format!("larger than message_size_limit ({limit} bytes)"))
}

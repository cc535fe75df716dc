//! damage - what counts as a damaged store, and putting it aside (Q8)
//!
//! Damage is what lies on the disk and is not what a store writes. A system that is short of
//! something, or a disk that does not answer, is not damage: the file may be perfect.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use worker_proto::sys::errno_text;

use super::pages::{PAGE, Pages, Wal, wal_of};
use super::types::StoreError;

/// What is found under the store's name before it is opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    Missing,
    Usable,
    /// It is a store, and damaged.
    Damaged(String),
    /// It is something else, or another account's.
    Foreign(String),
}

/// Looks at a file that is to be opened as a store.
pub(super) fn inspect(path: &Path) -> Result<State, StoreError> {
    let failed = |e: io::Error| StoreError::Failed(errno_text(&e));
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Ok(match wal_of(path) {
                Some(_) => State::Damaged("it is missing and its WAL is there".to_owned()),
                None => State::Missing,
            });
        }
        Err(e) => return Err(failed(e)),
    };
    if let Some(text) = not_ours(path, &found)? {
        return Ok(State::Foreign(format!("it {text}")));
    }
    let wal = with(path, "-wal");
    match fs::symlink_metadata(&wal) {
        Ok(found) => {
            if let Some(text) = not_ours(&wal, &found)? {
                return Ok(State::Foreign(format!("its WAL {text}")));
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    if found.len() == 0 {
        return Ok(State::Damaged("it has 0 bytes".to_owned()));
    }
    match wal_of(path) {
        Some(Wal { failure: Some(e), .. }) => return Err(failed(e)),
        Some(Wal { damaged: true, .. }) => {
            return Ok(State::Damaged("its WAL is damaged".to_owned()));
        }
        _ => {}
    }
    let pages = Pages::open(path);
    let (first, told) = (pages.read(1), pages.told());
    if let Some(e) = pages.take_failure() {
        return Err(failed(e));
    }
    if !first.is_some_and(|page| page.starts_with(b"SQLite format 3\0")) {
        return Ok(State::Damaged("file is not a database".to_owned()));
    }
    match told {
        Some(told) if told > pages.count() => {
            let is = pages.count();
            Ok(State::Damaged(format!("it has {is} of {told} pages of {PAGE} bytes")))
        }
        Some(_) => Ok(State::Usable),
        None => Ok(State::Damaged("it ends within its first page".to_owned())),
    }
}

/// What keeps a file from being one of a store, if anything does. Permissions of one's own are no reason.
fn not_ours(path: &Path, found: &fs::Metadata) -> Result<Option<String>, StoreError> {
    let failed = |e: io::Error| StoreError::Failed(errno_text(&e));
    let kind = found.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_symlink() => "a symbolic link",
            () => "no regular file",
        };
        return Ok(Some(format!("is {what}")));
    }
    let (owner, user) = (found.uid(), geteuid().as_raw());
    if owner != user {
        return Ok(Some(format!("belongs to uid {owner} and not to uid {user}")));
    }
    if found.mode() & 0o600 != 0o600 {
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match File::options().read(true).write(true).custom_flags(flags.bits()).open(path) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Ok(Some(format!("cannot be opened: {}", errno_text(&e))))
        }
        Err(e) => Err(failed(e)),
        Ok(_) => Ok(None),
    }
}

/// Renames a store's files to the first free name of a kind, and gives it.
pub(super) fn put_aside(path: &Path, kind: &str) -> io::Result<PathBuf> {
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let taken = |n: u32| {
        let other = |kind| is_there(&path.with_extension(format!("db.{kind}-{n}")));
        KINDS.iter().any(other)
            || is_there(&with(&path.with_extension(format!("db.{kind}-{n}")), "-wal"))
    };
    let n = (1..).find(|n| !taken(*n)).unwrap_or(0);
    let aside = path.with_extension(format!("db.{kind}-{n}"));
    // The WAL last: without it the database would look whole, and be old.
    for suffix in ["", "-shm", "-journal", "-wal"] {
        match fs::rename(with(path, suffix), with(&aside, suffix)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(aside)
}

/// Put aside: to be searched, searched, another program's, something else.
pub(super) const KINDS: [&str; 4] = ["damaged", "salvaged", "newer", "foreign"];

/// Stores that are to be searched, the last first: what it says of a message is the newest.
pub(super) fn put_aside_before(path: &Path) -> Vec<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let number = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix("queue.db.damaged-")?;
        name.trim_end_matches("-wal").parse::<u32>().ok()
    };
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut numbers: Vec<_> = entries.filter_map(|entry| number(&entry.path())).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().rev().map(|n| path.with_extension(format!("db.damaged-{n}"))).collect()
}

/// Whether any store was ever put aside here.
pub(super) fn had_another(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(Path::new("."));
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| KINDS.iter().any(|kind| name.starts_with(&format!("queue.db.{kind}-"))))
}

pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

//! maildrop - messages handed in while qmgr does not answer (Q11)
//!
//! A file is a frame of [`crate::wire`], written under a temporary name, synchronised, renamed, and
//! the directory synchronised. Names cannot be guessed, so that nobody waits for one. qmgr takes
//! files in at its start and at each wakeup.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process;

use crate::wire::{Decoder, Header, Submission};

/// The directory below the queue directory.
pub const DIRECTORY: &str = "maildrop";

/// Start of the names of files that are not whole yet, of whole ones, and of damaged ones.
const PARTIAL: &str = "tmp.";
const WHOLE: &str = "new.";
const BAD: &str = "bad.";
/// A partial file of this age, in seconds, belongs to nobody any more.
const STALE: u64 = 36 * 3600;

/// Stores a message; it is on disk when this returns.
///
/// # Errors
/// There is no room, or the directory may not be written to.
pub fn drop_message(directory: &Path, submission: &Submission) -> io::Result<()> {
    let name = format!("{}.{}", process::id(), random_name()?);
    let partial = directory.join(format!("{PARTIAL}{name}"));
    let result = (|| {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o640)
            .custom_flags(libc_nofollow())
            .open(&partial)?;
        give_to_group(&file, directory)?;
        file.write_all(&Header::Offer(submission.clone()).encode())?;
        file.sync_all()?;
        fs::rename(&partial, directory.join(format!("{WHOLE}{name}")))?;
        File::open(directory)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}

/// qmgr reads the file by its group: the directory's, whoever writes. A user who is not in it gets
/// it from the set-gid bit of sendmail(1).
fn give_to_group(file: &File, directory: &Path) -> io::Result<()> {
    let gid = fs::metadata(directory)?.gid();
    if file.metadata()?.gid() != gid {
        // Who is neither root nor in that group may not; qmgr then puts the file aside and says so.
        let _ = fchown(file, None, Some(gid));
    }
    // The caller's umask may have left the group out.
    file.set_permissions(Permissions::from_mode(0o640))
}

/// What is in the directory.
#[derive(Debug, Default)]
pub struct Found {
    /// Messages, each with its file to remove once it is queued.
    pub messages: Vec<(PathBuf, Submission)>,
    /// Files that are no messages, by their new names, with the reasons.
    pub bad: Vec<(PathBuf, String)>,
    /// There is more than was read.
    pub more: bool,
}

/// Reads as much at a time as memory is spared for. `now` is seconds since 1970.
///
/// # Errors
/// The directory cannot be read, or the system is short of something; no file is touched then.
pub fn collect(directory: &Path, now: u64) -> io::Result<Found> {
    let mut found = Found::default();
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_owned();
        if name.starts_with(PARTIAL) {
            let age =
                fs::symlink_metadata(&path).map(|m| now.saturating_sub(m.mtime().unsigned_abs()));
            if age.is_ok_and(|age| age > STALE) {
                let _ = fs::remove_file(&path);
            }
            continue;
        }
        if !name.starts_with(WHOLE) {
            continue;
        }
        if bytes >= MOST_BYTES || found.messages.len() >= MOST_FILES {
            found.more = true;
            break;
        }
        match read(&path) {
            Ok(submission) => {
                bytes += submission.body.len();
                found.messages.push((path, submission));
            }
            // Not the file's fault: it is tried again.
            Err(e) if is_shortage(&e) => return Err(e),
            Err(e) => {
                let aside = directory.join(format!("{BAD}{name}"));
                let reason = worker_proto::sys::errno_text(&e);
                if fs::rename(&path, &aside).is_ok() {
                    found.bad.push((aside, reason));
                }
            }
        }
    }
    Ok(found)
}

/// How much is read at a time.
const MOST_FILES: usize = 500;
const MOST_BYTES: usize = 64 << 20;

fn is_shortage(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EIO | Errno::EINTR))
}

/// Reads a file that anybody may have put there: no link, one name, and it is its owner's message
/// whatever it says.
fn read(path: &Path) -> io::Result<Submission> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).custom_flags(libc_nofollow()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(io::Error::other("not a regular file with one name"));
    }
    if meta.len() > crate::wire::MAX_FRAME as u64 {
        return Err(io::Error::other("too large for a message"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    match decoder.next_frame()? {
        Some(Header::Offer(mut submission)) if !submission.recipients.is_empty() => {
            submission.origin = format!("uid {}", meta.uid());
            // The file may outlive the commit that queues it.
            submission.token =
                path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            Ok(submission)
        }
        _ => Err(io::Error::other("not a message")),
    }
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Neither follow a link nor wait for the other end of a pipe.
const fn libc_nofollow() -> i32 {
    nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Lane;

    fn submission() -> Submission {
        Submission {
            sender: "a@x".to_owned(),
            recipients: vec!["b@y".to_owned()],
            origin: "forged".to_owned(),
            lane: Lane::Normal,
            token: String::new(),
            body: b"x\r\n".to_vec(),
        }
    }

    #[test]
    fn q11_what_was_dropped_is_found_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        drop_message(dir.path(), &submission()).unwrap();
        let found = collect(dir.path(), 0).unwrap();
        let [(path, got)] = found.messages.as_slice() else { panic!("{found:?}") };
        let uid = fs::metadata(path).unwrap().uid();
        let origin = format!("uid {uid}");
        assert!(got.token.starts_with("new."), "a file that is found again is known");
        assert_eq!(*got, Submission { origin, token: got.token.clone(), ..submission() });
        assert!(!found.more);
    }

    #[test]
    fn damaged_files_links_and_pipes_are_put_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: &str| dir.path().join(format!("new.{n}"));
        fs::write(name("garbage"), "W").unwrap();
        drop_message(dir.path(), &submission()).unwrap();
        let message = collect(dir.path(), 0).unwrap().messages.remove(0).0;
        std::os::unix::fs::symlink(&message, name("link")).unwrap();
        fs::hard_link(&message, name("hard")).unwrap();
        nix::unistd::mkfifo(&name("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = collect(dir.path(), 0).unwrap();
        assert_eq!(found.messages, []);
        assert_eq!(found.bad.len(), 4, "two names of one file are both suspect");
        let again = collect(dir.path(), 0).unwrap();
        assert_eq!((again.messages.len(), again.bad.len()), (0, 0));
    }

    #[test]
    fn a_full_directory_is_taken_in_part_by_part() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..MOST_FILES + 1 {
            drop_message(dir.path(), &submission()).unwrap();
        }
        let found = collect(dir.path(), 0).unwrap();
        assert_eq!((found.messages.len(), found.more), (MOST_FILES, true));
    }

    #[test]
    fn a_stale_partial_file_is_removed_and_a_fresh_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join("tmp.1.x");
        fs::write(&partial, "half").unwrap();
        let written = fs::metadata(&partial).unwrap().mtime().unsigned_abs();
        collect(dir.path(), written + 5).unwrap();
        assert!(partial.exists());
        collect(dir.path(), written + STALE + 1).unwrap();
        assert!(!partial.exists());
    }
}

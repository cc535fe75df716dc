//! files - reading configuration files, whatever is in their place
//!
//! A configuration file is a regular file of bounded size. A FIFO, a device or a file of gigabytes is
//! an error at once: whoever reads it may be the root process that every client depends on.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_PATH};

use crate::diagnostic::Fault;

/// The largest configuration file.
pub const MAX_SIZE: u64 = 16 << 20;

/// The text of a configuration file; bytes that are not UTF-8 become U+FFFD.
///
/// # Errors
/// It cannot be opened, is not a regular file, or is too large.
pub fn read(path: &Path) -> Result<String, Fault> {
    let bytes = bytes(path).map_err(|e| Fault::io(format!("open {}", path.display()), &e))?;
    // Without a copy when it is UTF-8, as it should be.
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The same, without its interpretation as text.
///
/// # Errors
/// As [`read`].
pub fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK opening a FIFO waits for its writer.
    let flags = O_NONBLOCK | O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    if found.len() <= MAX_SIZE {
        bytes.reserve_exact(usize::try_from(found.len()).unwrap_or(0) + 1);
        // It may grow while it is read.
        file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    }
    if found.len() > MAX_SIZE || bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("larger than {} MB", MAX_SIZE >> 20)));
    }
    Ok(bytes)
}

/// Connects to a socket in a directory that belongs to somebody else: not through a link, which could
/// lead whoever connects to a socket that only he may use.
///
/// # Errors
/// It is no socket, or nobody listens.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
    let place = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !place.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("not a socket"));
    }
    // What was looked at, whatever has the name now.
    UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// Makes a name free for a file that is to be made there. What cannot be removed is renamed: whoever
/// owns the directory could otherwise put something there that nothing gets past.
///
/// # Errors
/// It can be neither removed nor renamed.
pub fn make_free(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if !fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) => return Err(e),
        Err(_) => {}
    }
    if fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    let aside = |n: u32| PathBuf::from(format!("{}.aside-{n}", path.display()));
    let free = (1..MOST_ASIDE).map(aside).find(|aside| fs::symlink_metadata(aside).is_err());
    let full = || io::Error::other("a directory is in its place, remove it");
    fs::rename(path, free.ok_or_else(full)?)
}

/// Directories that are put aside under one name.
const MOST_ASIDE: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    /// The reader waited for a writer, and a reload never ended.
    #[test]
    fn what_is_not_a_regular_file_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.cf");
        mkfifo(&path, Mode::S_IRUSR).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert_eq!(error, format!("open {}: not a regular file", path.display()));
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(error, "open /dev/zero: not a regular file");
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.cf");
        File::create(&path).unwrap().set_len(MAX_SIZE + 1).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert_eq!(error, format!("open {}: larger than 16 MB", path.display()));
        fs::write(&path, b"a = \xff\n").unwrap();
        assert_eq!(read(&path).unwrap(), "a = \u{fffd}\n");
    }

    /// Root's sendmail went through a link of the mail owner to a socket that only root may use.
    #[test]
    fn no_link_to_a_socket_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("socket"), dir.path().join("link"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        assert!(UnixStream::connect(&link).is_ok());
        assert!(connect(&link).is_err());
        assert!(connect(&socket).is_ok());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(connect(&dir.path().join("file")).is_err());
    }

    #[test]
    fn a_name_is_made_free_whatever_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("name");
        for round in 0..3 {
            fs::create_dir(&path).unwrap();
            if round > 0 {
                fs::write(path.join("inside"), "x").unwrap();
            }
            make_free(&path).unwrap();
            std::os::unix::fs::symlink("nowhere", &path).unwrap();
            make_free(&path).unwrap();
            make_free(&path).unwrap();
        }
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["name.aside-1", "name.aside-2"]);
    }
}

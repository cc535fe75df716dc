//! files - reading configuration files, whatever is in their place
//!
//! A configuration file is a regular file of bounded size. A FIFO, a device or a file of gigabytes is
//! an error at once: whoever reads it may be the root process that every client depends on.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

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
}

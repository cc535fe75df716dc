//! draft - a message on its way into the drop directory

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::unistd::syncfs;

use super::{PARTIAL, WHOLE, careful};
use crate::message;
use crate::wire::{self, Submission};

/// A file that is written; it is removed unless [`Draft::finish`] succeeds.
#[derive(Debug)]
pub struct Draft {
    file: File,
    directory: PathBuf,
    name: String,
    /// Bytes in the file.
    size: u64,
    /// Where the bytes of the submission's body end.
    head: u64,
    finished: bool,
}

impl Draft {
    /// Begins a file with a message or the beginning of one.
    ///
    /// # Errors
    /// There is no room, or the directory may not be written to.
    pub fn new(directory: &Path, submission: &Submission) -> io::Result<Self> {
        // smtpd may have got it already, and it is known by this name then.
        let name = match message::is_unique(&submission.token) {
            true => submission.token.clone(),
            false => message::unique(),
        };
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .custom_flags(careful())
            .open(directory.join(format!("{PARTIAL}{name}")))?;
        let directory = directory.to_path_buf();
        let mut draft = Self { file, directory, name, size: 0, head: 0, finished: false };
        give_to_group(&draft.file, &draft.directory)?;
        draft.write(&wire::length(0))?;
        draft.write(&wire::offer_line(submission))?;
        draft.write(&submission.body)?;
        draft.head = draft.size;
        Ok(draft)
    }

    /// Adds to the message.
    ///
    /// # Errors
    /// There is no room.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Reads what was written after the submission's own bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(bytes, self.head + at)
    }

    /// The message is whole: it is on disk when this returns, under a name that qmgr looks for.
    ///
    /// # Errors
    /// It is not there.
    pub fn finish(mut self) -> io::Result<()> {
        let size = usize::try_from(self.size - 4).unwrap_or(usize::MAX);
        if size > wire::MAX_FRAME {
            return Err(io::Error::other("too large for a message"));
        }
        self.file.write_all_at(&wire::length(size), 0)?;
        self.file.sync_all()?;
        let whole = self.directory.join(format!("{WHOLE}{}", self.name));
        fs::rename(self.partial(), &whole)?;
        self.finished = true;
        let synchronised = self.synchronise_name();
        match synchronised {
            // An error must mean that there is no message, or its sender would send a second one.
            Err(e) => match fs::remove_file(&whole) {
                // qmgr has taken it meanwhile, and then it is on disk.
                Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            },
            Ok(()) => Ok(()),
        }
    }

    /// Makes the new name durable. Who may only write to the directory, as the group of sendmail(1),
    /// cannot open it to synchronise it: then its whole file system is.
    fn synchronise_name(&self) -> io::Result<()> {
        match File::open(&self.directory) {
            Ok(directory) => directory.sync_all(),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(syncfs(&self.file)?),
            Err(e) => Err(e),
        }
    }

    fn partial(&self) -> PathBuf {
        self.directory.join(format!("{PARTIAL}{}", self.name))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(self.partial());
        }
    }
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

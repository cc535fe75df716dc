//! lock - the files that say which master runs
//!
//! `pid/master.pid` and `master.lock` in the data directory are locked (flock(2)) for the life of the
//! master and never removed: the lock decides, not the file (B01, B02).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::sys;

/// The lock of a queue directory, in it.
pub const QUEUE_LOCK: &str = "pid/master.pid";

/// A locked file; the lock ends with the process.
#[derive(Debug)]
pub struct Lock {
    file: Flock<OwnedFd>,
}

impl Lock {
    /// A lock that another program has taken in this process.
    ///
    /// # Errors
    /// The descriptor is not open, or the lock is another process's.
    pub fn adopt(fd: RawFd) -> io::Result<Self> {
        // The lock is the open file's, so taking it again is taking what is had.
        let locked = Flock::lock(sys::take_fd(fd)?, FlockArg::LockExclusiveNonblock);
        locked.map(|file| Self { file }).map_err(|(_, errno)| errno.into())
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes the lock and writes the process id into the file.
///
/// # Errors
/// Another process holds it, or the file cannot be opened.
pub fn take(path: &Path, pid: u32) -> Result<Lock, Fault> {
    let subject = || format!("open lock file {}", path.display());
    let file = open(path).map_err(|e| Fault::io(subject(), &e))?;
    let file = sys::set_high(OwnedFd::from(file)).map_err(|e| Fault::io(subject(), &e))?;
    let busy = |errno: Errno| {
        Fault::io(format!("{}: unable to set exclusive lock", subject()), &errno.into())
    };
    let end = Time::now() + SETTLE;
    let mut file = file;
    let file = loop {
        // The holder may be a process that was just killed.
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => break locked,
            Err((open, Errno::EAGAIN)) if Time::now() < end => file = open,
            Err((_, errno)) => return Err(busy(errno)),
        }
        thread::sleep(GLANCE);
    };
    let write = || -> io::Result<()> {
        let mut file = File::from(file.try_clone()?);
        file.set_len(0)?;
        file.write_all(format!("{pid:>32}\n").as_bytes())
    };
    write().map_err(|e| Fault::io(format!("write {}", path.display()), &e))?;
    Ok(Lock { file })
}

/// Whether a process holds the lock of a pid file (A08). Changes nothing.
///
/// # Errors
/// The file is there and cannot be opened.
pub fn is_held(path: &Path) -> Result<bool, Fault> {
    locked(path).map(|file| file.is_some())
}

/// How long what is seen of a lock may be of a process that has just begun or is about to be gone.
const SETTLE: Duration = Duration::from_millis(500);
const GLANCE: Duration = Duration::from_millis(20);

/// The process that holds the lock of a pid file, if one does. The number in the file is believed
/// only of a process that has the file open: it is going to be signalled. Where that is wrong, the
/// kernel knows.
///
/// # Errors
/// The file cannot be read, or nothing says who holds it.
pub fn holder(path: &Path) -> Result<Option<Pid>, Fault> {
    let end = Time::now() + SETTLE;
    loop {
        let Some(file) = locked(path)? else {
            return Ok(None);
        };
        let mut text = Vec::new();
        // What a master writes has 33 bytes.
        let read = (&file).take(100).read_to_end(&mut text);
        read.map_err(|e| Fault::io(format!("read {}", path.display()), &e))?;
        let text = String::from_utf8_lossy(&text);
        let named = text.trim().parse().ok().filter(|&pid| pid > 0).map(Pid::from_raw);
        let mut known = named.into_iter().chain(lockers(&file));
        if let Some(pid) = known.find(|&pid| has_open(pid, &file)) {
            return Ok(Some(pid));
        }
        // A process that was killed lets go of its files one by one.
        if Time::now() >= end {
            let subject =
                format!("{}: locked, and not by process {:?}", path.display(), text.trim());
            return Err(Fault::new(subject, "find the holder with lslocks(8)"));
        }
        thread::sleep(GLANCE);
    }
}

/// The same, when a new master is to begin: one that was just killed is waited for.
///
/// # Errors
/// As [`holder`].
pub fn lasting_holder(path: &Path) -> Result<Option<Pid>, Fault> {
    let end = Time::now() + SETTLE;
    while let Some(pid) = holder(path)? {
        if Time::now() >= end {
            return Ok(Some(pid));
        }
        thread::sleep(GLANCE);
    }
    Ok(None)
}

/// The processes that hold a lock of a file with its number, as the kernel tells. Its device is not
/// compared: some file systems have other numbers there.
fn lockers(file: &File) -> Vec<Pid> {
    let inode = file.metadata().map_or(0, |found| found.ino()).to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let locker = |line: &str| {
        // 1: FLOCK  ADVISORY  WRITE 77 fd:00:1234 0 EOF
        let mut words = line.split_whitespace().skip(1).filter(|word| *word != "->");
        let flock = words.next()? == "FLOCK";
        let pid = words.nth(2)?.parse().ok().filter(|&pid| pid > 0);
        let found = words.next()?.rsplit(':').next()? == inode;
        pid.filter(|_| flock && found).map(Pid::from_raw)
    };
    locks.lines().filter_map(locker).collect()
}

/// Whether a process holds the lock of a pid file, whatever is written there.
///
/// # Errors
/// As [`is_held`].
pub fn is_held_by(path: &Path, pid: Pid) -> Result<bool, Fault> {
    Ok(locked(path)?.is_some_and(|file| has_open(pid, &file)))
}

/// A pid file whose lock another process holds.
fn locked(path: &Path) -> Result<Option<File>, Fault> {
    let fault = |e: &io::Error| Fault::io(format!("open {}", path.display()), e);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault(&e)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((file, Errno::EAGAIN)) => Ok(Some(file)),
        Err((_, errno)) => Err(fault(&errno.into())),
    }
}

/// Whether a process has a file open.
fn has_open(pid: Pid, file: &File) -> bool {
    let Ok(wanted) = file.metadata() else {
        return false;
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    // Following the link gives the open file itself.
    entries
        .filter_map(|entry| fs::metadata(entry.ok()?.path()).ok())
        .any(|found| found.is_file() && (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
}

/// Opens a file that may not be a link of any kind (B04).
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        return Err(io::Error::other("not a regular file with one name"));
    }
    // The name may have been changed between open and fstat.
    let named = fs::symlink_metadata(path)?;
    if (named.dev(), named.ino()) != (found.dev(), found.ino()) {
        return Err(io::Error::other("the file was replaced while it was opened"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b01_the_file_has_the_pid_right_aligned_and_a_second_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.pid");
        let pid = std::process::id();
        assert_eq!((holder(&path), is_held(&path)), (Ok(None), Ok(false)));
        let lock = take(&path, pid).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{pid:>32}\n"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!((holder(&path), is_held(&path)), (Ok(Some(Pid::this())), Ok(true)));
        let refused = take(&path, 78).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "open lock file {}: unable to set exclusive lock: Resource temporarily unavailable",
                path.display()
            )
        );
        drop(lock);
        assert_eq!(holder(&path), Ok(None));
    }

    /// It was read as process 0, and a signal to that goes to the whole group of whoever sends it; and
    /// later the master could not be stopped, because nothing else was asked.
    #[test]
    fn whatever_a_pid_file_says_the_holder_of_its_lock_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.pid");
        let _lock = take(&path, std::process::id()).unwrap();
        for text in ["", "garbage", "0", "-1", "1", "4294967297", "\0\0"] {
            fs::write(&path, text).unwrap();
            assert_eq!(holder(&path), Ok(Some(Pid::this())), "{text:?}");
            assert_eq!(is_held(&path), Ok(true), "{text:?}");
        }
        fs::write(&path, b"\xff\xfe").unwrap();
        assert_eq!(holder(&path), Ok(Some(Pid::this())));
        assert_eq!(is_held_by(&path, Pid::this()), Ok(true));
        assert_eq!(is_held_by(&path, Pid::from_raw(1)), Ok(false));
    }

    /// `belfry start` at once after `kill -9` of the master failed: the killed one still had the lock.
    #[test]
    fn a_lock_that_is_free_in_a_moment_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.pid");
        let lock = take(&path, 78).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                drop(lock);
            });
            assert!(take(&path, 79).is_ok());
        });
        let lock = take(&path, 80).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                drop(lock);
            });
            assert_eq!(lasting_holder(&path), Ok(None));
        });
    }

    #[test]
    fn b04_links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, soft, hard) =
            (dir.path().join("target"), dir.path().join("soft"), dir.path().join("hard"));
        fs::write(&target, "x").unwrap();
        std::os::unix::fs::symlink(&target, &soft).unwrap();
        fs::hard_link(&target, &hard).unwrap();
        assert!(take(&soft, 1).is_err());
        assert!(take(&hard, 1).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "x");
    }
}

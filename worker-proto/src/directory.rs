//! directory - making directories for another account
//!
//! Root makes a directory, opens it without following a link, and changes owner and mode of what it
//! has open, never of a name: whoever may write to the parent could have swapped that.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, geteuid};

/// Owner, group and mode of a new directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Its owner; only root can set it.
    pub uid: u32,
    /// Its group; only root can set it.
    pub gid: u32,
    /// Its mode.
    pub mode: u32,
}

/// Makes a directory that is not there. True: it was made; one that is there is left as it is.
///
/// # Errors
/// It cannot be made, or another process interferes.
pub fn make(path: &Path, access: Access) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Ok(false),
        _ => make_at(AT_FDCWD, path, access).map(|(_, fresh)| fresh),
    }
}

/// Makes a directory below an open one if it is not there, and opens it. The second part tells
/// whether it was made.
///
/// # Errors
/// As [`make`]; what is there is no directory, or is a link.
pub fn make_at(parent: impl AsFd, path: &Path, access: Access) -> io::Result<(OwnedFd, bool)> {
    let parent = parent.as_fd();
    let fresh = match mkdirat(parent, path, Mode::S_IRWXU) {
        Ok(()) => true,
        Err(nix::Error::EEXIST) => false,
        Err(e) => return Err(e.into()),
    };
    let mut flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    // ".." and "." are no links, and O_NOFOLLOW is about the last component alone.
    if matches!(path.components().next_back(), Some(Component::Normal(_))) {
        flags |= OFlag::O_NOFOLLOW;
    }
    let opened = openat(parent, path, flags, Mode::empty())?;
    if !fresh {
        return Ok((opened, false));
    }
    if fstat(&opened)?.st_uid != geteuid().as_raw() {
        let cause = "the directory was replaced while it was made";
        return Err(io::Error::new(ErrorKind::PermissionDenied, cause));
    }
    if geteuid().is_root() {
        fchown(&opened, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))?;
    }
    // After the change of the owner, which may drop bits, and whatever the umask is.
    fchmod(&opened, Mode::from_bits_truncate(access.mode))?;
    Ok((opened, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_directory_is_made_with_its_owner_and_mode_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("new"), dir.path().join("target"));
        let uid = if geteuid().is_root() { 12345 } else { geteuid().as_raw() };
        let access = Access { uid, gid: fs::metadata(dir.path()).unwrap().gid(), mode: 0o1730 };
        assert!(make(&path, access).unwrap());
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (uid, 0o1730));
        assert!(!make(&path, Access { mode: 0o700, ..access }).unwrap(), "it is left as it is");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o1730);
        fs::create_dir(&target).unwrap();
        let link = dir.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(make(&link, access).is_err());
        assert_ne!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o1730);
    }
}

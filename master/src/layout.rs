//! layout - the directories of an instance
//!
//! Missing ones are made with the right owner and mode; those that are there and differ are told, not
//! changed: somebody may have meant it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use worker_proto::diagnostic::Fault;
use worker_proto::directory;

use crate::config::Config;

/// A directory that an instance needs.
struct Place {
    path: PathBuf,
    mode: u32,
    /// It belongs to the mail owner and not to root.
    owned: bool,
    group: bool,
}

/// Makes what is missing; tells what cannot be made or is not as it should be.
#[must_use]
pub fn make(config: &Config) -> Vec<Fault> {
    let queue = &config.common.queue_directory;
    let place = |path: PathBuf, mode, owned, group| Place { path, mode, owned, group };
    let places = [
        place(queue.clone(), 0o755, false, false),
        place(config.common.data_directory.clone(), 0o700, true, true),
        place(queue.join("pid"), 0o755, false, false),
        place(queue.join("private"), 0o700, true, true),
        place(queue.join("public"), 0o755, true, true),
        place(queue.join("queue"), 0o700, true, true),
        // Group-writable for a set-group-id sendmail; sticky, so that nobody removes another's.
        place(queue.join("maildrop"), 0o1730, true, true),
    ];
    places.iter().filter_map(|place| ensure(place, config).err()).collect()
}

fn ensure(place: &Place, config: &Config) -> Result<(), Fault> {
    let path = place.path.as_path();
    let uid = if place.owned { config.owner.uid.as_raw() } else { 0 };
    let gid = if place.group { config.owner.gid.as_raw() } else { 0 };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => Err(fault(path, "it is not a directory")),
        Ok(found) if found.uid() != uid => {
            Err(fault(path, &format!("its owner is uid {}, not {uid}: chown {uid}", found.uid())))
        }
        Ok(found) if found.mode() & 0o022 & !place.mode != 0 => {
            let mode = found.mode() & 0o7777;
            Err(fault(
                path,
                &format!("others may write there (mode {mode:o}): chmod {:o}", place.mode),
            ))
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => build(path, place.mode, uid, gid)
            .map_err(|e| Fault::io(format!("make directory {}", path.display()), &e)),
        Err(e) => Err(Fault::io(format!("directory {}", path.display()), &e)),
    }
}

fn build(path: &Path, mode: u32, uid: u32, gid: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    directory::make(path, directory::Access { uid, gid, mode }).map(drop)
}

fn fault(path: &Path, cause: &str) -> Fault {
    Fault::new(format!("directory {}", path.display()), cause)
}

//! in_flight - which messages are in the hands of agents, for the next qmgr
//!
//! A small file that is written but never synchronised: it outlives qmgr, however that ends, and is
//! of no use after a crash of the system, which no agent outlives. A message that it names is not
//! given out before the agents that are left had a moment to announce theirs.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use worker_proto::files::make_free;

use crate::store::MessageNo;

const NAME: &str = "in-flight";
/// One message: its number, or 0.
const SLOT: usize = size_of::<i64>();
/// As many are written at once, so that there is room for them on a full disk. There is one lease for
/// each agent, and agents are at most a thousand.
const SLOTS: usize = 1000;

/// The file, and the slot of each lease.
pub(super) struct InFlight {
    file: Option<File>,
    slots: HashMap<u64, usize>,
    free: Vec<usize>,
}

impl InFlight {
    /// Opens the file in the store's directory, and tells what was in flight when the last qmgr
    /// ended. Without a file there is none to tell: a restart may repeat a message then.
    pub(super) fn open(directory: &Path) -> (Self, Vec<MessageNo>) {
        let path = directory.join(NAME);
        // Something else in its place tells nothing and would be there at every start.
        let found = open(&path).or_else(|e| match fs::symlink_metadata(&path) {
            Ok(there) if !there.is_file() => make_free(&path).and_then(|()| open(&path)),
            _ => Err(e),
        });
        let (file, found) = match found {
            Ok((file, found)) => (Some(file), found),
            Err(e) => {
                let reason = worker_proto::sys::errno_text(&e);
                log::warn!(
                    "{}: {reason}; messages may be delivered twice after a restart",
                    path.display()
                );
                (None, Vec::new())
            }
        };
        (Self { file, slots: HashMap::new(), free: (0..SLOTS).rev().collect() }, found)
    }

    /// A message goes out. To be called before it does.
    pub(super) fn add(&mut self, lease: u64, no: MessageNo) {
        if let Some(slot) = self.free.pop() {
            self.slots.insert(lease, slot);
            self.write(slot, no.0);
        }
    }

    /// What became of it is on disk.
    pub(super) fn remove(&mut self, lease: u64) {
        if let Some(slot) = self.slots.remove(&lease) {
            self.free.push(slot);
            self.write(slot, 0);
        }
    }

    fn write(&self, slot: usize, value: i64) {
        if let Some(file) = &self.file
            && let Err(e) = file.write_all_at(&value.to_ne_bytes(), (slot * SLOT) as u64)
        {
            log::debug!("{NAME}: {}", worker_proto::sys::errno_text(&e));
        }
    }
}

fn open(path: &Path) -> io::Result<(File, Vec<MessageNo>)> {
    let mut options = OpenOptions::new();
    let nofollow = nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(nofollow);
    let mut file = options.open(path)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take((SLOTS * SLOT) as u64).read_to_end(&mut bytes)?;
    let numbers =
        bytes.chunks_exact(SLOT).map(|slot| slot.try_into().map_or(0, i64::from_ne_bytes));
    let found = numbers.filter(|&n| n != 0).map(MessageNo).collect();
    file.write_all_at(&[0; SLOTS * SLOT], 0)?;
    Ok((file, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in its place was told at every start, and each restart could repeat messages.
    #[test]
    fn what_is_no_file_in_its_place_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(NAME)).unwrap();
        let (mut first, found) = InFlight::open(dir.path());
        assert_eq!(found, []);
        first.add(1, MessageNo(7));
        drop(first);
        assert_eq!(InFlight::open(dir.path()).1, [MessageNo(7)]);
    }

    #[test]
    fn the_next_one_is_told_what_was_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, found) = InFlight::open(dir.path());
        assert_eq!(found, []);
        for lease in 1..=3 {
            first.add(lease, MessageNo(i64::try_from(lease).unwrap() * 10));
        }
        first.remove(2);
        first.add(4, MessageNo(40));
        drop(first);
        let (_, mut found) = InFlight::open(dir.path());
        found.sort();
        assert_eq!(found, [MessageNo(10), MessageNo(30), MessageNo(40)]);
        assert_eq!(InFlight::open(dir.path()).1, [], "told once");
    }

    #[test]
    fn a_file_that_cannot_be_had_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (mut none, found) = InFlight::open(&dir.path().join("missing"));
        none.add(1, MessageNo(1));
        none.remove(1);
        assert_eq!(found, []);
    }
}

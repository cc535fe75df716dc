//! dropped - the drop directory: when it is looked through, and what becomes of its files

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::{Interest, Token};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::multi::Reactor;

use super::{Manager, Offered};
use crate::maildrop::{self, Collector, Found, Limits};
use crate::store::StoreError;

/// The pause after the store could take nothing, at first and at most; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the store may fail to take a file before the file is at fault.
const STRIKES: u8 = 2;
/// Complaints of one step that get a line each.
const MOST_LINES: usize = 10;

/// The drop directory, for qmgr.
pub(super) struct DropBox {
    collector: Collector,
    /// When the next step is due, if one is.
    next: Option<Time>,
    /// Another pass over the directory is to follow the one under way.
    again: bool,
    /// How long the store was given time the last time; zero when it takes messages.
    pause: Duration,
    /// Files to remove after this turn's commit.
    taken: Vec<PathBuf>,
    /// Why not every file of this turn could be stored.
    trouble: Option<String>,
    strikes: HashMap<PathBuf, u8>,
    /// Tells of new files while qmgr runs.
    watch: Option<(Inotify, Token)>,
}

impl DropBox {
    pub(super) fn new(message_size_limit: u64) -> Self {
        let directory = PathBuf::from(maildrop::DIRECTORY);
        Self {
            collector: Collector::new(directory, Limits::new(message_size_limit)),
            next: None,
            again: false,
            pause: Duration::ZERO,
            taken: Vec::new(),
            trouble: None,
            strikes: HashMap::new(),
            watch: None,
        }
    }

    /// Whoever drops a file has nobody to tell: the kernel tells. Where it cannot, the next wakeup
    /// comes by.
    pub(super) fn watch(&mut self, reactor: &mut Reactor) {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let watched = Inotify::init(flags).and_then(|inotify| {
            inotify.add_watch(maildrop::DIRECTORY, AddWatchFlags::IN_MOVED_TO)?;
            Ok(inotify)
        });
        let added = watched.map_err(std::io::Error::from).and_then(|inotify| {
            let token = reactor.add(inotify.as_fd(), Interest::READABLE)?;
            Ok((inotify, token))
        });
        match added {
            Ok(watch) => self.watch = Some(watch),
            Err(e) => {
                let cause = Fault::io("watch maildrop", &e);
                log::warn!("{cause}: new files are collected at wakeups only");
            }
        }
    }

    pub(super) fn is_watched_by(&self, token: Token) -> bool {
        self.watch.as_ref().is_some_and(|(_, own)| *own == token)
    }

    /// The kernel has told of something.
    pub(super) fn something_new(&mut self, now: Time) {
        if let Some((inotify, _)) = &self.watch {
            // It tells once for all that is there; what it is, the directory says.
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        self.look(now);
    }

    /// There may be something new. While the store takes nothing, that changes nothing.
    pub(super) fn look(&mut self, now: Time) {
        // A pass is never begun anew: who adds names all the time would keep it from its end.
        if self.next.is_some() {
            self.again |= self.pause.is_zero();
        } else {
            self.collector.rewind();
            self.next = Some(now);
        }
    }

    pub(super) const fn deadline(&self) -> Option<Time> {
        self.next
    }

    /// The commit of this turn is done, or has failed.
    pub(super) fn settle(&mut self, now: Time, committed: &Result<(), StoreError>) {
        let taken = std::mem::take(&mut self.taken);
        let trouble = self.trouble.take();
        match committed {
            Ok(()) => {
                let mut trouble = trouble;
                let stored = !taken.is_empty();
                for path in taken {
                    self.strikes.remove(&path);
                    match std::fs::remove_file(&path) {
                        // The file has gone; whatever has its name now is for the next pass.
                        Err(e)
                            if matches!(
                                e.kind(),
                                ErrorKind::NotFound | ErrorKind::IsADirectory
                            ) => {}
                        // It is known by its token when it is found again, and not before a pause.
                        Err(e) => {
                            let subject = format!("remove {}", path.display());
                            trouble = Some(Fault::io(subject, &e).to_string());
                        }
                        Ok(()) => {}
                    }
                }
                match trouble {
                    Some(cause) => self.wait(now, &cause),
                    None if stored => self.pause = Duration::ZERO,
                    None => {}
                }
            }
            Err(error) if !taken.is_empty() || trouble.is_some() => {
                self.wait(now, &trouble.unwrap_or_else(|| error.to_string()));
            }
            Err(_) => {}
        }
    }

    /// Begins again after a pause that grows.
    fn wait(&mut self, now: Time, cause: &str) {
        let first = self.pause.is_zero();
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        if first {
            log::warn!("messages stay in maildrop, retrying in {}s: {cause}", self.pause.as_secs());
        }
        self.collector.rewind();
        self.again = false;
        self.next = Some(now + self.pause);
    }

    /// The store has failed on a file: after some times the file is put aside, so that it holds up no
    /// other.
    fn strike(&mut self, path: &Path, cause: &str) {
        let count = self.strikes.entry(path.to_path_buf()).or_default();
        *count += 1;
        if *count >= STRIKES {
            self.strikes.remove(path);
            let mut found = Found::default();
            self.collector.refuse(&mut found, path, cause);
            tell(&found.complaints);
        }
        self.trouble = Some(cause.to_owned());
    }
}

impl Manager {
    /// Whether this process still takes files; else they are its successor's.
    pub(super) fn takes_files(&self) -> bool {
        self.leaving.is_none() && self.care.is_open()
    }

    /// Takes in what was dropped: as much as one turn may.
    pub(super) fn take_dropped(&mut self, now: Time) {
        if self.drops.next.is_none_or(|at| now < at) || !self.takes_files() {
            return;
        }
        let seconds = self.clock.stored(self.clock.now(now));
        let found = match self.drops.collector.step(seconds) {
            Ok(found) => found,
            Err(e) => return self.drops.wait(now, &Fault::io("read maildrop", &e).to_string()),
        };
        tell(&found.complaints);
        // What changes while it is read may be missed, also by the changes made here.
        self.drops.again |= !found.messages.is_empty();
        let again = !found.more && std::mem::take(&mut self.drops.again);
        self.drops.next = (found.more || again).then_some(now);
        for dropped in found.messages {
            let mut submission = dropped.submission;
            submission.recipients = self.local.complete(&submission.recipients);
            match self.accept(now, &submission) {
                Ok(accepted) => {
                    self.drops.taken.push(dropped.path);
                    let size = std::mem::take(&mut submission.body).len();
                    // Nobody waits for the answer; the file stays until it is queued.
                    let result = Ok(accepted);
                    self.offered
                        .push((Token(0), Offered { result, submission, size, replaces: None }));
                }
                // The rest of the turn's files would fare no better.
                Err(
                    e @ (StoreError::Full
                    | StoreError::Reopened
                    | StoreError::Damaged(_)
                    | StoreError::Newer(_)),
                ) => {
                    self.drops.trouble = Some(e.to_string());
                    return;
                }
                Err(StoreError::Failed(cause)) => return self.drops.strike(&dropped.path, &cause),
            }
        }
    }
}

fn tell(complaints: &[String]) {
    for complaint in complaints.iter().take(MOST_LINES) {
        log::warn!("{complaint}");
    }
    let rest = complaints.len().saturating_sub(MOST_LINES);
    if rest > 0 {
        log::warn!("maildrop: {rest} more files like these");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody put a directory in the place of a file while it was being queued; the whole drop
    /// directory then waited, up to 30 seconds and again and again.
    #[test]
    fn a_taken_file_that_was_replaced_keeps_no_other_file_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new.1");
        std::fs::create_dir(&path).unwrap();
        let mut drops = DropBox::new(0);
        drops.next = Some(Time::now());
        drops.taken.push(path);
        let before = drops.next;
        drops.settle(Time::now(), &Ok(()));
        assert_eq!((drops.next, drops.pause), (before, Duration::ZERO));
    }
}

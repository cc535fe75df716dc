//! recover - opening a store whatever is there, and taking over messages from damaged ones
//!
//! What is known in this process goes with it into the new store: changes that are not on disk, and
//! which messages have ended.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};
use worker_proto::clock::{self, Time};
use worker_proto::diagnostic::Fault;

use super::changes::{carry, is_settled, settle};
use super::damage::{self, State};
use super::salvage::{Found, Salvage, Step, Tally};
use super::sum::{body_sum, message_sum, recipient_sum};
use super::{MessageNo, NAME, RecipientState, Store, StoreError, Summary, schema};

/// Damaged stores that are searched for messages.
#[derive(Debug, Default)]
pub(super) struct Rescue {
    waiting: VecDeque<PathBuf>,
    current: Option<Salvage>,
    /// Found, and not in the store yet.
    found: Vec<Found>,
    /// How often the search was begun again, because the disk did not answer.
    failed: u32,
}

/// What a step of [`Store::salvage`] has brought.
#[derive(Debug)]
pub enum Salvaged {
    /// Nothing yet.
    Nothing,
    /// These messages are queued now.
    Queued(Vec<Summary>),
    /// A damaged store has been searched: what became of its messages, and a line about it.
    Finished(Tally, String),
}

impl Store {
    /// Opens the store again after a failure, or after something in it was found to be damaged. Gives
    /// a line about a store that was put aside.
    ///
    /// # Errors
    /// It cannot be opened, and is not damaged as far as can be told; to be tried again.
    pub fn recover(&mut self) -> Result<Option<String>, Fault> {
        let path = self.directory.join(NAME);
        let fault = |e: StoreError| Fault::new(format!("open {}", path.display()), e);
        if self.lock.is_none() {
            self.lock = Some(lock(&self.directory).map_err(fault)?);
        }
        // The next commit reports the loss of what was submitted since the last one.
        let lost = self.has_accepted || self.lost_submissions || self.reopened;
        self.roll_back();
        if let Some(db) = self.db.take() {
            // What is damaged is not changed by closing it.
            let _ = db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
        let known = self.damage.get_mut().take();
        let told = match self.open_or_replace(&path, known.clone()) {
            Ok(told) => told,
            Err(e) => {
                // The same the next time.
                self.reopened = lost;
                *self.damage.get_mut() = known;
                return Err(fault(e));
            }
        };
        self.rescue.waiting = damage::put_aside_before(&path).into();
        self.rescue.current = None;
        self.rescue.found.clear();
        self.space.fill_ballast();
        let committed = self.remove_refused().and_then(|()| self.commit());
        self.reopened = lost;
        // A store that takes nothing is no better than before.
        match committed {
            Err(e @ (StoreError::Failed(_) | StoreError::Newer(_))) if told.is_none() => {
                self.db = None;
                Err(fault(e))
            }
            _ => Ok(told),
        }
    }

    /// A commit that failed may have reached the disk.
    fn remove_refused(&mut self) -> Result<(), StoreError> {
        let Some(last) = self.refused.iter().max().copied() else { return Ok(()) };
        let db = self.db()?;
        db.execute_batch("BEGIN IMMEDIATE")?;
        for no in &self.refused {
            db.execute("DELETE FROM message WHERE no = ?1", [no])?;
        }
        // The numbers are not given again: where a damaged store is searched they have ended.
        let sql = "UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'message'";
        db.execute(sql, [last])?;
        db.execute_batch("COMMIT")?;
        self.refused.clear();
        Ok(())
    }

    fn open_or_replace(
        &mut self,
        path: &Path,
        known: Option<String>,
    ) -> Result<Option<String>, StoreError> {
        let state = match known {
            Some(text) => State::Damaged(text),
            None => damage::inspect(path)?,
        };
        let (kind, cause) = match state {
            State::Missing => {
                self.begin_empty(path, damage::had_another(path))?;
                return Ok(None);
            }
            State::Usable => match schema::open(path) {
                Ok(db) => {
                    self.db = Some(db);
                    return Ok(None);
                }
                Err(StoreError::Newer(version)) => {
                    ("newer", format!("its version {version} is of a later program"))
                }
                Err(StoreError::Damaged(text)) => ("damaged", text),
                Err(e) => return Err(e),
            },
            State::Damaged(text) => ("damaged", text),
            State::Foreign(text) => ("foreign", text),
        };
        let failed = |e: std::io::Error| StoreError::Failed(worker_proto::sys::errno_text(&e));
        let aside = damage::put_aside(path, kind).map_err(failed)?;
        self.begin_empty(path, true)?;
        let (path, aside) = (path.display(), aside.display());
        let what = match kind {
            "newer" => format!(
                "it is kept as {aside} and not changed; to deliver its messages stop, install the \
                 later program, and rename it back"
            ),
            "foreign" => format!(
                "it is kept as {aside}; if it is a queue database, give it to the mail owner and \
                 rename it to queue.db.damaged-N: its messages are taken over at the next start"
            ),
            _ => format!(
                "it is kept as {aside}; what can be read of its messages is taken over now; check \
                 the disk and the file system"
            ),
        };
        Ok(Some(format!("{path} cannot be used ({cause}); starting an empty one; {what}")))
    }

    /// An empty store, with what this process knows of the messages of the one before.
    fn begin_empty(&mut self, path: &Path, is_another: bool) -> Result<(), StoreError> {
        // Numbers go on where no other store can have given them, and so do queue ids.
        let seconds = i64::try_from(clock::wall().as_secs()).unwrap_or(0);
        let base = if is_another { (seconds - EPOCH).max(1) << 16 } else { 0 };
        let base = base.max(self.ledger.ended().map(|(_, last)| last).max().unwrap_or(0));
        let made = schema::create(path, base);
        if made == Err(StoreError::Full) {
            self.space.release_ballast();
            schema::create(path, base)?;
        } else {
            made?;
        }
        let db = schema::open(path)?;
        db.execute_batch("BEGIN IMMEDIATE")?;
        for (first, last) in self.ledger.ended() {
            settle(&db, first, last)?;
        }
        for no in &self.refused {
            settle(&db, *no, *no)?;
        }
        for (no, marks) in self.ledger.partly() {
            carry(&db, no, marks)?;
        }
        db.execute_batch("COMMIT")?;
        self.db = Some(db);
        Ok(())
    }

    /// Whether there is a damaged store that is not searched to its end.
    #[must_use]
    pub fn is_salvaging(&self) -> bool {
        let Rescue { waiting, current, found, failed: _ } = &self.rescue;
        !waiting.is_empty() || current.is_some() || !found.is_empty()
    }

    /// Takes over a few messages from damaged stores. To be called between turns while
    /// [`Store::is_salvaging`].
    ///
    /// # Errors
    /// The store cannot be written to; nothing is lost by it, and the step is done again.
    pub fn salvage(&mut self) -> Result<Salvaged, StoreError> {
        if self.in_transaction {
            return Ok(Salvaged::Nothing);
        }
        if self.rescue.found.is_empty() {
            if self.rescue.current.is_none() {
                self.rescue.current =
                    self.rescue.waiting.pop_front().map(|path| Salvage::of(&path));
            }
            let Some(current) = &mut self.rescue.current else { return Ok(Salvaged::Nothing) };
            let step = current.step();
            if let Some(e) = current.take_failure() {
                // Nothing of what is there must be missed, nor an old row taken for the newest.
                if self.rescue.failed < ATTEMPTS {
                    self.rescue.failed += 1;
                    *current = Salvage::of(current.path());
                    return Err(StoreError::Failed(worker_proto::sys::errno_text(&e)));
                }
                current.tally.unreadable = true;
            }
            if !current.is_readable() {
                let path = current.path().display();
                let line = format!("{path}: cannot be read; its messages stay where they are");
                self.rescue.current = None;
                self.rescue.failed = 0;
                return Ok(Salvaged::Finished(Tally::default(), line));
            }
            match step {
                Step::Searched => return Ok(Salvaged::Nothing),
                Step::Found(found) => self.rescue.found = found,
                Step::Done => return self.finish(),
            }
        }
        let db = self.db()?;
        let adopt = || -> Result<_, StoreError> {
            db.execute_batch("BEGIN IMMEDIATE")?;
            let (mut queued, mut tally) = (Vec::new(), Tally::default());
            for found in &self.rescue.found {
                tally.recipients += found.lost.unsigned_abs();
                match adopt(db, found)? {
                    Some(no) => {
                        tally.queued += 1;
                        queued.push(no);
                    }
                    None => tally.ended += 1,
                }
            }
            db.execute_batch("COMMIT")?;
            Ok((queued, tally))
        };
        match adopt() {
            Err(e) => {
                let _ = db.execute_batch("ROLLBACK");
                Err(self.note(e))
            }
            Ok((queued, tally)) => {
                self.rescue.found.clear();
                if let Some(current) = &mut self.rescue.current {
                    current.tally.queued += tally.queued;
                    current.tally.ended += tally.ended;
                    current.tally.recipients += tally.recipients;
                }
                let read = |no| self.by_no(MessageNo(no)).transpose();
                let queued = queued.into_iter().filter_map(read).collect::<Result<_, _>>()?;
                Ok(Salvaged::Queued(queued))
            }
        }
    }

    fn finish(&mut self) -> Result<Salvaged, StoreError> {
        if self.rescue.waiting.is_empty() {
            self.db()?.execute_batch("DELETE FROM settled; DELETE FROM carried")?;
        }
        let Some(current) = self.rescue.current.take() else { return Ok(Salvaged::Nothing) };
        self.rescue.failed = 0;
        let name = current.finish();
        let tally = current.tally.clone();
        let mut line = format!(
            "{}: {} messages taken over into the queue, {} had ended",
            current.path().display(),
            tally.queued,
            tally.ended
        );
        if !tally.damaged.is_empty() {
            line += &format!(", {} damaged and lost", tally.damaged.len());
        }
        if tally.recipients > 0 {
            line += &format!(", {} recipients damaged and lost", tally.recipients);
        }
        if tally.missing > 0 {
            line += &format!(", of {} nothing is left (deleted earlier, or lost)", tally.missing);
        }
        if tally.open_end {
            line += ", and of the last ones perhaps nothing is left";
        }
        line += &format!("; it is kept as {}, remove it when nothing is missed", name.display());
        if tally.unreadable {
            let again = current.path().file_name().unwrap_or_default().to_string_lossy();
            line += &format!(
                "; parts could not be read because of I/O errors: check the disk, rename it to {again} \
                 with its WAL and reload, and it is searched again"
            );
        }
        Ok(Salvaged::Finished(tally, line))
    }
}

/// Locks the directory. A process that is ending may have it for a moment.
fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let failed = |e: std::io::Error| StoreError::Failed(worker_proto::sys::errno_text(&e));
    let mut file = File::open(directory).map_err(failed)?;
    let until = Time::now() + LOCK_PATIENCE;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Time::now() >= until => {
                return Err(StoreError::Failed("in use by another process".to_owned()));
            }
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// How often the search of a damaged store is begun again when the disk does not answer.
const ATTEMPTS: u32 = 12;

/// How long another process may keep the store, and how often that is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// 2020, from which the numbers of a store that takes another's place are counted.
const EPOCH: i64 = 1_577_836_800;

/// Puts a message into the store, under its number if that is free. None when it is there already,
/// or has ended.
fn adopt(db: &Connection, found: &Found) -> Result<Option<i64>, StoreError> {
    let known = "SELECT 1 FROM message WHERE id = ?1 OR token = ?2";
    let mut known = db.prepare_cached(known)?;
    if known.exists(params![found.id, found.token])? || is_settled(db, found.no)? {
        return Ok(None);
    }
    let mut found = found.clone();
    let carried = "SELECT state, reply FROM carried WHERE message = ?1 AND position = ?2";
    let mut carried = db.prepare_cached(carried)?;
    for (position, _, state, reply) in &mut found.recipients {
        let row = |row: &rusqlite::Row<'_>| Ok((RecipientState::of(row.get(0)?), row.get(1)?));
        if let Some(ended) = carried.query_row([found.no, *position], row).optional()? {
            (*state, *reply) = ended;
        }
    }
    let is_queued = found.is_queued();
    let done = match (is_queued, found.done) {
        (true, _) => 0,
        (false, done) if done > 0 => done,
        (false, _) => i64::try_from(clock::wall().as_secs()).unwrap_or(1),
    };
    let taken = db.prepare_cached("SELECT 1 FROM message WHERE no = ?1")?.exists([found.no])?;
    let no = (!taken).then_some(found.no);
    let mut insert = db.prepare_cached(
        "INSERT INTO message(no, id, arrived, sender, size, origin, lane, attempts, next_try, why, \
         held, done, token) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    let Found { id, arrived, sender, size, origin, lane, attempts, next_try, why, .. } = &found;
    insert.execute(params![
        no,
        id,
        arrived,
        sender,
        size,
        origin,
        lane,
        attempts,
        next_try,
        why,
        found.held,
        done,
        found.token
    ])?;
    let no = db.last_insert_rowid();
    let count = i64::try_from(found.recipients.len()).unwrap_or(i64::MAX);
    let sum = message_sum(no, id, sender, *size, origin, *lane, count);
    let mut seal =
        db.prepare_cached("UPDATE message SET recipients = ?2, sum = ?3 WHERE no = ?1")?;
    seal.execute([no, count, sum])?;
    let mut add = db.prepare_cached(
        "INSERT INTO recipient(message, position, address, state, reply, sum) \
         VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for (position, address, state, reply) in &found.recipients {
        let sum = recipient_sum(no, *position, address);
        add.execute(params![no, position, address, state.code(), reply, sum])?;
    }
    let failed = |r: &(i64, String, RecipientState, String)| r.2 == RecipientState::Failed;
    let is_kept = is_queued || found.recipients.iter().any(failed);
    if let Some(body) = found.body.as_ref().filter(|_| is_kept) {
        let mut add =
            db.prepare_cached("INSERT INTO body(message, bytes, sum) VALUES(?1, ?2, ?3)")?;
        add.execute(params![no, body, body_sum(no, body)])?;
    }
    Ok(is_queued.then_some(no))
}

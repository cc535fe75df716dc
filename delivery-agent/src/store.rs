//! store - the queue on disk: all SQL is here
//!
//! One process has it open (Q1): SQLite in WAL mode under an exclusive lock. Submissions gather in a
//! transaction and are told only when [`Store::commit`] has synchronised it (Q4). Marks of delivery
//! may be lost in a power cut, which repeats a message and never loses one (Q5).
//!
//! A message's bytes are stored once and removed when it is delivered to everybody; the rest of it
//! stays listed for `retired_time`.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use rusqlite::{Connection, OptionalExtension, Row, params};
use worker_proto::diagnostic::Fault;

use crate::wire::{Lane, Submission};

mod changes;
mod damage;
mod ledger;
mod pages;
mod read;
mod recover;
mod salvage;
mod schema;
mod space;
mod sum;
mod types;

use changes::Change;
use ledger::Ledger;
use recover::Rescue;
pub use recover::Salvaged;
pub use salvage::Tally;
use space::Space;
use sum::{body_sum, message_sum, recipient_sum};
use types::signed;
pub use types::{Accepted, MessageNo, Recipient, RecipientState, StoreError, Summary};

/// The file's name.
const NAME: &str = "queue.db";

/// The open store.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// None after a failure, until [`Store::recover`] has opened it again.
    db: Option<Connection>,
    space: Space,
    in_transaction: bool,
    has_accepted: bool,
    /// Submissions of the running turn went down with their transaction.
    lost_submissions: bool,
    /// Submissions that no commit has told of went down when the store was opened again.
    reopened: bool,
    /// Numbers of the submissions in the running transaction.
    numbers: Vec<i64>,
    /// Numbers whose commit has failed. They may be on disk for all that, and must not be sent: whoever
    /// submitted them was told that they are not queued, and comes again.
    refused: Vec<i64>,
    /// Bytes of the submissions in the running transaction.
    pending: u64,
    /// Changes that are not on disk yet; they are made again when their transaction fails.
    unsaved: Vec<Change>,
    ledger: Ledger,
    /// What was found to be damaged while it was in use.
    damage: RefCell<Option<String>>,
    rescue: Rescue,
    /// Held as long as the store is this process's: what lies there is looked at before SQLite can
    /// lock it. The last field, as the database must be closed before.
    lock: Option<Flock<File>>,
}

impl Store {
    /// Opens the store in a directory, or makes it. One that is damaged, or is none, is put aside and
    /// an empty one takes its place, with a line about it in the second part (Q8); what can be read of
    /// it comes by [`Store::salvage`].
    ///
    /// # Errors
    /// It is in use, the directory cannot be used, or the system is short of something.
    pub fn open(directory: &Path, min_free: u64) -> Result<(Self, Option<String>), Fault> {
        let space = Space::new(directory, min_free);
        let mut store = Self::with(directory, None, space);
        let told = store.recover()?;
        Ok((store, told))
    }

    /// Opens the store to look at it while nobody else has it open. Nothing is written, and no link
    /// is followed.
    ///
    /// # Errors
    /// It is in use, damaged, or not there.
    pub fn look(directory: &Path) -> Result<Self, StoreError> {
        let db = schema::look(&directory.join(NAME))?;
        Ok(Self::with(directory, Some(db), Space::new(directory, 0)))
    }

    fn with(directory: &Path, db: Option<Connection>, space: Space) -> Self {
        Self {
            directory: directory.to_path_buf(),
            lock: None,
            db,
            space,
            in_transaction: false,
            has_accepted: false,
            lost_submissions: false,
            reopened: false,
            numbers: Vec::new(),
            refused: Vec::new(),
            pending: 0,
            unsaved: Vec::new(),
            ledger: Ledger::default(),
            damage: RefCell::new(None),
            rescue: Rescue::default(),
        }
    }

    fn db(&self) -> Result<&Connection, StoreError> {
        self.db
            .as_ref()
            .ok_or_else(|| StoreError::Failed("the queue database is closed".to_owned()))
    }

    /// Remembers damage: the operation that saw it may be one of many in its turn.
    fn note(&self, error: StoreError) -> StoreError {
        if let StoreError::Damaged(text) = &error {
            self.damage.borrow_mut().get_or_insert_with(|| text.clone());
        }
        error
    }

    /// Notes damage that only the caller can see.
    pub fn report_damage(&self, text: &str) {
        self.note(StoreError::Damaged(text.to_owned()));
    }

    /// Whether [`Store::recover`] is called for, because something was found to be damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damage.borrow().is_some()
    }

    /// Puts a message into the running transaction, beginning one if there is none. It counts when
    /// [`Store::commit`] has returned. One that was queued before under the same token is told as it
    /// was. `now` is seconds since 1970.
    ///
    /// # Errors
    /// The disk is full, and the like; what the transaction held is lost, and so not queued.
    pub fn accept(&mut self, submission: &Submission, now: u64) -> Result<Accepted, StoreError> {
        // Without a token it is like no other: NULL is equal to nothing.
        let token = Some(submission.token.as_str()).filter(|t| !t.is_empty());
        if let Some(token) = token {
            let sql = "SELECT no, id FROM message WHERE token = ?1";
            let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let find = |db: &Connection| db.prepare_cached(sql)?.query_row([token], row).optional();
            if let Some((no, id)) = find(self.db()?).map_err(|e| self.note(e.into()))? {
                return Ok(Accepted { no: MessageNo(no), id, fresh: false });
            }
        }
        // A turn that has lost submissions takes no more: its commit tells all of them that they are
        // not queued.
        if self.reopened {
            return Err(StoreError::Reopened);
        }
        let size = submission.body.len() as u64;
        if self.lost_submissions || self.is_short(self.pending + size) {
            return Err(StoreError::Full);
        }
        let inserted = self.begin(true).and_then(|()| self.insert(submission, token, now));
        match inserted {
            Ok(accepted) => {
                self.pending += size;
                self.numbers.push(accepted.no.0);
                Ok(accepted)
            }
            Err(e) => {
                // Half a message must not be committed.
                self.give_up();
                Err(self.note(e))
            }
        }
    }

    fn insert(
        &self,
        submission: &Submission,
        token: Option<&str>,
        now: u64,
    ) -> Result<Accepted, StoreError> {
        let db = self.db()?;
        if db.is_autocommit() {
            // SQLite has rolled back by itself; what was inserted now would be on disk at once.
            return Err(StoreError::Failed("the transaction has ended".to_owned()));
        }
        let Submission { sender, origin, body, .. } = submission;
        let size = i64::try_from(body.len()).unwrap_or(i64::MAX);
        let lane = lane_code(submission.lane);
        let mut insert = db.prepare_cached(
            "INSERT INTO message(id, arrived, sender, size, origin, lane, next_try, token) \
             VALUES(hex(randomblob(8)), ?1, ?2, ?3, ?4, ?5, ?1, ?6)",
        )?;
        insert.execute(params![signed(now), sender, size, origin, lane, token])?;
        let no = db.last_insert_rowid();
        let id = queue_id(no, now);
        let count = i64::try_from(submission.recipients.len()).unwrap_or(i64::MAX);
        let sum = message_sum(no, &id, sender, size, origin, lane, count);
        let mut rename = db.prepare_cached(
            "UPDATE message SET id = ?2, recipients = ?3, sum = ?4 WHERE no = ?1",
        )?;
        rename.execute(params![no, id, count, sum])?;
        let mut add = db.prepare_cached(
            "INSERT INTO recipient(message, position, address, sum) VALUES(?1, ?2, ?3, ?4)",
        )?;
        for (position, address) in (0_i64..).zip(&submission.recipients) {
            add.execute(params![no, position, address, recipient_sum(no, position, address)])?;
        }
        let mut store =
            db.prepare_cached("INSERT INTO body(message, bytes, sum) VALUES(?1, ?2, ?3)")?;
        store.execute(params![no, body, body_sum(no, body)])?;
        Ok(Accepted { no: MessageNo(no), id, fresh: true })
    }

    /// Marks recipients. When none is left to deliver to, the message ends and true is returned.
    ///
    /// # Errors
    /// See [`Store::accept`]. On a full disk the ballast is given up first; when that does not help,
    /// the marks are made again in a later transaction.
    pub fn mark(
        &mut self,
        no: MessageNo,
        marks: &[(i64, RecipientState, String)],
        now: u64,
    ) -> Result<bool, StoreError> {
        self.change(Change::Mark { no, marks: marks.to_vec(), now })
    }

    /// Sets when a message is tried again, and why it waits.
    ///
    /// # Errors
    /// See [`Store::mark`].
    pub fn defer(
        &mut self,
        no: MessageNo,
        attempts: u32,
        next_try: u64,
        why: &str,
        held: bool,
    ) -> Result<(), StoreError> {
        self.change(Change::Defer { no, attempts, next_try, why: why.to_owned(), held }).map(drop)
    }

    /// Removes a message for good.
    ///
    /// # Errors
    /// See [`Store::mark`].
    pub fn delete(&mut self, no: MessageNo) -> Result<(), StoreError> {
        self.change(Change::Delete { no }).map(drop)
    }

    /// Forgets messages that ended before a time. While a damaged store is being searched they are
    /// what tells which of its messages have ended.
    ///
    /// # Errors
    /// See [`Store::accept`].
    pub fn forget_ended(&mut self, before: u64) -> Result<usize, StoreError> {
        if self.is_salvaging() {
            return Ok(0);
        }
        self.begin(false)?;
        let sql = "DELETE FROM message WHERE done > 0 AND done < ?1";
        self.db()?.execute(sql, [signed(before)]).map_err(|e| self.note(e.into()))
    }

    /// Puts times right that a wrong clock has left in the future: nothing is tried later than `most`
    /// from now, and nothing has come or ended after now. All are seconds since 1970.
    ///
    /// # Errors
    /// See [`Store::accept`].
    pub fn clamp_times(&mut self, now: u64, most: u64) -> Result<(), StoreError> {
        self.begin(false)?;
        let (now, latest) = (signed(now), signed(now.saturating_add(most)));
        let clamp = |db: &Connection| {
            let late = "UPDATE message SET next_try = ?1 WHERE done = 0 AND next_try > ?1";
            db.execute(late, [latest])?;
            db.execute("UPDATE message SET arrived = ?1 WHERE done = 0 AND arrived > ?1", [now])?;
            db.execute("UPDATE message SET done = ?1 WHERE done > ?1", [now])
        };
        clamp(self.db()?).map(drop).map_err(|e| self.note(e.into()))
    }

    /// Whether a message has ended after a time.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn ends_after(&self, now: u64) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS(SELECT 1 FROM message WHERE done > ?1)";
        let found = self.db()?.query_row(sql, [signed(now)], |row| row.get(0));
        found.map_err(|e| self.note(e.into()))
    }

    /// The clock was set: messages after a number were stored by the clock as it was before, so many
    /// seconds behind.
    ///
    /// # Errors
    /// See [`Store::accept`].
    pub fn move_times(&mut self, after: MessageNo, seconds: i64) -> Result<(), StoreError> {
        self.begin(false)?;
        let sql = "UPDATE message SET arrived = max(arrived + ?2, 0), next_try = max(next_try + ?2, 0) \
                   WHERE done = 0 AND no > ?1";
        self.db()?.execute(sql, [after.0, seconds]).map(drop).map_err(|e| self.note(e.into()))
    }

    /// The last number that was given.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn last_number(&self) -> Result<MessageNo, StoreError> {
        let sql = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'";
        let last = self.db()?.query_row(sql, [], |row| row.get(0));
        last.map(MessageNo).map_err(|e| self.note(e.into()))
    }

    /// Ends the running transaction: what was accepted in it is on disk when this returns. Where the
    /// disk is full, changes still get there if the ballast has room for them, without submissions.
    ///
    /// # Errors
    /// What was accepted is not on disk, and is not queued. Changes are made again in the next.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        let mut result = self.save();
        if result == Err(StoreError::Full) {
            // SQLite writes at the end of a transaction, so that is where a full disk shows.
            self.give_up();
            if !self.unsaved.is_empty() {
                self.make_room();
                result = self.save();
            }
        } else if self.has_accepted && result.is_ok() {
            self.space.fill_ballast();
        }
        if result.is_err() {
            self.roll_back();
        }
        let lost = std::mem::take(&mut self.lost_submissions);
        let reopened = std::mem::take(&mut self.reopened);
        self.has_accepted = false;
        self.pending = 0;
        let numbers = std::mem::take(&mut self.numbers);
        match &result {
            // A number that went down with its transaction is given again.
            Ok(()) => self.refused.retain(|no| !numbers.contains(no)),
            Err(StoreError::Full) => {}
            Err(_) => self.refused.extend(numbers),
        }
        if lost && !matches!(result, Err(StoreError::Failed(_) | StoreError::Damaged(_))) {
            return Err(StoreError::Full);
        }
        if reopened && result.is_ok() {
            return Err(StoreError::Reopened);
        }
        result.map_err(|e| self.note(e))
    }

    /// Whether every change that was made is on disk.
    #[must_use]
    pub const fn is_saved(&self) -> bool {
        self.unsaved.is_empty()
    }

    /// Ends the transaction, and begins one before if changes are left from a failed one.
    fn save(&mut self) -> Result<(), StoreError> {
        if self.in_transaction && self.db()?.is_autocommit() {
            // SQLite has given it up by itself.
            self.give_up();
        }
        if !self.in_transaction {
            if self.unsaved.is_empty() {
                return Ok(());
            }
            self.begin_again()?;
        }
        self.in_transaction = false;
        self.db()?.execute_batch("COMMIT")?;
        self.unsaved.clear();
        Ok(())
    }

    /// The transaction has failed: what was accepted in it is lost, changes are made again.
    fn give_up(&mut self) {
        self.lost_submissions |= self.has_accepted;
        self.has_accepted = false;
        self.roll_back();
    }

    /// Gives up the running transaction.
    pub fn roll_back(&mut self) {
        self.in_transaction = false;
        if let Some(db) = &self.db {
            // SQLite may have rolled back by itself.
            let _ = db.execute_batch("ROLLBACK");
        }
    }

    fn begin(&mut self, accepting: bool) -> Result<(), StoreError> {
        if self.in_transaction && self.db()?.is_autocommit() {
            // SQLite has rolled back by itself: what follows must not be on disk at once.
            self.give_up();
            if accepting {
                return Err(StoreError::Full);
            }
        }
        if !self.in_transaction {
            self.begin_again()?;
        }
        self.has_accepted |= accepting;
        Ok(())
    }

    /// Begins a transaction with the changes that are not on disk yet; true when the last of them
    /// has ended its message.
    fn begin_again(&mut self) -> Result<bool, StoreError> {
        self.roll_back();
        self.db()?.execute_batch("BEGIN IMMEDIATE")?;
        self.in_transaction = true;
        let mut ended = false;
        for change in &self.unsaved {
            ended = change.apply(self.db()?)?;
        }
        Ok(ended)
    }

    /// Makes a change that must not fail for want of space: without any, the ballast is given up and
    /// everything that is not on disk done again. Whatever happens, it is not forgotten.
    fn change(&mut self, change: Change) -> Result<bool, StoreError> {
        let begun = self.begin(false);
        let mut result = begun.and_then(|()| change.apply(self.db()?).map_err(StoreError::from));
        self.ledger.note(&change, result == Ok(true));
        self.unsaved.push(change);
        if result == Err(StoreError::Full) {
            self.give_up();
            self.make_room();
            result = self.begin_again();
        }
        result.map_err(|e| self.note(e))
    }

    /// Whether there is too little room for so many bytes more. What is free within the file counts.
    pub fn is_short(&self, bytes: u64) -> bool {
        let free: i64 = self
            .db
            .as_ref()
            .and_then(|db| db.query_row("PRAGMA freelist_count", [], |row| row.get(0)).ok())
            .unwrap_or(0);
        self.space.is_short(bytes, free.unsigned_abs() * pages::PAGE as u64)
    }

    /// Gives up the ballast, and what the WAL takes up.
    fn make_room(&mut self) {
        self.space.release_ballast();
        if let Some(db) = &self.db {
            let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
    }

    /// Gives a part of the free pages back to the file system, outside of a turn. True: there is more
    /// to give back.
    ///
    /// # Errors
    /// See [`Store::accept`].
    pub fn shrink(&mut self) -> Result<bool, StoreError> {
        if self.in_transaction {
            return Ok(false);
        }
        let db = self.db()?;
        let number = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let shrink = || {
            if number("PRAGMA auto_vacuum")? != 2 || number("PRAGMA freelist_count")? < KEPT_PAGES {
                return Ok(false);
            }
            let mut step = db.prepare(&format!("PRAGMA incremental_vacuum({SHRINK_STEP})"))?;
            let mut rows = step.query([])?;
            while rows.next()?.is_some() {}
            Ok(number("PRAGMA freelist_count")? >= KEPT_PAGES)
        };
        let more = shrink().map_err(|e: rusqlite::Error| self.note(e.into()))?;
        if !more {
            // The file is cut when the WAL is written back.
            let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        Ok(more)
    }
}

/// Free pages that stay in the file, and how many are given back at a time.
const KEPT_PAGES: i64 = 1024;
const SHRINK_STEP: u32 = 256;

const fn lane_code(lane: Lane) -> i64 {
    match lane {
        Lane::Urgent => 0,
        Lane::Normal => 1,
        Lane::Bulk => 2,
    }
}

/// Short and unique for good: the number never comes back, the time tells a store that was begun
/// anew from the one before. Digits without vowels make no words.
fn queue_id(no: i64, now: u64) -> String {
    const DIGITS: &[u8; 31] = b"0123456789BCDFGHJKLMNPQRSTVWXYZ";
    let mut id = String::new();
    for (mut n, width) in [(now % 31_u64.pow(5), 5), (no.unsigned_abs(), 4)] {
        let mut digits = Vec::new();
        while n > 0 || digits.len() < width {
            digits.push(char::from(DIGITS[usize::try_from(n % 31).unwrap_or(0)]));
            n /= 31;
        }
        id.extend(digits.iter().rev());
    }
    id
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;

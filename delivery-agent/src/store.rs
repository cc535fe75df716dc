//! store - the queue on disk: all SQL is here
//!
//! One process has it open (Q1): SQLite in WAL mode under an exclusive lock. Submissions gather in a
//! transaction and are told only when [`Store::commit`] has synchronised it (Q4). Marks of delivery
//! may be lost in a power cut, which repeats a message and never loses one (Q5).
//!
//! A message's bytes are stored once and removed when its last recipient has ended; the rest of it
//! stays listed for `retired_time`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use worker_proto::diagnostic::Fault;

use crate::wire::{Lane, Submission};

mod changes;
mod read;
mod space;
mod types;

use changes::Change;
use space::Space;
use types::signed;
pub use types::{Accepted, MessageNo, Recipient, RecipientState, StoreError, Summary};

/// The open store.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    space: Space,
    in_transaction: bool,
    has_accepted: bool,
    /// Submissions of the running turn went down with their transaction.
    lost_submissions: bool,
    /// Changes that are not on disk yet; they are made again when their transaction fails.
    unsaved: Vec<Change>,
}

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE message(
    no INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, arrived INTEGER NOT NULL,
    sender TEXT NOT NULL, size INTEGER NOT NULL, origin TEXT NOT NULL, lane INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_try INTEGER NOT NULL, why TEXT NOT NULL DEFAULT '',
    held INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0, token TEXT);
CREATE UNIQUE INDEX message_token ON message(token);
CREATE INDEX message_done ON message(done);
CREATE TABLE recipient(
    message INTEGER NOT NULL REFERENCES message(no) ON DELETE CASCADE, position INTEGER NOT NULL,
    address TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0, reply TEXT NOT NULL DEFAULT '',
    PRIMARY KEY(message, position)) WITHOUT ROWID;
CREATE TABLE body(
    message INTEGER PRIMARY KEY REFERENCES message(no) ON DELETE CASCADE, bytes BLOB NOT NULL);
";

impl Store {
    /// Opens the store in a directory, or makes it. One that is damaged is put aside and a fresh one
    /// begun, with the reason in the second part (Q8).
    ///
    /// # Errors
    /// It is in use, or the directory is of no use.
    pub fn open(directory: &Path, min_free: u64) -> Result<(Self, Option<String>), Fault> {
        let path = directory.join("queue.db");
        let fault = |cause: StoreError| Fault::new(format!("open {}", path.display()), cause);
        match Self::attempt(directory, &path, min_free) {
            Ok(store) => Ok((store, None)),
            Err(e) if is_damage(&e) => {
                let aside = put_aside(&path).map_err(|e| Fault::io("put the store aside", &e))?;
                let store =
                    Self::attempt(directory, &path, min_free).map_err(|e| fault(e.into()))?;
                Ok((store, Some(format!("{e}; it is kept as {}", aside.display()))))
            }
            Err(e) => Err(fault(e.into())),
        }
    }

    /// Opens the store to look at it while nobody else has it open. Nothing is written, and no link
    /// is followed.
    ///
    /// # Errors
    /// It is in use, damaged, or not there.
    pub fn look(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("queue.db");
        let nofollow = OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let wal = fs::symlink_metadata(directory.join("queue.db-wal"));
        let db = if wal.is_ok_and(|wal| wal.len() > 0) {
            // A WAL is read under an exclusive lock only, which takes a descriptor for writing.
            let db =
                Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | nofollow)?;
            db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            db.pragma_update(None, "query_only", "ON")?;
            db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            db
        } else {
            // Without one SQLite would make it.
            let name = path.display().to_string();
            let name = name.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | nofollow;
            Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)?
        };
        db.busy_timeout(Duration::from_secs(5))?;
        db.query_row("SELECT count(*) FROM message WHERE done = 0", [], |_| Ok(()))?;
        Ok(Self::with(db, Space::new(directory, 0)))
    }

    fn with(db: Connection, space: Space) -> Self {
        db.set_prepared_statement_cache_capacity(32);
        Self {
            db,
            space,
            in_transaction: false,
            has_accepted: false,
            lost_submissions: false,
            unsaved: Vec::new(),
        }
    }

    fn attempt(directory: &Path, path: &Path, min_free: u64) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        // A file that SQLite makes has the umask's mode; queued mail is nobody else's business.
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            let text = format!("it has version {version}, of a later program than this");
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR);
            return Err(rusqlite::Error::SqliteFailure(code, Some(text)));
        }
        if version == 0 {
            db.execute_batch(&format!(
                "BEGIN;{SCHEMA};PRAGMA user_version={SCHEMA_VERSION};COMMIT"
            ))?;
        }
        // The first pages are read here: damage shows now and not in the middle of a delivery.
        db.query_row("SELECT count(*) FROM message WHERE done = 0", [], |_| Ok(()))?;
        let space = Space::new(directory, min_free);
        space.fill_ballast();
        Ok(Self::with(db, space))
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
            let mut query =
                self.db.prepare_cached("SELECT no, id FROM message WHERE token = ?1")?;
            let found =
                query.query_row([token], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            if let Some((no, id)) = found {
                return Ok(Accepted { no: MessageNo(no), id, fresh: false });
            }
        }
        // A turn that has lost submissions takes no more: its commit tells all of them that they are
        // not queued.
        if self.lost_submissions || self.space.is_short() {
            return Err(StoreError::Full);
        }
        let inserted = self.begin(true).and_then(|()| self.insert(submission, token, now));
        if inserted.is_err() {
            // Half a message must not be committed.
            self.give_up();
        }
        inserted
    }

    fn insert(
        &self,
        submission: &Submission,
        token: Option<&str>,
        now: u64,
    ) -> Result<Accepted, StoreError> {
        let Submission { sender, origin, body, .. } = submission;
        let size = i64::try_from(body.len()).unwrap_or(i64::MAX);
        let lane = lane_code(submission.lane);
        let mut insert = self.db.prepare_cached(
            "INSERT INTO message(id, arrived, sender, size, origin, lane, next_try, token) \
             VALUES(hex(randomblob(8)), ?1, ?2, ?3, ?4, ?5, ?1, ?6)",
        )?;
        insert.execute(params![signed(now), sender, size, origin, lane, token])?;
        drop(insert);
        let no = self.db.last_insert_rowid();
        let id = queue_id(no, now);
        let mut rename = self.db.prepare_cached("UPDATE message SET id = ?2 WHERE no = ?1")?;
        rename.execute(params![no, id])?;
        drop(rename);
        let mut add = self.db.prepare_cached(
            "INSERT INTO recipient(message, position, address) VALUES(?1, ?2, ?3)",
        )?;
        for (position, address) in (0_i64..).zip(&submission.recipients) {
            add.execute(params![no, position, address])?;
        }
        let mut store =
            self.db.prepare_cached("INSERT INTO body(message, bytes) VALUES(?1, ?2)")?;
        store.execute(params![no, body])?;
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

    /// Forgets messages that ended before a time.
    ///
    /// # Errors
    /// See [`Store::accept`].
    pub fn forget_ended(&mut self, before: u64) -> Result<usize, StoreError> {
        self.begin(false)?;
        let sql = "DELETE FROM message WHERE done > 0 AND done < ?1";
        Ok(self.db.execute(sql, [signed(before)])?)
    }

    /// Ends the running transaction: what was accepted in it is on disk when this returns. Where the
    /// disk is full, changes still get there if the ballast has room for them, without submissions.
    ///
    /// # Errors
    /// What was accepted is not on disk, and is not queued.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        let mut result = self.save();
        if result == Err(StoreError::Full) {
            // SQLite writes at the end of a transaction, so that is where a full disk shows.
            self.give_up();
            if !self.unsaved.is_empty() {
                self.space.release_ballast();
                result = self.save();
            }
        } else if self.has_accepted && result.is_ok() {
            self.space.fill_ballast();
        }
        if result.is_err() {
            self.roll_back();
        }
        let lost = std::mem::take(&mut self.lost_submissions);
        self.has_accepted = false;
        if lost { Err(StoreError::Full) } else { result }
    }

    /// Whether every change that was made is on disk.
    #[must_use]
    pub const fn is_saved(&self) -> bool {
        self.unsaved.is_empty()
    }

    /// Ends the transaction, and begins one before if changes are left from a failed one.
    fn save(&mut self) -> Result<(), StoreError> {
        if self.in_transaction && self.db.is_autocommit() {
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
        self.db.execute_batch("COMMIT")?;
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
        // SQLite may have rolled back by itself.
        let _ = self.db.execute_batch("ROLLBACK");
    }

    fn begin(&mut self, accepting: bool) -> Result<(), StoreError> {
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
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        self.in_transaction = true;
        let mut ended = false;
        for change in &self.unsaved {
            ended = change.apply(&self.db)?;
        }
        Ok(ended)
    }

    /// Makes a change that must not fail for want of space: without any, the ballast is given up and
    /// everything that is not on disk done again.
    fn change(&mut self, change: Change) -> Result<bool, StoreError> {
        self.begin(false)?;
        let result = change.apply(&self.db).map_err(StoreError::from);
        self.unsaved.push(change);
        if result != Err(StoreError::Full) {
            return result;
        }
        self.give_up();
        self.space.release_ballast();
        self.begin_again()
    }
}

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

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SchemaChanged)
    ) || matches!(error, rusqlite::Error::SqliteFailure(_, Some(text)) if text.contains("no such table"))
}

/// Renames the store's files to the first free name.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let name = |n: u32| path.with_file_name(format!("queue.db.damaged-{n}"));
    let aside = (1..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(0));
    fs::rename(path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let mut from = path.as_os_str().to_owned();
        let mut to = aside.as_os_str().to_owned();
        from.push(suffix);
        to.push(suffix);
        match fs::rename(from, to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests;

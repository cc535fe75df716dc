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

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use worker_proto::diagnostic::Fault;

use crate::wire::{Lane, Submission};

mod changes;
mod space;

use changes::Change;
use space::Space;

/// Number of a message in the store; later messages have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageNo(pub i64);

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

/// A message in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its number.
    pub no: MessageNo,
    /// Its queue id.
    pub id: String,
    /// It was not there before.
    pub fresh: bool,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The disk is full.
    Full,
    /// Anything else.
    Failed(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("the disk is full"),
            Self::Failed(text) => f.write_str(text),
        }
    }
}

/// State of one recipient (Q3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientState {
    /// To be delivered.
    Queued,
    /// A relay has it.
    Delivered,
    /// It will not be delivered.
    Failed,
}

impl RecipientState {
    const fn code(self) -> i64 {
        match self {
            Self::Queued => 0,
            Self::Delivered => 1,
            Self::Failed => 2,
        }
    }

    const fn of(code: i64) -> Self {
        match code {
            1 => Self::Delivered,
            2 => Self::Failed,
            _ => Self::Queued,
        }
    }
}

/// A message without its bytes. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its number.
    pub no: MessageNo,
    /// Its queue id.
    pub id: String,
    /// When it was taken.
    pub arrived: u64,
    /// Envelope sender.
    pub sender: String,
    /// Size in bytes.
    pub size: u64,
    /// Where it came from.
    pub origin: String,
    /// How urgent it is.
    pub lane: Lane,
    /// How often a relay has put it off.
    pub attempts: u32,
    /// When it is tried again.
    pub next_try: u64,
    /// Why it waits.
    pub why: String,
    /// It is not tried until an operator releases it.
    pub held: bool,
    /// When its last recipient ended; 0 while it is queued.
    pub done: u64,
}

/// One recipient of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Its position in the envelope.
    pub position: i64,
    /// Its address.
    pub address: String,
    /// Its state.
    pub state: RecipientState,
    /// The last reply.
    pub reply: String,
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

    fn attempt(directory: &Path, path: &Path, min_free: u64) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        // A file that SQLite makes has the umask's mode; queued mail is nobody else's business.
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        db.set_prepared_statement_cache_capacity(32);
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            db.execute_batch(&format!(
                "BEGIN;{SCHEMA};PRAGMA user_version={SCHEMA_VERSION};COMMIT"
            ))?;
        }
        // The first pages are read here: damage shows now and not in the middle of a delivery.
        db.query_row("SELECT count(*) FROM message WHERE done = 0", [], |_| Ok(()))?;
        let space = Space::new(directory, min_free);
        space.fill_ballast();
        Ok(Self {
            db,
            space,
            in_transaction: false,
            has_accepted: false,
            lost_submissions: false,
            unsaved: Vec::new(),
        })
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
        if self.space.is_short() {
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

    /// Every message that is not ended, oldest first; those of a page from a number on.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn queued(&self, after: MessageNo, most: usize) -> Result<Vec<Summary>, StoreError> {
        let sql = format!("{SUMMARY} WHERE done = 0 AND no > ?1 ORDER BY no LIMIT ?2");
        let mut query = self.db.prepare_cached(&sql)?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = query.query_map(params![after.0, most], summary)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The messages that ended, the last first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn ended(&self, most: usize) -> Result<Vec<Summary>, StoreError> {
        let sql = format!("{SUMMARY} WHERE done > 0 ORDER BY done DESC, no DESC LIMIT ?1");
        let mut query = self.db.prepare_cached(&sql)?;
        let rows = query.query_map([i64::try_from(most).unwrap_or(i64::MAX)], summary)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A message by its queue id.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn by_id(&self, id: &str) -> Result<Option<Summary>, StoreError> {
        let mut query = self.db.prepare_cached(&format!("{SUMMARY} WHERE id = ?1"))?;
        Ok(query.query_row([id], summary).optional()?)
    }

    /// A message by its number.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn by_no(&self, no: MessageNo) -> Result<Option<Summary>, StoreError> {
        let mut query = self.db.prepare_cached(&format!("{SUMMARY} WHERE no = ?1"))?;
        Ok(query.query_row([no.0], summary).optional()?)
    }

    /// The recipients of a message.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn recipients(&self, no: MessageNo) -> Result<Vec<Recipient>, StoreError> {
        let mut query = self.db.prepare_cached(
            "SELECT position, address, state, reply FROM recipient WHERE message = ?1 ORDER BY position",
        )?;
        let rows = query.query_map([no.0], |row| {
            Ok(Recipient {
                position: row.get(0)?,
                address: row.get(1)?,
                state: RecipientState::of(row.get(2)?),
                reply: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The bytes of a message; None when it has ended.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn body(&self, no: MessageNo) -> Result<Option<Vec<u8>>, StoreError> {
        let mut query = self.db.prepare_cached("SELECT bytes FROM body WHERE message = ?1")?;
        Ok(query.query_row([no.0], |row| row.get(0)).optional()?)
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

const SUMMARY: &str = "SELECT no, id, arrived, sender, size, origin, lane, attempts, next_try, why, \
                       held, done FROM message";

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    Ok(Summary {
        no: MessageNo(row.get(0)?),
        id: row.get(1)?,
        arrived: unsigned(row.get(2)?),
        sender: row.get(3)?,
        size: unsigned(row.get(4)?),
        origin: row.get(5)?,
        lane: match row.get(6)? {
            0_i64 => Lane::Urgent,
            2 => Lane::Bulk,
            _ => Lane::Normal,
        },
        attempts: row.get(7)?,
        next_try: unsigned(row.get(8)?),
        why: row.get(9)?,
        held: row.get(10)?,
        done: unsigned(row.get(11)?),
    })
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

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
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
mod tests {
    use super::*;

    fn submission() -> Submission {
        Submission {
            sender: "a@x".to_owned(),
            recipients: vec!["b@y".to_owned(), "c@y".to_owned()],
            origin: "uid 0".to_owned(),
            lane: Lane::Normal,
            token: String::new(),
            body: b"Subject: x\r\n\r\ny\r\n".to_vec(),
        }
    }

    fn open(dir: &Path) -> Store {
        let (store, damage) = Store::open(dir, 0).unwrap();
        assert_eq!(damage, None);
        store
    }

    #[test]
    fn q3_a_message_lives_until_its_last_recipient_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let Accepted { no, id, .. } = store.accept(&submission(), 100).unwrap();
        store.commit().unwrap();
        drop(store);
        let mut store = open(dir.path());
        assert_eq!(store.by_id(&id).unwrap().unwrap().no, no);
        assert_eq!(store.body(no).unwrap(), Some(submission().body));
        let mark = |n, state| vec![(n, state, "250 ok".to_owned())];
        assert!(!store.mark(no, &mark(0, RecipientState::Delivered), 101).unwrap());
        assert!(store.mark(no, &mark(1, RecipientState::Failed), 102).unwrap());
        store.commit().unwrap();
        assert_eq!(store.queued(MessageNo(0), 9).unwrap(), []);
        assert_eq!(store.body(no).unwrap(), None);
        assert_eq!(store.ended(9).unwrap()[0].done, 102);
        assert_eq!(store.recipients(no).unwrap()[1].state, RecipientState::Failed);
        assert_eq!(store.forget_ended(103).unwrap(), 1);
        store.commit().unwrap();
        assert_eq!(store.by_id(&id).unwrap(), None);
    }

    #[test]
    fn q4_what_was_not_committed_is_not_queued() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        store.accept(&submission(), 100).unwrap();
        store.roll_back();
        store.accept(&submission(), 100).unwrap();
        drop(store);
        assert_eq!(open(dir.path()).queued(MessageNo(0), 9).unwrap(), []);
    }

    #[test]
    fn q8_a_damaged_store_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("queue.db"), "this is no database, whatever it looks like")
            .unwrap();
        let (mut store, damage) = Store::open(dir.path(), 0).unwrap();
        assert!(damage.unwrap().contains("queue.db.damaged-1"));
        store.accept(&submission(), 1).unwrap();
        store.commit().unwrap();
    }

    #[test]
    fn q9_without_free_space_nothing_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path(), u64::MAX / 2).unwrap();
        assert_eq!(store.accept(&submission(), 1), Err(StoreError::Full));
    }

    #[test]
    fn q9_a_full_store_can_still_mark_what_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let no = store.accept(&submission(), 1).unwrap().no;
        store.commit().unwrap();
        let pages: i64 = store.db.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
        store.db.pragma_update(None, "max_page_count", pages).unwrap();
        let big = Submission { body: vec![b'x'; 1 << 20], ..submission() };
        assert_eq!(store.accept(&big, 2), Err(StoreError::Full));
        assert_eq!(store.commit(), Err(StoreError::Full));
        let marks: Vec<_> =
            [0, 1].map(|n| (n, RecipientState::Delivered, "250 ok".to_owned())).into();
        assert!(store.mark(no, &marks, 3).unwrap());
        store.commit().unwrap();
    }

    #[test]
    fn q9_what_goes_down_with_a_transaction_is_told_or_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let no = store.accept(&submission(), 1).unwrap().no;
        store.commit().unwrap();
        let pages: i64 = store.db.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
        store.db.pragma_update(None, "max_page_count", pages + 1).unwrap();
        let marks: Vec<_> =
            [0, 1].map(|n| (n, RecipientState::Delivered, "250 ok".to_owned())).into();
        assert!(store.mark(no, &marks, 3).unwrap());
        store.accept(&submission(), 4).unwrap();
        let big = Submission { body: vec![b'x'; 1 << 20], ..submission() };
        assert_eq!(store.accept(&big, 5), Err(StoreError::Full));
        assert_eq!(store.commit(), Err(StoreError::Full), "the small one is not queued either");
        drop(store);
        let store = open(dir.path());
        assert_eq!(store.queued(MessageNo(0), 9).unwrap(), [], "and the mark is on disk");
        assert_eq!(store.by_no(no).unwrap().unwrap().done, 3);
    }

    #[test]
    fn q4_a_submission_offered_again_is_queued_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let again = Submission { token: "t".to_owned(), ..submission() };
        let first = store.accept(&again, 100).unwrap();
        assert!(first.fresh);
        store.commit().unwrap();
        drop(store);
        let mut store = open(dir.path());
        assert_eq!(store.accept(&again, 101).unwrap(), Accepted { fresh: false, ..first });
        store.accept(&submission(), 102).unwrap();
        store.accept(&submission(), 103).unwrap();
        store.commit().unwrap();
        assert_eq!(store.queued(MessageNo(0), 9).unwrap().len(), 3, "without a token all differ");
    }

    #[test]
    fn ids_are_short_and_differ() {
        assert_eq!(queue_id(1, 0), "000000001");
        assert_ne!(queue_id(1, 5), queue_id(1, 6));
        assert_ne!(queue_id(1, 5), queue_id(2, 5));
        assert_eq!(queue_id(i64::MAX, 5).len(), 5 + 13);
    }
}

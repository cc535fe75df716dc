//! schema - the database file: its tables, how it is made, opened and checked

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::pages::PAGE_SIZE;
use super::types::StoreError;

/// The version of the tables. To be raised with every change of them.
pub(super) const VERSION: i64 = 2;
/// A version beyond this is no version but damage.
const LAST_VERSION: i64 = 100;

const TABLES: &str = "
CREATE TABLE message(
    no INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, arrived INTEGER NOT NULL,
    sender TEXT NOT NULL, size INTEGER NOT NULL, origin TEXT NOT NULL, lane INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_try INTEGER NOT NULL, why TEXT NOT NULL DEFAULT '',
    held INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0, token TEXT,
    recipients INTEGER, sum INTEGER);
CREATE UNIQUE INDEX message_token ON message(token);
CREATE INDEX message_done ON message(done);
CREATE TABLE recipient(
    message INTEGER NOT NULL REFERENCES message(no) ON DELETE CASCADE, position INTEGER NOT NULL,
    address TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0, reply TEXT NOT NULL DEFAULT '',
    sum INTEGER, PRIMARY KEY(message, position)) WITHOUT ROWID;
CREATE TABLE body(
    message INTEGER PRIMARY KEY REFERENCES message(no) ON DELETE CASCADE, bytes BLOB NOT NULL,
    sum INTEGER);
";

/// What is known of messages that are still in a damaged store: numbers of those that have ended,
/// and recipients that have.
const CARRIED: &str = "
CREATE TABLE settled(first INTEGER PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE carried(
    message INTEGER NOT NULL, position INTEGER NOT NULL, state INTEGER NOT NULL,
    reply TEXT NOT NULL, PRIMARY KEY(message, position)) WITHOUT ROWID;
";

/// From the first version: the tables of today.
const FROM_1: &str = "
ALTER TABLE message ADD COLUMN recipients INTEGER;
ALTER TABLE message ADD COLUMN sum INTEGER;
ALTER TABLE recipient ADD COLUMN sum INTEGER;
ALTER TABLE body ADD COLUMN sum INTEGER;
";

/// Pages of the WAL after which it is written back. A full disk must leave room for as much in the
/// database file, see [`super::space`].
const WAL_PAGES: u32 = 500;
/// What is checked as a whole when it is opened: with the indexes, and without them.
const SMALL: u64 = 8 << 20;
const MEDIUM: u64 = 64 << 20;
/// A file of an older version up to this size is rewritten, so that it can shrink from then on.
const REWRITTEN: u64 = 64 << 20;

/// Makes an empty store in a new file, whose messages are numbered from a number on. It appears under
/// its name when it is whole.
pub(super) fn create(path: &Path, base: i64) -> Result<(), StoreError> {
    let new = path.with_extension("db.new");
    let failed = |e: io::Error| match e.raw_os_error() {
        Some(code) if code == nix::errno::Errno::ENOSPC as i32 => StoreError::Full,
        _ => StoreError::Failed(worker_proto::sys::errno_text(&e)),
    };
    let _ = fs::remove_file(&new);
    let _ = fs::remove_file(path.with_extension("db.new-journal"));
    File::options().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
    let db = Connection::open_with_flags(&new, flags())?;
    db.pragma_update(None, "page_size", PAGE_SIZE)?;
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.execute_batch(&format!(
        "BEGIN;{TABLES}{CARRIED}INSERT INTO sqlite_sequence(name, seq) VALUES('message', {base});\
         PRAGMA user_version={VERSION};COMMIT"
    ))?;
    db.close().map_err(|(_, e)| e)?;
    fs::rename(&new, path).map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed)
}

fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NOFOLLOW
}

/// Opens a store's file, checks it as far as that is quick, and makes sure that it can be written.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let size = fs::symlink_metadata(path).map_or(0, |m| m.len());
    let db = Connection::open_with_flags(path, flags())?;
    // What is damaged is not changed by closing it.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if (VERSION + 1..=LAST_VERSION).contains(&version) {
        return Err(StoreError::Newer(version));
    }
    if !(1..=VERSION).contains(&version) {
        return Err(StoreError::Damaged(format!("its version is {version}")));
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", "ON")?;
    db.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    db.pragma_update(None, "journal_size_limit", WAL_PAGES * PAGE_SIZE)?;
    db.set_prepared_statement_cache_capacity(32);
    if size <= MEDIUM {
        let check =
            if size <= SMALL { "PRAGMA integrity_check(1)" } else { "PRAGMA quick_check(1)" };
        let found: String = db.query_row(check, [], |row| row.get(0))?;
        if found != "ok" {
            return Err(StoreError::Damaged(found.lines().collect::<Vec<_>>().join(" ")));
        }
    }
    if version == 1 {
        migrate(&db, size)?;
    }
    check_numbers(&db)?;
    // A store that cannot be written must not send anything: it could not be marked.
    match db.execute_batch(&format!("PRAGMA user_version={VERSION}")).map_err(StoreError::from) {
        Ok(()) | Err(StoreError::Full) => {}
        Err(e) => return Err(e),
    }
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(db)
}

fn migrate(db: &Connection, size: u64) -> Result<(), StoreError> {
    db.execute_batch(&format!("BEGIN;{FROM_1}{CARRIED}PRAGMA user_version={VERSION};COMMIT"))?;
    if size <= REWRITTEN {
        // Only so can it shrink. Without room for the copy it stays as it is.
        let rewritten = db.execute_batch("PRAGMA auto_vacuum=INCREMENTAL; VACUUM");
        match rewritten.map_err(StoreError::from) {
            Ok(()) | Err(StoreError::Full) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The next number comes from a row that damage could have made enormous: SQLite would then say that
/// the disk is full, for good.
fn check_numbers(db: &Connection) -> Result<(), StoreError> {
    let sql = "SELECT max(ifnull((SELECT max(seq) FROM sqlite_sequence WHERE name = 'message'), 0), \
               ifnull((SELECT max(no) FROM message), 0))";
    let last: i64 = db.query_row(sql, [], |row| row.get(0))?;
    let sequences: i64 =
        db.query_row("SELECT count(*) FROM sqlite_sequence WHERE name = 'message'", [], |row| {
            row.get(0)
        })?;
    if !(0..1 << 60).contains(&last) {
        return Err(StoreError::Damaged(format!("its last number is {last}")));
    }
    if sequences != 1 && last > 0 {
        return Err(StoreError::Damaged("its last number is missing".to_owned()));
    }
    Ok(())
}

/// Opens a store's file to look at it. Nothing is written.
pub(super) fn look(path: &Path) -> Result<Connection, StoreError> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let db = if fs::symlink_metadata(wal).is_ok_and(|wal| wal.len() > 0) {
        // A WAL is read under an exclusive lock only, which takes a descriptor for writing.
        let db = Connection::open_with_flags(path, flags())?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.pragma_update(None, "query_only", "ON")?;
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        db
    } else {
        // Without one SQLite would make it.
        let name = path.display().to_string();
        let name = name.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let flags = flags | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)?
    };
    db.busy_timeout(Duration::from_secs(5))?;
    db.set_prepared_statement_cache_capacity(32);
    db.query_row("SELECT count(*) FROM message WHERE done = 0", [], |_| Ok(()))?;
    Ok(db)
}

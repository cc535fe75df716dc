//! types - what the store speaks of

use rusqlite::ErrorCode;

use crate::wire::Lane;

/// Number of a message in the store; later messages have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageNo(pub i64);

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
    /// What is on the disk is not what was stored.
    Damaged(String),
    /// It has a version of the tables that a later program has made.
    Newer(i64),
    /// The store was opened again before this was on disk.
    Reopened,
    /// Anything else: the store may be perfect.
    Failed(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error;
        let text = error.to_string();
        let is_damage = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => return Self::Full,
            Some(
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch,
            ) => true,
            Some(ErrorCode::Unknown) => text.contains("no such ") || text.contains("has no column"),
            Some(_) => false,
            None => matches!(
                error,
                Error::FromSqlConversionFailure(..)
                    | Error::IntegralValueOutOfRange(..)
                    | Error::InvalidColumnType(..)
                    | Error::InvalidColumnIndex(_)
                    | Error::Utf8Error(..)
            ),
        };
        if is_damage { Self::Damaged(text) } else { Self::Failed(text) }
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("the disk is full"),
            Self::Damaged(text) => write!(f, "damaged: {text}"),
            Self::Newer(version) => write!(f, "version {version} is of a later program"),
            Self::Reopened => f.write_str("the queue database was opened again; try again"),
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
    pub(super) const fn code(self) -> i64 {
        match self {
            Self::Queued => 0,
            Self::Delivered => 1,
            Self::Failed => 2,
        }
    }

    pub(super) const fn of(code: i64) -> Self {
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

/// Numbers in SQLite have a sign.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

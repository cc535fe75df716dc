//! changes - what happens to a message in the store after it was taken
//!
//! A change is kept until it is on disk: a full disk takes its transaction away, and then it is made
//! again.

use rusqlite::{Connection, params};

use super::types::signed;
use super::{MessageNo, RecipientState};

/// A change of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Recipients have ended, with the reply.
    Mark { no: MessageNo, marks: Vec<(i64, RecipientState, String)>, now: u64 },
    /// It is tried again later.
    Defer { no: MessageNo, attempts: u32, next_try: u64, why: String, held: bool },
    /// It is removed.
    Delete { no: MessageNo },
}

impl Change {
    /// Makes the change in the running transaction; true when the message has ended by it.
    pub(super) fn apply(&self, db: &Connection) -> rusqlite::Result<bool> {
        match self {
            Self::Mark { no, marks, now } => {
                let mut mark = db.prepare_cached(
                    "UPDATE recipient SET state = ?3, reply = ?4 \
                     WHERE message = ?1 AND position = ?2",
                )?;
                for (position, state, reply) in marks {
                    mark.execute(params![no.0, position, state.code(), reply])?;
                }
                let mut left = db.prepare_cached(
                    "SELECT count(*) FROM recipient WHERE message = ?1 AND state = 0",
                )?;
                let left: i64 = left.query_row([no.0], |row| row.get(0))?;
                if left > 0 {
                    return Ok(false);
                }
                let mut end =
                    db.prepare_cached("UPDATE message SET done = ?2, why = '' WHERE no = ?1")?;
                end.execute(params![no.0, signed(*now)])?;
                db.prepare_cached("DELETE FROM body WHERE message = ?1")?.execute([no.0])?;
                Ok(true)
            }
            Self::Defer { no, attempts, next_try, why, held } => {
                let mut update = db.prepare_cached(
                    "UPDATE message SET attempts = ?2, next_try = ?3, why = ?4, held = ?5 \
                     WHERE no = ?1",
                )?;
                update.execute(params![no.0, attempts, signed(*next_try), why, held])?;
                Ok(false)
            }
            Self::Delete { no } => {
                db.execute("DELETE FROM message WHERE no = ?1", [no.0])?;
                Ok(true)
            }
        }
    }
}

//! changes - what happens to a message in the store after it was taken
//!
//! A change is kept until it is on disk: a full disk takes its transaction away, and then it is made
//! again.

use rusqlite::{Connection, OptionalExtension, params};

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
                    // Whoever has ended has a reply; see salvage.
                    let reply = if reply.is_empty() { "no text" } else { reply.as_str() };
                    mark.execute(params![no.0, position, state.code(), reply])?;
                }
                let mut left = db.prepare_cached(
                    "SELECT count(*), sum(state = 0), sum(state = 2) FROM recipient \
                     WHERE message = ?1",
                )?;
                let count = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
                let (all, left, failed): (i64, Option<i64>, Option<i64>) =
                    left.query_row([no.0], count)?;
                if all == 0 {
                    carry(db, *no, marks)?;
                    return Ok(false);
                }
                if left != Some(0) {
                    return Ok(false);
                }
                let mut end =
                    db.prepare_cached("UPDATE message SET done = ?2, why = '' WHERE no = ?1")?;
                end.execute(params![no.0, signed(*now)])?;
                // What has failed for somebody can be sent again as long as it is listed.
                if failed == Some(0) {
                    db.prepare_cached("DELETE FROM body WHERE message = ?1")?.execute([no.0])?;
                }
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
                if db.execute("DELETE FROM message WHERE no = ?1", [no.0])? == 0 {
                    settle(db, no.0, no.0)?;
                }
                Ok(true)
            }
        }
    }
}

/// Keeps marks of a message that is not in the store: it is still in one that was put aside.
pub(super) fn carry(
    db: &Connection,
    no: MessageNo,
    marks: &[(i64, RecipientState, String)],
) -> rusqlite::Result<()> {
    let sql =
        "INSERT OR REPLACE INTO carried(message, position, state, reply) VALUES(?1, ?2, ?3, ?4)";
    let mut insert = db.prepare_cached(sql)?;
    for (position, state, reply) in marks {
        insert.execute(params![no.0, position, state.code(), reply])?;
    }
    Ok(())
}

/// Notes that messages have ended that may still be in a store that was put aside.
pub(super) fn settle(db: &Connection, first: i64, last: i64) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO settled(first, last) VALUES(?1, ?2)";
    db.prepare_cached(sql)?.execute([first, last]).map(drop)
}

/// Whether a message of a store that was put aside is known to have ended.
pub(super) fn is_settled(db: &Connection, no: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT last >= ?1 FROM settled WHERE first <= ?1 ORDER BY first DESC LIMIT 1";
    Ok(db.prepare_cached(sql)?.query_row([no], |row| row.get(0)).optional()?.unwrap_or(false))
}

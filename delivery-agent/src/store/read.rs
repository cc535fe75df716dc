//! read - questions to the store

use rusqlite::{OptionalExtension, Row, params};

use super::types::unsigned;
use super::{MessageNo, Recipient, RecipientState, Store, StoreError, Summary};
use crate::wire::Lane;

impl Store {
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

//! read - questions to the store

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::sum::{body_sum, message_sum, recipient_sum};
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
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.noted(|db| {
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map(params![after.0, most], summary)?;
            rows.collect()
        })
    }

    /// The messages that ended, the last first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn ended(&self, most: usize) -> Result<Vec<Summary>, StoreError> {
        let sql = format!("{SUMMARY} WHERE done > 0 ORDER BY done DESC, no DESC LIMIT ?1");
        self.noted(|db| {
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map([i64::try_from(most).unwrap_or(i64::MAX)], summary)?;
            rows.collect()
        })
    }

    /// The messages that ended and were not delivered to a recipient, the last first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn failed(&self) -> Result<Vec<Summary>, StoreError> {
        let sql = format!(
            "{SUMMARY} WHERE done > 0 AND EXISTS(SELECT 1 FROM recipient \
             WHERE recipient.message = message.no AND recipient.state = ?1) \
             ORDER BY done DESC, no DESC"
        );
        self.noted(|db| {
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map([RecipientState::Failed.code()], summary)?;
            rows.collect()
        })
    }

    /// A message by its queue id.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn by_id(&self, id: &str) -> Result<Option<Summary>, StoreError> {
        let sql = format!("{SUMMARY} WHERE id = ?1");
        self.noted(|db| db.prepare_cached(&sql)?.query_row([id], summary).optional())
    }

    /// A message by its number.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn by_no(&self, no: MessageNo) -> Result<Option<Summary>, StoreError> {
        let sql = format!("{SUMMARY} WHERE no = ?1");
        self.noted(|db| db.prepare_cached(&sql)?.query_row([no.0], summary).optional())
    }

    /// The recipients of a message.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn recipients(&self, no: MessageNo) -> Result<Vec<Recipient>, StoreError> {
        let sql = "SELECT position, address, state, reply, sum FROM recipient WHERE message = ?1 \
                   ORDER BY position";
        self.noted(|db| {
            let mut query = db.prepare_cached(sql)?;
            let rows = query.query_map([no.0], |row| {
                let (position, address): (i64, String) = (row.get(0)?, row.get(1)?);
                let state = RecipientState::of(row.get(2)?);
                let found = Recipient { position, address, state, reply: row.get(3)? };
                let right = recipient_sum(no.0, position, &found.address);
                checked(found, row.get(4)?, right)
            })?;
            rows.collect()
        })
    }

    /// The bytes of a message; None when it was delivered to everybody.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn body(&self, no: MessageNo) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT bytes, sum FROM body WHERE message = ?1";
        self.noted(|db| {
            let bytes = |row: &Row<'_>| {
                let bytes: Vec<u8> = row.get(0)?;
                let right = body_sum(no.0, &bytes);
                checked(bytes, row.get(1)?, right)
            };
            db.prepare_cached(sql)?.query_row([no.0], bytes).optional()
        })
    }

    /// Messages after a number whose bytes are there. Every queued one is among them, whatever the
    /// indexes say.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn with_body(&self, after: MessageNo, most: usize) -> Result<Vec<MessageNo>, StoreError> {
        let sql = "SELECT message FROM body WHERE message > ?1 ORDER BY message LIMIT ?2";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.noted(|db| {
            let mut query = db.prepare_cached(sql)?;
            let rows = query.query_map([after.0, most], |row| row.get(0).map(MessageNo))?;
            rows.collect()
        })
    }

    fn noted<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        read(self.db()?).map_err(|e| self.note(e.into()))
    }
}

const SUMMARY: &str = "SELECT no, id, arrived, sender, size, origin, lane, attempts, next_try, why, \
                       held, done, recipients, sum FROM message";

/// A row, if it is as it was stored; one of an older version has no checksum.
fn checked<T>(row: T, sum: Option<i64>, right: i64) -> rusqlite::Result<T> {
    if sum.is_none_or(|sum| sum == right) {
        return Ok(row);
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some("a row does not match its checksum".to_owned())))
}

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    let (recipients, sum): (Option<i64>, Option<i64>) = (row.get(12)?, row.get(13)?);
    let found = Summary {
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
    };
    let (size, lane) = (row.get(4)?, row.get(6)?);
    let Summary { no, id, sender, origin, .. } = &found;
    let recipients = recipients.unwrap_or(0);
    let right = message_sum(no.0, id, sender, size, origin, lane, recipients);
    checked(found, sum, right)
}

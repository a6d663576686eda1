//! What operators did, written down with what they did: one batch has both or neither.

use cuemq_storage_api::{Engine, QueueId, QueueOffset, Timestamp, WriteBatch};

use crate::broker::Broker;
use crate::domain::audit::AuditAction;
use crate::error::{Error, Result};
use crate::limits::MAX_AUDIT_ROWS;
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::audit::{self, AuditRow};

/// One thing that an operator did. See [`Broker::audit_log`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct AuditRecord {
    /// When, by the broker's clock.
    pub at: Timestamp,
    /// Tells it from others of the same time; later ones have higher numbers.
    pub number: u64,
    /// What.
    pub action: AuditAction,
    /// To which group, if to one.
    pub group: Option<String>,
    /// To which topic, if to one.
    pub topic: Option<String>,
    /// The queues of that topic whose offsets were moved.
    pub queues: Vec<AuditedMove>,
    /// What the operator said about it.
    pub note: String,
}

/// How far a queue's offset was moved by an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct AuditedMove {
    /// The queue.
    pub queue: QueueId,
    /// The group's next message before.
    pub from: QueueOffset,
    /// The group's next message after.
    pub to: QueueOffset,
}

/// Adds a row to the batch that does what it tells of, and takes the oldest rows out that are too many.
///
/// # Errors
/// A failed read; the batch is as it was then.
pub(crate) fn audit_row(shared: &Shared, batch: &mut WriteBatch, row: &AuditRow) -> Result<()> {
    let place = AuditPlace { at: batch.stored_at(), number: shared.take_number() };
    add_row(&**shared.storage.engine(), batch, row, place, MAX_AUDIT_ROWS)
}

/// Where the row of an operation stands that is made of several writes: each brings it up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AuditPlace {
    at: Timestamp,
    number: u64,
}

impl AuditPlace {
    /// The place of an operation that begins now.
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { at: shared.clock.now(), number: shared.take_number() }
    }

    /// As [`audit_row`], at this place.
    ///
    /// # Errors
    /// A failed read; the batch is as it was then.
    pub(crate) fn put(self, shared: &Shared, batch: &mut WriteBatch, row: &AuditRow) -> Result<()> {
        add_row(&**shared.storage.engine(), batch, row, self, MAX_AUDIT_ROWS)
    }
}

/// Rows are few and operators slow: a look at all keys is cheaper than a count that has to be kept true.
fn add_row(engine: &dyn Engine, batch: &mut WriteBatch, row: &AuditRow, place: AuditPlace, most: usize) -> Result<()> {
    let (mut keys, place) = (Vec::new(), audit::key(place.at, place.number));
    // More than `most` are there only if two were added at once.
    scan_rows::<Error>(engine, &audit::TABLE, &[], None, usize::MAX, |key, _| {
        // Its own row is replaced.
        if *key != place {
            keys.push(key.to_vec());
        }
        Ok(())
    })?;
    let too_many = (keys.len() + 1).saturating_sub(most);
    for key in keys.into_iter().take(too_many) {
        batch.delete(&audit::TABLE, key);
    }
    batch.put(&audit::TABLE, place, row.encode());
    Ok(())
}

impl Broker {
    /// What operators did at or after `from`, oldest first, at most `limit` of it. The newest
    /// [`MAX_AUDIT_ROWS`](crate::limits::MAX_AUDIT_ROWS) are kept. For the next page ask from the last one's time on
    /// and leave out the numbers that are known.
    ///
    /// # Errors
    /// A failed read.
    pub fn audit_log(&self, from: Timestamp, limit: usize) -> Result<Vec<AuditRecord>> {
        let engine = self.shared().storage.engine();
        let mut records = Vec::new();
        scan_rows::<Error>(&**engine, &audit::TABLE, &audit::key(from, 0), None, limit, |key, row| {
            records.push(record(key, row)?);
            Ok(())
        })?;
        Ok(records)
    }
}

fn record(key: &[u8], row: &[u8]) -> Result<AuditRecord> {
    let ((at, number), row) = (audit::decode_key(key)?, AuditRow::decode(row)?);
    let moved = |(queue, from, to)| AuditedMove { queue, from, to };
    Ok(AuditRecord {
        at,
        number,
        action: row.action,
        group: row.group.map(|group| group.to_string()),
        topic: row.topic.map(|topic| topic.to_string()),
        queues: row.queues.into_iter().map(moved).collect(),
        note: row.note,
    })
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::MemoryEngine;

    use super::*;

    #[test]
    fn the_oldest_rows_go_with_the_write_that_adds_one() {
        let engine = MemoryEngine::new();
        let row =
            AuditRow { action: AuditAction::Pause, group: None, topic: None, queues: Vec::new(), note: "".into() };
        for n in 0..10 {
            let mut batch = WriteBatch::new(Timestamp::from_millis(i64::try_from(n / 3).unwrap()));
            let place = AuditPlace { at: batch.stored_at(), number: n };
            add_row(&engine, &mut batch, &row, place, 4).unwrap();
            engine.apply(batch).unwrap();
            // Brought up to date it is the same row.
            let mut batch = WriteBatch::new(Timestamp::from_millis(99));
            add_row(&engine, &mut batch, &row, place, 4).unwrap();
            engine.apply(batch).unwrap();
            let rows = engine.scan(&audit::TABLE, &[], None, 100).unwrap();
            let numbers: Vec<u64> = rows.iter().map(|(key, _)| audit::decode_key(key).unwrap().1).collect();
            assert_eq!(numbers, ((n + 1).saturating_sub(4)..=n).collect::<Vec<_>>());
        }
    }
}

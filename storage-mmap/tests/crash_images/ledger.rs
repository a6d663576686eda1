//! What was applied, batch by batch, and what a store must hold after any number of batches.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use cuemq_storage_api::{Applied, QueueKey, QueueOffset, StoredRecord, Table, WriteBatch, WriteOperation};

/// The row that every batch sets, to a number that no other batch of a test has: it tells how many batches are there.
pub(crate) const NEWEST: Table = Table::named("newest");
/// The table that workloads write to.
pub(crate) const ROWS: Table = Table::named("rows");
/// The key of the one row in [`NEWEST`].
pub(crate) const NEWEST_KEY: &[u8] = b"batch";

/// One batch that the engine took.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    pub(crate) number: u64,
    batch: WriteBatch,
    applied: Applied,
}

/// All batches of one store, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    batches: Vec<Landed>,
}

/// One queue as it must be.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueueTruth {
    /// Every record that was ever appended and not lost, by offset.
    pub(crate) records: Vec<StoredRecord>,
    /// The least offset that trims leave.
    pub(crate) min: u64,
}

/// A store as it must be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) queues: BTreeMap<QueueKey, QueueTruth>,
    pub(crate) tables: BTreeMap<Table, BTreeMap<Bytes, Bytes>>,
}

impl Ledger {
    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }

    pub(crate) fn push(&mut self, number: u64, batch: WriteBatch, applied: Applied) {
        self.batches.push(Landed { number, batch, applied });
    }

    /// Adds the batch that another ledger has at this place: what a write of unknown outcome would have become.
    pub(crate) fn push_from(&mut self, other: &Self) {
        self.batches.push(other.batches[self.batches.len()].clone());
    }

    /// How many batches end at or below a position of the log.
    pub(crate) fn ended_by(&self, position: u64) -> usize {
        self.batches.iter().take_while(|landed| landed.applied.mark.0 <= position).count()
    }

    /// Forgets the batches that a crash lost.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.batches.truncate(len);
    }

    /// How many batches there are up to the one with a number; `None` if this store never had it, or lost it before.
    pub(crate) fn up_to(&self, number: u64) -> Option<usize> {
        self.batches.iter().position(|landed| landed.number == number).map(|at| at + 1)
    }

    /// The truth after the first `count` batches.
    pub(crate) fn truth(&self, count: usize) -> Truth {
        let mut truth = Truth::default();
        self.batches[..count].iter().for_each(|landed| truth.apply(landed));
        truth
    }
}

impl Truth {
    fn apply(&mut self, landed: &Landed) {
        let mut positions = landed.applied.positions.iter();
        for operation in landed.batch.operations() {
            match operation {
                WriteOperation::Append { queue, records } => {
                    let truth = self.queues.entry(queue.clone()).or_default();
                    for record in records {
                        truth.records.push(StoredRecord {
                            offset: QueueOffset::new(truth.records.len() as u64),
                            position: *positions.next().expect("a position for each record"),
                            stored_at: landed.applied.stored_at,
                            record: record.clone(),
                        });
                    }
                }
                WriteOperation::Put { table, key, value } => {
                    self.tables.entry(table.clone()).or_default().insert(key.clone(), value.clone());
                }
                WriteOperation::PutPlaced { table, key, prefix, append, record } => {
                    let offset = landed.applied.appends[*append].first.plus(*record as u64);
                    let value = [&prefix[..], &offset.get().to_be_bytes()].concat();
                    self.tables.entry(table.clone()).or_default().insert(key.clone(), value.into());
                }
                WriteOperation::Delete { table, key } => {
                    self.tables.entry(table.clone()).or_default().remove(key);
                }
                WriteOperation::Trim { queue, before } => {
                    if let Some(truth) = self.queues.get_mut(queue) {
                        truth.min = truth.min.max(before.get().min(truth.records.len() as u64));
                    }
                }
            }
        }
    }
}

impl QueueTruth {
    /// The bounds without any expiry.
    pub(crate) fn bounds(&self) -> Range<u64> {
        self.min..self.records.len() as u64
    }
}

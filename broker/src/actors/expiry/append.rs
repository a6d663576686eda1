//! Appends to queues. Whoever appends messages of producers does it here, so that none that ends is without its row.

use cuemq_storage_api::{QueueKey, Record, Timestamp, WriteBatch};

use crate::domain::delay::TimerKey;
use crate::domain::expiry::expires_at;
use crate::shared::Shared;
use crate::tables::expiry as table;

/// The ends of the messages of one batch, to be told to the scheduler once the batch is stored.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    timers: Vec<TimerKey>,
}

impl Endings {
    /// Adds records to the end of a queue as one append operation, and for each that ends the row that says so. Costs
    /// nothing but a look at their first bytes where none does.
    pub(crate) fn append_all(
        &mut self,
        shared: &Shared,
        batch: &mut WriteBatch,
        queue: &QueueKey,
        records: Vec<Record>,
    ) {
        let ends = records.iter().enumerate();
        let ends = ends.filter_map(|(index, record)| Some((index, expires_at(&record.attributes)?)));
        let ends: Vec<(usize, Timestamp)> = ends.collect();
        let append = batch.append_operations();
        batch.append_all(queue, records);
        if ends.is_empty() {
            return;
        }
        let prefix = table::prefix(queue);
        for (index, end) in ends {
            let timer = TimerKey::new(end, shared.take_number());
            batch.put_placed(&table::TABLE, table::key(timer), prefix.clone(), append, index);
            self.timers.push(timer);
        }
    }

    /// Adds one record to the end of a queue, and if it ends the row that says so.
    pub(crate) fn append(&mut self, shared: &Shared, batch: &mut WriteBatch, queue: &QueueKey, record: Record) {
        match expires_at(&record.attributes) {
            None => {
                batch.append(queue, record);
            }
            Some(_) => self.append_all(shared, batch, queue, vec![record]),
        }
    }

    /// Whether nothing ends.
    pub(crate) fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    /// Tells the scheduler, now that the batch is stored.
    pub(crate) fn stored(self, shared: &Shared) {
        if !self.timers.is_empty() {
            shared.expiry_handle().stored(self.timers);
        }
    }
}

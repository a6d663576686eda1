//! A batch on its way to the store: encodes every change and knows what to publish once it is committed.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{
    Appended, Applied, ErrorKind, LogPosition, Mark, QueueKey, QueueOffset, Record, Result, StorageError, Timestamp,
    WriteBatch, WriteOperation,
};

use crate::keys::consume_queue::{self, QueueRow};
use crate::keys::state::State;
use crate::keys::{key_index, log, queue, table};
use crate::kv::{KvBatch, Space};
use crate::registry::{MAX_QUEUES, Registry};

/// Rows beside those of the batch: the state and, now and then, a queue.
pub(super) const SPARE_ROWS: usize = 4;

/// How much room a batch needs.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Size {
    pub(super) records: usize,
    log_bytes: usize,
    queue_operations: usize,
    pub(super) table_puts: usize,
    table_operations: usize,
}

impl Size {
    pub(super) fn of(batch: &WriteBatch) -> Self {
        let mut size = Self::default();
        for operation in batch.operations() {
            match operation {
                WriteOperation::Append { records, .. } => {
                    size.queue_operations += 1;
                    size.records += records.len();
                    size.log_bytes += records.iter().map(log::row_bytes).sum::<usize>();
                }
                // The second is resolved before a batch is encoded, and needs the same room.
                WriteOperation::Put { .. } | WriteOperation::PutPlaced { .. } => {
                    size.table_puts += 1;
                    size.table_operations += 1;
                }
                WriteOperation::Delete { .. } => size.table_operations += 1,
                WriteOperation::Trim { .. } => size.queue_operations += 1,
            }
        }
        size
    }

    /// How many rows of the store change, keys not counted.
    pub(super) fn rows(&self) -> usize {
        self.records * 2 + self.table_operations + SPARE_ROWS
    }

    /// Whether the batch changes both tables and queues, so that readers may meet it half published.
    pub(super) fn is_mixed(&self) -> bool {
        self.queue_operations > 0 && self.table_operations > 0
    }
}

/// A queue that the batch changes.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) key: QueueKey,
    pub(super) min: u64,
    pub(super) end: u64,
    row_changed: bool,
}

/// A batch ready to be committed.
#[derive(Debug)]
pub(super) struct Drafted<B> {
    pub(super) changes: B,
    pub(super) state: State,
    /// In the order of their numbers, new queues last.
    pub(super) touched: BTreeMap<u32, Touched>,
    pub(super) applied: Applied,
}

/// Encodes the operations of one batch in order. One buffer per space: see "Memory" in [`crate::fjall_kv`].
pub(super) struct Draft<'a, B> {
    registry: &'a Registry,
    changes: B,
    state: State,
    touched: BTreeMap<u32, Touched>,
    new: BTreeMap<QueueKey, u32>,
    log: Vec<u8>,
    rows: Vec<u8>,
    index: BytesMut,
    meta: BytesMut,
    appends: Vec<Appended>,
    positions: Vec<LogPosition>,
}

impl<'a, B: KvBatch> Draft<'a, B> {
    /// Encodes a checked batch that is not empty.
    pub(super) fn encode(
        registry: &'a Registry,
        before: State,
        changes: B,
        batch: &WriteBatch,
        size: Size,
    ) -> Result<Drafted<B>> {
        if size.records as u64 > MAX_POSITION - before.next_position {
            return Err(full(format!("{} records have been written: no position is left", before.next_position)));
        }
        let mut state = before;
        state.batches += 1;
        state.stored_at = before.stored_at.max(batch.stored_at());
        let mut draft = Self {
            registry,
            changes,
            state,
            touched: BTreeMap::new(),
            new: BTreeMap::new(),
            log: Vec::with_capacity(size.log_bytes),
            rows: Vec::with_capacity(size.records * consume_queue::ROW_BYTES),
            index: BytesMut::new(),
            meta: BytesMut::new(),
            appends: Vec::with_capacity(size.queue_operations),
            positions: Vec::with_capacity(size.records),
        };
        for operation in batch.operations() {
            draft.add(operation)?;
        }
        draft.put_records(batch.operations());
        Ok(draft.finish())
    }

    fn add(&mut self, operation: &WriteOperation) -> Result<()> {
        match operation {
            WriteOperation::Append { queue, records } => self.append(queue, records)?,
            WriteOperation::Put { table, key, value } => {
                let (key, value) = table::encode(&mut self.meta, table, key, value);
                self.changes.put(Space::Meta, key, value);
            }
            WriteOperation::PutPlaced { .. } => unreachable!("places are resolved before a batch is encoded"),
            WriteOperation::Delete { table, key } => {
                let key = table::encode_key(&mut self.meta, table, key);
                self.changes.delete(Space::Meta, key);
            }
            WriteOperation::Trim { queue, before } => self.trim(queue, *before),
        }
        Ok(())
    }

    fn append(&mut self, queue: &QueueKey, records: &[Record]) -> Result<()> {
        let number = self.number(queue)?;
        let first = self.touch(number, queue).end;
        for (offset, record) in (first..).zip(records) {
            self.append_one(queue, number, offset, record);
        }
        let touched = self.touch(number, queue);
        touched.end = first + records.len() as u64;
        let count = u32::try_from(records.len()).expect("a checked batch has at most 65536 operations");
        self.appends.push(Appended { first: QueueOffset::new(first), count });
        Ok(())
    }

    fn append_one(&mut self, queue: &QueueKey, number: u32, offset: u64, record: &Record) {
        let (position, stored_at) = (self.state.next_position, self.state.stored_at);
        log::encode(&mut self.log, position, number, offset, stored_at, record);
        let has_keys = self.add_keys(queue, position, stored_at, record);
        let row = QueueRow {
            position,
            payload_bytes: u32::try_from(record.payload_bytes()).expect("a checked record has at most 64 MiB"),
            tag_hash: record.attributes.tag_hash(),
            stored_at,
            has_keys,
        };
        self.rows.extend_from_slice(&row.encode(number, offset));
        self.positions.push(LogPosition::new(position));
        self.state.next_position += 1;
        self.state.kept_bytes += record.payload_bytes() as u64;
    }

    /// Hands the encoded rows of all records to the store, as slices of one buffer per space: taking each slice while
    /// the buffer was still being filled would cost as much as filling it.
    fn put_records(&mut self, operations: &[WriteOperation]) {
        let (mut log, mut rows) =
            (Bytes::from(std::mem::take(&mut self.log)), Bytes::from(std::mem::take(&mut self.rows)));
        for operation in operations {
            let WriteOperation::Append { records, .. } = operation else { continue };
            for record in records {
                let key = log.split_to(log::KEY_BYTES);
                let value = log.split_to(log::row_bytes(record) - log::KEY_BYTES);
                self.changes.put(Space::Log, key, value);
                let key = rows.split_to(consume_queue::KEY_BYTES);
                let value = rows.split_to(consume_queue::ROW_BYTES - consume_queue::KEY_BYTES);
                self.changes.put(Space::ConsumeQueue, key, value);
            }
        }
    }

    fn add_keys(&mut self, queue: &QueueKey, position: u64, stored_at: Timestamp, record: &Record) -> bool {
        let mut any = false;
        for key in record.attributes.keys() {
            any = true;
            let hash = key_index::hash(&queue.topic, key);
            let (key, value) = key_index::encode(&mut self.index, hash, position, stored_at);
            self.changes.put(Space::KeyIndex, key, value);
        }
        any
    }

    fn trim(&mut self, queue: &QueueKey, before: QueueOffset) {
        let number = self.registry.number(queue).or_else(|| self.new.get(queue).copied());
        let Some(number) = number else { return };
        let touched = self.touch(number, queue);
        let min = before.get().clamp(touched.min, touched.end);
        touched.row_changed |= min != touched.min;
        touched.min = min;
    }

    /// The number of a queue, which comes into being if there is none.
    fn number(&mut self, queue: &QueueKey) -> Result<u32> {
        if let Some(number) = self.registry.number(queue).or_else(|| self.new.get(queue).copied()) {
            return Ok(number);
        }
        let number = self.registry.len() + self.new.len();
        let Some(number) = u32::try_from(number).ok().filter(|_| number < MAX_QUEUES) else {
            return Err(full(format!("there are {number} queues, and no more are kept")));
        };
        self.new.insert(queue.clone(), number);
        self.touched.insert(number, Touched { key: queue.clone(), min: 0, end: 0, row_changed: true });
        Ok(number)
    }

    fn touch(&mut self, number: u32, key: &QueueKey) -> &mut Touched {
        let registry = self.registry;
        self.touched.entry(number).or_insert_with(|| {
            let (min, end) = registry.queue(number).map_or((0, 0), |queue| (queue.min, queue.end));
            Touched { key: key.clone(), min, end, row_changed: false }
        })
    }

    fn finish(mut self) -> Drafted<B> {
        for (number, queue) in self.touched.iter().filter(|(_, queue)| queue.row_changed) {
            let (key, value) = queue::encode(&mut self.meta, *number, &queue.key, queue.min);
            self.changes.put(Space::Meta, key, value);
        }
        let (key, value) = self.state.encode();
        self.changes.put(Space::Meta, key, value);
        let applied = Applied {
            mark: Mark(self.state.batches),
            stored_at: self.state.stored_at,
            appends: self.appends,
            positions: self.positions,
        };
        Drafted { changes: self.changes, state: self.state, touched: self.touched, applied }
    }
}

fn full(context: String) -> StorageError {
    StorageError::not_stored(ErrorKind::Full, "apply", context)
}

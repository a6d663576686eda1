//! The one write verb's argument: what lands whole or not at all.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::{InvalidInput, StorageError};
use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_TABLE_KEY_BYTES, MAX_TABLE_VALUE_BYTES};
use crate::record::Record;
use crate::types::{LogPosition, Mark, QueueKey, QueueOffset, Table, Timestamp};

/// Bytes of a queue offset at the end of a row's value.
const PLACE_BYTES: usize = size_of::<u64>();

/// One change within a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteOperation {
    /// Adds records to the end of a queue, in order.
    Append {
        /// The queue; it comes into being with its first record.
        queue: QueueKey,
        /// One or more records.
        records: Vec<Record>,
    },
    /// Sets a row of an ordered table.
    Put {
        /// The table; it comes into being with its first row.
        table: Table,
        /// 1 byte to 4 KiB.
        key: Bytes,
        /// May be empty.
        value: Bytes,
    },
    /// Sets a row whose value ends with the queue offset of a record that the same batch appends. Engines only meet it
    /// as a [`Put`](Self::Put): see [`WriteBatch::resolve_places`].
    PutPlaced {
        /// The table; it comes into being with its first row.
        table: Table,
        /// 1 byte to 4 KiB.
        key: Bytes,
        /// What the value begins with; the offset follows, 8 bytes, big-endian.
        prefix: Bytes,
        /// Which append operation of the batch, counted from 0. It stands before this change.
        append: usize,
        /// Which of its records, counted from 0.
        record: usize,
    },
    /// Removes a row; a row that is not there is no error.
    Delete {
        /// The table.
        table: Table,
        /// 1 byte to 4 KiB.
        key: Bytes,
    },
    /// Forgets the records of a queue below an offset. Never moves backwards, never beyond the queue's end.
    Trim {
        /// The queue.
        queue: QueueKey,
        /// The first offset to keep.
        before: QueueOffset,
    },
}

/// Changes that land whole or not at all, in the order in which they were added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteBatch {
    stored_at: Timestamp,
    operations: Vec<WriteOperation>,
    count: usize,
    bytes: usize,
    expects_sync: bool,
    /// How many append operations there are.
    appends: usize,
    /// How many rows wait for the offset of a record.
    placed: usize,
    /// The first record that breaks a hard cap, found while records are counted, when they are at hand anyway.
    problem: Option<InvalidInput>,
}

impl WriteBatch {
    /// An empty batch, stored at `now` by the broker's clock. The engine never lets stored times fall: a batch
    /// with an earlier time than its predecessor gets the predecessor's.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            stored_at: now,
            operations: Vec::new(),
            count: 0,
            bytes: 0,
            expects_sync: false,
            appends: 0,
            placed: 0,
            problem: None,
        }
    }

    /// Adds a record to the end of a queue. Records for one queue that follow each other share one operation.
    pub fn append(&mut self, queue: &QueueKey, record: Record) -> &mut Self {
        self.count_records(std::slice::from_ref(&record));
        if let Some(WriteOperation::Append { queue: last, records }) = self.operations.last_mut()
            && last == queue
        {
            records.push(record);
        } else {
            self.appends += 1;
            self.operations.push(WriteOperation::Append { queue: queue.clone(), records: vec![record] });
        }
        self
    }

    /// Adds records to the end of a queue as one operation; none is no operation.
    pub fn append_all(&mut self, queue: &QueueKey, records: Vec<Record>) -> &mut Self {
        if !records.is_empty() {
            self.count_records(&records);
            self.appends += 1;
            self.operations.push(WriteOperation::Append { queue: queue.clone(), records });
        }
        self
    }

    fn count_records(&mut self, records: &[Record]) {
        self.count += records.len();
        for record in records {
            self.bytes += record.payload_bytes();
            if let Err(problem) = record.check() {
                self.problem.get_or_insert(problem);
            }
        }
    }

    /// Sets a row of an ordered table.
    pub fn put(&mut self, table: &Table, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        let (key, value) = (key.into(), value.into());
        self.count += 1;
        self.bytes += key.len() + value.len();
        self.operations.push(WriteOperation::Put { table: table.clone(), key, value });
        self
    }

    /// Sets a row whose value is `prefix` and behind it the queue offset, 8 bytes big-endian, that record number
    /// `record` of append operation number `append` gets: a row that names a message, in one atomic batch with it.
    /// Both count from 0 within this batch, so the operation that was appended last is
    /// [`append_operations`](Self::append_operations)` - 1`; [`extend`](Self::extend) keeps what is meant.
    ///
    /// The record has to be in the batch already; [`check`](Self::check) refuses a place that is not.
    pub fn put_placed(
        &mut self,
        table: &Table,
        key: impl Into<Bytes>,
        prefix: impl Into<Bytes>,
        append: usize,
        record: usize,
    ) -> &mut Self {
        let (key, prefix) = (key.into(), prefix.into());
        self.count += 1;
        self.placed += 1;
        self.bytes += key.len() + prefix.len() + PLACE_BYTES;
        self.operations.push(WriteOperation::PutPlaced { table: table.clone(), key, prefix, append, record });
        self
    }

    /// Removes a row of an ordered table.
    pub fn delete(&mut self, table: &Table, key: impl Into<Bytes>) -> &mut Self {
        let key = key.into();
        self.count += 1;
        self.bytes += key.len();
        self.operations.push(WriteOperation::Delete { table: table.clone(), key });
        self
    }

    /// Forgets the records of a queue below `before`.
    pub fn trim(&mut self, queue: &QueueKey, before: QueueOffset) -> &mut Self {
        self.count += 1;
        self.operations.push(WriteOperation::Trim { queue: queue.clone(), before });
        self
    }

    /// Adds all of another batch behind this one; the later of the two times counts.
    pub fn extend(&mut self, other: Self) -> &mut Self {
        self.stored_at = self.stored_at.max(other.stored_at);
        self.count += other.count;
        self.bytes += other.bytes;
        let (before, moved) = (self.appends, self.operations.len());
        self.operations.extend(other.operations);
        if other.placed > 0 {
            for operation in &mut self.operations[moved..] {
                if let WriteOperation::PutPlaced { append, .. } = operation {
                    *append = append.saturating_add(before);
                }
            }
        }
        self.appends += other.appends;
        self.placed += other.placed;
        self.expects_sync |= other.expects_sync;
        self.problem = self.problem.take().or(other.problem);
        self
    }

    /// Says that somebody waits for the sync after this batch: advice for speed, which changes no outcome. An engine
    /// may choose a way of writing that makes the next sync short over one that makes the write short.
    pub fn expect_sync(&mut self) -> &mut Self {
        self.expects_sync = true;
        self
    }

    /// Whether a sync is expected right after this batch; see [`expect_sync`](Self::expect_sync).
    #[must_use]
    pub fn expects_sync(&self) -> bool {
        self.expects_sync
    }

    /// When the batch is stored, by the broker's clock.
    #[must_use]
    pub fn stored_at(&self) -> Timestamp {
        self.stored_at
    }

    /// The changes in order.
    #[must_use]
    pub fn operations(&self) -> &[WriteOperation] {
        &self.operations
    }

    /// The changes in order, taken out.
    #[must_use]
    pub fn into_operations(self) -> Vec<WriteOperation> {
        self.operations
    }

    /// How many append operations there are: the number of the next one. Records that follow each other for one queue
    /// share one, see [`append`](Self::append).
    #[must_use]
    pub fn append_operations(&self) -> usize {
        self.appends
    }

    /// Makes ordinary [`Put`](WriteOperation::Put)s of the rows that [`put_placed`](Self::put_placed) added. Engines
    /// call it on a checked batch as the first thing under the lock of their writer; a batch without such rows costs
    /// one comparison.
    ///
    /// `end_of_queue` says where a queue ends before this batch, 0 for one that never had a record, and is asked once
    /// for each queue at most. What makes the result right:
    ///
    /// * Nobody else appends between the question and the batch's own appends: the writer's lock is held.
    /// * Appends of one queue within the batch follow each other; a trim changes no end.
    /// * The rows keep their place among the changes, so that a later word on the same row still wins.
    /// * What is written, replayed or remembered is the resolved batch: a replay asks nobody.
    ///
    /// # Errors
    /// What `end_of_queue` meets; the batch is as it was.
    pub fn resolve_places(
        &mut self,
        end_of_queue: impl FnMut(&QueueKey) -> Result<QueueOffset, StorageError>,
    ) -> Result<(), StorageError> {
        if self.placed == 0 {
            return Ok(());
        }
        let firsts = self.first_offsets(end_of_queue)?;
        for operation in &mut self.operations {
            let WriteOperation::PutPlaced { table, key, prefix, append, record } = operation else { continue };
            let offset = firsts[*append].plus(*record as u64);
            let mut value = BytesMut::with_capacity(prefix.len() + PLACE_BYTES);
            value.put_slice(prefix);
            value.put_u64(offset.get());
            let (table, key) = (table.clone(), std::mem::take(key));
            *operation = WriteOperation::Put { table, key, value: value.freeze() };
        }
        self.placed = 0;
        Ok(())
    }

    /// The offset that each append operation's first record gets.
    fn first_offsets(
        &self,
        mut end_of_queue: impl FnMut(&QueueKey) -> Result<QueueOffset, StorageError>,
    ) -> Result<Vec<QueueOffset>, StorageError> {
        let mut ends: BTreeMap<&QueueKey, QueueOffset> = BTreeMap::new();
        let mut firsts = Vec::with_capacity(self.appends);
        for operation in &self.operations {
            let WriteOperation::Append { queue, records } = operation else { continue };
            let first = match ends.get(queue) {
                Some(end) => *end,
                None => end_of_queue(queue)?,
            };
            firsts.push(first);
            ends.insert(queue, first.plus(records.len() as u64));
        }
        Ok(firsts)
    }

    /// How many changes there are; each appended record counts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of bodies, attributes, table keys and values.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.bytes
    }

    /// Checks every hard cap; engines call it before they touch anything.
    ///
    /// # Errors
    /// Names the value and the cap.
    pub fn check(&self) -> Result<(), InvalidInput> {
        if self.count > MAX_BATCH_OPERATIONS || self.bytes > MAX_BATCH_BYTES {
            return Err(InvalidInput::new(format!(
                "batch has {} operations and {} bytes, more than {MAX_BATCH_OPERATIONS} or {MAX_BATCH_BYTES}: split it",
                self.count, self.bytes
            )));
        }
        self.problem.clone().map_or(Ok(()), Err)?;
        self.operations.iter().try_for_each(check_operation)?;
        if self.placed == 0 { Ok(()) } else { self.check_places() }
    }

    /// Whether every row that names a record names one before it.
    fn check_places(&self) -> Result<(), InvalidInput> {
        let mut records_of = Vec::with_capacity(self.appends);
        for operation in &self.operations {
            match operation {
                WriteOperation::Append { records, .. } => records_of.push(records.len()),
                WriteOperation::PutPlaced { table, append, record, .. }
                    if records_of.get(*append).is_none_or(|records| record >= records) =>
                {
                    return Err(InvalidInput::new(format!(
                        "a row of table {table} names record {record} of append operation {append}, and none of the {} \
                         before it has one: append first",
                        records_of.len()
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_operation(operation: &WriteOperation) -> Result<(), InvalidInput> {
    match operation {
        WriteOperation::Put { table, key, value } => check_row(table, key, value.len()),
        WriteOperation::PutPlaced { table, key, prefix, .. } => check_row(table, key, prefix.len() + PLACE_BYTES),
        WriteOperation::Delete { table, key } => check_key(table, key),
        // Records were checked when they were added.
        WriteOperation::Append { .. } | WriteOperation::Trim { .. } => Ok(()),
    }
}

fn check_row(table: &Table, key: &[u8], value_bytes: usize) -> Result<(), InvalidInput> {
    if value_bytes > MAX_TABLE_VALUE_BYTES {
        return Err(InvalidInput::new(format!(
            "value in table {table} has {value_bytes} bytes, more than {MAX_TABLE_VALUE_BYTES}"
        )));
    }
    check_key(table, key)
}

fn check_key(table: &Table, key: &[u8]) -> Result<(), InvalidInput> {
    if key.is_empty() || key.len() > MAX_TABLE_KEY_BYTES {
        return Err(InvalidInput::new(format!(
            "key in table {table} has {} bytes: it needs 1 to {MAX_TABLE_KEY_BYTES}",
            key.len()
        )));
    }
    Ok(())
}

/// Where one append operation of a batch landed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// The offset of its first record; the others follow without a gap.
    pub first: QueueOffset,
    /// How many records it has.
    pub count: u32,
}

/// What a batch became.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The batch is durable once the engine's durable mark is at least this.
    pub mark: Mark,
    /// When it was stored: the batch's own time, or its predecessor's if that is later.
    pub stored_at: Timestamp,
    /// One entry per append operation, in the batch's order.
    pub appends: Vec<Appended>,
    /// One position per appended record, over all appends in order; rising.
    pub positions: Vec<LogPosition>,
}

//! The one write verb's argument: what lands whole or not at all.

use bytes::Bytes;

use crate::error::InvalidInput;
use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_TABLE_KEY_BYTES, MAX_TABLE_VALUE_BYTES};
use crate::record::Record;
use crate::types::{LogPosition, Mark, QueueKey, QueueOffset, Table, Timestamp};

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
    /// The first record that breaks a hard cap, found while records are counted, when they are at hand anyway.
    problem: Option<InvalidInput>,
}

impl WriteBatch {
    /// An empty batch, stored at `now` by the broker's clock. The engine never lets stored times fall: a batch
    /// with an earlier time than its predecessor gets the predecessor's.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { stored_at: now, operations: Vec::new(), count: 0, bytes: 0, expects_sync: false, problem: None }
    }

    /// Adds a record to the end of a queue. Records for one queue that follow each other share one operation.
    pub fn append(&mut self, queue: &QueueKey, record: Record) -> &mut Self {
        self.count_records(std::slice::from_ref(&record));
        if let Some(WriteOperation::Append { queue: last, records }) = self.operations.last_mut()
            && last == queue
        {
            records.push(record);
        } else {
            self.operations.push(WriteOperation::Append { queue: queue.clone(), records: vec![record] });
        }
        self
    }

    /// Adds records to the end of a queue as one operation; none is no operation.
    pub fn append_all(&mut self, queue: &QueueKey, records: Vec<Record>) -> &mut Self {
        if !records.is_empty() {
            self.count_records(&records);
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
        self.operations.extend(other.operations);
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
        self.operations.iter().try_for_each(check_operation)
    }
}

fn check_operation(operation: &WriteOperation) -> Result<(), InvalidInput> {
    match operation {
        WriteOperation::Put { table, key, value } => {
            if value.len() > MAX_TABLE_VALUE_BYTES {
                return Err(InvalidInput::new(format!(
                    "value in table {table} has {} bytes, more than {MAX_TABLE_VALUE_BYTES}",
                    value.len()
                )));
            }
            check_key(table, key)
        }
        WriteOperation::Delete { table, key } => check_key(table, key),
        // Records were checked when they were added.
        WriteOperation::Append { .. } | WriteOperation::Trim { .. } => Ok(()),
    }
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

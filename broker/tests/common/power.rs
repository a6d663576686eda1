//! An engine in memory that claims to be durable: its store can be crashed, which loses what was not synced. It can
//! also be told to panic, or to forget the rows of a table: a planted bug that tests have to find.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cuemq::storage_api::batch::{Applied, WriteBatch, WriteOperation};
use cuemq::storage_api::engine::{Capabilities, Fetch, FetchRequest, KeyQuery, Maintenance, Row};
use cuemq::storage_api::fault::Operation;
use cuemq::storage_api::{LocatedRecord, LogPosition, Mark, Result, Table};
use cuemq::{Engine, MemoryEngine, QueueKey, QueueOffset, Timestamp};

/// See the module.
#[derive(Debug)]
pub(crate) struct PowerEngine(pub(crate) MemoryEngine, pub(crate) PanicAt, pub(crate) Forgets);

/// The operation that panics, if any.
pub(crate) type PanicAt = Arc<Mutex<Option<Operation>>>;

/// The table whose rows are not stored, if any.
pub(crate) type Forgets = Option<&'static str>;

/// The same batch without what it puts into a table.
fn without(forgotten: &str, batch: WriteBatch) -> WriteBatch {
    let mut rest = WriteBatch::new(batch.stored_at());
    for operation in batch.into_operations() {
        match operation {
            WriteOperation::Append { queue, records } => drop(rest.append_all(&queue, records)),
            WriteOperation::Put { table, .. } if table.as_str() == forgotten => {}
            WriteOperation::Put { table, key, value } => drop(rest.put(&table, key, value)),
            WriteOperation::Delete { table, key } => drop(rest.delete(&table, key)),
            WriteOperation::Trim { queue, before } => drop(rest.trim(&queue, before)),
            WriteOperation::PutPlaced { .. } => panic!("the planted bug is for runs that name no places"),
        }
    }
    rest
}

impl PowerEngine {
    fn may_panic(&self, operation: Operation) {
        let at = *self.1.lock().unwrap_or_else(PoisonError::into_inner);
        assert_ne!(at, Some(operation), "the engine panics, on purpose");
    }
}

impl Engine for PowerEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "power", durable: true, ..self.0.capabilities() }
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        self.may_panic(Operation::Apply);
        self.0.apply(match self.2 {
            Some(table) => without(table, batch),
            None => batch,
        })
    }

    fn sync(&self) -> Result<Mark> {
        self.may_panic(Operation::Sync);
        self.0.sync()
    }

    fn durable(&self) -> Mark {
        self.0.durable()
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.0.fetch(request)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        self.0.bounds(queue)
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        self.0.queues()
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.0.offset_at(queue, at)
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.0.record_at(position)
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.0.find(query)
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get(table, key)
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        self.0.scan(table, from, to, limit)
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.0.maintain(now)
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}

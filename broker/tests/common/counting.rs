//! An engine that counts the records it hands out to fetches: what a filter leaves out is never touched.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cuemq::storage_api::batch::{Applied, WriteBatch};
use cuemq::storage_api::engine::{Capabilities, Fetch, FetchRequest, KeyQuery, Maintenance, Row};
use cuemq::storage_api::{LocatedRecord, LogPosition, Mark, Result, Table};
use cuemq::{Engine, QueueKey, QueueOffset, Timestamp};

/// See the module.
#[derive(Debug)]
pub(crate) struct CountingEngine<E> {
    pub(crate) inner: E,
    pub(crate) fetched: Arc<AtomicUsize>,
}

impl<E: Engine> Engine for CountingEngine<E> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        self.inner.apply(batch)
    }

    fn sync(&self) -> Result<Mark> {
        self.inner.sync()
    }

    fn durable(&self) -> Mark {
        self.inner.durable()
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        let fetch = self.inner.fetch(request)?;
        self.fetched.fetch_add(fetch.records.len(), Ordering::SeqCst);
        Ok(fetch)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        self.inner.bounds(queue)
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        self.inner.queues()
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.inner.offset_at(queue, at)
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.inner.record_at(position)
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.inner.find(query)
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(table, key)
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        self.inner.scan(table, from, to, limit)
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.inner.maintain(now)
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

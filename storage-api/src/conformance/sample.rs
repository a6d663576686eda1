//! The queues, records and times that the cases are made of.

use bytes::Bytes;

use crate::batch::{Applied, WriteBatch};
use crate::engine::{Engine, Fetch, FetchLimit, FetchRequest};
use crate::error::{ErrorKind, Outcome, StorageError};
use crate::record::{Attributes, AttributesBuilder, Record, StoredRecord};
use crate::types::{QueueId, QueueKey, QueueOffset, Table, Timestamp, TopicName};

use super::Fixture;

/// A table that several cases write to.
pub(super) const ROWS: Table = Table::named("conformance.rows");
/// Another one.
pub(super) const OTHER_ROWS: Table = Table::named("conformance.rows2");

const EPOCH_MILLIS: i64 = 1_700_000_000_000;

/// A fresh fixture with an open engine.
pub(super) fn fresh<F: Fixture>() -> (F, F::Engine) {
    let mut fixture = F::fresh();
    let engine = fixture.open().expect("a fresh fixture opens");
    (fixture, engine)
}

/// A topic by name.
pub(super) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// A queue of a topic.
pub(super) fn queue_of(name: &str, id: u32) -> QueueKey {
    QueueKey::new(topic(name), QueueId::new(id).unwrap())
}

/// A queue of the topic `orders`.
pub(super) fn orders(id: u32) -> QueueKey {
    queue_of("orders", id)
}

/// Milliseconds after the time at which all cases begin.
pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(EPOCH_MILLIS + millis)
}

pub(super) fn offset(offset: u64) -> QueueOffset {
    QueueOffset::new(offset)
}

/// A record without attributes.
pub(super) fn record(body: impl Into<Bytes>) -> Record {
    Record::new(body, at(-1))
}

pub(super) fn attributes(fill: impl FnOnce(&mut AttributesBuilder)) -> Attributes {
    let mut builder = AttributesBuilder::default();
    fill(&mut builder);
    builder.build().unwrap()
}

pub(super) fn tagged(body: impl Into<Bytes>, tag: &str) -> Record {
    record(body).with_attributes(attributes(|a| {
        a.tag(tag);
    }))
}

pub(super) fn keyed(body: impl Into<Bytes>, key: &str) -> Record {
    record(body).with_attributes(attributes(|a| {
        a.key(key);
    }))
}

/// A batch that adds these records to one queue.
pub(super) fn batch(millis: i64, queue: &QueueKey, records: Vec<Record>) -> WriteBatch {
    let mut batch = WriteBatch::new(at(millis));
    batch.append_all(queue, records);
    batch
}

/// Adds `count` records whose bodies are their numbers from `first` on, in one batch.
pub(super) fn append_numbers(engine: &impl Engine, queue: &QueueKey, first: u64, count: u64) -> Applied {
    let records = (first..first + count).map(|n| record(n.to_be_bytes().to_vec())).collect();
    engine.apply(batch(0, queue, records)).unwrap()
}

/// The numbers in the bodies that [`append_numbers`] wrote.
pub(super) fn numbers(records: &[StoredRecord]) -> Vec<u64> {
    records.iter().map(|stored| u64::from_be_bytes(stored.record.body[..].try_into().unwrap())).collect()
}

pub(super) fn offsets(records: &[StoredRecord]) -> Vec<u64> {
    records.iter().map(|stored| stored.offset.get()).collect()
}

/// Everything that matches from an offset on, within a count.
pub(super) fn fetch(engine: &impl Engine, queue: &QueueKey, from: u64, max_messages: usize) -> Fetch {
    engine.fetch(FetchRequest::all(queue, offset(from), FetchLimit::messages(max_messages))).unwrap()
}

/// Everything in a queue, page by page.
pub(super) fn read_all(engine: &impl Engine, queue: &QueueKey) -> Vec<StoredRecord> {
    let (mut next, mut records) = (engine.bounds(queue).unwrap().start, Vec::new());
    loop {
        let page = engine.fetch(FetchRequest::all(queue, next, FetchLimit::messages(1_000))).unwrap();
        if page.records.is_empty() {
            assert_eq!(next, page.bounds.end, "a fetch returns something before the end");
            return records;
        }
        assert!(page.next > next, "a fetch that returned something goes on behind {next}, not at {}", page.next);
        records.extend(page.records);
        next = page.next;
    }
}

/// Asserts that a write was refused and surely did not happen.
pub(super) fn assert_refused<T: std::fmt::Debug>(result: Result<T, StorageError>, kind: ErrorKind) {
    let error = result.expect_err("the operation must be refused");
    assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotStored), "{error}");
}

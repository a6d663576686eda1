//! The engine's own tests, beside the conformance suite that every engine runs.

mod conformance;
mod damage;
mod failure;
mod processes;
mod reopen;
mod retention;
mod stalls;

use std::path::Path;

use cuemq_storage_api::{
    Engine, FetchLimit, FetchRequest, Maintenance, QueueId, QueueKey, QueueOffset, Record, StoredRecord, Timestamp,
    TopicName, WriteBatch,
};

use crate::{LsmEngine, LsmSettings};

/// Settings that suit a test: little memory, and any disk has room enough.
pub(crate) fn small() -> LsmSettings {
    LsmSettings {
        cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
        journal_bytes: 64 << 20,
        worker_threads: 1,
        reserve_bytes: 0,
        disk_watermark_percent: 100,
        ..LsmSettings::default()
    }
}

fn open(directory: &Path) -> LsmEngine {
    LsmEngine::open(directory, &small()).unwrap()
}

fn queue(topic: &str, id: u32) -> QueueKey {
    QueueKey::new(TopicName::new(topic).unwrap(), QueueId::new(id).unwrap())
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// One batch of records with bodies `from..to` as text, stored at `from`.
fn batch(queue: &QueueKey, from: u64, to: u64) -> WriteBatch {
    let mut batch = WriteBatch::new(at(i64::try_from(from).unwrap()));
    for body in from..to {
        batch.append(queue, Record::new(body.to_string(), at(0)));
    }
    batch
}

fn all(engine: &impl Engine, queue: &QueueKey) -> Vec<StoredRecord> {
    let from = engine.bounds(queue).unwrap().start;
    engine.fetch(FetchRequest::all(queue, from, FetchLimit::messages(usize::MAX))).unwrap().records
}

fn bodies(engine: &impl Engine, queue: &QueueKey) -> Vec<String> {
    all(engine, queue).iter().map(|stored| String::from_utf8(stored.record.body.to_vec()).unwrap()).collect()
}

fn offset(offset: u64) -> QueueOffset {
    QueueOffset::new(offset)
}

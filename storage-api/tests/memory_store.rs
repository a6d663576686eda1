//! The in-memory store as a directory: locked while open, and cut off at a batch that the test chooses.

use cuemq_storage_api::memory::MAX_UNSYNCED_BATCHES;
use cuemq_storage_api::{
    Engine, ErrorKind, Mark, MemoryEngine, MemoryStore, QueueId, QueueKey, QueueOffset, Record, Retention, Timestamp,
    TopicName, WriteBatch,
};

const NOW: Timestamp = Timestamp::from_millis(0);

fn queue() -> QueueKey {
    QueueKey::new(TopicName::new("orders").expect("a legal name"), QueueId::FIRST)
}

fn append(engine: &MemoryEngine, batches: u64) {
    for _ in 0..batches {
        let mut batch = WriteBatch::new(NOW);
        batch.append(&queue(), Record::new(vec![0; 10], NOW));
        engine.apply(batch).expect("an open engine takes a batch");
    }
}

fn bounds(engine: &MemoryEngine) -> (u64, u64) {
    let bounds = engine.bounds(&queue()).expect("an open engine answers");
    (bounds.start.get(), bounds.end.get())
}

#[test]
fn a_crash_keeps_as_many_batches_as_it_is_told() {
    for (keep, expected) in [(0, 3), (1, 4), (4, 7), (5, 8), (99, 8)] {
        let store = MemoryStore::new();
        let engine = MemoryEngine::open(&store).unwrap();
        append(&engine, 3);
        engine.sync().unwrap();
        append(&engine, 5);
        store.crash(keep);
        let found = MemoryEngine::open(&store).unwrap();
        assert_eq!(bounds(&found), (0, expected));
        assert_eq!(found.durable(), Mark(expected));
    }
}

#[test]
fn an_engine_that_a_crash_hit_is_closed_and_frees_nothing_later() {
    let store = MemoryStore::new();
    let engine = MemoryEngine::open(&store).unwrap();
    store.crash(0);
    assert_eq!(engine.sync().unwrap_err().kind(), ErrorKind::Closed);
    let second = MemoryEngine::open(&store).unwrap();
    engine.close().unwrap();
    drop(engine);
    append(&second, 1);
    assert_eq!(MemoryEngine::open(&store).unwrap_err().kind(), ErrorKind::Locked);
}

#[test]
fn a_dropped_engine_frees_the_store_and_loses_nothing() {
    let store = MemoryStore::new();
    append(&MemoryEngine::open(&store).unwrap(), 3);
    let engine = MemoryEngine::open(&store).unwrap();
    assert_eq!((bounds(&engine), engine.durable()), ((0, 3), Mark(0)));
}

#[test]
fn the_oldest_unsynced_batches_survive_when_there_are_too_many() {
    let store = MemoryStore::new();
    let engine = MemoryEngine::open(&store).unwrap();
    append(&engine, MAX_UNSYNCED_BATCHES as u64 + 7);
    store.crash(0);
    assert_eq!(bounds(&MemoryEngine::open(&store).unwrap()), (0, 7));
}

#[test]
fn retention_is_exact_here() {
    let retention = Retention { max_bytes: Some(35), ..Retention::default() };
    let engine = MemoryEngine::new().with_retention(retention);
    append(&engine, 8);
    let done = engine.maintain(NOW).unwrap();
    assert_eq!((done.expired_records, done.freed_bytes, bounds(&engine)), (5, 50, (5, 8)));
    let later = NOW.plus(Retention::default().age);
    assert_eq!(engine.maintain(later).unwrap().expired_records, 0);
    let later = later.plus(std::time::Duration::from_millis(1));
    assert_eq!(engine.maintain(later).unwrap().expired_records, 3);
    assert_eq!(bounds(&engine), (8, 8));
    assert_eq!(engine.offset_at(&queue(), NOW).unwrap(), QueueOffset::new(8));
}

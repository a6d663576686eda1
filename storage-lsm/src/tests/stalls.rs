//! A store that stalls within a commit holds up nobody who reads.

use std::thread;

use cuemq_storage_api::{Engine, Retention, Table};

use super::conformance::open_memory;
use super::*;
use crate::memory_kv::MemoryDisk;

const TABLE: Table = Table::named("t");

/// What every kind of read shows of a queue and a table.
fn seen(engine: &impl Engine, queue: &QueueKey) -> (Vec<String>, u64, usize, String, usize) {
    let end = engine.bounds(queue).unwrap().end.get();
    let row = engine.get(&TABLE, b"row").unwrap().unwrap();
    let rows = engine.scan(&TABLE, b"", None, 9).unwrap();
    assert_eq!(rows[0].1, row);
    let queues = engine.queues().unwrap().len();
    (bodies(engine, queue), end, rows.len(), String::from_utf8(row.to_vec()).unwrap(), queues)
}

#[test]
fn a_stalled_commit_holds_up_no_reader_and_shows_nothing_of_itself() {
    let disk = MemoryDisk::default();
    let engine = open_memory(&disk, Retention::default()).unwrap();
    let queue = queue("t", 0);
    let mixed = |number: u64, value: &'static str, row: &'static str| {
        let mut batch = batch(&queue, number, number + 1);
        batch.put(&TABLE, "row", value).put(&TABLE, row, "");
        batch
    };
    engine.apply(mixed(0, "before", "row1")).unwrap();
    let before = seen(&engine, &queue);
    assert_eq!(before, (vec!["0".to_owned()], 1, 2, "before".to_owned(), 1));
    thread::scope(|scope| {
        let stall = disk.stall();
        let writer = scope.spawn(|| engine.apply(mixed(1, "after", "row2")).unwrap());
        stall.wait();
        // The rows are in the store. A reader that waited for their writer would never come back.
        assert_eq!(seen(&engine, &queue), before);
        assert_eq!(engine.sync().unwrap(), engine.durable());
        assert_eq!(seen(&engine, &queue), before);
        drop(stall);
        writer.join().unwrap();
    });
    let after = (vec!["0".to_owned(), "1".to_owned()], 2, 3, "after".to_owned(), 1);
    assert_eq!(seen(&engine, &queue), after);
    engine.close().unwrap();
    let reopened = open_memory(&disk, Retention::default()).unwrap();
    assert_eq!(seen(&reopened, &queue), after);
}

#[test]
fn a_failed_commit_leaves_readers_where_they_were() {
    let disk = MemoryDisk::default();
    let engine = open_memory(&disk, Retention::default()).unwrap();
    let queue = queue("t", 0);
    let mut first = batch(&queue, 0, 1);
    first.put(&TABLE, "row", "before");
    engine.apply(first.clone()).unwrap();
    let before = seen(&engine, &queue);
    disk.fail(true);
    engine.apply(first).unwrap_err();
    assert_eq!(seen(&engine, &queue), before);
    assert!(engine.close().is_err(), "it is poisoned");
}

//! What this engine promises beyond the contract: its files, and what it does when they are damaged.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
#[path = "../layers/handing_on.rs"]
mod handing_on;

mod damage;
mod full_disk;
mod kills;
mod opening;
mod panics;
mod queues;
mod rebuild;
mod segments;

use std::collections::BTreeMap;
use std::sync::Arc;

use cuemq_storage_api::{
    Applied, AttributesBuilder, Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, StorageError,
    Timestamp, TopicName, WriteBatch,
};
use cuemq_storage_mmap::files::memory::EverythingWritten;
use cuemq_storage_mmap::files::{FileLayer, MemoryFiles, OpenMode};
use cuemq_storage_mmap::{MmapEngine, MmapSettings, RetentionSettings};

const SEGMENT_BYTES: u64 = 16 << 10;

fn settings() -> MmapSettings {
    MmapSettings {
        segment_bytes: SEGMENT_BYTES,
        allocate_step_bytes: 4 << 10,
        consume_queue_entries: 10,
        index_slots: 16,
        index_entries: 64,
        retention: RetentionSettings { disk_watermark_percent: 100, ..RetentionSettings::default() },
        disk_full_percent: 100,
        ..MmapSettings::default()
    }
}

fn try_open(files: &MemoryFiles) -> Result<MmapEngine, StorageError> {
    MmapEngine::open_with(Arc::new(files.clone()), settings())
}

fn open(files: &MemoryFiles) -> MmapEngine {
    try_open(files).unwrap()
}

/// The files as they are when the process dies at this moment and the machine lives on.
fn killed(files: &MemoryFiles) -> MemoryFiles {
    files.crash(&mut EverythingWritten)
}

fn queue(topic: &str, id: u32) -> QueueKey {
    QueueKey::new(TopicName::new(topic).unwrap(), QueueId::new(id).unwrap())
}

fn orders() -> QueueKey {
    queue("orders", 0)
}

fn record(number: u64) -> Record {
    let mut attributes = AttributesBuilder::default();
    attributes.tag(if number.is_multiple_of(2) { "even" } else { "odd" }).key(&format!("k{}", number % 7));
    let born_at = Timestamp::from_millis(i64::try_from(number).unwrap());
    Record::new(format!("body {number} {}", "x".repeat(200)), born_at).with_attributes(attributes.build().unwrap())
}

/// One batch of one record, numbered by its offset.
fn append(engine: &MmapEngine, queue: &QueueKey, number: u64) -> Result<Applied, StorageError> {
    let mut batch = WriteBatch::new(Timestamp::from_millis(i64::try_from(number).unwrap() * 1000));
    batch.append(queue, record(number));
    engine.apply(batch)
}

fn append_many(engine: &MmapEngine, queue: &QueueKey, numbers: std::ops::Range<u64>) {
    for number in numbers {
        append(engine, queue, number).unwrap();
    }
}

fn fetch_all(engine: &MmapEngine, queue: &QueueKey) -> Result<Vec<u64>, StorageError> {
    let from = engine.bounds(queue)?.start;
    let fetch = engine.fetch(FetchRequest::all(queue, from, FetchLimit::messages(10_000)))?;
    for stored in &fetch.records {
        assert_eq!(stored.record, record(stored.offset.get()));
    }
    Ok(fetch.records.iter().map(|stored| stored.offset.get()).collect())
}

/// All records are there, from 0 up to `end`, and all they were.
fn assert_whole(engine: &MmapEngine, queue: &QueueKey, end: u64) {
    assert_eq!(engine.bounds(queue).unwrap(), QueueOffset::ZERO..QueueOffset::new(end));
    assert_eq!(fetch_all(engine, queue).unwrap(), (0..end).collect::<Vec<_>>());
}

fn content(files: &MemoryFiles, path: &str) -> Vec<u8> {
    let file = files.open(path, OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn overwrite(files: &MemoryFiles, path: &str, offset: u64, bytes: &[u8]) {
    files.open(path, OpenMode::Existing).unwrap().write_at(offset, &[bytes]).unwrap();
}

fn flip(files: &MemoryFiles, path: &str, offset: u64) {
    let at = usize::try_from(offset).unwrap();
    overwrite(files, path, offset, &[content(files, path)[at] ^ 1]);
}

/// Every file below a directory with its content, in the order of their paths.
fn tree(files: &MemoryFiles, directory: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in files.list(directory).unwrap() {
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        let below = tree_or_file(files, &path);
        found.extend(below);
    }
    found
}

fn tree_or_file(files: &MemoryFiles, path: &str) -> BTreeMap<String, Vec<u8>> {
    match files.open(path, OpenMode::Existing) {
        Ok(_) => BTreeMap::from([(path.to_owned(), content(files, path))]),
        Err(_) => tree(files, path),
    }
}

fn remove_tree(files: &MemoryFiles, directory: &str) {
    for path in tree(files, directory).keys() {
        files.remove(path).unwrap();
    }
}

fn first_segment() -> String {
    format!("commitlog/{:020}", 0)
}

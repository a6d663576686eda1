//! Compares an opened store with what must be there. Every function answers with the first violation.

use std::collections::BTreeMap;

use cuemq_storage_api::{
    Engine, FetchLimit, FetchRequest, KeyQuery, QueueKey, QueueOffset, StorageError, StoredRecord, Timestamp, TopicName,
};
use cuemq_storage_mmap::files::memory::{Choices, SeededChoices};
use cuemq_storage_mmap::files::{FileLayer, MemoryFiles, OpenMode};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

use crate::ledger::{Ledger, NEWEST, NEWEST_KEY, QueueTruth, ROWS, Truth};
use crate::workload::{KEYS, TOPICS};

/// What a crash may have left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) least: usize,
    pub(crate) most: usize,
    pub(crate) expired: &'a BTreeMap<QueueKey, u64>,
}

/// Checks everything that can be asked of a store. Returns how many batches it holds.
pub(crate) fn content(
    engine: &MmapEngine,
    expected: Expected<'_>,
    choices: &mut SeededChoices,
) -> Result<usize, String> {
    let count = stored(engine, expected)?;
    let truth = expected.ledger.truth(count);
    let mut mins = BTreeMap::new();
    for (key, bounds) in engine.queues().map_err(failed)? {
        time(engine, &key, &truth.queues[&key], bounds.start.get(), choices)?;
        mins.insert(key, bounds.start.get());
    }
    keys_found(engine, &truth, &mins, choices)?;
    Ok(count)
}

/// Checks that the store holds a whole number of batches within the bounds, all rows and records of each, and nothing
/// else. Returns how many.
pub(crate) fn stored(engine: &MmapEngine, expected: Expected<'_>) -> Result<usize, String> {
    let count = batches(engine, expected.ledger)?;
    if !(expected.least..=expected.most).contains(&count) {
        return Err(format!("{count} batches are there, but {} were durable, {} begun", expected.least, expected.most));
    }
    let truth = expected.ledger.truth(count);
    tables(engine, &truth)?;
    let listed = engine.queues().map_err(failed)?;
    let keys: Vec<&QueueKey> = listed.iter().map(|(key, _)| key).collect();
    if keys != truth.queues.keys().collect::<Vec<_>>() {
        return Err(format!("the queues are {keys:?}"));
    }
    for (key, bounds) in &listed {
        let queue = &truth.queues[key];
        let (min, end) = (bounds.start.get(), bounds.end.get());
        let highest = expected.expired.get(key).copied().unwrap_or(0).max(queue.min);
        if end != queue.bounds().end || min < queue.min || min > highest.min(end) {
            return Err(format!("{key} has {min}..{end}, but {:?} up to {highest} expired", queue.bounds()));
        }
        records(engine, key, queue, min)?;
    }
    Ok(count)
}

/// The error of an engine, its kind first.
pub(crate) fn failed(error: StorageError) -> String {
    failed_ref(&error)
}

/// The same for an error that is only looked at.
pub(crate) fn failed_ref(error: &StorageError) -> String {
    format!("{:?}: {error}", error.kind())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn batches(engine: &MmapEngine, ledger: &Ledger) -> Result<usize, String> {
    let Some(value) = engine.get(&NEWEST, NEWEST_KEY).map_err(failed)? else { return Ok(0) };
    let number = value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or("a cut row")?;
    ledger.up_to(number).ok_or_else(|| format!("batch {number} is there, which was lost before or never written"))
}

fn tables(engine: &MmapEngine, truth: &Truth) -> Result<(), String> {
    for table in [NEWEST, ROWS] {
        let found = engine.scan(&table, &[], None, usize::MAX).map_err(failed)?;
        let expected = truth.tables.get(&table);
        let same = match expected {
            None => found.is_empty(),
            Some(rows) => found.iter().map(|(key, value)| (key, value)).eq(rows.iter()),
        };
        if !same {
            return Err(format!("table {} has {} rows: {found:?}, expected {expected:?}", table, found.len()));
        }
    }
    Ok(())
}

fn records(engine: &MmapEngine, key: &QueueKey, queue: &QueueTruth, min: u64) -> Result<(), String> {
    let mut next = min;
    while next < queue.bounds().end {
        let request = FetchRequest::all(key, QueueOffset::new(next), FetchLimit::messages(100));
        let fetch = engine.fetch(request).map_err(failed)?;
        if fetch.records.is_empty() || fetch.next.get() != next + fetch.records.len() as u64 {
            return Err(format!("{key} stops at {next}"));
        }
        for found in fetch.records {
            let expected = &queue.records[usize::try_from(next).map_err(text)?];
            if found != *expected {
                return Err(format!("{key} at {next} has {found:?}, expected {expected:?}"));
            }
            next += 1;
        }
    }
    Ok(())
}

/// Asks for one time and for one position.
fn time(
    engine: &MmapEngine,
    key: &QueueKey,
    queue: &QueueTruth,
    min: u64,
    choices: &mut SeededChoices,
) -> Result<(), String> {
    if queue.records.is_empty() {
        return Ok(());
    }
    let asked = &queue.records[choices.pick(queue.records.len())];
    let found = engine.offset_at(key, asked.stored_at).map_err(failed)?.get();
    let later = |record: &&StoredRecord| record.offset.get() >= min && record.stored_at >= asked.stored_at;
    let expected = queue.records.iter().find(later).map_or(queue.bounds().end, |record| record.offset.get());
    if found != expected {
        return Err(format!("{key} at {} begins with {found}, expected {expected}", asked.stored_at));
    }
    let located = engine.record_at(asked.position).map_err(failed)?;
    let wanted = (asked.offset.get() >= min).then_some(asked);
    if located.as_ref().map(|located| (&located.queue, &located.stored)) != wanted.map(|record| (key, record)) {
        return Err(format!("position {} holds {located:?}, expected {wanted:?}", asked.position));
    }
    Ok(())
}

/// Looks for one key in one topic.
fn keys_found(
    engine: &MmapEngine,
    truth: &Truth,
    mins: &BTreeMap<QueueKey, u64>,
    choices: &mut SeededChoices,
) -> Result<(), String> {
    let topic = TopicName::new(TOPICS[choices.pick(TOPICS.len())]).map_err(text)?;
    let key = KEYS[choices.pick(KEYS.len())];
    let mut expected: Vec<_> = truth
        .queues
        .iter()
        .filter(|(queue, _)| queue.topic == topic)
        .flat_map(|(queue, records)| records.records.iter().map(move |record| (queue, record)))
        .filter(|(queue, record)| record.offset.get() >= mins[*queue])
        .filter(|(_, record)| record.record.attributes.keys().any(|other| other == key))
        .collect();
    expected.sort_by_key(|(_, record)| std::cmp::Reverse(record.position));
    let query = KeyQuery { topic: &topic, key, from: Timestamp::MIN, to: Timestamp::MAX, limit: usize::MAX };
    let found = engine.find(query).map_err(failed)?;
    if !found.iter().map(|located| (&located.queue, &located.stored)).eq(expected.iter().copied()) {
        return Err(format!("{key} in {topic} is found {} times, expected {}", found.len(), expected.len()));
    }
    Ok(())
}

/// Checks that nothing but zeros lies behind the log's end, which is the mark of a store that was just opened.
pub(crate) fn clean_end(engine: &MmapEngine, files: &MemoryFiles, settings: &MmapSettings) -> Result<(), String> {
    let end = engine.durable().0;
    for (name, bytes) in log(files)? {
        let start: u64 = name.parse().map_err(text)?;
        let used = usize::try_from(end.saturating_sub(start).min(settings.segment_bytes)).map_err(text)?;
        if bytes.get(used..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
            return Err(format!("bytes behind the log's end {end} are left in segment {name}"));
        }
    }
    Ok(())
}

/// All segments of the log, by name.
pub(crate) fn log(files: &MemoryFiles) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let names = files.list("commitlog").map_err(text)?;
    names.into_iter().map(|name| Ok((name.clone(), bytes(files, &format!("commitlog/{name}"))?))).collect()
}

/// A file's bytes.
pub(crate) fn bytes(files: &MemoryFiles, path: &str) -> Result<Vec<u8>, String> {
    let file = files.open(path, OpenMode::Existing).map_err(text)?;
    let mut bytes = vec![0; usize::try_from(file.len().map_err(text)?).map_err(text)?];
    file.read_at(0, &mut bytes).map_err(text)?;
    Ok(bytes)
}

/// The epoch that the manifest holds; 0 before the first opening.
pub(crate) fn epoch(files: &MemoryFiles) -> u32 {
    let manifest = bytes(files, "MANIFEST").unwrap_or_default();
    manifest.get(12..16).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

//! Opening a store: lock, manifest, checkpoint, replay, cut, and a new epoch before the first write.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use cuemq_storage_api::{
    Attributes, ErrorKind, LogPosition, QueueId, QueueKey, Result, StorageError, Table, Timestamp, TopicName,
};

use crate::catalog::{Catalog, QueueState};
use crate::checkpoint::Checkpoint;
use crate::commit_log::format::{FrameHeader, Item, Items, RecordHeader};
use crate::commit_log::recovery::{self, ScanPlan, Scanned};
use crate::commit_log::segment::{self, Segments};
use crate::commit_log::{LogEnd, LogWriter, SegmentTimes};
use crate::consume_queue::entry::Entry;
use crate::consume_queue::{self, Found, QueueFiles};
use crate::files::{FileLayer, LockGuard, OpenMode};
use crate::health::{corrupt, read_failed};
use crate::index::{INDEX_DIRECTORY, IndexSettings, KeyIndex};
use crate::manifest::{LOCK, Manifest};
use crate::settings::MmapSettings;
use crate::store::MAX_BUFFERED_ENTRIES;
use crate::tables::{RowRoom, Tables};
use crate::watermark;

/// Entries of one queue that are written to its files while the log is read: 96 KiB, far less than a processor keeps near.
const REPLAYED_TAIL_ENTRIES: usize = 1 << 12;

/// An opened store, ready for an engine.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) lock: Box<dyn LockGuard>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) queue_files: QueueFiles,
    pub(crate) catalog: Catalog,
    pub(crate) index: KeyIndex,
    pub(crate) log: LogWriter,
    /// Position of the checkpoint that the next opening would begin with.
    pub(crate) checkpoint_at: u64,
}

/// Opens a store, or makes it.
///
/// # Errors
/// `Invalid`, `Version`, `Locked` and `Corrupt` before anything was changed; `Io`.
pub(crate) fn open(files: &Arc<dyn FileLayer>, settings: &MmapSettings) -> Result<Opened> {
    settings.validate()?;
    // Before the lock file is touched: a store of another version stays as it is, to the last byte.
    if let Some(manifest) = Manifest::read(&**files)? {
        manifest.check_shape(settings)?;
    }
    let lock = lock(&**files)?;
    let failed = |error| read_failed("open", &files.describe(), error);
    let mut manifest = match Manifest::read(&**files)? {
        Some(manifest) => manifest,
        None => {
            let manifest = Manifest::new(settings);
            manifest.write(&**files).map_err(failed)?;
            manifest
        }
    };
    manifest.check_shape(settings)?;
    for directory in [segment::DIRECTORY, consume_queue::DIRECTORY] {
        files.create_directory(directory).map_err(failed)?;
    }
    files.sync_directory("").map_err(failed)?;

    let segments = Arc::new(Segments::new(Arc::clone(files), settings.segment_bytes));
    let queue_files = QueueFiles::new(Arc::clone(files), settings.consume_queue_entries);
    let recovery = Recovery { files, segments: &segments, queue_files: &queue_files, manifest };
    let recovered = recovery.run()?;
    let index = recovery.index(&recovered)?;
    let Recovered { catalog, end, times, checkpoint, .. } = recovered;
    let checkpoint_at = checkpoint.position;

    manifest.epoch = manifest.epoch.checked_add(1).ok_or_else(|| {
        StorageError::not_stored(ErrorKind::Full, "open", "the store was opened 2^32 times: start a new one")
    })?;
    manifest.write(&**files).map_err(failed)?;
    let log = LogWriter::open(Arc::clone(files), Arc::clone(&segments), settings, manifest.epoch, end, times)
        .map_err(failed)?;
    Ok(Opened { lock, segments, queue_files, catalog, index, log, checkpoint_at })
}

fn lock(files: &dyn FileLayer) -> Result<Box<dyn LockGuard>> {
    files.lock(LOCK).map_err(|error| {
        if error.kind() != io::ErrorKind::WouldBlock {
            return read_failed("open", LOCK, error);
        }
        let context = format!("{} is in use: stop the other broker, or use another directory", files.describe());
        StorageError::not_stored(ErrorKind::Locked, "open", context).with_source(error)
    })
}

struct Recovery<'a> {
    files: &'a Arc<dyn FileLayer>,
    segments: &'a Segments,
    queue_files: &'a QueueFiles,
    manifest: Manifest,
}

struct Recovered {
    catalog: Catalog,
    end: LogEnd,
    times: SegmentTimes,
    /// Where the log stood at the checkpoint.
    checkpoint: LogEnd,
    /// The store was closed in order.
    is_clean: bool,
    /// Where the replay began, and the first frame from there on with a record that could have keys.
    replayed_from: u64,
    keyed_from: Option<u64>,
}

impl Recovery<'_> {
    fn run(&self) -> Result<Recovered> {
        let failed = |error| read_failed("open", &self.files.describe(), error);
        let (checkpoint, rows) = Checkpoint::read(&**self.files).map_err(failed)?.unzip();
        let clean = checkpoint.as_ref().is_some_and(|point| point.clean && point.epoch == self.manifest.epoch);
        let watermark = watermark::read(&**self.files).map_err(failed)?;
        let base = checkpoint.unwrap_or_else(|| Checkpoint {
            clean: false,
            epoch: 0,
            end: LogEnd::START,
            log_start: 0,
            times: SegmentTimes::new(),
            queues: Vec::new(),
        });
        self.check_segments(&base)?;
        let durable = watermark.max(base.end.position);
        if !clean {
            self.settle_segments(&base, durable)?;
        }
        let whole = self.verify_queues(&base, clean)?;
        let until = clean.then_some(base.end.position);
        let plan = if whole {
            let (chain, stored_at) = (Some(base.end.chain), base.end.stored_at);
            ScanPlan { from: base.end.position, chain, stored_at, durable, until, epoch: self.manifest.epoch }
        } else {
            tracing::warn!(store = self.files.describe(), "making the consume queues again from the commit log");
            let chain = (base.log_start == 0).then_some(0);
            ScanPlan { from: base.log_start, chain, stored_at: i64::MIN, durable, until, epoch: self.manifest.epoch }
        };
        let (checkpoint, replayed_from) = (base.end, plan.from);
        let (replay, scanned) = self.replay(base, Tables::new(rows.unwrap_or_default()), plan, whole)?;
        if !clean {
            recovery::cut(self.segments, checkpoint.position, &scanned)?;
            if !scanned.torn.is_empty() {
                let position = scanned.end.position;
                tracing::warn!(store = self.files.describe(), position, "cut the torn end of the commit log");
            }
        }
        let Replay { mut catalog, times, keyed_from, .. } = replay;
        catalog.log_end = scanned.end.position;
        let end = scanned.end;
        Ok(Recovered { catalog, end, times, checkpoint, is_clean: clean, replayed_from, keyed_from })
    }

    fn replay(&self, base: Checkpoint, tables: Tables, plan: ScanPlan, whole: bool) -> Result<(Replay<'_>, Scanned)> {
        let expected: Vec<(QueueKey, u64)> =
            if whole { Vec::new() } else { base.queues.iter().map(|queue| (queue.key.clone(), queue.end)).collect() };
        let mut catalog = Catalog::new(tables, base.log_start);
        for point in base.queues {
            let end = if whole { point.end } else { point.base };
            let queue = QueueState { base: point.base, min: point.min, end, ..QueueState::empty(point.key) };
            catalog.add_queue(queue);
        }
        let (full_from, times) = (base.end.position, base.times);
        let mut replay = Replay {
            catalog,
            times,
            full_from,
            queue_files: self.queue_files,
            segments: self.segments,
            room: RowRoom::default(),
            last: None,
            keyed_from: None,
            long: Vec::new(),
        };
        let scanned = recovery::scan(self.segments, plan, &mut |header, items| replay.frame(header, items))?;
        for (key, end) in expected {
            let found = replay.catalog.queue(&key).map_or(0, |queue| queue.end);
            if found < end {
                let context = format!("the commit log has records of {key} up to offset {found}, the checkpoint {end}");
                return Err(corrupt("open", context));
            }
        }
        Ok((replay, scanned))
    }

    /// Opens the key index and adds what it lacks of a log that is whole.
    fn index(&self, recovered: &Recovered) -> Result<KeyIndex> {
        let Recovered { end, checkpoint, is_clean, replayed_from, keyed_from, .. } = *recovered;
        let log_start = recovered.catalog.log_start;
        let settings = IndexSettings { slots: self.manifest.index_slots, entries: self.manifest.index_entries };
        let index = KeyIndex::open(Arc::clone(self.files), settings, LogPosition::new(end.position), is_clean)
            .map_err(|error| read_failed("open", INDEX_DIRECTORY, error))?;
        let covered = index.covered_to().get();
        if covered >= end.position {
            return Ok(index);
        }
        // A frame begins at the checkpoint and at every segment's start.
        let (from, chain) = if covered >= checkpoint.position {
            (checkpoint.position, Some(checkpoint.chain))
        } else {
            (self.segments.start_of(covered).max(log_start), None)
        };
        // What was just replayed is not read again for keys that it does not have.
        let (from, chain) = match keyed_from {
            None if from >= replayed_from => return Ok(index),
            Some(keyed) if from >= replayed_from && keyed > from => (keyed, None),
            _ => (from, chain),
        };
        let (durable, until, epoch) = (end.position, Some(end.position), self.manifest.epoch);
        let plan = ScanPlan { from, chain, stored_at: i64::MIN, durable, until, epoch };
        recovery::scan(self.segments, plan, &mut |header, bytes| {
            for item in Items::new(header, bytes) {
                if let Item::Record { header: record, bytes } = item
                    && record.attributes_len > 0
                {
                    index_keys(&index, &record, bytes)?;
                }
            }
            Ok(())
        })?;
        Ok(index)
    }

    /// Refuses a log that lacks a segment the checkpoint has seen, and removes what retention left half removed.
    fn check_segments(&self, base: &Checkpoint) -> Result<()> {
        let active = self.segments.start_of(base.end.position);
        let there = self.segments.list()?;
        let segment_bytes = self.segments.segment_bytes();
        let mut start = base.log_start;
        // A log that ends exactly where a segment ends has not begun the next one.
        while start < base.end.position {
            let path = Segments::path(start);
            if there.binary_search(&start).is_err() {
                let context = format!(
                    "{path} is missing, although the log was durable up to position {}: restore it from a copy",
                    base.end.position
                );
                return Err(corrupt("open", context));
            }
            let len = self
                .segments
                .open(start, OpenMode::Existing)
                .and_then(|file| file.len())
                .map_err(|error| read_failed("open", &path, error))?;
            let needed = if start == active { base.end.position - start } else { segment_bytes };
            if len < needed {
                let context = format!("{path} has {len} bytes, but {needed} were durable: restore it from a copy");
                return Err(corrupt("open", context));
            }
            start += segment_bytes;
        }
        for expired in there.into_iter().filter(|start| *start < base.log_start) {
            self.segments.remove(expired).map_err(|error| read_failed("open", &Segments::path(expired), error))?;
        }
        Ok(())
    }

    /// After a crash the operating system's cache may hold what the disk does not: writes it out and forgets it, so
    /// that the checksums test the disk. What a sync is known to have made durable is on the disk as it is in the cache,
    /// and stays there.
    fn settle_segments(&self, base: &Checkpoint, durable: u64) -> Result<()> {
        let active = self.segments.start_of(base.end.position);
        for start in self.segments.list()?.into_iter().filter(|start| *start >= active) {
            let settle = self.segments.open(start, OpenMode::Existing).and_then(|file| {
                file.sync_data()?;
                file.drop_cache(durable.saturating_sub(start));
                Ok(())
            });
            settle.map_err(|error| read_failed("open", &Segments::path(start), error))?;
        }
        Ok(())
    }

    /// Whether every queue's files hold what the checkpoint says; if not, they are all removed.
    fn verify_queues(&self, base: &Checkpoint, clean: bool) -> Result<bool> {
        let failed = |error| read_failed("open", consume_queue::DIRECTORY, error);
        let mut whole = true;
        for queue in &base.queues {
            let found = self.queue_files.verify(&queue.key, queue.base, queue.end).map_err(failed)?;
            whole &= found == Found::Whole;
        }
        if !whole {
            self.queue_files.remove_unknown(|_, _| false).map_err(failed)?;
        } else if !clean {
            let known: std::collections::HashSet<(&str, String)> =
                base.queues.iter().map(|queue| (queue.key.topic.as_str(), queue.key.queue.to_string())).collect();
            let is_known = |topic: &str, queue: &str| known.contains(&(topic, queue.to_owned()));
            self.queue_files.remove_unknown(is_known).map_err(failed)?;
        }
        Ok(whole)
    }
}

/// Takes the log's frames in, as if they were applied again.
struct Replay<'a> {
    catalog: Catalog,
    times: SegmentTimes,
    /// Below this the checkpoint knows all but the entries of consume queues.
    full_from: u64,
    queue_files: &'a QueueFiles,
    segments: &'a Segments,
    room: RowRoom,
    /// The queue of the last record: most records follow another of the same queue.
    last: Option<(Bytes, u32, usize)>,
    /// The first frame with a record that has attributes, which may be keys.
    keyed_from: Option<u64>,
    /// Queues whose tails became long in this frame.
    long: Vec<usize>,
}

impl Replay<'_> {
    fn frame(&mut self, header: &FrameHeader, bytes: &[u8]) -> Result<()> {
        self.times.insert(self.segments.start_of(header.position), header.stored_at);
        let full = header.position >= self.full_from;
        let mut items = Items::new(header, bytes);
        for item in items.by_ref() {
            match item {
                Item::Record { header: record, bytes } => {
                    if record.attributes_len > 0 {
                        self.keyed_from.get_or_insert(header.position);
                    }
                    self.record(&record, record.topic(bytes))?;
                }
                Item::Put { table, key, value } if full => {
                    self.catalog.tables.change(self.room.put(&stored_table(table)?, key, value));
                }
                Item::Delete { table, key } if full => {
                    self.catalog.tables.change(self.room.delete(&stored_table(table)?, key));
                }
                Item::Trim { topic, queue, before } if full => {
                    if let Some(slot) = self.catalog.slot(&stored_queue(topic, queue)?) {
                        self.catalog.at_mut(slot).trim(before);
                    }
                }
                Item::Put { .. } | Item::Delete { .. } | Item::Trim { .. } => {}
            }
        }
        if !items.is_complete() {
            return Err(self.unreadable(header.position));
        }
        self.spill()
    }

    /// Writes the entries of long tails, which so stay where the processor has them near, and of all queues at the bound.
    fn spill(&mut self) -> Result<()> {
        let mut slots = std::mem::take(&mut self.long);
        if self.catalog.buffered() > MAX_BUFFERED_ENTRIES {
            slots = (0..self.catalog.queues().len()).collect();
        }
        for slot in slots {
            let queue = self.catalog.at(slot);
            let (first, count) = (queue.tail_start(), queue.tail.len());
            let written = self.queue_files.write(&queue.key, first, &queue.tail);
            written.map_err(|error| read_failed("open", &self.queue_files.describe(&queue.key, first), error))?;
            self.catalog.forget_tail(slot, count);
        }
        Ok(())
    }

    fn record(&mut self, record: &RecordHeader, topic: &[u8]) -> Result<()> {
        let slot = match &self.last {
            Some((last, queue, slot)) if last == topic && *queue == record.queue => *slot,
            _ => {
                let key = stored_queue(topic, record.queue)?;
                let known = self.catalog.slot(&key);
                let slot = known.unwrap_or_else(|| self.catalog.add_queue(QueueState::empty(key)));
                self.last = Some((Bytes::copy_from_slice(topic), record.queue, slot));
                slot
            }
        };
        let queue = self.catalog.at(slot);
        if queue.end != record.queue_offset {
            let context = format!(
                "{} has offset {} of {}, but {} comes next",
                self.segments.describe(record.position),
                record.queue_offset,
                queue.key,
                queue.end
            );
            return Err(corrupt("open", context));
        }
        self.catalog.push(slot, Entry { position: record.position, tag_hash: record.tag_hash, size: record.len });
        if self.catalog.at(slot).tail.len() == REPLAYED_TAIL_ENTRIES {
            self.long.push(slot);
        }
        Ok(())
    }

    fn unreadable(&self, position: u64) -> StorageError {
        corrupt("open", format!("{} has a whole frame with an item of no known kind", self.segments.describe(position)))
    }
}

fn index_keys(index: &KeyIndex, record: &RecordHeader, item: &[u8]) -> Result<()> {
    let attributes = Attributes::from_stored(Bytes::copy_from_slice(record.attributes(item)));
    let (position, stored_at) = (LogPosition::new(record.position), Timestamp::from_millis(record.stored_at));
    for key in attributes.keys() {
        index.add(stored_name(record.topic(item))?, key, position, stored_at);
    }
    Ok(())
}

fn stored_name(topic: &[u8]) -> Result<&str> {
    std::str::from_utf8(topic).map_err(|_| corrupt("open", "a topic name in the commit log is not UTF-8".to_owned()))
}

fn stored_table(name: &str) -> Result<Table> {
    Table::new(name).map_err(|invalid| corrupt("open", format!("the commit log names a table: {invalid}")))
}

fn stored_queue(topic: &[u8], queue: u32) -> Result<QueueKey> {
    let topic = TopicName::from_stored(stored_name(topic)?).map_err(|invalid| corrupt("open", invalid.to_string()))?;
    let queue = QueueId::new(queue).map_err(|invalid| corrupt("open", invalid.to_string()))?;
    Ok(QueueKey::new(topic, queue))
}

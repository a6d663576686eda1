//! fjall with the LSM engine's key spaces and settings, and nothing else: the limit of that engine.

use std::fs;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::Engine;
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use fjall::config::FilterPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable};

use crate::Result;
use crate::place::Place;
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, queue};

/// Where the engine keeps its fjall database below its directory.
const STORE: &str = "store";
/// Messages per batch while the rows are made.
const LOAD_BATCH: usize = 1024;
/// The spaces of small rows get a memtable this much smaller than that of the records.
const SMALL_MEMTABLE_SHARE: u64 = 4;

type KeyValue = (Bytes, Bytes);

/// Key and value of every row that the engine writes for some messages, read out of a store that it wrote: so the bare
/// counterpart writes exactly the same.
#[derive(Debug)]
pub(super) struct Rows {
    log: Vec<KeyValue>,
    consume_queue: Vec<KeyValue>,
    /// The row that every batch rewrites.
    state: KeyValue,
}

impl Rows {
    /// Those of messages `0..count`.
    pub(super) fn of(bodies: &Bodies, count: usize, place: &Place) -> Result<Self> {
        let (folder, queue) = (place.folder()?, queue());
        let engine = LsmEngine::open(folder.path(), &LsmSettings::default())?;
        for first in (0..count).step_by(LOAD_BATCH) {
            engine.apply(bodies.batch(&queue, first as u64, LOAD_BATCH.min(count - first)))?;
        }
        engine.close()?;
        let bare = BareFjall::open(&folder.path().join(STORE))?;
        let all = |space: &Keyspace| -> Result<Vec<KeyValue>> {
            let rows = bare.database.snapshot().iter(space).map(|row| Ok(row.into_inner()?));
            rows.map(|row| row.map(|(key, value)| (copied(&key), copied(&value)))).collect()
        };
        let (log, consume_queue) = (all(&bare.log)?, all(&bare.consume_queue)?);
        if log.len() != count || consume_queue.len() != count {
            return Err(
                format!("{} and {} rows were written for {count} messages", log.len(), consume_queue.len()).into()
            );
        }
        let state = all(&bare.meta)?.into_iter().next().ok_or("the engine wrote no state")?;
        Ok(Self { log, consume_queue, state })
    }
}

/// How rows come to fjall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Given {
    /// In memory of their own, which is not measured.
    Ready,
    /// As bytes that are copied into such memory, which is measured.
    Copied,
}

fn copied(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// An open database.
pub(super) struct BareFjall {
    log: Keyspace,
    consume_queue: Keyspace,
    meta: Keyspace,
    database: Database,
}

impl BareFjall {
    /// Opens or makes a database as `storage-lsm/src/fjall_kv.rs` does.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let settings = LsmSettings::default();
        let database = Database::builder(directory)
            .cache_size(settings.cache_bytes)
            .max_journaling_size(settings.journal_bytes)
            .worker_threads(settings.worker_threads)
            .manual_journal_persist(true)
            .open()?;
        let options =
            |memtable| KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(memtable);
        let small = settings.memtable_bytes / SMALL_MEMTABLE_SHARE;
        let log = database.keyspace("log", || options(settings.memtable_bytes).expect_point_read_hits(true))?;
        let scanned = || options(small).filter_policy(FilterPolicy::disabled());
        let consume_queue = database.keyspace("cq", scanned)?;
        database.keyspace("key", scanned)?;
        let meta = database.keyspace("meta", || options(small))?;
        Ok(Self { log, consume_queue, meta, database })
    }

    /// Writes the rows of some messages in batches, each in the hands of the operating system before the next one. Whether
    /// the memory that the rows lie in is taken meanwhile, or was taken and filled before, is told by `given`.
    pub(super) fn write(&self, rows: &Rows, given: Given, batch: usize, range: Range<usize>) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for (log, consume_queue) in rows.log[range.clone()].chunks(batch).zip(rows.consume_queue[range].chunks(batch)) {
            let mut watch = Stopwatch::start();
            // A program's rows are its own; sharing them between batches would spare fjall cache misses.
            let own = |(key, value): &KeyValue| (copied(key), copied(value));
            let ready: Vec<_> = log.iter().map(own).zip(consume_queue.iter().map(own)).collect();
            let state = own(&rows.state);
            if given == Given::Ready {
                watch = Stopwatch::start();
            }
            let changes = OwnedWriteBatch::with_capacity(self.database.clone(), 2 * batch + 1);
            let mut changes = changes.durability(Some(PersistMode::Buffer));
            for ((log_key, log_value), (queue_key, queue_value)) in ready {
                changes.insert(&self.log, log_key, log_value);
                changes.insert(&self.consume_queue, queue_key, queue_value);
            }
            changes.insert(&self.meta, state.0, state.1);
            changes.commit()?;
            time += watch.elapsed();
        }
        Ok(time)
    }

    /// Records that it has.
    pub(super) fn count(&self) -> Result<usize> {
        let mut count = 0;
        for row in self.database.snapshot().iter(&self.log) {
            black_box(row.into_inner()?);
            count += 1;
        }
        Ok(count)
    }

    /// One iteration over both spaces, which goes on where it was from call to call.
    pub(super) fn scan(&self) -> impl FnMut(Range<usize>) -> Result<Duration> + use<> {
        let snapshot = self.database.snapshot();
        let mut rows = snapshot.iter(&self.consume_queue).zip(snapshot.iter(&self.log));
        move |range| {
            let watch = Stopwatch::start();
            for _ in range {
                let (consume_queue, log) = rows.next().ok_or("the scan missed rows")?;
                black_box((consume_queue.into_inner()?, log.into_inner()?));
            }
            Ok(watch.elapsed())
        }
    }

    /// Closes it and removes its files.
    pub(super) fn discard(self, directory: &Path) -> Result<()> {
        drop(self);
        Ok(fs::remove_dir_all(directory)?)
    }
}

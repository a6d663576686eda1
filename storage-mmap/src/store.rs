//! One open store: writing, syncing, closing. Reads are in `reader.rs`, upkeep in `upkeep.rs`.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cuemq_storage_api::{Applied, Mark, Result, WriteBatch, WriteOperation};

use crate::catalog::{Catalog, Published};
use crate::commit_log::ahead::Ahead;
use crate::commit_log::segment::Segments;
use crate::consume_queue::QueueFiles;
use crate::files::{FileLayer, LockGuard};
use crate::health::Health;
use crate::index::KeyIndex;
use crate::opening::{self, Opened};
use crate::settings::MmapSettings;
use crate::spill::Spilling;
use crate::upkeep::Upkeep;
use crate::writer::{Writer, frame_bytes};

/// Entries of consume queues that are kept in memory, over all queues, before they are written: 48 MiB.
pub(crate) const MAX_BUFFERED_ENTRIES: usize = 1 << 21;
/// Entries of one queue that are written by the engine's thread while other queues' stay in memory: 384 KiB, which are
/// copied in tens of microseconds, for as long as nothing can be shown.
const LONG_TAIL_ENTRIES: usize = 1 << 14;
/// Entries over all queues from which on the engine's thread writes every queue's, so that the writer does not come to
/// the bound: with thousands of queues that is as many files, each opened, written and closed.
const MANY_BUFFERED_ENTRIES: usize = MAX_BUFFERED_ENTRIES / 4;

/// An open store, shared by the engine and its thread.
pub(crate) struct Store {
    pub(crate) files: Arc<dyn FileLayer>,
    pub(crate) settings: MmapSettings,
    pub(crate) health: Health,
    pub(crate) segments: Arc<Segments>,
    pub(crate) queue_files: QueueFiles,
    pub(crate) index: KeyIndex,
    pub(crate) epoch: u32,
    /// What this process wrote itself begins here.
    pub(crate) opened_at: u64,
    pub(crate) durable: AtomicU64,
    pub(crate) catalog: RwLock<Catalog>,
    pub(crate) writer: Mutex<Writer>,
    /// Taken before the writer; whoever waits for it finds its batches synced by the one before.
    syncing: Mutex<()>,
    pub(crate) spilling: Spilling,
    pub(crate) upkeep: Mutex<Upkeep>,
    lock: Mutex<Option<Box<dyn LockGuard>>>,
    /// What the thread that prepares room and the writer know of each other.
    pub(crate) ahead: Arc<Ahead>,
    /// Queues with at least so many entries in memory are to be written by the engine's thread; 0 when there are none.
    pub(crate) spills_from: AtomicUsize,
}

impl Store {
    /// Opens the store over a file layer.
    ///
    /// # Errors
    /// As [`MmapEngine::open`](crate::MmapEngine::open).
    pub(crate) fn open(files: Arc<dyn FileLayer>, settings: MmapSettings) -> Result<Self> {
        let Opened { lock, segments, queue_files, catalog, index, log, checkpoint_at } =
            opening::open(&files, &settings)?;
        let end = log.end().position;
        Ok(Self {
            files,
            settings,
            health: Health::default(),
            segments,
            queue_files,
            index,
            epoch: log.epoch(),
            ahead: Arc::clone(log.ahead()),
            spills_from: AtomicUsize::new(0),
            opened_at: end,
            durable: AtomicU64::new(end),
            writer: Mutex::new(Writer::new(log, &catalog)),
            catalog: RwLock::new(catalog),
            syncing: Mutex::new(()),
            spilling: Spilling::default(),
            upkeep: Mutex::new(Upkeep::new(checkpoint_at)),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The catalog for reading. A panic while a batch was being shown would leave half of it there: nobody reads then.
    pub(crate) fn catalog(&self, operation: &'static str) -> Result<RwLockReadGuard<'_, Catalog>> {
        self.health.check_open(operation)?;
        self.catalog.read().map_err(|_| self.health.poison_by_panic(operation))
    }

    pub(crate) fn catalog_mut(&self, operation: &'static str) -> Result<RwLockWriteGuard<'_, Catalog>> {
        self.catalog.write().map_err(|_| self.health.poison_by_panic(operation))
    }

    pub(crate) fn writer(&self, operation: &'static str) -> Result<MutexGuard<'_, Writer>> {
        let writer = self.writer.lock().map_err(|_| self.health.poison_by_panic(operation))?;
        self.health.check_writable(operation)?;
        Ok(writer)
    }

    /// Lands a batch; see [`Engine::apply`](cuemq_storage_api::Engine::apply).
    pub(crate) fn apply(&self, mut batch: WriteBatch) -> Result<Applied> {
        self.health.check_writable("apply")?;
        batch.check()?;
        let mut guard = self.writer("apply")?;
        let writer = &mut *guard;
        if batch.is_empty() {
            let (mark, stored_at) = (Mark(writer.log.end().position), writer.stored_at(&batch));
            return Ok(Applied { mark, stored_at, appends: Vec::new(), positions: Vec::new() });
        }
        batch.resolve_places(|queue| Ok(writer.end_of(queue)))?;
        let bytes = frame_bytes(&batch);
        if writer.buffered + batch.len() > MAX_BUFFERED_ENTRIES {
            self.make_entries_room(MAX_BUFFERED_ENTRIES.saturating_sub(batch.len()))?;
        }
        let durable = self.durable.load(Ordering::Acquire);
        writer.log.make_room(bytes, batch.expects_sync(), durable, &self.health)?;
        let bytes = usize::try_from(bytes).expect("a frame fits a segment, which is at most 2 GiB");
        let (applied, encoded) = writer.stage(&batch, bytes);
        writer.log.append(bytes, encoded, applied.stored_at.as_millis(), durable, &self.health)?;
        self.index_keys(&batch, &applied);
        let published = self.catalog_mut("apply")?.publish(&mut writer.staged, writer.log.end().position);
        writer.buffered = published.buffered;
        let spills_from = match published {
            Published { buffered, .. } if buffered >= MANY_BUFFERED_ENTRIES => 1,
            Published { longest_tail, .. } if longest_tail >= LONG_TAIL_ENTRIES => LONG_TAIL_ENTRIES,
            Published { .. } => 0,
        };
        // Only the writer sets it, and holds its lock.
        if spills_from != 0 && self.spills_from.load(Ordering::Relaxed) == 0 {
            self.spills_from.store(spills_from, Ordering::Relaxed);
            self.ahead.wake();
        }
        Ok(applied)
    }

    /// Adds the batch's keys to the index. This comes before the batch is shown, so that what can be fetched can be
    /// found; a look-up skips positions that are not shown yet.
    fn index_keys(&self, batch: &WriteBatch, applied: &Applied) {
        let mut positions = applied.positions.iter();
        for operation in batch.operations() {
            let WriteOperation::Append { queue, records } = operation else { continue };
            for (record, position) in records.iter().zip(positions.by_ref()) {
                if record.attributes.as_bytes().is_empty() {
                    continue;
                }
                for key in record.attributes.keys() {
                    self.index.add(queue.topic.as_str(), key, *position, applied.stored_at);
                }
            }
        }
    }

    /// Makes all batches durable, and says up to where the log is. Does nothing where they are.
    pub(crate) fn sync_log(&self, operation: &'static str) -> Result<u64> {
        self.sync_if(operation, |end, durable| end != durable)
    }

    /// The same, with whatever else the files hold.
    pub(crate) fn sync_all(&self, operation: &'static str) -> Result<u64> {
        self.sync_if(operation, |_, _| true)
    }

    fn sync_if(&self, operation: &'static str, is_needed: impl FnOnce(u64, u64) -> bool) -> Result<u64> {
        let _one_at_a_time = self.syncing.lock().map_err(|_| self.health.poison_by_panic(operation))?;
        let work = {
            let mut writer = self.writer(operation)?;
            let end = writer.log.end().position;
            if !is_needed(end, self.durable.load(Ordering::Acquire)) {
                return Ok(end);
            }
            writer.log.take_sync_work()
        };
        // A page that is still mapped for stores when the sync comes to it interrupts every processor that runs this
        // process; a map that is taken down does so once for all of its pages.
        self.ahead.take_down();
        // Behind a closing nothing is written.
        if !self.health.is_closing()
            && let Err(error) = self.ahead.take_for_sync()
        {
            self.is_unprepared(&error);
        }
        let mut synced = work.files.iter().try_for_each(|file| file.sync_data());
        if work.names && synced.is_ok() {
            synced = self.segments.sync_directory();
        }
        synced.map_err(|error| {
            self.health.poison(operation, format!("syncing the commit log up to position {}", work.upto), error)
        })?;
        self.durable.store(work.upto, Ordering::Release);
        Ok(work.upto)
    }

    pub(crate) fn close(&self) -> Result<()> {
        if !self.health.begin_close() {
            return Ok(());
        }
        let written = self.settle();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        written
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmapEngine")
            .field("store", &self.files.describe())
            .field("epoch", &self.epoch)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

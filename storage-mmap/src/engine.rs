//! The engine: opening, writing, syncing, closing. Reads are in `reader.rs`, upkeep in `upkeep.rs`.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use cuemq_storage_api::{
    Applied, Capabilities, Engine, Fetch, FetchRequest, KeyQuery, LocatedRecord, LogPosition, Maintenance, Mark,
    QueueKey, QueueOffset, Result, Row, Table, Timestamp, WriteBatch, WriteOperation,
};

use crate::catalog::Catalog;
use crate::commit_log::segment::Segments;
use crate::consume_queue::QueueFiles;
use crate::files::real::RealFiles;
use crate::files::{FileLayer, LockGuard};
use crate::health::{Health, read_failed};
use crate::index::KeyIndex;
use crate::opening::{self, Opened};
use crate::settings::MmapSettings;
use crate::upkeep::Upkeep;
use crate::writer::{Writer, frame_bytes};

/// Entries of consume queues that are kept in memory, over all queues, before they are written: 24 MiB.
pub(crate) const MAX_BUFFERED_ENTRIES: usize = 1 << 20;

/// The commit-log engine: one log of all batches, consume queues, a key index and tables derived from it.
pub struct MmapEngine {
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
    /// One at a time moves entries from memory to the consume queues' files.
    pub(crate) spilling: Mutex<()>,
    pub(crate) upkeep: Mutex<Upkeep>,
    lock: Mutex<Option<Box<dyn LockGuard>>>,
}

impl MmapEngine {
    /// Opens the store in a directory, and makes both if they are not there.
    ///
    /// # Errors
    /// `Invalid` for settings out of range or other than the store was made with; `Locked` while someone has it open;
    /// `Version` for a store of another version or a directory that holds something else; `Corrupt` for damage to
    /// what was once durable; `Io`.
    pub fn open(directory: impl AsRef<Path>, settings: MmapSettings) -> Result<Self> {
        let directory = directory.as_ref();
        let files =
            RealFiles::open(directory).map_err(|error| read_failed("open", &directory.display().to_string(), error))?;
        Self::open_with(Arc::new(files), settings)
    }

    /// Opens a store over a file layer of the caller's choice.
    ///
    /// # Errors
    /// As [`MmapEngine::open`].
    pub fn open_with(files: Arc<dyn FileLayer>, settings: MmapSettings) -> Result<Self> {
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
            opened_at: end,
            durable: AtomicU64::new(end),
            writer: Mutex::new(Writer::new(log, &catalog)),
            catalog: RwLock::new(catalog),
            syncing: Mutex::new(()),
            spilling: Mutex::new(()),
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

    /// Moves buffered entries to the consume queues' files when there are too many of them.
    fn spill_if_full(&self, more: usize) -> Result<()> {
        if self.catalog("apply")?.buffered() + more <= MAX_BUFFERED_ENTRIES {
            return Ok(());
        }
        self.spill("apply")
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

    pub(crate) fn sync_log(&self, operation: &'static str) -> Result<u64> {
        let _one_at_a_time = self.syncing.lock().map_err(|_| self.health.poison_by_panic(operation))?;
        let work = {
            let mut writer = self.writer(operation)?;
            if writer.log.end().position == self.durable.load(Ordering::Acquire) {
                return Ok(writer.log.end().position);
            }
            writer.log.take_sync_work()
        };
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

    fn close_once(&self) -> Result<()> {
        if !self.health.begin_close() {
            return Ok(());
        }
        let written = self.settle();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        written
    }
}

impl Engine for MmapEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "mmap", durable: true, apply_may_stall: false, zero_copy: true }
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        self.health.check_writable("apply")?;
        batch.check()?;
        let mut guard = self.writer("apply")?;
        let writer = &mut *guard;
        if batch.is_empty() {
            let (mark, stored_at) = (Mark(writer.log.end().position), writer.stored_at(&batch));
            return Ok(Applied { mark, stored_at, appends: Vec::new(), positions: Vec::new() });
        }
        let bytes = frame_bytes(&batch);
        self.spill_if_full(batch.len())?;
        let durable = self.durable.load(Ordering::Acquire);
        writer.log.make_room(bytes, durable, &self.health)?;
        let bytes = usize::try_from(bytes).expect("a frame fits a segment, which is at most 2 GiB");
        let applied = writer.stage(&batch, bytes);
        writer.log.append(&mut writer.encoder, applied.stored_at.as_millis(), durable, &self.health)?;
        self.index_keys(&batch, &applied);
        self.catalog_mut("apply")?.publish(&mut writer.staged, writer.log.end().position);
        Ok(applied)
    }

    fn sync(&self) -> Result<Mark> {
        self.sync_log("sync").map(Mark)
    }

    fn durable(&self) -> Mark {
        Mark(self.durable.load(Ordering::Acquire))
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.read_queue(request)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        let catalog = self.catalog("bounds")?;
        Ok(catalog.queue(queue).map_or(QueueOffset::ZERO..QueueOffset::ZERO, |queue| queue.bounds()))
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        let catalog = self.catalog("queues")?;
        let mut queues: Vec<_> = catalog.queues().iter().map(|queue| (queue.key.clone(), queue.bounds())).collect();
        drop(catalog);
        queues.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(queues)
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.search_time(queue, at)
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.locate(position.get())
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.search_key(query)
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.catalog("get")?.tables.get(table, key))
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        Ok(self.catalog("scan")?.tables.scan(table, from, to, limit))
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.keep_up(now)
    }

    fn close(&self) -> Result<()> {
        self.close_once()
    }
}

impl Drop for MmapEngine {
    fn drop(&mut self) {
        // In a panic the state may be half changed; the next opening recovers from the log.
        if std::thread::panicking() || self.health.is_closing() {
            return;
        }
        if let Err(error) = self.close_once() {
            tracing::warn!(store = self.files.describe(), %error, "closing the store on drop failed");
        }
    }
}

impl fmt::Debug for MmapEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmapEngine")
            .field("store", &self.files.describe())
            .field("epoch", &self.epoch)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

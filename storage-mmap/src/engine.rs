//! The engine: a store, and the thread that prepares room for it.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cuemq_storage_api::{
    Applied, Capabilities, Engine, Fetch, FetchRequest, KeyQuery, LocatedRecord, LogPosition, Maintenance, Mark,
    QueueKey, QueueOffset, Result, Row, Table, Timestamp, WriteBatch,
};

use crate::checkpoint::CHECKPOINT;
use crate::files::FileLayer;
use crate::files::real::RealFiles;
use crate::health::read_failed;
use crate::preparer::Preparer;
use crate::settings::MmapSettings;
use crate::store::Store;

/// The commit-log engine: one log of all batches, consume queues, a key index and tables derived from it.
pub struct MmapEngine {
    store: Arc<Store>,
    preparer: Preparer,
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
        let is_beside = files.works_beside();
        let store = Arc::new(Store::open(files, settings)?);
        let preparer = if is_beside { Preparer::start(&store) } else { Preparer::none() };
        Ok(Self { store, preparer })
    }

    /// Fills room for this many bytes of log ahead of what is written, and makes it durable, so that a burst that is
    /// known to come meets neither new pages nor long syncs. Reaches to the end of the segment that is being written
    /// at most.
    ///
    /// # Errors
    /// `Full` when the disk has no room for it, with nothing changed that could be seen; `Closed`; `Poisoned`; `Io`,
    /// which poisons as in [`Engine::sync`].
    pub fn prepare_room(&self, bytes: u64) -> Result<()> {
        self.store.prepare_room(bytes)
    }
}

impl Engine for MmapEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "mmap", durable: true, apply_may_stall: false, zero_copy: true }
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        self.store.apply(batch)
    }

    fn sync(&self) -> Result<Mark> {
        self.store.sync_log("sync").map(Mark)
    }

    fn durable(&self) -> Mark {
        Mark(self.store.durable.load(Ordering::Acquire))
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.store.read_queue(request)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        let catalog = self.store.catalog("bounds")?;
        Ok(catalog.queue(queue).map_or(QueueOffset::ZERO..QueueOffset::ZERO, |queue| queue.bounds()))
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        let catalog = self.store.catalog("queues")?;
        let mut queues: Vec<_> = catalog.queues().iter().map(|queue| (queue.key.clone(), queue.bounds())).collect();
        drop(catalog);
        queues.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(queues)
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.store.search_time(queue, at)
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.store.locate(position.get())
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.store.search_key(query)
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        let row = self.store.catalog("get")?.tables.get(table, key);
        row.map_err(|error| read_failed("get", CHECKPOINT, error))
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let rows = self.store.catalog("scan")?.tables.scan(table, from, to, limit);
        rows.map_err(|error| read_failed("scan", CHECKPOINT, error))
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.store.keep_up(now)
    }

    fn close(&self) -> Result<()> {
        self.preparer.stop();
        self.store.close()
    }
}

impl Drop for MmapEngine {
    fn drop(&mut self) {
        self.preparer.stop();
        // In a panic the state may be half changed; the next opening recovers from the log.
        if std::thread::panicking() || self.store.health.is_closing() {
            return;
        }
        if let Err(error) = self.store.close() {
            tracing::warn!(store = self.store.files.describe(), %error, "closing the store on drop failed");
        }
    }
}

impl fmt::Debug for MmapEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.store, f)
    }
}

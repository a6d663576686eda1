//! The engine over any ordered store: offsets, positions, marks, publication; its parts are in the files beside.
//!
//! One writer at a time encodes a batch ([`draft`]), commits it to the store and then publishes the new ends of its
//! queues in one step, so a reader sees all of it or nothing. Readers never take the writer's lock.

mod draft;
mod read;
mod recovery;
mod retention;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use cuemq_storage_api::{
    Applied, Capabilities, Engine, ErrorKind, Fetch, FetchRequest, KeyQuery, LocatedRecord, LogPosition, Maintenance,
    Mark, QueueKey, QueueOffset, Result, Retention, Row, StorageError, Table, Timestamp, WriteBatch,
};

use crate::directory::Directory;
use crate::disk_space::DiskSpace;
use crate::keys::state::State;
use crate::kv::{KvError, OrderedKv};
use crate::published::Published;
use crate::watermark::Watermark;

/// What an engine is made of beside its store.
#[derive(Debug)]
pub(crate) struct Parts {
    /// What it calls itself and promises.
    pub(crate) capabilities: Capabilities,
    /// What may expire.
    pub(crate) retention: Retention,
    /// Free bytes below which appends are refused.
    pub(crate) reserve_bytes: u64,
    /// How full the disk is.
    pub(crate) disk: Box<dyn DiskSpace>,
    /// The directory whose lock the engine holds and in which it keeps its watermark, if it has one.
    pub(crate) directory: Option<Directory>,
}

/// An engine over an ordered store.
pub(crate) struct KvEngine<K: OrderedKv> {
    parts: FixedParts,
    store: RwLock<Option<Store<K>>>,
    writer: Mutex<Writer>,
    published: RwLock<Published<K::View>>,
    syncing: Mutex<Option<Watermark>>,
    durable: AtomicU64,
    poisoned: AtomicBool,
}

impl<K: OrderedKv> fmt::Debug for KvEngine<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.parts.capabilities.name;
        f.debug_struct("KvEngine").field("name", &name).field("durable", &self.durable).finish_non_exhaustive()
    }
}

struct FixedParts {
    capabilities: Capabilities,
    retention: Retention,
    reserve_bytes: u64,
    disk: Box<dyn DiskSpace>,
}

/// What closing lets go of, the store before its lock.
struct Store<K> {
    kv: K,
    directory: Option<Directory>,
}

/// What only the writer touches.
struct Writer {
    state: State,
    room: Room,
}

/// What is known of the disk between two looks at it.
#[derive(Default)]
struct Room {
    free: u64,
    unseen_bytes: u64,
}

/// A read lock on the open store.
struct OpenStore<'a, K>(RwLockReadGuard<'a, Option<Store<K>>>);

impl<K> std::ops::Deref for OpenStore<'_, K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.0.as_ref().expect("it was there when the lock was taken, and closing needs the lock").kv
    }
}

impl<K: OrderedKv> KvEngine<K> {
    /// The store, as long as it is open.
    fn store(&self, operation: &'static str) -> Result<OpenStore<'_, K>> {
        // Only closing changes what is behind this lock, and it does so in one step.
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        match *store {
            Some(_) => Ok(OpenStore(store)),
            None => Err(closed(operation)),
        }
    }

    /// What readers see.
    fn registry(&self) -> RwLockReadGuard<'_, Published<K::View>> {
        // Publication cannot panic half way: it only copies numbers. A poisoned lock is sound.
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store as readers of tables see it: never a batch whose records cannot be seen yet.
    fn table_view(&self, kv: &K) -> K::View {
        // Under this lock no batch can begin between the question and the view.
        let published = self.registry();
        published.before().cloned().unwrap_or_else(|| kv.view())
    }

    fn check_healthy(&self, operation: &'static str) -> Result<()> {
        if self.poisoned.load(Ordering::SeqCst) {
            let context = "an earlier write or sync failed: reopen the engine";
            return Err(StorageError::not_stored(ErrorKind::Poisoned, operation, context));
        }
        Ok(())
    }

    /// Turns a failed write of the store into the caller's error; from here on the engine accepts no more.
    fn poison(&self, operation: &'static str, error: KvError) -> StorageError {
        self.poisoned.store(true, Ordering::SeqCst);
        let failed = match error.kind {
            // The store refused before it wrote.
            ErrorKind::Poisoned => StorageError::not_stored(
                ErrorKind::Poisoned,
                operation,
                "the store failed in the background: reopen the engine",
            ),
            kind => StorageError::unknown(kind, operation, "the store failed: reopen the engine"),
        };
        failed.with_source(error.source)
    }
}

fn closed(operation: &'static str) -> StorageError {
    StorageError::not_stored(ErrorKind::Closed, operation, "the engine is closed")
}

fn read_failed(operation: &'static str, error: KvError) -> StorageError {
    StorageError::not_stored(error.kind, operation, "the store could not be read").with_source(error.source)
}

fn corrupt(operation: &'static str, context: String) -> StorageError {
    StorageError::not_stored(ErrorKind::Corrupt, operation, context)
}

impl<K: OrderedKv> Engine for KvEngine<K> {
    fn capabilities(&self) -> Capabilities {
        self.parts.capabilities
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        self.write(batch)
    }

    fn sync(&self) -> Result<Mark> {
        let store = self.store("sync")?;
        self.sync_store(&store, "sync")
    }

    fn durable(&self) -> Mark {
        Mark(self.durable.load(Ordering::SeqCst))
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.read_queue(&request)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        let _open = self.store("bounds")?;
        Ok(self.registry().find(queue).map_or(QueueOffset::ZERO..QueueOffset::ZERO, |(_, queue)| queue.bounds()))
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        let _open = self.store("queues")?;
        let mut queues: Vec<_> = self.registry().iter().map(|(_, queue)| (queue.key.clone(), queue.bounds())).collect();
        queues.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(queues)
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.search_time(queue, at)
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.read_position(position)
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.search_key(&query)
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.read_row(table, key)
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        self.read_rows(table, from, to, limit)
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.tidy(now)
    }

    fn close(&self) -> Result<()> {
        let synced = match self.store("close") {
            Ok(store) => self.sync_store(&store, "close").and_then(|_| self.keep_watermark("close")),
            Err(_) => return Ok(()),
        };
        // Waits for readers and the writer, who hold the lock while they use the store.
        let store = self.store.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Store { kv, directory }) = store {
            match synced {
                Ok(()) => kv.close(),
                Err(_) => drop(kv),
            }
            drop(directory);
        }
        synced
    }
}

//! A store of any engine that can be opened, reopened, killed and, some, cut from power. Every broker over it meets
//! the faults that its [`Faults`] script.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cuemq::storage_api::MemoryStore;
use cuemq::storage_api::fault::{Faults, Gate, Operation};
use cuemq::{AckLevel, Broker, BrokerBuilder, FaultEngine, ManualClock, MemoryEngine};
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings, RetentionSettings};
use tempfile::TempDir;

use super::counting::CountingEngine;
use super::power::{Forgets, PanicAt, PowerEngine};

/// Which engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Memory,
    /// In memory, but with a difference between applied and durable.
    Power,
    Mmap,
    Lsm,
}

/// What a broker is opened over, again and again.
pub(crate) struct Store {
    pub(crate) kind: Kind,
    pub(crate) faults: Faults,
    memory: MemoryStore,
    panic_at: PanicAt,
    forgets: Forgets,
    directory: Mutex<TempDir>,
}

impl Store {
    pub(crate) fn new(kind: Kind) -> Self {
        let directory = Mutex::new(tempfile::tempdir().unwrap());
        Self {
            kind,
            faults: Faults::new(),
            memory: MemoryStore::new(),
            panic_at: PanicAt::default(),
            forgets: None,
            directory,
        }
    }

    /// A store in memory with a planted bug: what is put into a table is not kept.
    pub(crate) fn forgetting(table: &'static str) -> Self {
        Self { forgets: Some(table), ..Self::new(Kind::Power) }
    }

    /// What a broker over an opened engine is made with.
    pub(crate) fn builder(&self) -> BrokerBuilder {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let path = directory.path();
        match self.kind {
            Kind::Memory => self.broker_over(MemoryEngine::open(&self.memory).unwrap()),
            Kind::Power => self.broker_over(PowerEngine(
                MemoryEngine::open(&self.memory).unwrap(),
                self.panic_at.clone(),
                self.forgets,
            )),
            Kind::Mmap => self.broker_over(MmapEngine::open(path, mmap_settings()).unwrap()),
            Kind::Lsm => self.broker_over(LsmEngine::open(path, &lsm_settings()).unwrap()),
        }
    }

    /// An engine that a test looks into while a broker runs over it.
    pub(crate) fn engine(&self) -> Arc<dyn cuemq::Engine> {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        match self.kind {
            Kind::Memory | Kind::Power => Arc::new(MemoryEngine::open(&self.memory).unwrap()),
            Kind::Mmap => Arc::new(MmapEngine::open(directory.path(), mmap_settings()).unwrap()),
            Kind::Lsm => Arc::new(LsmEngine::open(directory.path(), &lsm_settings()).unwrap()),
        }
    }

    /// As [`builder`](Self::builder), over an engine that counts what it hands out to fetches.
    pub(crate) fn counting_builder(&self, fetched: &Arc<AtomicUsize>) -> BrokerBuilder {
        fn counting<E: cuemq::Engine>(inner: E, fetched: &Arc<AtomicUsize>) -> BrokerBuilder {
            Broker::builder(CountingEngine { inner, fetched: Arc::clone(fetched) })
        }
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        match self.kind {
            Kind::Memory | Kind::Power => counting(MemoryEngine::open(&self.memory).unwrap(), fetched),
            Kind::Mmap => counting(MmapEngine::open(directory.path(), mmap_settings()).unwrap(), fetched),
            Kind::Lsm => counting(LsmEngine::open(directory.path(), &lsm_settings()).unwrap(), fetched),
        }
    }

    /// Has the engine panic at an operation; for [`Kind::Power`].
    pub(crate) fn panic_at(&self, operation: Option<Operation>) {
        *self.panic_at.lock().unwrap_or_else(PoisonError::into_inner) = operation;
    }

    /// Opens another engine over the same store, which is refused while a broker has it.
    pub(crate) fn try_engine(&self) -> cuemq::storage_api::Result<()> {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let path = directory.path();
        match self.kind {
            Kind::Memory | Kind::Power => MemoryEngine::open(&self.memory).map(drop),
            Kind::Mmap => MmapEngine::open(path, mmap_settings()).map(drop),
            Kind::Lsm => LsmEngine::open(path, &lsm_settings()).map(drop),
        }
    }

    fn broker_over<E: cuemq::Engine>(&self, engine: E) -> BrokerBuilder {
        Broker::builder(FaultEngine::with_faults(engine, self.faults.clone()))
    }

    pub(crate) async fn open(&self) -> Broker {
        self.builder().open().await.unwrap()
    }

    pub(crate) async fn open_at(&self, clock: &ManualClock) -> Broker {
        self.builder().clock(clock.clock()).open().await.unwrap()
    }

    /// Shuts a broker down and opens the next one.
    pub(crate) async fn reopen(&self, broker: Broker) -> Broker {
        broker.shutdown().await.unwrap();
        self.open().await
    }

    /// Shuts a broker down and opens the next one under the same clock.
    pub(crate) async fn reopen_at(&self, broker: Broker, clock: &ManualClock) -> Broker {
        broker.shutdown().await.unwrap();
        self.open_at(clock).await
    }

    /// Ends a broker as a killed process ends: what was applied is there, nothing is synced or closed.
    pub(crate) async fn kill(&self, broker: Broker) {
        match self.kind {
            Kind::Memory | Kind::Power => self.memory.crash(usize::MAX),
            Kind::Mmap | Kind::Lsm => self.copy_directory(),
        }
        // The old engine finds its store closed, or goes on in a directory that nobody looks at any more.
        let _ = broker.shutdown().await;
    }

    /// As [`kill`](Self::kill), with writes waiting at a gate that never reach the store.
    pub(crate) async fn kill_behind(&self, broker: Broker, gate: Gate) {
        match self.kind {
            Kind::Memory | Kind::Power => self.memory.crash(usize::MAX),
            Kind::Mmap | Kind::Lsm => self.copy_directory(),
        }
        drop(gate);
        let _ = broker.shutdown().await;
    }

    /// Cuts the power while a broker is open: of what was not synced only the first `keep_unsynced` batches survive.
    /// The broker finds its engine closed. For stores in memory.
    pub(crate) fn crash(&self, keep_unsynced: usize) {
        assert!(matches!(self.kind, Kind::Power | Kind::Memory), "only a store in memory can be cut from power");
        self.memory.crash(keep_unsynced);
    }

    /// What the files hold at this moment becomes the store.
    fn copy_directory(&self) {
        let _gates =
            [Operation::Apply, Operation::Sync, Operation::Maintain].map(|operation| self.faults.hold(operation));
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        *directory = copy_of_an_instant(directory.path());
    }

    /// What a durable topic's receipts say on this engine.
    pub(crate) fn durable_level(&self) -> AckLevel {
        if self.kind == Kind::Memory { AckLevel::Memory } else { AckLevel::Durable }
    }

    /// What a buffered topic's receipts say on this engine.
    pub(crate) fn buffered_level(&self) -> AckLevel {
        if self.kind == Kind::Memory { AckLevel::Memory } else { AckLevel::Buffered }
    }
}

/// How often a directory is copied until an engine's own threads have left it alone for as long as that takes.
const COPY_ATTEMPTS: usize = 1000;

/// A copy of all files as they were at one instant, as a kill leaves them. The gates keep the broker from writing, but
/// an engine's threads go on: they write tables and delete what these replace. A copy within which anything changed
/// mixes instants that never were together, so it does not count.
fn copy_of_an_instant(from: &Path) -> TempDir {
    for _ in 0..COPY_ATTEMPTS {
        let copy = tempfile::tempdir().unwrap();
        let attempt = files_of(from).and_then(|before| {
            copy_tree(from, copy.path())?;
            Ok(files_of(from)? == before)
        });
        match attempt {
            Ok(true) => return copy,
            Ok(false) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    }
    panic!("{} changed within each of {COPY_ATTEMPTS} copies", from.display());
}

/// The files below a directory, each with its length and when it was last written.
fn files_of(directory: &Path) -> io::Result<BTreeMap<PathBuf, (u64, SystemTime)>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = path.metadata()?;
        if metadata.is_dir() {
            files.append(&mut files_of(&path)?);
        }
        files.insert(path, (metadata.len(), metadata.modified()?));
    }
    Ok(files)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Files small enough to be made a hundred times a minute.
pub(crate) fn mmap_settings() -> MmapSettings {
    MmapSettings {
        segment_bytes: 8 << 20,
        allocate_step_bytes: 256 << 10,
        consume_queue_entries: 1000,
        index_slots: 1000,
        index_entries: 4000,
        disk_full_percent: 100,
        // However full the disk of whoever runs the tests is: nothing goes for that.
        retention: RetentionSettings { disk_watermark_percent: 100, ..RetentionSettings::default() },
        ..MmapSettings::default()
    }
}

pub(crate) fn lsm_settings() -> LsmSettings {
    LsmSettings {
        memtable_bytes: 4 << 20,
        cache_bytes: 4 << 20,
        worker_threads: 1,
        reserve_bytes: 0,
        disk_watermark_percent: 100,
        ..LsmSettings::default()
    }
}

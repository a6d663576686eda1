//! The laws that every engine keeps, over fjall on real files and over maps that lose what was not synced.

use cuemq_storage_api::conformance::Fixture;
use cuemq_storage_api::{Capabilities, Result, Retention, StorageError};

use crate::disk_space::{DiskSpace, Room};
use crate::engine::LsmEngine;
use crate::kv_engine::{KvEngine, Parts};
use crate::memory_kv::{MemoryDisk, MemoryKv};
use crate::settings::LsmSettings;

/// A temporary directory. A crash is a drop: what the operating system was given stays.
struct TempDirFixture(tempfile::TempDir);

impl Fixture for TempDirFixture {
    type Engine = LsmEngine;

    fn fresh() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open_with(&mut self, retention: Retention) -> Result<LsmEngine> {
        let settings = LsmSettings {
            retention_seconds: retention.age.as_secs(),
            retention_bytes: retention.max_bytes,
            disk_watermark_percent: retention.disk_watermark_percent,
            ..super::small()
        };
        LsmEngine::open(self.0.path(), &settings)
    }

    fn crash(&mut self, engine: LsmEngine, _seed: u64) {
        drop(engine);
    }
}

/// A store in maps whose unsynced batches may be lost.
struct MemoryFixture(MemoryDisk);

/// A disk that never fills.
#[derive(Debug)]
pub(super) struct Endless;

impl DiskSpace for Endless {
    fn room(&self) -> std::io::Result<Room> {
        Ok(Room { total: u64::MAX, free: u64::MAX })
    }
}

/// Opens the engine over a disk in memory.
pub(super) fn open_memory(disk: &MemoryDisk, retention: Retention) -> Result<KvEngine<MemoryKv>> {
    let kv = disk.open().map_err(|error| {
        StorageError::not_stored(error.kind, "open", "the store in memory").with_source(error.source)
    })?;
    let capabilities = Capabilities { name: "maps", durable: true, apply_may_stall: false, zero_copy: false };
    let parts = Parts { capabilities, retention, reserve_bytes: 0, disk: Box::new(Endless), directory: None };
    KvEngine::open(kv, parts)
}

impl Fixture for MemoryFixture {
    type Engine = KvEngine<MemoryKv>;

    fn fresh() -> Self {
        Self(MemoryDisk::default())
    }

    fn open_with(&mut self, retention: Retention) -> Result<Self::Engine> {
        open_memory(&self.0, retention)
    }

    fn crash(&mut self, engine: Self::Engine, seed: u64) {
        drop(engine);
        self.0.crash(usize::try_from(seed % 8).unwrap());
    }
}

mod over_fjall {
    use super::*;
    cuemq_storage_api::conformance_suite!(TempDirFixture);
}

mod over_maps {
    use super::*;
    cuemq_storage_api::conformance_suite!(MemoryFixture);
}

//! The laws of the storage contract, over real files and over files in memory that can lose what was not synced.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cuemq_storage_api::conformance::Fixture;
use cuemq_storage_api::{Result, Retention};
use cuemq_storage_mmap::files::MemoryFiles;
use cuemq_storage_mmap::files::memory::{NothingUnsynced, SeededChoices};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

const SMALL_SEGMENT_BYTES: usize = 128 << 10;

/// Settings under which small tests fill segments, consume-queue files and index files, and write checkpoints.
fn small(segment_bytes: u64, retention: Retention) -> MmapSettings {
    MmapSettings {
        segment_bytes,
        allocate_step_bytes: 16 << 10,
        prepare_bytes: 64 << 10,
        consume_queue_entries: 50,
        index_slots: 64,
        index_entries: 256,
        retention: retention.into(),
        disk_full_percent: 100,
        checkpoint_after_bytes: 8 << 10,
        table_memory_bytes: 8 << 10,
    }
}

fn is_default(retention: &Retention) -> bool {
    let Retention { age, max_bytes, .. } = Retention::default();
    (retention.age, retention.max_bytes) == (age, max_bytes)
}

/// Segments that hold the largest batch, unless the case is about what expires.
fn settings(retention: Retention, fixed: &mut Option<u64>) -> MmapSettings {
    let wanted = if is_default(&retention) { 256 << 20 } else { SMALL_SEGMENT_BYTES as u64 };
    small(*fixed.get_or_insert(wanted), retention)
}

/// A temporary directory. A crash ends the process only: all that was written stays.
struct RealDirectory {
    home: tempfile::TempDir,
    store: PathBuf,
    crashes: u32,
    segment_bytes: Option<u64>,
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

impl Fixture for RealDirectory {
    type Engine = MmapEngine;
    const EXPIRY_GRAIN_BYTES: usize = SMALL_SEGMENT_BYTES;

    fn fresh() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = home.path().join("store");
        Self { home, store, crashes: 0, segment_bytes: None }
    }

    fn open_with(&mut self, retention: Retention) -> Result<MmapEngine> {
        MmapEngine::open(&self.store, settings(retention, &mut self.segment_bytes))
    }

    fn crash(&mut self, engine: MmapEngine, _seed: u64) {
        self.crashes += 1;
        let survivor = self.home.path().join(format!("after-crash-{}", self.crashes));
        copy(&self.store, &survivor);
        drop(engine);
        std::fs::remove_dir_all(&self.store).unwrap();
        self.store = survivor;
    }
}

/// Files in memory, mapped for stores or not. A crash is a power cut: some of what was not synced is gone.
struct PowerCut<const MAPPED: bool> {
    files: MemoryFiles,
    segment_bytes: Option<u64>,
}

impl<const MAPPED: bool> Fixture for PowerCut<MAPPED> {
    type Engine = MmapEngine;
    const EXPIRY_GRAIN_BYTES: usize = SMALL_SEGMENT_BYTES;

    fn fresh() -> Self {
        Self { files: MemoryFiles::new(), segment_bytes: None }
    }

    fn open_with(&mut self, retention: Retention) -> Result<MmapEngine> {
        let files = self.files.clone();
        let files = if MAPPED { files.mapped_for_writing() } else { files };
        MmapEngine::open_with(Arc::new(files), settings(retention, &mut self.segment_bytes))
    }

    fn crash(&mut self, engine: MmapEngine, seed: u64) {
        let survivor = match seed {
            0 => self.files.crash(&mut NothingUnsynced),
            seed => self.files.crash(&mut SeededChoices::new(seed)),
        };
        drop(engine);
        self.files = survivor;
    }
}

mod over_real_files {
    use super::*;
    cuemq_storage_api::conformance_suite!(RealDirectory);
}

mod over_power_cuts {
    use super::*;
    cuemq_storage_api::conformance_suite!(PowerCut<false>);
}

mod over_power_cuts_of_mapped_files {
    use super::*;
    cuemq_storage_api::conformance_suite!(PowerCut<true>);
}

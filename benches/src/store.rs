//! Opens the engines, raw or under a broker, all with the same settings wherever the same is measured.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;

use cuemq::{Broker, Flush, MemoryEngine};
use cuemq_storage_api::Engine;
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use rustix::fs::{FallocateFlags, fallocate};

use crate::Result;
use crate::profile::Profile;

/// A file of so many bytes takes longer to write than to empty; segments of a log are larger.
const LARGE_BYTES: u64 = 16 << 20;

/// An engine to compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum EngineKind {
    /// The reference: keeps nothing, so it is no competitor.
    Memory,
    /// The commit log.
    Mmap,
    /// The LSM tree.
    Lsm,
}

impl EngineKind {
    /// All engines in the order of the report.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Mmap, Self::Lsm];

    /// Its short name, as in its capabilities.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Mmap => "mmap",
            Self::Lsm => "lsm",
        }
    }

    /// Opens the raw engine in a directory; the in-memory one is always new.
    ///
    /// # Errors
    /// Whatever the engine meets.
    pub fn open(self, directory: &Path, profile: &Profile) -> Result<Box<dyn Engine>> {
        Ok(match self {
            Self::Memory => Box::new(MemoryEngine::new()),
            Self::Mmap => Box::new(MmapEngine::open(directory, MmapSettings::default())?),
            Self::Lsm => Box::new(LsmEngine::open(directory, &lsm_settings(profile))?),
        })
    }

    /// Closes a store whose files nobody reads again. Those of the map engine are emptied before: else the disk would write
    /// for seconds what is removed right after, for every second of appends.
    ///
    /// # Errors
    /// Whatever the engine meets, or when a file cannot be emptied.
    pub fn discard(self, engine: &dyn Engine, directory: &Path) -> Result<()> {
        self.empty_files(directory)?;
        Ok(engine.close()?)
    }

    /// Has the system forget what the files of a store hold that is about to be closed and removed. Their lengths stay, so
    /// what is mapped stays readable, as zeros. Does nothing for engines that read their files while they close, and leaves
    /// small files alone, which are sooner written than emptied.
    ///
    /// # Errors
    /// When a file cannot be emptied.
    pub fn empty_files(self, directory: &Path) -> Result<()> {
        if self == Self::Mmap { empty(directory) } else { Ok(()) }
    }

    /// Opens a broker over the engine in a directory.
    ///
    /// # Errors
    /// Whatever engine or broker meet.
    pub async fn open_broker(self, directory: &Path, profile: &Profile, flush: Flush) -> Result<Broker> {
        let builder = match self {
            Self::Memory => Broker::builder(MemoryEngine::new()),
            Self::Mmap => Broker::builder(MmapEngine::open(directory, MmapSettings::default())?),
            Self::Lsm => Broker::builder(LsmEngine::open(directory, &lsm_settings(profile))?),
        };
        Ok(builder.flush(flush).open().await?)
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn empty(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            empty(&entry.path())?;
            continue;
        }
        let file = OpenOptions::new().write(true).open(entry.path())?;
        let length = file.metadata()?.len();
        if length >= LARGE_BYTES {
            fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, length)?;
        }
    }
    Ok(())
}

fn lsm_settings(profile: &Profile) -> LsmSettings {
    LsmSettings { memtable_bytes: profile.lsm_memtable_bytes, ..LsmSettings::default() }
}

/// What differs from the engines' defaults, for the report.
#[must_use]
pub fn settings_text(profile: &Profile) -> String {
    format!(
        "lsm: memtable of {} MiB; all else as by default. A fresh store replaces one that has {} MiB of bodies.",
        lsm_settings(profile).memtable_bytes >> 20,
        profile.store_bytes >> 20
    )
}

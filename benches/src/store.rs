//! Opens the engines, raw or under a broker, all with the same settings wherever the same is measured.

use std::fmt;
use std::path::Path;

use cuemq::{Broker, Flush, MemoryEngine};
use cuemq_storage_api::Engine;
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

use crate::Result;
use crate::profile::Profile;

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

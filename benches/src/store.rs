//! Opens the engines, raw or under a broker, all with the same settings wherever the same is measured.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;

use cuemq::{Broker, Flush, MemoryEngine};
use cuemq_storage_api::Engine;
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::Result;
use crate::place::files_below;
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
        if self != Self::Mmap {
            return Ok(());
        }
        for path in files_below(directory)? {
            let file = OpenOptions::new().write(true).open(path)?;
            let length = file.metadata()?.len();
            if length < LARGE_BYTES {
                continue;
            }
            match fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, length) {
                // A file system that cannot do so writes the file, which only takes longer.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::fetch::load;
    use crate::workload::Bodies;
    use std::os::unix::fs::FileExt;

    fn front_of_log(directory: &Path) -> Vec<u8> {
        let segment = std::fs::read_dir(directory.join("commitlog")).unwrap().next().unwrap().unwrap();
        let mut front = vec![0; 1024];
        std::fs::File::open(segment.path()).unwrap().read_exact_at(&mut front, 0).unwrap();
        front
    }

    #[test]
    fn a_discarded_store_is_closed_and_its_log_is_empty() {
        let home = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let engine = EngineKind::Mmap.open(home.path(), &Profile::tiny()).unwrap();
        load(&*engine, &Bodies::new(1024), 20_000).unwrap();
        assert_ne!(front_of_log(home.path()), [0; 1024]);
        EngineKind::Mmap.discard(&*engine, home.path()).unwrap();
        assert!(engine.sync().is_err(), "it is closed");
        assert_eq!(front_of_log(home.path()), [0; 1024]);
    }

    #[test]
    fn files_that_are_read_while_a_store_closes_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("table");
        std::fs::write(&file, vec![7; usize::try_from(LARGE_BYTES).unwrap()]).unwrap();
        EngineKind::Lsm.empty_files(home.path()).unwrap();
        assert!(std::fs::read(&file).unwrap().iter().all(|byte| *byte == 7));
        EngineKind::Mmap.empty_files(home.path()).unwrap();
        assert!(std::fs::read(&file).unwrap().iter().all(|byte| *byte == 0));
    }
}

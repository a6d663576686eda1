//! Which engine, where, and how safely: the arguments that the programs share.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use cuemq::storage_api::ErrorKind;
use cuemq::{Broker, BrokerBuilder, Flush, MemoryEngine};
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

/// Where data lies unless the arguments say otherwise.
const DEFAULT_DIRECTORY: &str = "./cuemq-data";

/// The storage engines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum EngineKind {
    /// A commit log in files that are mapped for reading.
    Mmap,
    /// An LSM tree (fjall).
    Lsm,
    /// Nothing on disk: everything is gone with the process.
    Memory,
}

/// When a send is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FlushKind {
    /// Once it survives a power cut.
    Durable,
    /// Once the operating system has it: survives the process, not the machine.
    Buffered,
}

impl From<FlushKind> for Flush {
    fn from(kind: FlushKind) -> Self {
        match kind {
            FlushKind::Durable => Self::Durable,
            FlushKind::Buffered => Self::Buffered,
        }
    }
}

/// The store of a program.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct StoreArguments {
    /// The storage engine
    #[arg(long, value_enum, default_value = "mmap")]
    pub engine: EngineKind,
    /// The data directory; made if need be, not used by the memory engine
    #[arg(long, default_value = DEFAULT_DIRECTORY)]
    pub dir: PathBuf,
    /// When a send is acknowledged
    #[arg(long, value_enum, default_value = "durable")]
    pub flush: FlushKind,
}

impl StoreArguments {
    /// Opens the engine, with a builder of a broker over it that has the chosen flush mode. Blocks while a long log is
    /// read back.
    ///
    /// # Errors
    /// Names the directory, the cause and what to do.
    pub fn builder(&self) -> Result<BrokerBuilder> {
        let opened = match self.engine {
            EngineKind::Mmap => MmapEngine::open(&self.dir, MmapSettings::default()).map(Broker::builder),
            EngineKind::Lsm => LsmEngine::open(&self.dir, &LsmSettings::default()).map(Broker::builder),
            EngineKind::Memory => Ok(Broker::builder(MemoryEngine::new())),
        };
        let builder = opened.map_err(|error| {
            let advice = advice_for(error.kind());
            anyhow::Error::new(error).context(format!("{} cannot be opened: {advice}", self.place()))
        })?;
        Ok(builder.flush(self.flush.into()))
    }

    /// Opens a broker with default settings.
    ///
    /// # Errors
    /// As [`builder`](StoreArguments::builder).
    pub async fn open(&self) -> Result<Broker> {
        self.builder()?.open().await.with_context(|| format!("the broker over {} cannot start", self.place()))
    }

    /// Where messages lie, for people.
    #[must_use]
    pub fn place(&self) -> String {
        match self.engine {
            EngineKind::Memory => "memory (gone with the process)".to_owned(),
            EngineKind::Mmap | EngineKind::Lsm => self.dir.display().to_string(),
        }
    }

    /// The engine's name, as `--engine` takes it.
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        match self.engine {
            EngineKind::Mmap => "mmap",
            EngineKind::Lsm => "lsm",
            EngineKind::Memory => "memory",
        }
    }

    /// The arguments that make another program use the same store; empty for the defaults, else with a space in front.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if self.engine != EngineKind::Mmap {
            text.push_str(&format!(" --engine {}", self.engine_name()));
        }
        if self.dir.as_path() != Path::new(DEFAULT_DIRECTORY) {
            text.push_str(&format!(" --dir {}", self.dir.display()));
        }
        text
    }
}

fn advice_for(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Locked => "another process has it open; end that one, or give another directory with --dir",
        ErrorKind::Version => {
            "it holds another engine's or version's store, or none; choose the engine with --engine, or a directory with --dir"
        }
        ErrorKind::Corrupt => "its files are damaged; restore them, or give another directory with --dir",
        ErrorKind::Full => "the disk is full; free some room",
        _ => "see the cause below",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_opening_is_refused_with_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        for engine in [EngineKind::Mmap, EngineKind::Lsm] {
            let dir = directory.path().join(format!("{engine:?}"));
            let store = StoreArguments { engine, dir: dir.clone(), flush: FlushKind::Durable };
            let first = store.open().await.unwrap();
            let error = store.open().await.unwrap_err().to_string();
            assert!(error.contains(&dir.display().to_string()), "{error}");
            assert!(error.contains("another process has it open") && error.contains("--dir"), "{error}");
            first.shutdown().await.unwrap();
            store.open().await.unwrap().shutdown().await.unwrap();
        }
    }

    #[tokio::test]
    async fn another_engines_directory_is_refused_with_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        let store = |engine| StoreArguments { engine, dir: directory.path().to_owned(), flush: FlushKind::Durable };
        store(EngineKind::Mmap).open().await.unwrap().shutdown().await.unwrap();
        let error = store(EngineKind::Lsm).open().await.unwrap_err().to_string();
        assert!(error.contains("--engine"), "{error}");
    }
}

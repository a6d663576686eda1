//! Where benchmarks keep their stores.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Result;

/// Chooses the directory for stores; by default it lies in the target directory.
pub const DIRECTORY_VARIABLE: &str = "CUEMQ_BENCH_DIR";

/// The directory that holds all stores of a run, each in a folder that is removed after use.
#[derive(Clone, Debug)]
pub struct Place {
    directory: PathBuf,
}

impl Place {
    /// The directory that `CUEMQ_BENCH_DIR` names, or else `bench-data` in the target directory; made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn from_environment(target: &Path) -> Result<Self> {
        let directory = std::env::var_os(DIRECTORY_VARIABLE).filter(|name| !name.is_empty());
        Self::at(directory.map_or_else(|| target.join("bench-data"), PathBuf::from))
    }

    /// A directory of the caller's choice; made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)
            .map_err(|error| format!("the directory {} cannot be made: {error}", directory.display()))?;
        Ok(Self { directory })
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new folder, removed when the value is dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("store-").tempdir_in(&self.directory)?)
    }
}

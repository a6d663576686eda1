//! The only place in the broker that names an engine: the short way for those who take the default.

use std::path::{Path, PathBuf};

use cuemq_storage_api::StorageError;
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use tokio::sync::oneshot;

use crate::broker::Broker;
use crate::error::{Error, ErrorKind, Result};

impl Broker {
    /// Opens a broker with default settings over the commit-log engine in a directory, which is made if need be. Use
    /// [`Broker::builder`] for another engine or other settings.
    ///
    /// # Errors
    /// `NotStored` when another process holds the directory; `Corrupt` names a damaged file.
    pub async fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let engine = open_engine(directory.as_ref().to_owned()).await?;
        Self::builder(engine).open().await
    }

    /// Opens a broker over the commit-log engine in a new temporary directory, which is removed when the broker ends.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub async fn temp() -> Result<Self> {
        let directory = tempfile::tempdir()
            .map_err(|e| Error::new(ErrorKind::NotStored, format!("no temporary directory: {e}")))?;
        let engine = open_engine(directory.path().to_owned()).await?;
        Self::builder(engine).keep(directory).open().await
    }
}

/// Opening may scan a long log, so it is done on a thread of its own.
#[expect(clippy::disallowed_methods, reason = "ends by itself with the opening")]
async fn open_engine(directory: PathBuf) -> Result<MmapEngine> {
    let (sender, receiver) = oneshot::channel::<std::result::Result<MmapEngine, StorageError>>();
    let open = move || {
        // The caller may have gone away; then the engine closes again.
        let _ = sender.send(MmapEngine::open(directory, MmapSettings::default()));
    };
    let thread = std::thread::Builder::new().name("cuemq-open".into()).spawn(open);
    thread.map_err(|e| Error::new(ErrorKind::NotStored, format!("no thread to open the engine: {e}")))?;
    Ok(receiver.await.map_err(|_| Error::new(ErrorKind::Corrupt, "the engine panicked while it was opened"))??)
}

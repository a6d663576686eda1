//! The engine's directory: who owns it, which format it has, what lies in it.
//!
//! ```text
//! FORMAT           "cuemq-lsm 1\n"
//! LOCK             empty; locked by the process that has the store open
//! watermark        how far the store was durable
//! store/           fjall's own files
//! journals.kept/   the journals as they were before an opening that is not finished or was refused
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cuemq_storage_api::{ErrorKind, Result, StorageError};

use crate::journals::Journals;
use crate::watermark;

const FORMAT_FILE: &str = "FORMAT";
const NEW_FORMAT_FILE: &str = "FORMAT.new";
const LOCK_FILE: &str = "LOCK";
const STORE: &str = "store";
const KEPT_JOURNALS: &str = "journals.kept";
/// The file that fjall writes last when it makes a database.
const STORE_MARKER: &str = "version";
const FORMAT_NAME: &str = "cuemq-lsm";
/// The one format that this version reads and writes.
const FORMAT_VERSION: u32 = 1;

/// A directory that nobody else has open. Dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if there is none, checks that it is ours to open, and locks it.
    ///
    /// # Errors
    /// `Version` for another format, before anything is touched; `Locked` while another handle has it open; `Io`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io_error = |error: io::Error| {
            StorageError::not_stored(ErrorKind::Io, "open", format!("directory {}", path.display())).with_source(error)
        };
        fs::create_dir_all(path).map_err(io_error)?;
        check_format(path)?;
        let lock = lock(path)?;
        if !check_format(path)? {
            write_format(path).map_err(io_error)?;
        }
        let directory = Self { path: path.to_owned(), _lock: lock };
        directory.discard_half_made_store()?;
        Ok(directory)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the ordered store lies.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Puts the journals aside as they are. Best effort: a full disk must not keep a store from being opened.
    pub(crate) fn keep_journals(&self) {
        if let Err(error) = Journals::new(&self.store()).keep(&self.path.join(KEPT_JOURNALS)) {
            tracing::warn!(%error, "the journals could not be copied before the store is opened");
        }
    }

    /// Where the journals are that were put aside, for the text of an error.
    pub(crate) fn kept_journals(&self) -> String {
        let kept = self.path.join(KEPT_JOURNALS);
        match kept.try_exists() {
            Ok(true) => format!(" (its journals as they were are in {})", kept.display()),
            _ => String::new(),
        }
    }

    /// Removes the journals that were put aside: the store was opened and nothing is missing.
    pub(crate) fn drop_kept_journals(&self) {
        match fs::remove_dir_all(self.path.join(KEPT_JOURNALS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the copy of the journals could not be removed");
            }
            _ => {}
        }
    }

    /// Whether the store was whole once: the watermark is made right after it.
    pub(crate) fn store_was_made(&self) -> Result<bool> {
        let watermark = self.path.join(watermark::FILE_NAME);
        watermark.try_exists().map_err(|error| self.io_error(&watermark, error))
    }

    /// The watermark is made once the store stands, so without one nothing was ever stored: what a crash left of the
    /// making of the store can go. fjall itself could not open it.
    fn discard_half_made_store(&self) -> Result<()> {
        let store = self.store();
        let exists = |path: &Path| path.try_exists().map_err(|error| self.io_error(path, error));
        if !exists(&store)? || exists(&store.join(STORE_MARKER))? {
            return Ok(());
        }
        if self.store_was_made()? {
            let context = format!("{} lacks its file {STORE_MARKER:?}: restore a copy", store.display());
            return Err(StorageError::not_stored(ErrorKind::Corrupt, "open", context));
        }
        fs::remove_dir_all(&store).map_err(|error| self.io_error(&store, error))
    }

    fn io_error(&self, path: &Path, error: io::Error) -> StorageError {
        StorageError::not_stored(ErrorKind::Io, "open", path.display().to_string()).with_source(error)
    }
}

/// Whether the format file is there; refuses another format, and a directory that holds something else.
fn check_format(path: &Path) -> Result<bool> {
    let version_error = |found: String| {
        let context = format!(
            "{} {found}; this version opens {FORMAT_NAME} {FORMAT_VERSION}: choose another directory or version",
            path.display()
        );
        StorageError::not_stored(ErrorKind::Version, "open", context)
    };
    let io_error = |error: io::Error| {
        StorageError::not_stored(ErrorKind::Io, "open", format!("directory {}", path.display())).with_source(error)
    };
    match fs::read(path.join(FORMAT_FILE)) {
        Ok(found) if found == format_line().as_bytes() => Ok(true),
        Ok(found) => {
            let shown = String::from_utf8_lossy(&found[..found.len().min(64)]).trim_end().to_owned();
            Err(version_error(format!("has the format {shown:?}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for entry in fs::read_dir(path).map_err(io_error)? {
                let name = entry.map_err(io_error)?.file_name();
                if name != LOCK_FILE && name != NEW_FORMAT_FILE {
                    return Err(version_error(format!("has no file {FORMAT_FILE} but {}", name.display())));
                }
            }
            Ok(false)
        }
        Err(error) => Err(io_error(error)),
    }
}

fn format_line() -> String {
    format!("{FORMAT_NAME} {FORMAT_VERSION}\n")
}

fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join(NEW_FORMAT_FILE);
    let mut file = File::create(&new)?;
    file.write_all(format_line().as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path.join(FORMAT_FILE))?;
    File::open(path)?.sync_all()?;
    // The directory itself may be new.
    File::open(path.join(".."))?.sync_all()
}

fn lock(path: &Path) -> Result<File> {
    let lock_path = path.join(LOCK_FILE);
    let io_error = |error: io::Error| {
        StorageError::not_stored(ErrorKind::Io, "open", lock_path.display().to_string()).with_source(error)
    };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let context =
                format!("{} is open elsewhere: close that handle or process, or use another directory", path.display());
            Err(StorageError::not_stored(ErrorKind::Locked, "open", context))
        }
        Err(TryLockError::Error(error)) => Err(io_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_handle_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = Directory::open(root.path()).unwrap();
        let error = Directory::open(root.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(error.context().contains(&root.path().display().to_string()), "{error}");
        drop(first);
        Directory::open(root.path()).unwrap();
    }

    #[test]
    fn other_formats_are_refused_untouched() {
        for (name, content) in [
            (FORMAT_FILE, "cuemq-lsm 2\n"),
            (FORMAT_FILE, ""),
            ("photo.jpg", "foreign"),
            (FORMAT_FILE, "cuemq-lsm 10\n"),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(name), content).unwrap();
            let error = Directory::open(root.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Version, "{error}");
            assert!(error.context().contains("cuemq-lsm 1"), "{error}");
            assert_eq!(names(root.path()), [name]);
            assert_eq!(fs::read_to_string(root.path().join(name)).unwrap(), content);
        }
    }

    #[test]
    fn a_crash_while_the_directory_was_made_does_no_harm() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(LOCK_FILE), "").unwrap();
        fs::write(root.path().join(NEW_FORMAT_FILE), "cuem").unwrap();
        let directory = Directory::open(root.path()).unwrap();
        fs::create_dir(directory.store()).unwrap();
        fs::write(directory.store().join("0.jnl"), "").unwrap();
        drop(directory);
        let directory = Directory::open(root.path()).unwrap();
        assert!(!directory.store().exists(), "what is left of a store that was never finished goes");

        fs::create_dir(directory.store()).unwrap();
        fs::write(root.path().join(watermark::FILE_NAME), "").unwrap();
        drop(directory);
        assert_eq!(Directory::open(root.path()).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

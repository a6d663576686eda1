//! Where benchmarks keep their stores.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use tempfile::TempDir;

use crate::Result;

/// Chooses the directory for stores; by default it lies in the target directory.
pub const DIRECTORY_VARIABLE: &str = "CUEMQ_BENCH_DIR";

/// Ends the name of the file that a run keeps locked while it lasts, beside its directory of the same name.
const LOCK_EXTENSION: &str = "lock";

/// Zeros are written in steps of this, in which the map engine fills room: so the system takes pages in blocks of the same
/// size.
const FILL_STEP_BYTES: usize = 256 << 10;
static ZEROS: [u8; FILL_STEP_BYTES] = [0; FILL_STEP_BYTES];

/// The directory that holds all stores of a run, each in a folder that is removed after use. What is left of a run that
/// was killed is removed by the next one in the same place.
#[derive(Clone, Debug)]
pub struct Place {
    run: Arc<Run>,
}

#[derive(Debug)]
struct Run {
    // Before the lock, so that it is gone when somebody else may look for it.
    directory: TempDir,
    _lock: Lock,
}

#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(path: PathBuf) -> Result<Self> {
        let file = File::create(&path)?;
        file.try_lock()?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What stays is an empty file, which the next run removes.
        let _ = std::fs::remove_file(&self.path);
    }
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
    /// When it cannot be made, or looked through for what killed runs have left.
    pub fn at(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)
            .map_err(|error| format!("the directory {} cannot be made: {error}", directory.display()))?;
        sweep(&directory)
            .map_err(|error| format!("what is left in {} cannot be removed: {error}", directory.display()))?;
        let own = tempfile::Builder::new().prefix("run-").tempdir_in(&directory)?;
        let lock = Lock::take(own.path().with_extension(LOCK_EXTENSION))?;
        Ok(Self { run: Arc::new(Run { directory: own, _lock: lock }) })
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.run.directory.path()
    }

    /// A new folder, removed when the value is dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("store-").tempdir_in(self.directory())?)
    }

    /// Has the system take the pages of a file of so many bytes, and give them back. A guest may have given memory that
    /// lay free for seconds back to its host: then a page that is taken anew costs five to twenty times what writing it
    /// costs, by chance. What a path writes next gets pages that were just in use, as on a machine of its own.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn touch_pages(&self, bytes: u64) -> Result<()> {
        let file = tempfile::tempfile_in(self.directory())?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes.max(1))?;
        fill(&file, 0..bytes)
    }
}

/// Fills a part of a file with zeros, and at most a step behind it.
pub(crate) fn fill(file: &File, part: Range<u64>) -> Result<()> {
    for at in part.step_by(FILL_STEP_BYTES) {
        file.write_all_at(&ZEROS, at)?;
    }
    Ok(())
}

/// All files below a directory, sorted.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let found = if entry.file_type()?.is_dir() { &mut directories } else { &mut files };
            found.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Removes the directories of runs that have ended without doing so.
fn sweep(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let lock = entry?.path();
        if lock.extension() != Some(OsStr::new(LOCK_EXTENSION)) {
            continue;
        }
        // A run that has just ended may have taken it away.
        let Ok(file) = File::open(&lock) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        match std::fs::remove_dir_all(lock.with_extension("")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::remove_file(&lock)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_a_living_one_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let living = Place::at(home.path().to_owned()).unwrap();
        let store = living.folder().unwrap();
        // As a kill leaves it: the files are there and nobody has locked them.
        let killed = home.path().join("run-killed");
        std::fs::create_dir_all(killed.join("store-1")).unwrap();
        std::fs::write(killed.with_extension(LOCK_EXTENSION), "").unwrap();
        let foreign = home.path().join("somebody's");
        std::fs::create_dir(&foreign).unwrap();
        let next = Place::at(home.path().to_owned()).unwrap();
        assert!(!killed.exists() && store.path().exists() && foreign.exists());
        drop(next);
        assert_eq!(names(home.path()), 3, "the living run, its lock, and what is not ours");
        drop(store);
        assert_eq!(names(living.directory()), 0);
        drop(living);
        assert_eq!(names(home.path()), 1);
    }
}

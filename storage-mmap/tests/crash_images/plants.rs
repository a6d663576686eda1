//! Planted bugs: layers that do to the files what a broken engine or disk would. The checker must see each.

use std::io;
use std::sync::Arc;

use cuemq_storage_mmap::files::memory::{FaultEffect, FaultTarget, FileCall};
use cuemq_storage_mmap::files::{DiskSpace, FileLayer, LayerFile, LockGuard, MappedRegion, MemoryFiles, OpenMode};

/// A disk that says it synced and did not.
pub(crate) fn no_sync(files: MemoryFiles) -> Arc<dyn FileLayer> {
    files.fail(FaultTarget::Every(FileCall::SyncData), FaultEffect::Pretend);
    Arc::new(files)
}

/// An engine that leaves a torn end of its log where it is.
pub(crate) fn no_zeroing(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(Planted { files, bug: Bug::NoZeroing })
}

/// An engine that does not count its openings.
pub(crate) fn no_new_epoch(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(Planted { files, bug: Bug::NoNewEpoch })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    NoZeroing,
    NoNewEpoch,
}

#[derive(Debug)]
struct Planted {
    files: MemoryFiles,
    bug: Bug,
}

impl FileLayer for Planted {
    fn create_directory(&self, path: &str) -> io::Result<()> {
        self.files.create_directory(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.files.list(path)
    }
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        let file = self.files.open(path, mode)?;
        let is_log = path.starts_with("commitlog/");
        if self.bug == Bug::NoZeroing && is_log { Ok(Arc::new(NeverZeroed(file))) } else { Ok(file) }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let is_known = || self.files.open(to, OpenMode::Existing).is_ok();
        if self.bug == Bug::NoNewEpoch && to == "MANIFEST" && is_known() {
            return self.files.remove(from);
        }
        self.files.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.files.remove(path)
    }
    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.files.remove_directory(path)
    }
    fn sync_directory(&self, path: &str) -> io::Result<()> {
        self.files.sync_directory(path)
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn LockGuard>> {
        self.files.lock(path)
    }
    fn disk_space(&self) -> io::Result<DiskSpace> {
        self.files.disk_space()
    }
    fn describe(&self) -> String {
        self.files.describe()
    }
}

#[derive(Debug)]
struct NeverZeroed(Arc<dyn LayerFile>);

impl LayerFile for NeverZeroed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        if pieces.iter().all(|piece| piece.iter().all(|byte| *byte == 0)) {
            return Ok(());
        }
        self.0.write_at(offset, pieces)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn drop_cache(&self) {
        self.0.drop_cache();
    }
    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedRegion>> {
        self.0.map(len)
    }
}

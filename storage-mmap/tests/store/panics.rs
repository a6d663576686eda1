//! A panic in the middle of a write: nothing of it is seen, nothing is written after it, the store opens again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use cuemq_storage_api::ErrorKind;
use cuemq_storage_mmap::files::{DiskSpace, LayerFile, LockGuard, MappedRegion};

/// Files in memory whose writes panic, after they landed, while the switch is on.
#[derive(Clone, Debug)]
struct PanickingFiles {
    files: MemoryFiles,
    panics: Arc<AtomicBool>,
}

#[derive(Debug)]
struct PanickingFile {
    file: Arc<dyn LayerFile>,
    panics: Arc<AtomicBool>,
}

impl FileLayer for PanickingFiles {
    fn create_directory(&self, path: &str) -> io::Result<()> {
        self.files.create_directory(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.files.list(path)
    }
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        Ok(Arc::new(PanickingFile { file: self.files.open(path, mode)?, panics: Arc::clone(&self.panics) }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
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

impl LayerFile for PanickingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.file.write_at(offset, pieces)?;
        assert!(!self.panics.load(Ordering::Relaxed), "the panic that the test asked for");
        Ok(())
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn drop_cache(&self, from: u64) {
        self.file.drop_cache(from);
    }
    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedRegion>> {
        self.file.map(len)
    }
}

#[test]
fn a_panic_while_writing_shows_nothing_and_ends_all_writes() {
    let files = PanickingFiles { files: MemoryFiles::new(), panics: Arc::default() };
    let engine = MmapEngine::open_with(Arc::new(files.clone()), settings()).unwrap();
    append_many(&engine, &orders(), 0..5);
    engine.sync().unwrap();
    files.panics.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| append(&engine, &orders(), 5))).is_err());
    files.panics.store(false, Ordering::Relaxed);
    assert_whole(&engine, &orders(), 5);
    assert_eq!(append(&engine, &orders(), 5).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(engine.sync().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
    drop(engine);
    let engine = open(&files.files);
    // The frame landed whole before the panic, so its outcome was unknown and it is there.
    assert_whole(&engine, &orders(), 6);
    append_many(&engine, &orders(), 6..10);
    assert_whole(&engine, &orders(), 10);
}

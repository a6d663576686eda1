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
    hand_on!(files: create_directory, list, rename, remove, remove_directory, sync_directory, lock, disk_space, describe);
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        Ok(Arc::new(PanickingFile { file: self.files.open(path, mode)?, panics: Arc::clone(&self.panics) }))
    }
}

impl LayerFile for PanickingFile {
    hand_on!(file: len, read_at, allocate, set_len, sync_data, drop_cache, map);
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.file.write_at(offset, pieces)?;
        assert!(!self.panics.load(Ordering::Relaxed), "the panic that the test asked for");
        Ok(())
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

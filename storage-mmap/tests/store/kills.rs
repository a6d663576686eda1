//! Opening what a process left on real files that could not close: what is read, by one thread or by two.

use std::io;
use std::mem;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use cuemq_storage_api::ErrorKind;
use cuemq_storage_mmap::files::{DiskSpace, LayerFile, LockGuard, MappedRegion, RealFiles};

const LOG_SEGMENT_BYTES: u64 = 4 << 20;

/// Real files that count what is read of them, and may end to answer. Nobody is locked out, so that a store can be opened
/// beside an engine that was forgotten, as if its process had been killed.
#[derive(Clone, Debug)]
struct CountingFiles {
    files: Arc<RealFiles>,
    read: Arc<AtomicU64>,
    /// Reads fail once so many bytes were read.
    fails_from: u64,
    works_beside: bool,
}

impl CountingFiles {
    fn open(directory: &Path, works_beside: bool) -> Self {
        let files = Arc::new(RealFiles::open(directory).unwrap());
        Self { files, read: Arc::default(), fails_from: u64::MAX, works_beside }
    }
}

#[derive(Debug)]
struct NoLock;

impl LockGuard for NoLock {}

#[derive(Debug)]
struct CountingFile {
    file: Arc<dyn LayerFile>,
    files: CountingFiles,
}

impl FileLayer for CountingFiles {
    hand_on!(files: create_directory, list, rename, remove, remove_directory, sync_directory, disk_space, describe);
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        Ok(Arc::new(CountingFile { file: self.files.open(path, mode)?, files: self.clone() }))
    }
    fn lock(&self, _path: &str) -> io::Result<Box<dyn LockGuard>> {
        Ok(Box::new(NoLock))
    }
    fn works_beside(&self) -> bool {
        self.works_beside
    }
}

impl LayerFile for CountingFile {
    hand_on!(file: len, write_at, allocate, data_from, read_ahead, set_len, sync_data, drop_cache, map);
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let before = self.files.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        if before >= self.files.fails_from {
            return Err(io::Error::other("the disk does not answer"));
        }
        self.file.read_at(offset, buffer)
    }
}

fn long_settings(segment_bytes: u64) -> MmapSettings {
    MmapSettings { segment_bytes, allocate_step_bytes: segment_bytes, consume_queue_entries: 10_000, ..settings() }
}

/// Records whose frames are read many at a time, one at a time, and as one that is too long to be read ahead.
fn long_record(number: u64) -> Record {
    let len = match number % 1000 {
        999 => 1_200_000,
        500 => 300_000,
        short => 100 + usize::try_from(short % 50).unwrap(),
    };
    let byte = u8::try_from(number % 251).unwrap();
    Record::new(vec![byte; len], Timestamp::from_millis(i64::try_from(number).unwrap()))
}

/// A store of so many records whose process was killed once all of them were durable.
fn leave_behind(directory: &Path, segment_bytes: u64, records: u64) {
    let files = Arc::new(CountingFiles::open(directory, false));
    let engine = MmapEngine::open_with(files, long_settings(segment_bytes)).unwrap();
    let mut number = 0;
    while number < records {
        let count = 100.min(records - number);
        let mut batch = WriteBatch::new(Timestamp::from_millis(1));
        batch.append_all(&orders(), (number..number + count).map(long_record).collect());
        engine.apply(batch).unwrap();
        number += count;
    }
    engine.sync().unwrap();
    // As a broker does each second: it notes how far the log is durable.
    engine.maintain(Timestamp::from_millis(1)).unwrap();
    mem::forget(engine);
}

fn open_counted(files: &CountingFiles, segment_bytes: u64) -> Result<MmapEngine, StorageError> {
    MmapEngine::open_with(Arc::new(files.clone()), long_settings(segment_bytes))
}

fn assert_long(engine: &MmapEngine, records: u64) {
    assert_eq!(engine.bounds(&orders()).unwrap(), QueueOffset::ZERO..QueueOffset::new(records));
    let mut next = QueueOffset::ZERO;
    while next.get() < records {
        let fetch = engine.fetch(FetchRequest::all(&orders(), next, FetchLimit::messages(100))).unwrap();
        for stored in &fetch.records {
            assert!(stored.record == long_record(stored.offset.get()), "record {}", stored.offset);
        }
        assert!(fetch.next > next);
        next = fetch.next;
    }
}

#[test]
fn a_long_log_is_whole_after_a_kill_however_it_is_read() {
    for works_beside in [false, true] {
        let home = tempfile::tempdir().unwrap();
        leave_behind(home.path(), LOG_SEGMENT_BYTES, 10_000);
        let engine = open_counted(&CountingFiles::open(home.path(), works_beside), LOG_SEGMENT_BYTES).unwrap();
        assert_long(&engine, 10_000);
    }
}

#[test]
fn rot_in_a_long_log_is_refused_however_it_is_read() {
    for works_beside in [false, true] {
        let home = tempfile::tempdir().unwrap();
        leave_behind(home.path(), LOG_SEGMENT_BYTES, 10_000);
        let files = CountingFiles::open(home.path(), works_beside);
        let segment = files.open(&format!("commitlog/{:020}", 2 * LOG_SEGMENT_BYTES), OpenMode::Existing).unwrap();
        let mut byte = [0];
        segment.read_at(1 << 20, &mut byte).unwrap();
        segment.write_at(1 << 20, &[&[byte[0] ^ 1]]).unwrap();
        let refused = open_counted(&files, LOG_SEGMENT_BYTES).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(refused.context().contains(&format!("{:020}", 2 * LOG_SEGMENT_BYTES)), "{refused}");
    }
}

#[test]
fn a_disk_that_does_not_answer_ends_the_opening() {
    for works_beside in [false, true] {
        for fails_from in [1, 1 << 20, 5 << 20] {
            let home = tempfile::tempdir().unwrap();
            leave_behind(home.path(), LOG_SEGMENT_BYTES, 10_000);
            let files = CountingFiles { fails_from, ..CountingFiles::open(home.path(), works_beside) };
            let failed = open_counted(&files, LOG_SEGMENT_BYTES).unwrap_err();
            assert_eq!(failed.kind(), ErrorKind::Io, "{failed}");
            let engine = open_counted(&CountingFiles::open(home.path(), works_beside), LOG_SEGMENT_BYTES).unwrap();
            assert_long(&engine, 10_000);
        }
    }
}

#[test]
fn room_that_was_only_taken_is_not_read() {
    const ROOM_BYTES: u64 = 64 << 20;
    let home = tempfile::tempdir().unwrap();
    leave_behind(home.path(), ROOM_BYTES, 900);
    let files = CountingFiles::open(home.path(), true);
    let segment = files.open(&first_segment(), OpenMode::Existing).unwrap();
    assert_eq!(segment.len().unwrap(), ROOM_BYTES, "all of the room is taken");
    let written = segment.data_from(0).unwrap().unwrap().end;
    if written == ROOM_BYTES {
        // A file system that does not tell room that was taken from room that was written.
        return;
    }
    let engine = open_counted(&files, ROOM_BYTES).unwrap();
    assert_long(&engine, 900);
    // Once for the frames, once for what may lie behind them, and frames that a piece of the log had cut.
    let read = files.read.load(Ordering::Relaxed);
    assert!(read <= 2 * written + (512 << 10), "{read} bytes were read of {written}");
}

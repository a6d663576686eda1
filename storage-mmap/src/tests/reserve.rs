//! Room that is filled and synced while nobody writes, and room that is taken before a sync.

use std::sync::Arc;
use std::time::Duration;

use cuemq_storage_api::{QueueId, QueueKey, Record, Timestamp, TopicName, WriteBatch};

use super::*;
use crate::files::memory::{FaultEffect, FaultTarget, FileCall};
use crate::files::{FileLayer, MemoryFiles, OpenMode, RealFiles};
use crate::settings::MmapSettings;

const BODY_BYTES: usize = 100_000;
const MOST: u64 = 1 << 20;
/// Looks, of a millisecond each, after which a thread that has not got to it never will.
const PATIENCE: u32 = 30_000;

fn open(files: impl FileLayer + 'static) -> Store {
    let settings = MmapSettings { segment_bytes: 16 << 20, prepare_bytes: MOST, ..MmapSettings::default() };
    Store::open(Arc::new(files), settings).unwrap()
}

fn append(store: &Store, frames: usize, expects_sync: bool) {
    let queue = QueueKey::new(TopicName::new("t").unwrap(), QueueId::FIRST);
    for _ in 0..frames {
        let mut batch = WriteBatch::new(Timestamp::from_millis(1));
        batch.append(&queue, Record::new(vec![1; BODY_BYTES], Timestamp::from_millis(1)));
        if expects_sync {
            batch.expect_sync();
        }
        store.apply(batch).unwrap();
    }
}

/// A store to which so many frames were written and synced.
fn written(files: impl FileLayer + 'static, frames: usize) -> Store {
    let store = open(files);
    append(&store, frames, true);
    store.sync_log("test").unwrap();
    store
}

fn lead(store: &Store) -> u64 {
    store.writer("test").unwrap().log.room().lead()
}

fn rest(store: &Store) -> Option<Rest> {
    store.ahead.rest(|| true)
}

#[test]
fn a_log_at_rest_gets_as_much_room_as_it_has_written_and_no_more_than_the_setting() {
    let store = open(MemoryFiles::new());
    append(&store, 5, true);
    assert!(store.ahead.lacks_reserve());
    assert!(rest(&store).is_none(), "a sync is still to come");
    store.sync_log("test").unwrap();
    assert!(store.ahead.rest(|| false).is_none(), "there is something else to do");
    store.fill_reserve(&rest(&store).unwrap(), || false);
    let step = 512 << 10;
    let written = 5 * BODY_BYTES as u64;
    assert!((written..written + step).contains(&lead(&store)), "{}", lead(&store));
    assert!(!store.ahead.lacks_reserve());
    // A third of it is used up: that is no reason to write.
    append(&store, 2, true);
    store.sync_log("test").unwrap();
    assert!(!store.ahead.lacks_reserve());
    append(&store, 20, true);
    store.sync_log("test").unwrap();
    store.fill_reserve(&rest(&store).unwrap(), || false);
    assert!((MOST..MOST + step).contains(&lead(&store)), "{}", lead(&store));
}

#[test]
fn each_step_is_synced_and_a_sync_that_fails_there_is_not_passed_over() {
    let files = MemoryFiles::new();
    let store = written(files.clone(), 8);
    let room = store.writer("test").unwrap().log.room();
    files.fail(FaultTarget::Nth(FileCall::SyncData, 2), FaultEffect::Fail(io::ErrorKind::Other));
    store.fill_reserve(&rest(&store).unwrap(), || false);
    assert!(room.lead() < 2 * (512 << 10), "{}: the first step was synced and the second not", room.lead());
    assert!(store.health.check_writable("test").is_err(), "what the disk has lost nobody hears of again");
}

#[test]
fn a_full_disk_ends_it_and_nothing_else() {
    let files = MemoryFiles::new();
    let store = written(files.clone(), 8);
    files.fail(FaultTarget::Nth(FileCall::Write, 1), FaultEffect::Fail(io::ErrorKind::StorageFull));
    store.fill_reserve(&rest(&store).unwrap(), || false);
    assert_eq!(lead(&store), 0);
    assert!(!store.ahead.lacks_reserve(), "it is not tried again");
    append(&store, 8, true);
    store.sync_log("test").unwrap();
}

#[test]
fn a_log_that_moves_on_is_not_at_rest() {
    let store = written(MemoryFiles::new(), 5);
    let stale = rest(&store).unwrap();
    append(&store, 1, true);
    store.fill_reserve(&stale, || false);
    assert_eq!(lead(&store), 0, "its sync would have had to write the zeros");
    store.sync_log("test").unwrap();
    store.fill_reserve(&stale, || false);
    assert_eq!(lead(&store), 0, "the next one may come soon");
}

#[test]
fn frames_that_are_stored_get_no_reserve() {
    let store = open(MemoryFiles::new().mapped_for_writing());
    append(&store, 5, false);
    store.sync_log("test").unwrap();
    assert!(!store.ahead.lacks_reserve());
    append(&store, 1, true);
    assert!(store.ahead.lacks_reserve(), "of the one that was written");
}

#[test]
fn the_thread_fills_it_by_itself() {
    let home = tempfile::tempdir().unwrap();
    let store = Arc::new(open(RealFiles::open(home.path()).unwrap()));
    let preparer = Preparer::start(&store);
    // More at once than it may fill beside a writer whose syncs are as large as the first one.
    for frames in [8, 20] {
        append(&store, frames, true);
        store.sync_log("test").unwrap();
    }
    let mut looks = 0..PATIENCE;
    while lead(&store) < MOST {
        assert!(looks.next().is_some(), "only {} bytes are filled", lead(&store));
        std::thread::park_timeout(Duration::from_millis(1));
    }
    append(&store, 12, true);
    store.sync_log("test").unwrap();
    preparer.stop();
}

fn segment_bytes_taken(files: &MemoryFiles, number: u64) -> Option<u64> {
    let path = format!("commitlog/{:020}", number * (16 << 20));
    files.open(&path, OpenMode::Existing).ok().map(|file| file.len().unwrap())
}

/// A store whose frames are stored into the map, as those behind which no sync is expected are.
fn stored(files: &MemoryFiles, frames: usize) -> Store {
    let files = files.clone().mapped_for_writing();
    let settings = MmapSettings { segment_bytes: 16 << 20, allocate_step_bytes: 1 << 20, ..MmapSettings::default() };
    let store = Store::open(Arc::new(files), settings).unwrap();
    append(&store, frames, false);
    store
}

#[test]
fn before_a_large_sync_room_is_taken_for_as_much_again_and_a_small_one_takes_none() {
    let files = MemoryFiles::new();
    let store = stored(&files, 50);
    store.sync_log("test").unwrap();
    assert_eq!(segment_bytes_taken(&files, 0), Some(5 << 20), "50 frames and nothing more");
    append(&store, 90, false);
    store.sync_log("test").unwrap();
    assert_eq!(segment_bytes_taken(&files, 0), Some(16 << 20), "all there is");
    assert_eq!(segment_bytes_taken(&files, 1), Some(6 << 20), "the rest in the next segment");
    append(&store, 60, false);
    store.sync_log("test").unwrap();
    assert_eq!(segment_bytes_taken(&files, 1), Some(6 << 20), "it was used as it is");
    drop(store);
    let again = Store::open(Arc::new(files), MmapSettings { segment_bytes: 16 << 20, ..MmapSettings::default() });
    assert_eq!(again.unwrap().writer("test").unwrap().log.end().position >> 20, 19);
}

#[test]
fn a_next_segment_that_was_made_and_not_used_is_no_damage() {
    for closes in [true, false] {
        let files = MemoryFiles::new();
        let store = stored(&files, 120);
        store.sync_log("test").unwrap();
        let end = store.writer("test").unwrap().log.end();
        assert!(segment_bytes_taken(&files, 1).is_some() && end.position < 16 << 20);
        if closes {
            store.close().unwrap();
        }
        drop(store);
        let again = stored(&files, 0);
        assert_eq!(again.writer("test").unwrap().log.end(), end);
        append(&again, 60, false);
        assert_eq!(again.writer("test").unwrap().log.room().start, 16 << 20);
    }
}

#[test]
fn a_disk_that_has_no_room_before_a_sync_fails_no_sync() {
    let files = MemoryFiles::new();
    let store = stored(&files, 120);
    files.fail(FaultTarget::Nth(FileCall::Allocate, 1), FaultEffect::Fail(io::ErrorKind::StorageFull));
    store.sync_log("test").unwrap();
    assert_eq!(segment_bytes_taken(&files, 0), Some(12 << 20));
    files.clear_faults();
    append(&store, 60, false);
    store.sync_log("test").unwrap();
}

#[test]
fn a_store_that_is_closed_takes_no_room_for_more() {
    let files = MemoryFiles::new();
    let store = stored(&files, 120);
    store.close().unwrap();
    assert_eq!((segment_bytes_taken(&files, 0), segment_bytes_taken(&files, 1)), (Some(12 << 20), None));
}

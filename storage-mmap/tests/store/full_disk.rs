//! A full disk is a refusal; any other failed write or sync is the end until the store is reopened.

use std::io;

use super::*;
use cuemq_storage_api::{ErrorKind, Outcome};
use cuemq_storage_mmap::files::memory::{FaultEffect, FaultTarget, FileCall};

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room_again() {
    [MemoryFiles::new(), MemoryFiles::new().mapped_for_writing()].into_iter().for_each(refuses_and_goes_on);
}

fn refuses_and_goes_on(files: MemoryFiles) {
    let engine = open(&files);
    append_many(&engine, &orders(), 0..10);
    let used = 1 << 40;
    let free = files.disk_space().unwrap().free_bytes;
    files.limit_room(used - free);
    let (mut written, mut refused) = (10, None);
    while refused.is_none() && written < 200 {
        match append(&engine, &orders(), written) {
            Ok(_) => written += 1,
            Err(error) => refused = Some(error),
        }
    }
    let refused = refused.expect("the disk is full");
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Full, Outcome::NotStored), "{refused}");
    assert_eq!(append(&engine, &orders(), written).unwrap_err().kind(), ErrorKind::Full);
    assert_whole(&engine, &orders(), written);
    engine.sync().unwrap();
    files.limit_room(used);
    append_many(&engine, &orders(), written..200);
    assert_whole(&engine, &orders(), 200);
    engine.close().unwrap();
    assert_whole(&open(&files), &orders(), 200);
}

#[test]
fn a_disk_above_the_hard_mark_refuses() {
    let files = MemoryFiles::new();
    files.limit_room(1 << 20);
    let careful = MmapSettings { disk_full_percent: 50, ..settings() };
    let engine = MmapEngine::open_with(Arc::new(files.clone()), careful).unwrap();
    let refused =
        (0..10_000).find_map(|number| append(&engine, &orders(), number).err()).expect("half the disk is full");
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Full, Outcome::NotStored));
    assert!(refused.context().contains("disk_full_percent"), "{refused}");
    let space = files.disk_space().unwrap();
    assert!(space.free_bytes > space.total_bytes / 4, "the refusal comes long before the disk is full: {space:?}");
}

fn refused_after(files: &MemoryFiles, engine: &MmapEngine) {
    files.clear_faults();
    for refused in [append(engine, &orders(), 99).unwrap_err(), engine.sync().unwrap_err()] {
        assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Poisoned, Outcome::NotStored), "{refused}");
    }
    assert_eq!(engine.maintain(Timestamp::MIN).unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn a_failed_write_poisons_and_reads_go_on() {
    for landed in [0, 1, 63, 64, 200, 10_000] {
        let files = MemoryFiles::new();
        let engine = open(&files);
        append_many(&engine, &orders(), 0..10);
        files.fail(FaultTarget::Nth(FileCall::Write, 1), FaultEffect::ShortWrite(landed, io::ErrorKind::Other));
        let failed = append(&engine, &orders(), 10).unwrap_err();
        assert_eq!((failed.kind(), failed.outcome()), (ErrorKind::Io, Outcome::Unknown));
        refused_after(&files, &engine);
        assert_whole(&engine, &orders(), 10);
        assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
        drop(engine);
        let engine = open(&files);
        let found = engine.bounds(&orders()).unwrap().end.get();
        assert!(found == 10 || found == 11, "all of the batch or nothing");
        assert_whole(&engine, &orders(), found);
        append_many(&engine, &orders(), found..20);
        assert_whole(&engine, &orders(), 20);
    }
}

#[test]
fn a_failed_sync_poisons_and_is_not_tried_again() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..5);
    let durable = engine.sync().unwrap();
    append_many(&engine, &orders(), 5..10);
    files.fail(FaultTarget::Nth(FileCall::SyncData, 1), FaultEffect::Fail(io::ErrorKind::Other));
    let failed = engine.sync().unwrap_err();
    assert_eq!((failed.kind(), failed.outcome()), (ErrorKind::Io, Outcome::Unknown));
    assert_eq!(engine.durable(), durable);
    refused_after(&files, &engine);
    assert_whole(&engine, &orders(), 10);
    drop(engine);
    // The failed sync lost the bytes, although readers could still see them: recovery looks at the disk.
    let engine = open(&files);
    assert_whole(&engine, &orders(), 5);
}

/// Below what upkeep has noted the opening believes the cache; beyond it, down to the page that both share, it must not.
#[test]
fn what_a_failed_sync_lost_is_not_believed_behind_what_was_noted_as_durable() {
    for noted in [1, 5, 40, 200] {
        let files = MemoryFiles::new();
        let engine = open(&files);
        append_many(&engine, &orders(), 0..noted);
        engine.sync().unwrap();
        engine.maintain(Timestamp::from_millis(0)).unwrap();
        append_many(&engine, &orders(), noted..noted + 100);
        files.fail(FaultTarget::Nth(FileCall::SyncData, 1), FaultEffect::Fail(io::ErrorKind::Other));
        engine.sync().unwrap_err();
        files.clear_faults();
        assert_whole(&engine, &orders(), noted + 100);
        drop(engine);
        // A sync of several segments fails at the first: what it did not come to is not lost, but hangs on nothing.
        assert_whole(&open(&files), &orders(), noted);
    }
}

#[test]
fn a_write_behind_a_failed_roll_is_refused() {
    [MemoryFiles::new(), MemoryFiles::new().mapped_for_writing()].into_iter().for_each(refused_behind_a_failed_roll);
}

#[test]
fn a_map_that_cannot_be_had_is_done_without() {
    let files = MemoryFiles::new().mapped_for_writing();
    let engine = open(&files);
    for number in 0..100 {
        files.fail(FaultTarget::Nth(FileCall::Map, 1), FaultEffect::Fail(io::ErrorKind::OutOfMemory));
        append(&engine, &orders(), number).unwrap();
        files.clear_faults();
        engine.sync().unwrap();
    }
    assert_whole(&engine, &orders(), 100);
    assert_whole(&open(&killed(&files)), &orders(), 100);
}

fn refused_behind_a_failed_roll(files: MemoryFiles) {
    let engine = open(&files);
    files.fail(FaultTarget::Nth(FileCall::Open, 1), FaultEffect::Fail(io::ErrorKind::StorageFull));
    let refused = (0..200).find_map(|number| append(&engine, &orders(), number).err()).expect("the log rolls");
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Full, Outcome::NotStored));
    let end = engine.bounds(&orders()).unwrap().end.get();
    append_many(&engine, &orders(), end..200);
    assert_whole(&engine, &orders(), 200);
}

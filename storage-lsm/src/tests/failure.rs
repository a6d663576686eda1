//! Full disks and failing ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuemq_storage_api::{Engine, ErrorKind, Outcome, Retention, Table};

use super::conformance::open_memory;
use super::*;
use crate::disk_space::{DiskSpace, Room};
use crate::memory_kv::MemoryDisk;

const TABLE: Table = Table::named("t");

/// A disk of 1,000,000 bytes of which a test says how many are free.
#[derive(Clone, Debug)]
struct ToldDisk(Arc<AtomicU64>);

impl DiskSpace for ToldDisk {
    fn room(&self) -> std::io::Result<Room> {
        Ok(Room { total: 1_000_000, free: self.0.load(Ordering::SeqCst) })
    }
}

fn told(free: u64) -> ToldDisk {
    ToldDisk(Arc::new(AtomicU64::new(free)))
}

#[test]
fn a_full_disk_is_refused_before_the_store_meets_it() {
    let directory = tempfile::tempdir().unwrap();
    let disk = told(200_000);
    let settings = LsmSettings { reserve_bytes: 100_000, ..small() };
    let engine = LsmEngine::open_on(directory.path(), &settings, Box::new(disk.clone())).unwrap();
    let queue = queue("t", 0);
    engine.apply(batch(&queue, 0, 10)).unwrap();
    let refused = |batch: WriteBatch| {
        let error = engine.apply(batch).unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Full, Outcome::NotStored), "{error}");
        assert!(error.is_retryable());
    };
    let row = || {
        let mut batch = WriteBatch::new(at(0));
        batch.put(&TABLE, "progress", "7");
        batch
    };
    let mut large = WriteBatch::new(at(0));
    large.append(&queue, Record::new(vec![0; 60_000], at(0)));
    refused(large);
    disk.0.store(99_999, Ordering::SeqCst);
    // The disk is looked at again once what was free is used up.
    let mut applied = 10;
    while engine.apply(batch(&queue, applied, applied + 1)).is_ok() {
        applied += 1;
        assert!(applied < 1_000_000, "the disk was never looked at again");
    }
    refused(batch(&queue, applied, applied + 1));
    engine.apply(row()).unwrap();
    disk.0.store(1_000, Ordering::SeqCst);
    refused(batch(&queue, applied, applied + 1));
    refused(row());
    let mut trim = WriteBatch::new(at(0));
    trim.trim(&queue, offset(5)).delete(&TABLE, "progress");
    engine.apply(trim).unwrap();
    engine.maintain(at(0)).unwrap();
    assert_eq!(all(&engine, &queue).len() as u64, applied - 5);
    disk.0.store(500_000, Ordering::SeqCst);
    engine.apply(batch(&queue, applied, applied + 1)).unwrap();
}

#[test]
fn a_filling_disk_takes_the_oldest_records() {
    let directory = tempfile::tempdir().unwrap();
    let disk = told(200_000);
    let settings = LsmSettings { disk_watermark_percent: 85, ..small() };
    let engine = LsmEngine::open_on(directory.path(), &settings, Box::new(disk.clone())).unwrap();
    let queue = queue("t", 0);
    let mut batch = WriteBatch::new(at(0));
    for _ in 0..32 {
        batch.append(&queue, Record::new(vec![7; 1_000], at(0)));
    }
    engine.apply(batch).unwrap();
    assert_eq!(engine.maintain(at(0)).unwrap().expired_records, 0, "80 % full");
    disk.0.store(149_000, Ordering::SeqCst);
    let done = engine.maintain(at(0)).unwrap();
    assert_eq!((done.expired_records, done.freed_bytes), (1, 1_000), "85.1 % full");
    disk.0.store(0, Ordering::SeqCst);
    assert_eq!(engine.maintain(at(0)).unwrap().expired_records, 2, "a sixteenth of 31 records, rounded up");
    assert_eq!(engine.bounds(&queue).unwrap(), offset(3)..offset(32));
}

#[test]
fn after_a_failed_write_only_a_reopened_engine_writes() {
    for fail_sync in [false, true] {
        let disk = MemoryDisk::default();
        let engine = open_memory(&disk, Retention::default()).unwrap();
        let queue = queue("t", 0);
        engine.apply(batch(&queue, 0, 2)).unwrap();
        disk.fail(true);
        let error = match fail_sync {
            true => engine.sync().unwrap_err(),
            false => engine.apply(batch(&queue, 2, 3)).unwrap_err(),
        };
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Io, Outcome::Unknown), "{error}");
        disk.fail(false);
        let error = engine.apply(batch(&queue, 2, 3)).unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Poisoned, Outcome::NotStored), "{error}");
        assert_eq!(engine.sync().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(engine.maintain(at(0)).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(engine.durable().0, 0, "a failed sync made nothing durable");
        assert_eq!(bodies(&engine, &queue), ["0", "1"], "reads go on");
        assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::Poisoned);
        let engine = open_memory(&disk, Retention::default()).unwrap();
        engine.apply(batch(&queue, 2, 3)).unwrap();
        assert_eq!(bodies(&engine, &queue), ["0", "1", "2"]);
    }
}

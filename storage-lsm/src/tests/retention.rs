//! What maintenance deletes, row by row.

use cuemq_storage_api::{AttributesBuilder, Engine, Retention};

use super::conformance::open_memory;
use super::*;
use crate::kv::Space;
use crate::memory_kv::MemoryDisk;

#[test]
fn trimmed_records_leave_no_row_behind() {
    let disk = MemoryDisk::default();
    let engine = open_memory(&disk, Retention::default()).unwrap();
    let (one, two) = (queue("t", 0), queue("t", 1));
    for round in 0..700u64 {
        let mut batch = WriteBatch::new(at(0));
        for queue in [&one, &two] {
            let mut attributes = AttributesBuilder::default();
            attributes.key("shared").key(&format!("own-{round}"));
            batch.append(queue, Record::new("1234567", at(0)).with_attributes(attributes.build().unwrap()));
        }
        engine.apply(batch).unwrap();
    }
    let payload = all(&engine, &one)[0].record.payload_bytes() as u64;
    let mut trim = WriteBatch::new(at(0));
    trim.trim(&one, offset(699)).trim(&two, offset(700));
    engine.apply(trim).unwrap();
    assert_eq!(disk.rows(Space::Log).len(), 1400, "a trim itself deletes nothing");
    let done = engine.maintain(at(0)).unwrap();
    assert_eq!(done.expired_records, 0, "trimmed, not expired");
    assert!(done.freed_bytes >= 1399 * payload);
    assert_eq!(disk.rows(Space::Log).len(), 1);
    assert_eq!(disk.rows(Space::ConsumeQueue).len(), 1);
    assert_eq!(disk.rows(Space::KeyIndex).len(), 2);
    assert_eq!(engine.maintain(at(0)).unwrap(), Maintenance::default());
    assert_eq!(bodies(&engine, &one), ["1234567"]);
}

#[test]
fn what_a_crash_left_below_the_minimum_is_deleted_later() {
    let disk = MemoryDisk::default();
    let engine = open_memory(&disk, Retention::default()).unwrap();
    let queue = queue("t", 0);
    engine.apply(batch(&queue, 0, 9)).unwrap();
    let mut trim = WriteBatch::new(at(0));
    trim.trim(&queue, offset(4));
    engine.apply(trim).unwrap();
    engine.sync().unwrap();
    engine.maintain(at(9)).unwrap();
    assert_eq!(disk.rows(Space::Log).len(), 5);
    drop(engine);
    disk.crash(0);
    assert_eq!(disk.rows(Space::Log).len(), 9, "the deletion was not synced");
    let engine = open_memory(&disk, Retention::default()).unwrap();
    assert_eq!(engine.bounds(&queue).unwrap(), offset(4)..offset(9));
    engine.maintain(at(9)).unwrap();
    assert_eq!(disk.rows(Space::Log).len(), 5);
    assert_eq!(bodies(&engine, &queue), ["4", "5", "6", "7", "8"]);
}

#[test]
fn the_bound_on_bytes_counts_what_is_kept_over_a_restart() {
    let disk = MemoryDisk::default();
    let retention = Retention { max_bytes: Some(10), disk_watermark_percent: 100, ..Retention::default() };
    let engine = open_memory(&disk, retention).unwrap();
    let (one, two) = (queue("t", 0), queue("t", 1));
    engine.apply(batch(&one, 0, 8)).unwrap();
    engine.apply(batch(&two, 0, 8)).unwrap();
    let mut trim = WriteBatch::new(at(0));
    trim.trim(&two, offset(5));
    engine.apply(trim).unwrap();
    engine.close().unwrap();
    let engine = open_memory(&disk, retention).unwrap();
    let done = engine.maintain(at(0)).unwrap();
    // 8 + 3 bytes are left, one too many; what was trimmed does not count.
    assert_eq!((done.expired_records, done.freed_bytes), (1, 6));
    assert_eq!((bodies(&engine, &one).len(), bodies(&engine, &two).len()), (7, 3));
}

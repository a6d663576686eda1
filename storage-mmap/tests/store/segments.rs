//! Segments: names, sizes, what ends one, and what outlives one.

use super::*;
use cuemq_storage_api::{ErrorKind, Outcome};

#[test]
fn segments_are_named_by_where_they_begin_and_follow_without_a_gap() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..200);
    let names = files.list("commitlog").unwrap();
    let expected: Vec<_> = (0..names.len() as u64).map(|number| format!("{:020}", number * SEGMENT_BYTES)).collect();
    assert_eq!(names, expected);
    assert!(names.len() >= 4);
    for sealed in &names[..names.len() - 1] {
        let bytes = content(&files, &format!("commitlog/{sealed}"));
        assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
        let blank = last_frame(&bytes);
        assert_eq!(blank[6..8], [1, 0], "the last frame is a blank one");
        assert_eq!(u32::from_le_bytes(blank[8..12].try_into().unwrap()) as usize, blank.len());
    }
}

/// The last frame of a full segment, found by walking over all of them.
fn last_frame(segment: &[u8]) -> &[u8] {
    let mut at = 0;
    loop {
        assert_eq!(&segment[at..at + 4], b"CqFr");
        let len = u32::from_le_bytes(segment[at + 8..at + 12].try_into().unwrap()) as usize;
        if at + len == segment.len() {
            return &segment[at..];
        }
        at += len;
    }
}

#[test]
fn both_ways_of_writing_make_the_same_log() {
    let logs = [MemoryFiles::new(), MemoryFiles::new().mapped_for_writing()].map(|files| {
        let engine = open(&files);
        append_many(&engine, &orders(), 0..100);
        for number in 100..200 {
            let mut batch = WriteBatch::new(Timestamp::from_millis(i64::try_from(number).unwrap() * 1000));
            batch.append(&orders(), record(number)).expect_sync();
            engine.apply(batch).unwrap();
            append(&engine, &queue("others", 1), number).unwrap();
        }
        engine.close().unwrap();
        assert_whole(&open(&files), &orders(), 200);
        let mut log = tree(&files, "commitlog");
        // Ahead of the end there may be more zeros in one than in the other.
        for bytes in log.values_mut() {
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        }
        log
    });
    assert_eq!(logs[0], logs[1]);
    assert!(logs[0].len() > 4);
}

#[test]
fn room_that_was_prepared_is_zero_and_the_log_goes_on_in_it() {
    let home = tempfile::tempdir().unwrap();
    let engine = MmapEngine::open(home.path(), settings()).unwrap();
    append_many(&engine, &orders(), 0..3);
    engine.prepare_room(1 << 40).unwrap();
    let bytes = std::fs::read(home.path().join(first_segment())).unwrap();
    let used = usize::try_from(engine.durable().0).unwrap();
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES, "not beyond the segment");
    assert!(bytes[used - 1..].iter().skip(1).all(|byte| *byte == 0));
    append_many(&engine, &orders(), 3..200);
    assert_whole(&engine, &orders(), 200);
    engine.close().unwrap();
    assert_eq!(engine.prepare_room(1).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn a_new_store_is_small() {
    let files = MemoryFiles::new();
    let engine = MmapEngine::open_with(Arc::new(files.clone()), MmapSettings::default()).unwrap();
    engine.apply(WriteBatch::new(Timestamp::MIN)).unwrap();
    let bytes: usize = tree(&files, "").values().map(Vec::len).sum();
    assert!(bytes < 4096, "{bytes} bytes");
}

#[test]
fn a_batch_that_no_segment_holds_is_refused_and_nothing_else() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..3);
    let room = usize::try_from(SEGMENT_BYTES).unwrap() - 64 - 64 - 64 - "orders".len();
    let mut too_large = WriteBatch::new(Timestamp::MIN);
    too_large.append(&orders(), Record::new(vec![1; room + 1], Timestamp::MIN));
    let refused = engine.apply(too_large).unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Invalid, Outcome::NotStored));
    assert!(refused.context().contains("segment_bytes"), "{refused}");
    assert_whole(&engine, &orders(), 3);
    let mut fits = WriteBatch::new(Timestamp::MIN);
    fits.append(&queue("large", 0), Record::new(vec![1; room], Timestamp::MIN));
    engine.apply(fits).unwrap();
    append_many(&engine, &orders(), 3..5);
    engine.sync().unwrap();
    let engine = open(&killed(&files));
    assert_whole(&engine, &orders(), 5);
    assert_eq!(engine.bounds(&queue("large", 0)).unwrap().end, QueueOffset::new(1));
}

#[test]
fn what_was_fetched_outlives_its_segment() {
    let home = tempfile::tempdir().unwrap();
    let retention = RetentionSettings { age_ms: 1000, max_bytes: None, disk_watermark_percent: 100 };
    let engine = MmapEngine::open(home.path(), MmapSettings { retention, ..settings() }).unwrap();
    append_many(&engine, &orders(), 0..200);
    let queue = orders();
    let old = engine.fetch(FetchRequest::all(&queue, QueueOffset::ZERO, FetchLimit::messages(5))).unwrap();
    let done = engine.maintain(Timestamp::from_millis(1_000_000)).unwrap();
    assert!(done.expired_records >= 5 && !home.path().join(first_segment()).exists());
    let gone = engine.fetch(FetchRequest::all(&queue, QueueOffset::ZERO, FetchLimit::messages(5))).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::OutOfRange);
    drop(engine);
    for (number, stored) in (0..).zip(&old.records) {
        assert_eq!(stored.record, record(number));
    }
}

#[test]
fn bodies_are_slices_of_the_map_and_not_copies() {
    let home = tempfile::tempdir().unwrap();
    let engine = MmapEngine::open(home.path(), settings()).unwrap();
    append_many(&engine, &orders(), 0..2);
    let queue = orders();
    let fetch = || engine.fetch(FetchRequest::all(&queue, QueueOffset::ZERO, FetchLimit::messages(2))).unwrap();
    let (one, other) = (fetch(), fetch());
    for (a, b) in one.records.iter().zip(&other.records) {
        assert_eq!(a.record.body.as_ptr(), b.record.body.as_ptr());
        assert_eq!(a.record.attributes.as_bytes().as_ptr(), b.record.attributes.as_bytes().as_ptr());
    }
}

//! What is derived from the log can be made again from it, to the last byte.

use super::*;
use cuemq_storage_api::{KeyQuery, TagHashes, tag_hash};

fn keys(engine: &MmapEngine, key: &str) -> Vec<u64> {
    let topic = TopicName::new("orders").unwrap();
    let (from, to, limit) = (Timestamp::MIN, Timestamp::MAX, 1000);
    let found = engine.find(KeyQuery { topic: &topic, key, from, to, limit }).unwrap();
    found.iter().map(|located| located.stored.offset.get()).collect()
}

fn odd(engine: &MmapEngine) -> Vec<u64> {
    let (queue, tags) = (orders(), TagHashes::AnyOf(vec![tag_hash("odd")]));
    let from = engine.bounds(&queue).unwrap().start;
    let request = FetchRequest { queue: &queue, from, until: None, limit: FetchLimit::messages(1000), tags: &tags };
    engine.fetch(request).unwrap().records.iter().map(|stored| stored.offset.get()).collect()
}

fn filled() -> MemoryFiles {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..105);
    append_many(&engine, &queue("orders", 3), 0..20);
    append_many(&engine, &queue("other", 0), 0..7);
    let mut trim = WriteBatch::new(Timestamp::MIN);
    trim.trim(&queue("other", 0), QueueOffset::new(5));
    engine.apply(trim).unwrap();
    engine.close().unwrap();
    files
}

fn answers(engine: &MmapEngine) -> (Vec<u64>, Vec<u64>, Vec<u64>, Vec<u64>) {
    let other = fetch_all(engine, &queue("other", 0)).unwrap();
    (fetch_all(engine, &orders()).unwrap(), odd(engine), keys(engine, "k3"), other)
}

#[test]
fn consume_queues_are_made_again_to_the_byte() {
    let files = filled();
    let before = tree(&files, "consumequeue");
    assert_eq!(before.len(), 11 + 2 + 1, "ten entries a file");
    assert_eq!(before[&format!("consumequeue/orders/0/{:020}", 100)].len(), 5 * 20);
    let untouched = {
        let engine = open(&files);
        let answers = answers(&engine);
        engine.close().unwrap();
        answers
    };
    for lost in before.keys().cloned().chain(["consumequeue".to_owned()]) {
        let files = killed(&files);
        if before.contains_key(&lost) {
            files.remove(&lost).unwrap()
        } else {
            remove_tree(&files, &lost)
        }
        let engine = open(&files);
        assert_eq!(answers(&engine), untouched);
        engine.close().unwrap();
        assert_eq!(tree(&files, "consumequeue"), before, "without {lost}");
    }
}

#[test]
fn the_index_is_made_again() {
    let files = filled();
    let untouched = answers(&open(&killed(&files)));
    assert_eq!(untouched.2.len(), 15 + 3, "the look-up is not empty");
    remove_tree(&files, "index");
    let engine = open(&files);
    assert_eq!(answers(&engine), untouched);
}

#[test]
fn keys_are_found_after_a_kill_wherever_they_stand_among_records_without() {
    for keyed in [0..0, 0..3, 40..43, 97..100, 0..100] {
        let files = MemoryFiles::new();
        let engine = open(&files);
        for number in 0..100 {
            let mut batch = WriteBatch::new(Timestamp::from_millis(1));
            let plain = Record::new(vec![7; 300], Timestamp::from_millis(1));
            let record = if keyed.contains(&number) { record(number) } else { plain };
            batch.append(&orders(), record);
            engine.apply(batch).unwrap();
            if number == 20 {
                engine.maintain(Timestamp::from_millis(0)).unwrap();
            }
        }
        assert!(files.list("commitlog").unwrap().len() > 1, "several segments");
        let found = |engine: &MmapEngine| (0..7).map(|key| keys(engine, &format!("k{key}"))).collect::<Vec<_>>();
        let before = found(&engine);
        assert_eq!(before.iter().map(Vec::len).sum::<usize>() as u64, keyed.end - keyed.start);
        let engine = open(&killed(&files));
        assert_eq!(found(&engine), before, "keys at {keyed:?}");
        assert_eq!(engine.bounds(&orders()).unwrap().end.get(), 100);
    }
}

#[test]
fn entries_of_records_that_a_crash_took_do_not_stay() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..15);
    engine.sync().unwrap();
    let synced = killed(&files);
    append_many(&engine, &orders(), 15..25);
    append_many(&engine, &queue("late", 0), 0..1);
    // Writes the consume queues, but does not sync the log.
    engine.maintain(Timestamp::from_millis(0)).unwrap();
    let ahead = tree(&files, "consumequeue");
    assert!(ahead.keys().any(|path| path.contains("/late/")));
    for (path, bytes) in &ahead {
        let (directory, _) = path.rsplit_once('/').unwrap();
        synced.create_directory(directory).unwrap();
        synced.open(path, OpenMode::Create).unwrap().write_at(0, &[bytes]).unwrap();
    }
    let engine = open(&synced);
    assert_whole(&engine, &orders(), 15);
    engine.close().unwrap();
    assert_eq!(content(&synced, &format!("consumequeue/orders/0/{:020}", 10)).len(), 5 * 20);
    assert!(synced.list("consumequeue/late/0").unwrap().is_empty());
}

#[test]
fn after_retention_a_rebuild_gives_the_same_files() {
    let files = MemoryFiles::new();
    let by_age = MmapSettings {
        retention: RetentionSettings { age_ms: 10_000, max_bytes: None, disk_watermark_percent: 100 },
        ..settings()
    };
    let open = |files: &MemoryFiles| MmapEngine::open_with(Arc::new(files.clone()), by_age.clone()).unwrap();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..200);
    let done = engine.maintain(Timestamp::from_millis(150_000)).unwrap();
    assert!(done.expired_records > 50 && done.freed_bytes >= SEGMENT_BYTES, "{done:?}");
    let bounds = engine.bounds(&orders()).unwrap();
    assert_eq!(bounds.start.get(), done.expired_records);
    assert!(!bounds.start.get().is_multiple_of(10), "the case is about a file that is half expired");
    engine.close().unwrap();
    let before = tree(&files, "consumequeue");
    remove_tree(&files, "consumequeue");
    let engine = open(&files);
    assert_eq!(engine.bounds(&orders()).unwrap(), bounds);
    assert_eq!(fetch_all(&engine, &orders()).unwrap(), (bounds.start.get()..200).collect::<Vec<_>>());
    engine.close().unwrap();
    assert_eq!(tree(&files, "consumequeue"), before);
}

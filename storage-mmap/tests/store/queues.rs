//! Many queues: what they may cost.

use super::*;

const QUEUES: u32 = 1000;

/// Files that this process has open.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_thousand_queues_do_not_hold_a_thousand_files() {
    let home = tempfile::tempdir().unwrap();
    let engine = MmapEngine::open(home.path(), MmapSettings { segment_bytes: 1 << 20, ..settings() }).unwrap();
    for id in 0..QUEUES {
        append(&engine, &queue("many", id), 0).unwrap();
    }
    engine.maintain(Timestamp::from_millis(0)).unwrap();
    for id in 0..QUEUES {
        assert_whole(&engine, &queue("many", id), 1);
    }
    // Other tests of this process have some open too, but nothing like the number of queues.
    assert!(open_files() < QUEUES as usize / 2, "{} files are open", open_files());
    engine.close().unwrap();
    let engine = MmapEngine::open(home.path(), MmapSettings { segment_bytes: 1 << 20, ..settings() }).unwrap();
    assert_eq!(engine.queues().unwrap().len(), QUEUES as usize);
    assert_whole(&engine, &queue("many", QUEUES - 1), 1);
}

#[test]
fn entries_in_files_and_in_memory_are_one_queue() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..25);
    engine.maintain(Timestamp::from_millis(0)).unwrap();
    append_many(&engine, &orders(), 25..40);
    assert_whole(&engine, &orders(), 40);
    let queue = orders();
    for from in 0..=40 {
        for most in [1, 3, 9, 10, 11, 40] {
            let request = FetchRequest::all(&queue, QueueOffset::new(from), FetchLimit::messages(most));
            let fetch = engine.fetch(request).unwrap();
            let offsets: Vec<_> = fetch.records.iter().map(|stored| stored.offset.get()).collect();
            let end = 40.min(from + most as u64);
            assert_eq!((offsets, fetch.next.get()), ((from..end).collect(), end));
        }
    }
    for number in 0..40 {
        let at = Timestamp::from_millis(i64::try_from(number).unwrap() * 1000 - 999);
        assert_eq!(engine.offset_at(&queue, at).unwrap().get(), number);
    }
}

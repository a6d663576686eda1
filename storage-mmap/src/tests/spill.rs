//! A writer at the bound of entries in memory.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use cuemq_storage_api::{QueueId, QueueKey, Record, Timestamp, TopicName, WriteBatch};

use super::*;
use crate::files::MemoryFiles;
use crate::settings::MmapSettings;

const QUEUES: u32 = 600;
const ENTRIES: usize = 2 * QUEUES as usize;

/// A store with two entries of each queue in memory, and no thread that moves them.
fn filled() -> Store {
    let settings = MmapSettings { segment_bytes: 8 << 20, ..MmapSettings::default() };
    let store = Store::open(Arc::new(MemoryFiles::new()), settings).unwrap();
    for _ in 0..2 {
        let mut batch = WriteBatch::new(Timestamp::from_millis(1));
        for queue in 0..QUEUES {
            let key = QueueKey::new(TopicName::new("t").unwrap(), QueueId::new(queue).unwrap());
            batch.append(&key, Record::new("body", Timestamp::from_millis(1)));
        }
        store.apply(batch).unwrap();
    }
    store
}

fn buffered(store: &Store) -> usize {
    store.catalog("test").unwrap().buffered()
}

#[test]
fn a_writer_at_the_bound_moves_entries_itself_where_nobody_does() {
    let store = filled();
    store.make_entries_room(ENTRIES).unwrap();
    assert_eq!(buffered(&store), ENTRIES, "there was room");
    store.make_entries_room(ENTRIES - 1).unwrap();
    assert_eq!(buffered(&store), 0);
    store.spill("test", 1).unwrap();
}

#[test]
fn a_writer_at_the_bound_goes_on_with_the_first_that_are_moved() {
    let store = filled();
    let (sender, went_on) = mpsc::channel();
    std::thread::scope(|scope| {
        let turn = store.spilling.take_turn();
        scope.spawn(|| {
            store.make_entries_room(ENTRIES - 2 * SPILL_QUEUES).unwrap();
            sender.send(buffered(&store)).unwrap();
        });
        store.spill_in(&turn, "test", 1).unwrap();
        // The turn has not ended.
        let left = went_on.recv_timeout(Duration::from_secs(60)).expect("the writer hears of room");
        assert!(left <= ENTRIES - 2 * SPILL_QUEUES);
        drop(turn);
    });
}

#[test]
fn a_writer_at_the_bound_hears_of_a_turn_that_freed_nothing() {
    let store = filled();
    let (sender, went_on) = mpsc::channel();
    std::thread::scope(|scope| {
        let turn = store.spilling.take_turn();
        scope.spawn(|| {
            store.make_entries_room(ENTRIES - 1).unwrap();
            sender.send(buffered(&store)).unwrap();
        });
        drop(turn);
        assert_eq!(went_on.recv_timeout(Duration::from_secs(60)).expect("its own turn"), 0);
    });
}

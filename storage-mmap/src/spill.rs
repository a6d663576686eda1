//! Entries on their way from memory to the consume queues' files.
//!
//! They go by a few queues at a time: readers and the writer wait for a catalog's lock no longer than that takes, and the
//! writer, which may have met the bound of entries in memory, goes on as soon as the first queues are written.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use cuemq_storage_api::Result;

use crate::commit_log::no_room;
use crate::store::Store;

/// Queues whose entries are copied, written and forgotten in one step.
const SPILL_QUEUES: usize = 256;

/// Whose turn it is to move entries, and how others hear that there is room.
#[derive(Debug, Default)]
pub(crate) struct Spilling {
    turn: Mutex<()>,
    /// Held for a moment by whoever made room, and by whoever looks whether there is some before it waits: so that
    /// neither misses the other.
    door: Mutex<()>,
    freed: Condvar,
}

/// The turn of one that moves entries.
struct Turn<'a> {
    guard: Option<MutexGuard<'a, ()>>,
    spilling: &'a Spilling,
}

impl Spilling {
    fn take_turn(&self) -> Turn<'_> {
        Turn { guard: Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner)), spilling: self }
    }

    /// A turn, unless somebody else has it.
    fn try_turn(&self) -> Option<Turn<'_>> {
        let guard = match self.turn.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Turn { guard: Some(guard), spilling: self })
    }

    fn tell(&self) {
        drop(self.door.lock().unwrap_or_else(PoisonError::into_inner));
        self.freed.notify_all();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // First the turn: whoever hears of its end may take the next one.
        self.guard = None;
        self.spilling.tell();
    }
}

impl Store {
    /// Moves the entries that are only in memory to the consume queues' files, those of queues with at least so many. A
    /// full disk refuses: the entries that are not written stay in memory and are written again later.
    pub(crate) fn spill(&self, operation: &'static str, at_least: usize) -> Result<()> {
        let turn = self.spilling.take_turn();
        self.spill_in(&turn, operation, at_least)
    }

    /// Waits until there are at most so many entries in memory: for the thread that moves them earlier and is behind, or,
    /// where nobody moves any, by moving them.
    pub(crate) fn make_entries_room(&self, most: usize) -> Result<()> {
        let has_room = || Result::Ok(self.catalog("apply")?.buffered() <= most);
        let mut door = self.spilling.door.lock().unwrap_or_else(PoisonError::into_inner);
        while !has_room()? {
            if let Some(turn) = self.spilling.try_turn() {
                drop(door);
                return self.spill_in(&turn, "apply", 1);
            }
            door = self.spilling.freed.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn spill_in(&self, turn: &Turn<'_>, operation: &'static str, at_least: usize) -> Result<()> {
        let (mut slot, end) = (0, self.catalog(operation)?.queues().len());
        while slot < end {
            let (tails, next) = self.catalog(operation)?.tails(slot..end, at_least, SPILL_QUEUES);
            for tail in &tails {
                self.queue_files.write(&tail.key, tail.first, &tail.entries).map_err(|error| {
                    let path = self.queue_files.describe(&tail.key, tail.first);
                    no_room(operation, &path, error, &self.health)
                })?;
            }
            if !tails.is_empty() {
                self.catalog_mut(operation)?.forget(&tails);
                turn.spilling.tell();
            }
            slot = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
}

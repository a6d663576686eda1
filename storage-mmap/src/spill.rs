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
#[path = "tests/spill.rs"]
mod tests;

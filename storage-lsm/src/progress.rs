//! Keeps readers of tables from seeing a batch before its records can be seen.
//!
//! A batch that changes tables *and* queues becomes visible in two steps: its rows when the store commits it, its
//! queue ends when they are published. A reader of a table that may have seen the first step waits for the second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Counts the batches whose two steps have begun and ended. There is one writer at a time.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    begun: AtomicU64,
    ended: AtomicU64,
    turn: Mutex<()>,
    ended_one: Condvar,
}

impl Progress {
    /// Says that a batch is about to be committed; dropping the result says that its queue ends are published (or
    /// that it failed, when nothing of it can be seen).
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        InFlight(self)
    }

    /// Waits until every batch that has begun by now has ended.
    pub(crate) fn settle(&self) {
        let begun = self.begun.load(Ordering::SeqCst);
        if self.ended.load(Ordering::SeqCst) >= begun {
            return;
        }
        // The lock guards no data, so a panic elsewhere cannot have broken anything.
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while self.ended.load(Ordering::SeqCst) < begun {
            turn = self.ended_one.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A batch between its two steps.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a Progress);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        drop(turn);
        self.0.ended_one.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settling_waits_for_what_has_begun() {
        let progress = Progress::default();
        progress.settle();
        let in_flight = progress.begin();
        let (started, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                started.send(()).unwrap();
                progress.settle();
                progress.ended.load(Ordering::SeqCst)
            });
            waits.recv().unwrap();
            drop(in_flight);
            assert_eq!(waiter.join().unwrap(), 1);
        });
    }
}

//! What the members of a group have done so far, and whether it was in order.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::order_check::{OrderCheck, Verdict};

/// Counts over all members; shared by their handlers.
#[derive(Debug)]
pub struct Tally {
    counts: Mutex<Counts>,
    processed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Counts {
    by_member: Vec<u64>,
    retried: u64,
    repeated: u64,
    out_of_order: u64,
    check: OrderCheck<(u64, u64)>,
}

/// The outcome of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Events processed by each member.
    pub by_member: Vec<u64>,
    /// Deliveries that failed and came again.
    pub retried: u64,
    /// Deliveries of events that had been processed already.
    pub repeated: u64,
    /// Deliveries that came behind a later event of their key.
    pub out_of_order: u64,
    /// Different keys seen.
    pub keys: usize,
}

impl Tally {
    /// Nothing done yet, by `members` members.
    #[must_use]
    pub fn new(members: usize) -> Self {
        let counts = Counts {
            by_member: vec![0; members],
            retried: 0,
            repeated: 0,
            out_of_order: 0,
            check: OrderCheck::default(),
        };
        Self { counts: Mutex::new(counts), processed: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event was delivered and will be delivered again.
    pub fn failed(&self) {
        self.lock().retried += 1;
    }

    /// A member has processed the event of `key` at this place in the order of the sends.
    pub fn processed(&self, member: usize, key: &str, place: (u64, u64)) {
        let mut counts = self.lock();
        match counts.check.judge(key, place) {
            Verdict::New | Verdict::Unwatched => {}
            Verdict::Again => {
                counts.repeated += 1;
                return;
            }
            Verdict::OutOfOrder => counts.out_of_order += 1,
        }
        counts.by_member[member] += 1;
        drop(counts);
        self.processed.send_modify(|processed| *processed += 1);
    }

    /// How many events were processed, as it grows.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.processed.subscribe()
    }

    /// What came of it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let counts = self.lock();
        Outcome {
            by_member: counts.by_member.clone(),
            retried: counts.retried,
            repeated: counts.repeated,
            out_of_order: counts.out_of_order,
            keys: counts.check.keys(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redeliveries_count_once_and_disorder_is_noticed() {
        let tally = Tally::new(2);
        tally.processed(0, "a", (0, 4));
        tally.processed(1, "a", (0, 4));
        tally.processed(1, "a", (0, 3));
        tally.failed();
        let outcome = tally.outcome();
        assert_eq!(outcome.by_member, [1, 1]);
        assert_eq!((outcome.repeated, outcome.out_of_order, outcome.retried, outcome.keys), (1, 1, 1, 1));
        assert_eq!(*tally.watch().borrow(), 2);
    }
}

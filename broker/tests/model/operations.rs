//! What an operator changes, in the reference: dead letters that are sent again, and a group that is moved.

use std::collections::BTreeSet;

use cuemq::{DeadReason, OffsetMove, Order, QueueKey, Timestamp};

use super::entry::{Entry, Letter, Status};
use super::reference::Reference;

/// A dead letter as the broker shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shown {
    pub(crate) message: u64,
    pub(crate) reason: DeadReason,
    pub(crate) attempts: u32,
}

impl Reference {
    /// What ended while its holder may have lost it is a dead letter if the broker shows one.
    pub(crate) fn concede(&mut self, shown: &[Shown], now: Timestamp) {
        let ended = |entry: &Entry| entry.loose && entry.is_expired(now);
        for number in self.numbers(ended) {
            let message = self.entries[&number].message;
            let of_it = |of: u64, reason: DeadReason| (of, reason) == (message, DeadReason::Expired);
            let there = shown.iter().filter(|letter| of_it(letter.message, letter.reason)).count();
            let known = self.letters.iter().filter(|letter| of_it(letter.message, letter.reason)).count();
            if there > known {
                self.expired(number);
            }
        }
    }

    /// Those of the letters that have to be there that the broker does not show.
    ///
    /// # Errors
    /// When it shows others.
    pub(crate) fn compare_letters(&self, shown: &[Shown]) -> Result<Vec<Letter>, String> {
        let mut left = self.letters.clone();
        left.sort_by_key(|letter| letter.may_be_late);
        for letter in shown {
            let fits = |expected: &&Letter| {
                (expected.message, expected.reason) == (letter.message, letter.reason)
                    && expected.attempts.contains(&letter.attempts)
            };
            let Some(at) = left.iter().position(|expected| fits(&expected)) else {
                return Err(format!("{letter:?} is one too many, of {:?}", self.letters));
            };
            left.remove(at);
        }
        Ok(left)
    }

    /// A letter was sent again, and lives until then.
    pub(crate) fn redriven(&mut self, shown: &Shown, to_group: bool, now: Timestamp, ttl_ends: Option<Timestamp>) {
        let same = |(message, reason)| (message, reason) == (shown.message, shown.reason);
        // Those that may come later are the ones that are not there.
        self.letters.sort_by_key(|letter| letter.may_be_late);
        let fits = |letter: &Letter| same((letter.message, letter.reason)) && letter.attempts.contains(&shown.attempts);
        let at = self.letters.iter().position(fits).expect("only what is there is sent again");
        let letter = self.letters.remove(at);
        let entry = Entry::new(letter.message, letter.key, now, ttl_ends.filter(|_| !to_group));
        self.add(Entry { is_retry: to_group, ..entry });
    }

    /// What is stored in a queue, in order.
    fn of_queue(&self, queue: &QueueKey) -> Vec<u64> {
        let homes = self.homes.range((queue.clone(), 0)..);
        homes.take_while(|((of, _), _)| of == queue).map(|(_, number)| *number).collect()
    }

    /// How much is stored in a queue.
    pub(crate) fn end_of(&self, queue: &QueueKey) -> u64 {
        self.of_queue(queue).len() as u64
    }

    /// How much of it was stored before that time.
    pub(crate) fn stored_before(&self, queue: &QueueKey, time: Timestamp) -> u64 {
        let before = |number: &u64| self.entries[number].home.as_ref().is_some_and(|home| home.stored_at < time);
        self.of_queue(queue).iter().take_while(|number| before(number)).count() as u64
    }

    /// Everything below the group's next message is over.
    pub(crate) fn assert_consumed(&self, queue: &QueueKey, next: u64) {
        for number in self.of_queue(queue).iter().take(usize::try_from(next).expect("few")) {
            let entry = &self.entries[number];
            assert!(entry.is_over() || entry.loose, "{queue} is consumed up to {next}, but not {entry:?}");
        }
    }

    /// The group was moved.
    pub(crate) fn moved(&mut self, moves: &[OffsetMove], now: Timestamp) {
        for moved in moves {
            let to = usize::try_from(moved.to.get()).expect("few");
            let of_queue = self.of_queue(&moved.queue);
            if moved.is_backwards() {
                // The queue begins anew there.
                for number in &of_queue[to..] {
                    let entry = self.entry(*number);
                    entry.free(now, now);
                    // Its failures in place are stored until it is done, and count still, if they were.
                    entry.invisible_until = None;
                    (entry.passed_over, entry.ended_in_hand) = (None, false);
                }
            } else {
                for number in &of_queue[..to] {
                    let entry = self.entry(*number);
                    if let Status::Out { delivery, .. } = entry.status {
                        entry.passed_over = Some(delivery);
                    }
                    entry.end();
                }
            }
        }
        if self.order != Order::Concurrent && moves.iter().any(OffsetMove::is_backwards) {
            self.recalled_behind_changes(now);
        }
        let known = self.letters.len();
        self.expire(now);
        // What ended before comes to its end once more as the group reads it.
        self.letters[known..].iter_mut().for_each(|letter| letter.may_be_late = true);
    }

    /// What comes from behind a change of the number of queues has to wait again if something in front of it is open: its
    /// holder loses a queue of which he read that far, and what he has of it comes once more in its turn.
    fn recalled_behind_changes(&mut self, now: Timestamp) {
        let generation = |entry: &Entry| entry.home.as_ref().map_or(u64::MAX, |home| home.generation);
        let open = self.entries.values().filter(|entry| !entry.is_over() && entry.home.is_some());
        let Some(oldest) = open.map(generation).min() else { return };
        let behind: BTreeSet<QueueKey> = self
            .entries
            .values()
            .filter_map(|entry| entry.home.as_ref())
            .filter(|home| home.generation > oldest)
            .map(|home| home.queue.clone())
            .collect();
        for entry in self.entries.values_mut() {
            if !entry.home.as_ref().is_some_and(|home| behind.contains(&home.queue)) {
                continue;
            }
            match entry.status {
                Status::Out { .. } => entry.loose = true,
                Status::Ready { from, surely } if entry.failures_in_memory > 0 => {
                    entry.status = Status::Ready { from: from.min(now), surely };
                }
                _ => {}
            }
        }
    }

    /// Whether somebody had the message by this delivery when the group passed over it.
    pub(crate) fn was_passed_over(&self, number: u64, by: u64) -> bool {
        let entry = &self.entries[&number];
        entry.is_over() && entry.passed_over == Some(by)
    }
}

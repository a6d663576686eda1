//! Which delayed messages are due, with only a window of them in memory.
//!
//! ```text
//!  timers in storage, by key    ├── all of these are in memory ──┤ horizon ── these are in storage only ──▶
//!                               ▲ due first                      ▲ the next refill reads from here
//! ```
//! Whatever is below the horizon is in memory, so the earliest timer in memory is the earliest there is. While a
//! refill is under way the machine remembers what changed beyond the horizon, because the scan may have read before
//! or after that change.

use std::collections::BTreeSet;

use cuemq_storage_api::Timestamp;

/// Most timers in memory; also most changes of each kind that are remembered during one refill.
pub(crate) const MAX_TIMERS_IN_MEMORY: usize = 65_536;
/// Rows that a refill asks for.
pub(crate) const REFILL_TIMERS: usize = 16_384;
/// Timers in memory below which a refill is asked for.
pub(crate) const REFILL_BELOW: usize = 8_192;

/// One delayed message: due first, then numbered, which is also the order of its rows in storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct TimerKey {
    /// Not before this time.
    pub(crate) due: Timestamp,
    /// Tells timers with the same due time apart; rises in the order of their making.
    pub(crate) sequence: u64,
}

impl TimerKey {
    /// Before every other key.
    pub(crate) const FIRST: Self = Self { due: Timestamp::MIN, sequence: 0 };

    /// Names a timer.
    #[must_use]
    pub(crate) const fn new(due: Timestamp, sequence: u64) -> Self {
        Self { due, sequence }
    }

    /// The key right behind this one; `None` behind the last one there can be.
    #[must_use]
    pub(crate) fn next(self) -> Option<Self> {
        if let Some(sequence) = self.sequence.checked_add(1) {
            return Some(Self { sequence, ..self });
        }
        let due = Timestamp::from_millis(self.due.as_millis().checked_add(1)?);
        Some(Self { due, sequence: 0 })
    }
}

/// What has to be done for the schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DelayEffect {
    /// Scan the timers' table from this key on for at most `limit` rows and hand them to
    /// [`DelaySchedule::refill`].
    Refill { from: TimerKey, limit: usize },
}

/// The schedule of delayed messages. Every timer is in storage before it is told to the machine and stays there until
/// its message has been delivered, so nothing is lost with the memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DelaySchedule {
    window: BTreeSet<TimerKey>,
    /// Timers at or behind this key are in storage only; `None` when all are in memory.
    horizon: Option<TimerKey>,
    refilling: Option<Changes>,
    max_in_memory: usize,
}

/// What changed beyond the horizon since a refill was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Changes {
    added: BTreeSet<TimerKey>,
    cancelled: BTreeSet<TimerKey>,
    /// Additions from this key on were not kept.
    forgot_from: Option<TimerKey>,
    /// Too many cancellations: the rows cannot be trusted and have to be read anew.
    void: bool,
}

impl DelaySchedule {
    /// A schedule that knows nothing yet and asks for the first timers in storage.
    #[must_use]
    pub(crate) fn start(out: &mut Vec<DelayEffect>) -> Self {
        Self::with_capacity(MAX_TIMERS_IN_MEMORY, out)
    }

    fn with_capacity(max_in_memory: usize, out: &mut Vec<DelayEffect>) -> Self {
        let mut schedule =
            Self { window: BTreeSet::new(), horizon: Some(TimerKey::FIRST), refilling: None, max_in_memory };
        schedule.ask_if_low(out);
        schedule
    }

    /// Takes in a timer that is in storage by now. Also gives back one whose delivery did not succeed.
    pub(crate) fn schedule(&mut self, timer: TimerKey) {
        if self.horizon.is_some_and(|horizon| timer >= horizon) {
            if let Some(changes) = &mut self.refilling {
                changes.add(timer, self.max_in_memory);
            }
            return;
        }
        self.window.insert(timer);
        if self.window.len() > self.max_in_memory {
            self.horizon = self.window.pop_last();
            // Rows read by a refill under way begin behind the new horizon: what lies between would be missed.
            if let Some(changes) = &mut self.refilling {
                changes.void = true;
            }
        }
    }

    /// Forgets a timer whose row was deleted. Whether it was in memory; one that [`due`](Self::due) has handed out
    /// is not.
    pub(crate) fn cancel(&mut self, timer: TimerKey, out: &mut Vec<DelayEffect>) -> bool {
        if let Some(changes) = &mut self.refilling {
            changes.cancel(timer, self.max_in_memory);
        }
        let known = self.window.remove(&timer);
        self.ask_if_low(out);
        known
    }

    /// Hands out the timers due at `now`, earliest first, at most `limit`; never one before its time. They are out of
    /// memory then and stay in storage until the caller has moved their messages.
    pub(crate) fn due(&mut self, now: Timestamp, limit: usize, out: &mut Vec<DelayEffect>) -> Vec<TimerKey> {
        let mut due = Vec::new();
        while due.len() < limit {
            match self.window.first() {
                Some(timer) if timer.due <= now => due.extend(self.window.pop_first()),
                _ => break,
            }
        }
        self.ask_if_low(out);
        due
    }

    /// When [`due`](Self::due) has something to hand out next; `None` when nothing is in memory. What is in storage
    /// only is later, and a refill that brings it is under way then.
    #[must_use]
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        self.window.first().map(|timer| timer.due)
    }

    /// Takes in the rows that a [`DelayEffect::Refill`] asked for, in key order; `complete` when the scan came to the
    /// end of the table. An answer that nobody asked for changes nothing.
    pub(crate) fn refill(&mut self, rows: &[TimerKey], complete: bool, out: &mut Vec<DelayEffect>) {
        let (Some(changes), Some(from)) = (self.refilling.take(), self.horizon) else { return };
        if changes.void {
            self.ask_if_low(out);
            return;
        }
        let end_of_rows = if complete { None } else { rows.last().map_or(Some(from), |last| last.next()) };
        self.horizon = earlier(end_of_rows, changes.forgot_from);
        let in_reach = |timer: &&TimerKey| self.horizon.is_none_or(|horizon| **timer < horizon);
        let mut fresh: BTreeSet<TimerKey> = rows.iter().chain(&changes.added).filter(in_reach).copied().collect();
        for timer in &changes.cancelled {
            fresh.remove(timer);
        }
        self.window.append(&mut fresh);
        while self.window.len() > self.max_in_memory {
            self.horizon = self.window.pop_last();
        }
        self.ask_if_low(out);
    }

    fn ask_if_low(&mut self, out: &mut Vec<DelayEffect>) {
        let low = self.window.len() < REFILL_BELOW.min(self.max_in_memory / 2).max(1);
        if let (true, Some(from), None) = (low, self.horizon, &self.refilling) {
            self.refilling = Some(Changes::default());
            out.push(DelayEffect::Refill { from, limit: REFILL_TIMERS.min(self.max_in_memory) });
        }
    }
}

impl Changes {
    fn add(&mut self, timer: TimerKey, bound: usize) {
        self.cancelled.remove(&timer);
        if self.forgot_from.is_none_or(|from| timer < from) {
            self.added.insert(timer);
        }
        if self.added.len() > bound {
            self.forgot_from = self.added.pop_last();
        }
    }

    fn cancel(&mut self, timer: TimerKey, bound: usize) {
        self.cancelled.insert(timer);
        if self.cancelled.len() > bound {
            self.cancelled.clear();
            self.void = true;
        }
    }
}

fn earlier(one: Option<TimerKey>, other: Option<TimerKey>) -> Option<TimerKey> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
#[path = "delay_tests.rs"]
mod tests;

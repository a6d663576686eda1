//! Sends that wait together: they go into the queue as one append and share one answer, so that none of them costs a
//! message to the actor, an allocation or a wake-up of its own.

use std::sync::atomic::{AtomicUsize, Ordering};

use cuemq_storage_api::{QueueKey, Record, Timestamp};

use super::outcome::{Answering, Placed, Ticket};
use crate::admission::{Permit, Taken};
use crate::error::{Error, SharedError};
use crate::limits::{MAX_BURST_BYTES, MAX_BURST_RECORDS};
use crate::storage::WriteResult;

/// Single messages that came one after the other, or one batch.
#[derive(Debug)]
pub(crate) struct Burst {
    records: Vec<Record>,
    bytes: usize,
    /// Whether it is one batch, which nothing joins.
    whole: bool,
    /// When the first of its single messages was handed over: what all of them are born at.
    born_at: Timestamp,
    /// Requests that the actor has looked at, one by one, and whether it is looking at the last of them.
    seen: usize,
    at_hand: bool,
    answering: Answering,
    permit: Permit,
}

/// How many messages bursts had of late. A burst begins with room for as many: one that grows while it is locked, with
/// memory that another thread gives back at the same time, holds both threads up.
#[derive(Debug, Default)]
pub(super) struct UsualSize(AtomicUsize);

impl UsualSize {
    /// Room for the next burst; what was a peak is forgotten within some bursts.
    fn next(&self) -> usize {
        let usual = self.0.load(Ordering::Relaxed);
        self.0.store(usual - usual / 4, Ordering::Relaxed);
        usual.clamp(1, MAX_BURST_RECORDS)
    }

    fn note(&self, records: usize) {
        if records > self.0.load(Ordering::Relaxed) {
            self.0.store(records, Ordering::Relaxed);
        }
    }
}

/// A burst whose records are on their way to storage.
#[derive(Debug)]
pub(super) struct Waiting {
    count: usize,
    answering: Answering,
    _permit: Permit,
}

impl Burst {
    /// Begins a burst of single messages with its first one.
    pub(super) fn single(mut record: Record, born_at: Timestamp, permit: Permit, usual: &UsualSize) -> Self {
        record.born_at = born_at;
        let mut records = Vec::with_capacity(usual.next());
        let bytes = record.payload_bytes();
        records.push(record);
        Self::new(records, bytes, false, born_at, permit)
    }

    /// A batch, which nothing joins.
    pub(super) fn batch(records: Vec<Record>, bytes: usize, permit: Permit) -> Self {
        Self::new(records, bytes, true, Timestamp::MIN, permit)
    }

    fn new(records: Vec<Record>, bytes: usize, whole: bool, born_at: Timestamp, permit: Permit) -> Self {
        let (seen, at_hand, answering) = (0, false, Answering::new());
        Self { records, bytes, whole, born_at, seen, at_hand, answering, permit }
    }

    /// Whether one more single message may join.
    pub(super) fn has_room(&self, record: &Record) -> bool {
        !self.whole && self.records.len() < MAX_BURST_RECORDS && self.bytes + record.payload_bytes() <= MAX_BURST_BYTES
    }

    /// Takes in one more single message, for which it has room.
    pub(super) fn join(&mut self, mut record: Record, taken: Taken<'_>, usual: &UsualSize) -> Ticket {
        record.born_at = self.born_at;
        self.bytes += record.payload_bytes();
        taken.join(&mut self.permit);
        self.records.push(record);
        usual.note(self.records.len());
        self.last_ticket()
    }

    /// The claim of its last request; of a batch, which is one request, the claim to all receipts.
    pub(super) fn last_ticket(&self) -> Ticket {
        let number = if self.whole { 0 } else { self.records.len() - 1 };
        self.answering.ticket(u32::try_from(number).expect("a burst is bounded"))
    }

    /// How many requests it stands for.
    pub(super) fn requests(&self) -> usize {
        if self.whole { 1 } else { self.records.len() }
    }

    pub(super) fn records(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn all(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls `look` once for each request that was not looked at before. If it panics, that request is at hand.
    pub(super) fn look_at_each(&mut self, mut look: impl FnMut()) {
        while self.seen < self.requests() {
            (self.seen, self.at_hand) = (self.seen + 1, true);
            look();
            self.at_hand = false;
        }
    }

    /// Forgets the request that was at hand when the actor panicked; false when nothing is left of the burst.
    pub(super) fn lose_what_is_at_hand(&mut self) -> bool {
        if !std::mem::take(&mut self.at_hand) {
            return true;
        }
        if self.whole {
            return false;
        }
        self.seen -= 1;
        let lost = self.records.remove(self.seen);
        self.bytes -= lost.payload_bytes();
        let number = self.seen + self.answering.losses();
        self.answering.lose(u32::try_from(number).expect("a burst is bounded"));
        !self.records.is_empty()
    }

    /// Parts the records from those who wait for them.
    pub(super) fn into_parts(self) -> (Vec<Record>, Waiting) {
        let waiting = Waiting { count: self.records.len(), answering: self.answering, _permit: self.permit };
        (self.records, waiting)
    }

    /// Answers a burst that was never handed to storage.
    pub(crate) fn refuse(self, error: Error) {
        self.answering.tell(Err(SharedError::new(error)));
    }
}

impl Waiting {
    /// Answers a burst that was not handed to storage after all.
    pub(super) fn refuse(self, error: &SharedError) {
        self.answering.tell(Err(error.clone()));
    }
}

/// Answers everybody whose records were in one write, of which each burst was one append.
pub(super) fn answer(key: &QueueKey, store_id: u64, waiting: Vec<Waiting>, result: WriteResult) {
    let stored = match result {
        Ok(stored) => std::sync::Arc::new(stored),
        Err(error) => return waiting.into_iter().for_each(|burst| burst.answering.tell(Err(error.clone()))),
    };
    let mut first_position = 0;
    for (append, burst) in waiting.into_iter().enumerate() {
        let stored = std::sync::Arc::clone(&stored);
        burst.answering.tell(Ok(Placed { queue: key.clone(), store_id, stored, append, first_position }));
        first_position += burst.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use crate::admission::Admission;
    use crate::settings::BrokerSettings;

    fn burst(admission: &Arc<Admission>, count: usize) -> Burst {
        let record = |n: usize| Record::new(n.to_string(), Timestamp::MIN);
        let (permit, usual) = (admission.try_take(1, 1).unwrap().keep(), UsualSize::default());
        let mut burst = Burst::single(record(0), Timestamp::from_millis(7), permit, &usual);
        for n in 1..count {
            assert!(burst.has_room(&record(n)));
            burst.join(record(n), admission.try_take(1, 1).unwrap(), &usual);
        }
        burst
    }

    #[test]
    fn a_request_that_panics_is_lost_and_the_others_are_kept() {
        let admission = Admission::new(&BrokerSettings::default());
        let mut burst = burst(&admission, 5);
        let mut looks = 0;
        for panic_at in [2, 5, 6] {
            let look = || {
                looks += 1;
                assert_ne!(looks, panic_at, "on purpose");
            };
            let panicked = catch_unwind(AssertUnwindSafe(|| burst.look_at_each(look))).is_err();
            assert_eq!(panicked, panic_at < 6);
            assert!(burst.lose_what_is_at_hand());
        }
        let left: Vec<_> = burst.records.iter().map(|record| record.body.clone()).collect();
        assert_eq!(left, ["0", "2", "3"], "the second and the fifth are gone");
        assert_eq!((burst.bytes(), burst.answering.losses(), looks), (3, 2, 5));
        assert!(burst.records.iter().all(|record| record.born_at == Timestamp::from_millis(7)));
    }

    #[test]
    fn the_usual_size_follows_the_last_bursts_and_is_bounded() {
        let usual = UsualSize::default();
        assert_eq!(usual.next(), 1, "nobody has sent");
        usual.note(MAX_BURST_RECORDS + 5);
        assert_eq!(usual.next(), MAX_BURST_RECORDS);
        usual.note(100);
        let falling: Vec<_> = (0..30).map(|_| usual.next()).collect();
        assert!(falling.is_sorted_by(|one, next| one >= next) && falling[0] > 100, "{falling:?}");
        assert!(falling[29] <= 3, "{falling:?}");
        usual.note(64);
        assert_eq!(usual.next(), 64);
    }

    #[test]
    fn bounds_hold() {
        let admission = Admission::new(&BrokerSettings::default());
        let full = burst(&admission, MAX_BURST_RECORDS);
        assert!(!full.has_room(&Record::new("x", Timestamp::MIN)));
        let large = burst(&admission, 1);
        assert!(!large.has_room(&Record::new(vec![0; MAX_BURST_BYTES], Timestamp::MIN)));
        let permit = admission.try_take(2, 2).unwrap().keep();
        let batch = Burst::batch(vec![Record::new("x", Timestamp::MIN); 2], 2, permit);
        assert!(!batch.has_room(&Record::new("x", Timestamp::MIN)));
        assert_eq!((batch.requests(), batch.records()), (1, 2));
    }
}

//! What a consumer group has to deliver, as plainly as it can be said: one entry per message, no queues, no offsets.

use std::collections::BTreeMap;

use cuemq::{DeadReason, Order, QueueKey, Timestamp};

/// Where a message stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// It may be delivered from this time on, and has to be from that one on.
    Ready {
        from: Timestamp,
        surely: Timestamp,
    },
    /// Somebody has it, since this change of the membership.
    Out {
        member: u64,
        epoch: u64,
        delivery: u64,
    },
    Done,
    Dead(DeadReason),
}

/// One message as a group sees it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) status: Status,
    /// Its sharding key: where order counts, messages of one key come one after the other.
    pub(crate) key: Option<u8>,
    /// Failed deliveries that storage knows of.
    pub(crate) failures: u32,
    /// Failed deliveries that only the member knows of who had them.
    pub(crate) failures_in_memory: u32,
    /// The queue in which it was delivered last.
    pub(crate) queue: Option<QueueKey>,
    pub(crate) expires_at: Option<Timestamp>,
    /// When it comes again if nobody settles it: popped messages only.
    pub(crate) invisible_until: Option<Timestamp>,
    /// The holder may have lost its queue meanwhile: the message may come to another.
    pub(crate) loose: bool,
}

/// The reference: entries by the number that each message carries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) entries: BTreeMap<u64, Entry>,
    /// The pool of the pop consumers, and whether one of them is there.
    pub(crate) pool: Option<u64>,
    pub(crate) pool_is_served: bool,
    /// Changes of the membership so far.
    pub(crate) epoch: u64,
    pub(crate) paused: bool,
    pub(crate) order: Order,
    deliveries: u64,
}

/// Redeliveries of the group's policy, in seconds.
pub(crate) const PAUSES_S: [u64; 2] = [10, 30];

impl Entry {
    fn is_over(&self) -> bool {
        matches!(self.status, Status::Done | Status::Dead(_))
    }
}

impl Reference {
    pub(crate) fn new(order: Order) -> Self {
        Self { order, ..Self::default() }
    }

    pub(crate) fn sent(&mut self, number: u64, key: Option<u8>, from: Timestamp, expires_at: Option<Timestamp>) {
        let status = Status::Ready { from, surely: from };
        let entry = Entry {
            status,
            key,
            failures: 0,
            failures_in_memory: 0,
            queue: None,
            expires_at,
            invisible_until: None,
            loose: false,
        };
        assert!(self.entries.insert(number, entry).is_none(), "message {number} is sent twice by the test");
    }

    fn is_expired(entry: &Entry, now: Timestamp) -> bool {
        entry.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether this message may be delivered now.
    pub(crate) fn may_come(&self, number: u64, now: Timestamp) -> bool {
        let Some(entry) = self.entries.get(&number) else { return false };
        let ready = match entry.status {
            Status::Ready { from, .. } => from <= now && !Self::is_expired(entry, now),
            Status::Out { .. } => entry.loose,
            Status::Done | Status::Dead(_) => false,
        };
        ready && !self.paused && self.is_first_of_its_key(number, entry)
    }

    /// Where order counts: nothing of a key comes while an earlier message of it has not come to its end.
    fn is_first_of_its_key(&self, number: u64, entry: &Entry) -> bool {
        self.order == Order::Concurrent
            || entry.key.is_none()
            || self.entries.range(..number).all(|(_, earlier)| earlier.key != entry.key || earlier.is_over())
    }

    /// Whether some message has to come to whoever asks: one that is ready, in a queue that nobody has to give up first.
    pub(crate) fn must_come(&self, now: Timestamp) -> bool {
        // A message that is out since before a change of the membership keeps its queue from the next holder.
        let blocks = |entry: &Entry| match entry.status {
            Status::Out { epoch, member, .. } => {
                // A pool without consumers keeps its queues until nothing of it is in flight.
                let orphaned = self.pool == Some(member) && !self.pool_is_served;
                epoch < self.epoch || entry.loose || orphaned || self.order == Order::Queue
            }
            // In order, one that comes again later holds up its queue.
            Status::Ready { surely, .. } => self.order == Order::Queue && surely > now,
            Status::Done | Status::Dead(_) => false,
        };
        let has_to_come = |(number, entry): (&u64, &Entry)| {
            matches!(entry.status, Status::Ready { surely, .. } if surely <= now) && self.may_come(*number, now)
        };
        !self.entries.values().any(blocks) && self.entries.iter().any(has_to_come)
    }

    /// Takes a delivery in.
    pub(crate) fn delivered(
        &mut self,
        number: u64,
        member: u64,
        queue: &QueueKey,
        attempts: u32,
        now: Timestamp,
    ) -> u64 {
        assert!(self.may_come(number, now), "message {number} may not come now: {:?}", self.entries.get(&number));
        self.deliveries += 1;
        let (epoch, delivery) = (self.epoch, self.deliveries);
        let entry = self.entries.get_mut(&number).expect("it may come");
        assert!(
            (entry.failures..=entry.failures + entry.failures_in_memory).contains(&attempts),
            "message {number} says {attempts} failed deliveries: {entry:?}"
        );
        entry.failures_in_memory = attempts - entry.failures;
        entry.status = Status::Out { member, epoch, delivery };
        entry.queue = Some(queue.clone());
        entry.invisible_until = None;
        entry.loose = false;
        delivery
    }

    fn entry(&mut self, number: u64) -> &mut Entry {
        self.entries.get_mut(&number).expect("only what was sent is settled")
    }

    pub(crate) fn done(&mut self, number: u64) {
        let entry = self.entry(number);
        entry.status = Status::Done;
        entry.loose = false;
    }

    pub(crate) fn rejected(&mut self, number: u64) {
        self.dead(number, DeadReason::Rejected);
    }

    fn dead(&mut self, number: u64, reason: DeadReason) {
        let entry = self.entry(number);
        entry.status = Status::Dead(reason);
        entry.loose = false;
    }

    /// The message failed and is stored for another try, after `pause` or as the policy says.
    pub(crate) fn failed(&mut self, number: u64, pause: Option<u64>, now: Timestamp) {
        let entry = self.entry(number);
        entry.failures += entry.failures_in_memory + 1;
        entry.failures_in_memory = 0;
        entry.loose = false;
        if Self::is_expired(entry, now) {
            return self.dead(number, DeadReason::Expired);
        }
        let Some(scheduled) = PAUSES_S.get(entry.failures as usize - 1) else {
            return self.dead(number, DeadReason::RetriesExceeded);
        };
        let from = now.plus(std::time::Duration::from_secs(pause.unwrap_or(*scheduled)));
        entry.status = Status::Ready { from, surely: from };
    }

    /// The message was given back by its holder and comes again to it at this time; at once to another, if the queue
    /// goes to that one first.
    pub(crate) fn given_back(&mut self, number: u64, now: Timestamp, again_at: Timestamp) {
        let current = self.epoch;
        let entry = self.entry(number);
        let may_move = entry.loose || matches!(entry.status, Status::Out { epoch, .. } if epoch < current);
        entry.status = Status::Ready { from: if may_move { now } else { again_at }, surely: again_at };
        entry.failures_in_memory += 1;
        entry.loose = false;
    }

    /// Whether the message is out by this delivery, and not by a later one or settled.
    pub(crate) fn is_out_by(&self, number: u64, by: u64) -> bool {
        matches!(self.entries[&number].status, Status::Out { delivery, .. } if delivery == by)
    }

    /// A message that was delivered by pop stays out until then, if nobody settles it.
    pub(crate) fn popped(&mut self, number: u64, until: Timestamp) {
        self.entry(number).invisible_until = Some(until);
    }

    /// A holder was told that it has lost its queue: the message is there for the next one, if that has it not already.
    pub(crate) fn refused(&mut self, number: u64, by: u64, now: Timestamp) {
        let is_out = self.is_out_by(number, by);
        let entry = self.entry(number);
        if is_out {
            assert!(entry.loose, "message {number} was refused without a reason: {entry:?}");
            entry.status = Status::Ready { from: now, surely: now };
            entry.loose = false;
        }
    }

    fn refused_to_all(&mut self, number: u64, now: Timestamp) {
        let entry = self.entry(number);
        entry.status = Status::Ready { from: now, surely: now };
        entry.loose = false;
    }

    /// A member is gone, or all of them: what they had is there for others at once.
    pub(crate) fn abandoned(&mut self, member: Option<u64>, now: Timestamp) {
        for entry in self.entries.values_mut() {
            match entry.status {
                Status::Out { member: holder, .. } if member.is_none_or(|member| member == holder) => {
                    entry.status = Status::Ready { from: now, surely: now };
                    entry.loose = false;
                }
                // What a member was to get again later, it may have forgotten with its queue.
                Status::Ready { from, surely } if entry.failures_in_memory > 0 => {
                    entry.status = Status::Ready { from: from.min(now), surely };
                }
                _ => {}
            }
        }
    }

    /// The membership changed: queues may move.
    pub(crate) fn changed(&mut self, now: Timestamp) {
        self.epoch += 1;
        // A queue that moves takes along what waited in its holder's memory.
        for entry in self.entries.values_mut() {
            if let Status::Ready { from, surely } = entry.status
                && entry.failures_in_memory > 0
            {
                entry.status = Status::Ready { from: from.min(now), surely };
            }
        }
    }

    /// Time passes; `patience` is over for those who hold a queue since before a change.
    pub(crate) fn passed(&mut self, now: Timestamp, past_patience: bool) {
        let current = self.epoch;
        let over = |entry: &Entry| {
            matches!(entry.status, Status::Out { .. }) && entry.invisible_until.is_some_and(|until| until <= now)
        };
        let invisible: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| over(entry)).map(|(number, _)| *number).collect();
        for number in invisible {
            // Whoever lost the queue before has nothing that could fail.
            if self.entry(number).loose { self.refused_to_all(number, now) } else { self.failed(number, Some(0), now) }
        }
        for entry in self.entries.values_mut() {
            match entry.status {
                Status::Out { epoch, .. } if past_patience && epoch < current => entry.loose = true,
                Status::Ready { .. } if Self::is_expired(entry, now) => {
                    entry.status = Status::Dead(DeadReason::Expired)
                }
                _ => {}
            }
        }
    }

    /// Whether everything that was sent has come to an end.
    pub(crate) fn is_over(&self) -> bool {
        self.entries.values().all(Entry::is_over)
    }

    /// The numbers of those that are dead letters, in order, with why.
    pub(crate) fn dead_letters(&self) -> Vec<(u64, DeadReason)> {
        let dead = |(number, entry): (&u64, &Entry)| match entry.status {
            Status::Dead(reason) => Some((*number, reason)),
            _ => None,
        };
        self.entries.iter().filter_map(dead).collect()
    }
}

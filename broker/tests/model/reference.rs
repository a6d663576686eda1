//! What a consumer group has to deliver, as plainly as it can be said: one entry per message, and where it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cuemq::{DeadReason, Order, QueueKey, Timestamp};

use super::entry::{Entry, Home, Letter, Status};

/// The reference: entries by the number that each of them got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) entries: BTreeMap<u64, Entry>,
    /// What is stored where in the topic.
    pub(crate) homes: BTreeMap<(QueueKey, u64), u64>,
    /// Queues that the group has begun to read.
    pub(crate) known: BTreeSet<QueueKey>,
    /// Dead letters that nobody has dealt with.
    pub(crate) letters: Vec<Letter>,
    /// The pool of the pop consumers, and whether one of them is there.
    pub(crate) pool: Option<u64>,
    pub(crate) pool_is_served: bool,
    /// Changes of the membership so far.
    pub(crate) epoch: u64,
    /// Changes of the number of queues so far.
    pub(crate) generation: u64,
    pub(crate) paused: bool,
    pub(crate) order: Order,
    deliveries: u64,
    next_entry: u64,
}

/// Redeliveries of the group's policy, in seconds.
pub(crate) const PAUSES_S: [u64; 2] = [10, 30];

impl Reference {
    pub(crate) fn new(order: Order) -> Self {
        Self { order, ..Self::default() }
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        self.entries.insert(self.next_entry, entry);
        self.next_entry += 1;
    }

    /// Something was found in the topic, now or once more.
    pub(crate) fn located(&mut self, queue: &QueueKey, offset: u64, message: u64, stored_at: Timestamp) {
        let place = self.homes.len() as u64;
        if let Some(known) = self.homes.get(&(queue.clone(), offset)) {
            assert_eq!(self.entries[known].message, message, "{queue}/{offset} has changed");
            return;
        }
        let is_new = |entry: &Entry| {
            let due = matches!(entry.status, Status::Ready { from, .. } if from <= stored_at);
            entry.message == message && !entry.is_stored() && due
        };
        let found = self.entries.iter_mut().find(|(_, entry)| is_new(entry));
        let (number, entry) = found.unwrap_or_else(|| panic!("message {message} at {queue}/{offset} is a phantom"));
        let generation = self.generation;
        entry.home = Some(Home { queue: queue.clone(), offset, stored_at, place, generation });
        self.homes.insert((queue.clone(), offset), *number);
    }

    /// Everything that is due by now was found.
    pub(crate) fn assert_located(&self, now: Timestamp) {
        let missing =
            |entry: &&Entry| !entry.is_stored() && matches!(entry.status, Status::Ready { from, .. } if from <= now);
        assert!(
            !self.entries.values().any(|entry| missing(&entry)),
            "{:?} is lost",
            self.entries.values().find(missing)
        );
    }

    /// Whether this message may be delivered now.
    pub(crate) fn may_come(&self, number: u64, now: Timestamp) -> bool {
        let entry = &self.entries[&number];
        let ready = match entry.status {
            Status::Ready { from, .. } => from <= now,
            Status::Out { .. } => entry.loose,
            Status::Over => false,
        };
        ready && entry.is_stored() && !entry.is_expired(now) && !self.paused && self.is_in_order(entry)
    }

    /// Where order counts: nothing of a key comes while an earlier message of it has not come to its end, and nothing
    /// from behind a change of the number of queues before everything in front of it.
    fn is_in_order(&self, entry: &Entry) -> bool {
        let (Some(home), true) = (&entry.home, self.order != Order::Concurrent) else { return true };
        let holds_up = |other: &Entry| {
            other.home.as_ref().is_some_and(|its| {
                let of_key = entry.key.is_some() && other.key == entry.key && its.place < home.place;
                !other.is_over() && (of_key || its.generation < home.generation)
            })
        };
        !self.entries.values().any(holds_up)
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
            Status::Over => entry.passed_over.is_some() && entry.invisible_until.is_some_and(|until| until > now),
        };
        let has_to_come = |(number, entry): (&u64, &Entry)| {
            matches!(entry.status, Status::Ready { surely, .. } if surely <= now) && self.may_come(*number, now)
        };
        !self.entries.values().any(blocks) && self.entries.iter().any(has_to_come)
    }

    /// Which message a delivery is; one that comes by way of the retry topic tells by its number and attempts only.
    fn find(&self, message: u64, home: &(QueueKey, u64), attempts: u32, now: Timestamp) -> u64 {
        if let Some(number) = self.homes.get(home) {
            assert_eq!(self.entries[number].message, message, "another message came out of {home:?}");
            return *number;
        }
        let fits = |(number, entry): &(&u64, &Entry)| {
            let (least, most) = (entry.failures, entry.failures + entry.failures_in_memory);
            entry.is_retry
                && entry.message == message
                && (least..=most).contains(&attempts)
                && self.may_come(**number, now)
        };
        let earliest = |(_, entry): &(&u64, &Entry)| match entry.status {
            Status::Ready { surely, .. } => surely,
            _ => Timestamp::MAX,
        };
        let found = self.entries.iter().filter(fits).min_by_key(earliest);
        let of_it: Vec<&Entry> = self.entries.values().filter(|entry| entry.message == message).collect();
        let (number, _) =
            found.unwrap_or_else(|| panic!("{home:?}, after {attempts} failures, may not come: {of_it:?}"));
        *number
    }

    /// Takes a delivery in; says which message it is, and which delivery.
    pub(crate) fn delivered(
        &mut self,
        message: u64,
        home: &(QueueKey, u64),
        member: u64,
        attempts: u32,
        now: Timestamp,
    ) -> (u64, u64) {
        let number = self.find(message, home, attempts, now);
        assert!(self.may_come(number, now), "message {number} may not come now: {:?}", self.entries[&number]);
        self.deliveries += 1;
        let (epoch, delivery) = (self.epoch, self.deliveries);
        let entry = self.entry(number);
        assert!(
            (entry.failures..=entry.failures + entry.failures_in_memory).contains(&attempts),
            "message {number} says {attempts} failed deliveries: {entry:?}"
        );
        entry.failures_in_memory = attempts - entry.failures;
        entry.status = Status::Out { member, epoch, delivery };
        entry.invisible_until = None;
        entry.loose = false;
        (number, delivery)
    }

    pub(crate) fn entry(&mut self, number: u64) -> &mut Entry {
        self.entries.get_mut(&number).expect("only what was sent is settled")
    }

    pub(crate) fn done(&mut self, number: u64) {
        self.entry(number).end();
    }

    pub(crate) fn rejected(&mut self, number: u64) {
        let entry = self.entry(number);
        let attempts = entry.failures + entry.failures_in_memory + 1;
        self.died(number, DeadReason::Rejected, attempts..=attempts);
    }

    fn died(&mut self, number: u64, reason: DeadReason, attempts: std::ops::RangeInclusive<u32>) {
        let known = &self.known;
        let entry = self.entries.get_mut(&number).expect("only what was sent dies");
        entry.end();
        let (message, key) = (entry.message, entry.key);
        let is_read = entry.home.as_ref().is_none_or(|home| known.contains(&home.queue));
        let in_hand = entry.ended_in_hand || attempts.start() != attempts.end();
        let may_be_late = reason == DeadReason::Expired && (in_hand || !is_read);
        self.letters.push(Letter { message, key, reason, attempts, may_be_late });
    }

    /// The message failed and is stored for another try, after `pause` or as the policy says.
    pub(crate) fn failed(&mut self, number: u64, pause: Option<u64>, now: Timestamp) {
        let entry = self.entry(number);
        let failures = entry.failures + entry.failures_in_memory + 1;
        let Some(scheduled) = PAUSES_S.get(failures as usize - 1) else {
            return self.died(number, DeadReason::RetriesExceeded, failures..=failures);
        };
        if entry.is_expired(now) {
            return self.died(number, DeadReason::Expired, failures..=failures);
        }
        let mut retry = entry.retry_of();
        entry.end();
        (retry.failures, retry.failures_in_memory) = (failures, 0);
        let from = now.plus(Duration::from_secs(pause.unwrap_or(*scheduled)));
        retry.free(from, from);
        self.add(retry);
    }

    /// The message was given back by its holder and comes again to it at this time; at once to another, if the queue
    /// goes to that one first.
    pub(crate) fn given_back(&mut self, number: u64, now: Timestamp, again_at: Timestamp) {
        let current = self.epoch;
        let entry = self.entry(number);
        let may_move = entry.loose || matches!(entry.status, Status::Out { epoch, .. } if epoch < current);
        entry.free(if may_move { now } else { again_at }, again_at);
        entry.failures_in_memory += 1;
    }

    /// Whether the message is out by this delivery, and not by a later one or settled.
    pub(crate) fn is_out_by(&self, number: u64, by: u64) -> bool {
        matches!(self.entries[&number].status, Status::Out { delivery, .. } if delivery == by)
    }

    /// A message that was delivered by pop stays out until then, if nobody settles it.
    pub(crate) fn popped(&mut self, number: u64, until: Timestamp) {
        self.entry(number).invisible_until = Some(until);
    }

    /// How many popped messages are invisible still, at most.
    pub(crate) fn most_invisible(&self, now: Timestamp) -> usize {
        self.entries.values().filter(|entry| entry.invisible_until.is_some_and(|until| until > now)).count()
    }

    /// A holder was told that it has lost its queue: the message is there for the next one, if that has it not already.
    pub(crate) fn refused(&mut self, number: u64, by: u64, now: Timestamp) {
        if self.is_out_by(number, by) {
            let entry = self.entry(number);
            assert!(entry.loose, "message {number} was refused without a reason: {entry:?}");
            entry.free(now, now);
        }
    }

    /// A member is gone, or all of them: what they had is there for others at once.
    pub(crate) fn abandoned(&mut self, member: Option<u64>, now: Timestamp) {
        for entry in self.entries.values_mut() {
            match entry.status {
                Status::Out { member: holder, .. } if member.is_none_or(|member| member == holder) => {
                    entry.free(now, now);
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

    pub(crate) fn numbers(&self, of: impl Fn(&Entry) -> bool) -> Vec<u64> {
        self.entries.iter().filter(|(_, entry)| of(entry)).map(|(number, _)| *number).collect()
    }

    /// Time passes; `patience` is over for those who hold a queue since before a change.
    pub(crate) fn passed(&mut self, now: Timestamp, past_patience: bool) {
        let current = self.epoch;
        let invisible = self.numbers(|entry| {
            matches!(entry.status, Status::Out { .. }) && entry.invisible_until.is_some_and(|until| until <= now)
        });
        for number in invisible {
            let entry = self.entry(number);
            // Whoever lost the queue before has nothing that could fail.
            if entry.loose { entry.free(now, now) } else { self.failed(number, Some(0), now) }
        }
        for entry in self.entries.values_mut() {
            if matches!(entry.status, Status::Out { epoch, .. } if past_patience && epoch < current) {
                entry.loose = true;
            }
        }
        self.expire(now);
    }

    /// What nobody has and whose time is over dies.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        for entry in self.entries.values_mut() {
            entry.ended_in_hand |= matches!(entry.status, Status::Out { .. }) && entry.is_expired(now);
        }
        let expired =
            |entry: &Entry| matches!(entry.status, Status::Ready { .. }) && entry.is_stored() && entry.is_expired(now);
        self.numbers(expired).into_iter().for_each(|number| self.expired(number));
    }

    pub(crate) fn expired(&mut self, number: u64) {
        let entry = self.entry(number);
        let attempts = entry.failures..=entry.failures + entry.failures_in_memory;
        self.died(number, DeadReason::Expired, attempts);
    }

    /// Whether everything that was sent has come to an end.
    pub(crate) fn is_over(&self) -> bool {
        self.entries.values().all(Entry::is_over)
    }
}

//! Messages that are popped: out with somebody, under a receipt, for as long as their invisible time lasts.
//!
//! ```text
//!  give ─▶ in flight ──ack───────────────────────────▶ settled, remembered for a while
//!           │  │  ▲ └──nack, reject─▶ being settled ──stored──▶ settled
//!           │  │  └───────────────────────┘ not stored
//!           │  └─renew─▶ in flight under a new receipt; the old one is stale
//!           └─ invisible time over ─▶ being failed ──stored──▶ expired: a copy comes again
//!                                       ▲    │
//!                                       └────┘ not stored: once more after a pause
//! ```
//! The first answer stands: the same one again is no error, the opposite one is refused. Nothing in here is durable:
//! after a restart everything that was in flight is available again, and its receipts are stale.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;

use cuemq_storage_api::{QueueKey, QueueOffset, Timestamp};

use super::membership::Lease;
use super::pop_receipt::PopReceipt;

/// The bounds of one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PopSettings {
    /// Most messages in flight.
    pub(crate) max_in_flight: usize,
    /// Deliveries whose end is remembered; beyond that the oldest are forgotten.
    pub(crate) max_remembered: usize,
}

/// Numbers the deliveries of one group, rising, also over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct DeliveryId(u64);

/// Numbers the pools of one group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct PoolId(pub(crate) u32);

/// A message that is out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flight {
    /// Its queue.
    pub(crate) queue: QueueKey,
    /// Its offset in it.
    pub(crate) offset: QueueOffset,
    /// Which pool gave it out.
    pub(crate) pool: PoolId,
    /// The lease under which that pool held the queue.
    pub(crate) lease: Lease,
    /// Its payload, as it counts against the pool's credit.
    pub(crate) bytes: u32,
    /// Redeliveries before it that storage does not know of.
    pub(crate) redeliveries: u32,
}

/// What became of a message by the word of whoever popped it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum PopAnswer {
    /// It is done.
    Ack,
    /// It shall come again.
    Nack,
    /// It can never be done.
    Reject,
}

/// How an answer was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Begun {
    /// It is being stored because of this call; then call [`Pops::ended`] or [`Pops::not_ended`].
    Started(DeliveryId, Flight),
    /// The same answer is being stored because of an earlier call.
    UnderWay(DeliveryId),
    /// The same answer was stored before.
    Already,
}

/// A receipt that is not good any more, or never was. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PopRefused {
    /// No such receipt was ever given out.
    Forged,
    /// It was given out before the broker was opened.
    Earlier,
    /// It was good once; its end is so long ago that it is forgotten.
    Forgotten,
    /// It was renewed: the new receipt counts.
    Renewed,
    /// The message's invisible time ended then: it comes again.
    Expired { at: Timestamp },
    /// The group lost sight of what was in flight, in a restart of its actor or a reset: it comes again.
    Interrupted,
    /// Another answer came first.
    Conflict { first: PopAnswer },
}

/// The group has its most messages in flight already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooManyInFlight {
    /// The limit.
    pub(crate) limit: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    Answer(PopAnswer),
    Expired,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Out {
    flight: Flight,
    /// The end of its invisible time.
    until: Timestamp,
    settling: Option<Cause>,
}

/// How a delivery ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Answered(PopAnswer),
    Renewed,
    Expired(Timestamp),
    /// It never reached anybody, or was taken out of flight.
    Withdrawn,
}

/// Everything that one group has in flight, and how the latest deliveries ended.
#[derive(Debug)]
pub(crate) struct Pops {
    settings: PopSettings,
    secret: RandomState,
    first: DeliveryId,
    next: DeliveryId,
    /// Of deliveries below this that are not remembered, some were in flight when the group lost sight of them.
    interrupted: DeliveryId,
    out: HashMap<DeliveryId, Out>,
    /// What is out by its place.
    places: HashMap<QueueKey, BTreeSet<(QueueOffset, DeliveryId)>>,
    /// When to look at what is out. A delivery that is out no more is passed over.
    deadlines: BTreeSet<(Timestamp, DeliveryId)>,
    endings: HashMap<DeliveryId, Ending>,
    /// Remembered endings, the oldest first.
    ended: VecDeque<DeliveryId>,
}

impl Pops {
    /// Nothing is in flight. The first delivery gets this number; every one of an earlier opening has a lower one.
    #[must_use]
    pub(crate) fn new(settings: PopSettings, first: u64) -> Self {
        let first = DeliveryId(first);
        Self {
            settings,
            secret: RandomState::new(),
            first,
            next: first,
            interrupted: first,
            out: HashMap::new(),
            places: HashMap::new(),
            deadlines: BTreeSet::new(),
            endings: HashMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// How many messages are in flight.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.out.len()
    }

    /// How many more may be given out.
    #[must_use]
    pub(crate) fn room(&self) -> usize {
        self.settings.max_in_flight.saturating_sub(self.out.len())
    }

    /// The offsets of a queue that are in flight, rising.
    pub(crate) fn offsets_of(&self, queue: &QueueKey) -> impl Iterator<Item = QueueOffset> {
        self.places.get(queue).into_iter().flatten().map(|(offset, _)| *offset)
    }

    /// Whether a message is in flight.
    #[must_use]
    pub(crate) fn is_in_flight(&self, queue: &QueueKey, offset: QueueOffset) -> bool {
        let of_it = (offset, DeliveryId(0))..=(offset, DeliveryId(u64::MAX));
        self.places.get(queue).is_some_and(|places| places.range(of_it).next().is_some())
    }

    /// Everything that is in flight, in no order.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Flight> {
        self.out.values().map(|out| out.flight.clone()).collect()
    }

    /// Gives a message out until its invisible time ends.
    ///
    /// # Errors
    /// When too many are in flight; nothing has changed then.
    pub(crate) fn give(&mut self, flight: Flight, until: Timestamp) -> Result<PopReceipt, TooManyInFlight> {
        if self.room() == 0 {
            return Err(TooManyInFlight { limit: self.settings.max_in_flight });
        }
        Ok(self.fly(Out { flight, until, settling: None }))
    }

    /// Ends a delivery as done; `None` when it was done before.
    ///
    /// # Errors
    /// When the receipt is not good.
    pub(crate) fn ack(&mut self, receipt: &PopReceipt, now: Timestamp) -> Result<Option<Flight>, PopRefused> {
        match self.begin(receipt, PopAnswer::Ack, now)? {
            Begun::Started(id, _) => Ok(self.ended(id)),
            Begun::UnderWay(_) | Begun::Already => Ok(None),
        }
    }

    /// Takes an answer that counts once it is stored.
    ///
    /// # Errors
    /// When the receipt is not good.
    pub(crate) fn begin(
        &mut self,
        receipt: &PopReceipt,
        answer: PopAnswer,
        now: Timestamp,
    ) -> Result<Begun, PopRefused> {
        let id = self.check(receipt)?;
        let same = |first, begun| if first == answer { Ok(begun) } else { Err(PopRefused::Conflict { first }) };
        if let Some(Ending::Answered(first)) = self.endings.get(&id) {
            return same(*first, Begun::Already);
        }
        let out = self.out.get_mut(&id).ok_or(PopRefused::Forgotten)?;
        match out.settling {
            Some(Cause::Answer(first)) => same(first, Begun::UnderWay(id)),
            None if out.until > now => {
                out.settling = Some(Cause::Answer(answer));
                self.deadlines.remove(&(out.until, id));
                Ok(Begun::Started(id, out.flight.clone()))
            }
            Some(Cause::Expired) | None => Err(PopRefused::Expired { at: out.until }),
        }
    }

    /// What was begun is stored: the delivery has ended.
    pub(crate) fn ended(&mut self, id: DeliveryId) -> Option<Flight> {
        let cause = self.out.get(&id)?.settling?;
        let out = self.take_out(id)?;
        let ending = match cause {
            Cause::Answer(answer) => Ending::Answered(answer),
            Cause::Expired => Ending::Expired(out.until),
        };
        self.remember(id, ending);
        Some(out.flight)
    }

    /// What was begun surely was not stored. An answer may be given anew; what has expired meanwhile is failed at
    /// `again_at`.
    pub(crate) fn not_ended(&mut self, id: DeliveryId, again_at: Timestamp) {
        if let Some(out) = self.out.get_mut(&id)
            && out.settling.take().is_some()
        {
            self.deadlines.insert((out.until.max(again_at), id));
        }
    }

    /// Makes a delivery last until another time, under a new receipt: the old one is stale.
    ///
    /// # Errors
    /// When the receipt is not good, or the message is settled.
    pub(crate) fn renew(
        &mut self,
        receipt: &PopReceipt,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<PopReceipt, PopRefused> {
        let id = self.check(receipt)?;
        if let Some(Ending::Answered(first)) = self.endings.get(&id) {
            return Err(PopRefused::Conflict { first: *first });
        }
        let out = self.out.get(&id).ok_or(PopRefused::Forgotten)?;
        match out.settling {
            Some(Cause::Answer(first)) => return Err(PopRefused::Conflict { first }),
            Some(Cause::Expired) => return Err(PopRefused::Expired { at: out.until }),
            None if out.until <= now => return Err(PopRefused::Expired { at: out.until }),
            None => {}
        }
        let out = self.withdraw(id, Ending::Renewed).ok_or(PopRefused::Forgotten)?;
        Ok(self.fly(Out { until, ..out }))
    }

    /// Takes a delivery back that reached nobody; `None` when it has ended or is ending.
    pub(crate) fn take_back(&mut self, receipt: &PopReceipt) -> Option<Flight> {
        let id = self.check(receipt).ok()?;
        self.out.get(&id).filter(|out| out.settling.is_none())?;
        self.withdraw(id, Ending::Withdrawn).map(|out| out.flight)
    }

    /// Ends a delivery, also one that is being settled, whose message is not its group's any more.
    pub(crate) fn abandon(&mut self, id: DeliveryId) -> Option<Flight> {
        self.withdraw(id, Ending::Withdrawn).map(|out| out.flight)
    }

    /// The deliveries whose invisible time is over, at most `most`: each is to be failed, and then
    /// [`ended`](Self::ended) or [`not_ended`](Self::not_ended).
    pub(crate) fn expire(&mut self, now: Timestamp, most: usize) -> Vec<(DeliveryId, Flight)> {
        let mut expired = Vec::new();
        while expired.len() < most
            && let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            if let Some(out) = self.out.get_mut(&id).filter(|out| out.settling.is_none()) {
                out.settling = Some(Cause::Expired);
                expired.push((id, out.flight.clone()));
            }
        }
        expired
    }

    /// When [`expire`](Self::expire) has something to do next.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Loses sight of everything in flight, or of one queue's part of it; returns that.
    pub(crate) fn interrupt(&mut self, of: Option<&QueueKey>) -> Vec<Flight> {
        let ids: Vec<DeliveryId> = match of {
            Some(queue) => self.places.get(queue).into_iter().flatten().map(|(_, id)| *id).collect(),
            None => self.out.keys().copied().collect(),
        };
        self.interrupted = self.next;
        ids.into_iter().filter_map(|id| self.withdraw(id, Ending::Withdrawn)).map(|out| out.flight).collect()
    }

    fn fly(&mut self, out: Out) -> PopReceipt {
        let id = self.next;
        self.next = DeliveryId(id.0 + 1);
        let Flight { queue, offset, .. } = &out.flight;
        let seal = self.secret.hash_one((queue, offset, id));
        let receipt = PopReceipt { queue: queue.clone(), offset: *offset, delivery: id.0, seal };
        self.deadlines.insert((out.until, id));
        self.places.entry(queue.clone()).or_default().insert((*offset, id));
        self.out.insert(id, out);
        receipt
    }

    fn take_out(&mut self, id: DeliveryId) -> Option<Out> {
        let out = self.out.remove(&id)?;
        if let Some(places) = self.places.get_mut(&out.flight.queue) {
            places.remove(&(out.flight.offset, id));
            if places.is_empty() {
                self.places.remove(&out.flight.queue);
            }
        }
        Some(out)
    }

    fn withdraw(&mut self, id: DeliveryId, ending: Ending) -> Option<Out> {
        let out = self.take_out(id)?;
        self.deadlines.remove(&(out.until, id));
        self.remember(id, ending);
        Some(out)
    }

    fn remember(&mut self, id: DeliveryId, ending: Ending) {
        self.endings.insert(id, ending);
        self.ended.push_back(id);
        while self.ended.len() > self.settings.max_remembered {
            if let Some(oldest) = self.ended.pop_front() {
                self.endings.remove(&oldest);
            }
        }
    }

    /// Whose receipt it is, if that delivery is out or was answered.
    fn check(&self, receipt: &PopReceipt) -> Result<DeliveryId, PopRefused> {
        let id = DeliveryId(receipt.delivery);
        if id < self.first {
            return Err(PopRefused::Earlier);
        }
        if id >= self.next || self.secret.hash_one((&receipt.queue, &receipt.offset, id)) != receipt.seal {
            return Err(PopRefused::Forged);
        }
        if self.out.contains_key(&id) {
            return Ok(id);
        }
        match self.endings.get(&id) {
            Some(Ending::Answered(_)) => Ok(id),
            Some(Ending::Renewed) => Err(PopRefused::Renewed),
            Some(Ending::Expired(at)) => Err(PopRefused::Expired { at: *at }),
            Some(Ending::Withdrawn) => Err(PopRefused::Interrupted),
            None if id < self.interrupted => Err(PopRefused::Interrupted),
            None => Err(PopRefused::Forgotten),
        }
    }
}

#[cfg(test)]
#[path = "pop_tests.rs"]
mod tests;

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
//!
//! Messages are kept as they were given out, by the [`Parcel`]: most pops bring a run of a queue, and whoever took it
//! settles it as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use cuemq_storage_api::{QueueKey, QueueOffset, Timestamp};

use super::flight::{Begun, DeliveryId, Flight, Landed, PoolId, PopAnswer, PopRefused, PopSettings, TooManyInFlight};
use super::membership::Lease;
use super::parcel::{Cause, Ending, Fit, Item, Parcel, State};
use super::pop_receipt::{Mark, PopReceipt, ReceiptRun, Sealer};

/// Everything that one group has in flight, and how the latest deliveries ended.
#[derive(Debug)]
pub(crate) struct Pops {
    settings: PopSettings,
    sealer: Sealer,
    first: DeliveryId,
    next: DeliveryId,
    /// Of deliveries below this that are not remembered, some were in flight when the group lost sight of them.
    interrupted: DeliveryId,
    /// By their first delivery; the deliveries of a parcel follow each other.
    parcels: BTreeMap<DeliveryId, Parcel>,
    /// The parcels of a queue of which something is in flight, by their first offset.
    places: HashMap<QueueKey, BTreeSet<(QueueOffset, DeliveryId)>>,
    /// When to look at which parcel.
    deadlines: BTreeSet<(Timestamp, DeliveryId)>,
    /// Parcels of which everything has ended, in the order of that, and those of which something has.
    finished: VecDeque<DeliveryId>,
    mixed: BTreeSet<DeliveryId>,
    in_flight: usize,
    remembered: usize,
    /// The most messages that one parcel ever had.
    longest: usize,
}

impl Pops {
    /// Nothing is in flight. The first delivery gets this number; every one of an earlier opening has a lower one.
    #[must_use]
    pub(crate) fn new(settings: PopSettings, first: u64) -> Self {
        let first = DeliveryId(first);
        Self {
            settings,
            sealer: Sealer::new(),
            first,
            next: first,
            interrupted: first,
            parcels: BTreeMap::new(),
            places: HashMap::new(),
            deadlines: BTreeSet::new(),
            finished: VecDeque::new(),
            mixed: BTreeSet::new(),
            in_flight: 0,
            remembered: 0,
            longest: 0,
        }
    }

    /// What receipts of messages given out are made with.
    #[must_use]
    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// How many messages are in flight.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many more may be given out.
    #[must_use]
    pub(crate) fn room(&self) -> usize {
        self.settings.max_in_flight.saturating_sub(self.in_flight)
    }

    /// The offsets of a queue that are in flight, in no order.
    pub(crate) fn offsets_of(&self, queue: &QueueKey) -> impl Iterator<Item = QueueOffset> {
        let places = self.places.get(queue).into_iter().flatten();
        let parcels = places.filter_map(|(_, first)| self.parcels.get(first));
        parcels.flat_map(|parcel| parcel.flying().map(|index| parcel.offset(index)))
    }

    /// Whether a message is in flight.
    #[must_use]
    pub(crate) fn is_in_flight(&self, queue: &QueueKey, offset: QueueOffset) -> bool {
        let Some(places) = self.places.get(queue) else { return false };
        let lowest = QueueOffset::new(offset.get().saturating_sub(self.longest as u64));
        let near = places.range((lowest, DeliveryId(0))..=(offset, DeliveryId(u64::MAX))).rev();
        near.filter_map(|(_, first)| self.parcels.get(first)).any(|parcel| parcel.has_in_flight(offset))
    }

    /// Everything that is in flight, in no order.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Flight> {
        let parcels = self.parcels.values();
        parcels.flat_map(|parcel| parcel.flying().filter_map(|index| parcel.flight(index))).collect()
    }

    /// Gives messages out until their invisible time ends: those of a run of a queue, each with its payload and its
    /// redeliveries. The mark of the first: those of the others follow it.
    ///
    /// # Errors
    /// When too many are in flight; nothing has changed then.
    pub(crate) fn give(
        &mut self,
        (queue, offset): (&QueueKey, QueueOffset),
        (pool, lease): (PoolId, Lease),
        until: Timestamp,
        messages: impl Iterator<Item = (u32, u32)>,
    ) -> Result<Mark, TooManyInFlight> {
        let items: Vec<Item> = messages.map(|(bytes, redeliveries)| Item::new(bytes, redeliveries)).collect();
        if items.len() > self.room() {
            return Err(TooManyInFlight { limit: self.settings.max_in_flight });
        }
        let mark = Mark { offset, delivery: self.next.0 };
        if !items.is_empty() {
            let queue_seal = self.sealer.queue_seal(queue);
            self.fly(Parcel::new(queue.clone(), offset, pool, lease, until, queue_seal, items));
        }
        Ok(mark)
    }

    /// Ends deliveries as done: what is so now, in runs, and which receipts are not good, by their places among all of
    /// them. One that was done before is neither.
    pub(crate) fn ack_all(
        &mut self,
        receipts: &[ReceiptRun],
        now: Timestamp,
    ) -> (Vec<Landed>, Vec<(usize, PopRefused)>) {
        let (mut landed, mut refused, mut before) = (Vec::new(), Vec::new(), 0);
        for run in receipts {
            let mut at = 0;
            while let Some((mark, seal)) = run.mark(at) {
                let Some(first) = self.parcel_of(DeliveryId(mark.delivery)) else {
                    refused.push((before + at, self.why_unknown(&run.queue, mark, seal)));
                    at += 1;
                    continue;
                };
                // Those of one parcel mostly come together.
                let acked = self.change(first, |parcel, pops| {
                    let is_its_queue = run.queue == parcel.queue;
                    let mut count = 0;
                    while let Some((mark, seal)) = run.mark(at + count)
                        && DeliveryId(mark.delivery).index_in(first, parcel).is_some()
                    {
                        let genuine = pops.check(is_its_queue, (mark, seal), first, parcel);
                        match genuine.and_then(|index| ack_one(parcel, index, now)) {
                            Ok(None) => {}
                            Ok(Some(index)) => Landed::add(&mut landed, parcel, index),
                            Err(error) => refused.push((before + at + count, error)),
                        }
                        count += 1;
                    }
                    count
                });
                at += acked.unwrap_or(1).max(1);
            }
            before += run.len();
        }
        self.forget();
        (landed, refused)
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
        let (id, first, index) = self.find(receipt)?;
        self.change(first, |parcel, _| {
            Ok(match parcel.fit(index, answer, now)? {
                Fit::New => {
                    parcel.set(index, State::Settling(Cause::Answer(answer)));
                    Begun::Started(id, parcel.flight(index).ok_or(PopRefused::Forgotten)?)
                }
                Fit::UnderWay => Begun::UnderWay(id),
                Fit::Already => Begun::Already,
            })
        })
        .unwrap_or(Err(PopRefused::Forgotten))
    }

    /// What was begun is stored: the delivery has ended.
    pub(crate) fn ended(&mut self, id: DeliveryId) -> Option<Flight> {
        self.end(id, |state| match state {
            State::Settling(Cause::Answer(answer)) => Some(Ending::Answered(answer)),
            State::Settling(Cause::Expired) => Some(Ending::Expired),
            State::Out | State::Ended(_) => None,
        })
    }

    /// What was begun surely was not stored. An answer may be given anew; what has expired meanwhile is failed at
    /// `again_at`.
    pub(crate) fn not_ended(&mut self, id: DeliveryId, again_at: Timestamp) {
        let Some(first) = self.parcel_of(id) else { return };
        let state = self.parcels.get(&first).and_then(|parcel| parcel.state(id.since(first)));
        if !matches!(state, Some(State::Settling(_))) {
            return;
        }
        // It goes its own way from here on, at its own time.
        self.cut(first, id.since(first));
        self.cut(id, 1);
        self.change(id, |parcel, _| {
            parcel.set(0, State::Out);
            parcel.look_at(parcel.until.max(again_at));
        });
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
        let (_, first, index) = self.find(receipt)?;
        let renewed = self.change(first, |parcel, _| {
            // Any answer that came before is in the way, also the one that is asked for.
            match (parcel.fit(index, PopAnswer::Ack, now)?, parcel.item(index)) {
                (Fit::New, Some(item)) => {
                    let renewed = Parcel::like(parcel, parcel.offset(index), until, *item);
                    parcel.set(index, State::Ended(Ending::Renewed));
                    Ok(renewed)
                }
                _ => Err(PopRefused::Conflict { first: PopAnswer::Ack }),
            }
        });
        let first = self.fly(renewed.unwrap_or(Err(PopRefused::Forgotten))?);
        self.forget();
        let mark = Mark { delivery: first.0, ..receipt.mark };
        Ok(self.sealer.receipt(receipt.queue.clone(), mark))
    }

    /// Takes a delivery back that reached nobody; `None` when it has ended or is ending.
    pub(crate) fn take_back(&mut self, mark: Mark) -> Option<Flight> {
        self.end(DeliveryId(mark.delivery), |state| (state == State::Out).then_some(Ending::Withdrawn))
    }

    /// Ends a delivery, also one that is being settled, whose message is not its group's any more.
    pub(crate) fn abandon(&mut self, id: DeliveryId) -> Option<Flight> {
        self.end(id, |state| (!matches!(state, State::Ended(_))).then_some(Ending::Withdrawn))
    }

    /// The deliveries whose invisible time is over, at most `most`: each is to be failed, and then
    /// [`ended`](Self::ended) or [`not_ended`](Self::not_ended).
    pub(crate) fn expire(&mut self, now: Timestamp, most: usize) -> Vec<(DeliveryId, Flight)> {
        let mut expired = Vec::new();
        while expired.len() < most
            && let Some((_, first)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)
        {
            self.change(first, |parcel, _| {
                // Those that are left keep the deadline.
                for index in 0..parcel.len() {
                    if expired.len() < most && parcel.state(index) == Some(State::Out) {
                        parcel.set(index, State::Settling(Cause::Expired));
                        expired.extend(parcel.flight(index).map(|flight| (first.plus(index), flight)));
                    }
                }
            });
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
        let parcels: Vec<DeliveryId> = match of {
            Some(queue) => self.places.get(queue).into_iter().flatten().map(|(_, first)| *first).collect(),
            None => self.places.values().flatten().map(|(_, first)| *first).collect(),
        };
        self.interrupted = self.next;
        let mut lost = Vec::new();
        for first in parcels {
            self.change(first, |parcel, _| {
                let flying: Vec<usize> = parcel.flying().collect();
                for index in flying {
                    lost.extend(parcel.flight(index));
                    parcel.set(index, State::Ended(Ending::Withdrawn));
                }
            });
        }
        self.forget();
        lost
    }

    /// Ends a delivery that is in flight, as its state says.
    fn end(&mut self, id: DeliveryId, how: impl FnOnce(State) -> Option<Ending>) -> Option<Flight> {
        let first = self.parcel_of(id)?;
        let index = id.since(first);
        let ended = self.change(first, |parcel, _| {
            let ending = parcel.state(index).and_then(how)?;
            parcel.set(index, State::Ended(ending));
            parcel.flight(index)
        });
        self.forget();
        ended?
    }

    fn fly(&mut self, parcel: Parcel) -> DeliveryId {
        let first = self.next;
        self.next = first.plus(parcel.len());
        self.longest = self.longest.max(parcel.len());
        self.enter(first, parcel);
        first
    }

    /// Takes a parcel in hand to change it, with all that is known of it elsewhere.
    fn change<T>(&mut self, first: DeliveryId, change: impl FnOnce(&mut Parcel, &Self) -> T) -> Option<T> {
        let mut parcel = self.remove(first)?;
        let flew = parcel.in_flight() > 0;
        let changed = change(&mut parcel, self);
        if flew && parcel.in_flight() == 0 {
            self.finished.push_back(first);
        }
        self.enter(first, parcel);
        Some(changed)
    }

    fn enter(&mut self, first: DeliveryId, parcel: Parcel) {
        self.in_flight += parcel.in_flight();
        self.remembered += parcel.ended();
        if let Some(at) = parcel.deadline() {
            self.deadlines.insert((at, first));
        }
        if parcel.in_flight() > 0 {
            self.places.entry(parcel.queue.clone()).or_default().insert((parcel.first, first));
            if parcel.ended() > 0 {
                self.mixed.insert(first);
            }
        }
        self.parcels.insert(first, parcel);
    }

    fn remove(&mut self, first: DeliveryId) -> Option<Parcel> {
        let parcel = self.parcels.remove(&first)?;
        self.in_flight -= parcel.in_flight();
        self.remembered -= parcel.ended();
        if let Some(at) = parcel.deadline() {
            self.deadlines.remove(&(at, first));
        }
        self.mixed.remove(&first);
        if let Some(places) = self.places.get_mut(&parcel.queue) {
            places.remove(&(parcel.first, first));
            if places.is_empty() {
                self.places.remove(&parcel.queue);
            }
        }
        Some(parcel)
    }

    /// Makes two parcels of one.
    fn cut(&mut self, first: DeliveryId, at: usize) {
        let Some(mut parcel) = self.remove(first) else { return };
        if at > 0 && at < parcel.len() {
            let behind = parcel.split_off(at);
            self.enter_part(first.plus(at), behind);
        }
        self.enter_part(first, parcel);
    }

    /// Enters what was cut from a parcel of which something was in flight.
    fn enter_part(&mut self, first: DeliveryId, part: Parcel) {
        if part.in_flight() == 0 {
            self.finished.push_back(first);
        }
        self.enter(first, part);
    }

    /// Forgets endings until no more are remembered than may be: parcels that have ended, the oldest of those ends first;
    /// if none has, what has ended of the oldest.
    fn forget(&mut self) {
        while self.remembered > self.settings.max_remembered {
            if let Some(oldest) = self.finished.pop_front() {
                self.remove(oldest);
            } else if let Some(first) = self.mixed.first().copied()
                && let Some(parcel) = self.remove(first)
            {
                self.enter_what_flies(first, parcel);
            } else {
                break;
            }
        }
    }

    fn enter_what_flies(&mut self, mut first: DeliveryId, mut parcel: Parcel) {
        loop {
            let flies = |index| !matches!(parcel.state(index), Some(State::Ended(_)));
            let flying = flies(0);
            let end = (1..parcel.len()).find(|index| flies(*index) != flying);
            let behind = end.map(|end| (first.plus(end), parcel.split_off(end)));
            if flying {
                self.enter(first, parcel);
            }
            match behind {
                Some(behind) => (first, parcel) = behind,
                None => return,
            }
        }
    }

    /// The parcel that a delivery belongs to, if it is known.
    fn parcel_of(&self, id: DeliveryId) -> Option<DeliveryId> {
        let (first, parcel) = self.parcels.range(..=id).next_back()?;
        id.index_in(*first, parcel).map(|_| *first)
    }

    /// Which delivery of which parcel a receipt is for.
    fn find(&self, receipt: &PopReceipt) -> Result<(DeliveryId, DeliveryId, usize), PopRefused> {
        let PopReceipt { queue, mark, seal } = receipt;
        let (id, seal) = (DeliveryId(mark.delivery), Some(*seal));
        let known = self.parcel_of(id).and_then(|first| Some((first, self.parcels.get(&first)?)));
        let (first, parcel) = known.ok_or_else(|| self.why_unknown(queue, *mark, seal))?;
        Ok((id, first, self.check(*queue == parcel.queue, (*mark, seal), first, parcel)?))
    }

    /// Whether a receipt is genuine; its place in the parcel.
    fn check(
        &self,
        is_its_queue: bool,
        (mark, seal): (Mark, Option<u64>),
        first: DeliveryId,
        parcel: &Parcel,
    ) -> Result<usize, PopRefused> {
        let index = DeliveryId(mark.delivery).since(first);
        let genuine = is_its_queue
            && mark.offset == parcel.offset(index)
            && seal.is_none_or(|seal| seal == self.sealer.seal_in(parcel.queue_seal, mark));
        if genuine { Ok(index) } else { Err(PopRefused::Forged) }
    }

    fn why_unknown(&self, queue: &QueueKey, mark: Mark, seal: Option<u64>) -> PopRefused {
        let id = DeliveryId(mark.delivery);
        let is_forged = |seal| self.sealer.seal_in(self.sealer.queue_seal(queue), mark) != seal;
        if id < self.first {
            PopRefused::Earlier
        } else if id >= self.next || seal.is_some_and(is_forged) {
            PopRefused::Forged
        } else if id < self.interrupted {
            PopRefused::Interrupted
        } else {
            PopRefused::Forgotten
        }
    }
}

/// Ends one of a parcel's deliveries as done; its place, unless it was so before.
fn ack_one(parcel: &mut Parcel, index: usize, now: Timestamp) -> Result<Option<usize>, PopRefused> {
    if parcel.fit(index, PopAnswer::Ack, now)? != Fit::New {
        return Ok(None);
    }
    parcel.set(index, State::Ended(Ending::Answered(PopAnswer::Ack)));
    Ok(Some(index))
}

#[cfg(test)]
#[path = "pop_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "pop_parcel_tests.rs"]
mod parcel_tests;

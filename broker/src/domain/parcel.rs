//! Messages that were given out together: they follow each other in one queue, and so do the numbers of their
//! deliveries.

use cuemq_storage_api::{QueueKey, QueueOffset, Timestamp};

use super::flight::{Flight, PoolId, PopAnswer, PopRefused};
use super::membership::Lease;

/// Why a message is being settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    Answer(PopAnswer),
    Expired,
}

/// How a delivery ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    Answered(PopAnswer),
    Renewed,
    Expired,
    /// It never reached anybody, or was taken out of flight.
    Withdrawn,
}

/// Where one delivery stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Out,
    Settling(Cause),
    Ended(Ending),
}

/// How an answer finds a delivery that it fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fit {
    New,
    UnderWay,
    Already,
}

/// What is known of one message of a parcel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Item {
    /// Its payload, as it counts against the pool's credit.
    pub(super) bytes: u32,
    /// Redeliveries before it that storage does not know of.
    pub(super) redeliveries: u32,
    state: State,
}

impl Item {
    pub(super) fn new(bytes: u32, redeliveries: u32) -> Self {
        Self { bytes, redeliveries, state: State::Out }
    }
}

/// Messages given out together. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Parcel {
    pub(super) queue: QueueKey,
    /// The offset of the first; the others follow.
    pub(super) first: QueueOffset,
    pub(super) pool: PoolId,
    pub(super) lease: Lease,
    /// The end of their invisible time.
    pub(super) until: Timestamp,
    /// What seals of receipts begin with.
    pub(super) queue_seal: u64,
    /// When to look at it next: there is one as long as something is out that nobody settles.
    deadline: Option<Timestamp>,
    items: Vec<Item>,
    /// How many are out and not being settled, and how many have ended.
    out: usize,
    ended: usize,
}

impl Parcel {
    /// One item at this offset, in the place and under the terms of another parcel.
    pub(super) fn like(other: &Self, offset: QueueOffset, until: Timestamp, item: Item) -> Self {
        let items = vec![Item::new(item.bytes, item.redeliveries)];
        let Self { queue, pool, lease, queue_seal, .. } = other;
        Self::new(queue.clone(), offset, *pool, *lease, until, *queue_seal, items)
    }

    pub(super) fn new(
        queue: QueueKey,
        first: QueueOffset,
        pool: PoolId,
        lease: Lease,
        until: Timestamp,
        queue_seal: u64,
        items: Vec<Item>,
    ) -> Self {
        let out = items.len();
        Self { queue, first, pool, lease, until, queue_seal, deadline: Some(until), items, out, ended: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> usize {
        self.ended
    }

    /// How many have not.
    pub(super) fn in_flight(&self) -> usize {
        self.items.len() - self.ended
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    pub(super) fn offset(&self, index: usize) -> QueueOffset {
        self.first.plus(index as u64)
    }

    pub(super) fn item(&self, index: usize) -> Option<&Item> {
        self.items.get(index)
    }

    pub(super) fn state(&self, index: usize) -> Option<State> {
        self.items.get(index).map(|item| item.state)
    }

    /// Whether the message at this offset is one of those in flight.
    pub(super) fn has_in_flight(&self, offset: QueueOffset) -> bool {
        let index = offset.get().checked_sub(self.first.get()).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.state(index)).is_some_and(|state| !matches!(state, State::Ended(_)))
    }

    /// The places of those that are in flight.
    pub(super) fn flying(&self) -> impl Iterator<Item = usize> {
        let flies = |(_, item): &(usize, &Item)| !matches!(item.state, State::Ended(_));
        self.items.iter().enumerate().filter(flies).map(|(index, _)| index)
    }

    pub(super) fn set(&mut self, index: usize, state: State) {
        let Some(item) = self.items.get_mut(index) else { return };
        let before = std::mem::replace(&mut item.state, state);
        self.out -= usize::from(before == State::Out);
        self.ended -= usize::from(matches!(before, State::Ended(_)));
        self.out += usize::from(state == State::Out);
        self.ended += usize::from(matches!(state, State::Ended(_)));
        if self.out == 0 {
            self.deadline = None;
        }
    }

    /// Has it looked at again at this time, as something is out once more.
    pub(super) fn look_at(&mut self, at: Timestamp) {
        self.deadline = Some(at);
    }

    /// What an answer to a delivery meets, at this time.
    pub(super) fn fit(&self, index: usize, answer: PopAnswer, now: Timestamp) -> Result<Fit, PopRefused> {
        let same = |first, fit| if first == answer { Ok(fit) } else { Err(PopRefused::Conflict { first }) };
        match self.state(index).ok_or(PopRefused::Forgotten)? {
            State::Out if self.until > now => Ok(Fit::New),
            State::Settling(Cause::Answer(first)) => same(first, Fit::UnderWay),
            State::Ended(Ending::Answered(first)) => same(first, Fit::Already),
            State::Ended(Ending::Renewed) => Err(PopRefused::Renewed),
            State::Ended(Ending::Withdrawn) => Err(PopRefused::Interrupted),
            State::Out | State::Settling(Cause::Expired) | State::Ended(Ending::Expired) => {
                Err(PopRefused::Expired { at: self.until })
            }
        }
    }

    /// One of its messages, for whoever deals with it alone.
    pub(super) fn flight(&self, index: usize) -> Option<Flight> {
        let Item { bytes, redeliveries, .. } = *self.items.get(index)?;
        let Self { queue, pool, lease, .. } = self;
        let (queue, offset) = (queue.clone(), self.offset(index));
        Some(Flight { queue, offset, pool: *pool, lease: *lease, bytes, redeliveries })
    }

    /// The payload of one of its messages.
    pub(super) fn bytes(&self, index: usize) -> usize {
        self.item(index).map_or(0, |item| usize::try_from(item.bytes).unwrap_or(usize::MAX))
    }

    /// Keeps those in front of a place and returns those behind it; neither may be empty.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let behind = self.items.split_off(at);
        let mut behind = Self { first: self.offset(at), items: behind, queue: self.queue.clone(), ..*self };
        self.count();
        behind.count();
        behind
    }

    fn count(&mut self) {
        self.out = self.items.iter().filter(|item| item.state == State::Out).count();
        self.ended = self.items.iter().filter(|item| matches!(item.state, State::Ended(_))).count();
        if self.out == 0 {
            self.deadline = None;
        }
    }
}

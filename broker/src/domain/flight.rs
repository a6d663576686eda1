//! Messages in flight to whoever popped them, as others speak of them: which they are, what becomes of them, and why a
//! receipt is refused.

use std::ops::Range;

use cuemq_storage_api::{QueueKey, QueueOffset, Timestamp};

use super::membership::Lease;
use super::parcel::Parcel;

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
pub(crate) struct DeliveryId(pub(super) u64);

impl DeliveryId {
    pub(super) fn plus(self, deliveries: usize) -> Self {
        Self(self.0 + deliveries as u64)
    }

    pub(super) fn since(self, first: Self) -> usize {
        usize::try_from(self.0.saturating_sub(first.0)).unwrap_or(usize::MAX)
    }

    /// Its place in the parcel whose first delivery that is, if it has one.
    pub(super) fn index_in(self, first: Self, parcel: &Parcel) -> Option<usize> {
        Some(self.since(first)).filter(|index| self >= first && *index < parcel.len())
    }
}

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

/// Messages of one queue that follow each other, given out by one pool, which are done together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Landed {
    /// Their queue.
    pub(crate) queue: QueueKey,
    /// Which they are.
    pub(crate) offsets: Range<QueueOffset>,
    /// Which pool gave them out.
    pub(crate) pool: PoolId,
    /// The lease under which that pool held the queue.
    pub(crate) lease: Lease,
    /// How many they are.
    pub(crate) messages: usize,
    /// Their payload.
    pub(crate) bytes: usize,
}

impl Landed {
    /// Adds one message of a parcel, to the last run if it follows that.
    pub(super) fn add(runs: &mut Vec<Self>, parcel: &Parcel, index: usize) {
        let (offset, bytes) = (parcel.offset(index), parcel.bytes(index));
        match runs.last_mut() {
            Some(last)
                if last.offsets.end == offset
                    && (last.pool, last.lease) == (parcel.pool, parcel.lease)
                    && last.queue == parcel.queue =>
            {
                last.offsets.end = offset.plus(1);
                last.messages += 1;
                last.bytes += bytes;
            }
            _ => {
                let Parcel { queue, pool, lease, .. } = parcel;
                let offsets = offset..offset.plus(1);
                runs.push(Self { queue: queue.clone(), offsets, pool: *pool, lease: *lease, messages: 1, bytes });
            }
        }
    }
}

impl From<Flight> for Landed {
    fn from(flight: Flight) -> Self {
        let Flight { queue, offset, pool, lease, bytes, .. } = flight;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self { queue, offsets: offset..offset.plus(1), pool, lease, messages: 1, bytes }
    }
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

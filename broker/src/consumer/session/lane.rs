//! The messages of one queue that one member gets: the queue's holder, or a guest with other tags.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use cuemq_storage_api::{QueueOffset, StoredRecord, Timestamp};

use super::ready::Ready;
use super::{Credit, Records};
use crate::domain::order::Order;

/// What waits to go out to a member, what is out, and what comes again. Bounded by the open messages of the queue.
#[derive(Debug)]
pub(super) struct Lane {
    order: Order,
    ready: Ready,
    again: VecDeque<Again>,
    /// What is out, kept where the queue outlives the member; the number is that of its redeliveries.
    lent: Option<BTreeMap<QueueOffset, (StoredRecord, u32)>>,
    outstanding: usize,
    of_pool: bool,
}

#[derive(Debug)]
struct Again {
    at: Timestamp,
    stored: StoredRecord,
    redeliveries: u32,
}

/// What a lane has for its member now.
pub(super) enum LanePlan {
    Give(Records, u32),
    /// Nothing before one of those that are out is settled.
    Busy,
    /// Nothing is ready; something comes again at this time. In order, nothing may go ahead of it.
    Wait {
        again: Option<Timestamp>,
        in_order: bool,
    },
}

impl Lane {
    /// The lane of the queue's holder.
    pub(super) fn of_holder(order: Order) -> Self {
        Self { order, ready: Ready::new(order), again: VecDeque::new(), lent: None, outstanding: 0, of_pool: false }
    }

    /// The lane of another member.
    pub(super) fn of_guest(order: Order, of_pool: bool) -> Self {
        Self { lent: Some(BTreeMap::new()), of_pool, ..Self::of_holder(order) }
    }

    /// Whether what goes out is popped: the group keeps it then.
    pub(super) fn is_of_pool(&self) -> bool {
        self.of_pool
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// How much waits for its member: a measure to share by.
    pub(super) fn load(&self) -> usize {
        self.ready.len() + self.again.len() + self.outstanding
    }

    /// The payload of what was read and is not out.
    pub(super) fn bytes(&self) -> usize {
        self.ready.bytes()
    }

    /// Whether more has to be read before there is more to give out.
    pub(super) fn is_exhausted(&self) -> bool {
        self.ready.is_exhausted()
    }

    /// Takes up what was read, in the order of the queue.
    pub(super) fn extend(&mut self, records: Vec<StoredRecord>) {
        self.ready.extend(records);
    }

    /// Takes up what was another's: at its place, or at once if it was out already.
    pub(super) fn insert(&mut self, stored: StoredRecord, redeliveries: u32) {
        if redeliveries > 0 {
            self.again_at(Timestamp::MIN, stored, redeliveries);
        } else {
            self.ready.insert(stored);
        }
    }

    /// Takes the next ones that may go out and that there is room for. The clock is asked only if something comes again.
    pub(super) fn plan(&mut self, now: impl FnOnce() -> Timestamp, room: Credit) -> LanePlan {
        let in_order = self.order == Order::Queue;
        if in_order && self.outstanding > 0 {
            return LanePlan::Busy;
        }
        let mut soonest = None;
        if !self.again.is_empty() {
            let now = now();
            let due = self.again.iter().position(|again| again.at <= now);
            if let Some(again) = due.and_then(|at| self.again.remove(at)) {
                return self.give(Records::One(again.stored), again.redeliveries);
            }
            soonest = self.again.iter().map(|again| again.at).min();
            if in_order {
                return LanePlan::Wait { again: soonest, in_order };
            }
        }
        match self.ready.take(room) {
            Some(records) => self.give(records, 0),
            None => LanePlan::Wait { again: soonest, in_order: false },
        }
    }

    fn give(&mut self, records: Records, redeliveries: u32) -> LanePlan {
        self.outstanding += records.as_slice().len();
        if let Some(lent) = &mut self.lent {
            lent.extend(records.as_slice().iter().map(|stored| (stored.offset, (stored.clone(), redeliveries))));
        }
        LanePlan::Give(records, redeliveries)
    }

    /// Takes back that records are out; whether they were.
    pub(super) fn returned(&mut self, count: usize, offsets: impl Iterator<Item = Range<QueueOffset>>) -> bool {
        let Some(lent) = &mut self.lent else {
            self.outstanding = self.outstanding.saturating_sub(count);
            return true;
        };
        let before = lent.len();
        for range in offsets {
            let known: Vec<QueueOffset> = lent.range(range).map(|(offset, _)| *offset).collect();
            for offset in known {
                lent.remove(&offset);
            }
        }
        self.outstanding = lent.len();
        lent.len() < before
    }

    /// Messages that were out are done.
    pub(super) fn done(&mut self, range: Range<QueueOffset>) {
        self.ready.done(range);
    }

    /// Has a record that was out come again.
    pub(super) fn again_at(&mut self, at: Timestamp, stored: StoredRecord, redeliveries: u32) {
        self.again.push_back(Again { at, stored, redeliveries });
    }

    /// Has a record go out before any other.
    pub(super) fn first_again(&mut self, stored: StoredRecord, redeliveries: u32) {
        self.again.push_front(Again { at: Timestamp::MIN, stored, redeliveries });
    }

    /// What is not out, in no order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &StoredRecord> {
        self.ready.iter().chain(self.again.iter().map(|again| &again.stored))
    }

    /// Drops some of it; what waits behind a message of its key waits no longer.
    pub(super) fn take_out(&mut self, gone: impl Fn(&StoredRecord) -> bool) {
        self.ready.retain(|stored| !gone(stored));
        let ready = &mut self.ready;
        self.again.retain(|again| {
            let gone = gone(&again.stored);
            if gone {
                ready.done(again.stored.offset..again.stored.offset.plus(1));
            }
            !gone
        });
    }

    /// Drops what lies below `to` and is not out.
    pub(super) fn pass_over(&mut self, to: QueueOffset) {
        self.ready.pass_over(to);
        let ready = &mut self.ready;
        self.again.retain(|Again { stored, .. }| {
            let stays = stored.offset >= to;
            if !stays {
                ready.done(stored.offset..stored.offset.plus(1));
            }
            stays
        });
    }

    /// Everything that a guest that is gone had or was to get, in the order of the queue; with how often it came before.
    pub(super) fn into_records(self) -> Vec<(StoredRecord, u32)> {
        let mut all: Vec<_> = self.lent.into_iter().flat_map(BTreeMap::into_values).collect();
        all.extend(self.again.into_iter().map(|again| (again.stored, again.redeliveries)));
        all.extend(self.ready.into_records().into_iter().map(|stored| (stored, 0)));
        all.sort_by_key(|(stored, _)| stored.offset);
        all
    }
}

//! One granted queue: how far it is read, and what of it waits for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::{QueueKey, QueueOffset, StorageError, StoredRecord, Timestamp};

use super::exchange::{Guest, choose};
use super::lane::{Lane, LanePlan};
use super::{Credit, Next, Records};
use crate::clock::Clock;
use crate::domain::in_place::InPlaceFailures;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::progress::{Acked, Progress};
use crate::domain::subscriptions::Subscriptions;
use crate::error::Result;
use crate::limits::MAX_HELD_BACK_BYTES;
use crate::shared::Shared;
use crate::storage::QueueTail;

/// What a member gets with a queue.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) key: QueueKey,
    pub(crate) lease: Lease,
    pub(crate) tail: Arc<QueueTail>,
    pub(crate) progress: Progress,
    /// What of it is in flight to somebody who popped it.
    pub(crate) elsewhere: BTreeSet<QueueOffset>,
    /// What is known of messages that failed in their place.
    pub(crate) failed: BTreeMap<QueueOffset, InPlaceFailures>,
    /// Where to stop for now, in order, because a change of the number of queues is not passed.
    pub(crate) fence: Option<QueueOffset>,
}

/// One granted queue.
#[derive(Debug)]
pub(super) struct HeldQueue {
    pub(super) key: QueueKey,
    pub(super) lease: Lease,
    pub(super) tail: Arc<QueueTail>,
    /// What is done, as the group's actor knows it or soon will: bounds how far to fetch.
    pub(super) progress: Progress,
    pub(super) next: QueueOffset,
    /// What the holder gets.
    pub(super) own: Lane,
    /// What other members get that want other messages.
    guests: BTreeMap<MemberId, Lane>,
    /// Redeliveries that no member wants at the moment, until one comes that does.
    parked: Vec<StoredRecord>,
    /// Open, but in flight to somebody who popped it: passed over.
    pub(super) elsewhere: BTreeSet<QueueOffset>,
    /// Failures of what is still to be read.
    pub(super) failed: BTreeMap<QueueOffset, InPlaceFailures>,
    /// Fetched or not, these are given to nobody: the group deals with them.
    pub(super) withheld: BTreeSet<QueueOffset>,
    /// When the first of what waits here ends; nothing ends before.
    pub(super) first_end: Option<Timestamp>,
    pub(super) revoked: bool,
    /// Nothing at or behind it is read yet.
    pub(super) fence: Option<QueueOffset>,
}

pub(super) enum QueuePlan {
    Give(Records, u32),
    Fetch { from: QueueOffset, until: QueueOffset },
    Ended(Vec<QueueOffset>),
    Wait(Option<Timestamp>),
}

/// Who gets a message.
pub(super) enum Routed {
    ToHolder,
    ToGuest(MemberId),
    /// To nobody before another member comes.
    Parked,
    Unwanted,
}

impl HeldQueue {
    pub(super) fn new(granted: Granted, order: Order) -> Self {
        let Granted { key, lease, tail, progress, elsewhere, failed, fence } = granted;
        let next = progress.next_open(progress.committed());
        let (own, guests, parked) = (Lane::of_holder(order), BTreeMap::new(), Vec::new());
        let withheld = BTreeSet::new();
        Self {
            key,
            lease,
            tail,
            progress,
            next,
            own,
            guests,
            parked,
            elsewhere,
            failed,
            withheld,
            first_end: None,
            revoked: false,
            fence,
        }
    }

    /// How many messages are out, whoever has them.
    pub(super) fn outstanding(&self) -> usize {
        self.own.outstanding() + self.guests.values().map(Lane::outstanding).sum::<usize>()
    }

    /// Whether anything that was not read yet is done or in flight elsewhere.
    pub(super) fn has_gaps(&self) -> bool {
        self.progress.has_acked_ranges() || !self.elsewhere.is_empty() || !self.withheld.is_empty()
    }

    /// Whether a message that was read is to be given out here.
    pub(super) fn is_open(&self, offset: QueueOffset) -> bool {
        let kept_back = self.elsewhere.contains(&offset) || self.withheld.contains(&offset);
        !kept_back && !self.progress.is_acked(offset)
    }

    /// Has messages that were just read say what is known of their failures.
    pub(super) fn mark_failed(&mut self, records: &mut Vec<StoredRecord>) {
        if self.failed.is_empty() {
            return;
        }
        let read = std::mem::take(records).into_iter();
        records.extend(read.map(|stored| match self.failed.remove(&stored.offset) {
            Some(failures) => failures.marked(stored),
            None => stored,
        }));
    }

    /// The lane of the holder, or of a guest that was given something.
    pub(super) fn lane(&mut self, guest: Option<&MemberId>) -> Option<&mut Lane> {
        match guest {
            None => Some(&mut self.own),
            Some(member) => self.guests.get_mut(member),
        }
    }

    /// What the holder may do next.
    pub(super) fn plan(&mut self, clock: &Clock, room: Credit) -> QueuePlan {
        if self.revoked {
            return QueuePlan::Wait(None);
        }
        if let Some(ended) = self.ended(clock) {
            return QueuePlan::Ended(ended);
        }
        match self.own.plan(|| clock.now(), room) {
            LanePlan::Give(records, redeliveries) => QueuePlan::Give(records, redeliveries),
            LanePlan::Busy => QueuePlan::Wait(None),
            LanePlan::Wait { again, in_order: true } => QueuePlan::Wait(again),
            LanePlan::Wait { again, .. } => match self.readable() {
                Some(Range { start, end }) => QueuePlan::Fetch { from: start, until: end },
                None => QueuePlan::Wait(again),
            },
        }
    }

    /// Keeps back what has ended and was not given out, if anything has.
    pub(super) fn ended(&mut self, clock: &Clock) -> Option<Vec<QueueOffset>> {
        let end = self.first_end.filter(|_| !self.revoked)?;
        let now = clock.now();
        (end <= now).then(|| self.withhold_ended(now))
    }

    /// What is here and not out, in no order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &StoredRecord> {
        let lanes = std::iter::once(&self.own).chain(self.guests.values());
        lanes.flat_map(Lane::waiting).chain(&self.parked)
    }

    /// Drops some of it; what waits behind a message of its key waits no longer.
    pub(super) fn take_out(&mut self, gone: impl Fn(&StoredRecord) -> bool) {
        self.own.take_out(&gone);
        self.guests.values_mut().for_each(|lane| lane.take_out(&gone));
        self.parked.retain(|stored| !gone(stored));
    }

    /// What a guest may take now.
    pub(super) fn plan_for(&mut self, guest: &MemberId, clock: &Clock, room: Credit) -> LanePlan {
        let Some(lane) = self.guests.get_mut(guest).filter(|_| !self.revoked) else {
            return LanePlan::Wait { again: None, in_order: false };
        };
        let plan = lane.plan(|| clock.now(), room);
        if let LanePlan::Give(records, _) = &plan
            && lane.is_of_pool()
        {
            // In flight from now on, whoever holds the queue: nothing to wait for when it moves on.
            let offsets: Vec<QueueOffset> = records.as_slice().iter().map(|stored| stored.offset).collect();
            lane.returned(offsets.len(), offsets.iter().map(|offset| *offset..offset.plus(1)));
            self.elsewhere.extend(offsets);
        }
        plan
    }

    /// Has a record that was in flight elsewhere go out before any other, to the holder or to who wants it.
    pub(super) fn first_again(
        &mut self,
        stored: StoredRecord,
        redeliveries: u32,
        holder: &Subscriptions,
        guests: &[Guest],
    ) -> Option<MemberId> {
        if self.progress.is_acked(stored.offset) {
            return None;
        }
        self.note_ends(std::iter::once(&stored));
        if guests.is_empty() || holder.want(&self.key.topic, &stored.record) {
            self.own.first_again(stored, redeliveries);
            return None;
        }
        let load = |member: &MemberId| self.guests.get(member).map_or(0, Lane::load);
        match choose(guests, &self.key.topic, &stored, load) {
            Some(guest) => {
                self.lane_of(guest).first_again(stored, redeliveries);
                Some(guest.member.clone())
            }
            None => {
                self.parked.push(stored);
                None
            }
        }
    }

    fn lane_of(&mut self, guest: &Guest) -> &mut Lane {
        self.guests.entry(guest.member.clone()).or_insert_with(|| Lane::of_guest(guest.order, guest.is_pool))
    }

    /// What a guest may have read for which there is nothing to give out: its fellows keep it from nothing.
    pub(super) fn readable_for(&mut self, guest: &MemberId) -> Option<Range<QueueOffset>> {
        let exhausted = self.guests.get(guest).is_none_or(Lane::is_exhausted);
        if exhausted && !self.revoked { self.readable() } else { None }
    }

    /// What can be read now and there is room for.
    fn readable(&mut self) -> Option<Range<QueueOffset>> {
        // What was done before a restart is not read again.
        self.next = self.progress.next_open(self.next);
        let visible = self.tail.visible().min(self.progress.window_end());
        let until = self.fence.map_or(visible, |fence| fence.min(visible));
        (self.next < until && self.waiting_bytes() < MAX_HELD_BACK_BYTES).then_some(self.next..until)
    }

    fn waiting_bytes(&self) -> usize {
        let parked: usize = self.parked.iter().map(|stored| stored.record.payload_bytes()).sum();
        self.own.bytes() + self.guests.values().map(Lane::bytes).sum::<usize>() + parked
    }

    /// Passes over everything below `to` that is not outstanding.
    pub(super) fn skip_to(&mut self, to: QueueOffset) {
        self.progress.commit(to);
        self.own.pass_over(to);
        self.guests.values_mut().for_each(|lane| lane.pass_over(to));
        self.parked.retain(|stored| stored.offset >= to);
        self.withheld = self.withheld.split_off(&to);
        self.next = self.next.max(to);
    }

    /// Gives a message to the member that shall get it: the holder, if it is one that wants it.
    pub(super) fn route(
        &mut self,
        stored: StoredRecord,
        redeliveries: u32,
        holder: &Subscriptions,
        guests: &[Guest],
    ) -> Routed {
        if holder.want(&self.key.topic, &stored.record) {
            self.own.insert(stored, redeliveries);
            return Routed::ToHolder;
        }
        let load = |member: &MemberId| self.guests.get(member).map_or(0, Lane::load);
        if let Some(guest) = choose(guests, &self.key.topic, &stored, load) {
            self.lane_of(guest).insert(stored, redeliveries);
            return Routed::ToGuest(guest.member.clone());
        }
        // A redelivery was wanted once: its member may be back soon.
        if holder.filter(&self.key.topic).is_none() {
            self.parked.push(stored);
            return Routed::Parked;
        }
        Routed::Unwanted
    }

    /// Shares what waits for nobody among the members of now; returns those that got something.
    pub(super) fn unpark(&mut self, holder: &Subscriptions, guests: &[Guest]) -> Vec<MemberId> {
        let mut woken = Vec::new();
        for stored in std::mem::take(&mut self.parked) {
            if let Routed::ToGuest(member) = self.route(stored, 0, holder, guests) {
                woken.push(member);
            }
        }
        woken
    }

    /// Shares what a guest had that is gone; returns what nobody wants, and those that got something.
    pub(super) fn recall(
        &mut self,
        gone: &MemberId,
        holder: &Subscriptions,
        guests: &[Guest],
    ) -> (Vec<Range<QueueOffset>>, Vec<MemberId>) {
        let (mut unwanted, mut woken) = (Vec::new(), Vec::new());
        let records = self.guests.remove(gone).map(Lane::into_records).unwrap_or_default();
        for (stored, redeliveries) in records {
            let offset = stored.offset;
            if self.progress.is_acked(offset) {
                continue;
            }
            match self.route(stored, redeliveries, holder, guests) {
                Routed::ToGuest(member) => woken.push(member),
                Routed::Unwanted => {
                    // It was within the window when it was read.
                    let _ = self.progress.ack(offset);
                    unwanted.push(offset..offset.plus(1));
                }
                Routed::ToHolder | Routed::Parked => {}
            }
        }
        (unwanted, woken)
    }

    /// Marks what a fetch passed over as done; returns the ranges that the group does not know of yet.
    pub(super) fn settle_skipped(
        &mut self,
        kept: &[QueueOffset],
        fetched: Range<QueueOffset>,
    ) -> Vec<Range<QueueOffset>> {
        let mut at = fetched.start;
        let mut gaps = Vec::new();
        let mut open: BTreeSet<QueueOffset> = self.elsewhere.range(fetched.clone()).copied().collect();
        open.extend(self.withheld.range(fetched.clone()));
        open.extend(kept);
        for offset in open {
            gaps.push(at..offset);
            at = offset.plus(1);
        }
        gaps.push(at..fetched.end);
        // Within the window, because the fetch was; what was done before is not told again.
        gaps.retain(|gap| matches!(self.progress.ack_range(gap.clone()), Ok(Acked::Advanced(_) | Acked::Kept)));
        gaps
    }

    /// A fetch below the queue's minimum: retention went past the group. Goes on at the minimum.
    pub(super) fn after_failed_fetch(
        &mut self,
        error: StorageError,
        shared: &Shared,
        from: QueueOffset,
    ) -> Result<Option<Next>> {
        let bounds = shared.storage.engine().bounds(&self.key)?;
        if error.kind() != cuemq_storage_api::ErrorKind::OutOfRange || bounds.start <= from {
            return Err(error.into());
        }
        tracing::warn!(queue = %self.key, %from, min = %bounds.start, "messages expired before the group read them");
        self.progress.commit(bounds.start);
        self.next = bounds.start;
        let (key, lease, ranges) = (self.key.clone(), self.lease, vec![from..bounds.start]);
        Ok(Some(Next::Skipped { key, lease, ranges, unwanted: false }))
    }
}

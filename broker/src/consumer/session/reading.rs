//! How a member comes to its next records: from its own queues, and from those of fellows with other tags.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cuemq_storage_api::{FetchLimit, FetchRequest, QueueKey, QueueOffset, StoredRecord, TagHashes, Timestamp};

use super::exchange::Guest;
use super::held_queue::{HeldQueue, QueuePlan, Routed};
use super::lane::LanePlan;
use super::{Credit, Given, Held, Next, Records, Session};
use crate::clock::Clock;
use crate::domain::filter::TagFilter;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::subscriptions::Subscriptions;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES};
use crate::shared::Shared;

enum Plan {
    Give(Given),
    Fetch(Reading),
    Ended(Next),
    Wait(Option<Timestamp>),
}

/// What shall be read of a queue.
struct Reading {
    key: QueueKey,
    lease: Lease,
    offsets: Range<QueueOffset>,
}

/// What came of asking the others.
enum Others {
    Given(Given),
    Skipped(Next),
    /// Something was read: look again.
    Read,
    Wait(Option<Timestamp>),
}

impl Session {
    /// Looks for the next records: one that is due again, or up to `most` of a queue that are ready or fetched now.
    pub(crate) fn next(&self, shared: &Shared, most: usize) -> Result<Next> {
        // In turns, so that queues that never end keep nobody from what others have for it.
        if self.is_mixed() && self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            match self.taken_from_others(&shared.clock, most)? {
                Others::Given(given) => return Ok(Next::Given(given)),
                Others::Skipped(next) => return Ok(next),
                Others::Read | Others::Wait(_) => {}
            }
        }
        loop {
            match self.plan(&shared.clock, most)? {
                Plan::Give(given) => return Ok(Next::Given(given)),
                Plan::Fetch(reading) => {
                    if let Some(skipped) = self.fetch(shared, reading)? {
                        return Ok(skipped);
                    }
                }
                Plan::Ended(next) => return Ok(next),
                Plan::Wait(at) if !self.is_mixed() => return Ok(Next::Wait(at)),
                Plan::Wait(at) => match self.look_to_others(shared, most)? {
                    Others::Given(given) => return Ok(Next::Given(given)),
                    Others::Skipped(next) => return Ok(next),
                    Others::Read => {}
                    Others::Wait(other) => return Ok(Next::Wait(sooner(at, other))),
                },
            }
        }
    }

    fn plan(&self, clock: &Clock, most: usize) -> Result<Plan> {
        let mut held = self.lock();
        let Some(room) = self.room(&held, most)? else { return Ok(Plan::Wait(None)) };
        let (count, mut soonest) = (held.queues.len(), None);
        for step in 0..count {
            let at = (held.cursor + step) % count;
            match held.queues[at].plan(clock, room) {
                QueuePlan::Give(records, redeliveries) => {
                    held.cursor = at + 1;
                    held.count_out(&records);
                    let queue = &held.queues[at];
                    let (key, lease) = (queue.key.clone(), queue.lease);
                    return Ok(Plan::Give(Given { key, lease, records, redeliveries, holder: None }));
                }
                QueuePlan::Fetch { from, until } => {
                    held.cursor = at;
                    let queue = &held.queues[at];
                    let (key, lease, offsets) = (queue.key.clone(), queue.lease, from..until);
                    return Ok(Plan::Fetch(Reading { key, lease, offsets }));
                }
                QueuePlan::Ended(offsets) => {
                    return Ok(Plan::Ended(Next::Ended { key: held.queues[at].key.clone(), offsets }));
                }
                QueuePlan::Wait(again) => soonest = sooner(soonest, again),
            }
        }
        Ok(Plan::Wait(soonest))
    }

    /// What this member may be given now, if anything.
    fn room(&self, held: &Held, most: usize) -> Result<Option<Credit>> {
        if let Some(why) = &held.closed {
            return Err(Error::new(ErrorKind::Closed, format!("the consumer is closed: {why}")));
        }
        let room = self.credit.less(held.out).filter(|_| !held.paused);
        Ok(room.map(|room| match self.order {
            Order::Concurrent | Order::Key => Credit { messages: most.min(room.messages), ..room },
            // One at a time, because the next one may not go ahead of one that fails.
            Order::Queue => Credit { messages: 1, ..room },
        }))
    }

    /// Whether others of the group want other messages.
    fn is_mixed(&self) -> bool {
        self.exchange.get().is_some_and(|exchange| exchange.is_mixed())
    }

    /// The other members, beginning with another one each time.
    fn fellows(&self) -> Vec<(Arc<Session>, Guest)> {
        let Some(exchange) = self.exchange.get() else { return Vec::new() };
        let guests = exchange.guests();
        let first = self.turn.load(Ordering::Relaxed) % guests.len().max(1);
        let others = guests[first..].iter().chain(&guests[..first]).filter(|guest| guest.member != self.member);
        others.filter_map(|guest| Some((guest.session()?, guest.clone()))).collect()
    }

    /// Takes what others have for this member.
    fn taken_from_others(&self, clock: &Clock, most: usize) -> Result<Others> {
        let Some(room) = self.room(&self.lock(), most)? else { return Ok(Others::Wait(None)) };
        let mut soonest = None;
        for (fellow, _) in self.fellows() {
            match fellow.lend(&self.member, clock, room) {
                Others::Given(given) => {
                    self.lock().count_out(&given.records);
                    return Ok(Others::Given(Given { holder: Some(fellow), ..given }));
                }
                Others::Wait(again) => soonest = sooner(soonest, again),
                ended => return Ok(ended),
            }
        }
        Ok(Others::Wait(soonest))
    }

    /// Takes what others have for this member, or reads their queues as far as they have not.
    fn look_to_others(&self, shared: &Shared, most: usize) -> Result<Others> {
        let soonest = match self.taken_from_others(&shared.clock, most)? {
            Others::Wait(soonest) => soonest,
            given => return Ok(given),
        };
        if self.room(&self.lock(), most)?.is_none() {
            return Ok(Others::Wait(None));
        }
        for (fellow, guest) in self.fellows() {
            if guest.subscriptions == self.subscriptions {
                continue;
            }
            if let Some(reading) = fellow.unread_for(self) {
                return Ok(fellow.fetch(shared, reading)?.map_or(Others::Read, Others::Skipped));
            }
        }
        Ok(Others::Wait(soonest))
    }

    /// Gives out what it has for a fellow.
    fn lend(&self, to: &MemberId, clock: &Clock, room: Credit) -> Others {
        let mut held = self.lock();
        let mut soonest = None;
        for queue in &mut held.queues {
            if let Some(offsets) = queue.ended(clock) {
                return Others::Skipped(Next::Ended { key: queue.key.clone(), offsets });
            }
            match queue.plan_for(to, clock, room) {
                LanePlan::Give(records, redeliveries) => {
                    let (key, lease) = (queue.key.clone(), queue.lease);
                    return Others::Given(Given { key, lease, records, redeliveries, holder: None });
                }
                LanePlan::Wait { again, .. } => soonest = sooner(soonest, again),
                LanePlan::Busy => {}
            }
        }
        Others::Wait(soonest)
    }

    /// What of its queues a fellow may have read that waits for its own.
    fn unread_for(&self, fellow: &Session) -> Option<Reading> {
        let mut held = self.lock();
        held.queues.iter_mut().find_map(|queue| {
            if !fellow.may_want(&queue.key) {
                return None;
            }
            let offsets = queue.readable_for(&fellow.member)?;
            Some(Reading { key: queue.key.clone(), lease: queue.lease, offsets })
        })
    }

    /// Whether messages of a queue may be meant for this member.
    pub(super) fn may_want(&self, queue: &QueueKey) -> bool {
        queue.topic.is_system() || self.subscriptions.filter(&queue.topic).is_some()
    }

    /// Reads records of one queue into it, outside the lock; what was skipped on the way is returned to be settled.
    fn fetch(&self, shared: &Shared, reading: Reading) -> Result<Option<Next>> {
        let Reading { key, lease, offsets } = reading;
        let filter = self.subscriptions.filter(&key.topic);
        // Redeliveries are of several topics, each with its filter.
        let shared_out = self.is_mixed() || (filter.is_none() && !self.subscriptions.want_everything());
        let exchange = self.exchange.get().filter(|_| shared_out);
        let tags = match (filter, exchange) {
            (None, _) => TagHashes::All,
            (Some(_), Some(exchange)) => exchange.hashes(&key.topic),
            (Some(filter), None) => TagFilter::hashes(filter),
        };
        let limit = FetchLimit { max_messages: FETCH_MESSAGES, max_bytes: FETCH_BYTES };
        let until = Some(offsets.end);
        let fetched =
            shared.storage.engine().fetch(FetchRequest { queue: &key, from: offsets.start, until, limit, tags: &tags });
        let mut held = self.lock();
        let Some(queue) = held.queues.iter_mut().find(|q| q.key == key && q.lease == lease) else { return Ok(None) };
        if queue.next != offsets.start {
            // It was moved on meanwhile.
            return Ok(None);
        }
        let fetch = match fetched {
            Ok(fetch) => fetch,
            Err(error) => return queue.after_failed_fetch(error, shared, offsets.start),
        };
        queue.next = fetch.next;
        queue.note_ends(fetch.records.iter());
        let mut records = fetch.records;
        queue.mark_failed(&mut records);
        if tags == TagHashes::All && exchange.is_none() && !queue.has_gaps() {
            queue.own.extend(records);
            return Ok(None);
        }
        records.retain(|stored| queue.is_open(stored.offset));
        let (kept, woken) = match exchange {
            // Asked for with the queue at hand: a member that leaves takes back what it was given before.
            Some(exchange) => share_out(queue, records, &self.subscriptions, &exchange.guests()),
            None => {
                records.retain(|r| filter.is_none_or(|filter| filter.matches(r.record.attributes.tag())));
                let kept = records.iter().map(|stored| stored.offset).collect();
                queue.own.extend(records);
                (kept, Vec::new())
            }
        };
        let ranges = queue.settle_skipped(&kept, offsets.start..fetch.next);
        drop(held);
        if exchange.is_some() {
            // Whoever has its queue read by a fellow hears of what is its own.
            self.wake_members(&woken);
            self.signal.wake();
        }
        Ok((!ranges.is_empty()).then_some(Next::Skipped { key, lease, ranges, unwanted: true }))
    }
}

/// Shares what was read among those that want it; returns the offsets that somebody gets, and the guests among them.
fn share_out(
    queue: &mut HeldQueue,
    records: Vec<StoredRecord>,
    holder: &Subscriptions,
    guests: &[Guest],
) -> (Vec<QueueOffset>, Vec<MemberId>) {
    let (mut kept, mut woken) = (Vec::with_capacity(records.len()), Vec::new());
    for stored in records {
        let offset = stored.offset;
        match queue.route(stored, 0, holder, guests) {
            Routed::Unwanted => continue,
            Routed::ToGuest(member) if !woken.contains(&member) => woken.push(member),
            Routed::ToGuest(_) | Routed::ToHolder | Routed::Parked => {}
        }
        kept.push(offset);
    }
    (kept, woken)
}

impl Held {
    fn count_out(&mut self, records: &Records) {
        let stored = records.as_slice();
        self.out.messages += stored.len();
        self.out.bytes += stored.iter().map(|stored| stored.record.payload_bytes()).sum::<usize>();
    }
}

fn sooner(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

//! Consumption by pop: pools of consumers that share messages one by one, under receipts.
//!
//! ```text
//!  PopConsumer ─┐                        ┌─ queue, queue      what a pool gives out is the group's: it stays in
//!  PopConsumer ─┼─▶ pool = a member ─────┤                    flight when a queue moves on, and whoever holds the
//!  PopConsumer ─┘   of the group, %pop/1 └─ %RETRY%group      queue then passes it over
//! ```
//! Consumers with the same subscriptions share one pool: a member of the group like any other, whose session the
//! group's actor reads itself. So both ways of consuming live in one group, and queues move between them.

mod messages;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{QueueKey, QueueOffset, StoredRecord, Timestamp, TopicName};

pub(crate) use messages::{Basket, Filters, PopRequest, PoppedRun, Ticket, Way, Wish};

use super::offsets::OffsetOwner;
use super::{Answer, GroupActor, Start};
use crate::actors::room::came_back;
use crate::consumer::session::{Claim, Credit, Given, Next, Session, SessionSettings};
use crate::domain::flight::{DeliveryId, Flight, Landed, PoolId, PopSettings};
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::parking::Parking;
use crate::domain::pop::Pops;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{FETCH_BYTES, MAX_EXPIRED_POPS, MAX_PARKED_POPS, MAX_POPPED_MESSAGES, MAX_REMEMBERED_SETTLEMENTS};

/// What a group keeps for its pop consumers.
pub(super) struct Popping {
    flights: Pops,
    parking: Parking<Wish>,
    pools: BTreeMap<PoolId, Pool>,
    next_pool: u32,
    /// Who waits for an answer that is being stored.
    answers: HashMap<DeliveryId, Vec<Answer<()>>>,
}

struct Pool {
    filters: Filters,
    session: Arc<Session>,
    ticket: Weak<Ticket>,
    /// Whether its signal is waited for.
    listening: bool,
    /// When its session wants to be looked at again.
    look_again: Option<Timestamp>,
}

impl Pool {
    fn serves(&self, filters: &Filters) -> bool {
        self.filters == *filters && !self.session.is_closed()
    }
}

impl Popping {
    /// `first` is above every number of an earlier opening.
    pub(super) fn new(first: u64) -> Self {
        let settings = PopSettings { max_in_flight: MAX_POPPED_MESSAGES, max_remembered: MAX_REMEMBERED_SETTLEMENTS };
        Self {
            flights: Pops::new(settings, first),
            parking: Parking::new(MAX_PARKED_POPS),
            pools: BTreeMap::new(),
            next_pool: 1,
            answers: HashMap::new(),
        }
    }

    /// When something has to be done next.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let waited_for = self.pools.iter().filter(|(id, _)| self.parking.has(**id));
        let looks = waited_for.filter_map(|(_, pool)| pool.look_again);
        self.flights.next_deadline().into_iter().chain(self.parking.next_deadline()).chain(looks).min()
    }

    /// How many messages are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.in_flight()
    }

    /// What of a queue is in flight: whoever gets the queue passes it over.
    pub(super) fn in_flight_of(&self, queue: &QueueKey) -> BTreeSet<QueueOffset> {
        self.flights.offsets_of(queue).collect()
    }

    /// Whether somebody has popped this message and has not settled it.
    pub(super) fn is_in_flight(&self, queue: &QueueKey, offset: QueueOffset) -> bool {
        self.flights.is_in_flight(queue, offset)
    }

    /// Whether a member is a pool. It has nothing to finish when a queue is taken from it.
    pub(super) fn is_pool(&self, member: &MemberId) -> bool {
        self.pools.values().any(|pool| pool.session.member == *member)
    }

    /// The pools whose consumers are all gone.
    pub(super) fn abandoned(&self) -> Vec<PopRequest> {
        let gone = self.pools.iter().filter(|(_, pool)| pool.ticket.strong_count() == 0);
        gone.map(|(id, _)| PopRequest::Leave { pool: *id }).collect()
    }

    /// Loses sight of what of a queue is in flight: where the group goes on in it was set anew.
    pub(super) fn forget(&mut self, queue: &QueueKey) {
        self.flights.interrupt(Some(queue));
    }

    /// Tells everybody who waits that nothing will come.
    pub(super) fn close(&mut self, why: &str) {
        for wish in self.parking.take_all() {
            // Whoever waited may have gone away.
            let _ = wish.reply.send(Err(Error::closed(&format!("the group ({why})"))));
        }
    }

    /// Everybody who waits behind a full group may find room.
    fn wake_all(&self) {
        self.pools.values().for_each(|pool| pool.session.signal().wake());
    }
}

impl GroupActor {
    pub(super) fn pop(&mut self, request: PopRequest, ctx: &mut Context<Self>) {
        match request {
            PopRequest::Open { filters, topics, start, reply } => {
                let opened = self.open_pool(filters, topics, start, ctx);
                let _ = reply.send(opened);
            }
            PopRequest::Leave { pool } => self.leave_pool(pool, ctx),
            PopRequest::Take { pool, wish } => self.take(pool, wish, ctx),
            PopRequest::TakeBack { runs } => runs.into_iter().for_each(|run| self.take_back(run)),
            PopRequest::Ack { receipts, refused, reply } => self.ack_popped(&receipts, refused, reply, ctx),
            PopRequest::Fail { receipt, cause, reply } => self.fail_popped(&receipt, cause, reply, ctx),
            PopRequest::Renew { receipt, invisible, reply } => {
                let renewed = self.renew_popped(&receipt, invisible);
                let _ = reply.send(renewed);
            }
        }
    }

    /// Whatever of the pools is due: messages that come again, pops that have waited long enough.
    pub(super) fn pop_deadline(&mut self, ctx: &mut Context<Self>) {
        let now = self.shared.clock.now();
        for (id, flight) in self.popping.flights.expire(now, MAX_EXPIRED_POPS) {
            self.fail_expired(id, &flight, ctx);
        }
        let mut look = Vec::new();
        for (id, pool) in &mut self.popping.pools {
            if pool.look_again.take_if(|at| *at <= now).is_some() {
                look.push(*id);
            }
        }
        look.into_iter().for_each(|pool| self.serve_parked(pool, ctx));
        while let Some((pool, wish)) = self.popping.parking.take_expired(now) {
            // A last look: what came at this very moment is not missed.
            self.take(pool, Wish { until: now, ..wish }, ctx);
        }
    }

    fn open_pool(
        &mut self,
        filters: Filters,
        topics: BTreeSet<TopicName>,
        start: Start,
        ctx: &mut Context<Self>,
    ) -> Result<Arc<Ticket>> {
        let way = Way { inbox: Arc::clone(&self.inbox), actor: ctx.address() };
        if let Some((id, pool)) = self.popping.pools.iter_mut().find(|(_, pool)| pool.serves(&filters)) {
            return Ok(pool.ticket.upgrade().unwrap_or_else(|| {
                let ticket = Arc::new(Ticket { pool: *id, way });
                pool.ticket = Arc::downgrade(&ticket);
                ticket
            }));
        }
        let (id, member) = loop {
            let number = self.popping.next_pool;
            self.popping.next_pool = number.wrapping_add(1);
            let member = MemberId::new(&format!("%pop/{number}"))?;
            // Somebody else may have chosen that very name.
            if !self.sessions.contains_key(&member) {
                break (PoolId(number), member);
            }
        };
        let (order, credit) = (Order::Concurrent, Credit::POOL);
        let settings = SessionSettings { broadcasting: false, order, credit, filters: filters.clone() };
        let session = Session::new(member, settings);
        self.join(Arc::clone(&session), topics, None, start, ctx)?;
        let ticket = Arc::new(Ticket { pool: id, way });
        let pool = Pool { filters, session, ticket: Arc::downgrade(&ticket), listening: false, look_again: None };
        self.popping.pools.insert(id, pool);
        Ok(ticket)
    }

    fn leave_pool(&mut self, id: PoolId, ctx: &mut Context<Self>) {
        let gone = self.popping.pools.get(&id).is_some_and(|pool| pool.ticket.strong_count() == 0);
        let Some(pool) = gone.then(|| self.popping.pools.remove(&id)).flatten() else { return };
        while let Some(wish) = self.popping.parking.take_first(id) {
            let _ = wish.reply.send(Err(Error::closed("the pop consumer")));
        }
        pool.session.close("its consumers are gone");
        self.leave(&pool.session, ctx);
    }

    /// Answers a pop, or has it wait for its messages.
    fn take(&mut self, id: PoolId, wish: Wish, ctx: &mut Context<Self>) {
        if wish.reply.is_closed() {
            return;
        }
        // Whoever waits already comes first.
        self.serve_parked(id, ctx);
        let given =
            if self.popping.parking.has(id) { Ok(Vec::new()) } else { self.give(id, wish.most, wish.invisible, ctx) };
        match given {
            Ok(runs) if runs.is_empty() && wish.until > self.shared.clock.now() => self.park(id, wish, ctx),
            Ok(runs) if runs.is_empty() && self.popping.flights.room() == 0 => {
                let text = format!(
                    "group {} has {MAX_POPPED_MESSAGES} messages in flight, its limit: settle some of them",
                    self.group
                );
                let _ = wish.reply.send(Err(Error::new(ErrorKind::Full, text)));
            }
            given => {
                // A basket that nobody takes goes back by itself.
                let _ = wish.reply.send(given.map(|runs| self.basket(runs, ctx)));
            }
        }
    }

    fn park(&mut self, id: PoolId, wish: Wish, ctx: &mut Context<Self>) {
        if let Some(oldest) = self.popping.parking.park(id, wish.until, wish) {
            let text = format!(
                "group {} has {MAX_PARKED_POPS} pops waiting, its limit, and this one waited longest: pop again, with \
                 fewer at a time",
                self.group
            );
            let _ = oldest.reply.send(Err(Error::new(ErrorKind::Full, text)));
        }
        self.listen(id, ctx);
    }

    /// Has the pool looked after when its session has something new.
    fn listen(&mut self, id: PoolId, ctx: &mut Context<Self>) {
        let Some(pool) = self.popping.pools.get_mut(&id).filter(|pool| !pool.listening) else { return };
        pool.listening = true;
        let signal = Arc::clone(pool.session.signal());
        let signalled = async move { signal.wait().await };
        ctx.spawn(signalled.into_actor(self).map(move |(), actor: &mut Self, ctx| {
            if let Some(pool) = actor.popping.pools.get_mut(&id) {
                pool.listening = false;
            }
            actor.serve_parked(id, ctx);
            actor.write_offsets();
            actor.set_deadline(ctx);
        }));
    }

    fn serve_parked(&mut self, id: PoolId, ctx: &mut Context<Self>) {
        while let Some(first) = self.popping.parking.first(id) {
            if first.reply.is_closed() {
                self.popping.parking.take_first(id);
                continue;
            }
            let (most, invisible) = (first.most, first.invisible);
            let given = self.give(id, most, invisible, ctx);
            if given.as_ref().is_ok_and(Vec::is_empty) {
                return self.listen(id, ctx);
            }
            if let Some(wish) = self.popping.parking.take_first(id) {
                let _ = wish.reply.send(given.map(|runs| self.basket(runs, ctx)));
            }
        }
    }

    fn basket(&self, runs: Vec<PoppedRun>, ctx: &Context<Self>) -> Basket {
        let way = Way { inbox: Arc::clone(&self.inbox), actor: ctx.address() };
        Basket { runs, sealer: self.popping.flights.sealer().clone(), way }
    }

    /// Gives out what the pool's session has, under receipts.
    fn give(&mut self, id: PoolId, most: usize, invisible: Duration, ctx: &Context<Self>) -> Result<Vec<PoppedRun>> {
        let Some(pool) = self.popping.pools.get_mut(&id) else { return Err(Error::closed("the pop consumer")) };
        pool.look_again = None;
        let session = Arc::clone(&pool.session);
        let until = self.shared.clock.now().plus(invisible);
        let (mut runs, mut left, mut bytes) = (Vec::new(), most, 0);
        while bytes < FETCH_BYTES {
            let room = self.popping.flights.room().min(left);
            if room == 0 {
                break;
            }
            match session.next(&self.shared, room) {
                Ok(Next::Given(given)) => {
                    left = left.saturating_sub(given.records.as_slice().len());
                    bytes += self.give_out(id, given, until, &mut runs);
                }
                Ok(Next::Skipped { key, lease, ranges, unwanted }) => {
                    self.acknowledge_of(&session.member, key, lease, ranges, unwanted, None);
                }
                Ok(Next::Ended { key, offsets }) => self.withdraw_ended(&key, offsets, ctx),
                Ok(Next::Wait(at)) => {
                    if let Some(pool) = self.popping.pools.get_mut(&id) {
                        pool.look_again = at;
                    }
                    break;
                }
                Err(error) if runs.is_empty() => return Err(self.shared.check_running().err().unwrap_or(error)),
                // What came before it counts; whoever pops next hears of it.
                Err(_) => break,
            }
        }
        Ok(runs)
    }

    /// Puts records in flight; returns their bytes.
    fn give_out(&mut self, pool: PoolId, given: Given, until: Timestamp, out: &mut Vec<PoppedRun>) -> usize {
        // What a fellow had for the pool is in flight elsewhere to that one, too.
        let Given { key, lease, records, redeliveries, .. } = given;
        let bytes_of = |stored: &StoredRecord| stored.record.payload_bytes();
        let mut left = records.into_vec().into_iter();
        let sum = left.as_slice().iter().map(bytes_of).sum();
        while let Some(run) = left.as_slice().chunk_by(|one, next| next.offset == one.offset.plus(1)).next() {
            let messages = run.iter().map(|stored| (u32::try_from(bytes_of(stored)).unwrap_or(u32::MAX), redeliveries));
            let (place, count) = ((&key, run[0].offset), run.len());
            match self.popping.flights.give(place, (pool, lease), until, messages) {
                Ok(mark) => {
                    // Mostly all of them: then nothing is moved.
                    let records = if count == left.len() {
                        std::mem::take(&mut left).collect()
                    } else {
                        left.by_ref().take(count).collect()
                    };
                    out.push(PoppedRun { queue: key.clone(), records, mark, redeliveries, until });
                }
                // No more were asked for than there was room.
                Err(full) => {
                    tracing::error!(group = %self.group, ?full, "messages were taken that have no room");
                    break;
                }
            }
        }
        sum
    }

    /// Takes messages back that reached nobody, so that the next one gets them.
    fn take_back(&mut self, run: PoppedRun) {
        for (index, stored) in run.records.into_iter().enumerate() {
            if let Some(flight) = self.popping.flights.take_back(run.mark.plus(index)) {
                self.comes_back(&flight, stored);
            }
        }
    }

    /// A message that was in flight is to be had again in its queue.
    fn comes_back(&self, flight: &Flight, stored: StoredRecord) {
        let claim = claim_of(flight);
        let pool = self.popping.pools.get(&flight.pool);
        came_back(&self.shared, &flight.queue);
        if pool.is_some_and(|pool| pool.session.give_back(claim, stored.clone(), flight.redeliveries)) {
            return;
        }
        if let Some((session, lease)) = self.holder_of(&flight.queue) {
            session.comes_back(&flight.queue, lease, stored, flight.redeliveries);
        }
    }

    /// Messages that were in flight are done, and whoever holds their queue now knows.
    fn landed(&mut self, runs: &[Landed]) {
        for run in runs {
            let owner = OffsetOwner { queue: run.queue.clone(), member: None };
            self.offsets.acknowledge(&self.shared, &owner, vec![run.offsets.clone()], false, None);
        }
        self.tell_landed(runs);
    }

    fn tell_landed(&self, runs: &[Landed]) {
        for Landed { queue: key, offsets, pool, lease, messages, bytes } in runs {
            let claim = Claim { key, lease: *lease, records: *messages, bytes: *bytes, holder: None };
            let pool = self.popping.pools.get(pool);
            let settled = pool.and_then(|pool| pool.session.acknowledged(claim, std::slice::from_ref(offsets)));
            if settled.is_none()
                && let Some((session, lease)) = self.holder_of(key)
            {
                session.done_elsewhere(key, lease, offsets.clone());
            }
        }
        // The group was full before.
        if self.popping.flights.room() <= runs.iter().map(|run| run.messages).sum() {
            self.popping.wake_all();
        }
    }

    fn holder_of(&self, queue: &QueueKey) -> Option<(&Session, Lease)> {
        let holding = self.membership.holding(queue)?;
        self.sessions.get(&holding.member).map(|joined| (&*joined.session, holding.lease))
    }

    /// After a panic: what was in flight is to be had again, its receipts are stale, and whoever waits goes on waiting.
    pub(super) fn restore_pools(&mut self, ctx: &mut Context<Self>) -> Result<()> {
        self.popping.answers.clear();
        for flight in self.popping.flights.all() {
            let held_by_pool =
                self.membership.holding(&flight.queue).is_some_and(|held| self.popping.is_pool(&held.member));
            let owner = OffsetOwner { queue: flight.queue.clone(), member: None };
            if self.offsets.is_done(&owner, flight.offset) {
                // The panic came between a write and the news of it.
                self.tell_landed(&[flight.into()]);
            } else if !held_by_pool && let Some(stored) = self.fetch_again(&flight)? {
                self.comes_back(&flight, stored);
            }
        }
        self.popping.flights.interrupt(None);
        let pools: Vec<(PoolId, Arc<Session>)> =
            self.popping.pools.iter().map(|(id, pool)| (*id, Arc::clone(&pool.session))).collect();
        for (id, session) in pools {
            // Its queues are granted anew, from what the group knows to be done.
            session.lose_everything();
            let held = self.membership.holdings().filter(|(_, held)| held.member == session.member);
            let held: Vec<QueueKey> = held.map(|(queue, _)| queue.clone()).collect();
            held.iter().for_each(|queue| self.recall(queue, ctx));
            if let Some(pool) = self.popping.pools.get_mut(&id) {
                pool.listening = false;
            }
            self.serve_parked(id, ctx);
        }
        Ok(())
    }
}

fn claim_of(flight: &Flight) -> Claim<'_> {
    let bytes = usize::try_from(flight.bytes).unwrap_or(usize::MAX);
    Claim { key: &flight.queue, lease: flight.lease, records: 1, bytes, holder: None }
}

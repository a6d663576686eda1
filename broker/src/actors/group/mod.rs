//! One consumer group: who its members are, which queues each reads, what is done.
//!
//! It owns the group's progress: acknowledgements change the pure machine at once and storage in the same drain, one
//! write for all that waited. Sessions read from storage by themselves. After a panic the progress is read back from
//! storage, once every write handed over before has landed, and what was acknowledged but not yet handed over is
//! applied again. Supervised like all actors.

mod catch_up;
mod commit;
mod describe;
mod divert;
mod failure;
mod fences;
mod handle;
mod in_place;
mod letters;
mod messages;
mod new_queues;
mod offsets;
mod operation;
mod pop;
mod recall;
mod room;
mod withdrawal;
mod withdrawn_ahead;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{GroupName, QueueKey, Timestamp, TopicName, WriteBatch};

pub(crate) use commit::{Claim, ClaimRefused, Prepared, Release};
pub(crate) use divert::{DivertId, DivertRequest, Slice};
pub(crate) use failure::Failure;
use failure::Failures;
pub(crate) use fences::hold_groups;
pub(crate) use handle::GroupHandle;
pub(crate) use in_place::InPlaceFailure;
pub(crate) use letters::{Handled, LetterOperation, LetterRequest, LetterToHandle, LetterToSend, sent_again};
pub(crate) use messages::{Answer, GroupRequest, Start};
pub use messages::{GroupDescription, MemberDescription, QueueLag};
pub(crate) use operation::{MoveOffsets, Operation};
pub(crate) use pop::{PopRequest, PoppedRun, Ticket, Wish};
pub(crate) use room::{RoomRequest, sizes_of};
pub(crate) use withdrawal::Withdrawal;

use super::alarm::{Alarm, Alarmed, set_alarm};
use super::application::PrepareReply;
use super::mailbox::{Drain, Inbox, go_on};
use super::room::came_back;
use super::supervisor::fail_start;
use crate::consumer::session::{Exchange, Granted, Session};
use crate::domain::assignment::AssignmentStrategy;
use crate::domain::member::{MemberId, Room};
use crate::domain::membership::{Lease, Membership, MembershipEffect, MembershipSettings};
use crate::domain::retry::RetryPolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_ACK_DRAIN, MAX_MEMBERS, MAX_SUBSCRIPTIONS, REVOKE_PATIENCE};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::tables::group::GroupRow;
use fences::OpenFences;
use letters::Letters;
use offsets::{OffsetOwner, Offsets};
use pop::Popping;
use room::Measured;
use withdrawal::Withdrawals;

pub(crate) const KIND: &str = "group";

pub(crate) struct GroupActor {
    shared: Arc<Shared>,
    group: GroupName,
    name: Arc<str>,
    inbox: Arc<Inbox<GroupRequest>>,
    membership: Membership,
    sessions: HashMap<MemberId, Joined>,
    offsets: Offsets,
    fences: OpenFences,
    letters: Letters,
    withdrawals: Withdrawals,
    measured: Measured,
    policy: RetryPolicy,
    paused: bool,
    failures: Failures,
    exchange: Arc<Exchange>,
    /// Claims of a transaction that wait for the outcome of a failure; there is one committer.
    commit: Option<(Vec<Claim>, PrepareReply)>,
    popping: Popping,
    /// Rings when a holder is cut off that has not released, or something popped is due.
    deadline: Alarm,
    /// Leases of broadcasting members: one each, for all their queues.
    next_broadcast_lease: u64,
    /// Whether an operator's write is under way: nothing else is handled before its outcome is known.
    operating: bool,
    /// Backlogs that are being moved elsewhere.
    diverts: BTreeMap<TopicName, divert::Divert>,
}

struct Joined {
    session: Arc<Session>,
    topics: BTreeSet<TopicName>,
    start: Start,
    /// Of a broadcasting member.
    lease: Lease,
}

impl Actor for GroupActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.load(ctx);
    }
}

impl Supervised for GroupActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        self.deadline = Alarm::default();
        self.operating = false;
        self.load(ctx);
        if self.inbox.wake_after_restart() {
            ctx.notify(Drain);
        }
        self.repeat_failures(ctx);
        if let Some((claims, reply)) = self.commit.take() {
            let _ = self.inbox.push(GroupRequest::Prepare { claims, reply }, &ctx.address());
        }
        // Behind everything that waits, so that nothing is made good that is only late.
        let _ = self.inbox.push(GroupRequest::CatchUp, &ctx.address());
    }
}

impl Alarmed for GroupActor {
    fn alarm(&mut self) -> &mut Alarm {
        &mut self.deadline
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        if self.operating {
            // As with a drain, whose end sets the alarm again.
            ctx.notify(Drain);
            return;
        }
        self.shared.probe(KIND, &self.name, "Deadline");
        let mut effects = Vec::new();
        self.membership.expire(self.shared.clock.now(), &mut effects);
        self.perform(effects, ctx);
        self.pop_deadline(ctx);
        self.write_offsets();
        self.set_deadline(ctx);
    }
}

impl Handler<Drain> for GroupActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        if self.operating {
            // Another wake-up can slip in between a handler and the write that it has the actor wait for.
            ctx.notify(Drain);
            return;
        }
        for _ in 0..MAX_ACK_DRAIN {
            let Some(request) = self.inbox.pop() else { break };
            self.shared.probe(KIND, &self.name, request.name());
            self.handle_request(request, ctx);
            if self.operating {
                break;
            }
        }
        self.write_offsets();
        self.set_deadline(ctx);
        if !self.inbox.rest() {
            go_on(self, ctx);
        }
    }
}

impl GroupActor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        group: GroupName,
        name: Arc<str>,
        inbox: Arc<Inbox<GroupRequest>>,
        row: &GroupRow,
    ) -> Self {
        let settings = MembershipSettings {
            strategy: row.strategy.clone(),
            revoke_patience: REVOKE_PATIENCE,
            max_members: MAX_MEMBERS,
            // The group's retry topic is one more.
            max_subscriptions: MAX_SUBSCRIPTIONS + 1,
        };
        let policy = row.retry.clone().at_most(shared.settings.max_redeliveries);
        Self {
            offsets: Offsets::new(group.clone()),
            letters: Letters::default(),
            popping: Popping::new(shared.take_number()),
            withdrawals: Withdrawals::default(),
            measured: Measured::default(),
            shared,
            group,
            name,
            inbox,
            fences: OpenFences::new(),
            membership: Membership::new(settings, Lease(0)),
            sessions: HashMap::new(),
            policy,
            paused: row.paused,
            failures: Failures::default(),
            exchange: Arc::default(),
            commit: None,
            deadline: Alarm::default(),
            next_broadcast_lease: 1,
            operating: false,
            diverts: BTreeMap::new(),
        }
    }

    /// Reads the progress back, once every write handed over before has landed. Nothing is handled meanwhile.
    fn load(&mut self, ctx: &mut Context<Self>) {
        let storage = self.shared.storage.clone();
        let barrier = async move { storage.write_and_wait(WriteBatch::new(Timestamp::MIN), Flush::Buffered).await };
        ctx.wait(barrier.into_actor(self).map(|_, actor: &mut Self, ctx: &mut Context<Self>| {
            let loaded = actor.offsets.reload(&actor.shared).and_then(|()| actor.restore_pools(ctx));
            if let Err(error) = loaded {
                fail_start(&error);
            }
            // A restart finds every write at its end, and nobody who tells of it.
            actor.letters_handled(ctx);
            actor.set_deadline(ctx);
            actor.withdraw_again(ctx);
            actor.everything_came_back();
        }));
    }

    fn configure(&mut self, strategy: AssignmentStrategy, retry: RetryPolicy, paused: bool, ctx: &mut Context<Self>) {
        self.policy = retry.at_most(self.shared.settings.max_redeliveries);
        self.paused = paused;
        self.sessions.values().for_each(|joined| self.instruct(&joined.session));
        let mut effects = Vec::new();
        self.membership.set_strategy(strategy, self.shared.clock.now(), &mut effects);
        self.perform(effects, ctx);
    }

    /// Tells a member what the group's settings mean to it.
    fn instruct(&self, session: &Session) {
        session.set_redeliveries(self.policy.redeliveries());
        session.pause(self.paused);
    }

    fn released(&mut self, queue: &QueueKey, lease: Lease, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        // A holder that was fenced meanwhile has nothing to release.
        if self.membership.released(queue, lease, &mut effects).is_ok() {
            self.perform(effects, ctx);
            came_back(&self.shared, queue);
        }
    }

    fn handle_request(&mut self, request: GroupRequest, ctx: &mut Context<Self>) {
        match request {
            GroupRequest::Join { session, topics, room, start, reply } => {
                let joined = self.join(session, topics, room, start, ctx);
                let _ = reply.send(joined);
            }
            GroupRequest::Leave { session } => self.leave(&session, ctx),
            GroupRequest::Released { queue, lease } => self.released(&queue, lease, ctx),
            GroupRequest::Acknowledge { member, queue, lease, ranges, unwanted, reply } => {
                self.acknowledge_of(&member, queue, lease, ranges, unwanted, reply);
            }
            GroupRequest::Pop(request) => self.pop(request, ctx),
            GroupRequest::Fail(failure) => self.fail(*failure, ctx),
            GroupRequest::FailInPlace(failure) => self.fail_in_place(*failure),
            GroupRequest::Failed { queue, offset, stored, hold } => self.failed(queue, offset, stored, hold, ctx),
            GroupRequest::Letters(request) => self.handle_letters(request, ctx),
            GroupRequest::LettersHandled => self.letters_handled(ctx),
            GroupRequest::Withdraw(withdrawal) => self.withdraw(withdrawal, ctx),
            GroupRequest::Withdrawn(withdrawn) => self.withdrawn(withdrawn, ctx),
            GroupRequest::MakeRoom(request) => self.make_room(request, ctx),
            GroupRequest::Committed { queue, reply } => {
                let _ = reply.send(Ok(self.offsets.committed(&OffsetOwner { queue, member: None })));
            }
            GroupRequest::Reset { queue, to, reply } => self.reset(queue, to, reply, ctx),
            GroupRequest::Operate(operation) => self.operate(*operation, ctx),
            GroupRequest::Prepare { claims, reply } => self.prepare(claims, reply, ctx),
            GroupRequest::Describe { reply } => {
                let _ = reply.send(self.describe());
            }
            GroupRequest::Hold { topic, reply } => self.hold(&topic, reply),
            GroupRequest::TopicChanged { topic } => self.topic_changed(&topic, ctx),
            GroupRequest::Configure { strategy, retry, paused } => self.configure(strategy, retry, paused, ctx),
            GroupRequest::CatchUp => {
                if let Err(error) = self.catch_up(ctx) {
                    fail_start(&error);
                }
            }
            GroupRequest::Close { why } => {
                self.sessions.values().for_each(|joined| joined.session.close(&why));
                self.failures.refuse_all(&why);
                self.popping.close(&why);
            }
        }
    }

    fn join(
        &mut self,
        session: Arc<Session>,
        topics: BTreeSet<TopicName>,
        room: Option<Room>,
        start: Start,
        ctx: &mut Context<Self>,
    ) -> Result<()> {
        let member = session.member.clone();
        if self.sessions.contains_key(&member) {
            let text = format!("group {} has a member {member} already: choose another name", self.group);
            return Err(Error::new(ErrorKind::Exists, text));
        }
        if self.sessions.values().any(|joined| joined.session.broadcasting != session.broadcasting) {
            let text = format!("group {} cannot mix clustering and broadcasting members: use two groups", self.group);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let (now, mut effects) = (self.shared.clock.now(), Vec::new());
        let lease = Lease(self.next_broadcast_lease);
        if session.broadcasting {
            self.next_broadcast_lease += 1;
        } else {
            for topic in &topics {
                self.take_up_new_queues(topic)?;
                if let Some(handle) = self.shared.topics.get(topic) {
                    self.membership.set_topic(topic.clone(), handle.queue_count(), now, &mut effects);
                }
            }
            let joined = self.membership.join(member.clone(), topics.clone(), room, now, &mut effects);
            joined.map_err(|refused| Error::new(ErrorKind::Full, refused.to_string()))?;
        }
        let broadcasting = session.broadcasting;
        self.instruct(&session);
        if !broadcasting {
            session.enter(&self.exchange);
        }
        self.sessions.insert(member.clone(), Joined { session, topics: topics.clone(), start, lease });
        topics.iter().for_each(|topic| self.review_fences(topic));
        if broadcasting {
            self.grant_everything(&member)?;
        }
        self.perform(effects, ctx);
        Ok(())
    }

    fn leave(&mut self, session: &Arc<Session>, ctx: &mut Context<Self>) {
        let joined = self.sessions.get(&session.member);
        // One that was not taken in because of its name must not take the other's place with it.
        if joined.is_none_or(|joined| !Arc::ptr_eq(&joined.session, session)) {
            return;
        }
        self.recall_from(&session.member, ctx);
        let mut effects = Vec::new();
        self.sessions.remove(&session.member);
        self.membership.leave(&session.member, self.shared.clock.now(), &mut effects);
        self.perform(effects, ctx);
        self.everything_came_back();
    }

    fn topic_changed(&mut self, topic: &TopicName, ctx: &mut Context<Self>) {
        self.review_fences(topic);
        if let Err(error) = self.take_up_new_queues(topic) {
            tracing::error!(group = %self.group, %topic, %error, "new queues cannot be taken up");
        }
        let (now, mut effects) = (self.shared.clock.now(), Vec::new());
        let queues = self.shared.topics.get(topic).map(|handle| handle.queue_count());
        self.membership.topic_changed(topic, queues, now, &mut effects);
        self.perform(effects, ctx);
    }

    fn perform(&mut self, effects: Vec<MembershipEffect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                MembershipEffect::Grant { member, queue, lease } => self.grant(&member, queue, lease),
                MembershipEffect::Revoke { member, queue, lease } => {
                    let pooled = self.popping.is_pool(&member);
                    let free = self.sessions.get(&member).is_none_or(|joined| {
                        if pooled {
                            // What is in flight stays so, whoever holds the queue.
                            joined.session.fence(&queue, lease);
                        }
                        joined.session.revoke(&queue, lease)
                    });
                    if free {
                        // Behind the acknowledgements that the member has sent by now: whoever gets the queue next
                        // must not get those messages again.
                        let _ = self.inbox.push(GroupRequest::Released { queue, lease }, &ctx.address());
                    }
                }
                MembershipEffect::Fence { member, queue, lease } => {
                    tracing::warn!(group = %self.group, %member, %queue, "a member kept a revoked queue too long");
                    if let Some(joined) = self.sessions.get(&member) {
                        joined.session.fence(&queue, lease);
                    }
                    came_back(&self.shared, &queue);
                }
                // Set once everything is done that was asked for.
                MembershipEffect::Deadline { .. } => {}
            }
        }
    }

    /// Has the alarm ring when something is due; earlier does no harm, and spares moving it with every settlement.
    fn set_deadline(&mut self, ctx: &mut Context<Self>) {
        let next = self.membership.next_deadline().into_iter().chain(self.popping.next_deadline()).min();
        if let Some(at) = next.filter(|at| !self.deadline.rings_by(*at)) {
            let clock = self.shared.clock.clone();
            set_alarm(self, Some(at), &clock, ctx);
        }
    }

    fn grant(&mut self, member: &MemberId, queue: QueueKey, lease: Lease) {
        let Some(joined) = self.sessions.get(member) else { return self.granted_to_nobody(&queue) };
        let (session, start) = (Arc::clone(&joined.session), joined.start);
        let fence = self.fence_for(joined, &queue);
        let owner = OffsetOwner { queue: queue.clone(), member: self.owner(member) };
        let granted = self.offsets.open(&self.shared, &owner, start).and_then(|progress| {
            let tail = self.shared.storage.tail(&queue)?;
            let elsewhere = self.popping.in_flight_of(&queue);
            let failed = if owner.member.is_some() { BTreeMap::new() } else { self.offsets.failed_in_place.of(&queue) };
            Ok(Granted { key: queue.clone(), lease, tail, progress, elsewhere, failed, fence })
        });
        match granted {
            Ok(granted) => session.grant(granted),
            Err(error) => {
                tracing::error!(group = %self.group, %queue, %error, "a queue's progress cannot be read");
                session.close(&error.to_string());
            }
        }
    }

    fn grant_everything(&mut self, member: &MemberId) -> Result<()> {
        let Some(joined) = self.sessions.get(member) else { return Ok(()) };
        let (lease, topics) = (joined.lease, joined.topics.clone());
        for topic in topics {
            let Some(handle) = self.shared.topics.get(&topic) else { continue };
            for queue in handle.queues() {
                self.grant(member, queue.key().clone(), lease);
            }
        }
        Ok(())
    }

    /// Whose progress a member's acknowledgements change: its own when broadcasting, else the group's.
    fn owner(&self, member: &MemberId) -> Option<MemberId> {
        let broadcasting = self.sessions.get(member).is_some_and(|joined| joined.session.broadcasting);
        broadcasting.then(|| member.clone())
    }

    fn check_lease(&self, member: &MemberId, queue: &QueueKey, lease: Lease) -> Result<()> {
        let valid = match self.sessions.get(member) {
            Some(joined) if joined.session.broadcasting => joined.lease == lease,
            Some(_) => self.membership.check(queue, lease).is_ok(),
            None => false,
        };
        if valid {
            return Ok(());
        }
        let text = format!("queue {queue} no longer belongs to member {member}: the message will be delivered again");
        Err(Error::new(ErrorKind::Stale, text))
    }

    fn write_offsets(&mut self) {
        self.advance_fences();
        let Some((mut batch, replies)) = self.offsets.take_batch(self.shared.clock.now()) else { return };
        self.offsets.forget_passed(&self.shared, &mut batch);
        self.shared.storage.write(batch, Flush::Buffered, move |result| {
            for reply in replies {
                answer(Some(reply), result.as_ref().map(|_| ()).map_err(|error| error.get()));
            }
        });
    }
}

/// Answers somebody who may have gone away.
fn answer<T>(reply: Option<Answer<T>>, result: Result<T>) {
    if let Some(reply) = reply {
        let _ = reply.send(result);
    }
}

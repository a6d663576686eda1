//! The way to a group's actor.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use actix::Addr;
use cuemq_storage_api::{GroupName, QueueKey, QueueOffset, TopicName};
use tokio::sync::oneshot;

use super::commit::Claim;
use super::messages::Answer;
use super::{GroupActor, GroupRequest, KIND, PopRequest, Start, Withdrawal};
use crate::actors::application::PrepareReply;
use crate::actors::mailbox::{Drain, Inbox, post};
use crate::actors::supervisor::Identity;
use crate::consumer::session::Session;
use crate::domain::failure::DeadReason;
use crate::domain::member::{MemberId, Room};
use crate::domain::membership::Lease;
use crate::error::{Error, ErrorKind, Result};
use crate::shared::Shared;
use crate::state::StateCell;
use crate::tables::group::GroupRow;

/// Shared by everybody who consumes in the group.
#[derive(Debug)]
pub(crate) struct GroupHandle {
    name: GroupName,
    inbox: Arc<Inbox<GroupRequest>>,
    address: Addr<GroupActor>,
    /// Everybody who waits for messages, to be told when the actor is given up. Bounded by the group's members.
    waiting: Arc<Waiting>,
    state: StateCell,
}

type Waiting = Mutex<Vec<Weak<Session>>>;

fn end_all(inbox: &Inbox<GroupRequest>, waiting: &Waiting, why: &str) {
    // Dropped requests tell their askers that the outcome is unknown.
    drop(inbox.close());
    for session in waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        session.upgrade().inspect(|session| session.close(why));
    }
}

impl GroupHandle {
    /// Starts the group's actor.
    pub(crate) fn start(shared: &Arc<Shared>, name: GroupName, row: &GroupRow) -> Self {
        let inbox = Inbox::new();
        let identity = Identity::new(KIND, &name);
        let (for_actor, abandoned) = (Arc::clone(&inbox), Arc::clone(&inbox));
        let (actor_shared, actor_name, text) = (Arc::clone(shared), name.clone(), Arc::clone(&identity.name));
        let row = row.clone();
        let make = move || GroupActor::new(actor_shared, actor_name, text, for_actor, &row);
        let waiting = Arc::<Waiting>::default();
        let left_behind = Arc::clone(&waiting);
        let orphaned = move || end_all(&abandoned, &left_behind, "its group's actor has failed");
        let address = shared.supervision.start(shared.arbiters.carrier(), identity, make, orphaned);
        Self { name, inbox, address, waiting, state: shared.state.clone() }
    }

    /// Ends every session and refuses whatever comes: the broker has stopped.
    pub(crate) fn end(&self) {
        end_all(&self.inbox, &self.waiting, "the broker has stopped");
    }

    pub(crate) fn name(&self) -> &GroupName {
        &self.name
    }

    /// Hands a request over. A group that is given up answers nothing: its askers learn that by their dropped reply.
    pub(crate) fn post(&self, request: GroupRequest) {
        if let Err(request) = self.inbox.push(request, &self.address) {
            tracing::debug!(group = %self.name, request = request.name(), "a request came after the group had ended");
            request.refuse(self.ended());
        }
    }

    /// Tells of messages that have ended before they were given out.
    pub(crate) fn withdraw_ended(&self, queue: &QueueKey, offsets: Vec<QueueOffset>) {
        if offsets.is_empty() {
            return;
        }
        let messages = offsets.into_iter().map(|offset| (queue.clone(), offset)).collect();
        self.post(GroupRequest::Withdraw(Withdrawal { messages, why: DeadReason::Expired, reply: None }));
    }

    /// Tells of messages that are done. One that nobody waits for joins the one before it where it can: a consumer that
    /// acknowledges message by message then costs the actor no more than one that does so in batches.
    pub(crate) fn acknowledge(
        &self,
        member: &MemberId,
        queue: &QueueKey,
        lease: Lease,
        ranges: &[Range<QueueOffset>],
        reply: Option<Answer<()>>,
    ) {
        let mut reply = Some(reply);
        let put = |waiting: &mut VecDeque<GroupRequest>| {
            let reply = reply.take().flatten();
            let joined = reply.is_none()
                && waiting.back_mut().is_some_and(|last| last.join_acknowledgement(member, queue, lease, ranges));
            if !joined {
                let (member, queue, ranges) = (member.clone(), queue.clone(), ranges.to_vec());
                let unwanted = false;
                waiting.push_back(GroupRequest::Acknowledge { member, queue, lease, ranges, unwanted, reply });
            }
        };
        if self.inbox.add(put, || post(&self.address, Drain)).is_err() {
            tracing::debug!(group = %self.name, "an acknowledgement came after the group had ended");
            super::answer(reply.take().flatten(), Err(self.ended()));
        }
    }

    /// Tells of messages that are done because no member wants them.
    pub(crate) fn pass_over(&self, member: &MemberId, queue: QueueKey, lease: Lease, ranges: Vec<Range<QueueOffset>>) {
        let (member, unwanted, reply) = (member.clone(), true, None);
        self.post(GroupRequest::Acknowledge { member, queue, lease, ranges, unwanted, reply });
    }

    /// Why nothing is taken any more.
    fn ended(&self) -> Error {
        self.state.check_running().err().unwrap_or_else(|| Error::closed(&format!("group {}", self.name)))
    }

    /// Has the claims of a transaction checked. A group that has ended answers too.
    pub(crate) fn prepare(&self, claims: Vec<Claim>, reply: PrepareReply) {
        if let Err(GroupRequest::Prepare { reply, .. }) =
            self.inbox.push(GroupRequest::Prepare { claims, reply }, &self.address)
        {
            reply.send(Err(self.ended()));
        }
    }

    /// Asks to be taken in; from now on the session ends with the group's actor.
    pub(crate) async fn join(
        &self,
        session: Arc<Session>,
        topics: BTreeSet<TopicName>,
        room: Option<Room>,
        start: Start,
    ) -> Result<()> {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|known| known.strong_count() > 0);
            waiting.push(Arc::downgrade(&session));
        }
        self.ask(|reply| GroupRequest::Join { session, topics, room, start, reply }).await
    }

    /// Asks for something of pop and waits for the answer.
    pub(crate) async fn ask_pop<T>(&self, request: impl FnOnce(Answer<T>) -> PopRequest) -> Result<T> {
        self.ask(|reply| GroupRequest::Pop(request(reply))).await
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> GroupRequest) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        if self.inbox.push(request(sender), &self.address).is_err() {
            return Err(self.ended());
        }
        receiver.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unknown,
                format!("group {} was interrupted: the request may or may not have been carried out", self.name),
            ))
        })
    }
}

//! What operators ask of a group and move in it.
//!
//! A move is one write: the new offsets and the row that says who moved them. While it is under way the group handles
//! nothing else, so that no acknowledgement is written over it, and only when it is stored do the members hear of it.

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{QueueKey, QueueOffset, TopicName, WriteBatch};

use super::GroupActor;
use super::divert::DivertRequest;
use super::messages::Answer;
use super::offsets::OffsetOwner;
use crate::audit::audit_row;
use crate::domain::audit::AuditAction;
use crate::domain::offset_plan::{OffsetMove, Step, step};
use crate::domain::progress::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::Flush;
use crate::tables::audit::AuditRow;

/// See [`GroupRequest::Operate`](super::GroupRequest).
#[derive(Debug)]
pub(crate) enum Operation {
    /// Where the group stands in each of these queues; `None` where it never read.
    Positions { queues: Vec<QueueKey>, reply: Answer<Vec<Option<QueueOffset>>> },
    /// Carries out a plan; answers with what was moved.
    Move(MoveOffsets),
    /// Moves a backlog to another topic.
    Divert(DivertRequest),
}

/// A plan that its operator has confirmed.
#[derive(Debug)]
pub(crate) struct MoveOffsets {
    pub(crate) action: AuditAction,
    pub(crate) topic: TopicName,
    pub(crate) moves: Vec<OffsetMove>,
    pub(crate) note: String,
    pub(crate) reply: Answer<Vec<OffsetMove>>,
}

/// One queue's share of a move that is being written.
struct Moving {
    owner: OffsetOwner,
    made: OffsetMove,
    backwards: bool,
    progress: Progress,
}

impl GroupActor {
    pub(super) fn operate(&mut self, operation: Operation, ctx: &mut Context<Self>) {
        match operation {
            Operation::Positions { queues, reply } => {
                let committed = |queue| self.offsets.committed(&OffsetOwner { queue, member: None });
                let positions = self.check_shared_progress().map(|()| queues.into_iter().map(committed).collect());
                let _ = reply.send(positions);
            }
            Operation::Move(request) => self.move_offsets(request, ctx),
            Operation::Divert(request) => self.divert(request, ctx),
        }
    }

    /// Sets where consumption goes on while nobody holds the queue.
    pub(super) fn reset(&mut self, queue: QueueKey, to: QueueOffset, reply: Answer<()>, ctx: &mut Context<Self>) {
        if let Some(holding) = self.membership.holding(&queue) {
            let text = format!("member {} reads queue {queue}: let it leave before a reset", holding.member);
            let _ = reply.send(Err(Error::new(ErrorKind::Conflict, text)));
            return;
        }
        self.popping.forget(&queue);
        let topic = queue.topic.clone();
        self.offsets.reset(&OffsetOwner { queue, member: None }, to, reply);
        self.review_fences(&topic);
        self.recall_what_is_fenced(&topic, ctx);
    }

    pub(super) fn check_shared_progress(&self) -> Result<()> {
        if self.offsets.is_broadcasting() || self.sessions.values().any(|joined| joined.session.broadcasting) {
            let group = &self.group;
            let text = format!("group {group} broadcasts: its members have offsets of their own, which they move");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }

    fn move_offsets(&mut self, request: MoveOffsets, ctx: &mut Context<Self>) {
        // What changed before goes before.
        self.write_offsets();
        let (batch, moving) = match self.move_batch(&request) {
            Ok(moved) => moved,
            Err(error) => {
                let _ = request.reply.send(Err(error));
                return;
            }
        };
        let storage = self.shared.storage.clone();
        let write = async move { storage.write_and_wait(batch, Flush::Durable).await };
        self.operating = true;
        ctx.wait(write.into_actor(self).map(move |written, actor, ctx| {
            actor.operating = false;
            let moved = written.map(|_| actor.carry_out(&request.topic, moving, ctx));
            let _ = request.reply.send(moved);
        }));
    }

    /// Checks the plan against what is now, and makes it one write.
    fn move_batch(&self, request: &MoveOffsets) -> Result<(WriteBatch, Vec<Moving>)> {
        self.check_shared_progress()?;
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let mut moving = Vec::new();
        for planned in &request.moves {
            let owner = OffsetOwner { queue: planned.queue.clone(), member: None };
            let committed = self.offsets.committed(&owner);
            let min = self.shared.storage.engine().bounds(&planned.queue)?.start;
            let step = step(planned, committed, min).map_err(|changed| {
                let text = format!("queue {} has changed: {changed}; make a new plan", planned.queue);
                Error::new(ErrorKind::Conflict, text)
            })?;
            if step == Step::Nothing {
                continue;
            }
            let backwards = step == Step::Backwards;
            let progress = self.offsets.moved(&owner, planned.to, backwards);
            self.offsets.put(&owner, &progress, &mut batch);
            let from = committed.map_or(min, |committed| committed.max(min));
            let made = OffsetMove { queue: planned.queue.clone(), from, to: planned.to };
            moving.push(Moving { owner, made, backwards, progress });
        }
        let row = AuditRow {
            action: request.action,
            group: Some(self.group.clone()),
            topic: Some(request.topic.clone()),
            queues: moving.iter().map(|m| (m.made.queue.queue, m.made.from, m.made.to)).collect(),
            note: request.note.clone(),
        };
        audit_row(&self.shared, &mut batch, &row)?;
        Ok((batch, moving))
    }

    /// The move is stored: takes it over and tells the members that read the queues.
    fn carry_out(&mut self, topic: &TopicName, moving: Vec<Moving>, ctx: &mut Context<Self>) -> Vec<OffsetMove> {
        let mut moved = Vec::with_capacity(moving.len());
        let mut backwards = Vec::new();
        // All of them before anybody reads on: how far he may depends on the others.
        for Moving { owner, made, backwards: back, progress } in moving {
            if back {
                backwards.push(owner.queue.clone());
            }
            self.offsets.adopt(owner, progress);
            moved.push(made);
        }
        self.review_fences(topic);
        for OffsetMove { queue, to, .. } in moved.iter().filter(|made| !backwards.contains(&made.queue)) {
            if let Some(holding) = self.membership.holding(queue)
                && let Some(joined) = self.sessions.get(&holding.member)
            {
                // What the member has in hand it settles as before.
                joined.session.skip_to(queue, holding.lease, *to);
            }
        }
        for queue in &backwards {
            self.popping.forget(queue);
            self.recall(queue, ctx);
        }
        if !backwards.is_empty() {
            self.recall_what_is_fenced(topic, ctx);
        }
        self.write_offsets();
        moved
    }

    /// After a move back in front of a change of the number of queues: what ordered members have read from behind it waits
    /// for its turn again.
    fn recall_what_is_fenced(&mut self, topic: &TopicName, ctx: &mut Context<Self>) {
        let read: Vec<QueueKey> =
            self.sessions.values().flat_map(|joined| joined.session.read_past_fences(topic)).collect();
        read.iter().for_each(|queue| self.recall(queue, ctx));
    }

    /// Takes a queue from its holder and has it begin anew at the committed offset, so that nothing that was given
    /// out before can be acknowledged as what is given out again.
    pub(super) fn recall(&mut self, queue: &QueueKey, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        if let Some(holding) = self.membership.recall(queue, &mut effects)
            && let Some(joined) = self.sessions.get(&holding.member)
        {
            joined.session.fence(queue, holding.lease);
        }
        self.perform(effects, ctx);
    }
}

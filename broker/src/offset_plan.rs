//! Moves the offsets of a group: first shown, then confirmed.

use std::fmt;
use std::sync::Arc;

use cuemq_storage_api::TopicName;

use crate::actors::group::{GroupHandle, GroupRequest, MoveOffsets, Operation};
use crate::broker::{Broker, Keeper, unknown_topic};
use crate::domain::audit::AuditAction;
use crate::domain::offset_plan::{Goal, OffsetMove, QueueState, ResetTo, Skip};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_NOTE_BYTES;

/// How a group would be moved in the queues of a topic. Nothing is done before [`confirm`](OffsetPlan::confirm).
/// Printed it is a table.
#[must_use = "a plan does nothing until it is confirmed"]
pub struct OffsetPlan {
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    topic: TopicName,
    goal: Goal,
    moves: Vec<OffsetMove>,
    note: String,
}

impl Broker {
    /// Plans to have a group go on elsewhere in a topic, forwards or back; also in its retry topic `%RETRY%group`.
    ///
    /// # Errors
    /// `UnknownGroup`, `UnknownTopic`; `OutOfRange` names the offsets there are; `Invalid` names a queue that the
    /// topic does not have, or a broadcasting group, whose members have offsets of their own.
    pub async fn reset_group(&self, group: &str, topic: &str, to: ResetTo) -> Result<OffsetPlan> {
        self.plan(group, topic, Goal::Reset(to)).await
    }

    /// Plans to have a group pass over messages of a topic that nobody needs any more. Never moves back.
    ///
    /// # Errors
    /// As [`reset_group`](Broker::reset_group).
    pub async fn skip(&self, group: &str, topic: &str, skip: Skip) -> Result<OffsetPlan> {
        self.plan(group, topic, Goal::Skip(skip)).await
    }

    async fn plan(&self, group: &str, topic: &str, goal: Goal) -> Result<OffsetPlan> {
        let shared = self.shared();
        shared.check_running()?;
        let group = self.group_handle(group)?;
        let topic = TopicName::from_stored(topic)?;
        let handle = shared.topics.get(&topic).ok_or_else(|| unknown_topic(&topic))?;
        if let Goal::Reset(ResetTo::Offset(queue, _)) = goal {
            handle.queue(cuemq_storage_api::QueueId::new(queue)?)?;
        }
        let queues = handle.queues().iter().map(|queue| queue.key().clone()).collect();
        let positions = ask(&group, |reply| Operation::Positions { queues, reply }).await?;
        let mut moves = Vec::new();
        for (queue, committed) in handle.queues().iter().zip(positions) {
            let (key, end) = (queue.key().clone(), queue.tail().visible());
            let start = shared.storage.engine().bounds(&key)?.start;
            let at_time = goal.time().map(|at| shared.storage.engine().offset_at(&key, at)).transpose()?;
            let (readable, at_time) = (start..end.max(start), at_time.unwrap_or(end));
            let planned = goal.plan(QueueState { queue: key, readable, committed, at_time });
            moves.extend(planned.map_err(|e| Error::new(ErrorKind::OutOfRange, e.to_string()))?);
        }
        let keeper = Arc::clone(self.keeper());
        Ok(OffsetPlan { keeper, group, topic, goal, moves, note: String::new() })
    }
}

async fn ask<T>(
    group: &GroupHandle,
    operation: impl FnOnce(tokio::sync::oneshot::Sender<Result<T>>) -> Operation,
) -> Result<T> {
    group.ask(|reply| GroupRequest::Operate(Box::new(operation(reply)))).await
}

impl OffsetPlan {
    /// What would be done, queue by queue.
    #[must_use]
    pub fn moves(&self) -> &[OffsetMove] {
        &self.moves
    }

    /// Messages that the group would never get.
    #[must_use]
    pub fn passed_over(&self) -> u64 {
        self.moves.iter().filter(|m| !m.is_backwards()).map(OffsetMove::messages).sum()
    }

    /// Messages that the group would get again.
    #[must_use]
    pub fn delivered_again(&self) -> u64 {
        self.moves.iter().filter(|m| m.is_backwards()).map(OffsetMove::messages).sum()
    }

    /// Says why, for the audit log; at most 1 KiB of it is kept.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Carries the plan out, in all queues or in none, and writes it into the audit log with the same durable write.
    /// Members may go on consuming. Where the group moves forwards they pass over what lies between; what they have in
    /// hand of it they acknowledge as usual, and it does not come again if it fails (`Stale`). Where it moves back the queue begins anew there: what was delivered from it
    /// before can no longer be acknowledged (`Stale`) and comes again.
    ///
    /// A plan outlives the progress that the group makes meanwhile: less is passed over then, or more comes again;
    /// the answer tells what was really moved, without the queues that had nothing to be moved.
    ///
    /// # Errors
    /// `Conflict` when the group was moved back since the plan was made, or messages that were to come again have
    /// expired: make a new plan; nothing was done then. `NotStored` or `Unknown` when the write failed.
    pub async fn confirm(self) -> Result<Vec<OffsetMove>> {
        self.keeper.shared().check_running()?;
        if self.note.len() > MAX_NOTE_BYTES {
            let text = format!("the note has {} bytes, more than {MAX_NOTE_BYTES}: shorten it", self.note.len());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let action = match self.goal {
            Goal::Reset(_) => AuditAction::Reset,
            Goal::Skip(_) => AuditAction::Skip,
        };
        let (topic, moves) = (self.topic, self.moves);
        let note = if self.note.is_empty() { self.goal.to_string() } else { format!("{}: {}", self.goal, self.note) };
        ask(&self.group, |reply| Operation::Move(MoveOffsets { action, topic, moves, note, reply })).await
    }
}

impl fmt::Debug for OffsetPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OffsetPlan")
            .field("group", self.group.name())
            .field("moves", &self.moves)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for OffsetPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "group {} in topic {}: {}", self.group.name(), self.topic, self.goal)?;
        let width = self.moves.iter().map(|m| m.queue.to_string().len()).max().unwrap_or(0).max("queue".len());
        writeln!(f, "{:<width$} {:>12} {:>12} {:>12}", "queue", "from", "to", "messages")?;
        for planned in &self.moves {
            let OffsetMove { queue, from, to } = planned;
            let what = match planned.messages() {
                0 => "stays",
                _ if planned.is_backwards() => "again",
                _ => "passed over",
            };
            let (queue, from, to) = (queue.to_string(), from.get(), to.get());
            writeln!(f, "{queue:<width$} {from:>12} {to:>12} {:>12} {what}", planned.messages())?;
        }
        write!(f, "{} passed over, {} delivered again", self.passed_over(), self.delivered_again())
    }
}

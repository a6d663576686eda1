//! What the delay scheduler is asked for.

use cuemq_storage_api::{QueueId, Record, Timestamp, TopicName};
use tokio::sync::oneshot;

use crate::admission::Permit;
use crate::domain::delay::TimerKey;
use crate::domain::recurrence::Recurrence;
use crate::error::Result;
use crate::message::{AckLevel, Receipt};
use crate::scheduled::ScheduledId;
use crate::settings::Flush;

/// Every request and notice, in one order.
#[derive(Debug)]
pub(crate) enum DelayCommand {
    /// Stores a message until it is due.
    Schedule(Box<DelayRequest>),
    /// Takes a message back that waits, or gives it another time.
    Change(ChangeRequest),
    /// Stores a message that comes again and again.
    Recur(Box<RecurRequest>),
    /// Timers that are in storage by now.
    Stored(Vec<TimerKey>),
    /// The write that moves these has an outcome.
    Fired(Vec<TimerKey>),
}

/// See [`DelayCommand::Schedule`].
#[derive(Debug)]
pub(crate) struct DelayRequest {
    pub(crate) topic: TopicName,
    /// `None`: chosen when the message is due.
    pub(crate) queue: Option<QueueId>,
    pub(crate) due: Timestamp,
    pub(crate) record: Record,
    pub(crate) flush: Flush,
    pub(crate) reply: oneshot::Sender<Result<Receipt>>,
    /// Held until the sender has its answer.
    pub(crate) _permit: Permit,
}

/// See [`DelayCommand::Change`].
#[derive(Debug)]
pub(crate) struct ChangeRequest {
    pub(crate) change: Change,
    pub(crate) reply: oneshot::Sender<Result<Changed>>,
    /// Held until the caller has its answer.
    pub(crate) _permit: Permit,
}

/// What shall become of a message that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// It is never delivered.
    Recall(TimerKey),
    /// It is delivered at this time instead.
    Reschedule(TimerKey, Timestamp),
    /// It recurred, and never comes again.
    End(u64),
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Changed {
    /// It is gone, and nobody has seen it.
    Recalled,
    /// It waits under this key now.
    Rescheduled(TimerKey),
    /// It did not wait any more.
    NotWaiting,
}

/// See [`DelayCommand::Recur`].
#[derive(Debug)]
pub(crate) struct RecurRequest {
    pub(crate) topic: TopicName,
    /// `None`: chosen each time.
    pub(crate) queue: Option<QueueId>,
    pub(crate) recurrence: Recurrence,
    /// When it comes first.
    pub(crate) due: Timestamp,
    pub(crate) record: Record,
    pub(crate) flush: Flush,
    pub(crate) reply: oneshot::Sender<Result<u64>>,
    /// Held until the sender has its answer.
    pub(crate) _permit: Permit,
}

impl RecurRequest {
    pub(super) fn answer(self, number: Result<u64>) {
        // A sender that has gone away does not need the answer.
        let _ = self.reply.send(number);
    }
}

impl ChangeRequest {
    pub(super) fn answer(self, outcome: Result<Changed>) {
        // A caller that has gone away does not need the answer.
        let _ = self.reply.send(outcome);
    }
}

impl DelayRequest {
    /// Tells the sender that the message waits safely for its time, or why not.
    pub(super) fn answer(self, stored: Result<(ScheduledId, AckLevel)>) {
        let queue = self.queue.unwrap_or(QueueId::FIRST);
        let receipt = stored.map(|(scheduled, level)| {
            let topic = self.topic;
            Receipt { topic, queue, offset: None, id: None, scheduled: Some(scheduled), level }
        });
        // A sender that has gone away does not need the answer.
        let _ = self.reply.send(receipt);
    }
}

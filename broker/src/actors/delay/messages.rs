//! What the delay scheduler is asked for.

use cuemq_storage_api::{QueueId, Record, Timestamp, TopicName};
use tokio::sync::oneshot;

use crate::admission::Permit;
use crate::domain::delay::TimerKey;
use crate::error::Result;
use crate::message::{AckLevel, Receipt};
use crate::settings::Flush;

/// Every request and notice, in one order.
#[derive(Debug)]
pub(crate) enum DelayCommand {
    /// Stores a message until it is due.
    Schedule(Box<DelayRequest>),
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

impl DelayRequest {
    /// Tells the sender that the message waits safely for its time, or why not.
    pub(super) fn answer(self, level: Result<AckLevel>) {
        let queue = self.queue.unwrap_or(QueueId::FIRST);
        let receipt = level.map(|level| Receipt { topic: self.topic, queue, offset: None, id: None, level });
        // A sender that has gone away does not need the answer.
        let _ = self.reply.send(receipt);
    }
}

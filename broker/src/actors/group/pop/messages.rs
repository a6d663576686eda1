//! What pop consumers ask a group's actor for, and what they get.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use cuemq_storage_api::{QueueKey, StoredRecord, Timestamp, TopicName};

use super::super::{Answer, GroupActor, GroupRequest, Start};
use crate::actors::mailbox::Inbox;
use crate::domain::failure::FailureCause;
use crate::domain::filter::TagFilter;
use crate::domain::flight::PoolId;
use crate::domain::pop_receipt::{Mark, PopReceipt, ReceiptRun, Sealer};
use crate::error::Error;

/// What a pool of pop consumers subscribes to, in order.
pub(crate) type Filters = Vec<(TopicName, TagFilter)>;

/// Every request of a pop consumer.
#[derive(Debug)]
pub(crate) enum PopRequest {
    /// Takes part in the pool with these subscriptions.
    Open { filters: Filters, topics: BTreeSet<TopicName>, start: Start, reply: Answer<Arc<Ticket>> },
    /// The last consumer of a pool is gone, unless another one came meanwhile.
    Leave { pool: PoolId },
    /// Messages, now or until a time.
    Take { pool: PoolId, wish: Wish },
    /// Messages reached nobody.
    TakeBack { runs: Vec<PoppedRun> },
    /// Messages are done. `refused` hears at once which of the receipts are not good, `reply` when the rest is stored.
    Ack { receipts: Vec<ReceiptRun>, refused: Refusals, reply: Answer<()> },
    /// A message was not consumed.
    Fail { receipt: PopReceipt, cause: FailureCause, reply: Answer<()> },
    /// A message needs more, or less, time.
    Renew { receipt: PopReceipt, invisible: Duration, reply: Answer<Renewed> },
}

impl PopRequest {
    /// The name by which a probe knows it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "PopOpen",
            Self::Leave { .. } => "PopLeave",
            Self::Take { .. } => "PopTake",
            Self::TakeBack { .. } => "PopTakeBack",
            Self::Ack { .. } => "PopAck",
            Self::Fail { .. } => "PopFail",
            Self::Renew { .. } => "PopRenew",
        }
    }
}

/// Which receipts of several are refused, by their places, and why.
pub(crate) type Refusals = tokio::sync::oneshot::Sender<Vec<(usize, Error)>>;

/// A new receipt, and until when it is good.
pub(crate) type Renewed = (PopReceipt, Timestamp);

/// What one pop asks for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) most: usize,
    pub(crate) invisible: Duration,
    /// How long to wait for the first message.
    pub(crate) until: Timestamp,
    pub(crate) reply: Answer<Basket>,
}

/// Messages of one queue that follow each other, on their way to whoever popped them.
#[derive(Debug)]
pub(crate) struct PoppedRun {
    pub(crate) queue: QueueKey,
    pub(crate) records: Vec<StoredRecord>,
    /// That of the first; those of the others follow.
    pub(crate) mark: Mark,
    /// Redeliveries that storage does not know of.
    pub(crate) redeliveries: u32,
    pub(crate) until: Timestamp,
}

/// The way back to the actor.
#[derive(Clone)]
pub(crate) struct Way {
    pub(super) inbox: Arc<Inbox<GroupRequest>>,
    pub(super) actor: Addr<GroupActor>,
}

impl Way {
    fn post(&self, request: PopRequest) {
        // A group that has ended has nothing in flight and no pools.
        let _ = self.inbox.push(GroupRequest::Pop(request), &self.actor);
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").finish_non_exhaustive()
    }
}

/// What a pop brings. Somebody who has gone away does not take it out: then it goes back.
#[derive(Debug)]
pub(crate) struct Basket {
    pub(super) runs: Vec<PoppedRun>,
    pub(super) sealer: Sealer,
    pub(super) way: Way,
}

impl Basket {
    /// The messages, and what their receipts are made with: by whoever popped, if anybody wants one, and not by the actor
    /// that all share.
    pub(crate) fn take(mut self) -> (Vec<PoppedRun>, Sealer) {
        (std::mem::take(&mut self.runs), self.sealer.clone())
    }
}

impl Drop for Basket {
    fn drop(&mut self) {
        if !self.runs.is_empty() {
            self.way.post(PopRequest::TakeBack { runs: std::mem::take(&mut self.runs) });
        }
    }
}

/// Shared by all consumers of one pool: the pool lives as long as there is one.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) pool: PoolId,
    pub(super) way: Way,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.way.post(PopRequest::Leave { pool: self.pool });
    }
}

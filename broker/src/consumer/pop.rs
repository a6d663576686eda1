//! Consumption by pop: any number of consumers take messages one by one, under receipts.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cuemq_storage_api::TopicName;
use tokio::sync::oneshot;

use super::builder::{StartAt, filters_of};
use super::pledge::{Acknowledged, PopPledge};
use super::popped::{Popped, Tray};
use crate::actors::group::{GroupHandle, PopRequest, Start, Ticket, Wish};
use crate::actors::root::EnsureGroup;
use crate::broker::Keeper;
use crate::domain::failure::FailureCause;
use crate::domain::pop_receipt::{PopReceipt, ReceiptRun};
use crate::domain::retry::{LONGEST_RETRY_PAUSE, RetryPolicy};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{DEFAULT_INVISIBLE_TIME, LONGEST_INVISIBLE_TIME, MAX_POP_MESSAGES, SHORTEST_INVISIBLE_TIME};

/// Takes messages of a group one by one, wherever they lie: any number of pop consumers share the group's queues, more
/// than there are queues too. What it takes is invisible to the others for a while, and comes again if nobody settles it
/// until then. Cheap to clone; clones and consumers with the same subscriptions share one pool, which is a member of
/// the group until the last of them is dropped. Pop keeps no order.
///
/// A message is settled through the [`Popped`] itself or, from anywhere, by its [`PopReceipt`].
#[derive(Clone)]
pub struct PopConsumer {
    desk: Arc<Desk>,
    ticket: Arc<Ticket>,
    invisible: Duration,
}

/// Where a group's popped messages are settled.
pub(super) struct Desk {
    pub(super) keeper: Arc<Keeper>,
    pub(super) group: Arc<GroupHandle>,
}

impl fmt::Debug for PopConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PopConsumer").field("group", self.desk.group.name()).finish_non_exhaustive()
    }
}

impl PopConsumer {
    /// Takes up to `max` messages, at most 1,024 and about 4 MiB of them. If there is none, waits for the first one
    /// for as long as `wait` and then returns nothing.
    ///
    /// # Errors
    /// `Invalid` names a bad number; `Full` when the group has its most messages in flight or pops waiting;
    /// `Closed` or `Unavailable` when there will be no more; `Corrupt` names a damaged file.
    pub async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Popped>> {
        if max == 0 || max > MAX_POP_MESSAGES {
            let text = format!("pop of {max} messages: take 1 to {MAX_POP_MESSAGES} at a time");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let until = self.desk.keeper.shared().clock.now().plus(wait);
        let (pool, invisible) = (self.ticket.pool, self.invisible);
        let take = |reply| PopRequest::Take { pool, wish: Wish { most: max, invisible, until, reply } };
        let (runs, sealer) = self.desk.ask(take).await?.take();
        let tray = Arc::new(Tray { desk: Arc::clone(&self.desk), sealer });
        let mut popped = Vec::with_capacity(runs.iter().map(|run| run.records.len()).sum());
        runs.into_iter().for_each(|run| Popped::take_up(&mut popped, &tray, run));
        Ok(popped)
    }

    /// Declares a message done and resolves once that is stored (in the operating system: losing it to a power cut
    /// costs a redelivery, never a message). Again for the same message it is no error.
    ///
    /// # Errors
    /// `Stale` when the receipt was renewed, is older than the broker's opening or too old to be known, or when the
    /// message's invisible time is over: then it comes again. `Conflict` when it was given back or rejected before.
    /// `Invalid` when this group never gave such a receipt out.
    pub async fn ack(&self, receipt: &PopReceipt) -> Result<()> {
        self.desk.ack(receipt).await
    }

    /// Declares many messages done with one write. One answer for each receipt, in their order, as
    /// [`ack`](PopConsumer::ack) gives it.
    pub async fn ack_all(&self, receipts: &[PopReceipt]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(receipts.len());
        for some in receipts.chunks(MAX_POP_MESSAGES) {
            results.extend(self.desk.ack_all(ReceiptRun::collect(some.iter())).await);
        }
        results
    }

    /// Declares everything that a pop brought done with one write. One answer for each message, in their order, as
    /// [`ack`](PopConsumer::ack) gives it.
    pub async fn ack_messages(&self, popped: &[Popped]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(popped.len());
        for some in popped.chunks(MAX_POP_MESSAGES) {
            let mut receipts = Vec::new();
            some.iter().for_each(|popped| popped.add_to(&mut receipts, &self.desk));
            results.extend(self.desk.ack_all(receipts).await);
        }
        results
    }

    /// Has a message delivered again, to whoever comes: after `delay` (at most 366 days), or after the pause that the
    /// group's retry policy sets. After the last redelivery it becomes a dead letter in `%DLQ%group` instead.
    ///
    /// # Errors
    /// As [`ack`](PopConsumer::ack); `NotStored` or `Unknown` when the write failed, and then the receipt is good as
    /// before.
    pub async fn nack(&self, receipt: &PopReceipt, delay: Option<Duration>) -> Result<()> {
        self.desk.nack(receipt, delay).await
    }

    /// Makes a message a dead letter at once, because no redelivery will ever help, with a word on why.
    ///
    /// # Errors
    /// As [`nack`](PopConsumer::nack).
    pub async fn reject(&self, receipt: &PopReceipt, reason: impl fmt::Display) -> Result<()> {
        self.desk.reject(receipt, reason.to_string()).await
    }

    /// Has a message stay invisible for `invisible` from now, which may also be less than it had, at most 12 hours. The
    /// receipt returned takes the place of this one.
    ///
    /// # Errors
    /// As [`ack`](PopConsumer::ack); `Conflict` also when the message was acknowledged; `Invalid` for too long a time.
    pub async fn renew(&self, receipt: &PopReceipt, invisible: Duration) -> Result<PopReceipt> {
        Ok(self.desk.renew(receipt, invisible).await?.0)
    }
}

impl PopConsumer {
    /// What a transaction needs to acknowledge the message of a receipt.
    pub(crate) fn acknowledged(&self, receipt: &PopReceipt) -> Acknowledged {
        self.desk.acknowledged(receipt)
    }
}

impl Desk {
    pub(super) fn acknowledged(&self, receipt: &PopReceipt) -> Acknowledged {
        Acknowledged::Popped(Arc::new(PopPledge { group: Arc::clone(&self.group), receipt: receipt.clone() }))
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> PopRequest) -> Result<T> {
        self.group.ask_pop(request).await
    }

    pub(super) async fn ack(&self, receipt: &PopReceipt) -> Result<()> {
        let mut results = self.ack_all(ReceiptRun::collect(std::iter::once(receipt))).await;
        results.pop().unwrap_or_else(|| Err(Error::lost("the acknowledgement")))
    }

    /// An answer for each receipt.
    async fn ack_all(&self, receipts: Vec<ReceiptRun>) -> Vec<Result<()>> {
        let (sender, refusals) = oneshot::channel();
        let count = receipts.iter().map(ReceiptRun::len).sum();
        let stored = self.ask(|reply| PopRequest::Ack { receipts, refused: sender, reply }).await;
        let answer = || match &stored {
            Ok(()) => Ok(()),
            Err(error) => Err(Error::new(error.kind(), error.to_string())),
        };
        let mut results: Vec<Result<()>> = std::iter::repeat_with(answer).take(count).collect();
        // Those that were refused are so, whatever became of the others.
        for (place, refused) in refusals.await.unwrap_or_default() {
            results[place] = Err(refused);
        }
        results
    }

    pub(super) async fn nack(&self, receipt: &PopReceipt, delay: Option<Duration>) -> Result<()> {
        if let Some(delay) = delay.filter(|delay| *delay > LONGEST_RETRY_PAUSE) {
            let text = format!("a redelivery after {delay:?}: use at most {LONGEST_RETRY_PAUSE:?}");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.fail(receipt, FailureCause::Retry { delay, error: None }).await
    }

    pub(super) async fn reject(&self, receipt: &PopReceipt, reason: String) -> Result<()> {
        self.fail(receipt, FailureCause::Rejected { error: Some(reason) }).await
    }

    async fn fail(&self, receipt: &PopReceipt, cause: FailureCause) -> Result<()> {
        let receipt = receipt.clone();
        self.ask(|reply| PopRequest::Fail { receipt, cause, reply }).await
    }

    pub(super) async fn renew(
        &self,
        receipt: &PopReceipt,
        invisible: Duration,
    ) -> Result<(PopReceipt, cuemq_storage_api::Timestamp)> {
        if invisible > LONGEST_INVISIBLE_TIME {
            let text = format!("a renewal for {invisible:?}: use at most {LONGEST_INVISIBLE_TIME:?}, and renew again");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let receipt = receipt.clone();
        self.ask(|reply| PopRequest::Renew { receipt, invisible, reply }).await
    }
}

/// See [`Broker::pop_consumer`](crate::Broker::pop_consumer).
#[derive(Debug)]
pub struct PopConsumerBuilder {
    keeper: Arc<Keeper>,
    group: String,
    subscriptions: Vec<(String, String)>,
    invisible: Duration,
    start: StartAt,
    retry: Option<RetryPolicy>,
}

impl PopConsumerBuilder {
    pub(crate) fn new(keeper: Arc<Keeper>, group: String) -> Self {
        let (subscriptions, start) = (Vec::new(), StartAt::default());
        Self { keeper, group, subscriptions, invisible: DEFAULT_INVISIBLE_TIME, start, retry: None }
    }

    /// Subscribes to every message of a topic.
    #[must_use]
    pub fn subscribe(self, topic: impl Into<String>) -> Self {
        self.subscribe_tags(topic, "*")
    }

    /// Subscribes to the messages of a topic whose tag matches: `*`, or tags as in `create || pay`.
    #[must_use]
    pub fn subscribe_tags(mut self, topic: impl Into<String>, tags: impl Into<String>) -> Self {
        self.subscriptions.push((topic.into(), tags.into()));
        self
    }

    /// Sets how long a message stays invisible to others once it was popped: 1 second to 12 hours. Default: 60 s.
    #[must_use]
    pub fn invisible(mut self, invisible: Duration) -> Self {
        self.invisible = invisible;
        self
    }

    /// Sets where the group begins with a queue that it never read. Default: the oldest message.
    #[must_use]
    pub fn start_at(mut self, start: StartAt) -> Self {
        self.start = start;
        self
    }

    /// Sets when the group has failed messages delivered again, from now on and after a restart.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Joins the group. Topics that do not exist are created if the settings allow it.
    ///
    /// # Errors
    /// `Invalid` names a bad name, filter or time, or a group that broadcasts; `UnknownTopic`; `Full` when the group
    /// has its most members.
    pub async fn build(self) -> Result<PopConsumer> {
        if self.invisible < SHORTEST_INVISIBLE_TIME || self.invisible > LONGEST_INVISIBLE_TIME {
            let text = format!(
                "an invisible time of {:?}: use {SHORTEST_INVISIBLE_TIME:?} to {LONGEST_INVISIBLE_TIME:?}",
                self.invisible
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.retry.iter().try_for_each(RetryPolicy::check)?;
        let (name, mut filters) = filters_of(&self.keeper, &self.group, &self.subscriptions).await?;
        // Whoever subscribes to the same in another order is of the same pool.
        filters.sort_by(|a, b| a.0.cmp(&b.0));
        let mut topics: BTreeSet<TopicName> = filters.iter().map(|(topic, _)| topic.clone()).collect();
        topics.insert(TopicName::retry_of(&name));
        let ensure = EnsureGroup { name, broadcasting: false, strategy: None, retry: self.retry, paused: None };
        let desk = Arc::new(Desk { group: self.keeper.group(ensure).await?, keeper: self.keeper });
        let start = Start::from(self.start);
        let ticket = desk.ask(|reply| PopRequest::Open { filters, topics, start, reply }).await?;
        Ok(PopConsumer { desk, ticket, invisible: self.invisible })
    }
}

//! One message in a consumer's hands, to be acknowledged or to come again.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cuemq_storage_api::{StoredRecord, Timestamp};
use tokio::sync::oneshot;

use super::acknowledgeable::sealed::{Acknowledge, Part};
use super::pledge::{Acknowledged, DeliveryPledge, Hand, in_a_transaction};
use super::received::Received;
use super::release_if_free;
use super::session::{Claim, Session};
use crate::actors::group::{Failure, GroupHandle, GroupRequest, InPlaceFailure};
use crate::actors::room::came_back;
use crate::broker::Keeper;
use crate::domain::failure::FailureCause;
use crate::domain::in_place::InPlaceFailures;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::retry::LONGEST_RETRY_PAUSE;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::REDELIVERY_PAUSE;

/// A message given to one member of a group. Acknowledge it once its effects are done; dropping it unacknowledged
/// brings it again after a pause of one second.
pub struct Delivery {
    received: Received,
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    session: Arc<Session>,
    /// Who holds the queue, if it is another member.
    holder: Option<Arc<Session>>,
    lease: Lease,
    /// Redeliveries by this member, which storage does not know of.
    redeliveries: u32,
    settled: bool,
    /// There once a transaction has acknowledged it.
    pledge: OnceLock<Arc<DeliveryPledge>>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("received", &self.received).finish_non_exhaustive()
    }
}

impl Deref for Delivery {
    type Target = Received;

    fn deref(&self) -> &Received {
        &self.received
    }
}

impl Delivery {
    pub(super) fn new(
        keeper: &Arc<Keeper>,
        group: &Arc<GroupHandle>,
        session: &Arc<Session>,
        received: Received,
        holder: Option<Arc<Session>>,
        lease: Lease,
        redeliveries: u32,
    ) -> Self {
        let (keeper, group, session) = (Arc::clone(keeper), Arc::clone(group), Arc::clone(session));
        Self { received, keeper, group, session, holder, lease, redeliveries, settled: false, pledge: OnceLock::new() }
    }

    /// Takes the say over it for the last time: whether it is the holder's, or what a transaction has made of it.
    fn settle(&mut self) -> Hand {
        self.settled = true;
        self.pledge.get().map_or(Hand::Holder, |pledge| pledge.let_go())
    }

    /// Whether a failed handling keeps the message in its place: the group's policy has it come again, and others of its
    /// queue or key wait for it.
    pub(super) fn comes_again_in_order(&self) -> bool {
        self.session.order() != Order::Concurrent && self.received.attempts() < self.session.redeliveries()
    }

    fn claim(&self) -> Claim<'_> {
        let bytes = self.received.stored().record.payload_bytes();
        let holder = self.holder.as_ref();
        Claim { key: self.received.queue(), lease: self.lease, records: 1, bytes, holder }
    }

    fn comes_again_at(&mut self, at: Timestamp) {
        self.comes_again_as(self.received.stored().clone(), self.redeliveries + 1, at);
    }

    fn comes_again_as(&mut self, stored: StoredRecord, redeliveries: u32, at: Timestamp) {
        if self.settle() != Hand::Holder {
            return;
        }
        let settled = self.session.again_at(self.claim(), std::iter::once(stored), redeliveries, at);
        release_if_free(&self.group, settled, self.claim());
        came_back(self.keeper.shared(), self.received.queue());
    }

    /// Declares the message done and resolves once that is stored (in the operating system: losing it to a power cut
    /// costs a redelivery, never a message).
    ///
    /// # Errors
    /// `Stale` when the message belongs to another member by now: it will be delivered there.
    pub async fn ack(mut self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        match self.settle() {
            Hand::Holder => self.acknowledge(Some(sender)),
            Hand::Done => return Ok(()),
            Hand::Transaction | Hand::Abandoned => return Err(in_a_transaction()),
        }
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the acknowledgement")))
    }

    /// Declares the message done without waiting for the answer.
    pub fn ack_soon(mut self) {
        if self.settle() == Hand::Holder {
            self.acknowledge(None);
        }
    }

    fn acknowledge(&self, reply: Option<oneshot::Sender<Result<()>>>) {
        tracing::trace!(queue = %self.received.queue(), offset = %self.received.offset(), "ack");
        let ranges = [self.received.range()];
        // The group hears of it before the session lets go: a revocation in between would give the message away again.
        self.group.acknowledge(&self.session.member, self.received.queue(), self.lease, &ranges, reply);
        let settled = self.session.acknowledged(self.claim(), &ranges);
        release_if_free(&self.group, settled, self.claim());
    }

    /// Has the message delivered again later, to any member: after `delay`, or after the pause that the group's
    /// retry policy sets for this attempt. The copy for the retry and the acknowledgement of this message are one
    /// write. After the last redelivery the message becomes a dead letter in `%DLQ%group` instead. The message gives up its
    /// place in the order: later ones of its queue or key are not held back; [`again_after`](Delivery::again_after) keeps it.
    ///
    /// # Errors
    /// `Stale` when the message belongs to another member by now, or another has settled it; `NotStored` or `Unknown`
    /// when the write failed, and then the message comes again after a pause. A broadcasting group has no retry: `Invalid`. `Invalid` too for a
    /// delay of more than 366 days.
    pub async fn retry_later(self, delay: Option<Duration>) -> Result<()> {
        self.give_up(FailureCause::Retry { delay, error: None }).await
    }

    /// [`retry_later`](Delivery::retry_later) after a pause of one's own. It takes the place of the policy's pause;
    /// how many redeliveries there are remains the policy's.
    ///
    /// # Errors
    /// As [`retry_later`](Delivery::retry_later).
    pub async fn retry_in(self, delay: Duration) -> Result<()> {
        self.retry_later(Some(delay)).await
    }

    /// [`retry_later`](Delivery::retry_later) after the policy's pause, with a word on what went wrong: the next
    /// delivery and the dead letter carry it as [`last_error`](Received::last_error), up to 1 KiB of it.
    ///
    /// # Errors
    /// As [`retry_later`](Delivery::retry_later).
    pub async fn fail(self, error: impl fmt::Display) -> Result<()> {
        self.give_up(FailureCause::Retry { delay: None, error: Some(error.to_string()) }).await
    }

    /// [`retry_in`](Delivery::retry_in) with a word on what went wrong.
    ///
    /// # Errors
    /// As [`retry_later`](Delivery::retry_later).
    pub async fn fail_for(self, pause: Duration, error: impl fmt::Display) -> Result<()> {
        self.give_up(FailureCause::Retry { delay: Some(pause), error: Some(error.to_string()) }).await
    }

    /// Makes the message a dead letter at once, because no redelivery will ever help, with a word on why.
    ///
    /// # Errors
    /// As [`retry_later`](Delivery::retry_later).
    pub async fn reject(self, error: impl fmt::Display) -> Result<()> {
        self.give_up(FailureCause::Rejected { error: Some(error.to_string()) }).await
    }

    async fn give_up(mut self, cause: FailureCause) -> Result<()> {
        if self.session.broadcasting {
            let text = "a broadcasting group has no retry: acknowledge the message, or drop it to have it again";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        check_pause(&cause)?;
        match self.pledge.get().map(|pledge| pledge.hand()) {
            None | Some(Hand::Holder) => {}
            Some(Hand::Done) => {
                return Err(Error::new(ErrorKind::Stale, "a transaction has acknowledged the message: it is done"));
            }
            Some(Hand::Transaction | Hand::Abandoned) => return Err(in_a_transaction()),
        }
        let (sender, receiver) = oneshot::channel();
        self.group.post(GroupRequest::Fail(Box::new(Failure {
            holder: Some((self.session.member.clone(), self.lease)),
            queue: self.received.queue().clone(),
            stored: self.received.stored().clone(),
            origin_id: self.received.origin_id(),
            failures: self.received.attempts().saturating_add(1),
            cause,
            reply: sender,
        })));
        // Whoever gives up waiting, or meets an error, drops the delivery: then the message comes again.
        let outcome = receiver.await.unwrap_or_else(|_| Err(Error::lost("the retry")));
        // One that belongs to somebody else, or is done, does not come again here either.
        if outcome.as_ref().map_or_else(|error| error.kind() == ErrorKind::Stale, |()| true) {
            self.settled = true;
            let settled = self.session.acknowledged(self.claim(), &[self.received.range()]);
            release_if_free(&self.group, settled, self.claim());
        }
        outcome
    }

    /// Has this member deliver the message again after a pause; in order nothing of its queue or key overtakes it. The
    /// failed delivery is counted in storage, soon: [`attempts`](Received::attempts) outlive a crash and a move of the
    /// queue to another member.
    pub fn again_after(mut self, pause: Duration) {
        let at = self.keeper.shared().clock.now().plus(pause);
        let (stored, redeliveries) = self.failed_in_place(None, None);
        self.comes_again_as(stored, redeliveries, at);
    }

    /// As [`again_after`](Self::again_after), with a word on what went wrong, once that is stored.
    pub(super) async fn again_after_failing(mut self, pause: Duration, error: &str) {
        let at = self.keeper.shared().clock.now().plus(pause);
        let (sender, noted) = oneshot::channel();
        let (stored, redeliveries) = self.failed_in_place(Some(error), Some(sender));
        if let Ok(Err(error)) = noted.await {
            tracing::warn!(queue = %self.received.queue(), %error, "a failed delivery was not counted in storage");
        }
        self.comes_again_as(stored, redeliveries, at);
    }

    /// Has the group store that this delivery failed; how the message comes again, and how often it did without saying
    /// so.
    fn failed_in_place(&self, error: Option<&str>, reply: Option<oneshot::Sender<Result<()>>>) -> (StoredRecord, u32) {
        let (stored, now) = (self.received.stored(), self.keeper.shared().clock.now());
        let failures = self.received.attempts().saturating_add(1);
        let failures = InPlaceFailures::after(&stored.record, failures, error, now);
        let marked = failures.mark(&stored.record).ok().filter(|_| !self.session.broadcasting);
        let Some(record) = marked else { return (stored.clone(), self.redeliveries + 1) };
        let (queue, offset) = (self.received.queue().clone(), stored.offset);
        let (member, lease) = (self.session.member.clone(), self.lease);
        let failure = InPlaceFailure { member, lease, queue, offset, failures, reply };
        self.group.post(GroupRequest::FailInPlace(Box::new(failure)));
        (StoredRecord { record, ..stored.clone() }, 0)
    }
}

impl Acknowledge for Delivery {
    fn acknowledged(&self) -> Part {
        let make = || {
            Arc::new(DeliveryPledge::new(
                (&self.keeper, &self.group, &self.session),
                (self.received.queue().clone(), vec![self.received.clone()]),
                self.holder.clone(),
                self.lease,
                self.redeliveries,
            ))
        };
        Part(Acknowledged::Delivery(Arc::clone(self.pledge.get_or_init(make))))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled {
            self.comes_again_at(self.keeper.shared().clock.now().plus(REDELIVERY_PAUSE));
        }
    }
}

fn check_pause(cause: &FailureCause) -> Result<()> {
    match cause {
        FailureCause::Retry { delay: Some(delay), .. } if *delay > LONGEST_RETRY_PAUSE => {
            let text = format!("a retry after {delay:?}: use at most {LONGEST_RETRY_PAUSE:?}");
            Err(Error::new(ErrorKind::Invalid, text))
        }
        _ => Ok(()),
    }
}

//! One message in a consumer's hands, to be acknowledged or to come again.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::received::Received;
use super::release_if_free;
use super::session::{Given, Session};
use crate::actors::group::{GroupHandle, GroupRequest, RetryRequest};
use crate::broker::Keeper;
use crate::error::{Error, ErrorKind, Result};

/// A message given to one member of a group. Acknowledge it once its effects are done; dropping it unacknowledged
/// brings it again after a pause of one second.
pub struct Delivery {
    received: Received,
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    session: Arc<Session>,
    given: Option<Given>,
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
    pub(super) fn new(keeper: &Arc<Keeper>, group: &Arc<GroupHandle>, session: &Arc<Session>, given: Given) -> Self {
        let shared = keeper.shared();
        tracing::trace!(queue = %given.key, offset = %given.stored.offset, member = %session.member, "deliver");
        let received = Received::new(given.key.clone(), given.stored.clone(), shared.store_id, given.redeliveries);
        Self {
            received,
            keeper: Arc::clone(keeper),
            group: Arc::clone(group),
            session: Arc::clone(session),
            given: Some(given),
        }
    }

    /// Declares the message done and resolves once that is stored (in the operating system: losing it to a power cut
    /// costs a redelivery, never a message).
    ///
    /// # Errors
    /// `Stale` when the message belongs to another member by now: it will be delivered there.
    pub async fn ack(mut self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.acknowledge(Some(sender));
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the acknowledgement")))
    }

    /// Declares the message done without waiting for the answer.
    pub fn ack_soon(mut self) {
        self.acknowledge(None);
    }

    fn acknowledge(&mut self, reply: Option<oneshot::Sender<Result<()>>>) {
        let Some(given) = self.given.take() else { return };
        let offset = given.stored.offset;
        tracing::trace!(queue = %given.key, %offset, "ack");
        // The group hears of it before the session lets go: a revocation in between would give the message away again.
        self.group.post(GroupRequest::Acknowledge {
            member: self.session.member.clone(),
            queue: given.key.clone(),
            lease: given.lease,
            ranges: vec![offset..offset.plus(1)],
            reply,
        });
        let settled = self.session.acknowledged(&given);
        release_if_free(&self.group, settled, &given);
    }

    /// Has the message delivered again later, to any member: after `delay`, or after the pause that the group's
    /// retry policy sets for this attempt. The copy for the retry and the acknowledgement of this message are one
    /// write. After the last redelivery the message becomes a dead letter in `%DLQ%group` instead. Only the group's
    /// own order is lost: later messages of the queue are not held back.
    ///
    /// # Errors
    /// `Stale` when the message belongs to another member by now; `NotStored` or `Unknown` when the write failed, and
    /// then the message comes again after a pause. A broadcasting group has no retry: `Invalid`.
    pub async fn retry_later(mut self, delay: Option<Duration>) -> Result<()> {
        if self.session.broadcasting {
            let text = "a broadcasting group has no retry: acknowledge the message, or drop it to have it again";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let Some(given) = &self.given else { return Ok(()) };
        let (sender, receiver) = oneshot::channel();
        self.group.post(GroupRequest::Retry(RetryRequest {
            member: self.session.member.clone(),
            queue: given.key.clone(),
            lease: given.lease,
            stored: given.stored.clone(),
            origin_id: self.received.origin_id(),
            failures: self.received.attempts().saturating_add(1),
            delay,
            reply: sender,
        }));
        // Whoever gives up waiting, or meets an error, drops the delivery: then the message comes again.
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the retry")))?;
        if let Some(given) = self.given.take() {
            let settled = self.session.acknowledged(&given);
            release_if_free(&self.group, settled, &given);
        }
        Ok(())
    }

    /// Has this member deliver the message again after a pause; in an ordered consumer nothing of its queue overtakes it.
    pub fn again_after(mut self, pause: Duration) {
        if let Some(given) = self.given.take() {
            let at = self.keeper.shared().clock.now().plus(pause);
            let settled = self.session.again_at(&given, at);
            release_if_free(&self.group, settled, &given);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(given) = self.given.take() {
            let settled = self.session.abandoned(&given, self.keeper.shared().clock.now());
            release_if_free(&self.group, settled, &given);
        }
    }
}

//! Messages of one queue in a consumer's hands, settled together.

use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use cuemq_storage_api::{QueueKey, QueueOffset};
use tokio::sync::oneshot;

use super::acknowledgeable::sealed::{Acknowledge, Part};
use super::pledge::{Acknowledged, DeliveryPledge, Hand, in_a_transaction};
use super::release_if_free;
use super::session::{Claim, Given, Records, Session};
use super::{Delivery, Received};
use crate::actors::group::GroupHandle;
use crate::actors::room::came_back;
use crate::broker::Keeper;
use crate::domain::membership::Lease;
use crate::error::{Error, Result};
use crate::limits::REDELIVERY_PAUSE;

/// Messages of one queue, in its order, given to one member of a group. Acknowledge them together once their effects
/// are done, which costs as much as for one message; or [part them](Batch::into_deliveries). Dropping the batch
/// unacknowledged brings all of them again after a pause of one second.
#[must_use = "messages that are not acknowledged come again"]
pub struct Batch {
    messages: Vec<Received>,
    bytes: usize,
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    session: Arc<Session>,
    /// Who holds the queue, if it is another member.
    holder: Option<Arc<Session>>,
    lease: Lease,
    redeliveries: u32,
    /// There once a transaction has acknowledged it.
    pledge: OnceLock<Arc<DeliveryPledge>>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("messages", &self.messages).finish_non_exhaustive()
    }
}

impl Deref for Batch {
    type Target = [Received];

    fn deref(&self) -> &[Received] {
        &self.messages
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a Received;
    type IntoIter = std::slice::Iter<'a, Received>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter()
    }
}

impl Batch {
    pub(super) fn new(keeper: &Arc<Keeper>, group: &Arc<GroupHandle>, session: &Arc<Session>, given: Given) -> Self {
        let Given { key, lease, records, redeliveries, holder } = given;
        let count = records.as_slice().len();
        tracing::trace!(queue = %key, count, member = %session.member, "deliver");
        let store_id = keeper.shared().store_id;
        let bytes = records.as_slice().iter().map(|stored| stored.record.payload_bytes()).sum();
        let received = |stored| Received::new(key.clone(), stored, store_id, redeliveries);
        let messages = match records {
            Records::One(stored) => vec![received(stored)],
            Records::Many(stored) => stored.into_iter().map(received).collect(),
        };
        let (keeper, group, session) = (Arc::clone(keeper), Arc::clone(group), Arc::clone(session));
        Self { messages, bytes, keeper, group, session, holder, lease, redeliveries, pledge: OnceLock::new() }
    }

    /// Declares all of its messages done and resolves once that is stored, as [`Delivery::ack`] does for one.
    ///
    /// # Errors
    /// `Stale` when the messages belong to another member by now: they will be delivered there.
    pub async fn ack(mut self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        match self.take_the_say() {
            Hand::Holder => self.acknowledge(Some(sender)),
            Hand::Done => return Ok(()),
            Hand::Transaction | Hand::Abandoned => return Err(in_a_transaction()),
        }
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the acknowledgement")))
    }

    /// Declares all of its messages done without waiting for the answer.
    pub fn ack_soon(mut self) {
        if self.take_the_say() == Hand::Holder {
            self.acknowledge(None);
        }
    }

    /// The messages one by one, each to be settled by itself. None when a transaction has acknowledged the batch, or is
    /// about to: then its outcome decides about all of them.
    #[must_use = "messages that are not acknowledged come again"]
    pub fn into_deliveries(mut self) -> Vec<Delivery> {
        if self.take_the_say() != Hand::Holder {
            return Vec::new();
        }
        let (session, lease, redeliveries) = (&self.session, self.lease, self.redeliveries);
        let deliver = |received| {
            let holder = self.holder.clone();
            Delivery::new(&self.keeper, &self.group, session, received, holder, lease, redeliveries)
        };
        std::mem::take(&mut self.messages).into_iter().map(deliver).collect()
    }

    /// Takes the say over it for the last time: whether it is the holder's. If not, its messages are a transaction's.
    fn take_the_say(&mut self) -> Hand {
        let hand = self.pledge.get().map_or(Hand::Holder, |pledge| pledge.let_go());
        if hand != Hand::Holder {
            self.messages.clear();
        }
        hand
    }

    fn claim<'a>(&'a self, key: &'a QueueKey, records: usize) -> Claim<'a> {
        Claim { key, lease: self.lease, records, bytes: self.bytes, holder: self.holder.as_ref() }
    }

    fn acknowledge(&mut self, reply: Option<oneshot::Sender<Result<()>>>) {
        let messages = std::mem::take(&mut self.messages);
        let Some(first) = messages.first() else { return };
        tracing::trace!(queue = %first.queue(), offset = %first.offset(), count = messages.len(), "ack");
        let ranges = ranges(&messages);
        // The group hears of it before the session lets go, as with one delivery.
        self.group.acknowledge(&self.session.member, first.queue(), self.lease, &ranges, reply);
        let claim = self.claim(first.queue(), messages.len());
        release_if_free(&self.group, self.session.acknowledged(claim, &ranges), claim);
    }
}

impl Acknowledge for Batch {
    fn acknowledged(&self) -> Part {
        let make = || {
            let queue = self.messages.first().expect("a batch has a message until it is settled").queue().clone();
            Arc::new(DeliveryPledge::new(
                (&self.keeper, &self.group, &self.session),
                (queue, self.messages.clone()),
                self.holder.clone(),
                self.lease,
                self.redeliveries,
            ))
        };
        Part(Acknowledged::Delivery(Arc::clone(self.pledge.get_or_init(make))))
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if self.messages.is_empty() || self.take_the_say() != Hand::Holder {
            return;
        }
        if let Some(pledge) = self.pledge.get() {
            // It knows what of the batch turned out to be done.
            return pledge.come_again();
        }
        let Some(first) = self.messages.first() else { return };
        let at = self.keeper.shared().clock.now().plus(REDELIVERY_PAUSE);
        let claim = self.claim(first.queue(), self.messages.len());
        let records = self.messages.iter().map(|received| received.stored().clone());
        release_if_free(&self.group, self.session.again_at(claim, records, self.redeliveries + 1, at), claim);
        came_back(self.keeper.shared(), first.queue());
    }
}

/// The offsets of messages in order, neighbours as one range: what a filter or an earlier acknowledgement left out
/// lies between.
pub(super) fn ranges<'a>(messages: impl IntoIterator<Item = &'a Received>) -> Vec<Range<QueueOffset>> {
    let mut ranges: Vec<Range<QueueOffset>> = Vec::with_capacity(1);
    for message in messages {
        match ranges.last_mut() {
            Some(last) if last.end == message.offset() => last.end = message.range().end,
            _ => ranges.push(message.range()),
        }
    }
    ranges
}

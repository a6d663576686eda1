//! What a transaction takes out of its program's hands until its outcome is known: deliveries and batches, popped
//! messages, and the positions of pull consumers.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuemq_storage_api::{QueueKey, QueueOffset};

use super::batch::ranges;
use super::received::Received;
use super::release_if_free;
use super::session::{Claim as SessionClaim, Session};
use crate::actors::group::{Claim, GroupHandle};
use crate::actors::room::came_back;
use crate::broker::Keeper;
use crate::domain::membership::Lease;
use crate::domain::pop_receipt::PopReceipt;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::REDELIVERY_PAUSE;

/// One delivery, or a batch, as its holder and transactions share it.
pub(crate) struct DeliveryPledge {
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    session: Arc<Session>,
    queue: QueueKey,
    /// At least one, in the queue's order.
    messages: Vec<Received>,
    /// Who holds the queue, if it is another member.
    holder: Option<Arc<Session>>,
    lease: Lease,
    redeliveries: u32,
    hand: Mutex<Hand>,
    /// What of a batch a refused transaction found to be done: it does not come again.
    done_before: Mutex<Vec<Range<QueueOffset>>>,
}

/// Who has the say over a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hand {
    /// Its holder.
    Holder,
    /// A transaction, until its outcome is known.
    Transaction,
    /// As above, and the holder has let go of it.
    Abandoned,
    /// It is done.
    Done,
}

impl DeliveryPledge {
    pub(super) fn new(
        (keeper, group, session): (&Arc<Keeper>, &Arc<GroupHandle>, &Arc<Session>),
        (queue, messages): (QueueKey, Vec<Received>),
        holder: Option<Arc<Session>>,
        lease: Lease,
        redeliveries: u32,
    ) -> Self {
        let (keeper, group, session) = (Arc::clone(keeper), Arc::clone(group), Arc::clone(session));
        let (hand, done_before) = (Mutex::new(Hand::Holder), Mutex::default());
        Self { keeper, group, session, queue, messages, holder, lease, redeliveries, hand, done_before }
    }

    /// Who has the say now.
    pub(super) fn hand(&self) -> Hand {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, messages: &[&Received]) -> SessionClaim<'_> {
        let (records, holder) = (messages.len(), self.holder.as_ref());
        let bytes = messages.iter().map(|received| received.stored().record.payload_bytes()).sum();
        SessionClaim { key: &self.queue, lease: self.lease, records, bytes, holder }
    }

    fn pledge(&self) -> Result<()> {
        let mut hand = self.lock();
        let (queue, offset) = (&self.queue, self.messages.first().map_or(QueueOffset::ZERO, |first| first.offset()));
        match *hand {
            Hand::Holder => {
                *hand = Hand::Transaction;
                Ok(())
            }
            Hand::Transaction | Hand::Abandoned => {
                let text = format!("another transaction acknowledges offset {offset} of queue {queue}: wait for it");
                Err(Error::new(ErrorKind::Conflict, text))
            }
            Hand::Done => {
                let text = format!("offset {offset} of queue {queue} was acknowledged by an earlier transaction");
                Err(Error::new(ErrorKind::Stale, text))
            }
        }
    }

    /// The holder wants to settle it or lets go of it; who had the say. If that is a transaction, its outcome decides.
    pub(super) fn let_go(&self) -> Hand {
        let mut hand = self.lock();
        let before = *hand;
        if before == Hand::Transaction {
            *hand = Hand::Abandoned;
        }
        before
    }

    fn committed(&self) {
        *self.lock() = Hand::Done;
        self.settled(&self.messages.iter().collect::<Vec<_>>());
    }

    /// The group knows that these are done.
    fn settled(&self, messages: &[&Received]) {
        let claim = self.claim(messages);
        let settled = self.session.acknowledged(claim, &ranges(messages.iter().copied()));
        release_if_free(&self.group, settled, claim);
    }

    fn given_back(&self) {
        let before = std::mem::replace(&mut *self.lock(), Hand::Holder);
        if before == Hand::Abandoned {
            self.come_again();
        }
    }

    /// Nobody has settled it: it comes again after a pause, but for what is done.
    pub(super) fn come_again(&self) {
        let at = self.keeper.shared().clock.now().plus(REDELIVERY_PAUSE);
        let done = self.done_before.lock().unwrap_or_else(PoisonError::into_inner);
        let is_done = |received: &&Received| done.iter().any(|range| range.contains(&received.offset()));
        let (done, open): (Vec<&Received>, Vec<&Received>) = self.messages.iter().partition(is_done);
        if !done.is_empty() {
            self.settled(&done);
        }
        if !open.is_empty() {
            let claim = self.claim(&open);
            let stored = open.iter().map(|received| received.stored().clone());
            let settled = self.session.again_at(claim, stored, self.redeliveries + 1, at);
            release_if_free(&self.group, settled, claim);
            came_back(self.keeper.shared(), open[0].queue());
        }
    }

    /// These were done before the transaction; whether that is all of it.
    fn found_done(&self, done: Vec<Range<QueueOffset>>) -> bool {
        let all = self.messages.iter().all(|received| done.iter().any(|range| range.contains(&received.offset())));
        *self.done_before.lock().unwrap_or_else(PoisonError::into_inner) = done;
        all
    }
}

/// Whoever wants to settle what a transaction has in hand hears this.
pub(super) fn in_a_transaction() -> Error {
    let text = "a transaction acknowledges the message and its outcome is not known yet: that decides";
    Error::new(ErrorKind::Conflict, text)
}

/// A popped message. Nobody has to give it up: until the transaction is written its group's actor does nothing else.
pub(crate) struct PopPledge {
    pub(super) group: Arc<GroupHandle>,
    pub(super) receipt: PopReceipt,
}

/// Where a pull consumer is in one queue, and where its group shall be.
pub(crate) struct PositionPledge {
    pub(super) group: Arc<GroupHandle>,
    pub(super) queue: QueueKey,
    pub(super) to: QueueOffset,
    pub(super) committed: Committed,
}

/// What is committed for a queue, as far as a pull consumer knows.
pub(super) type Committed = Arc<Mutex<Option<QueueOffset>>>;

/// Reads what is committed.
pub(super) fn known(committed: &Committed) -> Option<QueueOffset> {
    *committed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes what is committed.
pub(super) fn note(committed: &Committed, to: QueueOffset) {
    *committed.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
}

/// What a transaction acknowledges, before it is submitted.
#[derive(Clone)]
pub(crate) enum Acknowledged {
    Delivery(Arc<DeliveryPledge>),
    Popped(Arc<PopPledge>),
    Position(Arc<PositionPledge>),
}

impl Acknowledged {
    /// Whether both are the same delivery, of the same message.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Delivery(one), Self::Delivery(other)) => Arc::ptr_eq(one, other),
            (Self::Popped(one), Self::Popped(other)) => {
                one.receipt == other.receipt && one.group.name() == other.group.name()
            }
            _ => false,
        }
    }

    /// Takes it out of its holder's hands until the outcome of a transaction is known.
    ///
    /// # Errors
    /// `Conflict` when another transaction has it; `Stale` when it is done.
    pub(crate) fn pledge(self) -> Result<Pledged> {
        if let Self::Delivery(delivery) = &self {
            delivery.pledge()?;
        }
        Ok(Pledged(Some(self)))
    }
}

/// What is in a transaction's hands; dropped, it goes back to its holder's.
pub(crate) struct Pledged(Option<Acknowledged>);

impl std::fmt::Debug for Pledged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pledged").finish_non_exhaustive()
    }
}

impl Pledged {
    /// What is asked of which group.
    pub(crate) fn claim(&self) -> (Arc<GroupHandle>, Claim) {
        match self.0.as_ref().expect("taken only when it ends") {
            Acknowledged::Delivery(delivery) => {
                let claim = Claim::Delivered {
                    member: delivery.session.member.clone(),
                    queue: delivery.queue.clone(),
                    lease: delivery.lease,
                    ranges: ranges(&delivery.messages),
                };
                (Arc::clone(&delivery.group), claim)
            }
            Acknowledged::Popped(popped) => {
                (Arc::clone(&popped.group), Claim::Popped { receipt: popped.receipt.clone() })
            }
            Acknowledged::Position(position) => {
                let (queue, from) = (position.queue.clone(), known(&position.committed));
                (Arc::clone(&position.group), Claim::Position { queue, from, to: position.to })
            }
        }
    }

    /// The transaction is stored.
    pub(crate) fn committed(mut self) {
        match self.0.take() {
            Some(Acknowledged::Delivery(delivery)) => delivery.committed(),
            Some(Acknowledged::Position(position)) => note(&position.committed, position.to),
            // Its group ends the delivery itself.
            Some(Acknowledged::Popped(_)) | None => {}
        }
    }

    /// The transaction is refused, because these messages were done before: they shall not come again. The rest goes
    /// back to its holder's hands.
    pub(crate) fn done_before(self, done: Vec<Range<QueueOffset>>) {
        if let Some(Acknowledged::Delivery(delivery)) = &self.0
            && delivery.found_done(done)
        {
            self.committed();
        }
    }
}

impl Drop for Pledged {
    fn drop(&mut self) {
        if let Some(Acknowledged::Delivery(delivery)) = self.0.take() {
            delivery.given_back();
        }
    }
}

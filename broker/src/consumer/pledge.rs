//! What a transaction takes out of its program's hands until its outcome is known: deliveries, and the positions of
//! pull consumers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuemq_storage_api::{QueueKey, QueueOffset};

use super::received::Received;
use super::release_if_free;
use super::session::{Claim as SessionClaim, Session};
use crate::actors::group::{Claim, GroupHandle};
use crate::broker::Keeper;
use crate::domain::membership::Lease;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::REDELIVERY_PAUSE;

/// One delivery, as its holder and transactions share it.
pub(crate) struct DeliveryPledge {
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    session: Arc<Session>,
    received: Received,
    /// Who holds the queue, if it is another member.
    holder: Option<Arc<Session>>,
    lease: Lease,
    redeliveries: u32,
    hand: Mutex<Hand>,
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
        received: Received,
        holder: Option<Arc<Session>>,
        lease: Lease,
        redeliveries: u32,
    ) -> Self {
        let (keeper, group, session) = (Arc::clone(keeper), Arc::clone(group), Arc::clone(session));
        Self { keeper, group, session, received, holder, lease, redeliveries, hand: Mutex::new(Hand::Holder) }
    }

    /// Who has the say now.
    pub(super) fn hand(&self) -> Hand {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self) -> SessionClaim<'_> {
        let bytes = self.received.stored().record.payload_bytes();
        let holder = self.holder.as_ref();
        SessionClaim { key: self.received.queue(), lease: self.lease, records: 1, bytes, holder }
    }

    fn pledge(&self) -> Result<()> {
        let mut hand = self.lock();
        let (queue, offset) = (self.received.queue(), self.received.offset());
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
        // The group has heard of it by now.
        let settled = self.session.acknowledged(self.claim(), &[self.received.range()]);
        release_if_free(&self.group, settled, self.claim());
    }

    fn given_back(&self) {
        let before = std::mem::replace(&mut *self.lock(), Hand::Holder);
        if before == Hand::Abandoned {
            let at = self.keeper.shared().clock.now().plus(REDELIVERY_PAUSE);
            let stored = std::iter::once(self.received.stored().clone());
            let settled = self.session.again_at(self.claim(), stored, self.redeliveries, at);
            release_if_free(&self.group, settled, self.claim());
        }
    }
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
    Position(Arc<PositionPledge>),
}

impl Acknowledged {
    /// Whether both are the same delivery.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Delivery(one), Self::Delivery(other)) => Arc::ptr_eq(one, other),
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
                    queue: delivery.received.queue().clone(),
                    lease: delivery.lease,
                    ranges: vec![delivery.received.range()],
                };
                (Arc::clone(&delivery.group), claim)
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
            None => {}
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

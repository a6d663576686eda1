//! One popped message, to be settled by itself or by its receipt.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

use super::acknowledgeable::sealed::{Acknowledge, Part};
use super::pop::Desk;
use super::received::Received;
use crate::actors::group::PoppedRun;
use crate::domain::pop_receipt::{Mark, PopReceipt, ReceiptRun, Sealer};
use crate::error::Result;

/// A message that was popped. Settle it once its effects are done; or pass its receipt on, and have somebody else settle
/// it by that. Dropping it does nothing: the message comes again when its invisible time is over.
pub struct Popped {
    received: Received,
    /// Which delivery of all that its group has made.
    delivery: u64,
    until: Timestamp,
    tray: Arc<Tray>,
}

/// What the messages of one pop have in common.
pub(super) struct Tray {
    pub(super) desk: Arc<Desk>,
    pub(super) sealer: Sealer,
}

impl fmt::Debug for Popped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Popped").field("received", &self.received).field("until", &self.until).finish_non_exhaustive()
    }
}

impl Deref for Popped {
    type Target = Received;

    fn deref(&self) -> &Received {
        &self.received
    }
}

impl Popped {
    /// Takes up what a pop brought of one queue.
    pub(super) fn take_up(popped: &mut Vec<Self>, tray: &Arc<Tray>, run: PoppedRun) {
        let PoppedRun { queue, records, mark, redeliveries, until } = run;
        tracing::trace!(%queue, offset = %mark.offset, messages = records.len(), "popped");
        let store_id = tray.desk.keeper.shared().store_id;
        popped.extend((mark.delivery..).zip(records).map(|(delivery, stored)| {
            let received = Received::new(queue.clone(), stored, store_id, redeliveries);
            Self { received, delivery, until, tray: Arc::clone(tray) }
        }));
    }

    fn mark(&self) -> Mark {
        Mark { offset: self.received.offset(), delivery: self.delivery }
    }

    /// What settles it, made anew at each call: keep it, if it is needed often.
    #[must_use]
    pub fn receipt(&self) -> PopReceipt {
        self.tray.sealer.receipt(self.received.queue().clone(), self.mark())
    }

    /// Adds it to what is settled together at a desk. What was popped elsewhere has to show its receipt.
    pub(super) fn add_to(&self, receipts: &mut Vec<ReceiptRun>, desk: &Arc<Desk>) {
        if Arc::ptr_eq(&self.tray.desk.group, &desk.group) {
            ReceiptRun::add_held(receipts, self.received.queue(), self.mark());
        } else {
            ReceiptRun::add(receipts, &self.receipt());
        }
    }

    /// When it comes again unless it is settled or renewed before.
    #[must_use]
    pub fn invisible_until(&self) -> Timestamp {
        self.until
    }

    /// Declares it done: [`PopConsumer::ack`](crate::PopConsumer::ack).
    ///
    /// # Errors
    /// As there.
    pub async fn ack(&self) -> Result<()> {
        self.tray.desk.ack(&self.receipt()).await
    }

    /// Has it delivered again: [`PopConsumer::nack`](crate::PopConsumer::nack).
    ///
    /// # Errors
    /// As there.
    pub async fn nack(&self, delay: Option<Duration>) -> Result<()> {
        self.tray.desk.nack(&self.receipt(), delay).await
    }

    /// Makes it a dead letter: [`PopConsumer::reject`](crate::PopConsumer::reject).
    ///
    /// # Errors
    /// As there.
    pub async fn reject(&self, reason: impl fmt::Display) -> Result<()> {
        self.tray.desk.reject(&self.receipt(), reason.to_string()).await
    }

    /// Has it stay invisible for `invisible` from now, under a new receipt:
    /// [`PopConsumer::renew`](crate::PopConsumer::renew).
    ///
    /// # Errors
    /// As there; the receipt is the old one then.
    pub async fn renew(&mut self, invisible: Duration) -> Result<()> {
        let (receipt, until) = self.tray.desk.renew(&self.receipt(), invisible).await?;
        (self.delivery, self.until) = (receipt.delivery(), until);
        Ok(())
    }
}

impl Acknowledge for Popped {
    fn acknowledged(&self) -> Part {
        Part(self.tray.desk.acknowledged(&self.receipt()))
    }
}

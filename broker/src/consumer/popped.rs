//! One popped message, to be settled by itself or by its receipt.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

use super::acknowledgeable::sealed::{Acknowledge, Part};
use super::pop::Desk;
use super::received::Received;
use crate::actors::group::PoppedRecord;
use crate::domain::pop_receipt::PopReceipt;
use crate::error::Result;

/// A message that was popped. Settle it once its effects are done; or pass its receipt on, and have somebody else settle
/// it by that. Dropping it does nothing: the message comes again when its invisible time is over.
pub struct Popped {
    received: Received,
    receipt: PopReceipt,
    until: Timestamp,
    desk: Arc<Desk>,
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
    pub(super) fn new(desk: Arc<Desk>, record: PoppedRecord) -> Self {
        let PoppedRecord { queue, stored, redeliveries, receipt, until } = record;
        tracing::trace!(%queue, offset = %stored.offset, "popped");
        let received = Received::new(queue, stored, desk.keeper.shared().store_id, redeliveries);
        Self { received, receipt, until, desk }
    }

    /// What settles it.
    #[must_use]
    pub fn receipt(&self) -> &PopReceipt {
        &self.receipt
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
        self.desk.ack(&self.receipt).await
    }

    /// Has it delivered again: [`PopConsumer::nack`](crate::PopConsumer::nack).
    ///
    /// # Errors
    /// As there.
    pub async fn nack(&self, delay: Option<Duration>) -> Result<()> {
        self.desk.nack(&self.receipt, delay).await
    }

    /// Makes it a dead letter: [`PopConsumer::reject`](crate::PopConsumer::reject).
    ///
    /// # Errors
    /// As there.
    pub async fn reject(&self, reason: impl fmt::Display) -> Result<()> {
        self.desk.reject(&self.receipt, reason.to_string()).await
    }

    /// Has it stay invisible for `invisible` from now, under a new receipt:
    /// [`PopConsumer::renew`](crate::PopConsumer::renew).
    ///
    /// # Errors
    /// As there; the receipt is the old one then.
    pub async fn renew(&mut self, invisible: Duration) -> Result<()> {
        (self.receipt, self.until) = self.desk.renew(&self.receipt, invisible).await?;
        Ok(())
    }
}

impl Acknowledge for Popped {
    fn acknowledged(&self) -> Part {
        Part(self.desk.acknowledged(&self.receipt))
    }
}

//! The way to the scheduler of expiries.

use std::sync::Arc;

use actix::Addr;

use super::{ExpiryActor, ExpiryCommand, KIND};
use crate::actors::mailbox::Inbox;
use crate::actors::supervisor::Identity;
use crate::domain::delay::TimerKey;
use crate::shared::Shared;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ExpiryHandle {
    inbox: Arc<Inbox<ExpiryCommand>>,
    address: Addr<ExpiryActor>,
}

impl ExpiryHandle {
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let inbox = Inbox::new();
        let (for_actor, abandoned, for_make) = (Arc::clone(&inbox), Arc::clone(&inbox), Arc::clone(shared));
        let make = move || ExpiryActor::new(for_make, for_actor);
        let orphaned = move || drop(abandoned.close());
        let identity = Identity::new(KIND, "scheduler");
        let address = shared.supervision.start(shared.arbiters.control(), identity, make, orphaned);
        Self { inbox, address }
    }

    /// Takes nothing any more: the broker has stopped.
    pub(crate) fn end(&self) {
        drop(self.inbox.close());
    }

    /// Tells of messages that are in storage by now. One that a scheduler which is gone does not hear of is read from
    /// storage by the next.
    pub(crate) fn stored(&self, timers: Vec<TimerKey>) {
        let _ = self.inbox.push(ExpiryCommand::Stored(timers), &self.address);
    }
}

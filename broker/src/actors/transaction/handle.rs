//! The way to the transaction checker.

use std::sync::Arc;

use actix::Addr;
use tokio::sync::oneshot;

use super::{BeginRequest, KIND, TransactionActor, TransactionCommand};
use crate::actors::group::Answer;
use crate::actors::mailbox::Inbox;
use crate::actors::supervisor::Identity;
use crate::error::{Error, Result};
use crate::shared::Shared;
use crate::state::StateCell;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct TransactionHandle {
    inbox: Arc<Inbox<TransactionCommand>>,
    address: Addr<TransactionActor>,
    state: StateCell,
}

impl TransactionHandle {
    pub(super) fn new(
        inbox: Arc<Inbox<TransactionCommand>>,
        address: Addr<TransactionActor>,
        state: StateCell,
    ) -> Self {
        Self { inbox, address, state }
    }

    /// Drops what waits, which tells its askers that the outcome is unknown, and refuses whatever comes: the broker
    /// has stopped.
    pub(crate) fn end(&self) {
        drop(self.inbox.close());
    }

    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let inbox = Inbox::new();
        let (for_actor, abandoned, for_make) = (Arc::clone(&inbox), Arc::clone(&inbox), Arc::clone(shared));
        let make = move || TransactionActor::new(for_make, for_actor);
        // Dropped requests tell their askers that the outcome is unknown.
        let orphaned = move || drop(abandoned.close());
        let identity = Identity::new(KIND, "checker");
        let address = shared.supervision.start(shared.arbiters.control(), identity, make, orphaned);
        Self { inbox, address, state: shared.state.clone() }
    }

    /// Hands a command over. A checker that is given up answers nothing: its askers learn that by their dropped reply.
    pub(crate) fn post(&self, command: TransactionCommand) {
        if let Err(command) = self.inbox.push(command, &self.address) {
            tracing::debug!(command = command.name(), "a command came after the transaction checker had ended");
        }
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> TransactionCommand) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        if self.inbox.push(command(sender), &self.address).is_err() {
            self.state.check_running()?;
            return Err(Error::closed("the transaction checker"));
        }
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the transaction's request")))
    }

    pub(crate) fn begin(&self, request: BeginRequest) {
        self.post(TransactionCommand::Begin(Box::new(request)));
    }
}

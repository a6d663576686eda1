//! The way to the committer of transactions.

use std::sync::Arc;

use actix::Addr;
use tokio::sync::oneshot;

use super::{ApplicationActor, ApplicationCommand, KIND, Outcome, Submission};
use crate::actors::group::Prepared;
use crate::actors::mailbox::Inbox;
use crate::actors::supervisor::Identity;
use crate::error::{Error, Result};
use crate::shared::Shared;
use crate::state::StateCell;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ApplicationHandle {
    inbox: Arc<Inbox<ApplicationCommand>>,
    address: Addr<ApplicationActor>,
    state: StateCell,
}

impl ApplicationHandle {
    pub(super) fn new(
        inbox: Arc<Inbox<ApplicationCommand>>,
        address: Addr<ApplicationActor>,
        state: StateCell,
    ) -> Self {
        Self { inbox, address, state }
    }

    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let inbox = Inbox::new();
        let (for_actor, abandoned, for_make) = (Arc::clone(&inbox), Arc::clone(&inbox), Arc::clone(shared));
        let make = move || ApplicationActor::new(for_make, for_actor);
        // Dropped requests tell their askers that the outcome is unknown.
        let orphaned = move || drop(abandoned.close());
        let identity = Identity::new(KIND, "committer");
        let address = shared.supervision.start(shared.arbiters.carrier(), identity, make, orphaned);
        Self { inbox, address, state: shared.state.clone() }
    }

    /// Drops what waits, which tells its askers that the outcome is unknown, and refuses whatever comes: the broker
    /// has stopped.
    pub(crate) fn end(&self) {
        drop(self.inbox.close());
    }

    /// Has a transaction committed, and waits for what became of it.
    pub(crate) async fn submit(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<Outcome>>) -> Submission,
    ) -> Result<Outcome> {
        let (reply, outcome) = oneshot::channel();
        let command = ApplicationCommand::Submit(Box::new(make(reply)));
        if self.inbox.push(command, &self.address).is_err() {
            self.state.check_running()?;
            return Err(Error::closed("the committer of transactions"));
        }
        outcome.await.unwrap_or_else(|_| Err(Error::lost("the transaction")))
    }

    fn tell(&self, command: ApplicationCommand) {
        if let Err(command) = self.inbox.push(command, &self.address) {
            tracing::debug!(command = command.name(), "a notice came after the committer of transactions had ended");
        }
    }
}

/// Carries a group's answer; one that is lost with the group's request is an answer too.
#[derive(Debug)]
pub(crate) struct PrepareReply(Option<(ApplicationHandle, u64, usize)>);

impl PrepareReply {
    pub(super) fn new(to: ApplicationHandle, round: u64, part: usize) -> Self {
        Self(Some((to, round, part)))
    }

    /// Answers. A committer that is gone drops the answer, which releases what it holds.
    pub(crate) fn send(mut self, answer: Result<Prepared>) {
        self.answer(answer);
    }

    fn answer(&mut self, answer: Result<Prepared>) {
        if let Some((to, round, part)) = self.0.take() {
            to.tell(ApplicationCommand::Prepared { round, part, answer });
        }
    }
}

impl Drop for PrepareReply {
    fn drop(&mut self) {
        self.answer(Err(not_prepared()));
    }
}

fn not_prepared() -> Error {
    let text = "nothing of the transaction was done: a group was interrupted before it answered; run it again";
    Error::new(crate::error::ErrorKind::NotStored, text)
}

/// Tells that a round's write has an outcome, however it comes.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) to: ApplicationHandle,
    pub(super) round: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.to.tell(ApplicationCommand::Landed { round: self.round });
    }
}

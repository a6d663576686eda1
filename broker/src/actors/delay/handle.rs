//! The way to the delay scheduler.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;

use super::{ChangeRequest, DelayActor, DelayCommand, DelayRequest, KIND, RecurRequest};
use crate::actors::mailbox::Inbox;
use crate::actors::supervisor::Identity;
use crate::domain::delay::TimerKey;
use crate::error::{Error, ErrorKind};
use crate::shared::Shared;

/// Pause before due messages whose write was refused are tried again.
const FIRE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DelayHandle {
    inbox: Arc<Inbox<DelayCommand>>,
    address: Addr<DelayActor>,
}

impl DelayHandle {
    pub(super) fn new(inbox: Arc<Inbox<DelayCommand>>, address: Addr<DelayActor>) -> Self {
        Self { inbox, address }
    }

    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let inbox = Inbox::new();
        let (for_actor, abandoned, for_make) = (Arc::clone(&inbox), Arc::clone(&inbox), Arc::clone(shared));
        let make = move || DelayActor::new(for_make, for_actor);
        let orphaned = move || refuse_all(&abandoned);
        let identity = Identity::new(KIND, "scheduler");
        let address = shared.supervision.start(shared.arbiters.control(), identity, make, orphaned);
        Self { inbox, address }
    }

    /// Refuses what waits and whatever comes: the broker has stopped.
    pub(crate) fn end(&self) {
        refuse_all(&self.inbox);
    }

    /// Hands over a message that shall be delivered later.
    pub(crate) fn schedule(&self, request: DelayRequest) {
        if let Err(DelayCommand::Schedule(request)) =
            self.inbox.push(DelayCommand::Schedule(Box::new(request)), &self.address)
        {
            request.answer(Err(gone()));
        }
    }

    /// Asks for a change of a message that waits.
    pub(crate) fn change(&self, request: ChangeRequest) {
        if let Err(DelayCommand::Change(request)) = self.inbox.push(DelayCommand::Change(request), &self.address) {
            request.answer(Err(gone()));
        }
    }

    /// Hands over a message that shall come again and again.
    pub(crate) fn recur(&self, request: RecurRequest) {
        if let Err(DelayCommand::Recur(request)) =
            self.inbox.push(DelayCommand::Recur(Box::new(request)), &self.address)
        {
            request.answer(Err(gone()));
        }
    }

    /// Tells of timers that are in storage by now. One that a scheduler which is gone does not hear of is read from
    /// storage by the next.
    pub(crate) fn stored(&self, timers: Vec<TimerKey>) {
        let _ = self.inbox.push(DelayCommand::Stored(timers), &self.address);
    }

    /// Tells that the write that moves timers has an outcome.
    pub(crate) fn fired(&self, timers: Vec<TimerKey>) {
        let _ = self.inbox.push(DelayCommand::Fired(timers), &self.address);
    }

    /// Has timers tried again a little later.
    pub(crate) fn stored_later(&self, shared: &Shared, timers: Vec<TimerKey>) {
        let (delay, sleep) = (self.clone(), shared.clock.sleep(FIRE_AGAIN_AFTER));
        shared.arbiters.control().spawn(async move {
            sleep.await;
            delay.stored(timers);
        });
    }
}

fn refuse_all(inbox: &Inbox<DelayCommand>) {
    for command in inbox.close() {
        match command {
            DelayCommand::Schedule(request) => request.answer(Err(gone())),
            DelayCommand::Change(request) => request.answer(Err(gone())),
            DelayCommand::Recur(request) => request.answer(Err(gone())),
            DelayCommand::Stored(_) | DelayCommand::Fired(_) => {}
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::NotStored, "nothing was stored or changed: the delay scheduler has ended")
}

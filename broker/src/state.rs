//! What a broker says of itself: running, failed and why, stopped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};

/// The life of a broker as anyone holding a handle can see it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BrokerState {
    /// Takes and delivers messages.
    Running,
    /// Takes nothing more, because a write failed or an actor could not be kept alive; the text says which and why.
    /// Reopen the broker after mending the cause.
    Failed(Arc<str>),
    /// Finishes what is under way, takes nothing new.
    Stopping,
    /// Everything is closed.
    Stopped,
}

impl fmt::Display for BrokerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Failed(cause) => write!(f, "failed: {cause}"),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// The one place that changes the state; watchers see every change.
#[derive(Clone, Debug)]
pub(crate) struct StateCell {
    cell: Arc<Cell>,
}

#[derive(Debug)]
struct Cell {
    sender: watch::Sender<BrokerState>,
    /// False once the state is anything but `Running`: what every send looks at, without a lock.
    running: AtomicBool,
}

impl StateCell {
    pub(crate) fn new() -> Self {
        let sender = watch::Sender::new(BrokerState::Running);
        Self { cell: Arc::new(Cell { sender, running: AtomicBool::new(true) }) }
    }

    pub(crate) fn get(&self) -> BrokerState {
        self.cell.sender.borrow().clone()
    }

    /// Changes the state if `change` says so. No send is taken once this has returned.
    fn change(&self, change: impl FnOnce(&mut BrokerState) -> bool) -> bool {
        self.cell.sender.send_if_modified(|state| {
            let changed = change(state);
            self.cell.running.store(*state == BrokerState::Running, Ordering::Release);
            changed
        })
    }

    /// Fails unless the broker takes new work.
    pub(crate) fn check_running(&self) -> Result<()> {
        if self.cell.running.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.get() {
            BrokerState::Running => Ok(()),
            BrokerState::Failed(cause) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the broker has failed ({cause}): mend the cause and reopen it"),
            )),
            BrokerState::Stopping | BrokerState::Stopped => Err(Error::closed("the broker")),
        }
    }

    /// Why the broker has failed, if it has.
    pub(crate) fn failure(&self) -> Option<Arc<str>> {
        if self.cell.running.load(Ordering::Acquire) {
            return None;
        }
        match self.get() {
            BrokerState::Failed(cause) => Some(cause),
            _ => None,
        }
    }

    /// Resolves once the broker takes no more work.
    pub(crate) async fn ended(&self) {
        // The sender lives in `self`, so this ends only with the condition.
        let _ = self.watch().wait_for(|state| *state != BrokerState::Running).await;
    }

    pub(crate) fn watch(&self) -> watch::Receiver<BrokerState> {
        self.cell.sender.subscribe()
    }

    /// Records the first failure; later ones, and failures while stopping, do not replace it.
    pub(crate) fn fail(&self, cause: &str) {
        let changed = self.change(|state| {
            let running = *state == BrokerState::Running;
            if running {
                *state = BrokerState::Failed(cause.into());
            }
            running
        });
        if changed {
            tracing::error!(cause, "the broker has failed and takes no more messages");
        }
    }

    /// Moves to `Stopping`; false if somebody did so before.
    pub(crate) fn begin_stop(&self) -> bool {
        self.change(|state| {
            let first = !matches!(state, BrokerState::Stopping | BrokerState::Stopped);
            if first {
                *state = BrokerState::Stopping;
            }
            first
        })
    }

    pub(crate) fn stopped(&self) {
        self.change(|state| {
            *state = BrokerState::Stopped;
            true
        });
    }
}

//! Tells of letters as they arrive. They are read from the queue, so nothing waits in memory for who is slow.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cuemq_storage_api::{QueueOffset, StoredRecord};
use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::DeadLetter;
use super::reading::LetterQueue;
use crate::broker::Keeper;
use crate::error::Result;
use crate::limits::FETCH_MESSAGES;
use crate::storage::Signal;

/// The letters that arrive, one after the other; see [`DeadLetters::watch`](super::DeadLetters::watch).
pub struct Arrivals {
    follower: Follower,
    _keeper: Arc<Keeper>,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals").field("next", &self.follower.next).finish_non_exhaustive()
    }
}

impl Arrivals {
    pub(super) fn new(keeper: &Arc<Keeper>, queue: LetterQueue) -> Self {
        Self { follower: Follower::new(queue), _keeper: Arc::clone(keeper) }
    }

    /// The next letter; waits until there is one.
    ///
    /// # Errors
    /// `Closed` or `Unavailable` when the broker has ended; a failed read.
    pub async fn next(&mut self) -> Result<DeadLetter> {
        self.follower.next().await
    }
}

struct Follower {
    queue: LetterQueue,
    signal: Arc<Signal>,
    next: QueueOffset,
    read: VecDeque<StoredRecord>,
}

impl Follower {
    fn new(queue: LetterQueue) -> Self {
        let (signal, next) = (Arc::default(), queue.end());
        queue.tail.listen(&signal);
        Self { queue, signal, next, read: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<DeadLetter> {
        loop {
            if let Some(stored) = self.read.pop_front() {
                return Ok(self.queue.letter(stored));
            }
            self.queue.shared.check_running()?;
            let end = self.queue.end();
            if self.next < end {
                let (records, next) = self.queue.fetch(self.next, end, FETCH_MESSAGES)?;
                self.read.extend(records);
                self.next = next;
                continue;
            }
            let ended = std::pin::pin!(self.queue.shared.state.ended());
            select(std::pin::pin!(self.signal.wait()), ended).await;
        }
    }
}

/// Calls back for every letter that arrives, until it is dropped; see
/// [`DeadLetters::on_arrival`](super::DeadLetters::on_arrival).
#[must_use = "dropping the hook ends it"]
pub struct ArrivalHook {
    stop: Arc<Notify>,
    _keeper: Arc<Keeper>,
}

impl fmt::Debug for ArrivalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrivalHook").finish_non_exhaustive()
    }
}

impl ArrivalHook {
    pub(super) fn start(
        keeper: &Arc<Keeper>,
        queue: LetterQueue,
        mut callback: impl FnMut(DeadLetter) + Send + 'static,
    ) -> Self {
        let stop = Arc::new(Notify::new());
        let (stopped, mut follower) = (Arc::clone(&stop), Follower::new(queue));
        keeper.shared().arbiters.delivery().spawn(async move {
            loop {
                let stop = std::pin::pin!(stopped.notified());
                // A stop comes before any letter that is there.
                match select(stop, std::pin::pin!(follower.next())).await {
                    Either::Right((Ok(letter), _)) => {
                        if catch_unwind(AssertUnwindSafe(|| callback(letter))).is_err() {
                            tracing::error!("a callback for dead letters panicked");
                        }
                    }
                    Either::Right((Err(error), _)) => {
                        tracing::debug!(%error, "no more dead letters are told of");
                        return;
                    }
                    Either::Left(_) => return,
                }
            }
        });
        Self { stop, _keeper: Arc::clone(keeper) }
    }
}

impl Drop for ArrivalHook {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

//! Runs a handler for every message of a consumer: push consumption.

use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, oneshot};

use super::{Consumer, Delivery, Received, Settlement};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_UNACKED_MESSAGES, REDELIVERY_PAUSE};

impl Consumer {
    /// Calls `handler` for every message, up to `concurrency` of them at a time, until the consumer is closed.
    /// `Ok` acknowledges the message. `Err` has it delivered again: after the pause that the group's retry policy sets,
    /// or, in order, after one second and before anything else of its queue or key; after the policy's last redelivery
    /// it becomes a dead letter. A handler that panics counts as failed. One that has more to say returns a
    /// [`Settlement`] instead.
    ///
    /// # Errors
    /// Why there will be no more messages; `Closed` is the regular end.
    pub async fn run<H, F>(mut self, concurrency: usize, handler: H) -> Result<()>
    where
        H: Fn(Received) -> F,
        F: Future<Output: Into<Settlement>>,
    {
        self.run_until(concurrency, &handler, std::future::pending()).await
    }

    async fn run_until<H, F>(&mut self, concurrency: usize, handler: &H, stop: impl Future<Output = ()>) -> Result<()>
    where
        H: Fn(Received) -> F,
        F: Future<Output: Into<Settlement>>,
    {
        let concurrency = concurrency.clamp(1, MAX_UNACKED_MESSAGES);
        let mut running = FuturesUnordered::new();
        let mut stop = std::pin::pin!(stop.fuse());
        loop {
            while running.len() >= concurrency {
                running.next().await;
            }
            let delivery = {
                let next = std::pin::pin!(self.next());
                // Handlers go on while nothing new is there; with none left, only a message or the stop matter.
                let finished =
                    async { if running.is_empty() { std::future::pending().await } else { running.next().await } };
                // A stop comes before any message that is there.
                match select(&mut stop, select(next, std::pin::pin!(finished))).await {
                    Either::Left(_) => break,
                    Either::Right((Either::Left((delivery, _)), _)) => Some(delivery?),
                    Either::Right((Either::Right(_), _)) => None,
                }
            };
            if let Some(delivery) = delivery {
                running.push(handle(delivery, handler));
            }
        }
        while running.next().await.is_some() {}
        Ok(())
    }

    /// Runs [`run`](Consumer::run) on one of the broker's own threads, which all spawned consumers share: handlers
    /// that block or compute for long belong into the program's own runtime instead.
    #[must_use = "dropping the handle stops the consumer"]
    pub fn spawn<H, F>(mut self, concurrency: usize, handler: H) -> WorkerHandle
    where
        H: Fn(Received) -> F + Send + 'static,
        F: Future<Output: Into<Settlement>> + 'static,
    {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let (sender, receiver) = oneshot::channel();
        let delivery = self.keeper.shared().arbiters.delivery().clone();
        delivery.spawn_fn(move || {
            actix_rt::spawn(async move {
                let result = self.run_until(concurrency, &handler, async { stopped.notified().await }).await;
                drop(self);
                // Nobody may wait for the end.
                let _ = sender.send(result);
            });
        });
        WorkerHandle { stop, ended: Some(receiver) }
    }
}

/// Handles one message and settles it by the outcome.
async fn handle<H, F>(delivery: Delivery, handler: &H)
where
    H: Fn(Received) -> F,
    F: Future<Output: Into<Settlement>>,
{
    let received = (*delivery).clone();
    let called = std::panic::AssertUnwindSafe(async { handler(received).await.into() }).catch_unwind().await;
    let settlement = called.unwrap_or_else(|_| Settlement::Failed("the handler panicked".to_owned()));
    if settlement == Settlement::Done {
        return delivery.ack_soon();
    }
    let (queue, offset, attempts) = (delivery.queue().clone(), delivery.offset(), delivery.attempts());
    tracing::debug!(%queue, %offset, attempts, ?settlement, "a handler failed");
    let in_order = delivery.comes_again_in_order();
    let stored = match settlement {
        Settlement::Done => return,
        Settlement::Failed(error) if in_order => return delivery.again_after_failing(REDELIVERY_PAUSE, &error).await,
        Settlement::RetryIn(pause, error) if in_order => return delivery.again_after_failing(pause, &error).await,
        Settlement::Failed(error) => delivery.fail(error).await,
        Settlement::RetryIn(pause, error) => delivery.fail_for(pause, error).await,
        Settlement::Rejected(error) => delivery.reject(error).await,
    };
    if let Err(error) = stored {
        tracing::warn!(%queue, %offset, %error, "what became of a message was not stored; it comes again");
    }
}

/// A spawned consumer. Dropping it stops the consumer after the handlers at work.
#[derive(Debug)]
pub struct WorkerHandle {
    stop: Arc<Notify>,
    ended: Option<oneshot::Receiver<Result<()>>>,
}

impl WorkerHandle {
    /// Takes no more messages; those at work are finished.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Resolves when the consumer has ended.
    ///
    /// # Errors
    /// Why it ended, if not by [`stop`](WorkerHandle::stop).
    pub async fn join(mut self) -> Result<()> {
        match self.ended.take() {
            Some(ended) => ended.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, "the broker has stopped"))),
            None => Ok(()),
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        if self.ended.is_some() {
            self.stop.notify_one();
        }
    }
}

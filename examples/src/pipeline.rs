//! Sends one message after the other without waiting for each receipt.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use cuemq::{ErrorKind, Message, Producer, Receipt};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::histogram::Latencies;
use crate::stopwatch::Stopwatch;

type Waiting<T> = Pin<Box<dyn Future<Output = (T, Duration, cuemq::Result<Receipt>)> + Send>>;

/// A producer with a bounded number of unacknowledged messages. Each has a label that comes back with its receipt.
pub struct Pipeline<T, F> {
    producer: Producer,
    most: usize,
    on_receipt: F,
    waiting: FuturesUnordered<Waiting<T>>,
    latencies: Latencies,
    acknowledged: u64,
}

impl<T, F> fmt::Debug for Pipeline<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("acknowledged", &self.acknowledged).finish_non_exhaustive()
    }
}

impl<T, F> Pipeline<T, F>
where
    T: Send + 'static,
    F: FnMut(T, &Receipt) -> Result<()>,
{
    /// Sends through `producer` with at most `most` unacknowledged; calls `on_receipt` for every receipt.
    pub fn new(producer: Producer, most: usize, on_receipt: F) -> Self {
        let most = most.max(1);
        let (waiting, latencies) = (FuturesUnordered::new(), Latencies::default());
        Self { producer, most, on_receipt, waiting, latencies, acknowledged: 0 }
    }

    /// Sends a message; waits first when too many are unacknowledged.
    ///
    /// # Errors
    /// The failure of this send or of one before it.
    pub async fn send(&mut self, message: Message, label: T) -> Result<()> {
        while self.waiting.len() >= self.most {
            self.one().await?;
        }
        let stopwatch = Stopwatch::start();
        let mut message = message;
        let pending = loop {
            match self.producer.enqueue(message) {
                Ok(pending) => break pending,
                // Other producers fill the broker, or large messages do: there is room once some are acknowledged.
                Err(rejected) if rejected.error.kind() == ErrorKind::Full && !self.waiting.is_empty() => {
                    message = *rejected.message;
                    self.one().await?;
                }
                Err(rejected) => return Err(rejected.error).context("a message was not taken"),
            }
        };
        self.waiting.push(Box::pin(async move {
            let receipt = pending.await;
            (label, stopwatch.elapsed(), receipt)
        }));
        // Receipts that are there already are taken now, so that their times are not those of later sends.
        while let Some(Some(answer)) = self.waiting.next().now_or_never() {
            self.note(answer)?;
        }
        Ok(())
    }

    /// Waits for all receipts that are missing.
    ///
    /// # Errors
    /// The failure of a send.
    pub async fn finish(mut self) -> Result<(u64, Latencies)> {
        while !self.waiting.is_empty() {
            self.one().await?;
        }
        Ok((self.acknowledged, self.latencies))
    }

    async fn one(&mut self) -> Result<()> {
        match self.waiting.next().await {
            Some(answer) => self.note(answer),
            None => Ok(()),
        }
    }

    fn note(&mut self, (label, took, receipt): (T, Duration, cuemq::Result<Receipt>)) -> Result<()> {
        let receipt = receipt.context("a message was not acknowledged")?;
        self.latencies.record(took);
        self.acknowledged += 1;
        (self.on_receipt)(label, &receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_message_is_acknowledged_once() {
        let broker = cuemq::Broker::in_memory().await.unwrap();
        let producer = broker.producer("numbers").await.unwrap();
        let mut labels = Vec::new();
        let mut pipeline = Pipeline::new(producer, 8, |label: u32, _: &Receipt| {
            labels.push(label);
            Ok(())
        });
        for number in 0..100_u32 {
            pipeline.send(Message::new(number.to_string()), number).await.unwrap();
        }
        let (acknowledged, _) = pipeline.finish().await.unwrap();
        labels.sort_unstable();
        assert_eq!((acknowledged, labels), (100, (0..100).collect()));
        broker.shutdown().await.unwrap();
    }
}

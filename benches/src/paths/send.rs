//! Sends through the actors without waiting for the disk.

use std::collections::VecDeque;
use std::time::Duration;

use cuemq::{Flush, Message, Producer};
use futures_util::stream::{FuturesOrdered, StreamExt};

use super::house::{House, note};
use super::{Rig, Setting};
use crate::Result;
use crate::configuration::{BATCHES_IN_FLIGHT, Path};
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, Ledger};

pub(super) struct SendRig {
    house: House,
}

impl SendRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        Ok(Self { house: House::new(setting, Flush::Buffered)? })
    }
}

impl Rig for SendRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.house.room() == 0 {
                self.house.change_store()?;
            }
            let now = left.min(self.house.room());
            let configuration = self.house.setting.configuration;
            let load = match configuration.path {
                Path::SendSingle => Load::Singles { in_flight: configuration.parameter, count: now },
                _ => Load::Batches { batch: configuration.parameter, count: now },
            };
            let producer = self.house.producer()?;
            let mut ledger = std::mem::take(&mut self.house.ledger);
            let watch = Stopwatch::start();
            self.house.block_on(load.send(&producer, &self.house.bodies, &mut ledger))?;
            time += watch.elapsed();
            self.house.ledger = ledger;
            left -= now;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        self.house.move_out()
    }
}

/// What one sender does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    Singles { in_flight: usize, count: u64 },
    Batches { batch: usize, count: u64 },
}

impl Load {
    /// Sends everything, waits for all receipts and notes them.
    pub(super) async fn send(self, producer: &Producer, bodies: &Bodies, ledger: &mut Ledger) -> Result<()> {
        match self {
            Self::Singles { in_flight: 1, count } => send_one_by_one(producer, bodies, ledger, count).await,
            Self::Singles { in_flight, count } => send_singles(producer, bodies, ledger, in_flight, count).await,
            Self::Batches { batch, count } => send_batches(producer, bodies, ledger, batch, count).await,
        }
    }
}

async fn send_one_by_one(producer: &Producer, bodies: &Bodies, ledger: &mut Ledger, count: u64) -> Result<()> {
    let first = ledger.end();
    for message in first..first + count {
        let receipt = producer.send(Message::new(bodies.body(message))).await?;
        note(ledger, &receipt, message)?;
    }
    Ok(())
}

async fn send_singles(
    producer: &Producer,
    bodies: &Bodies,
    ledger: &mut Ledger,
    in_flight: usize,
    count: u64,
) -> Result<()> {
    let first = ledger.end();
    let mut pending = VecDeque::with_capacity(in_flight);
    for message in first..first + count {
        if pending.len() == in_flight
            && let Some((oldest, receipt)) = pending.pop_front()
        {
            note(ledger, &receipt.await?, oldest)?;
        }
        let receipt = producer.enqueue(Message::new(bodies.body(message))).map_err(|rejected| rejected.error)?;
        pending.push_back((message, receipt));
    }
    for (message, receipt) in pending {
        note(ledger, &receipt.await?, message)?;
    }
    Ok(())
}

async fn send_batches(
    producer: &Producer,
    bodies: &Bodies,
    ledger: &mut Ledger,
    batch: usize,
    count: u64,
) -> Result<()> {
    let (mut first, mut left) = (ledger.end(), count);
    let mut pending = FuturesOrdered::new();
    while left > 0 || !pending.is_empty() {
        while left > 0 && pending.len() < BATCHES_IN_FLIGHT {
            let messages = (first..first + batch as u64).map(|n| Message::new(bodies.body(n))).collect();
            pending.push_back(async move { (first, producer.send_batch(messages).await) });
            first += batch as u64;
            left -= 1;
        }
        if let Some((message, receipts)) = pending.next().await {
            for (receipt, message) in receipts?.iter().zip(message..) {
                note(ledger, receipt, message)?;
            }
        }
    }
    Ok(())
}

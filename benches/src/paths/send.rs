//! Sends through the actors without waiting for the disk.

use std::collections::VecDeque;
use std::time::Duration;

use cuemq::{AckLevel, Flush, Message, Producer, Receipt};
use futures_util::stream::{FuturesOrdered, StreamExt};
use hdrhistogram::Histogram;

use super::house::{House, note};
use super::{Rig, Setting};
use crate::Result;
use crate::configuration::{BATCHES_IN_FLIGHT, Path};
use crate::limits::{HISTOGRAM_DIGITS, Spread};
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, Ledger};

pub(super) struct SendRig {
    setting: Setting,
    house: House,
}

impl SendRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let house = setting.house(Flush::Buffered)?;
        Ok(Self { setting, house })
    }
}

impl Rig for SendRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.setting.room(&self.house) == 0 {
                self.house.change_store()?;
            }
            let now = left.min(self.setting.room(&self.house));
            let configuration = self.setting.configuration;
            let load = match configuration.path {
                Path::SendSingle => Load::Singles { in_flight: configuration.parameter, count: now },
                _ => Load::Batches { batch: configuration.parameter, in_flight: BATCHES_IN_FLIGHT, count: now },
            };
            time += send(&mut self.house, load)?;
            left -= now;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        self.house.move_out()
    }
}

/// Sends a load through a broker, waits for its receipts and notes them; returns the time that took.
pub(crate) fn send(house: &mut House, load: Load) -> Result<Duration> {
    let (producer, level) = (house.producer()?, house.level());
    let mut ledger = std::mem::take(&mut house.ledger);
    let watch = Stopwatch::start();
    house.block_on(load.send(&producer, &house.bodies, &mut ledger, level))?;
    let time = watch.elapsed();
    house.ledger = ledger;
    Ok(time)
}

/// Sends one message after the other, and returns how long each took from the send to its receipt.
pub(crate) fn send_timed(house: &mut House, messages: u64) -> Result<Spread> {
    let (producer, level) = (house.producer()?, house.level());
    let mut times = Histogram::<u64>::new(HISTOGRAM_DIGITS)?;
    let first = house.ledger.end();
    for number in first..first + messages.max(1) {
        let message = Message::new(house.bodies.body(number));
        let watch = Stopwatch::start();
        let receipt = house.block_on(producer.send(message))?;
        times.record(u64::try_from(watch.elapsed().as_nanos())?)?;
        note(&mut house.ledger, &receipt, number, level)?;
    }
    Ok(Spread::of_histogram(&times))
}

/// What one sender does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    Singles { in_flight: usize, count: u64 },
    Batches { batch: usize, in_flight: usize, count: u64 },
}

impl Load {
    /// Messages in all.
    pub(super) fn messages(self) -> u64 {
        match self {
            Self::Singles { count, .. } => count,
            Self::Batches { batch, count, .. } => batch as u64 * count,
        }
    }

    /// Sends everything, waits for all receipts and notes them, each of which has to promise this level.
    pub(super) async fn send(
        self,
        producer: &Producer,
        bodies: &Bodies,
        ledger: &mut Ledger,
        level: AckLevel,
    ) -> Result<()> {
        let note = |ledger: &mut Ledger, receipt: &Receipt, message| note(ledger, receipt, message, level);
        match self {
            Self::Singles { in_flight: 1, count } => send_one_by_one(producer, bodies, ledger, note, count).await,
            Self::Singles { in_flight, count } => send_singles(producer, bodies, ledger, note, in_flight, count).await,
            Self::Batches { batch, in_flight, count } => {
                send_batches(producer, bodies, ledger, note, (batch, in_flight), count).await
            }
        }
    }
}

/// Checks and notes a receipt.
trait Note: Fn(&mut Ledger, &Receipt, u64) -> Result<()> {}

impl<N: Fn(&mut Ledger, &Receipt, u64) -> Result<()>> Note for N {}

async fn send_one_by_one(
    producer: &Producer,
    bodies: &Bodies,
    ledger: &mut Ledger,
    note: impl Note,
    count: u64,
) -> Result<()> {
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
    note: impl Note,
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
    note: impl Note,
    (batch, in_flight): (usize, usize),
    count: u64,
) -> Result<()> {
    let (mut first, mut left) = (ledger.end(), count);
    let mut pending = FuturesOrdered::new();
    while left > 0 || !pending.is_empty() {
        while left > 0 && pending.len() < in_flight {
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

//! The whole way of a message through the actors: produced, delivered to a member of a group, acknowledged.

use std::time::Duration;

use cuemq::{Consumer, Flush, PopConsumer, Popped, Received};
use futures_util::StreamExt;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::try_join;

use super::house::House;
use super::send::Load;
use super::{Rig, Setting};
use crate::Result;
use crate::configuration::{BATCHES_IN_FLIGHT, SINGLES_IN_FLIGHT};
use crate::stopwatch::Stopwatch;
use crate::workload::Bodies;

/// The group's name.
pub(crate) const GROUP: &str = "bench";
/// Messages that the member takes at once.
const TAKE_MESSAGES: usize = 256;
/// Pops that are under way at the same time.
const POPS_IN_FLIGHT: usize = 16;
/// How long a pop waits for the next message before it is asked for again.
const POP_WAIT: Duration = Duration::from_secs(5);

pub(super) struct EndToEndRig {
    setting: Setting,
    // Before the broker: it leaves its group first.
    consumer: Option<Consumer>,
    house: House,
}

impl EndToEndRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let house = setting.house(Flush::Buffered)?;
        Ok(Self { setting, consumer: Some(house.consumer(GROUP)?), house })
    }

    fn leave(&mut self) -> Result<()> {
        self.consumer = None;
        check_all_acknowledged(&self.house)
    }
}

/// Checks that the group has nothing left.
pub(crate) fn check_all_acknowledged(house: &House) -> Result<()> {
    let lag = house.lag(GROUP)?;
    if lag != 0 {
        return Err(format!("{lag} messages of the group are not acknowledged").into());
    }
    Ok(())
}

/// Sends a load through a broker while a member of a group takes, checks and acknowledges it; returns the time until
/// both were done.
pub(crate) fn transfer(house: &mut House, consumer: &mut Consumer, load: Load) -> Result<Duration> {
    transfer_to(house, load, async |bodies, first, end| consume(consumer, bodies, first, end).await)
}

/// The same with a pop consumer: each message under a receipt of its own.
pub(crate) fn transfer_by_pop(house: &mut House, consumer: &PopConsumer, load: Load) -> Result<Duration> {
    transfer_to(house, load, async |bodies, first, end| pop(consumer, bodies, first, end).await)
}

fn transfer_to(
    house: &mut House,
    load: Load,
    take: impl AsyncFnOnce(&Bodies, u64, u64) -> Result<()>,
) -> Result<Duration> {
    let (producer, level) = (house.producer()?, house.level());
    let mut ledger = std::mem::take(&mut house.ledger);
    let (first, bodies) = (ledger.end(), &house.bodies);
    let end = first + load.messages();
    let watch = Stopwatch::start();
    house.block_on(async {
        try_join!(load.send(&producer, bodies, &mut ledger, level), take(bodies, first, end)).map(drop)
    })?;
    let time = watch.elapsed();
    house.ledger = ledger;
    Ok(time)
}

impl Rig for EndToEndRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.setting.room(&self.house) == 0 {
                self.leave()?;
                self.house.change_store()?;
                self.consumer = Some(self.house.consumer(GROUP)?);
            }
            let now = left.min(self.setting.room(&self.house));
            let load = match self.setting.configuration.parameter {
                1 => Load::Singles { in_flight: SINGLES_IN_FLIGHT, count: now },
                batch => Load::Batches { batch, in_flight: BATCHES_IN_FLIGHT, count: now },
            };
            let consumer = self.consumer.as_mut().ok_or("the consumer has left")?;
            time += transfer(&mut self.house, consumer, load)?;
            left -= now;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        self.leave()?;
        self.house.move_out()
    }
}

/// Takes messages `first..end` in order, checks and acknowledges them. One sender to one queue: offset and message
/// have the same number.
async fn consume(consumer: &mut Consumer, bodies: &Bodies, first: u64, end: u64) -> Result<()> {
    let mut next = first;
    while next < end {
        let batch = consumer.next_messages(TAKE_MESSAGES).await?;
        for received in &batch {
            check(received, bodies, next)?;
            next += 1;
        }
        if next == end {
            // Acknowledgements are stored in order: the last one stands for all.
            batch.ack().await?;
        } else {
            batch.ack_soon();
        }
    }
    Ok(())
}

/// Pops messages `first..end`, which come in order as long as none fails, checks and acknowledges them. Some pops are under
/// way at any time, as with several consumers, and so are the acknowledgements of those before.
async fn pop(consumer: &PopConsumer, bodies: &Bodies, first: u64, end: u64) -> Result<()> {
    let (mut next, mut asked) = (first, first);
    let (mut pops, mut acks) = (FuturesOrdered::new(), FuturesUnordered::new());
    while next < end {
        while pops.len() < POPS_IN_FLIGHT && asked < end {
            // A pop may bring fewer: those are asked for once more.
            let most = TAKE_MESSAGES.min(usize::try_from(end - asked)?);
            asked += most as u64;
            pops.push_back(async move { (most, consumer.pop(most, POP_WAIT).await) });
        }
        tokio::select! {
            biased;
            Some(acked) = acks.next() => all_good(acked)?,
            Some((most, popped)) = pops.next() => {
                let popped: Vec<Popped> = popped?;
                asked -= (most - popped.len()) as u64;
                for message in &popped {
                    check(message, bodies, next)?;
                    next += 1;
                }
                acks.push(async move { consumer.ack_messages(&popped).await });
            }
        }
    }
    while let Some(acked) = acks.next().await {
        all_good(acked)?;
    }
    Ok(())
}

fn all_good(acked: Vec<cuemq::Result<()>>) -> Result<()> {
    Ok(acked.into_iter().collect::<cuemq::Result<()>>()?)
}

fn check(received: &Received, bodies: &Bodies, message: u64) -> Result<()> {
    if received.offset().get() != message {
        return Err(format!("offset {} was delivered where {message} belongs", received.offset()).into());
    }
    bodies.check(message, received.body())
}

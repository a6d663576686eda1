//! The whole way of a message through the actors: produced, delivered to a member of a group, acknowledged.

use std::time::Duration;

use cuemq::{Consumer, Flush};
use tokio::try_join;

use super::house::House;
use super::send::Load;
use super::{Rig, Setting};
use crate::Result;
use crate::configuration::SINGLES_IN_FLIGHT;
use crate::stopwatch::Stopwatch;
use crate::workload::Bodies;

const GROUP: &str = "bench";
/// Messages that the member takes at once.
const TAKE_MESSAGES: usize = 256;

pub(super) struct EndToEndRig {
    // Before the broker: it leaves its group first.
    consumer: Option<Consumer>,
    house: House,
}

impl EndToEndRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let house = House::new(setting, Flush::Buffered)?;
        Ok(Self { consumer: Some(house.consumer(GROUP)?), house })
    }

    fn leave(&mut self) -> Result<()> {
        self.consumer = None;
        let lag = self.house.lag(GROUP)?;
        if lag != 0 {
            return Err(format!("{lag} messages of the group are not acknowledged").into());
        }
        Ok(())
    }

    fn pass(&mut self, iterations: u64) -> Result<Duration> {
        let batch = self.house.setting.configuration.parameter;
        let load = match batch {
            1 => Load::Singles { in_flight: SINGLES_IN_FLIGHT, count: iterations },
            _ => Load::Batches { batch, count: iterations },
        };
        let producer = self.house.producer()?;
        let mut ledger = std::mem::take(&mut self.house.ledger);
        let (first, bodies) = (ledger.end(), &self.house.bodies);
        let end = first + iterations * batch as u64;
        let consumer = self.consumer.as_mut().ok_or("the consumer has left")?;
        let watch = Stopwatch::start();
        self.house.block_on(async {
            try_join!(load.send(&producer, bodies, &mut ledger), consume(consumer, bodies, first, end)).map(drop)
        })?;
        let time = watch.elapsed();
        self.house.ledger = ledger;
        Ok(time)
    }
}

impl Rig for EndToEndRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.house.room() == 0 {
                self.leave()?;
                self.house.change_store()?;
                self.consumer = Some(self.house.consumer(GROUP)?);
            }
            let now = left.min(self.house.room());
            time += self.pass(now)?;
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
        for delivery in consumer.next_batch(TAKE_MESSAGES).await? {
            if delivery.offset().get() != next {
                return Err(format!("offset {} was delivered where {next} belongs", delivery.offset()).into());
            }
            bodies.check(next, delivery.body())?;
            next += 1;
            if next == end {
                // Acknowledgements are stored in order: the last one stands for all.
                delivery.ack().await?;
            } else {
                delivery.ack_soon();
            }
        }
    }
    Ok(())
}

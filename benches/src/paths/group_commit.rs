//! Many writers, each waiting until its message survives a power cut before it sends the next one.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cuemq::{Flush, Message, Producer, Receipt};

use super::house::{House, note};
use super::{Rig, Setting};
use crate::Result;
use crate::stopwatch::Stopwatch;
use crate::workload::Bodies;

pub(super) struct GroupCommitRig {
    setting: Setting,
    house: House,
}

impl GroupCommitRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let house = setting.house(Flush::Durable)?;
        Ok(Self { setting, house })
    }
}

impl Rig for GroupCommitRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.setting.room(&self.house) == 0 {
                self.house.change_store()?;
            }
            let now = left.min(self.setting.room(&self.house));
            let writers = Writers { count: self.setting.configuration.parameter as u64, batch: 1 };
            time += writers.write(&mut self.house, now)?;
            left -= now;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        self.house.move_out()
    }
}

/// Writers that wait for their receipts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writers {
    /// How many there are.
    pub(crate) count: u64,
    /// Messages that each sends at once.
    pub(crate) batch: u64,
}

impl Writers {
    /// Each writer sends so many batches, one after the other; returns the time until all have all their receipts.
    pub(crate) fn write(self, house: &mut House, rounds: u64) -> Result<Duration> {
        let (producer, first, level) = (house.producer()?, house.ledger.end(), house.level());
        let each = rounds * self.batch;
        let bodies = &house.bodies;
        let (time, receipts) = house.block_on(async {
            let watch = Stopwatch::start();
            let tasks: Vec<_> = (0..self.count)
                .map(|writer| first + writer * each..first + (writer + 1) * each)
                .map(|messages| tokio::spawn(write(producer.clone(), Arc::clone(bodies), messages, self.batch)))
                .collect();
            let mut receipts = Vec::with_capacity(tasks.len());
            for task in tasks {
                receipts.push(task.await??);
            }
            Result::Ok((watch.elapsed(), receipts))
        })?;
        for (receipt, message) in receipts.iter().flatten().zip(first..) {
            note(&mut house.ledger, receipt, message, level)?;
        }
        Ok(time)
    }
}

async fn write(producer: Producer, bodies: Arc<Bodies>, messages: Range<u64>, batch: u64) -> Result<Vec<Receipt>> {
    let mut receipts = Vec::with_capacity(usize::try_from(messages.end - messages.start)?);
    let mut next = messages.start;
    while next < messages.end {
        if batch == 1 {
            receipts.push(producer.send(Message::new(bodies.body(next))).await?);
        } else {
            let batch = (next..next + batch).map(|message| Message::new(bodies.body(message))).collect();
            receipts.extend(producer.send_batch(batch).await?);
        }
        next += batch;
    }
    Ok(receipts)
}

//! Many writers, each waiting until its message survives a power cut before it sends the next one.

use std::sync::Arc;
use std::time::Duration;

use cuemq::{AckLevel, Flush, Message, Producer, Receipt};

use super::house::{House, note};
use super::{Rig, Setting};
use crate::Result;
use crate::stopwatch::Stopwatch;
use crate::workload::Bodies;

pub(super) struct GroupCommitRig {
    house: House,
}

impl GroupCommitRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        Ok(Self { house: House::new(setting, Flush::Durable)? })
    }

    /// Each writer sends `rounds` messages.
    fn write(&mut self, rounds: u64) -> Result<Duration> {
        let writers = self.house.setting.configuration.parameter as u64;
        let (producer, first) = (self.house.producer()?, self.house.ledger.end());
        let bodies = &self.house.bodies;
        let (time, receipts) = self.house.block_on(async {
            let watch = Stopwatch::start();
            let tasks: Vec<_> = (0..writers)
                .map(|writer| write_one_by_one(producer.clone(), Arc::clone(bodies), first + writer * rounds, rounds))
                .map(tokio::spawn)
                .collect();
            let mut receipts = Vec::with_capacity(tasks.len());
            for task in tasks {
                receipts.push(task.await??);
            }
            Result::Ok((watch.elapsed(), receipts))
        })?;
        for (receipt, message) in receipts.iter().flatten().zip(first..) {
            if receipt.level != AckLevel::Durable {
                return Err(format!("message {message} was acknowledged as {}", receipt.level).into());
            }
            note(&mut self.house.ledger, receipt, message)?;
        }
        Ok(time)
    }
}

impl Rig for GroupCommitRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.house.room() == 0 {
                self.house.change_store()?;
            }
            let now = left.min(self.house.room());
            time += self.write(now)?;
            left -= now;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        self.house.move_out()
    }
}

async fn write_one_by_one(producer: Producer, bodies: Arc<Bodies>, first: u64, rounds: u64) -> Result<Vec<Receipt>> {
    let mut receipts = Vec::with_capacity(usize::try_from(rounds)?);
    for message in first..first + rounds {
        receipts.push(producer.send(Message::new(bodies.body(message))).await?);
    }
    Ok(receipts)
}

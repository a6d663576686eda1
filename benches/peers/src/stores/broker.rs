//! CueMQ as programs use it: handles, actors and all, over the map engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cuemq::{AckLevel, Broker, Message, PendingReceipt, Producer, PullConsumer, Receipt, Received, TopicSpec};
use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;
use cuemq_benches::stopwatch::Stopwatch;
use cuemq_benches::store::EngineKind;
use cuemq_benches::workload::TOPIC;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::unconstrained;

use super::mmap::MmapStore;
use crate::Result;
use crate::load::{Appended, Load};
use crate::store::{Flush, Page, Store, Writers};

/// Single messages on their way at the same time, where appends need not wait for each other.
pub(crate) const SINGLES_IN_FLIGHT: usize = 256;
/// Batches on their way at the same time, where appends need not wait for each other.
pub(crate) const BATCHES_IN_FLIGHT: usize = 4;
/// How long a fetch waits for the next message. The last page has to wait for it in vain, so it is nothing.
const PATIENCE: Duration = Duration::ZERO;

pub(crate) struct BrokerStore {
    runtime: Runtime,
    broker: Broker,
    producer: Producer,
    reader: Option<PullConsumer>,
    folder: TempDir,
    flush: Flush,
    /// Whether the next append waits for the receipt of the one before.
    alone: bool,
}

impl BrokerStore {
    pub(crate) fn open(place: &Place, flush: Flush, alone: bool) -> Result<Self> {
        let folder = place.folder()?;
        let runtime = Builder::new_current_thread().build()?;
        let promise = match flush {
            Flush::Buffered => cuemq::Flush::Buffered,
            Flush::Durable => cuemq::Flush::Durable,
        };
        let profile = Profile::quick();
        let opening = EngineKind::Mmap.open_broker(folder.path(), &profile, promise);
        let (broker, producer) = runtime.block_on(async {
            let broker = opening.await?;
            broker.create_topic(TopicSpec::new(TOPIC).queues(1)).await?;
            let producer = broker.producer(TOPIC).await?;
            Result::Ok((broker, producer))
        })?;
        Ok(Self { runtime, broker, producer, reader: None, folder, flush, alone })
    }

    async fn send_alone(&self, load: &Load<'_>) -> Result<Appended> {
        let mut pace = load.start();
        while let Some(first) = pace.next_batch() {
            if load.batch == 1 {
                let receipt = self.producer.send(Message::new(load.bodies.body(first))).await?;
                self.check(&receipt, first)?;
            } else {
                let receipts = self.producer.send_batch(messages(load, first)).await?;
                self.check_all(&receipts, first)?;
            }
        }
        Ok(pace.end())
    }

    async fn send_singles(&self, load: &Load<'_>) -> Result<Appended> {
        let mut pace = load.start();
        let mut pending: VecDeque<(u64, PendingReceipt)> = VecDeque::with_capacity(SINGLES_IN_FLIGHT);
        while let Some(message) = pace.next_batch() {
            if pending.len() == SINGLES_IN_FLIGHT
                && let Some((oldest, receipt)) = pending.pop_front()
            {
                self.check(&receipt.await?, oldest)?;
            }
            let sent = self.producer.enqueue(Message::new(load.bodies.body(message)));
            pending.push_back((message, sent.map_err(|rejected| rejected.error)?));
        }
        for (message, receipt) in pending {
            self.check(&receipt.await?, message)?;
        }
        Ok(pace.end())
    }

    async fn send_batches(&self, load: &Load<'_>) -> Result<Appended> {
        let mut pace = load.start();
        let mut pending = FuturesOrdered::new();
        loop {
            while pending.len() < BATCHES_IN_FLIGHT
                && let Some(first) = pace.next_batch()
            {
                let messages = messages(load, first);
                pending.push_back(async move { (first, self.producer.send_batch(messages).await) });
            }
            let Some((first, receipts)) = pending.next().await else { return Ok(pace.end()) };
            self.check_all(&receipts?, first)?;
        }
    }

    fn check_all(&self, receipts: &[Receipt], first: u64) -> Result<()> {
        receipts.iter().zip(first..).try_for_each(|(receipt, message)| self.check(receipt, message))
    }

    /// One sender of one queue: the messages have to land in the order in which they were sent.
    fn check(&self, receipt: &Receipt, message: u64) -> Result<()> {
        let landed = receipt.offset.map(|offset| offset.get());
        if landed != Some(message) {
            return Err(format!("message {message} landed at offset {landed:?}").into());
        }
        self.check_level(receipt)
    }

    fn check_level(&self, receipt: &Receipt) -> Result<()> {
        if self.flush == Flush::Durable && receipt.level != AckLevel::Durable {
            return Err(format!("a message was acknowledged as {}", receipt.level).into());
        }
        Ok(())
    }
}

fn messages(load: &Load<'_>, first: u64) -> Vec<Message> {
    (first..).take(load.batch).map(|message| Message::new(load.bodies.body(message))).collect()
}

impl Store for BrokerStore {
    fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
        // A sender that shares its thread with nobody: with tokio's budget, batches that are in flight together would
        // change places.
        if self.alone || self.flush == Flush::Durable {
            self.runtime.block_on(unconstrained(self.send_alone(load)))
        } else if load.batch == 1 {
            self.runtime.block_on(unconstrained(self.send_singles(load)))
        } else {
            self.runtime.block_on(unconstrained(self.send_batches(load)))
        }
    }

    fn rewind(&mut self) -> Result<()> {
        let Self { runtime, broker, reader, .. } = self;
        runtime.block_on(async {
            let mut fresh = broker.pull_consumer("check").await?;
            fresh.assign_topic(TOPIC).await?;
            *reader = Some(fresh);
            Ok(())
        })
    }

    fn fetch(&mut self, _: u64, messages: usize) -> Result<Box<dyn Page>> {
        let Self { runtime, reader, .. } = self;
        let reader = reader.as_mut().ok_or("a read begins with a rewind")?;
        let page = runtime.block_on(unconstrained(reader.poll(messages, PATIENCE)))?;
        Ok(Box::new(Polled(page)))
    }

    fn group_commit(&mut self, writers: &Writers<'_>) -> Result<Option<Appended>> {
        let (rounds, shared) = (writers.rounds, Arc::new(writers.bodies.clone()));
        let done = self.runtime.block_on(async {
            let watch = Stopwatch::start();
            let tasks: Vec<_> = (0..writers.writers)
                .map(|writer| {
                    let (producer, bodies) = (self.producer.clone(), Arc::clone(&shared));
                    let own = writers.of(writer);
                    tokio::spawn(async move {
                        let mut receipts = Vec::with_capacity(usize::try_from(rounds)?);
                        for message in own {
                            receipts.push(producer.send(Message::new(bodies.body(message))).await?);
                        }
                        Result::Ok(receipts)
                    })
                })
                .collect();
            let mut receipts = Vec::with_capacity(tasks.len());
            for task in tasks {
                receipts.push(task.await??);
            }
            let time = watch.elapsed();
            receipts.iter().flatten().try_for_each(|receipt| self.check_level(receipt))?;
            Result::Ok(Appended { messages: writers.messages(), time })
        })?;
        Ok(Some(done))
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Self { runtime, broker, producer, reader, folder, .. } = *self;
        drop((producer, reader));
        runtime.block_on(broker.shutdown())?;
        Ok(folder.close()?)
    }

    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
        let Self { runtime, broker, producer, reader, folder, flush, .. } = *self;
        drop((producer, reader));
        runtime.block_on(broker.shutdown())?;
        // What the broker acknowledged has to be what the bare engine finds.
        Ok(Box::new(MmapStore::open_in(folder, flush)?))
    }
}

struct Polled(Vec<Received>);

impl Page for Polled {
    fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.0.iter().try_for_each(|message| see(message.offset().get(), message.body()))
    }
}

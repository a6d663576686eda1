//! The driver of a broker inside this process.

use std::path::Path;

use cuemq::{Batch, Broker, Consumer, Flush, MemoryEngine, Message, Producer, TopicSpec};
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use futures_util::future::{BoxFuture, FutureExt};

use super::driver::{Driver, DriverConsumer, DriverProducer, Incoming, Outgoing, Published};
use super::workload::MAX_MESSAGE_BYTES;
use crate::Result;
use crate::store::EngineKind;

/// Messages that a consumer takes at once.
const RECEIVE_MESSAGES: usize = 256;

/// A broker with all settings as by default, but for the flush mode.
#[derive(Debug)]
pub struct EmbeddedDriver {
    broker: Broker,
    name: String,
}

impl EmbeddedDriver {
    /// Opens a broker over an engine in a directory, which the in-memory one does not use.
    ///
    /// # Errors
    /// Whatever engine or broker meet.
    pub async fn open(engine: EngineKind, flush: Flush, directory: &Path) -> Result<Self> {
        let builder = match engine {
            EngineKind::Memory => Broker::builder(MemoryEngine::new()),
            EngineKind::Mmap => Broker::builder(MmapEngine::open(directory, MmapSettings::default())?),
            EngineKind::Lsm => Broker::builder(LsmEngine::open(directory, &LsmSettings::default())?),
        };
        let broker = builder.flush(flush).auto_create_topics(false).open().await?;
        debug_assert!(broker.settings().max_body_bytes as u64 >= MAX_MESSAGE_BYTES);
        let flush = match flush {
            Flush::Durable => "durable",
            Flush::Buffered => "buffered",
        };
        Ok(Self { broker, name: format!("cuemq-{engine}-{flush}") })
    }
}

impl Driver for EmbeddedDriver {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn create_topics<'a>(&'a self, topics: &'a [String], queues: u32) -> BoxFuture<'a, Result<()>> {
        async move {
            for topic in topics {
                self.broker.create_topic(TopicSpec::new(topic).queues(queues)).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn producer<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<Box<dyn DriverProducer>>> {
        async move {
            let producer = self.broker.producer(topic).await?;
            Ok(Box::new(EmbeddedProducer(producer)) as Box<dyn DriverProducer>)
        }
        .boxed()
    }

    fn consumer<'a>(&'a self, topic: &'a str, subscription: &'a str) -> BoxFuture<'a, Result<Box<dyn DriverConsumer>>> {
        async move {
            let consumer = self.broker.consumer(subscription).subscribe(topic).build().await?;
            Ok(Box::new(EmbeddedConsumer { held: Vec::new(), consumer }) as Box<dyn DriverConsumer>)
        }
        .boxed()
    }

    fn unacknowledged<'a>(&'a self, subscription: &'a str) -> BoxFuture<'a, Result<u64>> {
        async move { Ok(self.broker.describe_group(subscription).await?.lag()) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        async move { Ok(self.broker.shutdown().await?) }.boxed()
    }
}

struct EmbeddedProducer(Producer);

impl DriverProducer for EmbeddedProducer {
    fn publish(&self, messages: Vec<Outgoing>) -> BoxFuture<'static, Published> {
        // A batch may span queues only if that costs no order: single sends keep theirs in every queue.
        let single = messages.len() == 1 || messages.iter().any(|message| message.key.is_some());
        let producer = self.0.clone();
        let messages: Vec<Message> = messages.into_iter().map(message).collect();
        if single { publish_singly(producer, messages).boxed() } else { publish_batch(producer, messages).boxed() }
    }
}

fn message(outgoing: Outgoing) -> Message {
    let message = Message::new(outgoing.body);
    match outgoing.key {
        Some(key) => message.sharding_key(key),
        None => message,
    }
}

async fn publish_batch(producer: Producer, messages: Vec<Message>) -> Published {
    let count = messages.len();
    match producer.send_batch(messages).await {
        Ok(_) => Published::default(),
        Err(error) => Published { failed: (0..count).collect(), why: Some(error.to_string()) },
    }
}

async fn publish_singly(producer: Producer, messages: Vec<Message>) -> Published {
    let pending: Vec<_> = messages.into_iter().map(|message| producer.enqueue(message)).collect();
    let mut published = Published::default();
    for (at, pending) in pending.into_iter().enumerate() {
        let outcome = match pending {
            Ok(receipt) => receipt.await.map(drop),
            Err(rejected) => Err(rejected.error),
        };
        if let Err(error) = outcome {
            published.failed.push(at);
            published.why = Some(error.to_string());
        }
    }
    published
}

struct EmbeddedConsumer {
    /// Before the consumer: what is dropped unacknowledged is settled before the consumer leaves its group.
    held: Vec<Batch>,
    consumer: Consumer,
}

impl DriverConsumer for EmbeddedConsumer {
    fn receive<'a>(&'a mut self, into: &'a mut Vec<Incoming>) -> BoxFuture<'a, Result<()>> {
        async move {
            let batch = self.consumer.next_messages(RECEIVE_MESSAGES).await?;
            into.extend(
                batch
                    .iter()
                    .map(|received| Incoming { queue: received.queue().queue.get(), body: received.body().clone() }),
            );
            self.held.push(batch);
            Ok(())
        }
        .boxed()
    }

    fn acknowledge(&mut self) {
        self.held.drain(..).for_each(Batch::ack_soon);
    }
}

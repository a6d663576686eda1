//! A broker with one topic of one queue, and the proof that it kept what its receipts say.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cuemq::{AckLevel, Broker, Consumer, Flush, PopConsumer, Producer, PullConsumer, Receipt, TopicSpec};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::unconstrained;

use crate::Result;
use crate::place::Place;
use crate::profile::Profile;
use crate::store::EngineKind;
use crate::workload::{Bodies, Ledger, TOPIC, check_queue};

/// How long a check waits for the next message before it calls it lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that one poll of a check asks for.
const POLL_MESSAGES: usize = 1024;

/// One broker over one store; it is replaced by a new one when the store is full.
pub(crate) struct House {
    engine: EngineKind,
    profile: Profile,
    place: Place,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) ledger: Ledger,
    flush: Flush,
    runtime: Runtime,
    open: Option<Open>,
    verified: u64,
}

struct Open {
    broker: Broker,
    producer: Producer,
    folder: TempDir,
}

impl House {
    pub(crate) fn new(
        engine: EngineKind,
        bodies: Arc<Bodies>,
        flush: Flush,
        profile: &Profile,
        place: &Place,
    ) -> Result<Self> {
        let (profile, place) = (profile.clone(), place.clone());
        let runtime = Builder::new_current_thread().build()?;
        let ledger = Ledger::default();
        let mut house = Self { engine, profile, place, bodies, ledger, flush, runtime, open: None, verified: 0 };
        house.move_in()?;
        Ok(house)
    }

    fn move_in(&mut self) -> Result<()> {
        let folder = self.place.folder()?;
        let opening = self.engine.open_broker(folder.path(), &self.profile, self.flush);
        let (broker, producer) = self.runtime.block_on(async {
            let broker = opening.await?;
            broker.create_topic(TopicSpec::new(TOPIC).queues(1)).await?;
            let producer = broker.producer(TOPIC).await?;
            Result::Ok((broker, producer))
        })?;
        self.open = Some(Open { broker, producer, folder });
        self.ledger = Ledger::default();
        Ok(())
    }

    fn present(&self) -> Result<&Open> {
        self.open.as_ref().ok_or_else(|| "the broker is closed".into())
    }

    pub(crate) fn broker(&self) -> Result<Broker> {
        Ok(self.present()?.broker.clone())
    }

    pub(crate) fn producer(&self) -> Result<Producer> {
        Ok(self.present()?.producer.clone())
    }

    pub(crate) fn consumer(&self, group: &str) -> Result<Consumer> {
        let broker = &self.present()?.broker;
        Ok(self.runtime.block_on(broker.consumer(group).subscribe(TOPIC).build())?)
    }

    pub(crate) fn pop_consumer(&self, group: &str) -> Result<PopConsumer> {
        let broker = &self.present()?.broker;
        Ok(self.runtime.block_on(broker.pop_consumer(group).subscribe(TOPIC).build())?)
    }

    /// Runs a load that shares its thread with nobody. Tokio's budget would send futures to the end of the line at
    /// random moments, and batches that are in flight together would change places.
    pub(crate) fn block_on<T>(&self, load: impl Future<Output = T>) -> T {
        self.runtime.block_on(unconstrained(load))
    }

    /// What receipts have to promise here.
    pub(crate) fn level(&self) -> AckLevel {
        match (self.engine, self.flush) {
            (EngineKind::Memory, _) => AckLevel::Memory,
            (_, Flush::Buffered) => AckLevel::Buffered,
            (_, Flush::Durable) => AckLevel::Durable,
        }
    }

    /// How many messages of a group are not acknowledged.
    pub(crate) fn lag(&self, group: &str) -> Result<u64> {
        Ok(self.runtime.block_on(self.present()?.broker.describe_group(group))?.lag())
    }

    /// Puts an empty store in place of the present one.
    pub(crate) fn change_store(&mut self) -> Result<()> {
        self.move_out()?;
        self.move_in()
    }

    /// Checks the store if none was checked yet, and shuts the broker down. Returns how many messages were checked.
    pub(crate) fn move_out(&mut self) -> Result<u64> {
        let Some(open) = self.open.take() else { return Ok(self.verified) };
        let engine = self.engine;
        let check = self.verified == 0;
        if check && engine == EngineKind::Memory {
            self.runtime.block_on(self.poll_all(&open.broker))?;
            self.verified = self.ledger.end();
        }
        drop(open.producer);
        if !check {
            engine.empty_files(open.folder.path())?;
        }
        self.runtime.block_on(open.broker.shutdown())?;
        if check && engine != EngineKind::Memory {
            // What was acknowledged is what another opening finds.
            let store = engine.open(open.folder.path(), &self.profile)?;
            self.verified = check_queue(&*store, &self.bodies, self.ledger.end(), |at| self.ledger.message(at))?;
            store.close()?;
        }
        Ok(self.verified)
    }

    /// Reads the topic by offset.
    pub(crate) fn reader(&self, group: &str) -> Result<PullConsumer> {
        let broker = &self.present()?.broker;
        self.runtime.block_on(reader(broker, group))
    }

    /// Reads everything back through the broker.
    async fn poll_all(&self, broker: &Broker) -> Result<()> {
        let mut reader = reader(broker, "check").await?;
        let mut next = 0;
        while next < self.ledger.end() {
            let messages = reader.poll(POLL_MESSAGES, PATIENCE).await?;
            if messages.is_empty() {
                return Err(format!("nothing came at offset {next} of {}", self.ledger.end()).into());
            }
            for message in messages {
                if message.offset().get() != next {
                    return Err(format!("offset {} comes where {next} belongs", message.offset()).into());
                }
                self.bodies.check(self.ledger.message(next)?, message.body())?;
                next += 1;
            }
        }
        Ok(())
    }
}

async fn reader(broker: &Broker, group: &str) -> Result<PullConsumer> {
    let mut reader = broker.pull_consumer(group).await?;
    reader.assign_topic(TOPIC).await?;
    Ok(reader)
}

/// Notes the receipt of a message, which has to promise this level.
pub(crate) fn note(ledger: &mut Ledger, receipt: &Receipt, message: u64, level: AckLevel) -> Result<()> {
    if receipt.level != level {
        return Err(format!("message {message} was acknowledged as {}, not as {level}", receipt.level).into());
    }
    let offset = receipt.offset.ok_or("a receipt names no offset")?;
    ledger.note(offset, message)
}

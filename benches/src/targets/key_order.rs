//! Delivery in order by key beside a handler that hangs: what everybody else notices of it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cuemq::{AckLevel, Broker, Flush, Message, Order, Producer, Received, TopicSpec, WorkerHandle};
use hdrhistogram::Histogram;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::Context;
use super::row::{Goal, Pair, Row, Subject};
use crate::Result;
use crate::limits::{HISTOGRAM_DIGITS, Spread};
use crate::paths::end_to_end::GROUP;
use crate::stopwatch::{Stopwatch, idle};
use crate::store::EngineKind;
use crate::workload::{Bodies, TOPIC};

const BODY_BYTES: usize = 256;
const QUEUES: u32 = 8;
const WORKERS: usize = 64;
const KEYS: u64 = 10_000;
/// The key whose first message hangs.
const HANGING: u64 = 0;
/// Messages sent at once, and the pause after them: 10,000 messages a second.
const BURST: u64 = 20;
const PAUSE: Duration = Duration::from_millis(2);
/// How long a message may take before it is called lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages are this many times those of the other latency rows.
const MESSAGES_FACTOR: u64 = 3;
/// A key has at least so many, or there is nothing to keep in order.
const MESSAGES_PER_KEY: u64 = 2;
/// The property that says which message it is.
const NUMBER: &str = "number";

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let bodies = Arc::new(Bodies::new(BODY_BYTES));
    let (mut tails, mut verified) = (Vec::new(), 0);
    for _ in 0..context.scale.pairs {
        let free = pass(context, &bodies, false)?;
        let beside = pass(context, &bodies, true)?;
        tails.push(Pair { value: beside.times.p99_us, limit: free.times.p99_us });
        verified += free.verified + beside.verified;
    }
    let subject = Subject {
        number: 13,
        name: "send to handler in order by key, beside a key that hangs, p99".into(),
        unit: "us",
        flush: "buffered",
        limit: "p99 without it",
        goal: Goal::AtMost(2.0),
        note: format!(
            "{WORKERS} workers, {} keys in {QUEUES} queues, 10,000 messages a second; one handler hangs from first to last",
            keys(messages(context))
        ),
    };
    Ok(vec![subject.row(tails, verified)])
}

fn messages(context: &Context) -> u64 {
    context.scale.latency_messages * MESSAGES_FACTOR
}

fn keys(messages: u64) -> u64 {
    KEYS.min(messages / MESSAGES_PER_KEY)
}

/// What a handler says of a message.
struct Arrival {
    message: u64,
    at: Duration,
    sound: bool,
}

struct Outcome {
    times: Spread,
    verified: u64,
}

/// One broker, one group, one load.
fn pass(context: &Context, bodies: &Arc<Bodies>, hangs: bool) -> Result<Outcome> {
    let folder = context.place.folder()?;
    let runtime = Builder::new_current_thread().build()?;
    let messages = messages(context);
    let mut line = runtime.block_on(async {
        let broker = EngineKind::Mmap.open_broker(folder.path(), &context.profile, Flush::Buffered).await?;
        broker.create_topic(TopicSpec::new(TOPIC).queues(QUEUES)).await?;
        Line::new(broker, Arc::clone(bodies), hangs, keys(messages)).await
    })?;
    let sent = line.send(&runtime, messages)?;
    let times = line.collect(&sent)?;
    line.end(&runtime)?;
    Ok(Outcome { times, verified: messages })
}

/// A sender and its handlers.
struct Line {
    broker: Broker,
    producer: Producer,
    bodies: Arc<Bodies>,
    worker: WorkerHandle,
    clock: Stopwatch,
    arrivals: Receiver<Arrival>,
    release: watch::Sender<bool>,
    keys: u64,
    hangs: bool,
    /// The last message of each key.
    last: HashMap<u64, u64>,
}

impl Line {
    async fn new(broker: Broker, bodies: Arc<Bodies>, hangs: bool, keys: u64) -> Result<Self> {
        let (clock, (arrived, arrivals)) = (Stopwatch::start(), channel());
        let (release, released) = watch::channel(!hangs);
        let consumer = broker.consumer(GROUP).subscribe(TOPIC).order(Order::Key).build().await?;
        let checked = Arc::clone(&bodies);
        let worker = consumer.spawn(WORKERS, move |received| {
            let (arrived, released) = (arrived.clone(), released.clone());
            handle(received, clock, Arc::clone(&checked), keys, arrived, released)
        });
        let producer = broker.producer(TOPIC).await?;
        let last = HashMap::new();
        Ok(Self { broker, producer, bodies, worker, clock, arrivals, release, keys, hangs, last })
    }

    /// Sends at an even pace, whatever becomes of it; returns when each message was sent.
    fn send(&self, runtime: &Runtime, messages: u64) -> Result<Vec<Duration>> {
        let (mut sent, mut receipts, begin) = (Vec::new(), Vec::new(), self.clock.elapsed());
        for message in 0..messages {
            if message % BURST == 0 {
                idle((begin + PAUSE * u32::try_from(message / BURST)?).saturating_sub(self.clock.elapsed()));
            }
            let key = (message % self.keys).to_string();
            let body = Message::new(self.bodies.body(message)).sharding_key(key).property(NUMBER, message.to_string());
            sent.push(self.clock.elapsed());
            receipts.push(self.producer.enqueue(body).map_err(|rejected| rejected.error)?);
        }
        runtime.block_on(async {
            for receipt in receipts {
                if receipt.await?.level != AckLevel::Buffered {
                    return Err("a receipt promises something else".into());
                }
            }
            Ok(sent)
        })
    }

    /// The times of all but the hanging key's; then lets that go, and waits for the rest.
    fn collect(&mut self, sent: &[Duration]) -> Result<Spread> {
        let mut times = Histogram::<u64>::new(HISTOGRAM_DIGITS)?;
        let all = sent.len() as u64;
        let hanging = all.div_ceil(self.keys);
        for _ in 0..all - hanging {
            let (message, at) = loop {
                let (message, at) = self.next()?;
                if message % self.keys != HANGING {
                    break (message, at);
                }
                if self.hangs {
                    return Err(format!("message {message} of the hanging key was done").into());
                }
            };
            times.record(u64::try_from((at - sent[usize::try_from(message)?]).as_nanos())?)?;
        }
        self.release.send_replace(true);
        while self.last.get(&HANGING).is_none_or(|last| last + self.keys < all) {
            self.next()?;
        }
        Ok(Spread::of_histogram(&times))
    }

    /// The next message, which has to be the next of its key.
    fn next(&mut self) -> Result<(u64, Duration)> {
        let Arrival { message, at, sound } = self.arrivals.recv_timeout(PATIENCE)?;
        let key = message % self.keys;
        let due = self.last.insert(key, message).map_or(key, |last| last + self.keys);
        if message != due || !sound {
            return Err(format!("message {message} arrived in place of {due}, or altered").into());
        }
        Ok((message, at))
    }

    fn end(self, runtime: &Runtime) -> Result<()> {
        self.worker.stop();
        runtime.block_on(async {
            self.worker.join().await?;
            let lag = self.broker.describe_group(GROUP).await?.lag();
            if lag != 0 {
                return Err(format!("{lag} messages of the group are not acknowledged").into());
            }
            drop(self.producer);
            Ok(self.broker.shutdown().await?)
        })
    }
}

/// Tells of a message; one of the hanging key waits to be released.
async fn handle(
    received: Received,
    clock: Stopwatch,
    bodies: Arc<Bodies>,
    keys: u64,
    arrived: Sender<Arrival>,
    mut released: watch::Receiver<bool>,
) -> std::result::Result<(), Infallible> {
    let at = clock.elapsed();
    let number = received.property(NUMBER).and_then(|number| number.parse().ok());
    let message = number.unwrap_or(u64::MAX);
    let sound = bodies.check(message, received.body()).is_ok();
    if message % keys == HANGING {
        // The sender is dropped only when the pass has failed.
        let _ = released.wait_for(|released| *released).await;
    }
    // Nobody listens any more when the other side has failed.
    let _ = arrived.send(Arrival { message, at, sound });
    Ok(())
}

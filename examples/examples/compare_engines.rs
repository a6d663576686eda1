//! The same work on every engine, checked message by message.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal talks to it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use cuemq::{AckLevel, Broker, Message, Receipt, TopicSpec};
use cuemq_examples::histogram::{Latencies, millis};
use cuemq_examples::pipeline::Pipeline;
use cuemq_examples::stopwatch::{Stopwatch, per_second};
use cuemq_examples::store::{EngineKind, FlushKind, StoreArguments};
use cuemq_examples::table::{count, print_grid};

/// The topic of the messages.
const TOPIC: &str = "work";
/// Its queues.
const QUEUES: u32 = 4;
/// Messages read at once.
const PAGE_MESSAGES: usize = 1000;
/// Bytes at the start of a body that hold the message's number.
const NUMBER_BYTES: usize = 8;

/// Sends, reads and reopens the same messages on every engine, and checks each of them.
#[derive(Debug, Parser)]
struct Arguments {
    /// Messages per engine and flush mode
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    messages: u64,
    /// Bytes of each body
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    body_bytes: u32,
    /// Most messages sent and not yet acknowledged
    #[arg(long, default_value_t = 512)]
    in_flight: usize,
    /// Where temporary data directories are made; the disk that is measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

/// What one engine did.
struct Measured {
    engine: EngineKind,
    flush: FlushKind,
    level: AckLevel,
    send: Duration,
    latencies: Latencies,
    fetch: Duration,
    /// `None` when nothing is left to reopen.
    reopen: Option<Duration>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let runs = [
        (EngineKind::Memory, FlushKind::Durable),
        (EngineKind::Mmap, FlushKind::Buffered),
        (EngineKind::Lsm, FlushKind::Buffered),
        (EngineKind::Mmap, FlushKind::Durable),
        (EngineKind::Lsm, FlushKind::Durable),
    ];
    let mut measured = Vec::new();
    for (engine, flush) in runs {
        eprintln!("{engine:?}, {flush:?} ...");
        measured.push(measure(&arguments, engine, flush).await?);
    }
    let rows: Vec<_> = measured.iter().map(|measured| measured.row(arguments.messages)).collect();
    let header = ["engine", "acks survive", "send msg/s", "send p50", "send p99", "fetch msg/s", "reopen", "checked"];
    print_grid(header, &rows);
    println!(
        "{} messages of {} bytes to {QUEUES} queues per line, at most {} unacknowledged, one producer, one run each",
        count(arguments.messages),
        arguments.body_bytes,
        arguments.in_flight
    );
    println!("next: cargo run --release --example quickstart -- --engine lsm --dir ./cuemq-data-lsm");
    Ok(())
}

async fn measure(arguments: &Arguments, engine: EngineKind, flush: FlushKind) -> Result<Measured> {
    let directory = temporary(&arguments.dir)?;
    let store = StoreArguments { engine, dir: directory.path().join("store"), flush };
    let broker = store.open().await?;
    let (send, latencies, level) = send(arguments, &broker).await?;
    let fetch = check(arguments, &broker).await?;
    let mut reopen = None;
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    if engine != EngineKind::Memory {
        let stopwatch = Stopwatch::start();
        let broker = store.open().await?;
        reopen = Some(stopwatch.elapsed());
        // All of it is there after the restart too; the first reading is the one that is shown.
        check(arguments, &broker).await?;
        broker.shutdown().await.context("the broker could not be closed cleanly")?;
    }
    Ok(Measured { engine, flush, level, send, latencies, fetch, reopen })
}

fn temporary(dir: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix(".cuemq-compare-").tempdir_in(dir);
    made.with_context(|| format!("no temporary directory in {}: give another one with --dir", dir.display()))
}

async fn send(arguments: &Arguments, broker: &Broker) -> Result<(Duration, Latencies, AckLevel)> {
    broker.create_topic(TopicSpec::new(TOPIC).queues(QUEUES)).await?;
    let mut level = AckLevel::Durable;
    let producer = broker.producer(TOPIC).await?;
    let mut pipeline = Pipeline::new(producer, arguments.in_flight, |(), receipt: &Receipt| {
        level = level.min(receipt.level);
        Ok(())
    });
    let stopwatch = Stopwatch::start();
    for number in 0..arguments.messages {
        pipeline.send(Message::new(body(number, arguments.body_bytes)), ()).await?;
    }
    let (sent, latencies) = pipeline.finish().await?;
    let took = stopwatch.elapsed();
    ensure!(sent == arguments.messages, "{sent} of {} messages were acknowledged", arguments.messages);
    Ok((took, latencies, level))
}

/// A body that is different for every number.
fn body(number: u64, bytes: u32) -> Bytes {
    let filler = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut body = number.to_le_bytes().to_vec();
    body.extend(filler.iter().cycle().take(bytes as usize - NUMBER_BYTES));
    body.into()
}

/// Reads everything, and checks that every message is there once, unaltered, and in order within its queue.
async fn check(arguments: &Arguments, broker: &Broker) -> Result<Duration> {
    let mut seen = vec![false; usize::try_from(arguments.messages)?];
    let mut last = [None; QUEUES as usize];
    let mut consumer = broker.pull_consumer("checker").await?;
    consumer.assign_topic(TOPIC).await?;
    let mut left = arguments.messages;
    let mut took = Duration::ZERO;
    while left > 0 {
        let stopwatch = Stopwatch::start();
        let messages = consumer.poll(PAGE_MESSAGES, Duration::ZERO).await?;
        took += stopwatch.elapsed();
        ensure!(!messages.is_empty(), "{left} messages are missing");
        for message in messages {
            let number = message.body().first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let number = number.context("a message without a number")?;
            ensure!(*message.body() == body(number, arguments.body_bytes), "message {number} was altered");
            let seen = seen.get_mut(usize::try_from(number)?).context("a message that was not sent")?;
            ensure!(!std::mem::replace(seen, true), "message {number} is there twice");
            let last = &mut last[message.queue().queue.get() as usize];
            ensure!(last.replace(number) < Some(number), "message {number} is out of order");
            left -= 1;
        }
    }
    Ok(took)
}

impl Measured {
    fn row(&self, messages: u64) -> [String; 8] {
        let engine = match self.engine {
            EngineKind::Memory => "memory".to_owned(),
            engine => format!("{engine:?}, {:?}", self.flush).to_lowercase(),
        };
        let survive = match self.level {
            AckLevel::Memory => "nothing",
            AckLevel::Buffered => "the process",
            AckLevel::Durable => "a power cut",
        };
        [
            engine,
            survive.to_owned(),
            count(per_second(messages, self.send)),
            self.latencies.quantile(0.5),
            self.latencies.quantile(0.99),
            count(per_second(messages, self.fetch)),
            self.reopen.map_or_else(|| "-".to_owned(), millis),
            "yes".to_owned(),
        ]
    }
}

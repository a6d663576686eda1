//! Sends every line of a file or of standard input to a topic.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use cuemq::{Broker, Message, Receipt};
use cuemq_examples::field::field_of;
use cuemq_examples::input::{Input, Line};
use cuemq_examples::pipeline::Pipeline;
use cuemq_examples::stopwatch::{Stopwatch, per_second};
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::{Facts, count};

/// Sends every line of a file or of standard input to a topic.
#[derive(Debug, Parser)]
struct Arguments {
    /// A file of lines; `-` is standard input [default: the order events of the examples]
    input: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    /// The topic, made if need be
    #[arg(long, default_value = "lines")]
    topic: String,
    /// The tag of every message
    #[arg(long, conflicts_with = "tag_field")]
    tag: Option<String>,
    /// The field of a JSON line that becomes its tag, such as `kind`
    #[arg(long)]
    tag_field: Option<String>,
    /// The field of a JSON line under whose value the message can be found, such as `event`
    #[arg(long)]
    key_field: Option<String>,
    /// The field of a JSON line that chooses the queue and orders the message, such as `order`
    #[arg(long)]
    sharding_field: Option<String>,
    /// Sends at most this many lines
    #[arg(long)]
    limit: Option<u64>,
    /// Most messages sent and not yet acknowledged
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let broker = arguments.store.open().await?;
    let done = run(&arguments, &broker).await;
    let closed = broker.shutdown().await.context("the broker could not be closed cleanly");
    done?.print();
    closed?;
    println!(
        "next: cargo run --release --example consumer -- --topic {}{}",
        arguments.topic,
        arguments.store.to_text()
    );
    Ok(())
}

async fn run(arguments: &Arguments, broker: &Broker) -> Result<Facts> {
    let input = Input::given(arguments.input.as_deref());
    let producer = broker.producer(&arguments.topic).await?;
    let mut last = None;
    let mut pipeline = Pipeline::new(producer, arguments.in_flight, |_: u64, receipt: &Receipt| {
        last = Some(receipt.clone());
        Ok(())
    });
    let stopwatch = Stopwatch::start();
    let mut lines = input.stream()?;
    let mut taken = 0;
    while arguments.limit.is_none_or(|limit| taken < limit)
        && let Some(line) = lines.recv().await
    {
        let line = line?;
        let number = line.number;
        pipeline.send(message(arguments, line), number).await?;
        taken += 1;
    }
    let (sent, latencies) = pipeline.finish().await?;
    let rate = per_second(sent, stopwatch.elapsed());
    let mut facts = Facts::new("producer");
    facts.add("input", input.name());
    facts.add("topic", &arguments.topic);
    facts.add("sent and acknowledged", count(sent));
    facts.add("send rate", format!("{} msg/s", count(rate)));
    facts.add("send p50 / p99", format!("{} / {}", latencies.quantile(0.5), latencies.quantile(0.99)));
    if let Some(Receipt { level, queue, id: Some(id), .. }) = last {
        facts.add("acknowledged as", level).add("last receipt", format!("message {id} in queue {queue}"));
    }
    facts.add("engine", broker.engine_name());
    facts.add("data directory", arguments.store.place());
    Ok(facts)
}

fn message(arguments: &Arguments, line: Line) -> Message {
    let field = |name: &Option<String>| name.as_deref().and_then(|name| field_of(&line.bytes, name));
    let tag = arguments.tag.clone().or_else(|| field(&arguments.tag_field));
    let (key, sharding_key) = (field(&arguments.key_field), field(&arguments.sharding_field));
    let mut message = Message::new(line.bytes);
    if let Some(tag) = tag {
        message = message.tag(tag);
    }
    if let Some(key) = key {
        message = message.key(key);
    }
    if let Some(key) = sharding_key {
        message = message.sharding_key(key);
    }
    message
}

//! Prints the messages of a topic as a member of a group, up to the end of the backlog or for ever.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal talks to it")]

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use cuemq::{Broker, Consumer, Delivery, ErrorKind};
use cuemq_examples::backlog::Backlog;
use cuemq_examples::store::{EngineKind, StoreArguments};
use cuemq_examples::table::count;

/// How long nothing has to come before the backlog is looked at.
const QUIET: Duration = Duration::from_millis(100);

/// Prints the messages of a topic as a member of a group, up to the end of the backlog or for ever.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// The topic
    #[arg(long, default_value = "lines")]
    topic: String,
    /// The group: each gets all messages once, and goes on where it ended
    #[arg(long, default_value = "readers")]
    group: String,
    /// Only messages with these tags, as in `create || pay`; the others are done without being shown
    #[arg(long, default_value = "*")]
    tags: String,
    /// Takes each queue's messages one after the other
    #[arg(long)]
    ordered: bool,
    /// Stops after this many messages
    #[arg(long)]
    limit: Option<u64>,
    /// Waits for new messages until it is interrupted, instead of ending with the backlog
    #[arg(long)]
    follow: bool,
    /// Prints nothing but the count
    #[arg(long)]
    quiet: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    if arguments.store.engine == EngineKind::Memory {
        bail!("a new memory store has no messages: choose --engine mmap or --engine lsm");
    }
    let broker = arguments.store.open().await?;
    let done = run(&arguments, &broker).await;
    let closed = broker.shutdown().await.context("the broker could not be closed cleanly");
    let (shown, backlog) = done?;
    closed?;
    eprintln!(
        "{} messages of topic {} shown; group {} has {} to go",
        count(shown),
        arguments.topic,
        arguments.group,
        count(backlog.waiting)
    );
    eprintln!("next: cargo run --release --example embed_axum   a service with the broker inside");
    Ok(())
}

async fn run(arguments: &Arguments, broker: &Broker) -> Result<(u64, Backlog)> {
    if let Err(error) = broker.describe_topic(&arguments.topic)
        && error.kind() == ErrorKind::UnknownTopic
    {
        bail!(
            "{} has no topic {}: send to it first, as with: cargo run --release --example producer -- --topic {}{}",
            arguments.store.place(),
            arguments.topic,
            arguments.topic,
            arguments.store.to_text()
        );
    }
    let consumer = broker.consumer(&arguments.group).subscribe_tags(&arguments.topic, &arguments.tags);
    let mut consumer = consumer.ordered(arguments.ordered).build().await?;
    let mut shown = 0;
    while arguments.limit.is_none_or(|limit| shown < limit) {
        let delivery = tokio::select! {
            delivery = next(arguments, broker, &mut consumer) => delivery?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("interrupts cannot be received")?;
                None
            }
        };
        let Some(delivery) = delivery else { break };
        if !arguments.quiet {
            show(&delivery)?;
        }
        delivery.ack().await.context("the group could not note the message as done")?;
        shown += 1;
    }
    drop(consumer);
    Ok((shown, Backlog::of(broker, &arguments.group, &arguments.topic).await?))
}

/// The next message; `None` at the end of the backlog.
async fn next(arguments: &Arguments, broker: &Broker, consumer: &mut Consumer) -> Result<Option<Delivery>> {
    loop {
        match tokio::time::timeout(QUIET, consumer.next()).await {
            Ok(delivery) => return Ok(Some(delivery?)),
            Err(_) if arguments.follow => {}
            Err(_) => {
                if Backlog::of(broker, &arguments.group, &arguments.topic).await?.waiting == 0 {
                    return Ok(None);
                }
            }
        }
    }
}

/// Prints the body as it is. A reader that has enough, such as `head`, ends the program.
fn show(delivery: &Delivery) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(delivery.body()).and_then(|()| out.write_all(b"\n")).context("nobody reads the messages any more")
}

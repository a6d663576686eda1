//! Messages that are delivered later: after a level, a duration, or at an instant.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cuemq::{Broker, Clock, Consumer, ManualClock, Message, Producer, Timestamp};
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::print_grid;

/// The latest that a due message may come: the promise of the broker for real time.
const LATEST: Duration = Duration::from_millis(1100);
/// When a clock that is moved by hand starts: 2026-01-01, 00:00 UTC.
const NEW_YEAR: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// The last delay level.
const LAST_LEVEL: u8 = 18;

/// Sends messages that are delivered later, and measures how late they come.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
    /// A clock that the program moves by hand: all 18 levels, up to two hours, pass in a moment
    #[arg(long)]
    manual_clock: bool,
}

/// One delayed message.
struct Planned {
    name: String,
    due: Timestamp,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    if arguments.manual_clock {
        by_hand(&arguments).await?
    } else {
        in_real_time(&arguments).await?
    }
    println!("next: cargo run --release --example transaction   messages that are sent only if your own work succeeds");
    Ok(())
}

/// A level, a duration and an instant, in a good second of real time.
async fn in_real_time(arguments: &Arguments) -> Result<()> {
    let broker = arguments.store.open().await?;
    let clock = broker.clock().clone();
    let (producer, mut consumer) = join(&broker).await?;
    let start = clock.now();
    let mut plan = Vec::new();
    let mut send = async |message: Message, name: &str, delay: Duration| -> Result<()> {
        let receipt = producer.send(message.property("name", name)).await?;
        ensure!(delay.is_zero() || receipt.offset.is_none(), "{name} has a place in its queue before it is due");
        plan.push(Planned { name: name.to_owned(), due: start.plus(delay) });
        Ok(())
    };
    let (short, instant) = (Duration::from_millis(300), Duration::from_millis(700));
    // The last to be due is sent first.
    send(Message::new("").delay_level(1), "delay_level(1)", Duration::from_secs(1)).await?;
    send(Message::new("").deliver_at(start.plus(instant)), "deliver_at(start + 700 ms)", instant).await?;
    send(Message::new("").delay(short), "delay(300 ms)", short).await?;
    send(Message::new("").deliver_at(Timestamp::from_millis(0)), "deliver_at(1970)", Duration::ZERO).await?;
    send(Message::new(""), "not delayed", Duration::ZERO).await?;
    let mut rows = Vec::new();
    for _ in 0..plan.len() {
        let (name, at) = receive(&mut consumer, &clock).await?;
        rows.push(row(&plan, &name, at, start)?);
    }
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    print_grid(["message", "due after", "came after", "late by"], &rows);
    Ok(())
}

/// All levels by a clock that stands still until it is moved; the store is reopened on the way.
async fn by_hand(arguments: &Arguments) -> Result<()> {
    let manual = ManualClock::new(NEW_YEAR);
    let open = || async { anyhow::Ok(arguments.store.builder()?.clock(manual.clock()).open().await?) };
    let mut broker = open().await?;
    let start = manual.now();
    let (producer, mut consumer) = join(&broker).await?;
    let mut plan = Vec::new();
    for level in (1..=LAST_LEVEL).rev() {
        let Some(delay) = broker.settings().delay_of_level(level) else { bail!("there is no delay level {level}") };
        let name = format!("delay_level({level})");
        producer.send(Message::new("").delay_level(level).property("name", &*name)).await?;
        plan.push(Planned { name, due: start.plus(delay) });
    }
    plan.reverse();
    let survives = arguments.store.engine != cuemq_examples::store::EngineKind::Memory;
    let mut rows = Vec::new();
    for (at, planned) in plan.iter().enumerate() {
        if survives && at == plan.len() / 2 {
            drop(consumer);
            broker.shutdown().await.context("the broker could not be closed cleanly")?;
            broker = open().await?;
            consumer = join(&broker).await?.1;
        }
        // A moment before it is due nothing comes; the clock goes no further than that.
        let early = planned.due.since(manual.now()) - Duration::from_millis(1);
        manual.advance(early);
        let quiet = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await;
        ensure!(quiet.is_err(), "{} or a later one came too early", planned.name);
        manual.advance(Duration::from_millis(1));
        let (name, at) = receive(&mut consumer, &manual.clock()).await?;
        ensure!(name == planned.name, "{name} came instead of {}", planned.name);
        rows.push(row(&plan, &name, at, start)?);
    }
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    print_grid(["message", "due after", "came after", "late by"], &rows);
    println!("two hours passed by a clock that was moved by hand{}", if survives { ", over a restart" } else { "" });
    Ok(())
}

async fn join(broker: &Broker) -> Result<(Producer, Consumer)> {
    let consumer = broker.consumer("later").subscribe("reminders").build().await?;
    Ok((broker.producer("reminders").await?, consumer))
}

/// The next message's name, and when it came.
async fn receive(consumer: &mut Consumer, clock: &Clock) -> Result<(String, Timestamp)> {
    let patience = Duration::from_secs(10);
    let delivery = tokio::time::timeout(patience, consumer.next()).await.context("a due message did not come")??;
    let at = clock.now();
    let name = delivery.property("name").context("a message of somebody else")?.to_owned();
    delivery.ack().await?;
    Ok((name, at))
}

/// One line of the table; an error when the message was early or too late.
fn row(plan: &[Planned], name: &str, at: Timestamp, start: Timestamp) -> Result<[String; 4]> {
    let planned = plan.iter().find(|planned| planned.name == name).context("an unknown message")?;
    let late = at.since(planned.due);
    ensure!(at >= planned.due, "{name} came {:?} too early", planned.due.since(at));
    ensure!(late <= LATEST, "{name} came {late:?} too late");
    let seconds = |time: Timestamp| format!("{:.3} s", time.since(start).as_secs_f64());
    Ok([name.to_owned(), seconds(planned.due), seconds(at), format!("{} ms", late.as_millis())])
}

//! A group that fell behind: its backlog is diverted to a topic that many drain, it goes on with what is new, and what
//! nobody needs any more is passed over, after a look at the plan. The audit log tells who did what.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use cuemq::{Broker, Consumer, DivertOptions, Message, Received, Skip, TopicSpec};
use cuemq_examples::backlog::Backlog;
use cuemq_examples::stopwatch::Stopwatch;
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::print_grid;
use tokio::sync::watch;

/// The messages of each customer keep their order.
const CUSTOMERS: u64 = 50;
/// Consumers that drain the diverted messages.
const DRAINERS: usize = 8;
/// How many of the newest messages of each queue are kept in the end.
const KEPT: u64 = 25;

/// Lets a group fall behind, and helps it.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
    /// How far the group falls behind
    #[arg(long, default_value_t = 10_000)]
    messages: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    let broker = arguments.store.open().await?;
    let done = run(&broker, arguments.messages.max(CUSTOMERS)).await;
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    done
}

/// The names of one run: in a kept directory those of an earlier one are not ours.
struct Names {
    topic: String,
    spare: String,
    group: String,
    drain: String,
}

async fn run(broker: &Broker, messages: u64) -> Result<()> {
    let topic = format!("invoices-{}", broker.topics().len());
    let names = Names {
        spare: format!("{topic}-spare"),
        group: format!("{topic}-billing"),
        drain: format!("{topic}-drain"),
        topic,
    };
    let began = broker.clock().now();
    broker.create_topic(TopicSpec::new(&*names.topic).queues(2)).await?;
    send(broker, &names.topic, 0..messages).await?;
    let mut slow = broker.consumer(&*names.group).subscribe(&*names.topic).build().await?;
    let mut seen = take(&mut slow, 10).await?;
    println!("{} is {} messages behind", names.group, lag(broker, &names).await?);

    let moved = divert(broker, &names).await?;
    let drained = drain(broker, &names, moved).await?;
    ensure!(seen.is_disjoint(&drained), "a message was consumed twice");
    seen.extend(drained);
    ensure!(seen.len() as u64 == messages, "{} of {messages} messages were consumed", seen.len());

    send(broker, &names.topic, messages..messages + 10).await?;
    let new = take(&mut slow, 10).await?;
    ensure!(new == (messages..messages + 10).collect(), "the group got {new:?} after the diversion");
    println!("{} has its queues back and is {} behind", names.group, lag(broker, &names).await?);

    send(broker, &names.topic, messages + 10..messages + 1010).await?;
    skip(broker, &names, &mut slow).await?;
    audit(broker, &names, began)?;
    println!("next: cargo run --release --example transaction   messages that are sent if your own work succeeds");
    Ok(())
}

async fn send(broker: &Broker, topic: &str, numbers: std::ops::Range<u64>) -> Result<()> {
    let producer = broker.producer(topic).await?;
    let message = |n: u64| Message::new(n.to_string()).sharding_key(format!("customer-{}", n % CUSTOMERS));
    let all: Vec<u64> = numbers.collect();
    for some in all.chunks(1000) {
        producer.send_batch(some.iter().copied().map(message).collect()).await?;
    }
    Ok(())
}

async fn take(consumer: &mut Consumer, count: usize) -> Result<BTreeSet<u64>> {
    let mut taken = BTreeSet::new();
    for _ in 0..count {
        let delivery = consumer.next().await?;
        taken.insert(number(&delivery)?);
        delivery.ack().await?;
    }
    Ok(taken)
}

fn number(received: &Received) -> Result<u64> {
    Ok(std::str::from_utf8(received.body())?.parse()?)
}

async fn lag(broker: &Broker, names: &Names) -> Result<u64> {
    Ok(Backlog::of(broker, &names.group, &names.topic).await?.waiting)
}

/// Moves the whole backlog; says how far it is now and then.
async fn divert(broker: &Broker, names: &Names) -> Result<u64> {
    let mut told = 0;
    let options = DivertOptions::new().note("billing was down since noon").on_progress(move |progress| {
        if progress.lag == 0 || progress.moved >= told {
            println!("  {:>7} moved, {:>7} left", progress.moved, progress.lag);
            told = progress.moved + 4096;
        }
        ControlFlow::Continue(())
    });
    let stopwatch = Stopwatch::start();
    let report = broker.divert(&names.group, &names.topic, &names.spare, options).await?;
    let (queues, ms) = (broker.describe_topic(&names.spare)?.queues.len(), stopwatch.elapsed().as_millis());
    println!(
        "{} messages moved to {queues} queues of {} with {} writes in {ms} ms",
        report.moved, names.spare, report.slices
    );
    ensure!(report.lag == 0 && lag(broker, names).await? == 0, "something was left: {report:?}");
    Ok(report.moved)
}

/// Has many consume what was moved; every customer's messages come in their order.
async fn drain(broker: &Broker, names: &Names, count: u64) -> Result<BTreeSet<u64>> {
    let log = Arc::<Mutex<BTreeMap<u64, Vec<u64>>>>::default();
    let (done, mut progress) = watch::channel(0u64);
    let mut workers = Vec::new();
    for _ in 0..DRAINERS {
        let (log, done, topic) = (Arc::clone(&log), done.clone(), names.topic.clone());
        let consumer = broker.consumer(&*names.drain).subscribe(&*names.spare).ordered(true).build().await?;
        workers.push(consumer.spawn(1, move |received| {
            let handled = number(&received).and_then(|n| {
                ensure!(received.topic() == topic, "message {n} has forgotten where it was sent to");
                log.lock().unwrap_or_else(PoisonError::into_inner).entry(n % CUSTOMERS).or_default().push(n);
                Ok(())
            });
            done.send_modify(|done| *done += 1);
            std::future::ready(handled)
        }));
    }
    let stopwatch = Stopwatch::start();
    let patience = Duration::from_secs(120);
    tokio::time::timeout(patience, progress.wait_for(|done| *done >= count)).await.context("the drain is stuck")??;
    println!("{DRAINERS} consumers drained {count} messages in {} ms", stopwatch.elapsed().as_millis());
    for worker in workers {
        worker.stop();
        worker.join().await?;
    }
    let log = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
    for (customer, numbers) in &log {
        ensure!(numbers.is_sorted(), "the messages of customer {customer} came in the order {numbers:?}");
    }
    println!("the messages of each of {} customers came in their order", log.len());
    Ok(log.into_values().flatten().collect())
}

/// Looks at a plan, confirms it, and sees the member pass over what lies between.
async fn skip(broker: &Broker, names: &Names, slow: &mut Consumer) -> Result<()> {
    let plan = broker.skip(&names.group, &names.topic, Skip::KeepLast(KEPT)).await?;
    println!("{plan}");
    let (queues, passed_over) = (plan.moves().len() as u64, plan.passed_over());
    ensure!(passed_over == lag(broker, names).await? - queues * KEPT, "the plan passes over {passed_over}");
    let moved = plan.note("agreed with the owner of the invoices").confirm().await?;
    ensure!(moved.len() as u64 == queues, "not every queue was moved: {moved:?}");
    let left = usize::try_from(queues * KEPT)?;
    ensure!(take(slow, left).await?.len() == left && lag(broker, names).await? == 0, "something else was left");
    println!("confirmed: the group got the last {KEPT} of each queue and is up to date");
    Ok(())
}

fn audit(broker: &Broker, names: &Names, from: cuemq::Timestamp) -> Result<()> {
    let mut log = broker.audit_log(from, 100)?;
    log.retain(|record| record.topic.as_deref() == Some(&*names.topic));
    let actions: Vec<&str> = log.iter().map(|record| record.action.as_str()).collect();
    ensure!(actions == ["divert began", "divert ended", "skip"], "the audit log says {actions:?}");
    let row = |record: &cuemq::AuditRecord| {
        let moved: u64 = record.queues.iter().map(|m| m.to.get() - m.from.get()).sum();
        [record.action.to_string(), moved.to_string(), record.note.clone()]
    };
    let rows: Vec<[String; 3]> = log.iter().map(row).collect();
    print_grid(["done", "messages", "note"], &rows);
    Ok(())
}

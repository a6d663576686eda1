//! Messages with one sharding key come in the order of their sends, and a failing one blocks only its own queue.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use cuemq::{Broker, Message, Received, TopicSpec};
use cuemq_examples::stopwatch::Stopwatch;
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::print_grid;
use tokio::sync::watch;

/// Customers; the events of each are sent under the customer as sharding key.
const CUSTOMERS: [&str; 6] = ["ada", "bea", "carl", "dora", "emil", "fritz"];
/// Events of each customer.
const EVENTS: u32 = 20;
/// The event that fails twice before it succeeds.
const STUCK: (&str, u32) = ("carl", 5);
/// How often it fails.
const FAILURES: u32 = 2;

/// Sends numbered events of six customers and processes each customer's in order, one of which fails at first.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
}

/// One processed event.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Processed {
    customer: String,
    number: u32,
    queue: u32,
    attempts: u32,
    at: Duration,
}

type Log = Arc<Mutex<Vec<Processed>>>;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    let broker = arguments.store.open().await?;
    let done = run(&broker).await;
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    report(&done?)?;
    println!("next: cargo run --release --example delayed   messages that come later");
    Ok(())
}

async fn run(broker: &Broker) -> Result<Vec<Processed>> {
    // A new topic for every run in a kept directory: what an earlier run left is not ours.
    let topic = format!("customers-{}", broker.topics().len());
    broker.create_topic(TopicSpec::new(&*topic).queues(8)).await?;
    let producer = broker.producer(&topic).await?;
    for number in 0..EVENTS {
        for customer in CUSTOMERS {
            producer.send(Message::new(number.to_string()).sharding_key(customer)).await?;
        }
    }
    let (log, done) = (Log::default(), watch::Sender::new(0_usize));
    let mut progress = done.subscribe();
    let (handler_log, stopwatch) = (Arc::clone(&log), Stopwatch::start());
    let consumer = broker.consumer(format!("{topic}-group")).subscribe(&topic).ordered(true).build().await?;
    let worker = consumer.spawn(8, move |event| {
        let result = process(&handler_log, stopwatch, &event);
        if result.is_ok() {
            done.send_modify(|done| *done += 1);
        }
        std::future::ready(result)
    });
    let all = CUSTOMERS.len() * EVENTS as usize;
    progress.wait_for(|done| *done >= all).await.context("the consumer has ended")?;
    worker.stop();
    worker.join().await?;
    Ok(std::mem::take(&mut log.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn process(log: &Log, stopwatch: Stopwatch, event: &Received) -> Result<()> {
    let number: u32 = std::str::from_utf8(event.body())?.parse()?;
    let customer = event.sharding_key().context("an event without a customer")?.to_owned();
    let attempts = event.attempts();
    ensure!((&*customer, number) != STUCK || attempts >= FAILURES, "not yet");
    let (queue, at) = (event.queue().queue.get(), stopwatch.elapsed());
    let processed = Processed { customer, number, queue, attempts, at };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(processed);
    Ok(())
}

/// Shows when each customer's events were processed, and checks what the title says.
fn report(log: &[Processed]) -> Result<()> {
    let mut by_customer: BTreeMap<&str, Vec<&Processed>> = BTreeMap::new();
    for processed in log {
        by_customer.entry(&processed.customer).or_default().push(processed);
    }
    let stuck = by_customer.get(STUCK.0).and_then(|events| events.iter().find(|e| e.number == STUCK.1));
    let stuck = stuck.context("the failing event was never processed")?;
    ensure!(stuck.attempts == FAILURES, "the failing event came {} times, not {FAILURES}", stuck.attempts);
    let mut rows = Vec::new();
    for (customer, events) in &by_customer {
        let numbers: Vec<u32> = events.iter().map(|event| event.number).collect();
        let in_order = numbers == (0..EVENTS).collect::<Vec<_>>();
        ensure!(in_order, "the events of {customer} came in the order {numbers:?}");
        let last = events.iter().map(|event| event.at).max().unwrap_or_default();
        let shares = events[0].queue == stuck.queue;
        ensure!(shares || last < stuck.at, "{customer} waited for another queue's failing event");
        rows.push([
            (*customer).to_owned(),
            events[0].queue.to_string(),
            format!("{} in order", numbers.len()),
            events.iter().map(|event| event.attempts).sum::<u32>().to_string(),
            format!("{:.2} s", last.as_secs_f64()),
            if shares { "yes" } else { "no" }.to_owned(),
        ]);
    }
    print_grid(["customer", "queue", "events", "failures", "all done after", "waited"], &rows);
    println!("event {} of {} failed {FAILURES} times; only queue {} waited for it", STUCK.1, STUCK.0, stuck.queue);
    Ok(())
}

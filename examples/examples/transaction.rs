//! Messages that are delivered only if the program's own transaction succeeds, whatever happens in between.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use cuemq::{Broker, Consumer, Decision, HalfMessage, Message, TransactionProducer};
use cuemq_examples::store::{EngineKind, StoreArguments};
use cuemq_examples::table::print_grid;

/// Milliseconds until the broker asks about an undecided transaction; the default of 6 s is long for a demonstration.
const CHECK_AFTER_MS: u64 = 300;
/// How long nothing has to come to be sure that nothing will.
const QUIET: Duration = Duration::from_millis(200);
/// How long a message that shall come may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pays orders in a bank and tells of it by transactional messages: commit, rollback, check-back, and a restart.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
}

/// The program's own database: which orders are paid. It survives the broker's restart.
#[derive(Clone, Debug, Default)]
struct Bank {
    paid: Arc<Mutex<HashMap<String, bool>>>,
}

impl Bank {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pay(&self, order: &str) -> Result<()> {
        ensure!(!order.starts_with("broke"), "no money for order {order}");
        self.lock().insert(order.to_owned(), true);
        Ok(())
    }

    fn refuse(&self, order: &str) {
        self.lock().insert(order.to_owned(), false);
    }

    /// Answers the broker's question by what is in the database; nothing there means that it is not known yet.
    fn check(&self, half: &HalfMessage) -> Option<Decision> {
        let paid = *self.lock().get(half.keys().next()?)?;
        Some(if paid { Decision::Commit } else { Decision::Rollback })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    ensure!(
        arguments.store.engine != EngineKind::Memory,
        "the restart in between needs a store that survives it: choose --engine mmap or --engine lsm"
    );
    let bank = Bank::default();
    let mut rows = before_the_restart(&arguments, &bank).await?;
    rows.extend(after_the_restart(&arguments, &bank).await?);
    print_grid(["order", "what happened", "message"], &rows);
    println!("next: cargo run --release --example embed_actix   your own actors send and receive");
    Ok(())
}

async fn open(arguments: &Arguments, bank: &Bank) -> Result<(Broker, TransactionProducer, Consumer)> {
    let builder = arguments.store.builder()?.configure(|settings| {
        settings.transaction_check_after_ms = CHECK_AFTER_MS;
        settings.transaction_check_interval_ms = CHECK_AFTER_MS;
    });
    let broker = builder.open().await?;
    let bank = bank.clone();
    let listener = move |half: HalfMessage| bank.check(&half);
    let producer = broker.transaction_producer("tellers", "payments", listener).await?;
    let consumer = broker.consumer("bookkeeping").subscribe("payments").build().await?;
    Ok((broker, producer, consumer))
}

fn payment(order: &str) -> Message {
    Message::new(format!("order {order} is paid")).key(order)
}

fn outcome(order: &str, happened: &str, message: &str) -> [String; 3] {
    [order.to_owned(), happened.to_owned(), message.to_owned()]
}

async fn before_the_restart(arguments: &Arguments, bank: &Bank) -> Result<Vec<[String; 3]>> {
    let (broker, producer, mut consumer) = open(arguments, bank).await?;
    let mut rows = Vec::new();

    let paid = async |_| bank.pay("rich-1").map(|()| Some(Decision::Commit));
    let receipt = producer.send(payment("rich-1"), paid).await?.context("a committed message has a receipt")?;
    expect(&mut consumer, "rich-1").await?;
    rows.push(outcome("rich-1", "paid, committed", &format!("delivered, {}", receipt.level)));

    let failed =
        producer.send(payment("broke-2"), async |_| bank.pay("broke-2").map(|()| Some(Decision::Commit))).await;
    let error = failed.err().context("a failed transaction is an error")?;
    ensure!(error.is_certainly_not_applied() && error.to_string().contains("no money"), "another error: {error}");
    expect_nothing(&mut consumer).await?;
    rows.push(outcome("broke-2", "failed, rolled back", "never delivered"));

    // The teller forgets to say what became of it: the broker asks, and the bank knows.
    let forgotten = producer.begin(payment("rich-3")).await?;
    expect_nothing(&mut consumer).await?;
    bank.pay("rich-3")?;
    drop(forgotten);
    expect(&mut consumer, "rich-3").await?;
    rows.push(outcome("rich-3", "paid, undecided, asked", "delivered"));

    // Neither decided nor in the bank's books when the broker stops.
    producer.begin(payment("rich-4")).await?;
    producer.begin(payment("late-5")).await?;
    drop((producer, consumer));
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    Ok(rows)
}

async fn after_the_restart(arguments: &Arguments, bank: &Bank) -> Result<Vec<[String; 3]>> {
    let (broker, producer, mut consumer) = open(arguments, bank).await?;
    // The bank does not know yet: the broker keeps asking, and nobody sees the messages.
    expect_nothing(&mut consumer).await?;
    bank.pay("rich-4")?;
    bank.refuse("late-5");
    expect(&mut consumer, "rich-4").await?;
    expect_nothing(&mut consumer).await?;
    drop((producer, consumer));
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    Ok(vec![
        outcome("rich-4", "undecided, broker restarted, paid, asked", "delivered"),
        outcome("late-5", "undecided, broker restarted, refused, asked", "never delivered"),
    ])
}

/// Takes the next message, which has to be this order's.
async fn expect(consumer: &mut Consumer, order: &str) -> Result<()> {
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
    let delivery = next.with_context(|| format!("the message of order {order} did not come"))??;
    let key = delivery.keys().next().unwrap_or_default().to_owned();
    ensure!(key == order, "the message of order {key} came instead of {order}'s");
    delivery.ack().await?;
    Ok(())
}

async fn expect_nothing(consumer: &mut Consumer) -> Result<()> {
    match tokio::time::timeout(QUIET, consumer.next()).await {
        Err(_) => Ok(()),
        Ok(delivery) => {
            let delivery = delivery?;
            anyhow::bail!("a message came that was not committed: {:?}", delivery.body())
        }
    }
}

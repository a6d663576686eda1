//! Orders, stock and shipping: messages and tables in one transaction, so that each order has each effect exactly once,
//! whenever the program ends.
//!
//! Kill it and run it again: it goes on where it was. `--check` only looks whether everything adds up.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cuemq::{Broker, Consumer, ErrorKind, TopicSpec};
use cuemq_examples::shop::{Books, ORDERS, REFUSED, SHIPPING, open_shop, send_next, ship, take_from_stock};
use cuemq_examples::store::{EngineKind, StoreArguments};

/// Queues of each topic; orders for one good share one.
const QUEUES: u32 = 4;
/// How often it is looked whether everything is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Takes orders, takes them from the stock and ships them, each exactly once.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep and to go on with, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
    /// How many orders there shall be
    #[arg(long, default_value_t = 800)]
    orders: u64,
    /// Writes a line for each step that is committed
    #[arg(long)]
    steps: bool,
    /// Only checks what an earlier run has left
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep && !arguments.check {
        arguments.store.dir = temporary.path().to_owned();
    }
    ensure!(
        !arguments.check || arguments.store.engine != EngineKind::Memory,
        "a store in memory is gone with its process: check --engine mmap or --engine lsm"
    );
    let broker = arguments.store.open().await?;
    let done = run(&arguments, &broker).await;
    let closed = broker.shutdown().await.context("the broker could not be closed cleanly");
    done?;
    closed
}

async fn run(arguments: &Arguments, broker: &Broker) -> Result<()> {
    if !arguments.check {
        work(arguments, broker).await?;
    }
    let books = Books::read(broker).await?;
    let wrong = books.audit();
    wrong.iter().for_each(|wrong| println!("wrong: {wrong}"));
    ensure!(wrong.is_empty(), "{} things do not add up", wrong.len());
    if !arguments.check && !books.finished(arguments.orders) {
        bail!("not every order has come to its end");
    }
    println!(
        "{} orders: {} shipped, {} refused; every piece is accounted for",
        books.sent,
        books.shipped.len(),
        books.refused.len()
    );
    Ok(())
}

/// Sends, handles and ships until there is nothing left to do.
async fn work(arguments: &Arguments, broker: &Broker) -> Result<()> {
    for topic in [ORDERS, SHIPPING, REFUSED] {
        match broker.create_topic(TopicSpec::new(topic).queues(QUEUES)).await {
            Err(error) if error.kind() != ErrorKind::Exists => return Err(error.into()),
            _ => {}
        }
    }
    open_shop(broker).await?;
    let steps = arguments.steps;
    let join = async |group: &str, topic: &str| broker.consumer(group).subscribe(topic).build().await;
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        workers.spawn(each(broker.clone(), join("stock", ORDERS).await?, Work::Stock, steps));
        workers.spawn(each(broker.clone(), join("shipping", SHIPPING).await?, Work::Shipping, steps));
    }
    let (sender, most) = (broker.clone(), arguments.orders);
    workers.spawn(async move {
        while send_next(&sender, most).await? {
            step(steps, "sent");
        }
        while !Books::read(&sender).await?.finished(most) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    });
    // Workers only end by an error; the sender ends when everything is done.
    workers.join_next().await.context("there is no worker")??
}

/// What is done with each message.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// An order is taken from the stock, or refused.
    Stock,
    /// What was taken is shipped.
    Shipping,
}

/// Handles every message of a consumer with one transaction each.
async fn each(broker: Broker, mut consumer: Consumer, work: Work, steps: bool) -> Result<()> {
    loop {
        let delivery = consumer.next().await?;
        let done = match work {
            Work::Stock => take_from_stock(&broker, &delivery).await,
            Work::Shipping => ship(&broker, &delivery).await,
        };
        match done {
            Ok(order) => step(steps, &format!("{work:?} {}", order.number)),
            // Somebody else has the message, or has done it: then it is not ours to do.
            Err(error) if error.kind() == ErrorKind::Stale => {}
            // Too many at once: dropped, it comes again.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn step(steps: bool, what: &str) {
    if steps {
        println!("{what}");
    }
}

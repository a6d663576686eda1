//! Orders, stock and shipping: messages and tables in one transaction, so that each order has each effect exactly once,
//! whenever the program ends.
//!
//! Kill it and run it again: it goes on where it was. `--check` only looks whether everything adds up.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cuemq::{Broker, Consumer, ErrorKind, PopConsumer, TopicSpec};
use cuemq_examples::shop::{
    Books, ORDERS, REFUSED, SHIPPING, open_shop, send_next, ship, take_carelessly, take_from_stock,
};
use cuemq_examples::store::{EngineKind, StoreArguments};

/// Queues of each topic; orders for one good share one.
const QUEUES: u32 = 4;
/// How often it is looked whether everything is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long shipping waits for the next parcel before it asks again.
const WAIT: Duration = Duration::from_secs(60);
/// How many orders a careless shop has not acknowledged, though they are taken.
const OWED: usize = 8;

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
    /// How many times its goods the shop has in the beginning
    #[arg(long, default_value_t = 1)]
    stock_times: u64,
    /// Writes a line for each step that is committed
    #[arg(long)]
    steps: bool,
    /// Only checks what an earlier run has left
    #[arg(long)]
    check: bool,
    /// Acknowledges orders apart from taking them: for the test that has to find that out
    #[arg(long, hide = true)]
    careless: bool,
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
    open_shop(broker, arguments.stock_times).await?;
    let (steps, mut workers) = (arguments.steps, tokio::task::JoinSet::new());
    let packers = broker.pop_consumer("shipping").subscribe(SHIPPING).build().await?;
    for _ in 0..2 {
        let clerk = broker.consumer("stock").subscribe(ORDERS).build().await?;
        if arguments.careless {
            workers.spawn(take_each_carelessly(broker.clone(), clerk, steps));
        } else {
            workers.spawn(take_each(broker.clone(), clerk, steps));
        }
        workers.spawn(ship_each(broker.clone(), packers.clone(), steps));
    }
    let (sender, most) = (broker.clone(), arguments.orders);
    workers.spawn(async move {
        while send_next(&sender, most).await? {
            step(steps, "sent");
        }
        while !Books::read(&sender).await?.finished(most) {
            #[allow(clippy::disallowed_methods, reason = "a program looks again from time to time")]
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    });
    // Workers only end by an error; the sender ends when everything is done.
    workers.join_next().await.context("there is no worker")??
}

/// Takes each order of a member's queues from the stock, with one transaction.
async fn take_each(broker: Broker, mut clerk: Consumer, steps: bool) -> Result<()> {
    loop {
        let delivery = clerk.next().await?;
        match take_from_stock(&broker, &delivery).await {
            Ok(order) => step(steps, &format!("taken {}", order.number)),
            // Somebody else has the message, or has done it: then it is not ours to do. Or there were too many at once:
            // dropped, it comes again.
            Err(error) if matches!(error.kind(), ErrorKind::Stale | ErrorKind::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ships what was taken, parcel by parcel, whichever comes next.
async fn ship_each(broker: Broker, packers: PopConsumer, steps: bool) -> Result<()> {
    loop {
        for parcel in packers.pop(1, WAIT).await? {
            match ship(&broker, &parcel).await {
                Ok(order) => step(steps, &format!("shipped {}", order.number)),
                Err(error) if error.kind() == ErrorKind::Stale => {}
                // Too many at once: given back, it comes again.
                Err(error) if error.kind() == ErrorKind::Conflict => parcel.nack(Some(Duration::ZERO)).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// As [`take_each`], wrongly: the acknowledgement is not part of the transaction, and comes late.
async fn take_each_carelessly(broker: Broker, mut clerk: Consumer, steps: bool) -> Result<()> {
    let mut owed = VecDeque::new();
    loop {
        let delivery = clerk.next().await?;
        let order = take_carelessly(&broker, &delivery).await?;
        step(steps, &format!("taken {}", order.number));
        owed.push_back(delivery);
        if owed.len() > OWED
            && let Some(delivery) = owed.pop_front()
        {
            delivery.ack().await?;
        }
    }
}

fn step(steps: bool, what: &str) {
    if steps {
        println!("{what}");
    }
}

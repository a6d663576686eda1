//! A program's own actors send through the broker's gateway and are subscribed to topics.
//!
//! ```text
//!  OrderDesk ──Publish──▶ gateway ─▶ orders ──Deliver──▶ Warehouse ──Publish──▶ shipments ──Deliver──▶ Postman
//! ```

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::BTreeSet;
use std::time::Duration;

use actix::prelude::{
    Actor, ActorContext, Addr, Context as ActorsContext, Handler, Message as ActorMessage, ResponseFuture,
};
use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use cuemq::{Broker, Deliver, GatewayActor, Message, Publish, Receipt};
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::Facts;
use tokio::sync::oneshot;

/// How long all shipments may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three actors of a program work together through the broker.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
    /// Orders to place
    #[arg(long, default_value_t = 200)]
    orders: u32,
}

/// Asks the desk to place an order.
#[derive(ActorMessage)]
#[rtype(result = "Result<Receipt, String>")]
struct Place {
    order: String,
}

/// Takes orders and publishes them.
struct OrderDesk {
    gateway: Addr<GatewayActor>,
}

impl Actor for OrderDesk {
    type Context = ActorsContext<Self>;
}

impl Handler<Place> for OrderDesk {
    type Result = ResponseFuture<Result<Receipt, String>>;

    fn handle(&mut self, m: Place, _: &mut ActorsContext<Self>) -> Self::Result {
        let message = Message::new(m.order.clone()).sharding_key(m.order);
        publish(&self.gateway, "orders", message)
    }
}

/// Ships what was ordered.
struct Warehouse {
    gateway: Addr<GatewayActor>,
}

impl Actor for Warehouse {
    type Context = ActorsContext<Self>;
}

impl Handler<Deliver> for Warehouse {
    type Result = ResponseFuture<Result<(), String>>;

    fn handle(&mut self, m: Deliver, _: &mut ActorsContext<Self>) -> Self::Result {
        let order = m.message.body().clone();
        let shipped = publish(&self.gateway, "shipments", Message::new(order));
        // The order is acknowledged when its shipment is stored: a crash in between ships twice, never not at all.
        Box::pin(async move { shipped.await.map(|_| ()) })
    }
}

/// Collects shipments until it has all.
struct Postman {
    orders: usize,
    delivered: BTreeSet<String>,
    repeated: usize,
    all: Option<oneshot::Sender<(usize, usize)>>,
}

impl Actor for Postman {
    type Context = ActorsContext<Self>;
}

impl Handler<Deliver> for Postman {
    type Result = Result<(), String>;

    fn handle(&mut self, m: Deliver, ctx: &mut ActorsContext<Self>) -> Self::Result {
        let order = String::from_utf8(m.message.body().to_vec()).map_err(|error| error.to_string())?;
        if !self.delivered.insert(order) {
            self.repeated += 1;
        }
        if self.delivered.len() == self.orders
            && let Some(all) = self.all.take()
        {
            // Whoever waits may have lost patience.
            let _ = all.send((self.delivered.len(), self.repeated));
            ctx.stop();
        }
        Ok(())
    }
}

fn publish(gateway: &Addr<GatewayActor>, topic: &str, message: Message) -> ResponseFuture<Result<Receipt, String>> {
    let sent = gateway.send(Publish { topic: topic.to_owned(), message });
    Box::pin(async move {
        match sent.await {
            Ok(receipt) => receipt.map_err(|error| error.to_string()),
            Err(gone) => Err(format!("the gateway did not answer: {gone}")),
        }
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    // The program's own actor system; the broker has one of its own.
    actix::System::new().block_on(run(arguments))
}

async fn run(mut arguments: Arguments) -> Result<()> {
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    let broker = arguments.store.open().await?;
    let done = ship_all(&broker, arguments.orders).await;
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    let (delivered, repeated) = done?;
    let mut facts = Facts::new("embed_actix");
    facts.add("orders placed", arguments.orders).add("shipments delivered", delivered);
    facts.add("repeated deliveries", repeated).add("engine", broker.engine_name());
    facts.print();
    println!("next: cargo run --release --example embed_axum   an HTTP service with the broker inside");
    Ok(())
}

/// Places the orders and waits for their shipments; how many arrived, and how many of them again.
async fn ship_all(broker: &Broker, orders: u32) -> Result<(usize, usize)> {
    ensure!(orders > 0, "--orders is 0: place at least one");
    let gateway = broker.gateway();
    let desk = OrderDesk { gateway: gateway.clone() }.start();
    let warehouse = Warehouse { gateway }.start();
    let (sender, all) = oneshot::channel();
    let orders_expected = usize::try_from(orders)?;
    let postman = Postman { orders: orders_expected, delivered: BTreeSet::new(), repeated: 0, all: Some(sender) };
    let postman = postman.start();

    let (orders_group, post_group) = (broker.consumer("warehouse"), broker.consumer("post"));
    let shipping = orders_group.subscribe("orders").ordered(true).deliver_to(warehouse.recipient(), 8).await?;
    let posting = post_group.subscribe("shipments").deliver_to(postman.recipient(), 8).await?;

    for number in 0..orders {
        let placed = desk.send(Place { order: format!("order {number}") }).await?;
        placed.map_err(|error| anyhow!("order {number} was not taken: {error}"))?;
    }
    let arrived = tokio::time::timeout(PATIENCE, all).await.context("not all shipments arrived")??;
    for worker in [shipping, posting] {
        worker.stop();
        worker.join().await?;
    }
    Ok(arrived)
}

//! Tests a service of your own with a clock that you move: days pass in a moment.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cuemq::{
    Broker, Consumer, ManualClock, MemoryEngine, Message, Producer, Recalled, Recurrence, ScheduledId, Timestamp,
};

/// When the clock starts: 2026-01-01, 00:00 UTC, a Thursday.
const NEW_YEAR: Timestamp = Timestamp::from_millis(1_767_225_600_000);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The longest that something which must come is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The service under test. Whoever has not paid a day after an order is reminded; mail that cannot be sent is tried
/// again a minute later; on Fridays at five there is a report.
struct Reminders {
    producer: Producer,
    consumer: Consumer,
    unpaid: HashMap<String, ScheduledId>,
    mail_works: bool,
}

impl Reminders {
    async fn start(broker: &Broker) -> Result<Self> {
        let producer = broker.producer("reminders").await?;
        let consumer = broker.consumer("mailer").subscribe("reminders").build().await?;
        let fridays = Recurrence::cron("0 17 * * FRI", "Europe/Berlin")?;
        if broker.recurring()?.is_empty() {
            producer.send_recurring("the weekly report", &fridays).await?;
        }
        Ok(Self { producer, consumer, unpaid: HashMap::new(), mail_works: true })
    }

    async fn ordered(&mut self, order: &str) -> Result<()> {
        let receipt = self.producer.send(Message::new(order.to_owned()).delay(DAY)).await?;
        self.unpaid.insert(order.to_owned(), receipt.scheduled.context("a delayed message has an id")?);
        Ok(())
    }

    /// Whether the payment came before the reminder.
    async fn paid(&mut self, order: &str) -> Result<bool> {
        let id = self.unpaid.remove(order).context("no such order")?;
        Ok(self.producer.recall(&id).await? == Recalled::Recalled)
    }

    /// Sends the next reminder; `None` when the mail could not be sent.
    async fn next_reminder(&mut self) -> Result<Option<String>> {
        let delivery = tokio::time::timeout(PATIENCE, self.consumer.next()).await.context("no reminder came")??;
        if !self.mail_works {
            delivery.retry_in(Duration::from_secs(60)).await?;
            return Ok(None);
        }
        let order = String::from_utf8(delivery.body().to_vec())?;
        delivery.ack().await?;
        Ok(Some(order))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    cuemq_examples::tracing::show();
    let clock = ManualClock::new(NEW_YEAR);
    let broker = Broker::builder(MemoryEngine::new()).clock(clock.clock()).open().await?;
    let mut service = Reminders::start(&broker).await?;

    service.ordered("A").await?;
    service.ordered("B").await?;
    clock.advance(DAY / 2);
    ensure!(service.paid("A").await?, "half a day later nobody was reminded");
    clock.advance(DAY / 2);
    ensure!(service.next_reminder().await?.as_deref() == Some("B"), "only B is reminded");
    ensure!(!service.paid("B").await?, "B pays too late to be spared the reminder");
    println!("a day:      A paid in time, B was reminded");

    service.ordered("C").await?;
    clock.advance(DAY - Duration::from_secs(1));
    // On the way it was Friday, five o'clock in Berlin.
    ensure!(service.next_reminder().await?.as_deref() == Some("the weekly report"), "the report comes on Friday");
    println!("friday:     the weekly report came");

    service.mail_works = false;
    clock.advance(Duration::from_secs(1));
    ensure!(service.next_reminder().await?.is_none(), "the mail does not work");
    service.mail_works = true;
    clock.advance(Duration::from_secs(60));
    ensure!(service.next_reminder().await?.as_deref() == Some("C"), "a minute later it is tried again");
    println!("a minute:   C was reminded at the second try");

    println!("the clock:  {} days passed", clock.now().since(NEW_YEAR).as_secs() / DAY.as_secs());
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    Ok(())
}

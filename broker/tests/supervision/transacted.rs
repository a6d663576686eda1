//! The part of the walk that commits transactions: whatever the panic meets, each message has its effect once.

use std::time::Duration;

use cuemq::{ApplicationTransaction, Delivery, ErrorKind, Result};

use super::Walk;
use crate::common::checker::{number_of, numbered};
use crate::common::{next, soon};

const GROUP: &str = "bookkeepers";
const MESSAGES: u64 = 4;

/// Books messages, each with its acknowledgement.
pub(super) async fn book(walk: &Walk) {
    let broker = &walk.broker;
    let producer = walk.again(async || broker.producer("bills").await).await;
    for n in 0..MESSAGES {
        walk.again(async || producer.send(numbered(n)).await).await;
    }
    let mut consumer = walk.again(async || broker.consumer(GROUP).subscribe("bills").build().await).await;
    let mut settled = 0;
    while settled < MESSAGES {
        let delivery = next(&mut consumer).await;
        match soon("an answer", broker.transaction(|t| enter(t, &delivery))).await {
            Ok(_) => {}
            // It surely did nothing.
            Err(error) if error.kind() == ErrorKind::NotStored => {}
            Err(error) => walk.mishap(&error),
        }
        drop(delivery);
        // What was lost comes again after a second.
        walk.clock.advance(Duration::from_secs(1));
        settled = booked(walk).await;
    }
    assert_eq!(settled, MESSAGES, "each once");
    let lag = walk.again(async || broker.describe_group(GROUP).await).await.lag();
    assert_eq!(lag, 0, "what is booked is acknowledged");
}

fn enter(t: &mut ApplicationTransaction, delivery: &Delivery) -> Result<()> {
    let key = number_of(delivery).to_string();
    let times = t.get("bills", &key)?.map_or(0, |row| row[0]);
    t.put("bills", &key, vec![times + 1])?;
    t.ack(delivery)
}

/// How many effects there are.
async fn booked(walk: &Walk) -> u64 {
    let rows = walk.again(async || walk.broker.transaction(|t| t.scan("bills", "", None, 100)).await).await.value;
    rows.iter().map(|(_, times)| u64::from(times[0])).sum()
}

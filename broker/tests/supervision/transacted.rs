//! The part of the walk that commits transactions: whatever the panic meets, each message has its effect once.

use std::time::Duration;

use cuemq::{ApplicationTransaction, Committed, ErrorKind, Received, Result};

use super::Walk;
use crate::common::checker::{number_of, numbered};
use crate::common::{next, soon};

const GROUP: &str = "bookkeepers";
const MESSAGES: u64 = 4;
const SECOND: Duration = Duration::from_secs(1);

/// Books messages, each with its acknowledgement: first some that are popped, then the others.
pub(super) async fn book(walk: &Walk) {
    let broker = &walk.broker;
    let producer = walk.again(async || broker.producer("bills").await).await;
    for n in 0..MESSAGES {
        walk.again(async || producer.send(numbered(n)).await).await;
    }
    let popper =
        walk.again(async || broker.pop_consumer(GROUP).subscribe("bills").invisible(SECOND).build().await).await;
    while booked(walk).await < MESSAGES / 2 {
        for popped in walk.again(async || popper.pop(1, Duration::ZERO).await).await {
            let work = |t: &mut ApplicationTransaction| enter(t, &popped).and_then(|()| t.ack(&popped));
            tell(walk, soon("an answer", broker.transaction(work)).await);
        }
        // What was lost comes again, or its receipt is stale.
        walk.clock.advance(SECOND);
    }
    drop(popper);
    let mut consumer = walk.again(async || broker.consumer(GROUP).subscribe("bills").build().await).await;
    let mut settled = booked(walk).await;
    while settled < MESSAGES {
        let delivery = next(&mut consumer).await;
        let work = |t: &mut ApplicationTransaction| enter(t, &delivery).and_then(|()| t.ack(&delivery));
        tell(walk, soon("an answer", broker.transaction(work)).await);
        drop(delivery);
        // What was lost comes again after a second.
        walk.clock.advance(SECOND);
        settled = booked(walk).await;
    }
    assert_eq!(settled, MESSAGES, "each once");
    let lag = walk.again(async || broker.describe_group(GROUP).await).await.lag();
    assert_eq!(lag, 0, "what is booked is acknowledged");
}

fn enter(t: &mut ApplicationTransaction, bill: &Received) -> Result<()> {
    let key = number_of(bill).to_string();
    let times = t.get("bills", &key)?.map_or(0, |row| row[0]);
    t.put("bills", &key, vec![times + 1])
}

fn tell(walk: &Walk, result: Result<Committed<()>>) {
    match result {
        // It surely did nothing, or its receipt was made stale.
        Err(error) if !matches!(error.kind(), ErrorKind::NotStored | ErrorKind::Stale) => walk.mishap(&error),
        _ => {}
    }
}

/// How many effects there are.
async fn booked(walk: &Walk) -> u64 {
    let rows = walk.again(async || walk.broker.transaction(|t| t.scan("bills", "", None, 100)).await).await.value;
    rows.iter().map(|(_, times)| u64::from(times[0])).sum()
}

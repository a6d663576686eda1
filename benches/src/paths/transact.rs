//! Transactions of one row and one message.

use std::sync::Arc;
use std::time::Duration;

use cuemq::{Broker, Receipt};
use futures_util::stream::{FuturesOrdered, StreamExt};

use super::house::{House, note};
use crate::Result;
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, TOPIC};

/// The table of the rows.
const ROWS: &str = "rows";
/// Rows that a check reads at once.
const PAGE_ROWS: usize = 1000;

/// Commits so many transactions, each with a row and a message, and notes their receipts; returns the time that took.
pub(crate) fn transact(house: &mut House, in_flight: usize, count: u64) -> Result<Duration> {
    let (broker, bodies, level) = (house.broker()?, Arc::clone(&house.bodies), house.level());
    let mut ledger = std::mem::take(&mut house.ledger);
    let (first, mut pending) = (ledger.end(), FuturesOrdered::new());
    let (mut next, end) = (first, first + count);
    let watch = Stopwatch::start();
    house.block_on(async {
        while next < end || !pending.is_empty() {
            while next < end && pending.len() < in_flight {
                pending.push_back(commit(&broker, &bodies, next));
                next += 1;
            }
            if let Some(committed) = pending.next().await {
                let (number, receipt) = committed?;
                note(&mut ledger, &receipt, number, level)?;
            }
        }
        Result::Ok(())
    })?;
    let time = watch.elapsed();
    house.ledger = ledger;
    Ok(time)
}

async fn commit(broker: &Broker, bodies: &Bodies, number: u64) -> Result<(u64, Receipt)> {
    let body = bodies.body(number);
    let mut committed = broker
        .transaction(|t| {
            t.put(ROWS, number.to_be_bytes(), body.clone())?;
            t.send(TOPIC, body.clone())
        })
        .await?;
    let receipt = committed.receipts.pop().ok_or("a transaction has no receipt for its message")?;
    Ok((number, receipt))
}

/// Reads every row back and compares it with what was put.
pub(crate) fn check_rows(house: &House) -> Result<()> {
    let (broker, bodies, end) = (house.broker()?, Arc::clone(&house.bodies), house.ledger.end());
    house.block_on(async {
        let mut next = 0_u64;
        while next < end {
            let from = next.to_be_bytes();
            let rows = broker.transaction(|t| t.scan(ROWS, from, None, PAGE_ROWS)).await?.value;
            if rows.is_empty() {
                return Err(format!("{next} of {end} rows are there").into());
            }
            for (key, row) in rows {
                if key[..] != next.to_be_bytes() {
                    return Err(format!("row {next} is missing").into());
                }
                bodies.check(next, &row)?;
                next += 1;
            }
        }
        Ok(())
    })
}

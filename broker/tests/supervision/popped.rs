//! The part of the walk that pops: a receipt may be made stale by the panic, but every message is settled in the end.

use std::time::Duration;

use cuemq::{Error, ErrorKind, PopConsumer, Popped, Result};
use futures_util::FutureExt;

use super::Walk;
use crate::common::checker::{number_of, numbered};
use crate::common::soon;

const GROUP: &str = "poppers";
const HOUR: Duration = Duration::from_secs(3600);

/// Pops, renews, gives back, leaves unread and acknowledges, until the group has nothing open.
pub(super) async fn pop(walk: &mut Walk) {
    walk.sent.insert(60);
    let (walk, broker) = (&*walk, &walk.broker);
    let build = async || broker.pop_consumer(GROUP).subscribe("orders").build().await;
    let consumer = walk.again(build).await;
    let mut popped = walk.again(async || consumer.pop(3, HOUR).await).await;
    if let Some(first) = popped.first_mut() {
        tell(walk, soon("an answer", first.renew(HOUR)).await);
    }
    if let Some(last) = popped.last() {
        tell(walk, soon("an answer", last.nack(Some(Duration::from_secs(1)))).await);
    }
    acknowledge(walk, &consumer, &popped).await;
    soon("the settling of everything popped", settle(walk, &consumer)).await;
    soon("an answer that nobody reads", leave_unread(walk, &consumer)).await;
    soon("the settling of what nobody read", settle(walk, &consumer)).await;
    drop(consumer);
    soon("the end of the pool", async {
        while !walk.again(async || broker.describe_group(GROUP).await).await.members.is_empty() {}
    })
    .await;
}

async fn settle(walk: &Walk, consumer: &PopConsumer) {
    loop {
        let more = walk.again(async || consumer.pop(100, Duration::ZERO).await).await;
        assert!(more.iter().all(|popped| walk.sent.contains(&number_of(popped))), "a phantom");
        acknowledge(walk, consumer, &more).await;
        if walk.again(async || walk.broker.describe_group(GROUP).await).await.lag() == 0 {
            return;
        }
        // Whatever waits for its time comes now.
        walk.clock.advance(Duration::from_secs(1));
    }
}

/// One waits for a message and goes away before looking at it.
async fn leave_unread(walk: &Walk, consumer: &PopConsumer) {
    let ask = async || walk.again(async || walk.broker.describe_group(GROUP).await).await;
    let mut unread = Box::pin(consumer.pop(1, HOUR));
    assert!(unread.as_mut().now_or_never().is_none(), "there is nothing yet");
    // Behind the pop; if that was lost, another one waits instead.
    ask().await;
    if let Some(lost) = unread.as_mut().now_or_never() {
        tell(walk, lost.map(drop));
        unread = Box::pin(consumer.pop(1, HOUR));
        assert!(unread.as_mut().now_or_never().is_none(), "there is nothing yet");
    }
    let producer = walk.broker.producer("orders").await.unwrap();
    walk.again(async || producer.send(numbered(60)).await).await;
    while ask().await.in_flight == 0 {}
    drop(unread);
}

async fn acknowledge(walk: &Walk, consumer: &PopConsumer, popped: &[Popped]) {
    let receipts: Vec<_> = popped.iter().map(|popped| popped.receipt()).collect();
    let results = soon("an answer", consumer.ack_all(&receipts)).await;
    // One lost answer may be that of many.
    let lost = results.iter().position(|result| kind(result) == Some(ErrorKind::Unknown));
    if let Some(Err(error)) = lost.map(|at| &results[at]) {
        walk.mishap(error);
    }
}

fn kind(result: &Result<()>) -> Option<ErrorKind> {
    result.as_ref().err().map(Error::kind)
}

/// An answer that the panic took along, or a receipt that it made stale.
fn tell(walk: &Walk, result: Result<()>) {
    match result {
        Err(error) if !matches!(error.kind(), ErrorKind::Stale | ErrorKind::Conflict) => walk.mishap(&error),
        _ => {}
    }
}

//! Acknowledgements within transactions: consume, change, produce, exactly once, whatever ends in between.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::checker::{number_of, numbered};
use common::effects::{assert_each_once, count, counted, shipped};
use common::store::Store;
use common::{assert_nothing, manual_clock, next, read_all, soon, take};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    ApplicationTransaction, Batch, Broker, Consumer, Delivery, Error, ErrorKind, PullConsumer, Result, Skip, TopicSpec,
};
use futures_util::FutureExt;

on_every_engine!(
    a_committed_transaction_settles_what_it_acknowledged,
    one_that_is_not_committed_leaves_it_in_hand,
    what_belongs_to_somebody_else_is_refused_with_everything,
    two_groups_in_one_transaction,
    beside_ordinary_acknowledgements_of_the_queue,
    dropped_in_the_middle_the_outcome_decides,
    each_effect_once_over_kills,
    a_batch_is_settled_as_a_whole,
    a_batch_that_is_not_committed_stays_in_hand,
    a_batch_of_which_something_was_done_before_is_refused,
    a_pull_consumer_commits_with_its_effects,
    a_pull_consumer_that_was_overtaken_is_refused,
);

async fn join(broker: &Broker, group: &str) -> Consumer {
    broker.consumer(group).subscribe("orders").build().await.unwrap()
}

async fn lag(broker: &Broker, group: &str) -> u64 {
    broker.describe_group(group).await.unwrap().lag()
}

async fn send(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer("orders").await.unwrap();
    for n in numbers {
        producer.send(numbered(n)).await.unwrap();
    }
}

async fn one_queue(store: &Store) -> Broker {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.create_topic(TopicSpec::new("shipping").queues(1)).await.unwrap();
    broker
}

/// Counts the order, sends it on, and acknowledges it.
fn process(t: &mut ApplicationTransaction, delivery: &Delivery) -> Result<()> {
    count(t, delivery)?;
    t.ack(delivery)
}

/// As [`process`], for all of a batch.
fn process_all(t: &mut ApplicationTransaction, batch: &Batch) -> Result<()> {
    batch.iter().try_for_each(|order| count(t, order))?;
    t.ack(batch)
}

async fn a_committed_transaction_settles_what_it_acknowledged(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, 0..3).await;
    let mut consumer = join(&broker, "group").await;
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    let both = |t: &mut ApplicationTransaction| {
        t.ack(&first)?;
        t.ack(&first)?;
        process(t, &second)
    };
    broker.transaction(both).await.unwrap();
    assert_eq!(lag(&broker, "group").await, 1);
    // Settled is settled, whatever becomes of the delivery.
    first.ack().await.unwrap();
    let late = broker.transaction(|t| process(t, &second)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale, "{late}");
    drop(second);
    clock.advance(Duration::from_secs(9));
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 2);
    assert_nothing(&mut consumer, "the others are done");
    assert_eq!(counted(&broker).await, [(1, 1)]);
    drop(consumer);
    store.kill(broker).await;
    let broker = store.open().await;
    assert_eq!(lag(&broker, "group").await, 0);
    broker.shutdown().await.unwrap();
}

async fn one_that_is_not_committed_leaves_it_in_hand(store: Store) {
    let broker = one_queue(&store).await;
    send(&broker, 0..2).await;
    let mut consumer = join(&broker, "group").await;
    let (first, delivery) = (next(&mut consumer).await, next(&mut consumer).await);
    // With this, everything that the group had to write is written.
    broker.transaction(|t| process(t, &first)).await.unwrap();
    let given_up = broker
        .transaction(|t| {
            process(t, &delivery)?;
            Err::<(), _>(Error::aborted("no"))
        })
        .await
        .unwrap_err();
    assert_eq!(given_up.kind(), ErrorKind::Aborted);
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    let refused = broker.transaction(|t| process(t, &delivery)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert_eq!((lag(&broker, "group").await, counted(&broker).await.len()), (1, 1));
    broker.transaction(|t| process(t, &delivery)).await.unwrap();
    assert_eq!(lag(&broker, "group").await, 0);
    assert_each_once(&broker, 2).await;
    broker.shutdown().await.unwrap();
}

async fn what_belongs_to_somebody_else_is_refused_with_everything(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, 0..1).await;
    let mut first = broker.consumer("group").subscribe("orders").member("b").build().await.unwrap();
    let delivery = next(&mut first).await;
    // A second member comes, and the first one does not let go of its queue in time.
    let mut second = broker.consumer("group").subscribe("orders").member("a").build().await.unwrap();
    clock.advance(Duration::from_secs(30));
    let again = next(&mut second).await;
    let stale = broker.transaction(|t| process(t, &delivery)).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
    assert!(counted(&broker).await.is_empty() && shipped(&broker).await.is_empty());
    broker.transaction(|t| process(t, &again)).await.unwrap();
    assert_eq!((counted(&broker).await, shipped(&broker).await), (vec![(0, 1)], vec![0]));
    broker.shutdown().await.unwrap();
}

async fn two_groups_in_one_transaction(store: Store) {
    let broker = one_queue(&store).await;
    send(&broker, 0..2).await;
    let (mut one, mut other) = (join(&broker, "one").await, join(&broker, "other").await);
    let (first, second) = (next(&mut one).await, next(&mut other).await);
    let both = |t: &mut ApplicationTransaction| {
        process(t, &first)?;
        t.ack(&second)
    };
    broker.transaction(both).await.unwrap();
    assert_eq!((lag(&broker, "one").await, lag(&broker, "other").await), (1, 1));
    // One bad acknowledgement spoils it for both.
    let fresh = next(&mut one).await;
    let mixed = |t: &mut ApplicationTransaction| {
        process(t, &fresh)?;
        t.ack(&second)
    };
    assert_eq!(broker.transaction(mixed).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!((lag(&broker, "one").await, counted(&broker).await), (1, vec![(0, 1)]));
    drop((one, other, fresh, first, second));
    store.kill(broker).await;
    let broker = store.open().await;
    assert_eq!((lag(&broker, "one").await, lag(&broker, "other").await), (1, 1));
    broker.shutdown().await.unwrap();
}

async fn beside_ordinary_acknowledgements_of_the_queue(store: Store) {
    let broker = one_queue(&store).await;
    send(&broker, 0..300).await;
    let mut consumer = join(&broker, "group").await;
    let mut transactions = Vec::new();
    for n in 0..300u64 {
        let delivery = next(&mut consumer).await;
        match n % 3 {
            0 => delivery.ack_soon(),
            1 => delivery.ack().await.unwrap(),
            _ => {
                let broker = broker.clone();
                let work = async move { broker.transaction(|t| process(t, &delivery)).await.map(drop) };
                transactions.push(tokio::spawn(work));
            }
        }
    }
    for transaction in transactions {
        soon("a transaction", transaction).await.unwrap().unwrap();
    }
    assert_eq!(lag(&broker, "group").await, 0);
    drop(consumer);
    store.kill(broker).await;
    let broker = store.open().await;
    assert_eq!((lag(&broker, "group").await, shipped(&broker).await.len()), (0, 100));
    assert!(counted(&broker).await.iter().all(|(n, times)| n % 3 == 2 && *times == 1));
    broker.shutdown().await.unwrap();
}

async fn dropped_in_the_middle_the_outcome_decides(store: Store) {
    let broker = one_queue(&store).await;
    send(&broker, 0..20).await;
    let mut consumer = join(&broker, "group").await;
    for _ in 0..10 {
        let delivery = next(&mut consumer).await;
        {
            let mut transaction = Box::pin(broker.transaction(|t| process(t, &delivery)));
            drop(transaction.as_mut().now_or_never());
        }
        // While its outcome is open nobody else settles it; afterwards it is settled already.
        if let Err(error) = delivery.ack().await {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        }
    }
    for _ in 10..20 {
        let delivery = next(&mut consumer).await;
        broker.transaction(|t| process(t, &delivery)).await.unwrap();
    }
    common::until("the outcomes", || broker.describe_topic("shipping").unwrap().queues[0].end.get() == 20).await;
    assert_eq!((lag(&broker, "group").await, shipped(&broker).await), (0, (0..20).collect()));
    broker.shutdown().await.unwrap();
}

/// The process ends before, at or after each step, again and again; each order is counted and shipped once, whether they
/// come one by one or in batches.
async fn each_effect_once_over_kills(store: Store) {
    const ORDERS: u64 = 16;
    let broker = one_queue(&store).await;
    send(&broker, 0..ORDERS).await;
    broker.shutdown().await.unwrap();
    for round in 0u64.. {
        let broker = store.open().await;
        if counted(&broker).await.len() as u64 == ORDERS {
            assert_eq!(lag(&broker, "group").await, 0);
            assert_each_once(&broker, ORDERS).await;
            broker.shutdown().await.unwrap();
            return;
        }
        let mut consumer = join(&broker, "group").await;
        let most = if round % 8 < 4 { 1 } else { 3 };
        let batch = soon("orders", consumer.next_messages(most)).await.unwrap();
        let work = |t: &mut ApplicationTransaction| process_all(t, &batch);
        match round % 4 {
            // Before it began.
            0 => {}
            // After its work, before its write.
            1 => {
                store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
                // A write of the group may meet the fault instead.
                drop(broker.transaction(work).await);
                store.faults.clear(Operation::Apply);
            }
            // While it is on its way.
            2 => {
                let mut transaction = Box::pin(broker.transaction(work));
                // It may be through already.
                drop(transaction.as_mut().now_or_never());
            }
            // Right after it.
            _ => drop(broker.transaction(work).await.unwrap()),
        }
        drop((batch, consumer));
        store.kill(broker).await;
    }
}

async fn a_batch_is_settled_as_a_whole(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, 0..9).await;
    let mut consumer = join(&broker, "group").await;
    let mut batches = Vec::new();
    for _ in 0..3 {
        batches.push(soon("orders", consumer.next_messages(3)).await.unwrap());
    }
    // Several in one transaction, and the same twice.
    let all = |t: &mut ApplicationTransaction| {
        batches.iter().try_for_each(|batch| process_all(t, batch))?;
        t.ack(&batches[0])
    };
    broker.transaction(all).await.unwrap();
    assert_eq!(lag(&broker, "group").await, 0);
    let late = broker.transaction(|t| process_all(t, &batches[1])).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale, "{late}");
    // Settled is settled, whatever becomes of them.
    let (first, second) = (batches.remove(0), batches.remove(0));
    first.ack().await.unwrap();
    assert!(second.into_deliveries().is_empty());
    drop(batches);
    clock.advance(Duration::from_secs(9));
    assert_nothing(&mut consumer, "all of it is done");
    assert_each_once(&broker, 9).await;
    // There is room for more: nothing counts as out any more.
    send(&broker, 9..12).await;
    assert_eq!(take(&mut consumer, 3).await.iter().map(number_of).collect::<Vec<_>>(), [9, 10, 11]);
    drop(consumer);
    store.kill(broker).await;
    let broker = store.open().await;
    assert_eq!(lag(&broker, "group").await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_batch_that_is_not_committed_stays_in_hand(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.create_topic(TopicSpec::new("shipping").queues(1)).await.unwrap();
    send(&broker, 0..7).await;
    let mut consumer = join(&broker, "group").await;
    let first = next(&mut consumer).await;
    // With this, everything that the group had to write is written.
    broker.transaction(|t| process(t, &first)).await.unwrap();
    let batch = soon("orders", consumer.next_messages(3)).await.unwrap();
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    let refused = broker.transaction(|t| process_all(t, &batch)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert_eq!((lag(&broker, "group").await, counted(&broker).await.len()), (6, 1));
    // It can still be parted, and each message go its own way.
    for delivery in batch.into_deliveries() {
        broker.transaction(|t| process(t, &delivery)).await.unwrap();
    }
    let batch = soon("orders", consumer.next_messages(3)).await.unwrap();
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    broker.transaction(|t| process_all(t, &batch)).await.unwrap_err();
    // Dropped it comes again, as ever.
    drop(batch);
    assert_nothing(&mut consumer, "it comes after a second");
    clock.advance(Duration::from_secs(1));
    for _ in 0..3 {
        let delivery = next(&mut consumer).await;
        broker.transaction(|t| process(t, &delivery)).await.unwrap();
    }
    assert_each_once(&broker, 7).await;
    assert_eq!(lag(&broker, "group").await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_batch_of_which_something_was_done_before_is_refused(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.create_topic(TopicSpec::new("shipping").queues(1)).await.unwrap();
    send(&broker, 0..6).await;
    let mut consumer = join(&broker, "group").await;
    let batch = soon("orders", consumer.next_messages(6)).await.unwrap();
    assert_eq!(batch.len(), 6);
    // An operator has the group skip what somebody works on.
    broker.skip("group", "orders", Skip::KeepLast(2)).await.unwrap().confirm().await.unwrap();
    let refused = broker.transaction(|t| process_all(t, &batch)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale, "{refused}");
    assert!(refused.to_string().contains("offset 0 of queue orders/0"), "{refused}");
    assert!(counted(&broker).await.is_empty() && shipped(&broker).await.is_empty());
    drop(batch);
    clock.advance(Duration::from_secs(1));
    let rest = [next(&mut consumer).await, next(&mut consumer).await];
    let again = rest.each_ref().map(|delivery| number_of(delivery));
    assert_eq!(again, [4, 5], "the rest comes again, without what is done");
    broker.transaction(|t| rest.iter().try_for_each(|delivery| process(t, delivery))).await.unwrap();
    assert_eq!((lag(&broker, "group").await, counted(&broker).await), (0, vec![(4, 1), (5, 1)]));
    drop(rest);
    clock.advance(Duration::from_secs(9));
    assert_nothing(&mut consumer, "all of it is done");
    broker.shutdown().await.unwrap();
}

async fn a_pull_consumer_commits_with_its_effects(store: Store) {
    let broker = one_queue(&store).await;
    send(&broker, 0..10).await;
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    let mut total = 0;
    for _ in 0..2 {
        let polled = pull.poll(3, Duration::ZERO).await.unwrap();
        total += polled.iter().map(number_of).sum::<u64>();
        let work = |t: &mut ApplicationTransaction| {
            t.put("sums", "all", total.to_string())?;
            t.commit_offset(&pull)
        };
        broker.transaction(work).await.unwrap();
    }
    // What was polled and not committed is polled again.
    assert_eq!(pull.poll(3, Duration::ZERO).await.unwrap().len(), 3);
    drop(pull);
    store.kill(broker).await;
    let broker = store.open().await;
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    let rest: Vec<u64> = pull.poll(99, Duration::ZERO).await.unwrap().iter().map(number_of).collect();
    assert_eq!(rest, [6, 7, 8, 9]);
    let sum = broker.transaction(|t| t.get("sums", "all")).await.unwrap().value.unwrap();
    assert_eq!(sum, (0..6).sum::<u64>().to_string());
    broker.shutdown().await.unwrap();
}

fn work(t: &mut ApplicationTransaction, pull: &PullConsumer) -> Result<()> {
    t.send("shipping", "three")?;
    t.commit_offset(pull)
}

async fn a_pull_consumer_that_was_overtaken_is_refused(store: Store) {
    let broker = one_queue(&store).await;
    send(&broker, 0..10).await;
    let (mut one, mut other) =
        (broker.pull_consumer("puller").await.unwrap(), broker.pull_consumer("puller").await.unwrap());
    for pull in [&mut one, &mut other] {
        pull.assign_topic("orders").await.unwrap();
        assert_eq!(pull.poll(3, Duration::ZERO).await.unwrap().len(), 3);
    }
    broker.transaction(|t| work(t, &one)).await.unwrap();
    let late = broker.transaction(|t| work(t, &other)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
    assert_eq!(read_all(&broker, "shipping").await.len(), 1);
    // The one in front goes on.
    one.poll(3, Duration::ZERO).await.unwrap();
    broker.transaction(|t| work(t, &one)).await.unwrap();
    let _member = join(&broker, "puller").await;
    one.poll(3, Duration::ZERO).await.unwrap();
    let held = broker.transaction(|t| work(t, &one)).await.unwrap_err();
    assert_eq!(held.kind(), ErrorKind::Conflict, "{held}");
    broker.shutdown().await.unwrap();
}

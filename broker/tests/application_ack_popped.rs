//! Popped messages acknowledged within transactions: with the effects or not at all, and only under a receipt that is
//! good at the commit.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use common::effects::{assert_each_once, count, counted, shipped};
use common::manual_clock;
use common::popping::{
    HOUR, MILLISECOND, SECOND, assert_nothing, consumer, in_flight, lag, pop, pop_one, receipts, send,
};
use common::store::Store;
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{ApplicationTransaction, Broker, ErrorKind, Popped, Result, TopicSpec};
use futures_util::FutureExt;

on_every_engine!(
    a_committed_transaction_settles_what_was_popped,
    one_that_is_not_committed_leaves_it_in_flight,
    a_receipt_that_is_not_good_refuses_everything,
    the_time_that_counts_is_that_of_the_commit,
    of_two_that_have_the_same_message_one_commits,
    beside_members_that_hold_the_queue,
    each_effect_once_over_kills,
);

fn process(t: &mut ApplicationTransaction, popped: &Popped) -> Result<()> {
    count(t, popped)?;
    t.ack(popped)
}

async fn topics(broker: &Broker) {
    for topic in ["orders", "shipping"] {
        broker.create_topic(TopicSpec::new(topic).queues(2)).await.unwrap();
    }
}

async fn a_committed_transaction_settles_what_was_popped(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    topics(&broker).await;
    send(&broker, 0..10).await;
    let consumer = consumer(&broker).await;
    let popped = pop(&consumer, 10).await;
    // Several at a time, one twice, and one of which only the receipt is left.
    let some = |t: &mut ApplicationTransaction| {
        popped[..4].iter().try_for_each(|popped| process(t, popped))?;
        t.ack(&popped[0])?;
        count(t, &popped[4])?;
        t.ack_receipt(&consumer, &popped[4].receipt())?;
        t.ack(&popped[4])
    };
    broker.transaction(some).await.unwrap();
    assert_eq!((in_flight(&broker).await, counted(&broker).await.len()), (5, 5));
    for popped in &popped[5..] {
        broker.transaction(|t| process(t, popped)).await.unwrap();
    }
    assert_eq!((in_flight(&broker).await, lag(&broker).await), (0, 0));
    assert_each_once(&broker, 10).await;
    // Settled is settled: the same answer again is no error, another effect is.
    popped[0].ack().await.unwrap();
    assert_eq!(popped[0].nack(None).await.unwrap_err().kind(), ErrorKind::Conflict);
    let late = broker.transaction(|t| process(t, &popped[0])).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale, "{late}");
    assert!(late.to_string().contains("acknowledged before"), "{late}");
    clock.advance(HOUR);
    assert_nothing(&consumer, "everything is done").await;
    drop((popped, consumer));
    store.kill(broker).await;
    let broker = store.open_at(&clock).await;
    assert_nothing(&common::popping::consumer(&broker).await, "it is done for ever").await;
    assert_each_once(&broker, 10).await;
    broker.shutdown().await.unwrap();
}

async fn one_that_is_not_committed_leaves_it_in_flight(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    topics(&broker).await;
    send(&broker, 0..2).await;
    let consumer = consumer(&broker).await;
    let mut both = pop(&consumer, 2).await;
    let (first, popped) = (both.remove(0), both.remove(0));
    // With this, everything that the group had to write is written.
    broker.transaction(|t| process(t, &first)).await.unwrap();
    let given_up = broker
        .transaction(|t| {
            process(t, &popped)?;
            Err::<(), _>(cuemq::Error::aborted("no"))
        })
        .await
        .unwrap_err();
    assert_eq!(given_up.kind(), ErrorKind::Aborted);
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    let refused = broker.transaction(|t| process(t, &popped)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert_eq!((in_flight(&broker).await, counted(&broker).await.len()), (1, 1));
    // Its time runs on as if nothing had been.
    clock.advance(10 * SECOND - MILLISECOND);
    assert_nothing(&consumer, "it is invisible").await;
    clock.advance(MILLISECOND);
    let again = pop_one(&consumer).await;
    assert_eq!(again.attempts(), 1);
    broker.transaction(|t| process(t, &again)).await.unwrap();
    assert_eq!((in_flight(&broker).await, lag(&broker).await), (0, 0));
    assert_each_once(&broker, 2).await;
    broker.shutdown().await.unwrap();
}

async fn a_receipt_that_is_not_good_refuses_everything(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    topics(&broker).await;
    send(&broker, 0..5).await;
    let consumer = consumer(&broker).await;
    let mut popped = pop(&consumer, 5).await;
    let (good, expired) = (popped.pop().unwrap(), popped.pop().unwrap());
    let (given_back, rejected, mut renewed) = (popped.pop().unwrap(), popped.pop().unwrap(), popped.pop().unwrap());
    let good_receipt = consumer.renew(&good.receipt(), HOUR).await.unwrap();
    given_back.nack(Some(HOUR)).await.unwrap();
    rejected.reject("no").await.unwrap();
    let old = renewed.receipt();
    renewed.renew(HOUR).await.unwrap();
    clock.advance(10 * SECOND);
    let other = broker.pop_consumer("other").subscribe("orders").build().await.unwrap();
    for (receipt, by, kind, why) in [
        (&expired.receipt(), &consumer, ErrorKind::Stale, "expired"),
        (&old, &consumer, ErrorKind::Stale, "was renewed"),
        (&good.receipt(), &consumer, ErrorKind::Stale, "was renewed"),
        (&given_back.receipt(), &consumer, ErrorKind::Conflict, "given back"),
        (&rejected.receipt(), &consumer, ErrorKind::Conflict, "rejected"),
        (&good_receipt, &other, ErrorKind::Invalid, "never given out by group other"),
    ] {
        // The good one is spoilt by the other, whichever comes first.
        for first in [true, false] {
            let work = |t: &mut ApplicationTransaction| {
                count(t, &good)?;
                let receipts = [(by, receipt), (&consumer, &good_receipt)];
                let (one, two) = if first { (receipts[0], receipts[1]) } else { (receipts[1], receipts[0]) };
                t.ack_receipt(one.0, one.1)?;
                t.ack_receipt(two.0, two.1)
            };
            let refused = broker.transaction(work).await.unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(refused.to_string().contains(why), "{refused}");
            assert!(counted(&broker).await.is_empty() && shipped(&broker).await.is_empty());
        }
    }
    // None of it did the good one any harm.
    let work = |t: &mut ApplicationTransaction| {
        count(t, &good)?;
        t.ack_receipt(&consumer, &good_receipt)?;
        process(t, &renewed)
    };
    broker.transaction(work).await.unwrap();
    assert_eq!(counted(&broker).await.len(), 2);
    drop((other, consumer));
    // A receipt ends with the broker.
    let consumer = common::popping::consumer(&broker).await;
    let last = pop_one(&consumer).await;
    let receipt = last.receipt();
    drop((good, expired, given_back, rejected, renewed, last, consumer));
    let broker = store.reopen_at(broker, &clock).await;
    let consumer = common::popping::consumer(&broker).await;
    let earlier = broker.transaction(|t| t.ack_receipt(&consumer, &receipt)).await.unwrap_err();
    assert_eq!(earlier.kind(), ErrorKind::Stale, "{earlier}");
    broker.shutdown().await.unwrap();
}

async fn the_time_that_counts_is_that_of_the_commit(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    topics(&broker).await;
    send(&broker, 0..1).await;
    let consumer = consumer(&broker).await;
    let popped = pop_one(&consumer).await;
    // The work takes longer than the message is invisible.
    let slow = |t: &mut ApplicationTransaction| {
        process(t, &popped)?;
        clock.advance(10 * SECOND);
        Ok(())
    };
    let late = broker.transaction(slow).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale, "{late}");
    assert!(counted(&broker).await.is_empty());
    let again = pop_one(&consumer).await;
    // With this, everything that the group had to write is written.
    broker.transaction(|t| t.ack_receipt(&consumer, &popped.receipt())).await.unwrap_err();
    // One that is committed within its time is done, however long its write takes.
    let gate = store.faults.hold(Operation::Apply);
    let mut transaction = Box::pin(broker.transaction(|t| process(t, &again)));
    assert!(transaction.as_mut().now_or_never().is_none());
    gate.wait_for(1);
    clock.advance(HOUR);
    drop(gate);
    transaction.await.unwrap();
    clock.advance(HOUR);
    assert_nothing(&consumer, "it is done").await;
    assert_eq!((in_flight(&broker).await, lag(&broker).await), (0, 0));
    assert_each_once(&broker, 1).await;
    broker.shutdown().await.unwrap();
}

async fn of_two_that_have_the_same_message_one_commits(store: Store) {
    let broker = store.open().await;
    topics(&broker).await;
    send(&broker, 0..20).await;
    let consumer = consumer(&broker).await;
    for _ in 0..20 {
        let popped = pop_one(&consumer).await;
        let work = || broker.transaction(|t| process(t, &popped));
        let (one, two) = tokio::join!(work(), work());
        let refused = match (one, two) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            (one, two) => panic!("{one:?}, {two:?}"),
        };
        assert_eq!(refused.kind(), ErrorKind::Stale, "{refused}");
    }
    // The same against an ordinary answer.
    send(&broker, 20..40).await;
    for n in 20..40 {
        let popped = pop_one(&consumer).await;
        let (transaction, answer) = tokio::join!(broker.transaction(|t| process(t, &popped)), popped.nack(Some(HOUR)));
        assert_ne!(transaction.is_ok(), answer.is_ok(), "{n}: {transaction:?}, {answer:?}");
    }
    assert!(counted(&broker).await.iter().all(|(_, times)| *times == 1));
    assert_eq!((in_flight(&broker).await, lag(&broker).await), (0, 0));
    broker.shutdown().await.unwrap();
}

/// What was popped is acknowledged while the queue has moved on to a member.
async fn beside_members_that_hold_the_queue(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.create_topic(TopicSpec::new("shipping").queues(1)).await.unwrap();
    send(&broker, 0..6).await;
    let consumer = consumer(&broker).await;
    let popped = pop(&consumer, 3).await;
    let (done, left) = (&popped[..2], &popped[2]);
    drop(consumer);
    let mut member = broker.consumer("group").subscribe("orders").build().await.unwrap();
    for _ in 3..6 {
        let delivery = common::next(&mut member).await;
        let work = |t: &mut ApplicationTransaction| {
            count(t, &delivery)?;
            t.ack(&delivery)
        };
        broker.transaction(work).await.unwrap();
    }
    broker.transaction(|t| done.iter().try_for_each(|popped| process(t, popped))).await.unwrap();
    assert_eq!(lag(&broker).await, 4, "the oldest that is open counts");
    clock.advance(10 * SECOND);
    let again = common::next(&mut member).await;
    assert_eq!(again.attempts(), 1);
    assert_eq!(broker.transaction(|t| process(t, left)).await.unwrap_err().kind(), ErrorKind::Stale);
    let work = |t: &mut ApplicationTransaction| {
        count(t, &again)?;
        t.ack(&again)
    };
    broker.transaction(work).await.unwrap();
    assert_eq!(lag(&broker).await, 0);
    assert_each_once(&broker, 6).await;
    broker.shutdown().await.unwrap();
}

/// The process ends before, at or after each step, again and again.
async fn each_effect_once_over_kills(store: Store) {
    const ORDERS: u64 = 16;
    let broker = store.open().await;
    topics(&broker).await;
    send(&broker, 0..ORDERS).await;
    broker.shutdown().await.unwrap();
    for round in 0u64.. {
        let broker = store.open().await;
        if counted(&broker).await.len() as u64 == ORDERS {
            assert_eq!(lag(&broker).await, 0);
            assert_each_once(&broker, ORDERS).await;
            broker.shutdown().await.unwrap();
            return;
        }
        let consumer = consumer(&broker).await;
        // At least one of those that are left.
        let mut popped = vec![pop_one(&consumer).await];
        popped.extend(consumer.pop(2, std::time::Duration::ZERO).await.unwrap());
        let work = |t: &mut ApplicationTransaction| popped.iter().try_for_each(|popped| process(t, popped));
        match round % 5 {
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
            // With an ordinary acknowledgement right behind it.
            3 => {
                broker.transaction(work).await.unwrap();
                consumer.ack_all(&receipts(&popped)).await.into_iter().for_each(|result| result.unwrap());
            }
            // Right after it.
            _ => drop(broker.transaction(work).await.unwrap()),
        }
        drop((popped, consumer));
        store.kill(broker).await;
    }
}

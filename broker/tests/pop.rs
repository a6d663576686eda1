//! Any number of consumers pop a group's messages, each under a receipt: what is settled is done, what is not comes
//! again when its invisible time is over, and a receipt that is not good says why.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::checker::number_of;
use common::popping::{
    HOUR, MILLISECOND, NOW, SECOND, assert_nothing, consumer, done, in_flight, lag, numbers, pop, pop_one, receipts,
    send,
};
use common::store::Store;
use common::{Settler, manual_clock, read_all};
use cuemq::{DeadReason, ErrorKind, PopReceipt, RetryPolicy, TopicSpec};

on_every_engine!(
    what_is_acknowledged_is_done,
    a_lost_acknowledgement_costs_a_duplicate,
    a_renewal_gives_more_time,
    a_message_comes_again_after_the_pause_it_is_given,
    attempts_are_exact_across_kills,
    after_the_last_redelivery_there_is_a_dead_letter,
    a_rejected_message_is_a_dead_letter_at_once,
    a_receipt_that_is_not_good_says_why,
    receipts_end_with_the_broker,
    acknowledgements_in_any_order_leave_nothing_open,
    a_kill_loses_nothing,
);

async fn what_is_acknowledged_is_done(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..20).await;
    let first = consumer(&broker).await;
    let popped = pop(&first, 8).await;
    assert!(popped.iter().all(|popped| popped.attempts() == 0 && popped.topic() == "orders"));
    assert_eq!(in_flight(&broker).await, 8);
    // By itself, by its receipt from another consumer, and many with one write; none of it twice.
    popped[0].ack().await.unwrap();
    consumer(&broker).await.ack(&popped[1].receipt()).await.unwrap();
    let printed: Vec<PopReceipt> = popped[2..].iter().map(|p| p.receipt().to_string().parse().unwrap()).collect();
    for result in first.ack_all(&printed).await {
        result.unwrap();
    }
    assert_eq!(in_flight(&broker).await, 0);
    let rest = pop(&first, 12).await;
    assert!(numbers(&rest).is_disjoint(&numbers(&popped)));
    assert!(first.ack_messages(&rest).await.iter().all(Result::is_ok));
    assert_eq!(first.ack_messages(&popped).await.iter().filter(|again| again.is_ok()).count(), 8, "as before");
    assert_eq!(lag(&broker).await, 0);
    clock.advance(HOUR);
    assert_nothing(&first, "everything is done").await;
    drop((popped, rest, first));
    let broker = store.reopen_at(broker, &clock).await;
    assert_nothing(&consumer(&broker).await, "it is done for ever").await;
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_lost_acknowledgement_costs_a_duplicate(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..1).await;
    let consumer = consumer(&broker).await;
    for attempts in 0..4 {
        let popped = pop_one(&consumer).await;
        assert_eq!((number_of(&popped), popped.attempts()), (0, attempts), "attempts are exact");
        assert_eq!(popped.invisible_until(), clock.now().plus(10 * SECOND));
        clock.advance(10 * SECOND - MILLISECOND);
        assert_nothing(&consumer, "not a millisecond early").await;
        clock.advance(MILLISECOND);
        let late = popped.ack().await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Stale, "{late}");
        assert!(late.to_string().contains("comes again"), "{late}");
    }
    let last = pop_one(&consumer).await;
    assert_eq!(last.attempts(), 4);
    assert_eq!(last.last_error(), Some("nobody settled it within its invisible time"));
    last.ack().await.unwrap();
    clock.advance(HOUR);
    assert_nothing(&consumer, "it is done").await;
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_renewal_gives_more_time(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..1).await;
    let consumer = consumer(&broker).await;
    let mut popped = pop_one(&consumer).await;
    let mut old = Vec::new();
    for _ in 0..5 {
        clock.advance(9 * SECOND);
        old.push(popped.receipt());
        popped.renew(10 * SECOND).await.unwrap();
        assert_eq!(popped.invisible_until(), clock.now().plus(10 * SECOND));
        assert_nothing(&consumer, "it is renewed").await;
    }
    for receipt in &old {
        for refused in [consumer.ack(receipt).await, consumer.nack(receipt, None).await] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Stale);
            assert!(refused.to_string().contains("renewed"), "{refused}");
        }
    }
    assert_eq!(in_flight(&broker).await, 1);
    // By receipt too, and down to nothing: it comes again at once.
    let shorter = consumer.renew(&popped.receipt(), NOW).await.unwrap();
    let again = pop_one(&consumer).await;
    assert_eq!(again.attempts(), 1);
    assert_eq!(consumer.ack(&shorter).await.unwrap_err().kind(), ErrorKind::Stale);
    again.ack().await.unwrap();
    assert_eq!(consumer.renew(&again.receipt(), SECOND).await.unwrap_err().kind(), ErrorKind::Conflict);
    broker.shutdown().await.unwrap();
}

async fn a_message_comes_again_after_the_pause_it_is_given(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..1).await;
    let mut settler = Settler::new(&broker, &clock).await;
    let consumer = consumer(&broker).await;
    let origin = pop_one(&consumer).await;
    origin.nack(Some(7 * SECOND)).await.unwrap();
    origin.nack(None).await.unwrap();
    for (attempts, pause, then) in [(1, 7, None), (2, 30, Some(NOW)), (3, 0, Some(100 * SECOND)), (4, 100, None)] {
        let pause = Duration::from_secs(pause);
        if !pause.is_zero() {
            clock.advance(pause - MILLISECOND);
            settler.settle().await;
            assert_nothing(&consumer, "not a millisecond early").await;
            clock.advance(MILLISECOND);
        }
        let popped = pop_one(&consumer).await;
        assert_eq!((popped.attempts(), popped.origin_id()), (attempts, origin.id()));
        popped.nack(then).await.unwrap();
    }
    // After its fifth failure: two minutes by the group's policy.
    clock.advance(180 * SECOND);
    let last = pop_one(&consumer).await;
    assert_eq!(last.attempts(), 5);
    last.ack().await.unwrap();
    assert_eq!((lag(&broker).await, in_flight(&broker).await), (0, 0));
    broker.shutdown().await.unwrap();
}

async fn attempts_are_exact_across_kills(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    send(&broker, 0..1).await;
    for attempts in 0..5 {
        let first = consumer(&broker).await;
        let popped = pop_one(&first).await;
        assert_eq!(popped.attempts(), attempts);
        if attempts % 2 == 0 {
            clock.advance(10 * SECOND);
            // It has expired once it is there again; that delivery is lost with the broker.
            pop_one(&first).await;
        } else {
            popped.nack(Some(NOW)).await.unwrap();
        }
        drop((first, popped));
        store.kill(broker).await;
        broker = store.open_at(&clock).await;
    }
    let last = consumer(&broker).await;
    let popped = pop_one(&last).await;
    assert_eq!(popped.attempts(), 5);
    popped.ack().await.unwrap();
    assert_nothing(&last, "it is done").await;
    broker.shutdown().await.unwrap();
}

async fn after_the_last_redelivery_there_is_a_dead_letter(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..1).await;
    let policy = RetryPolicy::Fixed { pause: SECOND, redeliveries: 2 };
    let consumer = broker.pop_consumer("group").subscribe("orders").retry_policy(policy).build().await.unwrap();
    let first = pop_one(&consumer).await;
    first.nack(Some(NOW)).await.unwrap();
    // One that nobody settles fails as well.
    pop_one(&consumer).await;
    clock.advance(60 * SECOND);
    let last = pop_one(&consumer).await;
    assert_eq!(last.attempts(), 2);
    last.nack(None).await.unwrap();
    let dead = read_all(&broker, "%DLQ%group").await;
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].attempts(), dead[0].dead_reason()), (3, Some(DeadReason::RetriesExceeded)));
    assert_eq!(dead[0].origin_id(), first.id());
    clock.advance(HOUR);
    assert_nothing(&consumer, "it is dead").await;
    broker.shutdown().await.unwrap();
}

async fn a_rejected_message_is_a_dead_letter_at_once(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..2).await;
    let consumer = consumer(&broker).await;
    let popped = pop(&consumer, 2).await;
    popped[0].reject("no such customer").await.unwrap();
    popped[0].reject("again").await.unwrap();
    consumer.reject(&popped[1].receipt(), "by its receipt").await.unwrap();
    let dead = read_all(&broker, "%DLQ%group").await;
    let said: Vec<_> = dead.iter().map(|dead| (dead.dead_reason().unwrap(), dead.last_error().unwrap())).collect();
    assert_eq!(said, [(DeadReason::Rejected, "no such customer"), (DeadReason::Rejected, "by its receipt")]);
    assert_eq!((lag(&broker).await, in_flight(&broker).await), (0, 0));
    clock.advance(HOUR);
    assert_nothing(&consumer, "they are dead").await;
    broker.shutdown().await.unwrap();
}

async fn a_receipt_that_is_not_good_says_why(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..6).await;
    let consumer = consumer(&broker).await;
    let mut popped = pop(&consumer, 6).await;
    popped[0].ack().await.unwrap();
    popped[1].nack(Some(HOUR)).await.unwrap();
    popped[2].reject("never").await.unwrap();
    // The first answer stands.
    for (at, first) in [(0, "acknowledged"), (1, "given back"), (2, "rejected")] {
        let popped = &popped[at];
        for (how, result) in
            [popped.ack().await, popped.nack(None).await, popped.reject("").await].into_iter().enumerate()
        {
            if how == at {
                result.unwrap();
                continue;
            }
            let refused = result.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict);
            assert!(refused.to_string().contains(first), "{refused}");
        }
    }
    // A receipt is not made up, nor taken for another one, nor to another group.
    let text = popped[3].receipt().to_string();
    let (body, seal) = text.rsplit_once(':').unwrap();
    let seal = u64::from_str_radix(seal, 16).unwrap();
    let forged: PopReceipt = format!("{body}:{:x}", seal ^ 1).parse().unwrap();
    let other = broker.pop_consumer("other").subscribe("orders").build().await.unwrap();
    for (result, why) in
        [(consumer.ack(&forged).await, "a forged one"), (other.ack(&popped[3].receipt()).await, "a strange one")]
    {
        let refused = result.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{why}");
        assert!(refused.to_string().contains("never given out"), "{why}: {refused}");
    }
    let (strange, left) = (pop(&other, 6).await, numbers(&popped[4..]));
    for refused in other.ack_messages(&popped[3..5]).await {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "what another group gave out");
    }
    let one_of_each: Vec<_> = strange.into_iter().skip(5).chain(popped.drain(5..)).collect();
    let results = other.ack_messages(&one_of_each).await;
    assert!(results[0].is_ok() && results[1].is_err(), "{results:?}");
    assert_eq!("no receipt".parse::<PopReceipt>().unwrap_err().kind(), ErrorKind::Invalid);
    // Of many each has its own answer, and the good ones count.
    let results = consumer.ack_all(&[forged, popped[3].receipt(), popped[1].receipt()]).await;
    let kinds: Vec<_> = results.into_iter().map(|result| result.map_err(|refused| refused.kind())).collect();
    assert_eq!(kinds, [Err(ErrorKind::Invalid), Ok(()), Err(ErrorKind::Conflict)]);
    let results = consumer.ack_messages(&popped[1..4]).await;
    let kinds: Vec<_> = results.into_iter().map(|result| result.map_err(|refused| refused.kind())).collect();
    assert_eq!(kinds, [Err(ErrorKind::Conflict), Err(ErrorKind::Conflict), Ok(())]);
    clock.advance(10 * SECOND);
    for result in [popped[4].ack().await, popped[4].nack(None).await, popped[4].reject("late").await] {
        let refused = result.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert!(refused.to_string().contains("expired at"), "{refused}");
    }
    popped[3].ack().await.unwrap();
    assert_eq!(numbers(&pop(&consumer, 2).await), left, "only what nobody settled comes again");
    broker.shutdown().await.unwrap();
}

async fn receipts_end_with_the_broker(store: Store) {
    let broker = store.open().await;
    send(&broker, 0..2).await;
    let before = consumer(&broker).await;
    let popped = pop(&before, 2).await;
    popped[0].ack().await.unwrap();
    drop(before);
    let broker = store.reopen(broker).await;
    let consumer = consumer(&broker).await;
    let refused = consumer.ack(&popped[1].receipt()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale);
    assert!(refused.to_string().contains("before the broker was opened"), "{refused}");
    let again = pop_one(&consumer).await;
    assert_eq!(number_of(&again), number_of(&popped[1]), "at once, and only what was not settled");
    again.ack().await.unwrap();
    assert_nothing(&consumer, "everything is done").await;
    broker.shutdown().await.unwrap();
}

async fn acknowledgements_in_any_order_leave_nothing_open(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, 0..300).await;
    let first = consumer(&broker).await;
    let popped = pop(&first, 300).await;
    let (kept, settled): (Vec<_>, Vec<_>) = popped.into_iter().partition(|popped| number_of(popped) % 7 == 3);
    let mut backwards = receipts(&settled);
    backwards.reverse();
    assert!(first.ack_all(&backwards).await.iter().all(Result::is_ok));
    assert_eq!(in_flight(&broker).await, kept.len());
    let expected = numbers(&kept);
    drop((first, kept, settled));
    store.kill(broker).await;
    let broker = store.open().await;
    let second = consumer(&broker).await;
    let again = pop(&second, expected.len()).await;
    assert_eq!(numbers(&again), expected, "exactly what was not acknowledged");
    done(&second, &again).await;
    assert_nothing(&second, "everything is done").await;
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_kill_loses_nothing(store: Store) {
    let mut broker = store.open().await;
    let mut acknowledged = BTreeSet::new();
    let mut sent = 0;
    for round in 0..6 {
        send(&broker, sent..sent + 20).await;
        sent += 20;
        let consumer = consumer(&broker).await;
        let popped = pop(&consumer, 15).await;
        assert!(numbers(&popped).is_disjoint(&acknowledged), "what is acknowledged never comes again");
        for (at, popped) in popped.iter().enumerate() {
            // Some are done, some wait for their retry, the rest is in flight when the broker dies.
            match (at + round) % 3 {
                0 => {
                    popped.ack().await.unwrap();
                    acknowledged.insert(number_of(popped));
                }
                1 => popped.nack(Some(NOW)).await.unwrap(),
                _ => {}
            }
        }
        drop((consumer, popped));
        store.kill(broker).await;
        broker = store.open().await;
    }
    let last = consumer(&broker).await;
    let mut rest = BTreeSet::new();
    while rest.len() + acknowledged.len() < usize::try_from(sent).unwrap() {
        let popped = pop_one(&last).await;
        assert!(rest.insert(number_of(&popped)), "no message comes twice without a failure");
        popped.ack().await.unwrap();
    }
    assert!(rest.is_disjoint(&acknowledged));
    assert_nothing(&last, "everything came").await;
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

//! One transaction over messages and the program's own tables: all of it or nothing, as if one ran after the other.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::store::Store;
use common::{bodies, manual_clock, read_all, soon};
use cuemq::limits::{MAX_TRANSACTION_ATTEMPTS, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_OPERATIONS};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{ApplicationTransaction, Broker, BrokerState, Error, ErrorKind, Flush, Message, Result, TopicSpec};
use futures_util::future::join_all;

on_every_engine!(
    rows_and_messages_are_stored_together,
    a_transaction_sees_its_own_writes,
    one_that_gives_up_changes_nothing,
    what_is_wrong_is_named_and_nothing_is_done,
    a_refused_write_does_nothing,
    no_increment_is_lost,
    two_that_read_what_the_other_writes_do_not_both_commit,
    a_row_that_appears_in_a_range_is_a_conflict,
    an_unlucky_one_gives_up_with_a_conflict,
    one_that_gives_up_has_seen_what_was,
    it_is_as_durable_as_its_safest_topic,
    delayed_messages_wait_for_their_time,
    it_outlives_the_process,
    a_reader_never_sees_a_part,
);

async fn text(broker: &Broker, key: &str) -> Option<String> {
    let row = broker.transaction(|t| t.get("rows", key)).await.unwrap().value;
    row.map(|row| String::from_utf8(row.to_vec()).unwrap())
}

fn number(t: &mut ApplicationTransaction, key: &str) -> Result<u64> {
    let row = t.get("rows", key)?;
    Ok(row.map_or(0, |row| std::str::from_utf8(&row).unwrap().parse().unwrap()))
}

fn set(t: &mut ApplicationTransaction, key: &str, number: u64) -> Result<()> {
    t.put("rows", key, number.to_string())
}

async fn rows_and_messages_are_stored_together(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("invoices").queues(1)).await.unwrap();
    let committed = broker
        .transaction(|t| {
            t.put("rows", "a", "1")?;
            t.send("orders", Message::new("order").sharding_key("k").key("k1"))?;
            t.send("invoices", "first")?;
            t.send("invoices", "second")?;
            Ok(7)
        })
        .await
        .unwrap();
    assert_eq!(committed.value, 7);
    // Once more because the topic of the orders had to be made.
    assert_eq!((committed.runs, committed.level), (2, store.durable_level()));
    let places: Vec<_> = committed.receipts.iter().map(|r| (r.topic.as_str(), r.offset.unwrap().get())).collect();
    assert_eq!(places, [("orders", 0), ("invoices", 0), ("invoices", 1)]);
    for (receipt, body) in committed.receipts.iter().zip(["order", "first", "second"]) {
        let message = broker.message(receipt.id.unwrap()).unwrap().unwrap();
        assert_eq!((message.body(), message.queue().queue), (&body.into(), receipt.queue));
    }
    assert_eq!(text(&broker, "a").await.as_deref(), Some("1"));
    let broker = store.reopen(broker).await;
    assert_eq!(text(&broker, "a").await.as_deref(), Some("1"));
    assert_eq!(bodies(&read_all(&broker, "invoices").await), ["first", "second"]);
    broker.shutdown().await.unwrap();
}

async fn a_transaction_sees_its_own_writes(store: Store) {
    let broker = store.open().await;
    let work = |t: &mut ApplicationTransaction| {
        t.put("rows", "a", "1")?;
        t.put("rows", "b", "2")?;
        t.put("others", "c", "3")
    };
    broker.transaction(work).await.unwrap();
    let seen = broker
        .transaction(|t| {
            t.delete("rows", "a")?;
            t.put("rows", "c", "4")?;
            assert_eq!(t.get("rows", "a")?, None);
            assert_eq!(t.get("rows", "c")?.unwrap(), "4");
            assert_eq!(t.get("others", "c")?.unwrap(), "3");
            t.scan("rows", "", None, 9)
        })
        .await
        .unwrap();
    let row = |key: &'static str, value: &'static str| (key.into(), value.into());
    assert_eq!(seen.value, [row("b", "2"), row("c", "4")]);
    let range = broker.transaction(|t| t.scan("rows", "b", Some(b"c"), 9)).await.unwrap();
    assert_eq!(range.value, [row("b", "2")]);
    broker.shutdown().await.unwrap();
}

async fn one_that_gives_up_changes_nothing(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders")).await.unwrap();
    let error = broker
        .transaction(|t| {
            t.put("rows", "a", "1")?;
            t.send("orders", "x")?;
            Err::<(), _>(Error::aborted("there is none left"))
        })
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Aborted, "there is none left"));
    assert_eq!(text(&broker, "a").await, None);
    assert!(read_all(&broker, "orders").await.is_empty());
    broker.shutdown().await.unwrap();
}

async fn what_is_wrong_is_named_and_nothing_is_done(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders")).await.unwrap();
    type Work = fn(&mut ApplicationTransaction) -> Result<()>;
    let cases: [(Work, ErrorKind, &str); 9] = [
        (|t| t.put("Rows", "a", "1"), ErrorKind::Invalid, "[a-z0-9_]"),
        (|t| t.get("rows", "").map(drop), ErrorKind::Invalid, "1 to 1024"),
        (|t| t.put("rows", "k".repeat(1025), "1"), ErrorKind::Invalid, "1 to 1024"),
        (|t| t.put("rows", "a", vec![0; (1 << 20) + 1]), ErrorKind::Invalid, "1048576"),
        (|t| t.send("orders", Message::new("x").property("__own", "1")), ErrorKind::Invalid, "__own"),
        (|t| t.send("no topic", "x"), ErrorKind::Invalid, "no topic"),
        (
            |t| (0..=MAX_TRANSACTION_OPERATIONS).try_for_each(|n| t.delete("rows", n.to_string())),
            ErrorKind::Invalid,
            "split it",
        ),
        (
            |t| (0..=MAX_TRANSACTION_BYTES >> 20).try_for_each(|n| t.put("rows", n.to_string(), vec![0; 1 << 20])),
            ErrorKind::Invalid,
            "split it",
        ),
        // One that passes over an error is not committed without what failed.
        (
            |t| {
                let _ = t.put("rows", "", "1");
                t.put("rows", "a", "1").or(Ok(()))
            },
            ErrorKind::Invalid,
            "1 to 1024",
        ),
    ];
    for (work, kind, named) in cases {
        let error = broker
            .transaction(|t| {
                t.put("rows", "before", "1")?;
                t.send("orders", "before")?;
                work(t)
            })
            .await
            .unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(named), "{error}");
    }
    assert_eq!(text(&broker, "before").await, None);
    assert!(read_all(&broker, "orders").await.is_empty());
    broker.shutdown().await.unwrap();
    let mut settings = cuemq::BrokerSettings::default();
    settings.auto_create_topics = false;
    let broker = store.builder().settings(settings).open().await.unwrap();
    let error = broker.transaction(|t| t.send("nowhere", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTopic, "{error}");
    broker.shutdown().await.unwrap();
    let ended = broker.transaction(|t| t.get("rows", "a")).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Closed, "{ended}");
}

async fn a_refused_write_does_nothing(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders")).await.unwrap();
    let work = |t: &mut ApplicationTransaction| {
        let before = number(t, "a")?;
        set(t, "a", before + 1)?;
        t.send("orders", before.to_string())
    };
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    let error = broker.transaction(work).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert_eq!(text(&broker, "a").await, None);
    broker.transaction(work).await.unwrap();
    assert_eq!(text(&broker, "a").await.as_deref(), Some("1"));
    assert_eq!(bodies(&read_all(&broker, "orders").await), ["0"]);
    assert_eq!(broker.state(), BrokerState::Running);
    broker.shutdown().await.unwrap();
}

/// More in each other's way than a transaction may run: those that lost often take turns.
async fn no_increment_is_lost(store: Store) {
    const WRITERS: u64 = 2 * MAX_TRANSACTION_ATTEMPTS as u64;
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let increments = (0..WRITERS).map(|_| {
        let broker = broker.clone();
        tokio::spawn(async move {
            for _ in 0..3 {
                let work = |t: &mut ApplicationTransaction| {
                    let before = number(t, "counter")?;
                    set(t, "counter", before + 1)?;
                    t.send("orders", before.to_string())
                };
                broker.transaction(work).await.unwrap();
            }
        })
    });
    soon("all increments", join_all(increments)).await.into_iter().for_each(|done| done.unwrap());
    assert_eq!(text(&broker, "counter").await.as_deref(), Some((3 * WRITERS).to_string().as_str()));
    let sent: Vec<u64> = bodies(&read_all(&broker, "orders").await).iter().map(|body| body.parse().unwrap()).collect();
    assert_eq!(sent, (0..3 * WRITERS).collect::<Vec<_>>(), "messages come in the order of the commits");
    broker.shutdown().await.unwrap();
}

/// The classic of write skew: each is fine alone, both together are not.
async fn two_that_read_what_the_other_writes_do_not_both_commit(store: Store) {
    let broker = store.open().await;
    for _ in 0..20 {
        let on_call = |t: &mut ApplicationTransaction| {
            set(t, "ada", 1)?;
            set(t, "bob", 1)
        };
        broker.transaction(on_call).await.unwrap();
        let leave = |who: &'static str| {
            let broker = broker.clone();
            async move {
                let leave = |t: &mut ApplicationTransaction| {
                    if number(t, "ada")? + number(t, "bob")? < 2 {
                        return Ok(false);
                    }
                    set(t, who, 0)?;
                    Ok(true)
                };
                broker.transaction(leave).await.unwrap().value
            }
        };
        let (ada, bob) = tokio::join!(leave("ada"), leave("bob"));
        assert!(ada != bob, "one of them stays");
    }
    broker.shutdown().await.unwrap();
}

async fn a_row_that_appears_in_a_range_is_a_conflict(store: Store) {
    let broker = store.open().await;
    let seats = (0..10).map(|n| {
        let broker = broker.clone();
        async move {
            let book = |t: &mut ApplicationTransaction| {
                let taken = t.scan("seats", "seat", Some(b"seau"), 100)?;
                if taken.len() >= 3 {
                    return Ok(false);
                }
                t.put("seats", format!("seat{n}"), "taken")?;
                Ok(true)
            };
            broker.transaction(book).await.unwrap().value
        }
    });
    let booked = soon("the bookings", join_all(seats)).await;
    assert_eq!(booked.iter().filter(|booked| **booked).count(), 3);
    let taken = broker.transaction(|t| t.scan("seats", "", None, 100)).await.unwrap().value;
    assert_eq!(taken.len(), 3);
    broker.shutdown().await.unwrap();
}

async fn an_unlucky_one_gives_up_with_a_conflict(store: Store) {
    let broker = store.open().await;
    let mut runs = 0;
    let (turn, mut turns) = tokio::sync::mpsc::unbounded_channel();
    let (write, written) = std::sync::mpsc::channel();
    let other = broker.clone();
    // Whenever it has read, somebody else writes before it comes to its commit.
    #[expect(clippy::disallowed_methods, reason = "joined before the test ends")]
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            while turns.recv().await.is_some() {
                let work = |t: &mut ApplicationTransaction| {
                    let before = number(t, "a")?;
                    set(t, "a", before + 1)
                };
                other.transaction(work).await.unwrap();
                write.send(()).unwrap();
            }
        });
    });
    let error = broker
        .transaction(|t| {
            runs += 1;
            let before = number(t, "a")?;
            turn.send(()).unwrap();
            written.recv().unwrap();
            set(t, "a", before + 1000)
        })
        .await
        .unwrap_err();
    assert_eq!((error.kind(), runs), (ErrorKind::Conflict, 64), "{error}");
    drop(turn);
    thread.join().unwrap();
    assert_eq!(text(&broker, "a").await.as_deref(), Some("64"));
    broker.shutdown().await.unwrap();
}

/// One that read two rows at two times has seen what never was, and must not give up because of it.
async fn one_that_gives_up_has_seen_what_was(store: Store) {
    let broker = store.open().await;
    let first = |t: &mut ApplicationTransaction| {
        set(t, "a", 1)?;
        set(t, "b", 0)
    };
    broker.transaction(first).await.unwrap();
    let (turn, turns) = std::sync::mpsc::channel::<()>();
    let (done, is_done) = std::sync::mpsc::channel();
    let other = broker.clone();
    #[expect(clippy::disallowed_methods, reason = "joined before the test ends")]
    let thread = std::thread::spawn(move || {
        turns.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let swap = |t: &mut ApplicationTransaction| {
            set(t, "a", 0)?;
            set(t, "b", 1)
        };
        runtime.block_on(other.transaction(swap)).unwrap();
        done.send(()).unwrap();
    });
    let mut runs = 0;
    let sum = broker
        .transaction(|t| {
            runs += 1;
            let b = number(t, "b")?;
            if runs == 1 {
                turn.send(()).unwrap();
                is_done.recv().unwrap();
            }
            let sum = number(t, "a")? + b;
            if sum == 1 { Ok(sum) } else { Err(Error::aborted(format!("a sum of {sum}"))) }
        })
        .await
        .unwrap();
    assert_eq!((sum.value, sum.runs), (1, 2));
    thread.join().unwrap();
    broker.shutdown().await.unwrap();
}

async fn it_is_as_durable_as_its_safest_topic(store: Store) {
    let mut settings = cuemq::BrokerSettings::default();
    settings.flush = Flush::Buffered;
    let broker = store.builder().settings(settings).open().await.unwrap();
    broker.create_topic(TopicSpec::new("safe").flush(Flush::Durable)).await.unwrap();
    broker.create_topic(TopicSpec::new("quick").flush(Flush::Buffered)).await.unwrap();
    let put = broker.transaction(|t| t.put("rows", "a", "1")).await.unwrap();
    assert_eq!(put.level, store.buffered_level());
    let quick = broker.transaction(|t| t.send("quick", "1")).await.unwrap();
    assert_eq!((quick.level, quick.receipts[0].level), (store.buffered_level(), store.buffered_level()));
    let both = |t: &mut ApplicationTransaction| {
        t.send("quick", "2")?;
        t.send("safe", "2")
    };
    let both = broker.transaction(both).await.unwrap();
    assert_eq!((both.level, both.receipts[0].level), (store.durable_level(), store.durable_level()));
    broker.shutdown().await.unwrap();
}

async fn delayed_messages_wait_for_their_time(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders")).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let committed =
        broker.transaction(|t| t.send("orders", Message::new("late").delay(Duration::from_secs(5)))).await.unwrap();
    assert_eq!((committed.receipts[0].offset, committed.receipts[0].id), (None, None));
    let mut settler = common::Settler::new(&broker, &clock).await;
    common::pass(&mut settler, &clock, &mut consumer, Duration::from_secs(5)).await;
    assert_eq!(common::text(&common::take(&mut consumer, 1).await[0]), "late");
    broker.shutdown().await.unwrap();
}

async fn it_outlives_the_process(store: Store) {
    let broker = store.open().await;
    let work = |t: &mut ApplicationTransaction| {
        set(t, "a", 1)?;
        t.send("orders", "1")?;
        t.send("invoices", "1")
    };
    broker.transaction(work).await.unwrap();
    // Begun and never awaited to its end: all of it is there, or nothing.
    let mut second = Box::pin(broker.transaction(|t| {
        set(t, "a", 2)?;
        t.send("orders", "2")?;
        t.send("invoices", "2")
    }));
    drop(futures_util::FutureExt::now_or_never(second.as_mut()));
    drop(second);
    store.kill(broker).await;
    let broker = store.open().await;
    let row = text(&broker, "a").await.unwrap();
    let expected: Vec<String> = (1..=row.parse().unwrap()).map(|n: u64| n.to_string()).collect();
    for topic in ["orders", "invoices"] {
        let mut found = bodies(&read_all(&broker, topic).await);
        found.sort();
        assert_eq!(found, expected, "{topic}");
    }
    broker.shutdown().await.unwrap();
}

/// One topic is durable and the other is not, others send to both: whoever has read a message in one of them finds its
/// other half.
async fn a_reader_never_sees_a_part(store: Store) {
    const TRANSACTIONS: usize = 150;
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("safe").queues(1).flush(Flush::Durable)).await.unwrap();
    broker.create_topic(TopicSpec::new("quick").queues(1).flush(Flush::Buffered)).await.unwrap();
    let others = broker.clone();
    #[expect(clippy::disallowed_methods, reason = "joined before the test ends")]
    let reader = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut pulls = Vec::new();
            for topic in ["safe", "quick"] {
                let mut pull = others.pull_consumer(topic).await.unwrap();
                pull.assign_topic(topic).await.unwrap();
                pulls.push((pull, 0));
            }
            while pulls[0].1 < TRANSACTIONS {
                for here in [0, 1, 0] {
                    let before = pulls[1 - here].1;
                    loop {
                        let polled = pulls[here].0.poll(100, Duration::ZERO).await.unwrap();
                        pulls[here].1 += polled.iter().filter(|message| message.tag() == Some("both")).count();
                        if polled.is_empty() {
                            break;
                        }
                    }
                    assert!(pulls[here].1 >= before, "a part was seen without the other");
                }
                std::thread::yield_now();
            }
        });
    });
    let (safe, quick) = (broker.producer("safe").await.unwrap(), broker.producer("quick").await.unwrap());
    for n in 0..TRANSACTIONS {
        let both = |t: &mut ApplicationTransaction| {
            t.send("safe", Message::new(n.to_string()).tag("both"))?;
            t.send("quick", Message::new(n.to_string()).tag("both"))
        };
        let (done, ..) = tokio::join!(broker.transaction(both), safe.send("alone"), quick.send("alone"));
        done.unwrap();
    }
    reader.join().unwrap();
    broker.shutdown().await.unwrap();
}

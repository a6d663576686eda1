//! A panic of an actor costs the request at hand and nothing else: whoever else asked is answered, what was
//! acknowledged is there, order holds, and the same handles go on working. Too many panics end the broker, in the open.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]
#![allow(clippy::print_stdout, reason = "a failure says which panic it followed")]

#[macro_use]
mod common;
#[path = "supervision/scenario.rs"]
mod scenario;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{manual_clock, next, read_all, soon, take};
use cuemq::{Broker, BrokerState, Decision, ErrorKind, HalfMessage, Message, Publish, TopicSpec, TransactionId};
use scenario::{Poison, play};

/// Every message and every timer of every kind of actor.
const POINTS: [(&str, &str); 56] = [
    ("application", "Landed"),
    ("application", "Prepared"),
    ("application", "Submit"),
    ("delay", "Alarm"),
    ("delay", "Change"),
    ("delay", "Fired"),
    ("delay", "Recur"),
    ("delay", "Schedule"),
    ("delay", "Stored"),
    ("expiry", "Alarm"),
    ("expiry", "Stored"),
    ("gateway", "Publish"),
    ("gateway", "PublishBatch"),
    ("group", "Acknowledge"),
    ("group", "CatchUp"),
    ("group", "Close"),
    ("group", "Committed"),
    ("group", "Concluded"),
    ("group", "Configure"),
    ("group", "Deadline"),
    ("group", "Describe"),
    ("group", "Fail"),
    ("group", "FailInPlace"),
    ("group", "Failed"),
    ("group", "Hold"),
    ("group", "Join"),
    ("group", "Leave"),
    ("group", "Letters"),
    ("group", "LettersHandled"),
    ("group", "MakeRoom"),
    ("group", "Operate"),
    ("group", "PopAck"),
    ("group", "PopFail"),
    ("group", "PopLeave"),
    ("group", "PopOpen"),
    ("group", "PopRenew"),
    ("group", "PopTake"),
    ("group", "PopTakeBack"),
    ("group", "Prepare"),
    ("group", "Released"),
    ("group", "Reset"),
    ("group", "TopicChanged"),
    ("group", "Withdraw"),
    ("group", "Withdrawn"),
    ("queue", "Append"),
    ("root", "CreateTopic"),
    ("root", "DeleteTopic"),
    ("root", "EnsureGroup"),
    ("root", "SetQueues"),
    ("topic", "AppendAcross"),
    ("transaction", "Alarm"),
    ("transaction", "Begin"),
    ("transaction", "End"),
    ("transaction", "Finished"),
    ("transaction", "NotBegun"),
    ("transaction", "Register"),
];

/// Nobody asks for it twice, and it comes only when a producer is dropped.
const UNREGISTER: (&str, &str) = ("transaction", "Unregister");
/// Comes once at an opening, mostly before a panic can be ordered.
const COUNT_ON: (&str, &str) = ("delay", "CountOn");

on_every_engine!(
    one_panic_costs_one_request,
    the_table_covers_what_the_scenario_meets,
    too_many_panics_end_the_broker,
    a_panic_under_load_loses_one_request,
    a_group_that_is_given_up_lets_nobody_wait,
    a_callback_that_panics_disturbs_nobody,
);

async fn one_panic_costs_one_request(store: Store) {
    for (actor, message) in POINTS.into_iter().chain([UNREGISTER]) {
        // Catching up follows a panic, so there is one before.
        let poison = match message {
            "CatchUp" => Poison::first(&[("group", "Describe"), (actor, message)]),
            _ => Poison::first(&[(actor, message)]),
        };
        println!("a panic of {actor} at {message}");
        play(&Store::new(store.kind), &poison).await;
        assert_eq!(poison.left(), 0, "{actor} never met {message}");
    }
}

async fn the_table_covers_what_the_scenario_meets(store: Store) {
    let poison = Poison::first(&[("group", "Describe")]);
    play(&store, &poison).await;
    let table: BTreeSet<(String, String)> = POINTS
        .into_iter()
        .chain([UNREGISTER, COUNT_ON])
        .map(|(actor, message)| (actor.into(), message.into()))
        .collect();
    assert_eq!(poison.seen(), table, "what the scenario meets is in the table, and the other way round");
}

/// A message that was added to the actors and not to the scenario is found in their source.
#[test]
fn the_table_covers_the_source() {
    let mut names = BTreeSet::new();
    let actors = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/actors");
    let mut folders = vec![actors];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                collect_names(&std::fs::read_to_string(path).unwrap(), &mut names);
            }
        }
    }
    let table: BTreeSet<String> =
        POINTS.into_iter().chain([UNREGISTER, COUNT_ON]).map(|(_, name)| name.to_owned()).collect();
    assert_eq!(names, table);
}

/// The last argument of each call of a probe, or the names that stand in for it.
fn collect_names(source: &str, names: &mut BTreeSet<String>) {
    let quoted = |line: &str| line.rsplit('"').nth(1).map(str::to_owned);
    let probes = source.lines().map(str::trim).filter(|line| line.contains(".probe(KIND,") && line.ends_with("\");"));
    names.extend(probes.filter_map(quoted));
    for name in source.split("fn name(&self) -> &'static str").skip(1) {
        let body = name.split("\n    }\n").next().unwrap();
        names.extend(body.lines().filter(|line| line.contains("=> \"")).filter_map(quoted));
    }
}

/// Panics at every message of this name from now on.
fn always(actor: &'static str, message: &'static str) -> impl Fn(cuemq::ProbePoint<'_>) + Send + Sync {
    move |point| {
        assert!(point.actor != actor || point.message != message, "{actor} at {message}, on purpose");
    }
}

/// Asks what the actor panics at.
async fn ask(broker: &Broker, actor: &str) -> ErrorKind {
    let producer = broker.producer("orders").await.unwrap();
    let across = producer.clone().with_selector(|message, _| u32::from(message.body()[0]));
    let error = match actor {
        "application" => broker.transaction(|t| t.get("rows", "a")).await.map(drop),
        "root" => broker.create_topic(TopicSpec::new("new")).await.map(drop),
        "queue" => producer.send("x").await.map(drop),
        "topic" => across.send_batch(vec![Message::new(vec![0]), Message::new(vec![1])]).await.map(drop),
        "delay" => producer.send(Message::new("x").delay_level(1)).await.map(drop),
        "group" => broker.describe_group("group").await.map(drop),
        "gateway" => {
            let publish = Publish { topic: "orders".into(), message: Message::new("x") };
            match broker.gateway().send(publish).await {
                Ok(answer) => answer.map(drop),
                Err(_) => return ErrorKind::Unknown,
            }
        }
        "transaction" => {
            let transactions = broker.transaction_producer("producers", "orders", |_: HalfMessage| None).await;
            match transactions {
                Ok(transactions) => transactions.end(TransactionId(1), Decision::Commit).await.map(drop),
                Err(error) => Err(error),
            }
        }
        _ => unreachable!("{actor}"),
    };
    error.unwrap_err().kind()
}

async fn too_many_panics_end_the_broker(store: Store) {
    let points = [
        ("application", "Submit", "application committer"),
        ("root", "CreateTopic", "root root"),
        ("queue", "Append", "queue orders/0"),
        ("topic", "AppendAcross", "topic orders"),
        ("delay", "Schedule", "delay scheduler"),
        ("group", "Describe", "group group"),
        ("gateway", "Publish", "gateway gateway"),
        ("transaction", "End", "transaction checker"),
    ];
    for (actor, message, name) in points {
        let store = Store::new(store.kind);
        let broker = store.open().await;
        broker.create_topic(TopicSpec::new("orders").queues(if actor == "queue" { 1 } else { 2 })).await.unwrap();
        if actor != "queue" {
            broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
        }
        drop(broker.consumer("group").subscribe("orders").build().await.unwrap());
        broker.shutdown().await.unwrap();
        // An open broker describes its groups once, so the panics begin afterwards.
        let armed = Arc::new(AtomicUsize::new(0));
        let (switch, panics) = (Arc::clone(&armed), always(actor, message));
        let probe = move |point: cuemq::ProbePoint<'_>| {
            if switch.load(Ordering::SeqCst) == 1 {
                panics(point);
            }
        };
        let broker = store.builder().clock(manual_clock().clock()).probe(probe).open().await.unwrap();
        let mut consumer = broker.consumer("bystanders").subscribe("orders").build().await.unwrap();
        if actor != "queue" {
            take(&mut consumer, 1).await;
        }
        armed.store(1, Ordering::SeqCst);
        for panics in 1..=6u64 {
            assert_eq!(soon("an answer", ask(&broker, actor)).await, ErrorKind::Unknown, "{actor}, panic {panics}");
            let restarts = panics.min(5);
            common::until("the restart", || broker.actor_restarts() == restarts).await;
        }
        let mut state = broker.watch_state();
        let failed = soon("the failure", state.wait_for(|state| *state != BrokerState::Running)).await.unwrap().clone();
        assert!(matches!(&failed, BrokerState::Failed(cause) if cause.contains(name)), "{failed}");
        let ended = soon("the end of the consumer", consumer.next()).await.map(drop).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::Unavailable, "{ended}");
        let late = soon("an answer", broker.producer("orders").await.unwrap().send("late")).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Unavailable, "{late}");
        soon("the shutdown", broker.shutdown()).await.unwrap();
        drop(consumer);
        let broker = store.open().await;
        assert_eq!(read_all(&broker, "orders").await.len(), usize::from(actor != "queue"), "{actor}");
        broker.shutdown().await.unwrap();
    }
}

async fn a_group_that_is_given_up_lets_nobody_wait(store: Store) {
    let broker = store.builder().clock(manual_clock().clock()).probe(always("group", "Reset")).open().await.unwrap();
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let held = next(&mut consumer).await;
    let mut pull = broker.pull_consumer("group").await.unwrap();
    broker.create_topic(TopicSpec::new("others").queues(1)).await.unwrap();
    pull.assign_topic("others").await.unwrap();
    for panics in 1..=6u64 {
        assert_eq!(soon("an answer", pull.commit()).await.unwrap_err().kind(), ErrorKind::Unknown);
        common::until("the restart", || broker.actor_restarts() == panics.min(5)).await;
    }
    let mut state = broker.watch_state();
    soon("the failure", state.wait_for(|state| *state != BrokerState::Running)).await.unwrap();
    for kind in [
        soon("the end", consumer.next()).await.map(drop).unwrap_err().kind(),
        soon("an answer", held.ack()).await.unwrap_err().kind(),
        soon("an answer", pull.commit()).await.unwrap_err().kind(),
        soon("an answer", broker.describe_group("group")).await.map(drop).unwrap_err().kind(),
        soon("an answer", pull.poll(1, Duration::from_secs(9))).await.map(drop).unwrap_err().kind(),
    ] {
        assert_eq!(kind, ErrorKind::Unavailable);
    }
    soon("the shutdown", broker.shutdown()).await.unwrap();
    drop((consumer, pull));
    let broker = store.open().await;
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 1, "what was not acknowledged comes again");
    broker.shutdown().await.unwrap();
}

async fn a_panic_under_load_loses_one_request(store: Store) {
    let met = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&met);
    let probe = move |point: cuemq::ProbePoint<'_>| {
        if point.message == "Append" {
            let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
            assert_ne!(number, 70, "at the 70th message, on purpose");
        }
    };
    let broker = store.builder().probe(probe).open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let pending: Vec<_> = (0..200).map(|n| producer.enqueue(numbered(n)).unwrap()).collect();
    let mut lost = Vec::new();
    for (n, receipt) in (0..200u64).zip(pending) {
        if let Err(error) = soon("the receipt", receipt).await {
            assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
            lost.push(n);
        }
    }
    assert_eq!(lost, [69], "only the message at hand");
    let numbers: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
    assert_eq!(numbers, (0..200).filter(|n| *n != 69).collect::<Vec<_>>(), "order holds");
    assert_eq!((broker.actor_restarts(), broker.state()), (1, BrokerState::Running));
    broker.shutdown().await.unwrap();
}

async fn a_callback_that_panics_disturbs_nobody(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    producer.send_with(numbered(0), |_| panic!("a callback that panics, on purpose")).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (sender, mut called) = tokio::sync::watch::channel(0);
    for n in 1..5 {
        let (order, sender) = (Arc::clone(&order), sender.clone());
        let callback = move |receipt: cuemq::Result<_>| {
            receipt.unwrap();
            order.lock().unwrap().push(n);
            sender.send_modify(|count| *count += 1);
        };
        producer.send_with(numbered(n), callback).unwrap();
    }
    soon("the other callbacks", called.wait_for(|count| *count == 4)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    assert_eq!(take(&mut consumer, 5).await.len(), 5);
    assert_eq!((broker.actor_restarts(), broker.state()), (0, BrokerState::Running));
    broker.shutdown().await.unwrap();
}

//! Bad input is refused with an error that names value, limit and fix, and nothing is written for it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use common::checker::numbered;
use common::store::Store;
use common::{next, soon, take, until};
use cuemq::limits::{MAX_PROPERTIES_BYTES, MAX_SUBSCRIPTIONS};
use cuemq::storage_api::Table;
use cuemq::{
    AssignmentStrategy, Broker, BrokerBuilder, Cursor, Decision, Engine, Error, ErrorKind, HalfMessage, Message,
    MessageId, Query, QueueKey, QueueOffset, ResetTo, RetryPolicy, SeekTo, TopicSpec,
};

on_every_engine!(
    unknown_topics_and_groups,
    names,
    reserved_names,
    member_names,
    tags_and_keys,
    bodies,
    properties,
    offsets,
    policies_and_numbers,
    answers_after_the_queue_was_lost,
    subscriptions,
    ids_and_cursors,
);

/// Every table that a broker has.
const TABLES: [&str; 10] = [
    "audit",
    "consumer_offset",
    "counter",
    "dead_letter",
    "delay",
    "expiry",
    "group",
    "half_message",
    "topic",
    "transaction_outcome",
];

/// Everything that an engine holds: the bounds of its queues and the rows of its tables.
type Held = (Vec<(QueueKey, Range<QueueOffset>)>, Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>);

fn held(engine: &dyn Engine) -> Held {
    let rows = |table: &str| {
        let rows = engine.scan(&Table::new(table).unwrap(), &[], None, 10_000).unwrap();
        (table.to_owned(), rows.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect())
    };
    (engine.queues().unwrap(), TABLES.into_iter().map(rows).collect())
}

/// A broker that creates no topics by itself, with the topic `orders`, the group `group`, and a look into its engine.
struct Watched {
    broker: Broker,
    engine: Arc<dyn Engine>,
}

impl Watched {
    async fn new(store: &Store) -> Self {
        let engine = store.engine();
        let builder: BrokerBuilder = Broker::builder_over(Arc::clone(&engine));
        let broker = builder.configure(|s| s.auto_create_topics = false).open().await.unwrap();
        broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
        drop(broker.pull_consumer("group").await.unwrap());
        Self { broker, engine }
    }

    /// Waits for what a member that joined has put down: a row for each queue that the group never read.
    async fn begun(&self, queues: usize) {
        let table = Table::new("consumer_offset").unwrap();
        until("the rows", || self.engine.scan(&table, &[], None, 1000).unwrap().len() >= queues).await;
    }

    /// The outcome is this error, which says all of this, and nothing was written for it.
    async fn refuses<T>(
        &self,
        kind: ErrorKind,
        hints: &[&str],
        outcome: impl Future<Output = Result<T, impl Into<Error>>>,
    ) {
        let before = held(&*self.engine);
        let error: Error = match soon("the refusal", outcome).await {
            Ok(_) => panic!("it was taken, instead of {kind:?} with {hints:?}"),
            Err(error) => error.into(),
        };
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        assert!(hints.iter().all(|hint| text.contains(hint)), "{text:?} does not say all of {hints:?}");
        assert!(error.is_certainly_not_applied(), "{text}");
        assert!(before == held(&*self.engine), "something was written, although: {text}");
    }

    /// A message is refused whichever way it is sent.
    async fn refuses_message(&self, hints: &[&str], message: Message) {
        let producer = self.broker.producer("orders").await.unwrap();
        self.refuses(ErrorKind::Invalid, hints, producer.send(message.clone())).await;
        let batch = vec![numbered(1), message.clone(), numbered(2)];
        self.refuses(ErrorKind::Invalid, hints, producer.send_batch(batch)).await;
        self.refuses(ErrorKind::Invalid, hints, async { producer.enqueue(message.clone()).map(drop) }).await;
        let later = message.delay(Duration::from_secs(1));
        self.refuses(ErrorKind::Invalid, hints, producer.send(later)).await;
    }

    async fn end(self) {
        self.broker.shutdown().await.unwrap();
    }
}

async fn unknown_topics_and_groups(store: Store) {
    let watched = Watched::new(&store).await;
    let (broker, unknown) = (&watched.broker, ErrorKind::UnknownTopic);
    let hints = ["nowhere", "create_topic", "auto_create_topics"];
    watched.refuses(unknown, &hints, broker.producer("nowhere")).await;
    watched.refuses(unknown, &hints, broker.consumer("new").subscribe("nowhere").build()).await;
    watched.refuses(unknown, &hints, broker.consumer("new").subscribe("orders").subscribe("nowhere").build()).await;
    watched.refuses(unknown, &hints, async { broker.describe_topic("nowhere") }).await;
    watched.refuses(unknown, &hints, async { broker.messages("nowhere", 0, QueueOffset::ZERO, 1) }).await;
    watched.refuses(unknown, &hints, broker.reset_group("group", "nowhere", ResetTo::End)).await;
    watched.refuses(unknown, &["nowhere"], broker.delete_topic("nowhere")).await;
    let mut pull = broker.pull_consumer("group").await.unwrap();
    watched.refuses(unknown, &hints, pull.assign("nowhere", 0)).await;
    watched.refuses(unknown, &hints, pull.assign_topic("nowhere")).await;
    let undecided = |_: HalfMessage| None::<Decision>;
    watched.refuses(unknown, &hints, broker.transaction_producer("new", "nowhere", undecided)).await;
    let hints = ["nobody", "a consumer of that name makes it"];
    watched.refuses(ErrorKind::UnknownGroup, &hints, broker.describe_group("nobody")).await;
    watched.refuses(ErrorKind::UnknownGroup, &hints, broker.reset_group("nobody", "orders", ResetTo::End)).await;
    watched.end().await;
}

async fn names(store: Store) {
    let watched = Watched::new(&store).await;
    let (broker, invalid) = (&watched.broker, ErrorKind::Invalid);
    let long = "x".repeat(128);
    for (name, hints) in [
        ("", ["name is empty", "1 to 127"]),
        ("a b", ["' '", "use only [A-Za-z0-9_%-]"]),
        ("bücher", ["'ü'", "use only [A-Za-z0-9_%-]"]),
        ("../etc", ["'.'", "use only [A-Za-z0-9_%-]"]),
        ("a\0b", ["'\\0'", "use only [A-Za-z0-9_%-]"]),
        (long.as_str(), ["128 bytes, more than 127", "shorten it"]),
    ] {
        watched.refuses(invalid, &hints, broker.create_topic(TopicSpec::new(name))).await;
        watched.refuses(invalid, &hints, broker.producer(name)).await;
        watched.refuses(invalid, &hints, broker.delete_topic(name)).await;
        watched.refuses(invalid, &hints, broker.consumer("group").subscribe(name).build()).await;
        watched.refuses(invalid, &hints, broker.consumer(name).subscribe("orders").build()).await;
        watched.refuses(invalid, &hints, broker.pull_consumer(name)).await;
        watched.refuses(invalid, &hints, broker.describe_group(name)).await;
    }
    watched
        .refuses(ErrorKind::Exists, &["orders", "use it, or delete it"], async {
            broker.create_topic(TopicSpec::new("orders").queues(7)).await
        })
        .await;
    broker.create_topic(TopicSpec::new("x".repeat(127))).await.unwrap();
    watched.end().await;
}

async fn reserved_names(store: Store) {
    let watched = Watched::new(&store).await;
    let (broker, invalid) = (&watched.broker, ErrorKind::Invalid);
    for name in [
        "%RETRY%group",
        "%RETRY%",
        "%DLQ%group",
        "rmq_sys_orders",
        "CID_RMQ_SYS_x",
        "TBW102",
        "SCHEDULE_TOPIC_XXXX",
        "SELF_TEST_TOPIC",
        "DEFAULT_CONSUMER",
    ] {
        let hints = [name, "is reserved for the broker", "choose another"];
        watched.refuses(invalid, &hints, broker.create_topic(TopicSpec::new(name))).await;
        watched.refuses(invalid, &hints, broker.producer(name)).await;
        watched.refuses(invalid, &hints, broker.delete_topic(name)).await;
        watched.refuses(invalid, &hints, broker.consumer("group").subscribe(name).build()).await;
        watched.refuses(invalid, &hints, broker.consumer(name).subscribe("orders").build()).await;
        watched.refuses(invalid, &hints, broker.pull_consumer(name)).await;
    }
    watched.end().await;
}

async fn member_names(store: Store) {
    let watched = Watched::new(&store).await;
    let broker = &watched.broker;
    let long = "x".repeat(256);
    for (name, hints) in [
        ("", ["0 bytes", "1 to 255"]),
        (long.as_str(), ["256 bytes", "1 to 255"]),
        ("a\n", ["'\\n'", "printable"]),
        ("%divert", ["\"%divert\"", "is reserved for the broker: choose another"]),
        ("%pop/1", ["\"%pop/1\"", "is reserved for the broker: choose another"]),
    ] {
        for group in ["group", "new"] {
            let member = broker.consumer(group).subscribe("orders").member(name).build();
            watched.refuses(ErrorKind::Invalid, &hints, member).await;
        }
    }
    let taken = broker.consumer("group").subscribe("orders").member("me").build().await.unwrap();
    watched.begun(3).await;
    let again = broker.consumer("group").subscribe("orders").member("me").build();
    watched.refuses(ErrorKind::Exists, &["has a member me already", "choose another name"], again).await;
    drop(taken);
    let nameless = broker.consumer("new").subscribe("orders").broadcasting(true).build();
    watched.refuses(ErrorKind::Invalid, &["needs a name", "call member(name)"], nameless).await;
    watched.end().await;
}

async fn tags_and_keys(store: Store) {
    let watched = Watched::new(&store).await;
    let long = "k".repeat(1025);
    let body = || Message::new("x");
    for (message, hints) in [
        (body().tag(""), ["tag has 0 bytes", "1 to 1024"]),
        (body().tag(&*long), ["tag has 1025 bytes", "1 to 1024"]),
        (body().tag("*"), ["\"*\"", "a tag has no \"||\""]),
        (body().tag("a || b"), ["\"a || b\"", "a tag has no \"||\""]),
        (body().key(""), ["key has 0 bytes", "1 to 1024"]),
        (body().key("good").key(&*long), ["key has 1025 bytes", "1 to 1024"]),
        (body().sharding_key(""), ["sharding key has 0 bytes", "1 to 1024"]),
        (body().sharding_key(&*long), ["sharding key has 1025 bytes", "1 to 1024"]),
        (body().property("", "x"), ["property name", "is empty"]),
        (body().property("__attempts", "9"), ["\"__attempts\"", "rename it"]),
    ] {
        watched.refuses_message(&hints, message).await;
    }
    let many = vec!["t"; 65].join("||");
    for (tags, hint) in [
        ("", "\"*\" for all"),
        ("a ||", "empty tag"),
        ("* || a", "\"*\" alone"),
        (&*long, "1025 bytes"),
        (&*many, "more than 64 tags"),
    ] {
        for group in ["group", "new"] {
            let consumer = watched.broker.consumer(group).subscribe_tags("orders", tags).build();
            watched.refuses(ErrorKind::Invalid, &[hint], consumer).await;
        }
    }
    let message = body().tag("k".repeat(1024)).key("k".repeat(1024)).sharding_key("k".repeat(1024));
    watched.broker.producer("orders").await.unwrap().send(message).await.unwrap();
    watched.end().await;
}

async fn bodies(store: Store) {
    const LARGEST: usize = 4 << 20;
    let watched = Watched::new(&store).await;
    let hints = ["4194305 bytes", "max_body_bytes = 4194304", "split it, or raise the setting"];
    watched.refuses_message(&hints, Message::new(vec![7; LARGEST + 1])).await;
    let producer = watched.broker.producer("orders").await.unwrap();
    let largest = producer.send(Message::new(vec![7; LARGEST])).await.unwrap();
    let found = watched.broker.message(largest.id.unwrap()).unwrap().unwrap();
    assert_eq!(found.body().len(), LARGEST);
    // Nothing is said by a body in some protocols: an empty one is a message like any other.
    let empty = producer.send(Message::new("").key("k")).await.unwrap();
    assert!(watched.broker.message(empty.id.unwrap()).unwrap().unwrap().body().is_empty());
    watched.end().await;
}

async fn properties(store: Store) {
    let watched = Watched::new(&store).await;
    // Three bytes of the field and two of the name's length stand before the name.
    let of_bytes = |bytes: usize| Message::new("x").property("p", "v".repeat(bytes - 6));
    let hints = ["32769 bytes, more than 32768", "move data into the body"];
    watched.refuses_message(&hints, of_bytes(MAX_PROPERTIES_BYTES + 1)).await;
    let huge = Message::new("x").property("p", "v".repeat(70_000));
    watched.refuses_message(&["70003 bytes, more than 65535"], huge).await;
    let receipt = watched.broker.producer("orders").await.unwrap().send(of_bytes(MAX_PROPERTIES_BYTES)).await.unwrap();
    let found = watched.broker.message(receipt.id.unwrap()).unwrap().unwrap();
    assert_eq!(found.property("p").unwrap().len(), MAX_PROPERTIES_BYTES - 6);
    // As large as it is, it can fail and come again.
    let mut consumer = watched.broker.consumer("group").subscribe("orders").build().await.unwrap();
    next(&mut consumer).await.retry_later(Some(Duration::ZERO)).await.unwrap();
    assert_eq!(next(&mut consumer).await.attempts(), 1);
    watched.end().await;
}

async fn offsets(store: Store) {
    let watched = Watched::new(&store).await;
    let (broker, out) = (&watched.broker, ErrorKind::OutOfRange);
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 1);
    for n in 0..3 {
        producer.send(numbered(n)).await.unwrap();
    }
    let hints = ["offset 4", "orders/1", "0 to 3"];
    let beyond = QueueOffset::new(4);
    let mut pull = broker.pull_consumer("group").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    watched.refuses(out, &hints, async { pull.seek("orders", 1, SeekTo::Offset(beyond)) }).await;
    watched.refuses(out, &hints, async { broker.messages("orders", 1, beyond, 1) }).await;
    watched.refuses(out, &hints, broker.reset_group("group", "orders", ResetTo::Offset(1, beyond))).await;
    let hints = ["queues 0 to 1", "not 2"];
    let (invalid, zero) = (ErrorKind::Invalid, QueueOffset::ZERO);
    watched.refuses(invalid, &hints, async { broker.messages("orders", 2, zero, 1) }).await;
    watched.refuses(invalid, &hints, broker.reset_group("group", "orders", ResetTo::Offset(2, zero))).await;
    watched.refuses(invalid, &hints, pull.assign("orders", 2)).await;
    let hints = ["orders/5", "is not assigned", "call assign"];
    watched.refuses(invalid, &hints, async { pull.seek("orders", 5, SeekTo::Begin) }).await;
    let hints = ["0 messages", "1 to 1000"];
    watched.refuses(invalid, &hints, async { broker.query(&Query::topic("orders"), None, 0) }).await;
    watched.end().await;
}

async fn policies_and_numbers(store: Store) {
    let watched = Watched::new(&store).await;
    let (broker, invalid) = (&watched.broker, ErrorKind::Invalid);
    let (second, years) = (Duration::from_secs(1), Duration::from_secs(4_000 * 86_400));
    for (policy, hints) in [
        (RetryPolicy::Schedule(vec![second; 1001]), ["1001 redeliveries", "at most 1000"]),
        (RetryPolicy::Fixed { pause: second, redeliveries: 2000 }, ["2000 redeliveries", "at most 1000"]),
        (RetryPolicy::Schedule(vec![second, years]), ["345600000s", "use at most"]),
        (RetryPolicy::Exponential { first: second, longest: years, redeliveries: 3 }, ["345600000s", "use at most"]),
    ] {
        for group in ["group", "new"] {
            let consumer = broker.consumer(group).subscribe("orders").retry_policy(policy.clone()).build();
            watched.refuses(invalid, &hints, consumer).await;
        }
    }
    let named = |count: u32| (0..count).map(|queue| ("orders", queue, "me"));
    let many = AssignmentStrategy::configured(named(4000)).unwrap();
    let unnamed = AssignmentStrategy::machine_room([("orders", 0, "")]).unwrap();
    for (strategy, hints) in [(many, ["4000 queues", "at most 3072"]), (unnamed, ["room name", "0 bytes"])] {
        for group in ["group", "new"] {
            let consumer = broker.consumer(group).subscribe("orders").assignment(strategy.clone()).build();
            watched.refuses(invalid, &hints, consumer).await;
        }
    }
    for queues in [0, 1025] {
        let hints = [format!("{queues} queues"), "use 1 to 1024".into()];
        let hints = hints.each_ref().map(String::as_str);
        watched.refuses(invalid, &hints, broker.create_topic(TopicSpec::new("new").queues(queues))).await;
    }
    watched.end().await;
    let before = held(&*store.engine());
    let refused = store.builder().configure(|s| s.default_queues = 0).open().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(refused.to_string(), "setting default_queues is 0: it needs 1 to 1024");
    assert!(before == held(&*store.engine()));
}

async fn answers_after_the_queue_was_lost(store: Store) {
    let watched = Watched::new(&store).await;
    let broker = &watched.broker;
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 0);
    for n in 0..6 {
        producer.send(numbered(n)).await.unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    drop(consumer);
    let mut successor = broker.consumer("group").subscribe("orders").build().await.unwrap();
    take(&mut successor, 6).await;
    broker.describe_group("group").await.unwrap();
    let hints = ["orders/0", "no longer belongs to member", "delivered again"];
    watched.refuses(ErrorKind::Stale, &hints, first.ack()).await;
    watched.refuses(ErrorKind::Stale, &hints, second.retry_later(None)).await;
    watched.end().await;
}

async fn subscriptions(store: Store) {
    let watched = Watched::new(&store).await;
    let broker = &watched.broker;
    for n in 0..=MAX_SUBSCRIPTIONS {
        broker.create_topic(TopicSpec::new(format!("topic{n}")).queues(1)).await.unwrap();
    }
    let subscribed = |group: &str, topics: usize| {
        let consumer = broker.consumer(group);
        (0..topics).fold(consumer, |consumer, n| consumer.subscribe(format!("topic{n}"))).build()
    };
    for group in ["group", "new"] {
        let hints = ["65 topics", "more than 64", "several groups"];
        watched.refuses(ErrorKind::Invalid, &hints, subscribed(group, MAX_SUBSCRIPTIONS + 1)).await;
        let hints = ["subscribes to nothing", "call subscribe"];
        watched.refuses(ErrorKind::Invalid, &hints, broker.consumer(group).build()).await;
        let twice = broker.consumer(group).subscribe("orders").subscribe_tags("orders", "a").build();
        watched.refuses(ErrorKind::Invalid, &["orders is subscribed to twice", "||"], twice).await;
    }
    let most = subscribed("group", MAX_SUBSCRIPTIONS).await.unwrap();
    assert_eq!(most.queues().len(), MAX_SUBSCRIPTIONS + 1, "the retry topic is one more");
    watched.begun(MAX_SUBSCRIPTIONS + 1).await;
    let mixed = broker.consumer("group").subscribe("orders").member("m").broadcasting(true).build();
    watched.refuses(ErrorKind::Invalid, &["cannot mix", "two groups"], mixed).await;
    drop(most);
    watched.end().await;
}

async fn ids_and_cursors(store: Store) {
    let watched = Watched::new(&store).await;
    for text in ["", "0", "g0000000000000000000000000000000", &"f".repeat(33)] {
        let hints = [text, "32 hexadecimal digits"];
        watched.refuses(ErrorKind::Invalid, &hints, async { text.parse::<MessageId>() }).await;
    }
    for text in ["", "5", "a.b"] {
        watched.refuses(ErrorKind::Invalid, &[text, "Page::next"], async { text.parse::<Cursor>() }).await;
    }
    watched.end().await;
}

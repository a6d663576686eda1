//! Tiny runs of the workload runner on every engine, verified, and runs in which something is wrong.
#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cuemq::Flush;
use cuemq_benches::Result;
use cuemq_benches::openmessaging::driver::{Driver, DriverConsumer, DriverProducer, Incoming, Outgoing, Published};
use cuemq_benches::openmessaging::embedded::EmbeddedDriver;
use cuemq_benches::openmessaging::outcome::Outcome;
use cuemq_benches::openmessaging::run::{Observer, PATIENCE, Phase, Plan, run};
use cuemq_benches::openmessaging::statistics::Period;
use cuemq_benches::openmessaging::workload::Workload;
use cuemq_benches::store::EngineKind;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

/// Sees phases and reports, and stops the run when it has heard enough.
struct Listener {
    phases: Vec<Phase>,
    reports: usize,
    stop: watch::Sender<bool>,
    /// Messages after which the run is stopped.
    enough: u64,
}

impl Listener {
    fn new(enough: u64) -> Self {
        Self { phases: Vec::new(), reports: 0, stop: watch::Sender::new(false), enough }
    }
}

impl Observer for Listener {
    fn phase(&mut self, phase: Phase, _: Option<u64>) {
        self.phases.push(phase);
    }

    fn progress(&mut self, _: f64, _: u64, received: u64) {
        if received >= self.enough {
            self.stop.send_replace(true);
        }
    }

    fn report(&mut self, _: &Period) {
        self.reports += 1;
    }
}

fn plan(changes: &[(&str, &str)]) -> Plan {
    let mut text = String::from(
        "name: tiny\ntopics: 2\npartitionsPerTopic: 2\nmessageSize: 100\nuseRandomizedPayloads: true\n\
         randomBytesRatio: 0.5\nrandomizedPayloadPoolSize: 10\nsubscriptionsPerTopic: 1\nconsumerPerSubscription: 1\n\
         producersPerTopic: 1\nproducerRate: 20000\ntestDurationMinutes: 1\nwarmupDurationMinutes: 0\n",
    );
    for (old, new) in changes {
        assert!(text.contains(old), "{old}");
        text = text.replace(old, new);
    }
    let workload = Workload::parse(&text).unwrap();
    Plan {
        workload,
        report_every: Duration::from_secs(10),
        batch: 64,
        in_flight: 1024,
        publisher_threads: 2,
        subscriber_threads: 2,
        patience: PATIENCE,
    }
}

/// Runs until `enough` messages were received, or to the end.
fn conduct(driver: &dyn Driver, plan: &Plan, enough: u64) -> (Result<Outcome>, Listener) {
    let mut listener = Listener::new(enough);
    let stop = listener.stop.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let outcome = runtime.block_on(async {
        let outcome = run(driver, plan, &mut listener, stop).await;
        driver.close().await.unwrap();
        outcome
    });
    (outcome, listener)
}

fn open(engine: EngineKind, flush: Flush, folder: &tempfile::TempDir) -> EmbeddedDriver {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(EmbeddedDriver::open(engine, flush, folder.path())).unwrap()
}

/// A few thousand messages, all verified.
fn check_engine(engine: EngineKind, flush: Flush, changes: &[(&str, &str)]) -> Outcome {
    const ENOUGH: u64 = 3000;
    let folder = tempfile::tempdir().unwrap();
    let driver = open(engine, flush, &folder);
    let (outcome, listener) = conduct(&driver, &plan(changes), ENOUGH);
    let outcome = outcome.unwrap();
    assert!(outcome.verified >= ENOUGH, "{} verified", outcome.verified);
    assert!(outcome.interrupted);
    assert_eq!(outcome.total.failed, 0);
    assert_eq!(outcome.total.publish.count(), outcome.total.sent);
    // What was in flight as the measurement began was sent before it and acknowledged in it.
    assert!(outcome.total.delay.count() + 1024 >= outcome.total.sent);
    assert_eq!(outcome.total.end_to_end.count(), outcome.total.received);
    assert_eq!(listener.phases, [Phase::SetUp, Phase::Test, Phase::Verify]);
    assert_eq!((listener.reports, outcome.periods.len()), (1, 1));
    outcome
}

#[test]
fn the_map_engine_keeps_everything() {
    check_engine(EngineKind::Mmap, Flush::Durable, &[]);
}

#[test]
fn the_lsm_engine_keeps_everything() {
    check_engine(EngineKind::Lsm, Flush::Buffered, &[]);
}

#[test]
fn two_subscriptions_get_everything_twice() {
    let changes = [("subscriptionsPerTopic: 1", "subscriptionsPerTopic: 2")];
    check_engine(EngineKind::Memory, Flush::Buffered, &changes);
}

#[test]
fn keys_keep_their_order_in_many_queues_with_many_consumers() {
    let changes = [
        ("partitionsPerTopic: 2", "partitionsPerTopic: 8\nkeyDistributor: KEY_ROUND_ROBIN"),
        ("consumerPerSubscription: 1", "consumerPerSubscription: 3"),
        ("producersPerTopic: 1", "producersPerTopic: 2"),
    ];
    check_engine(EngineKind::Memory, Flush::Buffered, &changes);
}

#[test]
fn a_search_finds_a_rate() {
    let outcome = check_engine(EngineKind::Memory, Flush::Buffered, &[("producerRate: 20000", "producerRate: 0")]);
    assert!(outcome.sustained_rate.is_some());
}

#[test]
fn a_backlog_is_built_and_drained_and_then_the_test_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let driver = open(EngineKind::Memory, Flush::Buffered, &folder);
    let mut plan = plan(&[]);
    (plan.workload.backlog_bytes, plan.workload.test_seconds) = (500_000, 1);
    let (outcome, listener) = conduct(&driver, &plan, u64::MAX);
    let outcome = outcome.unwrap();
    assert!(!outcome.interrupted);
    let phases = [Phase::SetUp, Phase::BuildBacklog, Phase::DrainBacklog, Phase::Test, Phase::Verify];
    assert_eq!(listener.phases, phases);
    let backlog = outcome.backlog.unwrap();
    assert!(backlog.build_seconds().is_some() && backlog.drain_seconds().is_some());
    assert!(outcome.seconds >= 1.0 && outcome.verified >= 5000, "{} in {} s", outcome.verified, outcome.seconds);
}

#[test]
fn a_run_that_ends_in_its_warm_up_is_verified_and_measures_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let driver = open(EngineKind::Memory, Flush::Buffered, &folder);
    let warmup = [("warmupDurationMinutes: 0", "warmupDurationMinutes: 1")];
    let (outcome, listener) = conduct(&driver, &plan(&warmup), 1000);
    let outcome = outcome.unwrap();
    assert_eq!(listener.phases, [Phase::SetUp, Phase::WarmUp, Phase::Verify]);
    assert!(outcome.interrupted && outcome.periods.is_empty() && outcome.verified >= 1000);
}

/// What a driver does wrong with its n-th message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Loses(u64),
    Doubles(u64),
    Alters(u64),
    /// Swaps it with the one after it.
    Swaps(u64),
    /// Says that it was not acknowledged, although it was.
    FailsToSay(u64),
    /// Never says what became of it.
    Hangs(u64),
}

/// The embedded broker behind a consumer or producer that is at fault.
struct WrongDriver {
    inner: EmbeddedDriver,
    wrong: Wrong,
}

impl Driver for WrongDriver {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn create_topics<'a>(&'a self, topics: &'a [String], queues: u32) -> BoxFuture<'a, Result<()>> {
        self.inner.create_topics(topics, queues)
    }

    fn producer<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<Box<dyn DriverProducer>>> {
        async move {
            let inner = self.inner.producer(topic).await?;
            let wrong = WrongProducer { inner, wrong: self.wrong, count: Arc::default() };
            Ok(Box::new(wrong) as Box<dyn DriverProducer>)
        }
        .boxed()
    }

    fn consumer<'a>(&'a self, topic: &'a str, subscription: &'a str) -> BoxFuture<'a, Result<Box<dyn DriverConsumer>>> {
        async move {
            let inner = self.inner.consumer(topic, subscription).await?;
            let wrong = WrongConsumer { inner, wrong: self.wrong, count: 0, kept: None };
            Ok(Box::new(wrong) as Box<dyn DriverConsumer>)
        }
        .boxed()
    }

    fn unacknowledged<'a>(&'a self, subscription: &'a str) -> BoxFuture<'a, Result<u64>> {
        self.inner.unacknowledged(subscription)
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

struct WrongProducer {
    inner: Box<dyn DriverProducer>,
    wrong: Wrong,
    count: Arc<AtomicU64>,
}

impl DriverProducer for WrongProducer {
    fn publish(&self, messages: Vec<Outgoing>) -> BoxFuture<'static, Published> {
        let first = self.count.fetch_add(messages.len() as u64, Ordering::Relaxed);
        let (wrong, numbers) = (self.wrong, first..first + messages.len() as u64);
        let published = self.inner.publish(messages);
        async move {
            let mut published = published.await;
            if let Wrong::FailsToSay(number) = wrong
                && numbers.contains(&number)
            {
                published.failed.push(usize::try_from(number - numbers.start).unwrap());
            }
            if let Wrong::Hangs(number) = wrong
                && numbers.contains(&number)
            {
                return std::future::pending().await;
            }
            published
        }
        .boxed()
    }
}

struct WrongConsumer {
    inner: Box<dyn DriverConsumer>,
    wrong: Wrong,
    count: u64,
    kept: Option<Incoming>,
}

impl WrongConsumer {
    /// What the program sees of a message that the broker delivered.
    fn spoil(&mut self, incoming: Incoming, into: &mut Vec<Incoming>) {
        let number = self.count;
        self.count += 1;
        match self.wrong {
            Wrong::Loses(wrong) if wrong == number => {}
            Wrong::Doubles(wrong) if wrong == number => into.extend([incoming.clone(), incoming]),
            Wrong::Alters(wrong) if wrong == number => {
                let mut body = incoming.body.to_vec();
                body[50] ^= 1;
                into.push(Incoming { body: body.into(), ..incoming });
            }
            Wrong::Swaps(wrong) if wrong == number => self.kept = Some(incoming),
            _ => into.extend([Some(incoming), self.kept.take()].into_iter().flatten()),
        }
    }
}

impl DriverConsumer for WrongConsumer {
    fn receive<'a>(&'a mut self, into: &'a mut Vec<Incoming>) -> BoxFuture<'a, Result<()>> {
        async move {
            let mut right = Vec::new();
            self.inner.receive(&mut right).await?;
            right.into_iter().for_each(|incoming| self.spoil(incoming, into));
            Ok(())
        }
        .boxed()
    }

    fn acknowledge(&mut self) {
        self.inner.acknowledge();
    }
}

fn conduct_wrongly(wrong: Wrong) -> Result<Outcome> {
    let folder = tempfile::tempdir().unwrap();
    let driver = WrongDriver { inner: open(EngineKind::Memory, Flush::Buffered, &folder), wrong };
    let mut plan = plan(&[("topics: 2", "topics: 1"), ("partitionsPerTopic: 2", "partitionsPerTopic: 1")]);
    plan.patience = Duration::from_millis(300);
    conduct(&driver, &plan, 2000).0
}

#[test]
fn every_fault_fails_the_run_and_names_the_message() {
    let cases = [
        (Wrong::Loses(700), "message 700 of producer 0 was acknowledged and never came to subscription sub-000-test"),
        (Wrong::Doubles(700), "message 700 of producer 0 came twice"),
        (Wrong::Alters(700), "altered: it says message 700 of producer 0"),
        (Wrong::Hangs(700), "sends have ended, others neither succeed nor fail"),
        (Wrong::Swaps(700), "message 700 of producer 0 came after message 701: out of order"),
    ];
    for (wrong, expected) in cases {
        let error = conduct_wrongly(wrong).unwrap_err().to_string();
        assert!(error.contains(expected), "{wrong:?}: {error}");
    }
}

#[test]
fn a_send_that_failed_may_have_come() {
    let outcome = conduct_wrongly(Wrong::FailsToSay(700)).unwrap();
    assert_eq!(outcome.total.failed, 1);
}

//! Conducts one workload: sets up, warms up, measures, ends, and checks that nothing is missing.

#![allow(clippy::disallowed_methods, reason = "a benchmark looks again from time to time")]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::backlog::{Backlog, Order};
use super::control::{Control, Worker};
use super::driver::{Driver, DriverProducer};
use super::keys::Keys;
use super::outcome::Outcome;
use super::payload::Bodies;
use super::publisher::{PublishLimits, Publisher};
use super::rate_search::{FIRST_RATE, RateSearch};
use super::statistics::{Period, SharedTally, Tally};
use super::subscriber::{self, Consuming, Member};
use super::verifier::{Sent, Verifier};
use super::workload::Workload;
use crate::Result;

/// How often the conductor looks at counts and time.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long the end of a run usually waits without any progress before it calls what is missing lost.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// A rate is tried for at most this long (OpenMessaging's period).
const LONGEST_TRIAL: f64 = 3.0;
/// A rate is tried for at least this long, in seconds.
const SHORTEST_TRIAL: f64 = 0.25;
/// As many rates at least are tried in warm-up and test together, if the shortest trial allows it.
const TRIALS: f64 = 40.0;

/// A workload and how to run it.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The workload.
    pub workload: Workload,
    /// The time between two lines of the report.
    pub report_every: Duration,
    /// Most messages in one batch, 1 or more.
    pub batch: usize,
    /// Most messages sent and not yet acknowledged, over all producers.
    pub in_flight: usize,
    /// Threads that send; at most as many as there are producers.
    pub publisher_threads: usize,
    /// Threads that receive; at most as many as there are consumers.
    pub subscriber_threads: usize,
    /// How long the end waits without any progress before it calls what is missing lost.
    pub patience: Duration,
}

/// What a run is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Topics, consumers and producers are made.
    SetUp,
    /// Traffic that is not measured.
    WarmUp,
    /// The consumers pause.
    BuildBacklog,
    /// The consumers catch up.
    DrainBacklog,
    /// What is measured.
    Test,
    /// Nothing is sent any more; the last messages arrive and are checked.
    Verify,
}

/// Sees how a run goes.
pub trait Observer {
    /// A phase begins. `seconds` is how long it takes, if that is known.
    fn phase(&mut self, phase: Phase, seconds: Option<u64>);
    /// Some time has passed within the phase: its age in seconds, and the messages sent and received since the run
    /// began.
    fn progress(&mut self, age: f64, sent: u64, received: u64);
    /// A line of the report.
    fn report(&mut self, period: &Period);
}

/// Runs a workload to its end, or until `stop` becomes true; then the outcome is what was measured so far.
///
/// # Errors
/// What the driver met, or the first message that was lost, altered, doubled or out of order.
pub async fn run(
    driver: &dyn Driver,
    plan: &Plan,
    observer: &mut dyn Observer,
    stop: watch::Receiver<bool>,
) -> Result<Outcome> {
    observer.phase(Phase::SetUp, None);
    let mut conductor = Conductor::set_up(driver, plan, observer, stop).await?;
    let measured = conductor.conduct().await;
    // Threads end whatever happened; a failure of theirs says more than what followed from it.
    let ended = conductor.end().await;
    if let Some(fault) = conductor.control.fault() {
        return Err(fault.into());
    }
    measured?;
    let verified = ended?;
    Ok(conductor.outcome(driver.name(), verified))
}

struct Conductor<'a> {
    driver: &'a dyn Driver,
    plan: &'a Plan,
    observer: &'a mut dyn Observer,
    stop: watch::Receiver<bool>,
    control: Arc<Control>,
    verifiers: Vec<(String, Arc<Mutex<Verifier>>)>,
    publishers: Vec<Worker<Vec<Sent>>>,
    subscribers: Vec<Worker<()>>,
    tallies: Vec<SharedTally>,
    search: Option<(RateSearch, u64)>,
    backlog: Option<Backlog>,
    periods: Vec<Period>,
    total: Tally,
    seconds: f64,
}

impl<'a> Conductor<'a> {
    async fn set_up(
        driver: &'a dyn Driver,
        plan: &'a Plan,
        observer: &'a mut dyn Observer,
        stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        let workload = &plan.workload;
        workload.check()?;
        let bodies = Bodies::new(workload)?;
        let topics: Vec<String> = (0..workload.topics).map(|number| format!("test-topic-{number:04}")).collect();
        driver.create_topics(&topics, workload.partitions_per_topic).await?;
        let searching = workload.producer_rate == 0;
        let rate = if searching { FIRST_RATE } else { workload.producer_rate as f64 };
        let control = Arc::new(Control::new(rate));
        let mut conductor = Self {
            driver,
            plan,
            observer,
            stop,
            search: searching.then(|| (RateSearch::default(), control.now())),
            control,
            verifiers: Vec::new(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            tallies: Vec::new(),
            backlog: None,
            periods: Vec::new(),
            total: Tally::default(),
            seconds: 0.0,
        };
        // All consumers are there before the first message is sent, so no queue changes hands under load; and no thread
        // starts before everything is there that could fail.
        let members = conductor.make_members(&topics).await?;
        let producers = conductor.make_producers(&topics).await?;
        conductor.start_subscribers(members)?;
        conductor.start_publishers(producers, &bodies)?;
        Ok(conductor)
    }

    async fn make_members(&mut self, topics: &[String]) -> Result<Vec<Member>> {
        let workload = &self.plan.workload;
        let mut members = Vec::new();
        for (topic, number) in topics.iter().zip(0..) {
            for subscription in 0..workload.subscriptions_per_topic {
                let name = format!("sub-{subscription:03}-{topic}");
                let (queues, producers) = (workload.partitions_per_topic, workload.producers_per_topic);
                let verifier =
                    Verifier::new(topic, &name, number * producers, producers, queues, workload.message_size);
                let verifier = Arc::new(Mutex::new(verifier));
                for _ in 0..workload.consumer_per_subscription {
                    let consumer = self.driver.consumer(topic, &name).await?;
                    members.push(Member::new(consumer, Arc::clone(&verifier)));
                }
                self.verifiers.push((name, verifier));
            }
        }
        Ok(members)
    }

    async fn make_producers(&mut self, topics: &[String]) -> Result<Vec<(u32, Box<dyn DriverProducer>)>> {
        let mut producers: Vec<(u32, Box<dyn DriverProducer>)> = Vec::new();
        for topic in topics {
            for _ in 0..self.plan.workload.producers_per_topic {
                producers.push((u32::try_from(producers.len())?, self.driver.producer(topic).await?));
            }
        }
        Ok(producers)
    }

    fn start_subscribers(&mut self, members: Vec<Member>) -> Result<()> {
        for members in deal(members, self.plan.subscriber_threads) {
            let (control, tally) = (Arc::clone(&self.control), self.new_tally());
            let work = move || subscriber::run(members, &control, &tally);
            self.subscribers.push(Worker::start("bench-subscriber", &self.control, work)?);
        }
        Ok(())
    }

    fn start_publishers(&mut self, producers: Vec<(u32, Box<dyn DriverProducer>)>, bodies: &Bodies) -> Result<()> {
        let all = producers.len();
        let hands = deal(producers, self.plan.publisher_threads);
        let in_flight = (self.plan.in_flight / hands.len()).max(1);
        let limits = PublishLimits { batch: self.plan.batch.clamp(1, in_flight), in_flight };
        for producers in hands {
            let share = producers.len() as f64 / all as f64;
            let keys = Keys::new(self.plan.workload.key_distributor);
            let (control, tally) = (Arc::clone(&self.control), self.new_tally());
            let publisher = Publisher::new(producers, (bodies.clone(), keys), share, limits, control, tally);
            self.publishers.push(Worker::start("bench-publisher", &self.control, move || publisher.run())?);
        }
        Ok(())
    }

    fn new_tally(&mut self) -> SharedTally {
        let tally = SharedTally::default();
        self.tallies.push(tally.clone());
        tally
    }

    /// Warm-up and test.
    async fn conduct(&mut self) -> Result<()> {
        let workload = &self.plan.workload;
        if workload.warmup_seconds > 0 {
            self.observer.phase(Phase::WarmUp, Some(workload.warmup_seconds));
            let started = self.control.now();
            self.look_until(started, |_, age| age >= workload.warmup_seconds as f64, None).await?;
            if *self.stop.borrow() {
                // Nothing was measured.
                return Ok(());
            }
        }
        let mut began = self.control.now();
        self.take_tallies();
        if workload.backlog_bytes > 0 {
            self.control.consuming.send_replace(Consuming::Pause);
            let (bytes, ratio) = (workload.backlog_bytes, workload.backlog_drain_ratio);
            self.backlog = Some(Backlog::new(began, bytes, workload.message_size, ratio));
            self.observer.phase(Phase::BuildBacklog, None);
        } else {
            self.observer.phase(Phase::Test, Some(workload.test_seconds));
        }
        let first_period = began;
        let mut period = began;
        let test_over = |conductor: &mut Self, _: f64| {
            if let Some(order) = conductor.look_at_backlog() {
                began = conductor.control.now();
                match order {
                    Order::Resume => conductor.observer.phase(Phase::DrainBacklog, None),
                    _ => conductor.observer.phase(Phase::Test, Some(conductor.plan.workload.test_seconds)),
                }
            }
            let waiting = conductor.backlog.is_some_and(|backlog| backlog.drain_seconds().is_none());
            !waiting && seconds(began, conductor.control.now()) >= conductor.plan.workload.test_seconds as f64
        };
        self.look_until(first_period, test_over, Some(&mut period)).await?;
        self.close_period(&mut period);
        self.seconds = seconds(first_period, period);
        Ok(())
    }

    /// Has the consumers go on once enough has piled up. Says what changed.
    fn look_at_backlog(&mut self) -> Option<Order> {
        let (now, totals) = (self.control.now(), self.totals());
        match self.backlog.as_mut()?.look(now, totals.backlog()) {
            Order::GoOn => None,
            Order::Resume => {
                self.control.consuming.send_replace(Consuming::GoOn);
                Some(Order::Resume)
            }
            Order::Drained => Some(Order::Drained),
        }
    }

    /// Looks around until `over` says so or the run is stopped; closes periods if there is one to close.
    async fn look_until(
        &mut self,
        started: u64,
        mut over: impl FnMut(&mut Self, f64) -> bool,
        mut period: Option<&mut u64>,
    ) -> Result<()> {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            if let Some(fault) = self.control.fault() {
                return Err(fault.into());
            }
            self.search_rate();
            let (now, totals) = (self.control.now(), self.totals());
            self.observer.progress(seconds(started, now), totals.published, totals.received);
            if let Some(period) = period.as_deref_mut()
                && seconds(*period, now) >= self.plan.report_every.as_secs_f64()
            {
                self.close_period(period);
            }
            if *self.stop.borrow() || over(self, seconds(started, now)) {
                return Ok(());
            }
        }
    }

    fn search_rate(&mut self) {
        let (now, totals) = (self.control.now(), self.totals());
        let all = (self.plan.workload.warmup_seconds + self.plan.workload.test_seconds) as f64;
        let trial = (all / TRIALS).clamp(SHORTEST_TRIAL, LONGEST_TRIAL);
        if let Some((search, since)) = &mut self.search
            && seconds(*since, now) >= trial
        {
            self.control.set_rate(search.next(seconds(*since, now), totals));
            *since = now;
        }
    }

    fn totals(&self) -> super::rate_search::Totals {
        self.control.counters.totals(self.plan.workload.subscriptions_per_topic)
    }

    fn take_tallies(&self) -> Tally {
        let mut sum = Tally::default();
        self.tallies.iter().for_each(|tally| sum.add(&tally.take()));
        sum
    }

    fn close_period(&mut self, period: &mut u64) {
        let (now, tally, backlog) = (self.control.now(), self.take_tallies(), self.totals().backlog());
        let closed = Period { seconds: seconds(*period, now), tally, backlog };
        // The last look of a test may come right after a report: such a rest says nothing of its own.
        let negligible = closed.seconds < self.plan.report_every.as_secs_f64() / 20.0;
        self.total.add(&closed.tally);
        *period = now;
        if let Some(last) = self.periods.last_mut()
            && negligible
        {
            last.seconds += closed.seconds;
            last.tally.add(&closed.tally);
            last.backlog = closed.backlog;
            return;
        }
        self.observer.report(&closed);
        self.periods.push(closed);
    }

    /// Ends all threads and checks that everything that was acknowledged came. Returns how many messages that are.
    async fn end(&mut self) -> Result<u64> {
        self.observer.phase(Phase::Verify, None);
        let started = self.control.now();
        self.control.stop_publishing();
        self.control.consuming.send_replace(Consuming::GoOn);
        let mut sent = Vec::new();
        let mut ended = Ok(());
        if let Err(hangs) = self.wait_for_publishers(started).await {
            self.control.consuming.send_replace(Consuming::Stop);
            return Err(hangs);
        }
        for publisher in std::mem::take(&mut self.publishers) {
            match publisher.join().await {
                Ok(lines) => sent.extend(lines),
                Err(error) => ended = Err(error),
            }
        }
        if ended.is_ok() {
            self.wait_for_receipts(started).await;
        }
        self.control.consuming.send_replace(Consuming::Stop);
        for subscriber in std::mem::take(&mut self.subscribers) {
            let joined = subscriber.join().await;
            ended = ended.and(joined);
        }
        ended?;
        let mut verified = 0;
        for (_, verifier) in &self.verifiers {
            let verifier = verifier.lock().unwrap_or_else(PoisonError::into_inner);
            verifier.finish(&sent)?;
            verified += verifier.count();
        }
        for (subscription, _) in &self.verifiers {
            self.wait_for_acknowledgements(subscription).await?;
        }
        Ok(verified)
    }

    /// Waits as long as sends that are under way end.
    async fn wait_for_publishers(&mut self, started: u64) -> Result<()> {
        let mut ticks = interval(LOOK_INTERVAL);
        let (mut last, mut since) = (0, Instant::now());
        while !self.publishers.iter().all(Worker::is_finished) {
            ticks.tick().await;
            let (counters, totals) = (&self.control.counters, self.totals());
            let ended = totals.published + counters.failed.load(Ordering::Acquire);
            self.observer.progress(seconds(started, self.control.now()), totals.published, totals.received);
            if ended != last {
                (last, since) = (ended, Instant::now());
            } else if since.elapsed() > self.plan.patience {
                // A thread cannot be ended from outside: the program's end does it.
                return Err(format!("{ended} sends have ended, others neither succeed nor fail").into());
            }
        }
        Ok(())
    }

    /// Waits as long as messages come that are missing.
    async fn wait_for_receipts(&mut self, started: u64) {
        let mut ticks = interval(LOOK_INTERVAL);
        let (mut last, mut since) = (0, Instant::now());
        loop {
            ticks.tick().await;
            let totals = self.totals();
            self.observer.progress(seconds(started, self.control.now()), totals.published, totals.received);
            if totals.backlog() == 0 || self.subscribers.iter().any(Worker::is_finished) {
                return;
            }
            if totals.received != last {
                (last, since) = (totals.received, Instant::now());
            } else if since.elapsed() > self.plan.patience {
                return;
            }
        }
    }

    /// What was received was acknowledged: the group has to hear of it.
    async fn wait_for_acknowledgements(&self, subscription: &str) -> Result<()> {
        let mut ticks = interval(LOOK_INTERVAL);
        let since = Instant::now();
        loop {
            let left = self.driver.unacknowledged(subscription).await?;
            if left == 0 {
                return Ok(());
            }
            if since.elapsed() > self.plan.patience {
                return Err(format!(
                    "{left} messages of subscription {subscription} were received, and their \
                                    acknowledgement was not stored"
                )
                .into());
            }
            ticks.tick().await;
        }
    }

    fn outcome(self, driver: String, verified: u64) -> Outcome {
        Outcome {
            driver,
            workload: self.plan.workload.clone(),
            interrupted: *self.stop.borrow(),
            seconds: self.seconds,
            verified,
            sustained_rate: self.search.map(|(search, _)| search.sustained()),
            backlog: self.backlog,
            periods: self.periods,
            total: self.total,
        }
    }
}

/// Deals things out to at most `hands` hands, none of them empty.
fn deal<T>(things: Vec<T>, hands: usize) -> Vec<Vec<T>> {
    let hands = hands.clamp(1, things.len().max(1));
    let mut dealt: Vec<Vec<T>> = (0..hands).map(|_| Vec::new()).collect();
    things.into_iter().enumerate().for_each(|(number, thing)| dealt[number % hands].push(thing));
    dealt.retain(|hand| !hand.is_empty());
    dealt
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

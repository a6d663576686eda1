//! Eight workers on one queue: each takes jobs under receipts, and what one of them drops, delays, outlasts or refuses
//! harms no other. Minutes pass in a moment.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use cuemq::{Broker, ManualClock, Message, PopConsumer, PopReceipt, Popped, Timestamp, TopicSpec};
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::{Facts, count, print_grid};
use futures_util::future::try_join_all;

/// When the clock that is moved by hand starts: 2026-01-01, 00:00 UTC.
const NEW_YEAR: Timestamp = Timestamp::from_millis(1_767_225_600_000);
const WORKERS: usize = 8;
const JOBS: u64 = 800;
/// Jobs that one worker takes at a time.
const AT_A_TIME: usize = 10;
/// How long a job stays invisible to the others.
const INVISIBLE: Duration = Duration::from_secs(60);
/// What passes between two rounds of the workers.
const ROUND: Duration = Duration::from_secs(20);
/// Rounds that a long job takes: more than its invisible time.
const LONG_ROUNDS: u32 = 5;
/// Rounds after which something must have gone wrong.
const MOST_ROUNDS: u32 = 1000;

/// Has eight workers take the jobs of one queue, some of which they drop, delay, work on for long, or refuse.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
}

/// What happens to a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Plain,
    /// Its worker forgets it the first time.
    Forgotten,
    /// It is given back the first time, for ten seconds.
    GivenBack,
    /// It takes longer than its invisible time.
    Long,
    /// Nobody will ever be able to do it.
    Refused,
}

impl Kind {
    fn of(job: u64) -> Self {
        match job % 40 {
            7 => Self::Forgotten,
            13 => Self::GivenBack,
            21 => Self::Long,
            33 => Self::Refused,
            _ => Self::Plain,
        }
    }

    /// Failed deliveries before the one that counts.
    fn attempts(self) -> u32 {
        u32::from(matches!(self, Self::Forgotten | Self::GivenBack))
    }
}

struct Worker {
    jobs: PopConsumer,
    at_work: Vec<(Popped, u32)>,
    done: Vec<u64>,
    renewals: u64,
}

impl Worker {
    /// Goes on with what takes long, then takes new jobs.
    async fn turn(&mut self) -> Result<()> {
        for (mut job, rounds) in std::mem::take(&mut self.at_work) {
            if rounds == LONG_ROUNDS {
                job.ack().await?;
                self.done.push(number(&job)?);
            } else {
                job.renew(INVISIBLE).await?;
                self.renewals += 1;
                self.at_work.push((job, rounds + 1));
            }
        }
        let mut finished = Vec::new();
        for job in self.jobs.pop(AT_A_TIME, Duration::ZERO).await? {
            let n = number(&job)?;
            let kind = Kind::of(n);
            ensure!(job.attempts() <= kind.attempts(), "job {n} came {} times too often", job.attempts());
            match kind {
                Kind::Forgotten if job.attempts() == 0 => drop(job),
                Kind::GivenBack if job.attempts() == 0 => job.nack(Some(Duration::from_secs(10))).await?,
                Kind::Long => self.at_work.push((job, 1)),
                Kind::Refused => job.reject("nobody can do this").await?,
                _ => finished.push((n, job.receipt().to_string())),
            }
        }
        // Whoever finishes a job needs no more than the text of its receipt; one write settles all of them.
        let receipts: Vec<PopReceipt> = finished.iter().map(|(_, text)| text.parse()).collect::<cuemq::Result<_>>()?;
        for ((n, _), settled) in finished.iter().zip(self.jobs.ack_all(&receipts).await) {
            settled.with_context(|| format!("job {n} could not be settled"))?;
            self.done.push(*n);
        }
        Ok(())
    }
}

fn number(job: &Popped) -> Result<u64> {
    Ok(std::str::from_utf8(job.body())?.parse()?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    let clock = ManualClock::new(NEW_YEAR);
    let broker = arguments.store.builder()?.clock(clock.clock()).open().await?;
    let worked = run(&broker, &clock).await;
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    report(&worked?, clock.now().since(NEW_YEAR));
    Ok(())
}

async fn run(broker: &Broker, clock: &ManualClock) -> Result<Vec<Worker>> {
    broker.create_topic(TopicSpec::new("jobs").queues(1)).await?;
    let jobs = (0..JOBS).map(|n| Message::new(n.to_string())).collect::<Vec<_>>();
    broker.producer("jobs").await?.send_batch(jobs).await?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let jobs = broker.pop_consumer("workers").subscribe("jobs").invisible(INVISIBLE).build().await?;
        workers.push(Worker { jobs, at_work: Vec::new(), done: Vec::new(), renewals: 0 });
    }
    let refused = (0..JOBS).filter(|n| Kind::of(*n) == Kind::Refused).count();
    let letters = broker.dead_letters("workers")?;
    for round in 0.. {
        ensure!(round < MOST_ROUNDS, "the jobs do not come to an end");
        try_join_all(workers.iter_mut().map(Worker::turn)).await?;
        let done: usize = workers.iter().map(|worker| worker.done.len()).sum();
        if done as u64 + letters.count()? == JOBS {
            break;
        }
        clock.advance(ROUND);
    }
    let mut times = BTreeMap::<u64, u32>::new();
    workers.iter().flat_map(|worker| &worker.done).for_each(|n| *times.entry(*n).or_default() += 1);
    ensure!(times.values().all(|times| *times == 1), "a job was done twice");
    ensure!(times.len() + refused == usize::try_from(JOBS)?, "a job was lost");
    ensure!(workers.iter().all(|worker| !worker.done.is_empty()), "a worker had nothing to do");
    let group = broker.describe_group("workers").await?;
    ensure!(group.lag() == 0 && group.in_flight == 0, "something is left open");
    Ok(workers)
}

fn report(workers: &[Worker], passed: Duration) {
    let mut rows = Vec::new();
    for (at, worker) in workers.iter().enumerate() {
        rows.push([format!("worker {}", at + 1), count(worker.done.len() as u64), count(worker.renewals)]);
    }
    print_grid(["on one queue", "jobs done", "renewals"], &rows);
    let of = |kind| count((0..JOBS).filter(|n| Kind::of(*n) == kind).count() as u64);
    Facts::new("jobs")
        .add("all", count(JOBS))
        .add("forgotten once, came again after their invisible time", of(Kind::Forgotten))
        .add("given back once, came again after ten seconds", of(Kind::GivenBack))
        .add("kept by renewals beyond their invisible time", of(Kind::Long))
        .add("refused, now dead letters", of(Kind::Refused))
        .print();
    println!("every other job was done exactly once; {} s passed", count(passed.as_secs()));
}

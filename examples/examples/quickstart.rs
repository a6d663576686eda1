//! Sends the events of a file by key, and three members of a group process them in the order of their keys.
//!
//! Run it twice, or kill it in between: it goes on where it was.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cuemq::{Broker, BrokerState, ErrorKind, Message, Received, TopicSpec, WorkerHandle};
use cuemq_examples::backlog::Backlog;
use cuemq_examples::field::key_of;
use cuemq_examples::histogram::Latencies;
use cuemq_examples::input::Input;
use cuemq_examples::ledger::{Entry, Ledger};
use cuemq_examples::pipeline::Pipeline;
use cuemq_examples::progress::Progress;
use cuemq_examples::rounds::{LastRound, MAX_LINES, mark, place_of};
use cuemq_examples::stopwatch::{Stopwatch, per_second};
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::{Facts, count};
use cuemq_examples::tally::{Outcome, Tally};

/// The group that processes the events.
const GROUP: &str = "quickstart";
/// Its members.
const MEMBERS: [&str; 3] = ["anna", "ben", "cleo"];
/// Queues of the topic: as many keys can be worked on at a time.
const QUEUES: u32 = 16;
/// Events that one member works on at a time; an ordered member has at most one per queue.
const CONCURRENCY: usize = 16;

/// Sends the events of a file by key; three members of a group process them in the order of their keys.
#[derive(Debug, Parser)]
struct Arguments {
    /// A file of lines, such as NDJSON [default: the order events of the examples]
    input: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    /// The field of a line that orders it among others; lines without it go by their first word
    #[arg(long, default_value = "order")]
    key: String,
    /// Events that contain this text fail at their first delivery and come again after a second
    #[arg(long, default_value = "disputed")]
    fail: String,
    /// Most events sent and not yet acknowledged
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Appends one line for every acknowledged event to this file; `-` is standard output
    #[arg(long)]
    ledger: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let input = Input::given(arguments.input.as_deref());
    ensure!(input != Input::Standard, "standard input cannot be read twice: give a file, or use the example producer");
    let lines = count_lines(&input)?;
    let broker = arguments.store.open().await?;
    let done = run(&arguments, &broker, &input, lines).await;
    let closed = broker.shutdown().await.context("the broker could not be closed cleanly");
    let report = done?;
    closed?;
    report.print(&arguments, &input);
    report.verdict()
}

/// Counts the lines, and refuses bad ones before anything is sent.
fn count_lines(input: &Input) -> Result<u64> {
    let mut lines = 0;
    for line in input.lines()? {
        line?;
        lines += 1;
    }
    ensure!(lines > 0, "{} has no lines: give a file with some", input.name());
    ensure!(lines <= MAX_LINES, "{} has {lines} lines, more than {MAX_LINES}: give a part of it", input.name());
    Ok(lines)
}

async fn run(arguments: &Arguments, broker: &Broker, input: &Input, lines: u64) -> Result<Report> {
    let topic = input.topic();
    let last = LastRound::read(broker, &topic).await?;
    if let Some(last) = &last
        && last.stored() > lines
    {
        bail!(
            "{} has {lines} lines, but {} of them were sent before: give the same input, or another directory with --dir",
            input.name(),
            last.stored()
        );
    }
    let before = Backlog::of(broker, GROUP, &topic).await?;
    let (round, sent_before) = begin(&topic, lines, last, before);
    match broker.create_topic(TopicSpec::new(&*topic).queues(QUEUES)).await {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::Exists => {}
        Err(error) => return Err(error).context("the topic cannot be made"),
    }
    let to_send = lines - sent_before.as_ref().map_or(0, LastRound::stored);
    let expected = before.waiting + to_send;
    let tally = Arc::new(Tally::new(MEMBERS.len()));
    let stopwatch = Stopwatch::start();
    let workers = start_members(arguments, broker, &topic, &tally).await?;
    let watching = watch(broker, &tally, expected);
    let sending = send(arguments, broker, input, round, sent_before.as_ref());
    let ((sent, latencies, sending_took), ()) = tokio::try_join!(sending, watching)?;
    let took = stopwatch.elapsed();
    for worker in workers {
        worker.stop();
        worker.join().await.context("a member ended early")?;
    }
    let after = Backlog::of(broker, GROUP, &topic).await?;
    Ok(Report { sent, to_send, expected, sending_took, took, latencies, outcome: tally.outcome(), before, after })
}

/// Tells where this run begins: its round and, if that one was begun before, what of it was sent.
fn begin(topic: &str, lines: u64, last: Option<LastRound>, before: Backlog) -> (u64, Option<LastRound>) {
    let Some(last) = last else {
        println!("first run: {} events to topic {topic}", count(lines));
        return (0, None);
    };
    let (consumed, waiting) = (count(before.consumed), count(before.waiting));
    println!("continuing after {consumed} events of earlier runs; {waiting} sent events wait to be processed");
    if last.is_complete(lines) {
        println!("the whole file was sent before: it is sent again, as round {}", last.number + 2);
        (last.number + 1, None)
    } else {
        let (stored, number) = (count(last.stored()), last.number);
        println!("round {} was interrupted after {stored} of {} events: the rest is sent", number + 1, count(lines));
        (number, Some(last))
    }
}

async fn start_members(
    arguments: &Arguments,
    broker: &Broker,
    topic: &str,
    tally: &Arc<Tally>,
) -> Result<Vec<WorkerHandle>> {
    let mut consumers = Vec::new();
    for name in MEMBERS {
        consumers.push(broker.consumer(GROUP).subscribe(topic).ordered(true).member(name).build().await?);
    }
    let start = |(member, consumer): (usize, cuemq::Consumer)| {
        let (tally, fail) = (Arc::clone(tally), arguments.fail.clone());
        consumer.spawn(CONCURRENCY, move |event| std::future::ready(process(&tally, member, &fail, &event)))
    };
    Ok(consumers.into_iter().enumerate().map(start).collect())
}

/// What a member does with one event. An error has it delivered again.
fn process(tally: &Tally, member: usize, fail: &str, event: &Received) -> Result<()> {
    if event.attempts() == 0 && !fail.is_empty() && contains(event.body(), fail.as_bytes()) {
        tally.failed();
        bail!("{fail:?} needs a second look");
    }
    let place = place_of(event)?;
    tally.processed(member, event.sharding_key().unwrap_or_default(), place);
    Ok(())
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

/// Sends every line that was not sent before; returns how many, how long each took and all together.
async fn send(
    arguments: &Arguments,
    broker: &Broker,
    input: &Input,
    round: u64,
    sent_before: Option<&LastRound>,
) -> Result<(u64, Latencies, Duration)> {
    let producer = broker.producer(&input.topic()).await?;
    let mut ledger = Ledger::open(arguments.ledger.as_deref())?;
    let note =
        |(line, key): (u64, String), receipt: &cuemq::Receipt| ledger.note(&Entry::new(round, line, &key, receipt));
    let mut pipeline = Pipeline::new(producer, arguments.in_flight, note);
    let stopwatch = Stopwatch::start();
    let mut lines = input.stream()?;
    while let Some(line) = lines.recv().await {
        let line = line?;
        if let Some(sent_before) = sent_before
            && sent_before.has(line.number, &line.bytes)?
        {
            continue;
        }
        let key = key_of(&line.bytes, &arguments.key);
        let message = mark(Message::new(line.bytes).sharding_key(&*key), round, line.number);
        pipeline.send(message, (line.number, key)).await?;
    }
    let (sent, latencies) = pipeline.finish().await?;
    Ok((sent, latencies, stopwatch.elapsed()))
}

/// Shows the progress until everything is processed; an error when the broker fails before.
async fn watch(broker: &Broker, tally: &Tally, expected: u64) -> Result<()> {
    let (mut processed, mut state) = (tally.watch(), broker.watch_state());
    let mut progress = Progress::new("processed", expected);
    loop {
        let now = *processed.borrow_and_update();
        progress.at(now);
        if now >= expected {
            progress.finish();
            return Ok(());
        }
        tokio::select! {
            changed = processed.changed() => changed.context("the members have ended")?,
            failed = state.wait_for(|state| *state != BrokerState::Running) => {
                let state = failed.map(|state| state.to_string()).unwrap_or_default();
                bail!("the broker has {state}");
            }
        }
    }
}

/// What a run came to.
struct Report {
    sent: u64,
    to_send: u64,
    expected: u64,
    sending_took: Duration,
    took: Duration,
    latencies: Latencies,
    outcome: Outcome,
    before: Backlog,
    after: Backlog,
}

impl Report {
    fn processed(&self) -> u64 {
        self.outcome.by_member.iter().sum()
    }

    /// What is wrong, if anything is.
    fn problem(&self) -> Option<String> {
        let (sent, processed) = (self.sent, self.processed());
        if sent != self.to_send {
            return Some(format!("{sent} events were acknowledged, not {}", self.to_send));
        }
        if processed != self.expected {
            return Some(format!("{processed} events were processed, not {}", self.expected));
        }
        if self.outcome.out_of_order > 0 {
            return Some(format!("{} events came out of order", self.outcome.out_of_order));
        }
        let committed = self.before.consumed + self.expected;
        if self.after.waiting > 0 || self.after.consumed != committed {
            return Some(format!("the group stands at {:?} instead of {committed} consumed", self.after));
        }
        None
    }

    fn print(&self, arguments: &Arguments, input: &Input) {
        let (rate, flush) = (per_second(self.sent, self.sending_took), format!("{:?}", arguments.store.flush));
        let mut facts = Facts::new("quickstart");
        facts.add("input", input.name());
        facts.add("sent and acknowledged", format!("{} ({})", count(self.sent), flush.to_lowercase()));
        facts.add("send rate", format!("{} msg/s", count(rate)));
        facts.add("send p50 / p99", format!("{} / {}", self.latencies.quantile(0.5), self.latencies.quantile(0.99)));
        for (member, processed) in MEMBERS.iter().zip(&self.outcome.by_member) {
            facts.add(&format!("processed by {member}"), count(*processed));
        }
        facts.add("failed and retried", count(self.outcome.retried));
        facts.add("repeated deliveries", count(self.outcome.repeated));
        facts.add("processed in all", format!("{} of {}", count(self.processed()), count(self.expected)));
        let keys = count(self.outcome.keys as u64);
        let order = match self.outcome.out_of_order {
            0 => format!("kept for each of {keys} values of {:?}", arguments.key),
            broken => format!("BROKEN {} times", count(broken)),
        };
        facts.add("order of delivery", order);
        facts.add("committed offsets", format!("{} events, {} wait", count(self.after.consumed), self.after.waiting));
        facts.add("time", format!("{:.1} s", self.took.as_secs_f64()));
        facts.add("engine", arguments.store.engine_name());
        facts.add("data directory", arguments.store.place());
        facts.print();
    }

    fn verdict(&self) -> Result<ExitCode> {
        if let Some(problem) = self.problem() {
            bail!("the run is not as it should be: {problem}");
        }
        println!("next: run it again to see it continue, or");
        println!("  cargo run --release --example ordered           a failing event blocks only its own queue");
        println!("  cargo run --release --example compare_engines   the same work on every engine");
        println!("  cargo run --release --example quickstart -- my.ndjson --key FIELD --dir ./my-data");
        Ok(ExitCode::SUCCESS)
    }
}

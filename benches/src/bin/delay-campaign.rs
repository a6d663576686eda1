//! Many delayed messages: what they take, how long an opening takes with them, and whether kills lose any.
//!
//! ```text
//! cargo run --release -p cuemq-benches --bin delay-campaign -- --timers 1000000 --engine mmap
//! ```
//! The program runs itself as children over one store: two that send messages which are due in ten years, each killed
//! (SIGKILL) in the middle of its sends; one that opens what they left, and measures memory and how late a sample of
//! messages comes beside them; and one that moves a clock by eleven years and counts what comes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use cuemq::{Broker, BrokerBuilder, Flush, ManualClock, Message, TopicSpec};
use cuemq_benches::Result;
use cuemq_benches::place::Place;
use cuemq_benches::stopwatch::Stopwatch;
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use futures_util::future::try_join_all;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Messages sent together; the next ones follow when all of them are acknowledged.
const WINDOW: u64 = 4096;
const QUEUES: u32 = 4;
/// Messages that measure lateness, and the time between two of them.
const SAMPLE: u64 = 2000;
const SAMPLE_EVERY: Duration = Duration::from_millis(5);
/// How long something that must come is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Engine {
    Mmap,
    Lsm,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Role {
    Fill,
    Measure,
    Drain,
}

/// Measures a broker with many delayed messages.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many messages wait
    #[arg(long, default_value_t = 100_000)]
    timers: u64,
    /// The storage engine
    #[arg(long, value_enum, default_value = "mmap")]
    engine: Engine,
    /// Bytes of each body, at least 8
    #[arg(long, default_value_t = 16)]
    body: usize,
    /// Does not deliver all messages at the end, so that only those that are there are counted
    #[arg(long)]
    no_drain: bool,
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[arg(long, hide = true)]
    store: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 0)]
    from: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (arguments.role, &arguments.store) {
        (Some(role), Some(store)) => child(&arguments, role, store),
        _ => parent(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the children have said: names and numbers.
type Facts = BTreeMap<String, u64>;

fn parent(arguments: &Arguments) -> Result<()> {
    let folder = Place::from_environment(Path::new("target"))?.folder()?;
    let (mut from, mut acked) = (0, Vec::new());
    for half in [arguments.timers / 2, arguments.timers - arguments.timers / 2] {
        let (first, last, sent) = fill_and_kill(arguments, folder.path(), from, half)?;
        acked.push(first..last);
        from = sent;
    }
    let kept: u64 = acked.iter().map(|range| range.end - range.start).sum();
    let mut facts = run(arguments, folder.path(), Role::Measure, 0)?;
    if !arguments.no_drain {
        let gap = acked[1].start;
        let mut drained = run(arguments, folder.path(), Role::Drain, gap)?;
        // The child counts those below and above the gap that the first kill has left.
        let (below, above) = (drained.remove("seen below").unwrap_or(0), drained.remove("seen above").unwrap_or(0));
        let contiguous = |seen: u64, range: &std::ops::Range<u64>| (range.end - range.start).saturating_sub(seen);
        drained.insert("lost".into(), contiguous(below, &acked[0]) + contiguous(above, &acked[1]));
        facts.append(&mut drained);
    }
    facts.insert("acknowledged".into(), kept);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} delayed messages of {} bytes, engine {:?}", arguments.timers, arguments.body, arguments.engine)?;
    for (name, value) in facts {
        writeln!(out, "  {name:<44} {value:>12}")?;
    }
    Ok(())
}

fn spawn(arguments: &Arguments, store: &Path, role: Role, from: u64) -> Result<Child> {
    let value = |value: &dyn ValueEnumName| value.text();
    Ok(Command::new(std::env::current_exe()?)
        .args(["--timers", &arguments.timers.to_string(), "--engine", &value(&arguments.engine)])
        .args(["--body", &arguments.body.to_string(), "--role", &value(&role), "--from", &from.to_string()])
        .arg("--store")
        .arg(store)
        .stdout(Stdio::piped())
        .spawn()?)
}

trait ValueEnumName {
    fn text(&self) -> String;
}

impl<T: ValueEnum> ValueEnumName for T {
    fn text(&self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Has a child send until `count` are acknowledged and kills it, while it goes on sending. Returns the numbers that are
/// acknowledged, and one that no message has yet.
fn fill_and_kill(arguments: &Arguments, store: &Path, from: u64, count: u64) -> Result<(u64, u64, u64)> {
    let mut child = spawn(arguments, store, Role::Fill, from)?;
    let output = child.stdout.take().ok_or("the child has no output")?;
    let (mut acked, mut killed) = (from, false);
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(number) = line.strip_prefix("acked ") {
            acked = number.parse()?;
        }
        if acked - from >= count && !killed {
            // Whatever else it wrote before it ended is read to the end.
            child.kill()?;
            killed = true;
        }
    }
    child.wait()?;
    if !killed {
        return Err("the child that sends has ended by itself".into());
    }
    // At most one window was under way.
    Ok((from, acked, acked + WINDOW))
}

fn run(arguments: &Arguments, store: &Path, role: Role, from: u64) -> Result<Facts> {
    let mut child = spawn(arguments, store, role, from)?;
    let output = child.stdout.take().ok_or("the child has no output")?;
    let mut facts = Facts::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some((name, value)) = line.rsplit_once(' ') {
            facts.insert(name.to_owned(), value.parse()?);
        }
    }
    if child.wait()?.success() { Ok(facts) } else { Err(format!("the child {role:?} failed").into()) }
}

fn child(arguments: &Arguments, role: Role, store: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::Fill => fill(arguments, store).await,
            Role::Measure => measure(arguments, store).await,
            Role::Drain => drain(arguments, store).await,
        }
    })
}

fn builder(arguments: &Arguments, store: &Path) -> Result<BrokerBuilder> {
    let builder = match arguments.engine {
        Engine::Mmap => Broker::builder(MmapEngine::open(store, MmapSettings::default())?),
        Engine::Lsm => Broker::builder(LsmEngine::open(store, &LsmSettings::default())?),
    };
    let most = usize::try_from(arguments.timers)?.saturating_mul(2).max(1 << 20);
    Ok(builder.flush(Flush::Buffered).configure(|settings| settings.max_delayed_messages = most))
}

fn tell(name: &str, value: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{name} {value}")?;
    Ok(out.flush()?)
}

async fn fill(arguments: &Arguments, store: &Path) -> Result<()> {
    let broker = builder(arguments, store)?.open().await?;
    if broker.describe_topic("timers").is_err() {
        broker.create_topic(TopicSpec::new("timers").queues(QUEUES)).await?;
    }
    let producer = broker.producer("timers").await?;
    let due = broker.clock().now().plus(10 * YEAR);
    let mut number = arguments.from;
    loop {
        let window = (number..number + WINDOW).map(|n| {
            let mut body = n.to_be_bytes().to_vec();
            body.resize(arguments.body.max(8), 0);
            // Neighbours in time are not neighbours in number.
            let message =
                Message::new(body).deliver_at(due.plus(Duration::from_millis(n.wrapping_mul(7919) % 1_000_003)));
            let producer = &producer;
            async move { producer.send(message).await }
        });
        try_join_all(window).await?;
        number += WINDOW;
        tell("acked", number)?;
    }
}

async fn measure(arguments: &Arguments, store: &Path) -> Result<()> {
    let opening = Stopwatch::start();
    let broker = builder(arguments, store)?.open().await?;
    tell("open, ms", opening.elapsed().as_millis())?;
    tell_memory("after the opening")?;
    let clock = broker.clock().clone();
    broker.create_topic(TopicSpec::new("sample").queues(1)).await?;
    let mut consumer = broker.consumer("sample").subscribe("sample").build().await?;
    let (producer, start) = (broker.producer("sample").await?, clock.now().plus(Duration::from_secs(1)));
    let due = |n: u64| start.plus(SAMPLE_EVERY * u32::try_from(n).unwrap_or(u32::MAX));
    let sends = (0..SAMPLE).map(|n| producer.send(Message::new(n.to_be_bytes().to_vec()).deliver_at(due(n))));
    try_join_all(sends).await?;
    let mut late = Vec::new();
    for _ in 0..SAMPLE {
        let delivery =
            tokio::time::timeout(PATIENCE, consumer.next()).await.map_err(|_| "a sample does not come")??;
        let number = u64::from_be_bytes(delivery.body()[..].try_into()?);
        let now = clock.now();
        if now < due(number) {
            return Err(format!("sample {number} came before its time").into());
        }
        late.push(now.since(due(number)).as_millis());
        delivery.ack().await?;
    }
    late.sort_unstable();
    tell("late at p99, ms", late[late.len() * 99 / 100])?;
    tell("late at most, ms", late[late.len() - 1])?;
    tell_memory("at the end")?;
    broker.shutdown().await?;
    Ok(())
}

async fn drain(arguments: &Arguments, store: &Path) -> Result<()> {
    let system = cuemq::Clock::system()?;
    let manual = ManualClock::new(system.now().plus(11 * YEAR));
    let broker = builder(arguments, store)?.clock(manual.clock()).open().await?;
    let clock = Stopwatch::start();
    let mut pull = broker.pull_consumer("count").await?;
    for queue in 0..QUEUES {
        pull.assign("timers", queue).await?;
        pull.seek("timers", queue, cuemq::SeekTo::Begin)?;
    }
    let (mut seen, mut twice, gap) = (Vec::new(), 0u64, usize::try_from(arguments.from)?);
    loop {
        // Everything is due: what does not come now is not there.
        let some = pull.poll(4096, Duration::from_secs(3)).await?;
        if some.is_empty() && broker.delayed_messages() == 0 {
            break;
        }
        if clock.elapsed() > PATIENCE * 60 {
            return Err("the messages do not come to an end".into());
        }
        for message in some {
            let number = usize::try_from(u64::from_be_bytes(message.body()[..8].try_into()?))?;
            if seen.len() <= number {
                seen.resize(number + 1, false);
            }
            twice += u64::from(std::mem::replace(&mut seen[number], true));
        }
    }
    // Numbers count up to the first that is missing: what was acknowledged lies in one run on each side of the gap.
    let run = |from: usize| seen.get(from..).unwrap_or(&[]).iter().take_while(|seen| **seen).count();
    tell("seen below", run(0).min(gap))?;
    tell("seen above", run(gap))?;
    tell("twice", twice)?;
    tell("drain, ms", clock.elapsed().as_millis())?;
    broker.shutdown().await?;
    Ok(())
}

/// What the operating system says of this process, in MiB. File pages that are mapped count as resident, and can be
/// taken back at any time.
fn tell_memory(when: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    for (field, name) in [("VmRSS", "resident"), ("RssAnon", "resident, own"), ("VmHWM", "resident, at most")] {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib: u64 = line.and_then(|line| line.trim().strip_suffix(" kB")).unwrap_or("0").trim().parse()?;
        tell(&format!("{name}, {when}, MiB"), kib / 1024)?;
    }
    Ok(())
}

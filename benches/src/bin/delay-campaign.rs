//! Many delayed messages: what they take, how long an opening takes with them, and whether kills lose any.
//!
//! ```text
//! cargo run --release -p cuemq-benches --bin delay-campaign -- --timers 1000000 --engine mmap
//! ```
//! The program runs itself as children over one store: two that send messages which are due in ten years, each killed
//! (SIGKILL) in the middle of its sends; one that opens what they left, and measures memory and how late a sample of
//! messages comes beside them; one that opens what that one closed in order; and one that moves a clock by eleven years
//! and looks for every acknowledged message. It fails when one is lost.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use cuemq::{Broker, BrokerBuilder, Flush, ManualClock, Message, TopicSpec};
use cuemq_benches::Result;
use cuemq_benches::place::Place;
use cuemq_benches::stopwatch::Stopwatch;
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use cuemq_storage_mmap::{MmapEngine, MmapSettings, RetentionSettings};
use futures_util::future::try_join_all;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Messages sent together; the next ones follow when all of them are acknowledged.
const WINDOW: u64 = 4096;
const QUEUES: u32 = 4;
/// The time between two messages that measure lateness.
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
    Reopen,
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
    /// Does not deliver all messages at the end: their number alone then says whether some are lost
    #[arg(long)]
    no_drain: bool,
    /// How many messages measure lateness
    #[arg(long, default_value_t = 2000)]
    sample: u64,
    /// Seconds without any message after which those that are missing count as lost
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// A message that is never sent, though it is noted as acknowledged: the campaign has to find it
    #[arg(long)]
    forget: Option<u64>,
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[arg(long, hide = true)]
    store: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 0)]
    from: u64,
    /// Begin and end of each run of acknowledged messages.
    #[arg(long, hide = true, value_delimiter = ',')]
    acked: Vec<u64>,
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
    let place = Place::from_environment(Path::new("target"))?;
    let folder = place.folder()?;
    let (mut filled, mut from) = (Filled::default(), 0);
    for half in [arguments.timers / 2, arguments.timers - arguments.timers / 2] {
        from = filled.fill_and_kill(arguments, folder.path(), from, half)?;
    }
    let acked = &filled.acked;
    let mut facts = filled.facts();
    facts.append(&mut run(arguments, folder.path(), Role::Measure, acked)?);
    facts.append(&mut run(arguments, folder.path(), Role::Reopen, acked)?);
    if !arguments.no_drain {
        facts.append(&mut run(arguments, folder.path(), Role::Drain, acked)?);
    }
    let lost = facts.get("lost").copied();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} delayed messages of {} bytes, engine {:?}", arguments.timers, arguments.body, arguments.engine)?;
    for (name, value) in facts {
        writeln!(out, "  {name:<44} {value:>12}")?;
    }
    match lost {
        None | Some(0) => Ok(()),
        Some(lost) => Err(format!("{lost} acknowledged messages are lost").into()),
    }
}

fn spawn(arguments: &Arguments, store: &Path, role: Role, from: u64, acked: &[u64]) -> Result<Child> {
    let value = |value: &dyn ValueEnumName| value.text();
    let acked: Vec<String> = acked.iter().map(u64::to_string).collect();
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(number) = arguments.forget {
        command.args(["--forget", &number.to_string()]);
    }
    if !acked.is_empty() {
        command.args(["--acked", &acked.join(",")]);
    }
    Ok(command
        .args(["--sample", &arguments.sample.to_string(), "--patience", &arguments.patience.to_string()])
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

/// What the children did that sent and were killed.
#[derive(Default)]
struct Filled {
    /// Begin and end of each run of acknowledged numbers.
    acked: Vec<u64>,
    /// How many were sent while the clock ran, and for how long it did.
    sent: u64,
    time: Duration,
    /// Most memory at any moment, in MiB.
    own: u64,
    resident: u64,
}

impl Filled {
    /// Has a child send until `count` are acknowledged and kills it, while it goes on sending. Returns a number that no
    /// message has yet.
    fn fill_and_kill(&mut self, arguments: &Arguments, store: &Path, from: u64, count: u64) -> Result<u64> {
        let mut child = spawn(arguments, store, Role::Fill, from, &[])?;
        let output = child.stdout.take().ok_or("the child has no output")?;
        let (mut acked, mut killed, mut clock) = (from, false, None);
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some(number) = line.strip_prefix("acked ") {
                acked = number.parse()?;
            }
            if killed {
                // What it wrote before it ended is read to the end.
                continue;
            }
            let (since, first) = clock.get_or_insert_with(|| (Stopwatch::start(), acked));
            let memory = memory_of(&child.id().to_string())?;
            self.own = self.own.max(memory.own);
            self.resident = self.resident.max(memory.at_most);
            if acked - from >= count {
                self.sent += acked - *first;
                self.time += since.elapsed();
                child.kill()?;
                killed = true;
            }
        }
        child.wait()?;
        if !killed {
            return Err("the child that sends has ended by itself".into());
        }
        self.acked.extend([from, acked]);
        // At most one window was under way.
        Ok(acked + WINDOW)
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new();
        facts.insert("acknowledged".into(), runs(&self.acked).map(|run| run.end - run.start).sum());
        facts.insert("filling, own memory at most, MiB".into(), self.own);
        facts.insert("filling, resident at most, MiB".into(), self.resident);
        if let Some(rate) = (u128::from(self.sent) * 1000).checked_div(self.time.as_millis()) {
            facts.insert("filling, messages a second".into(), u64::try_from(rate).unwrap_or(u64::MAX));
        }
        facts
    }
}

/// Runs of acknowledged numbers, of their begins and ends.
fn runs(acked: &[u64]) -> impl Iterator<Item = Range<u64>> + '_ {
    acked.chunks_exact(2).map(|run| run[0]..run[1])
}

fn run(arguments: &Arguments, store: &Path, role: Role, acked: &[u64]) -> Result<Facts> {
    let mut child = spawn(arguments, store, role, 0, acked)?;
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
            Role::Reopen => reopen(arguments, store).await,
            Role::Drain => drain(arguments, store).await,
        }
    })
}

fn builder(arguments: &Arguments, store: &Path) -> Result<BrokerBuilder> {
    // What the disk holds besides must not have messages expire.
    let builder = match arguments.engine {
        Engine::Mmap => {
            let retention = RetentionSettings { disk_watermark_percent: 100, ..RetentionSettings::default() };
            Broker::builder(MmapEngine::open(store, MmapSettings { retention, ..MmapSettings::default() })?)
        }
        Engine::Lsm => {
            let settings = LsmSettings { disk_watermark_percent: 100, ..LsmSettings::default() };
            Broker::builder(LsmEngine::open(store, &settings)?)
        }
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
        let sent = (number..number + WINDOW).filter(|n| arguments.forget != Some(*n));
        let window = sent.map(|n| {
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
    tell("open after a kill, ms", opening.elapsed().as_millis())?;
    tell_memory("after the opening")?;
    let clock = broker.clock().clone();
    broker.create_topic(TopicSpec::new("sample").queues(1)).await?;
    let mut consumer = broker.consumer("sample").subscribe("sample").build().await?;
    let (producer, start) = (broker.producer("sample").await?, clock.now().plus(Duration::from_secs(1)));
    let due = |n: u64| start.plus(SAMPLE_EVERY * u32::try_from(n).unwrap_or(u32::MAX));
    let sends = (0..arguments.sample).map(|n| producer.send(Message::new(n.to_be_bytes().to_vec()).deliver_at(due(n))));
    try_join_all(sends).await?;
    let mut late = Vec::new();
    for _ in 0..arguments.sample {
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

/// Opens what was closed in order, and waits until as many are counted as were acknowledged.
#[expect(clippy::disallowed_methods, reason = "a program that measures waits by the machine's clock")]
async fn reopen(arguments: &Arguments, store: &Path) -> Result<()> {
    let clock = Stopwatch::start();
    let broker = builder(arguments, store)?.open().await?;
    tell("open after a close, ms", clock.elapsed().as_millis())?;
    let acked: u64 = runs(&arguments.acked).map(|run| run.end - run.start).sum();
    let forgotten = u64::from(arguments.forget.is_some());
    while (broker.delayed_messages() as u64) + forgotten < acked {
        if clock.elapsed() > PATIENCE * 10 {
            return Err(format!("{} wait, but {acked} were acknowledged", broker.delayed_messages()).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tell("all counted, ms", clock.elapsed().as_millis())?;
    tell_memory("when counted")?;
    let clock = Stopwatch::start();
    broker.shutdown().await?;
    tell("close, ms", clock.elapsed().as_millis())?;
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
    let (mut seen, mut twice, patience) = (Vec::new(), 0u64, Duration::from_secs(arguments.patience));
    let mut missing: u64 = runs(&arguments.acked).map(|run| run.end - run.start).sum();
    while missing > 0 {
        // The broker's clock stands still, so a poll by itself would wait without an end.
        let Ok(some) = tokio::time::timeout(patience, pull.poll(4096, patience)).await else { break };
        for message in some? {
            let number = u64::from_be_bytes(message.body()[..8].try_into()?);
            let at = usize::try_from(number)?;
            if seen.len() <= at {
                seen.resize(at + 1, false);
            }
            let again = std::mem::replace(&mut seen[at], true);
            twice += u64::from(again);
            // Those that were sent but not acknowledged may come or not.
            missing -= u64::from(!again && runs(&arguments.acked).any(|run| run.contains(&number)));
        }
    }
    tell("lost", missing)?;
    tell("twice", twice)?;
    tell("drain, ms", clock.elapsed().as_millis())?;
    tell_memory("after the drain")?;
    broker.shutdown().await?;
    Ok(())
}

/// Memory of a process in MiB, as the operating system says. File pages that are mapped count as resident, and can be
/// taken back at any time; what is the process's own cannot.
struct Memory {
    own: u64,
    file: u64,
    /// Resident at any time so far, both kinds.
    at_most: u64,
}

fn memory_of(process: &str) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: u64 = line.and_then(|line| line.trim().strip_suffix(" kB")).unwrap_or("0").trim().parse()?;
        Ok(kib / 1024)
    };
    Ok(Memory { own: field("RssAnon")?, file: field("RssFile")?, at_most: field("VmHWM")? })
}

fn tell_memory(when: &str) -> Result<()> {
    let Memory { own, file, at_most } = memory_of("self")?;
    tell(&format!("own memory, {when}, MiB"), own)?;
    tell(&format!("mapped files, {when}, MiB"), file)?;
    tell(&format!("resident at most, {when}, MiB"), at_most)
}

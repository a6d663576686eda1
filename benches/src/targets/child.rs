//! What has to be seen in a process of its own: a start, its memory, a kill. The benchmark's program starts itself.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use cuemq::{Broker, Flush, Message, TopicSpec};
use tokio::runtime::Builder;

use super::{Context, opening};
use crate::Result;
use crate::workload::TOPIC;

/// The argument that makes the benchmark's program such a process: task, directory and number follow.
pub const FLAG: &str = "--as-child";
/// Topics or groups that are made before memory is looked at for the first time.
const TOPICS_BEFORE: u32 = 20;
/// Messages that are sent or popped at once.
const AT_ONCE: usize = 256;
/// Messages that lie in one queue when they are popped: half of what a group may have open in it.
const POPPED_PER_QUEUE: u64 = 1024;

/// A process of this program; killed when it is dropped before its end.
#[derive(Debug)]
pub(super) struct Child {
    process: process::Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// Starts a task on a directory.
    pub(super) fn start(context: &Context, task: &str, directory: &Path, number: u64) -> Result<Self> {
        let program = context.program.as_ref().ok_or("no program was named that could be started")?;
        let mut process = Command::new(program)
            .args([FLAG, task])
            .arg(directory)
            .arg(number.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().ok_or("the process has no output")?);
        Ok(Self { process, input, output })
    }

    /// The next number that the process says, which it does once it is so far.
    pub(super) fn number(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().parse().map_err(|_| format!("the process said {line:?} in place of a number"))?)
    }

    /// Bytes of memory that it has now.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(&self.process.id().to_string())
    }

    /// Has it end in good order.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the process ended with {status}").into()) }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub(super) fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn resident_bytes(process: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no resident size is told")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

/// Runs a task in this process: says a number once it is so far, and ends when its input ends.
///
/// # Errors
/// Whatever the task meets.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [task, directory, number] = arguments else { return Err(format!("{FLAG} TASK DIRECTORY NUMBER").into()) };
    let (directory, number) = (Path::new(directory), number.parse::<u64>()?);
    match task.as_str() {
        "fill" => {
            let engine = opening::fill(directory, number)?;
            say(number)?;
            wait_for_end()?;
            drop(engine);
            Ok(())
        }
        "start" => Builder::new_current_thread().build()?.block_on(start(directory)),
        "topics" => Builder::new_current_thread().build()?.block_on(topics(directory, u32::try_from(number)?)),
        "groups" => Builder::new_current_thread().build()?.block_on(groups(directory, u32::try_from(number)?)),
        "popped" => Builder::new_current_thread().build()?.block_on(popped(directory, number)),
        other => Err(format!("there is no task {other}").into()),
    }
}

fn say(number: u64) -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{number}")?;
    Ok(output.flush()?)
}

fn wait_for_end() -> Result<()> {
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {}
    Ok(())
}

/// The start of a program that embeds a broker: opens it and has one message acknowledged.
async fn start(directory: &Path) -> Result<()> {
    let broker = Broker::open(directory).await?;
    let receipt = broker.producer(TOPIC).await?.send("first").await?;
    say(receipt.offset.ok_or("the receipt names no offset")?.get())?;
    wait_for_end()?;
    Ok(broker.shutdown().await?)
}

/// Makes topics of one queue each, and says how many bytes of memory they took.
async fn topics(directory: &Path, count: u32) -> Result<()> {
    let make =
        async |broker: &Broker, name: String| broker.create_topic(TopicSpec::new(name).queues(1)).await.map(drop);
    idle(directory, count, make, |broker| broker.topics().len()).await
}

/// Makes consumer groups that nobody is in, and says how many bytes of memory they took.
async fn groups(directory: &Path, count: u32) -> Result<()> {
    let make = async |broker: &Broker, name: String| broker.pull_consumer(&name).await.map(drop);
    idle(directory, count, make, |broker| broker.groups().len()).await
}

/// Makes things that nobody uses, and says how many bytes of memory they took.
async fn idle(
    directory: &Path,
    count: u32,
    make: impl AsyncFn(&Broker, String) -> cuemq::Result<()>,
    number_of: impl FnOnce(&Broker) -> usize,
) -> Result<()> {
    let broker = Broker::open(directory).await?;
    for number in 0..TOPICS_BEFORE {
        make(&broker, format!("idle-{number}")).await?;
    }
    let before = resident_bytes("self")?;
    for number in TOPICS_BEFORE..TOPICS_BEFORE + count {
        make(&broker, format!("idle-{number}")).await?;
    }
    let after = resident_bytes("self")?;
    let made = number_of(&broker);
    if made != (TOPICS_BEFORE + count) as usize {
        return Err(format!("there are {made} of them").into());
    }
    say(after.saturating_sub(before))?;
    wait_for_end()?;
    Ok(broker.shutdown().await?)
}

/// Pops messages of one byte and settles none, and says how many bytes of memory the broker took for that: what the
/// consumer itself holds is let go of before.
async fn popped(directory: &Path, count: u64) -> Result<()> {
    let broker = Broker::open(directory).await?;
    let queues = u32::try_from(count.div_ceil(POPPED_PER_QUEUE))?;
    broker.create_topic(TopicSpec::new(TOPIC).queues(queues).flush(Flush::Buffered)).await?;
    let producer = broker.producer(TOPIC).await?;
    let mut sent = 0;
    while sent < count {
        let batch = usize::try_from(count - sent)?.min(AT_ONCE);
        producer.send_batch(vec![Message::new("x"); batch]).await?;
        sent += batch as u64;
    }
    let consumer = broker.pop_consumer("group").subscribe(TOPIC).invisible(Duration::from_secs(3600)).build().await?;
    let before = resident_bytes("self")?;
    let mut taken = 0;
    while taken < count {
        let some = consumer.pop(AT_ONCE, Duration::from_secs(10)).await?;
        if some.is_empty() {
            return Err(format!("only {taken} of {count} messages were popped").into());
        }
        taken += some.len() as u64;
    }
    say(resident_bytes("self")?.saturating_sub(before))?;
    wait_for_end()?;
    drop(consumer);
    Ok(broker.shutdown().await?)
}

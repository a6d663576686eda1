//! Target 12: a panic in a queue's actor under load: what it costs its own queue, and what its neighbours notice.

use std::collections::VecDeque;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use cuemq::{AckLevel, Broker, Flush, Message, ProbePoint, Producer, TopicSpec};
use cuemq_storage_api::Engine;
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use hdrhistogram::Histogram;
use tokio::runtime::{Builder, Runtime};

use super::Context;
use super::row::{Goal, Pair, Row, Subject};
use crate::Result;
use crate::limits::{HISTOGRAM_DIGITS, Spread};
use crate::paths::house::note;
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, Ledger, TOPIC, check_queue};

const BODY_BYTES: usize = 256;
const IN_FLIGHT: usize = 256;
/// The neighbour's topic.
const NEIGHBOUR: &str = "neighbour";
/// The pause before an actor's first restart (`broker/src/domain/restart.rs`) and what may come on top of it.
const RECOVERY_MS: f64 = 10.0 + 10.0;
const ON_PURPOSE: &str = "a panic on purpose";

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    keep_panics_on_purpose_quiet();
    let bodies = Arc::new(Bodies::new(BODY_BYTES));
    let (mut lost, mut recovery, mut tails, mut verified) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..context.scale.pairs {
        let outcome = panic_once(context, &bodies)?;
        lost.push(Pair { value: outcome.lost, limit: 1.0 });
        recovery.push(Pair { value: outcome.recovery.as_secs_f64() * 1e3, limit: RECOVERY_MS });
        tails.push(Pair { value: outcome.beside.p99_us, limit: outcome.before.p99_us });
        verified += outcome.verified;
    }
    let subject = |name: &str, unit, limit, goal, note: &str| {
        let (name, note) = (name.into(), note.into());
        Subject { number: 12, name, unit, flush: "buffered", limit, goal, note }
    };
    let note = "one sender, 256 in flight; the request at hand is answered as unknown, all others are stored";
    let lost_requests = subject("queued requests lost by a panic of their actor", "requests", "one", Goal::Zero, note);
    let note = "from the panic to the next receipt of the same queue";
    let recovered = subject("recovery after a panic", "ms", "back-off + 10 ms", Goal::AtMost(1.0), note);
    let note = "one message at a time, beside the same load; the panic comes in the middle of the pass";
    let name = "send p99 of a neighbouring queue during a panic";
    let neighbour = subject(name, "us", "p99 before", Goal::AtMost(2.0), note);
    Ok(vec![lost_requests.row(lost, verified), recovered.row(recovery, verified), neighbour.row(tails, verified)])
}

/// The process's panic hook prints every panic; those that are wanted would only frighten.
fn keep_panics_on_purpose_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if info.payload().downcast_ref::<&str>() != Some(&ON_PURPOSE) {
                print(info);
            }
        }));
    });
}

/// Makes the actor of one queue panic when it is armed.
struct Trap {
    clock: Stopwatch,
    armed: AtomicBool,
    /// When it snapped, in nanoseconds of the clock; 0 before.
    snapped: AtomicU64,
}

impl Trap {
    fn check(&self, point: ProbePoint<'_>) {
        let here = point.message == "Append" && point.name.starts_with(TOPIC);
        if here && self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::SeqCst) {
            let now = u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.snapped.store(now, Ordering::SeqCst);
            std::panic::panic_any(ON_PURPOSE);
        }
    }
}

struct Outcome {
    lost: f64,
    recovery: Duration,
    before: Spread,
    beside: Spread,
    verified: u64,
}

fn panic_once(context: &Context, bodies: &Bodies) -> Result<Outcome> {
    let folder = context.place.folder()?;
    let trap = Arc::new(Trap { clock: Stopwatch::start(), armed: AtomicBool::new(false), snapped: AtomicU64::new(0) });
    let runtime = Builder::new_current_thread().build()?;
    let probe = Arc::clone(&trap);
    let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
    let opening = Broker::builder(engine).flush(Flush::Buffered).probe(move |point| probe.check(point)).open();
    let (broker, victim, neighbour) = runtime.block_on(async {
        let broker = opening.await?;
        for topic in [TOPIC, NEIGHBOUR] {
            broker.create_topic(TopicSpec::new(topic).queues(1)).await?;
        }
        let (victim, neighbour) = (broker.producer(TOPIC).await?, broker.producer(NEIGHBOUR).await?);
        Result::Ok((broker, victim, neighbour))
    })?;
    let stop = AtomicBool::new(false);
    let half = context.scale.latency_messages / 2;
    let (before, beside, load) = std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::default().run(&victim, bodies, &trap, &stop));
        let measured = measure(&runtime, &neighbour, bodies, half, || {}).and_then(|before| {
            let arm = || trap.armed.store(true, Ordering::SeqCst);
            Ok((before, measure(&runtime, &neighbour, bodies, half, arm)?))
        });
        stop.store(true, Ordering::SeqCst);
        let load = load.join().map_err(|_| "the sender panicked")??;
        let (before, beside) = measured?;
        Result::Ok((before, beside, load))
    })?;
    if broker.actor_restarts() != 1 {
        return Err(format!("{} restarts followed one panic", broker.actor_restarts()).into());
    }
    drop((victim, neighbour));
    runtime.block_on(broker.shutdown())?;
    let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
    let verified = check_queue(&engine, bodies, load.ledger.end(), |at| load.ledger.message(at))?;
    engine.close()?;
    let recovery = load.recovery.ok_or("nothing was acknowledged after the panic")?;
    // The request that the actor had in hands when it panicked may be gone; it was answered as unknown.
    let lost = f64::from(load.failed.saturating_sub(1));
    Ok(Outcome { lost, recovery, before, beside, verified })
}

/// Sends to the neighbour one message at a time; calls `midway` in the middle.
fn measure(
    runtime: &Runtime,
    neighbour: &Producer,
    bodies: &Bodies,
    messages: u64,
    midway: impl Fn(),
) -> Result<Spread> {
    let mut times = Histogram::<u64>::new(HISTOGRAM_DIGITS)?;
    for number in 0..messages {
        if number == messages / 2 {
            midway();
        }
        let watch = Stopwatch::start();
        runtime.block_on(neighbour.send(Message::new(bodies.body(number))))?;
        times.record(u64::try_from(watch.elapsed().as_nanos())?)?;
    }
    Ok(Spread::of_histogram(&times))
}

/// What the sender to the queue whose actor panics met.
#[derive(Default)]
struct Load {
    ledger: Ledger,
    failed: u32,
    recovery: Option<Duration>,
}

impl Load {
    /// Keeps so many messages in flight until it shall stop and the panic is over.
    fn run(mut self, producer: &Producer, bodies: &Bodies, trap: &Trap, stop: &AtomicBool) -> Result<Self> {
        let runtime = Builder::new_current_thread().build()?;
        let mut pending = VecDeque::with_capacity(IN_FLIGHT);
        let mut next = 0;
        runtime.block_on(async {
            while !stop.load(Ordering::Relaxed) || trap.armed.load(Ordering::Relaxed) {
                while pending.len() < IN_FLIGHT {
                    let message = Message::new(bodies.body(next));
                    pending.push_back((next, producer.enqueue(message).map_err(|rejected| rejected.error)?));
                    next += 1;
                }
                if let Some((number, receipt)) = pending.pop_front() {
                    self.settle(receipt.await, number, trap)?;
                }
            }
            for (number, receipt) in pending {
                self.settle(receipt.await, number, trap)?;
            }
            Result::Ok(())
        })?;
        Ok(self)
    }

    fn settle(&mut self, receipt: cuemq::Result<cuemq::Receipt>, number: u64, trap: &Trap) -> Result<()> {
        match receipt {
            Ok(receipt) => {
                note(&mut self.ledger, &receipt, number, AckLevel::Buffered)?;
                if self.failed > 0 && self.recovery.is_none() {
                    let snapped = Duration::from_nanos(trap.snapped.load(Ordering::SeqCst));
                    self.recovery = Some(trap.clock.elapsed().saturating_sub(snapped));
                }
            }
            Err(error) if error.kind() == cuemq::ErrorKind::Unknown => self.failed += 1,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

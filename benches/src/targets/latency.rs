//! Target 4: from a send to the handler of a push consumer, one message at a time, against a question and its answer
//! between two threads.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use cuemq::{Flush, Message, WorkerHandle};
use hdrhistogram::Histogram;

use super::Context;
use super::row::{Goal, Pair, Row, Subject};
use crate::Result;
use crate::limits::{HISTOGRAM_DIGITS, Spread, ping_time};
use crate::paths::end_to_end::{GROUP, check_all_acknowledged};
use crate::paths::house::{House, note};
use crate::stopwatch::Stopwatch;
use crate::store::EngineKind;
use crate::table::bytes;
use crate::workload::Bodies;

/// How long a message may take before it is called lost.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let mut line = Line::new(context, body_bytes)?;
        // The first messages start what sleeps.
        line.pass(context.scale.latency_messages / 10)?;
        let (mut middles, mut tails) = (Vec::new(), Vec::new());
        let mut before = ping_time(context.scale.limit_rounds)?;
        for _ in 0..context.scale.pairs {
            let spread = line.pass(context.scale.latency_messages)?;
            let after = ping_time(context.scale.limit_rounds)?;
            middles.push(Pair { value: spread.p50_us, limit: f64::midpoint(before.p50_us, after.p50_us) });
            tails.push(Pair { value: spread.p99_us, limit: f64::midpoint(before.p99_us, after.p99_us) });
            before = after;
        }
        let verified = line.end()?;
        let subject = |name: &str, limit, times| Subject {
            number: 4,
            name: format!("send to handler, {}, {name}", bytes(body_bytes)),
            unit: "us",
            flush: "buffered",
            limit,
            goal: Goal::AtMost(times),
            note: "one message at a time, to a consumer spawned on the broker's own thread".into(),
        };
        rows.push(subject("p50", "PING p50", 3.0).row(middles, verified));
        rows.push(subject("p99", "PING p99", 5.0).row(tails, verified));
    }
    Ok(rows)
}

/// What a handler says of a message.
struct Arrival {
    offset: u64,
    at: Duration,
    sound: bool,
}

/// A sender and a handler.
struct Line {
    house: House,
    worker: WorkerHandle,
    clock: Stopwatch,
    arrivals: Receiver<Arrival>,
}

impl Line {
    fn new(context: &Context, body_bytes: usize) -> Result<Self> {
        let bodies = Arc::new(Bodies::new(body_bytes));
        let house =
            House::new(EngineKind::Mmap, Arc::clone(&bodies), Flush::Buffered, &context.profile, &context.place)?;
        let (clock, (arrived, arrivals)) = (Stopwatch::start(), sync_channel(1));
        let worker = house.consumer(GROUP)?.spawn(1, move |received| {
            let at = clock.elapsed();
            let offset = received.offset().get();
            let sound = bodies.check(offset, received.body()).is_ok();
            // Nobody listens any more when the other side has failed.
            let _ = arrived.send(Arrival { offset, at, sound });
            std::future::ready(Ok::<(), Infallible>(()))
        });
        Ok(Self { house, worker, clock, arrivals })
    }

    /// Sends one message after the other.
    fn pass(&mut self, messages: u64) -> Result<Spread> {
        let (producer, level) = (self.house.producer()?, self.house.level());
        let mut times = Histogram::<u64>::new(HISTOGRAM_DIGITS)?;
        let first = self.house.ledger.end();
        for number in first..first + messages.max(1) {
            let message = Message::new(self.house.bodies.body(number));
            let sent = self.clock.elapsed();
            let receipt = producer.enqueue(message).map_err(|rejected| rejected.error)?;
            let arrival = self.arrivals.recv_timeout(PATIENCE)?;
            if arrival.offset != number || !arrival.sound {
                return Err(format!("offset {} arrived in place of {number}, or altered", arrival.offset).into());
            }
            times.record(u64::try_from((arrival.at - sent).as_nanos())?)?;
            let receipt = self.house.block_on(receipt)?;
            note(&mut self.house.ledger, &receipt, number, level)?;
        }
        Ok(Spread::of_histogram(&times))
    }

    fn end(mut self) -> Result<u64> {
        self.worker.stop();
        self.house.block_on(self.worker.join())?;
        check_all_acknowledged(&self.house)?;
        self.house.move_out()
    }
}

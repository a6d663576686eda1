//! A thread that sends for some producers, by one schedule.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, Stream};

use super::control::Control;
use super::driver::{DriverProducer, Outgoing, Published};
use super::keys::Keys;
use super::payload::{Bodies, Stamp};
use super::schedule::Schedule;
use super::statistics::SharedTally;
use super::verifier::Sent;
use crate::Result;

/// A sleeping publisher looks at least this often whether it shall go on.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Failed sends that one publisher remembers; with more the run ends.
const MAX_FAILED: usize = 1_000_000;

/// How much a publishing thread may do at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublishLimits {
    /// Most messages in one batch.
    pub batch: usize,
    /// Most messages that are sent and not yet acknowledged.
    pub in_flight: usize,
}

/// One producer and how far it is.
struct Line {
    producer: Box<dyn DriverProducer>,
    sent: Sent,
}

/// Sends for some producers until it is told to stop.
pub struct Publisher {
    lines: Vec<Line>,
    turn: usize,
    bodies: Bodies,
    keys: Keys,
    /// This thread's share of the whole rate.
    share: f64,
    schedule: Schedule,
    limits: PublishLimits,
    in_flight: usize,
    flights: FuturesUnordered<BoxFuture<'static, Landed>>,
    control: Arc<Control>,
    tally: SharedTally,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("lines", &self.lines.len()).finish_non_exhaustive()
    }
}

/// A batch whose outcome is known.
struct Landed {
    line: usize,
    first: u64,
    count: usize,
    sent: u64,
    outcome: Published,
}

impl Publisher {
    /// For producers with their numbers; `share` is this thread's part of the rate that `control` sets.
    #[must_use]
    pub fn new(
        producers: Vec<(u32, Box<dyn DriverProducer>)>,
        (bodies, keys): (Bodies, Keys),
        share: f64,
        limits: PublishLimits,
        control: Arc<Control>,
        tally: SharedTally,
    ) -> Self {
        let schedule = Schedule::new(control.now(), control.rate() * share);
        let line = |(number, producer)| Line { producer, sent: Sent { producer: number, ..Sent::default() } };
        Self {
            lines: producers.into_iter().map(line).collect(),
            turn: 0,
            bodies,
            keys,
            share,
            schedule,
            limits,
            in_flight: 0,
            flights: FuturesUnordered::new(),
            control,
            tally,
        }
    }

    /// Sends until it is told to stop, waits for what is in flight, and says what it sent.
    ///
    /// # Errors
    /// When too many sends failed: names why the last one did.
    pub fn run(mut self) -> Result<Vec<Sent>> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        self.schedule = Schedule::new(self.control.now(), self.control.rate() * self.share);
        loop {
            self.take_landed(&mut context)?;
            let publishing = self.control.is_publishing();
            if !publishing && self.flights.is_empty() {
                return Ok(self.lines.into_iter().map(|line| line.sent).collect());
            }
            let now = self.control.now();
            self.schedule.change_rate(now, self.control.rate() * self.share);
            let room = if publishing { (self.limits.in_flight - self.in_flight) as u64 } else { 0 };
            let due = self.schedule.due(now).min(room);
            if due > 0 {
                self.send(usize::try_from(due)?, &mut context)?;
            } else if room > 0 {
                let left = self.schedule.intended(0).saturating_sub(now);
                std::thread::park_timeout(Duration::from_nanos(left).min(LOOK_AGAIN));
            } else {
                std::thread::park_timeout(LOOK_AGAIN);
            }
        }
    }

    /// Sends `due` messages, or as many as each producer may send at once: producers take turns.
    fn send(&mut self, due: usize, context: &mut Context<'_>) -> Result<()> {
        let each = due.div_ceil(self.lines.len()).min(self.limits.batch);
        let mut left = due;
        for _ in 0..self.lines.len() {
            let count = each.min(left);
            if count == 0 {
                break;
            }
            left -= count;
            self.turn = (self.turn + 1) % self.lines.len();
            self.send_batch(self.turn, count, context)?;
        }
        Ok(())
    }

    fn send_batch(&mut self, line: usize, count: usize, context: &mut Context<'_>) -> Result<()> {
        let now = self.control.now();
        let Line { producer, sent } = &mut self.lines[line];
        let first = sent.messages;
        sent.messages += count as u64;
        let keys = &mut self.keys;
        let stamp = Stamp { producer: sent.producer, sequence: first, sent: now };
        let outgoing = |body| Outgoing { key: keys.next(now).map(str::to_owned), body };
        let messages = self.bodies.batch(stamp, count).map(outgoing).collect();
        {
            let mut tally = self.tally.lock();
            for ahead in 0..count as u64 {
                tally.delay.record(now.saturating_sub(self.schedule.intended(ahead)), 1);
            }
        }
        self.schedule.take(count as u64);
        self.in_flight += count;
        let flight = producer.publish(messages);
        let mut flight = async move { Landed { line, first, count, sent: now, outcome: flight.await } }.boxed();
        // Polled here, because the first poll hands the batch over: so batches are in the order of the sends.
        match flight.as_mut().poll(context) {
            Poll::Ready(landed) => self.land(landed),
            Poll::Pending => {
                self.flights.push(flight);
                Ok(())
            }
        }
    }

    fn take_landed(&mut self, context: &mut Context<'_>) -> Result<()> {
        while let Poll::Ready(Some(landed)) = Pin::new(&mut self.flights).poll_next(context) {
            self.land(landed)?;
        }
        Ok(())
    }

    fn land(&mut self, landed: Landed) -> Result<()> {
        let Landed { line, first, count, sent, outcome } = landed;
        self.in_flight -= count;
        let failed = outcome.failed.len() as u64;
        let acknowledged = count as u64 - failed;
        let took = self.control.now().saturating_sub(sent);
        {
            let mut tally = self.tally.lock();
            tally.sent += acknowledged;
            tally.failed += failed;
            tally.publish.record(took, acknowledged);
        }
        self.control.counters.published.fetch_add(acknowledged, Ordering::AcqRel);
        if failed == 0 {
            return Ok(());
        }
        self.control.counters.failed.fetch_add(failed, Ordering::AcqRel);
        let remembered = &mut self.lines[line].sent.failed;
        remembered.extend(outcome.failed.into_iter().map(|at| first + at as u64));
        remembered.sort_unstable();
        if remembered.len() > MAX_FAILED {
            let why = outcome.why.unwrap_or_default();
            return Err(
                format!("more than {MAX_FAILED} sends of one producer failed; the last one because: {why}").into()
            );
        }
        Ok(())
    }
}

/// Wakes a publisher that sleeps until its next message is due.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

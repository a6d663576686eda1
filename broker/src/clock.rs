//! The one source of time: the system's clock, or one that a test moves by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use cuemq_storage_api::Timestamp;

use crate::domain::slew::Slew;

/// Tells the time and wakes sleepers. Cheap to clone; all clones share one time.
#[derive(Clone)]
pub struct Clock {
    shared: Arc<Shared>,
}

struct Shared {
    source: Source,
    sleepers: Mutex<Sleepers>,
    changed: Condvar,
}

enum Source {
    System(SystemTimeline),
    Manual(Mutex<i64>),
}

/// Monotonic time since the start, on its way to the wall clock: steps of that one neither fire early nor stall.
struct SystemTimeline {
    readings: Box<dyn Readings>,
    /// Replaced by the clock's thread only.
    slew: ArcSwap<Slew>,
    /// The latest time that was told, in milliseconds: a reader that was slow to read a slew that is replaced
    /// meanwhile takes nothing back.
    told: AtomicI64,
    steps: AtomicU64,
    /// When the wall clock was looked at, by the monotonic one, in milliseconds.
    looked: AtomicU64,
}

/// The clocks of the machine.
trait Readings: Send + Sync {
    /// Time since some moment, which only rises.
    fn monotonic(&self) -> Duration;

    /// Microseconds since 1970, as somebody has set it.
    fn wall(&self) -> i64;
}

struct Machine {
    start: Instant,
}

#[expect(clippy::disallowed_methods, reason = "the one home of time")]
impl Readings for Machine {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> i64 {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        SystemTime::now().duration_since(UNIX_EPOCH).map_or_else(|before| -micros(before.duration()), micros)
    }
}

/// How often the wall clock is looked at, in milliseconds.
const LOOK_EVERY_MS: u64 = 1000;

impl SystemTimeline {
    fn new(readings: Box<dyn Readings>) -> Self {
        let slew = Slew::new(readings.monotonic(), readings.wall());
        let told = AtomicI64::new(i64::MIN);
        let slew = ArcSwap::from_pointee(slew);
        Self { readings, slew, told, steps: AtomicU64::new(0), looked: AtomicU64::new(0) }
    }

    fn now(&self) -> Timestamp {
        let now = self.slew.load().time(self.readings.monotonic()).as_millis();
        // Written once per millisecond, read by everybody.
        let told = self.told.load(Ordering::Relaxed);
        let latest = if now > told { self.told.fetch_max(now, Ordering::Relaxed).max(now) } else { told };
        Timestamp::from_millis(latest)
    }

    /// Looks at the wall clock if it is time to.
    fn watch(&self) {
        let monotonic = self.readings.monotonic();
        let now_ms = u64::try_from(monotonic.as_millis()).unwrap_or(u64::MAX);
        if now_ms.saturating_sub(self.looked.load(Ordering::Relaxed)) < LOOK_EVERY_MS {
            return;
        }
        self.looked.store(now_ms, Ordering::Relaxed);
        let mut slew = **self.slew.load();
        let step = slew.look(monotonic, self.readings.wall());
        let behind_ms = slew.behind_ms();
        self.slew.store(Arc::new(slew));
        if let Some(step) = step {
            self.steps.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                by_ms = step.by_ms,
                behind_ms,
                "the wall clock was set: broker time runs faster or slower by a twentieth until it has caught up"
            );
        }
    }
}

#[derive(Default)]
struct Sleepers {
    by_time: BTreeMap<(Timestamp, u64), Waker>,
    next_id: u64,
    closed: bool,
}

impl Clock {
    /// A clock that follows the system. It owns one thread, which ends with the last clone.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    #[expect(clippy::disallowed_methods, reason = "the one home of time")]
    pub fn system() -> std::io::Result<Self> {
        Self::over(Box::new(Machine { start: Instant::now() }))
    }

    #[expect(clippy::disallowed_methods, reason = "the one home of its thread")]
    fn over(readings: Box<dyn Readings>) -> std::io::Result<Self> {
        let clock = Self::with_source(Source::System(SystemTimeline::new(readings)));
        let weak = Arc::downgrade(&clock.shared);
        std::thread::Builder::new().name("cuemq-clock".into()).spawn(move || ring(&weak))?;
        Ok(clock)
    }

    fn with_source(source: Source) -> Self {
        Self { shared: Arc::new(Shared { source, sleepers: Mutex::default(), changed: Condvar::new() }) }
    }

    /// The time now. Never falls.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shared.now()
    }

    /// How often the wall clock was seen to be set by more than 5 s, forward or back, since this clock was made. Each
    /// time was logged. Broker time does not jump with it: it runs faster or slower by a twentieth until it has caught
    /// up. 0 for a [`ManualClock`].
    #[must_use]
    pub fn steps(&self) -> u64 {
        match &self.shared.source {
            Source::System(timeline) => timeline.steps.load(Ordering::Relaxed),
            Source::Manual(_) => 0,
        }
    }

    /// Resolves once the time is `at` or later. Works on any runtime.
    pub fn sleep_until(&self, at: Timestamp) -> Sleep {
        Sleep { shared: Arc::downgrade(&self.shared), at, id: None }
    }

    /// Resolves `by` from now.
    pub fn sleep(&self, by: Duration) -> Sleep {
        self.sleep_until(self.now().plus(by))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("now", &self.now()).finish_non_exhaustive()
    }
}

/// A clock that stands still until it is moved: a test decides when retries, delays and checks are due.
#[derive(Clone, Debug)]
pub struct ManualClock {
    clock: Clock,
}

impl ManualClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self { clock: Clock::with_source(Source::Manual(Mutex::new(start.as_millis()))) }
    }

    /// The clock to give to a broker.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Moves the time on and wakes whoever is due.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.clock.shared.source {
            let mut now = now.lock().unwrap_or_else(PoisonError::into_inner);
            *now = Timestamp::from_millis(*now).plus(by).as_millis();
        }
        self.clock.shared.wake_due();
    }

    /// How many sleepers wait for a later time: lets a test wait until a timer is really set.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        self.clock.shared.lock().by_time.len()
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        match &self.source {
            Source::System(timeline) => timeline.now(),
            Source::Manual(now) => Timestamp::from_millis(*now.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everyone who is due and returns the time of the next sleeper.
    fn wake_due(&self) -> Option<Timestamp> {
        let now = self.now();
        let mut sleepers = self.lock();
        let later = sleepers.by_time.split_off(&(now.plus(Duration::from_millis(1)), 0));
        let due = std::mem::replace(&mut sleepers.by_time, later);
        let next = sleepers.by_time.first_key_value().map(|((at, _), _)| *at);
        drop(sleepers);
        due.into_values().for_each(Waker::wake);
        next
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// The longest the clock's thread sleeps before it looks whether the clock is still used.
const LONGEST_NAP: Duration = Duration::from_millis(250);

fn ring(weak: &Weak<Shared>) {
    while let Some(shared) = weak.upgrade() {
        if let Source::System(timeline) = &shared.source {
            timeline.watch();
        }
        let next = shared.wake_due();
        let now = shared.now();
        let nap = next.map_or(LONGEST_NAP, |at| at.since(now).min(LONGEST_NAP));
        let sleepers = shared.lock();
        let earlier = sleepers.by_time.first_key_value().is_some_and(|((at, _), _)| next.is_none_or(|n| *at < n));
        if !sleepers.closed && !earlier && !nap.is_zero() {
            drop(shared.changed.wait_timeout(sleepers, nap));
        }
    }
}

/// See [`Clock::sleep_until`].
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    shared: Weak<Shared>,
    at: Timestamp,
    id: Option<u64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A clock that is gone wakes nobody: its broker has shut down, so let the sleeper see that.
        let Some(shared) = self.shared.upgrade() else { return Poll::Ready(()) };
        let mut sleepers = shared.lock();
        if shared.now() >= self.at {
            if let Some(id) = self.id.take() {
                sleepers.by_time.remove(&(self.at, id));
            }
            return Poll::Ready(());
        }
        let id = *self.id.get_or_insert_with(|| {
            sleepers.next_id += 1;
            sleepers.next_id
        });
        let first_before = sleepers.by_time.first_key_value().map(|(key, _)| *key);
        sleepers.by_time.insert((self.at, id), cx.waker().clone());
        if first_before.is_none_or(|first| (self.at, id) < first) {
            shared.changed.notify_all();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(id), Some(shared)) = (self.id, self.shared.upgrade()) {
            shared.lock().by_time.remove(&(self.at, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_manual_clock_wakes_exactly_who_is_due() {
        let manual = ManualClock::new(Timestamp::from_millis(1000));
        let clock = manual.clock();
        let mut soon = Box::pin(clock.sleep(Duration::from_millis(10)));
        let mut late = Box::pin(clock.sleep(Duration::from_millis(11)));
        assert!(soon.as_mut().now_or_never().is_none());
        assert!(late.as_mut().now_or_never().is_none());
        assert_eq!(manual.sleepers(), 2);
        manual.advance(Duration::from_millis(10));
        assert!(soon.as_mut().now_or_never().is_some());
        assert!(late.as_mut().now_or_never().is_none());
        drop(late);
        assert_eq!(manual.sleepers(), 0);
    }

    #[test]
    fn the_system_clock_wakes_its_sleepers() {
        let clock = Clock::system().unwrap();
        let before = clock.now();
        futures_executor_block_on(clock.sleep(Duration::from_millis(20)));
        assert!(clock.now().since(before) >= Duration::from_millis(20));
    }

    /// Clocks that a test sets: the monotonic one runs with real time, so that the clock's thread wakes by itself.
    struct Injected {
        machine: Machine,
        /// What the wall clock is set by, in microseconds.
        set: Arc<AtomicI64>,
    }

    impl Readings for Injected {
        fn monotonic(&self) -> Duration {
            self.machine.monotonic()
        }

        fn wall(&self) -> i64 {
            let monotonic = i64::try_from(self.monotonic().as_micros()).unwrap();
            1_700_000_000_000_000 + monotonic + self.set.load(Ordering::SeqCst)
        }
    }

    /// Each step is waited for, which takes a look: a second.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "how long real time it took is what is asked")]
    fn a_wall_clock_that_is_set_neither_wakes_early_nor_stalls() {
        let (hour, ten_years) = (3_600_000_000, 315_532_800_000_000);
        for step in [hour, -ten_years] {
            let set = Arc::new(AtomicI64::new(0));
            let machine = Machine { start: Instant::now() };
            let clock = Clock::over(Box::new(Injected { machine, set: Arc::clone(&set) })).unwrap();
            let (start, before) = (clock.now(), Instant::now());
            set.store(step, Ordering::SeqCst);
            futures_executor_block_on(clock.sleep(Duration::from_millis(1400)));
            let passed = before.elapsed();
            assert!(clock.now().since(start) >= Duration::from_millis(1400));
            assert!(passed >= Duration::from_millis(1300), "early, after {passed:?}");
            assert!(passed < Duration::from_secs(20), "it stalls");
            assert_eq!(clock.steps(), 1, "by {step}");
        }
    }

    fn futures_executor_block_on(sleep: Sleep) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(sleep);
    }
}

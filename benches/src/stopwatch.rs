//! The only place that reads the time, or lets it pass: a benchmark is there to measure it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Runs since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "measuring time is what a benchmark does; nothing decides by it")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Lets time pass: where what is measured is what happens when nobody does anything.
pub fn idle(time: Duration) {
    let (_open, nothing) = mpsc::channel::<()>();
    // It times out, because nothing is ever sent.
    let _ = nothing.recv_timeout(time);
}

/// Processor time that all threads of this process have used so far.
#[must_use]
pub fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or_default())
}

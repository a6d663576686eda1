//! What the threads of a run share: the time, the orders, the totals, and the first thing that went wrong.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use super::statistics::Counters;
use super::subscriber::Consuming;
use crate::Result;
use crate::stopwatch::Stopwatch;

/// One per run, behind an `Arc`.
#[derive(Debug)]
pub struct Control {
    watch: Stopwatch,
    /// The rate over all publishers, in messages a second, as the bits of an `f64`.
    rate: AtomicU64,
    publishing: AtomicBool,
    /// What the consumers shall do.
    pub consuming: watch::Sender<Consuming>,
    /// Totals since the run began.
    pub counters: Counters,
    fault: OnceLock<String>,
}

impl Control {
    /// Starts the run's time; everybody sends and receives.
    #[must_use]
    pub fn new(rate: f64) -> Self {
        Self {
            watch: Stopwatch::start(),
            rate: AtomicU64::new(rate.to_bits()),
            publishing: AtomicBool::new(true),
            consuming: watch::Sender::new(Consuming::GoOn),
            counters: Counters::default(),
            fault: OnceLock::new(),
        }
    }

    /// Nanoseconds since the run began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.watch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The rate over all publishers, in messages a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        f64::from_bits(self.rate.load(Ordering::Relaxed))
    }

    /// Changes the rate.
    pub fn set_rate(&self, rate: f64) {
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }

    /// Whether publishers shall go on.
    #[must_use]
    pub fn is_publishing(&self) -> bool {
        self.publishing.load(Ordering::Acquire)
    }

    /// Has the publishers end.
    pub fn stop_publishing(&self) {
        self.publishing.store(false, Ordering::Release);
    }

    /// The first thing that went wrong in any thread.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    fn set_fault(&self, text: String) {
        // Only the first one is told: the others follow from it.
        let _ = self.fault.set(text);
    }
}

/// A thread of the run and its result.
#[derive(Debug)]
pub struct Worker<T> {
    thread: JoinHandle<()>,
    result: oneshot::Receiver<Result<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts a thread. When it fails, `control` says so.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    #[expect(clippy::disallowed_methods, reason = "a benchmark's load comes from threads of its own, joined below")]
    pub fn start(
        name: &str,
        control: &std::sync::Arc<Control>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (sender, result) = oneshot::channel();
        let control = std::sync::Arc::clone(control);
        let run = move || {
            let result = work();
            if let Err(error) = &result {
                control.set_fault(error.to_string());
            }
            // A run that has failed does not ask for the result any more.
            let _ = sender.send(result);
        };
        Ok(Self { thread: std::thread::Builder::new().name(name.to_owned()).spawn(run)?, result })
    }

    /// Whether its work is done, well or not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its result.
    ///
    /// # Errors
    /// The work's own, or that it panicked.
    pub async fn join(self) -> Result<T> {
        let result = self.result.await;
        if self.thread.join().is_err() {
            return Err("a thread of the benchmark panicked".into());
        }
        result?
    }
}

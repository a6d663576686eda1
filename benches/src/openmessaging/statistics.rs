//! What is counted and timed, period by period and over the whole test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;

use super::rate_search::Totals;

/// Digits of a latency that are kept.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Steps between one half of the remaining quantiles and the next.
const QUANTILE_TICKS: u32 = 10;
/// Why a histogram takes every value.
const GROWS: &str = "a histogram without a highest value grows with its values";

/// A histogram of latencies, recorded in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are allowed"))
    }
}

impl Latencies {
    /// Adds `count` latencies of the same length.
    pub fn record(&mut self, nanos: u64, count: u64) {
        // None of them would still count as the longest one.
        if count > 0 {
            self.0.record_n(nanos, count).expect(GROWS);
        }
    }

    /// Adds all of another one.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect(GROWS);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The mean in microseconds; 0 without any.
    #[must_use]
    pub fn mean_micros(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// The latency in microseconds that `percent` of all do not exceed; 0 without any.
    #[must_use]
    pub fn micros_at(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e3
    }

    /// The longest in microseconds.
    #[must_use]
    pub fn max_micros(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    /// Percentages and the latencies in microseconds that belong to them, closer together towards 100.
    pub fn quantiles(&self) -> impl Iterator<Item = (f64, f64)> {
        let micros = |value: u64| value as f64 / 1e3;
        self.0
            .iter_quantiles(QUANTILE_TICKS)
            .map(move |step| (step.quantile_iterated_to() * 100.0, micros(step.value_iterated_to())))
    }
}

/// What happened in some time.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Messages acknowledged.
    pub sent: u64,
    /// Messages whose send failed.
    pub failed: u64,
    /// Messages received, over all subscriptions.
    pub received: u64,
    /// From the send of a message to its acknowledgement.
    pub publish: Latencies,
    /// From the time for which the send of a message was intended to its send.
    pub delay: Latencies,
    /// From the send of a message to its receipt.
    pub end_to_end: Latencies,
}

impl Tally {
    /// Adds all of another one.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.received += other.received;
        self.publish.add(&other.publish);
        self.delay.add(&other.delay);
        self.end_to_end.add(&other.end_to_end);
    }
}

/// A tally that one thread fills, a batch at a time, and the reporter empties.
#[derive(Clone, Debug, Default)]
pub struct SharedTally(Arc<Mutex<Tally>>);

impl SharedTally {
    /// For a batch's figures.
    pub(super) fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything out.
    #[must_use]
    pub fn take(&self) -> Tally {
        std::mem::take(&mut self.lock())
    }
}

/// Totals since the run began, read while it runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages acknowledged.
    pub published: AtomicU64,
    /// Messages received, over all subscriptions.
    pub received: AtomicU64,
    /// Messages whose send failed.
    pub failed: AtomicU64,
}

impl Counters {
    /// The totals now.
    #[must_use]
    pub fn totals(&self, subscriptions: u32) -> Totals {
        // In this order: a message counted as received was published, and not the other way round.
        let received = self.received.load(Ordering::Acquire);
        let published = self.published.load(Ordering::Acquire);
        Totals { published, receivable: published * u64::from(subscriptions), received }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Period {
    /// How long it was, in seconds.
    pub seconds: f64,
    /// What happened in it.
    pub tally: Tally,
    /// Messages that the consumers had yet to receive at its end.
    pub backlog: u64,
}

impl Period {
    /// A count of this period as a rate.
    #[must_use]
    pub fn rate(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_told_in_microseconds() {
        let mut latencies = Latencies::default();
        latencies.record(7_000_000_000, 0);
        latencies.record(1_000, 98);
        latencies.record(50_000_000, 2);
        assert!((latencies.micros_at(50.0) - 1.0).abs() < 0.01);
        assert!((latencies.micros_at(99.0) - 50_000.0).abs() < 50.0);
        assert!((latencies.max_micros() - 50_000.0).abs() < 50.0);
        assert!((latencies.mean_micros() - 1000.98).abs() < 2.0);
        let quantiles: Vec<(f64, f64)> = latencies.quantiles().collect();
        assert!(quantiles.len() > 5 && quantiles.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1), "{quantiles:?}");
    }

    #[test]
    fn a_tally_is_taken_once() {
        let shared = SharedTally::default();
        shared.lock().sent += 3;
        shared.lock().publish.record(5, 3);
        let mut sum = Tally::default();
        for _ in 0..2 {
            sum.add(&shared.take());
        }
        assert_eq!((sum.sent, sum.publish.count()), (3, 3));
    }
}

//! How long sends took, as quantiles.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time told apart; longer ones count as this long.
const LONGEST_MICROS: u64 = 60_000_000;
/// Decimal digits that are kept of each time.
const DIGITS: u8 = 3;

/// Times between 1 microsecond and 1 minute.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let bounds = "1 to 60,000,000 with three digits are bounds that a histogram takes";
        Self(Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS).expect(bounds))
    }
}

impl Latencies {
    /// Counts one time.
    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(LONGEST_MICROS);
        self.0.saturating_record(micros.max(1));
    }

    /// The time that this share of all (0 to 1) did not exceed, as text.
    #[must_use]
    pub fn quantile(&self, share: f64) -> String {
        if self.0.is_empty() {
            return "-".to_owned();
        }
        millis(Duration::from_micros(self.0.value_at_quantile(share)))
    }
}

/// A time in milliseconds, as text.
#[must_use]
pub fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_told_in_milliseconds() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), "-");
        for ms in 1..=100 {
            latencies.record(Duration::from_millis(ms));
        }
        assert!(latencies.quantile(0.5).starts_with("50."), "{}", latencies.quantile(0.5));
        latencies.record(Duration::from_secs(3600));
        assert!(latencies.quantile(1.0).starts_with("60"), "{}", latencies.quantile(1.0));
    }
}

//! Looks for the highest rate that is sustained: probing upwards while producers and consumers keep up, stepping back
//! below what they managed when they do not. OpenMessaging's approach with its numbers; only the tolerated backlog
//! grows with the rate, because a thousand messages are less than a millisecond of an embedded broker's traffic.

/// Where the search begins, in messages a second.
pub const FIRST_RATE: f64 = 10_000.0;
/// A backlog of as many messages is always tolerated.
pub const TOLERATED_MESSAGES: u64 = 1000;
/// A backlog of as many seconds' messages is tolerated.
pub const TOLERATED_SECONDS: f64 = 0.02;
/// Bounds of the growth from one period to the next: the rate doubles at first, and grows by a hundredth in the end.
const GROWTH: std::ops::RangeInclusive<f64> = 0.01..=1.0;
/// What a failure leaves of the growth; a success doubles it. So a failure and a success leave half: the search closes
/// in, where halving would probe the same too high rate for ever.
const GROWTH_AFTER_FAILURE: f64 = 0.25;
/// After a failure the next rate is this share of what was really done, and the rest what was expected less the backlog.
const DONE_WEIGHT: f64 = 0.2;

/// Totals since the run began; what subscriptions should receive counts once for each of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Messages acknowledged.
    pub published: u64,
    /// Messages that the consumers should have received by now.
    pub receivable: u64,
    /// Messages that the consumers have received.
    pub received: u64,
}

impl Totals {
    /// What the consumers have yet to receive.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.receivable.saturating_sub(self.received)
    }
}

/// The search.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RateSearch {
    rate: f64,
    growth: f64,
    before: Totals,
    sustained: f64,
}

impl Default for RateSearch {
    fn default() -> Self {
        Self { rate: FIRST_RATE, growth: *GROWTH.end(), before: Totals::default(), sustained: 0.0 }
    }
}

impl RateSearch {
    /// The rate to try now.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The highest rate that was kept for a whole period so far, without a backlog of sends or receipts; 0 if none was.
    #[must_use]
    pub fn sustained(&self) -> f64 {
        self.sustained
    }

    /// Judges a period of `seconds` by the totals at its end, and chooses the next rate.
    pub fn next(&mut self, seconds: f64, now: Totals) -> f64 {
        if seconds <= 0.0 {
            return self.rate;
        }
        let published = now.published.saturating_sub(self.before.published) as f64;
        let received = now.received.saturating_sub(self.before.received) as f64;
        let copies = if now.published == 0 { 1.0 } else { (now.receivable as f64 / now.published as f64).max(1.0) };
        self.before = now;
        let expected = self.rate * seconds;
        let tolerated = (TOLERATED_MESSAGES as f64).max(self.rate * TOLERATED_SECONDS);
        let behind = now.backlog() as f64 / copies;
        if behind > tolerated {
            self.step_back(seconds, expected, received / copies, behind);
        } else if expected - published > tolerated {
            self.step_back(seconds, expected, published, expected - published);
        } else {
            self.sustained = self.sustained.max(self.rate.min(published / seconds));
            self.growth = (self.growth * 2.0).min(*GROWTH.end());
            self.rate *= 1.0 + self.growth;
        }
        self.rate = self.rate.max(1.0);
        self.rate
    }

    fn step_back(&mut self, seconds: f64, expected: f64, done: f64, backlog: f64) {
        self.growth = (self.growth * GROWTH_AFTER_FAILURE).max(*GROWTH.start());
        let managed = (expected - backlog).max(0.0);
        self.rate = (DONE_WEIGHT * done + (1.0 - DONE_WEIGHT) * managed) / seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(published: u64, received: u64) -> Totals {
        Totals { published, receivable: published, received }
    }

    #[test]
    fn each_verdict_changes_the_rate_as_told() {
        let cases = [
            ("all is well", totals(30_000, 29_500), 20_000.0),
            ("a little behind is still well", totals(29_100, 29_100), 20_000.0),
            ("receivers are behind", totals(30_000, 20_000), (0.2 * 20_000.0 + 0.8 * 20_000.0) / 3.0),
            ("senders are behind", totals(12_000, 12_000), (0.2 * 12_000.0 + 0.8 * 12_000.0) / 3.0),
            ("nothing goes", totals(0, 0), 1.0),
        ];
        for (case, now, expected) in cases {
            let mut search = RateSearch::default();
            let rate = search.next(3.0, now);
            assert!((rate - expected).abs() < 0.01, "{case}: {rate}, not {expected}");
        }
    }

    #[test]
    fn two_subscriptions_receive_everything_twice() {
        let mut search = RateSearch::default();
        let now = Totals { published: 30_000, receivable: 60_000, received: 59_000 };
        assert!((search.next(3.0, now) - 20_000.0).abs() < 0.01);
    }

    #[test]
    fn a_moment_of_no_length_changes_nothing() {
        let mut search = RateSearch::default();
        assert!((search.next(0.0, totals(0, 0)) - FIRST_RATE).abs() < 0.01);
    }

    /// A broker that manages `capacity` a second, and senders that drop what they are late with when the rate changes.
    #[expect(clippy::cast_possible_truncation, reason = "some millions")]
    fn settle(capacity: f64, periods: usize) -> (f64, RateSearch) {
        let (mut search, mut published) = (RateSearch::default(), 0.0);
        let mut rates = Vec::new();
        for _ in 0..periods {
            rates.push(search.rate());
            published += search.rate().min(capacity);
            search.next(1.0, totals(published as u64, published as u64));
        }
        let tail = &rates[periods / 2..];
        (tail.iter().sum::<f64>() / tail.len() as f64, search)
    }

    #[test]
    fn the_search_settles_near_the_capacity() {
        for capacity in [3_000.0, 50_000.0, 1_000_000.0, 5_000_000.0] {
            let (mean, search) = settle(capacity, 80);
            // What is tolerated is a large part of a low rate.
            let near = 0.25 + TOLERATED_MESSAGES as f64 / capacity;
            assert!((mean / capacity - 1.0).abs() < near, "{mean} for {capacity}");
            let sustained = search.sustained() / capacity;
            assert!((0.85..=1.01).contains(&sustained), "{} sustained of {capacity}", search.sustained());
        }
    }
}

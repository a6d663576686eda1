//! So many a second: how many may go now, and when the next one may.

use std::num::NonZeroU32;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

/// Credit for one message: a rate of one a second earns this in a millisecond's time a thousand times.
const ONE: u64 = 1000;

/// Lets `rate` a second go, the first at once. Time in which nothing went counts for at most one second's worth, so
/// a sender that was held up does not rush afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pace {
    rate: NonZeroU32,
    /// Thousandths of a message.
    credit: u64,
    seen: Timestamp,
}

impl Pace {
    /// Starts now.
    pub(crate) fn new(rate: NonZeroU32, now: Timestamp) -> Self {
        Self { rate, credit: ONE, seen: now }
    }

    fn rate(&self) -> u64 {
        u64::from(self.rate.get())
    }

    /// How many may go at `now`.
    pub(crate) fn due(&mut self, now: Timestamp) -> u64 {
        let millis = u64::try_from(now.since(self.seen).as_millis()).unwrap_or(u64::MAX);
        self.seen = self.seen.max(now);
        let most = self.rate() * ONE;
        self.credit = millis.saturating_mul(self.rate()).saturating_add(self.credit).min(most);
        self.credit / ONE
    }

    /// They went; no more than were due.
    pub(crate) fn spend(&mut self, count: u64) {
        self.credit = self.credit.saturating_sub(count.saturating_mul(ONE));
    }

    /// When the next one is due, as of the last look.
    #[must_use]
    pub(crate) fn next(&self) -> Timestamp {
        let missing = ONE.saturating_sub(self.credit);
        self.seen.plus(Duration::from_millis(missing.div_ceil(self.rate())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn pace(rate: u32) -> Pace {
        Pace::new(NonZeroU32::new(rate).unwrap(), at(0))
    }

    #[test]
    fn so_many_a_second() {
        for (rate, looks) in [
            (1, vec![(0, 1), (999, 0), (1000, 1), (1500, 0), (2000, 1)]),
            (10, vec![(0, 1), (99, 0), (100, 1), (400, 3), (450, 0), (500, 1)]),
            (3000, vec![(0, 1), (1, 3), (2, 3), (12, 30)]),
            // What was missed for longer than a second is not made up for.
            (2, vec![(0, 1), (60_000, 2), (60_499, 0), (60_500, 1)]),
            // A clock that goes back earns nothing.
            (1, vec![(0, 1), (-5000, 0), (1000, 1)]),
        ] {
            let mut pace = pace(rate);
            for (millis, expected) in looks {
                let due = pace.due(at(millis));
                assert_eq!(due, expected, "{rate} a second at {millis} ms");
                pace.spend(due);
            }
        }
    }

    #[test]
    fn the_next_one_is_named_to_the_millisecond() {
        let mut pace = pace(3);
        assert_eq!(pace.next(), at(0));
        let due = pace.due(at(0));
        pace.spend(due);
        assert_eq!(pace.next(), at(334));
        assert_eq!(pace.due(at(333)), 0);
        assert_eq!(pace.due(at(334)), 1);
    }

    proptest! {
        /// Over any time no more than the rate allows and, when each is sent as it is due, no fewer.
        #[test]
        fn it_keeps_its_rate(rate in 1u32..5000, count in 1u64..300) {
            let mut pace = pace(rate);
            let (mut now, mut sent) = (at(0), 0);
            while sent < count {
                now = now.max(pace.next());
                let due = pace.due(now);
                prop_assert!(due > 0);
                sent += due;
                pace.spend(due);
                let millis = u64::try_from(now.as_millis()).unwrap();
                prop_assert!(sent * 1000 <= millis * u64::from(rate) + 1000);
            }
            let millis = u64::try_from(now.as_millis()).unwrap();
            prop_assert!(millis * u64::from(rate) <= count * 1000 + u64::from(rate), "{millis} ms for {count}");
        }
    }
}

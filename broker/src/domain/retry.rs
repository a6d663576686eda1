//! When a message that was not consumed comes again, and when it becomes a dead letter.

use std::time::Duration;

use cuemq_storage_api::InvalidInput;

/// Most redeliveries of one message.
pub(crate) const MAX_REDELIVERIES: u32 = 1000;
/// Longest pause before a redelivery: a year.
pub(crate) const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(366 * 24 * 3600);

/// RocketMQ's redelivery times in seconds: 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h.
const DEFAULT_SCHEDULE_S: [u64; 16] = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

/// How long a failed message waits before each redelivery, and how many redeliveries there are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RetryPolicy {
    /// One pause per redelivery, in order; there are as many redeliveries as pauses.
    Schedule(Vec<Duration>),
    /// The first pause, doubled with each redelivery up to a longest one.
    Exponential {
        /// The pause before the first redelivery.
        first: Duration,
        /// The longest pause.
        longest: Duration,
        /// How many redeliveries there are; 0 makes the first failure a dead letter.
        redeliveries: u32,
    },
    /// Always the same pause.
    Fixed {
        /// The pause before every redelivery.
        pause: Duration,
        /// How many redeliveries there are; 0 makes the first failure a dead letter.
        redeliveries: u32,
    },
}

impl Default for RetryPolicy {
    /// RocketMQ's 16 redeliveries, from 10 seconds to 2 hours.
    fn default() -> Self {
        Self::Schedule(DEFAULT_SCHEDULE_S.map(Duration::from_secs).to_vec())
    }
}

impl RetryPolicy {
    /// How long a message waits after it has failed this many times; `None` makes it a dead letter at once. A message
    /// that has not failed yet waits for nothing.
    #[must_use]
    pub(crate) fn delay_of(&self, failures: u32) -> Option<Duration> {
        let Some(earlier) = failures.checked_sub(1) else { return Some(Duration::ZERO) };
        if failures > self.redeliveries() {
            return None;
        }
        match self {
            Self::Schedule(pauses) => usize::try_from(earlier).ok().and_then(|at| pauses.get(at)).copied(),
            Self::Exponential { first, longest, .. } => Some(doubled(*first, earlier, *longest)),
            Self::Fixed { pause, .. } => Some(*pause),
        }
    }

    /// How many times a message is delivered again after its first delivery.
    #[must_use]
    pub(crate) fn redeliveries(&self) -> u32 {
        match self {
            Self::Schedule(pauses) => u32::try_from(pauses.len()).unwrap_or(u32::MAX),
            Self::Exponential { redeliveries, .. } | Self::Fixed { redeliveries, .. } => *redeliveries,
        }
    }

    /// Checks the bounds: at most 1000 redeliveries, pauses of at most a year.
    ///
    /// # Errors
    /// Names the value and its bound.
    pub(crate) fn check(&self) -> Result<(), InvalidInput> {
        if self.redeliveries() > MAX_REDELIVERIES {
            return Err(InvalidInput::new(format!(
                "a retry policy has {} redeliveries: use at most {MAX_REDELIVERIES}",
                self.redeliveries()
            )));
        }
        let longest = match self {
            Self::Schedule(pauses) => pauses.iter().copied().max().unwrap_or_default(),
            Self::Exponential { first, longest, .. } => *first.max(longest),
            Self::Fixed { pause, .. } => *pause,
        };
        if longest > LONGEST_RETRY_PAUSE {
            return Err(InvalidInput::new(format!(
                "a retry policy has a pause of {longest:?}: use at most {LONGEST_RETRY_PAUSE:?}"
            )));
        }
        Ok(())
    }

    /// The same pauses, but at most this many redeliveries.
    #[must_use]
    pub(crate) fn at_most(mut self, most: u32) -> Self {
        match &mut self {
            Self::Schedule(pauses) => pauses.truncate(usize::try_from(most).unwrap_or(usize::MAX)),
            Self::Exponential { redeliveries, .. } | Self::Fixed { redeliveries, .. } => {
                *redeliveries = most.min(*redeliveries);
            }
        }
        self
    }
}

/// A duration doubled this many times, at most `longest`.
#[must_use]
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// RocketMQ's total: 4 h 45 m 40 s.
    #[test]
    fn the_default_is_rocketmqs_schedule() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.redeliveries(), 16);
        assert_eq!(policy.delay_of(0), Some(Duration::ZERO));
        assert_eq!(policy.delay_of(1), Some(secs(10)));
        assert_eq!(policy.delay_of(3), Some(secs(60)));
        assert_eq!(policy.delay_of(16), Some(secs(7200)));
        assert_eq!(policy.delay_of(17), None, "the 17th failure is the last");
        assert_eq!(policy.delay_of(u32::MAX), None);
        let total: Duration = (1..=16).filter_map(|failures| policy.delay_of(failures)).sum();
        assert_eq!(total, secs(4 * 3600 + 45 * 60 + 40));
    }

    #[test]
    fn exponential_doubles_up_to_the_longest() {
        let policy = RetryPolicy::Exponential { first: secs(1), longest: secs(5), redeliveries: 100 };
        let pauses: Vec<_> = [1, 2, 3, 4, 33, 100].map(|failures| policy.delay_of(failures)).to_vec();
        assert_eq!(pauses, [1, 2, 4, 5, 5, 5].map(|s| Some(secs(s))));
        assert_eq!(policy.delay_of(101), None);
    }

    #[test]
    fn fixed_and_limits() {
        let policy = RetryPolicy::Fixed { pause: secs(7), redeliveries: 2 };
        assert_eq!([1, 2, 3].map(|failures| policy.delay_of(failures)), [Some(secs(7)), Some(secs(7)), None]);
        assert_eq!(policy.clone().at_most(1).delay_of(2), None);
        assert_eq!(policy.at_most(9).redeliveries(), 2, "a limit adds nothing");
        assert_eq!(RetryPolicy::default().at_most(0).delay_of(1), None);
        assert_eq!(RetryPolicy::default().at_most(3).delay_of(3), Some(secs(60)));
    }

    #[test]
    fn policies_are_bounded() {
        RetryPolicy::default().check().unwrap();
        let many = RetryPolicy::Schedule(vec![secs(1); 1001]);
        let long = RetryPolicy::Fixed { pause: secs(367 * 24 * 3600), redeliveries: 1 };
        let first = RetryPolicy::Exponential { first: Duration::MAX, longest: secs(1), redeliveries: 1 };
        for policy in [many, long, first] {
            assert!(policy.check().is_err());
        }
    }

    proptest! {
        #[test]
        fn there_are_exactly_as_many_pauses_as_redeliveries(most in 0u32..40, failures in 1u32..60, kind in 0..3) {
            let policy = match kind {
                0 => RetryPolicy::default().at_most(most),
                1 => RetryPolicy::Fixed { pause: secs(1), redeliveries: most },
                _ => RetryPolicy::Exponential { first: secs(1), longest: secs(60), redeliveries: most },
            };
            prop_assert_eq!(policy.delay_of(failures).is_some(), failures <= policy.redeliveries());
        }
    }
}

//! When each message is to be sent. The schedule does not wait for anybody: what is sent late is late by the schedule,
//! so that a slow broker cannot slow the measurement down with it (coordinated omission).

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Message `i` from the anchor on is intended for `anchor + i / rate`. Times are nanoseconds since the run began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Schedule {
    anchor: u64,
    /// Messages per million seconds: exact for a share of a rate, too.
    rate_micro: u64,
    taken: u64,
}

impl Schedule {
    /// A schedule whose first message is intended for `start`. The rate is in messages a second, at least one in a
    /// million seconds.
    #[must_use]
    pub fn new(start: u64, rate: f64) -> Self {
        Self { anchor: start, rate_micro: micro(rate), taken: 0 }
    }

    /// Goes on at another rate from `now` on. What was overdue under the old rate is dropped: only a search changes the
    /// rate, and the old one was a trial.
    pub fn change_rate(&mut self, now: u64, rate: f64) {
        if self.rate_micro != micro(rate) {
            *self = Self::new(now, rate);
        }
    }

    /// When the message after the next `ahead` ones is intended.
    #[must_use]
    pub fn intended(&self, ahead: u64) -> u64 {
        let nanos = u128::from(self.taken + ahead) * NANOS_PER_SECOND * 1_000_000 / u128::from(self.rate_micro);
        self.anchor.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many messages are due at `now`.
    #[must_use]
    pub fn due(&self, now: u64) -> u64 {
        let Some(since) = now.checked_sub(self.anchor) else { return 0 };
        // The message number n is due once n * second <= since * rate.
        let reached = u128::from(since) * u128::from(self.rate_micro) / (NANOS_PER_SECOND * 1_000_000);
        u64::try_from(reached).unwrap_or(u64::MAX).saturating_add(1).saturating_sub(self.taken)
    }

    /// Takes the next messages off the schedule.
    pub fn take(&mut self, count: u64) {
        self.taken += count;
    }
}

/// Truncation is what is wanted: rates have no more digits.
#[expect(clippy::cast_possible_truncation, reason = "clamped before")]
fn micro(rate: f64) -> u64 {
    (rate * 1e6).clamp(1.0, 1e18) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_one_by_one() {
        let schedule = Schedule::new(100, 1e6); // one each microsecond
        for (now, due) in [(0, 0), (99, 0), (100, 1), (1099, 1), (1100, 2), (10_100, 11), (1_000_000_100, 1_000_001)] {
            assert_eq!(schedule.due(now), due, "at {now}");
        }
    }

    #[test]
    fn a_late_sender_is_late_by_the_first_plan() {
        let mut schedule = Schedule::new(0, 1000.0);
        assert_eq!(schedule.due(5_000_000), 6);
        schedule.take(2);
        assert_eq!(schedule.due(5_000_000), 4);
        assert_eq!((schedule.intended(0), schedule.intended(3)), (2_000_000, 5_000_000));
        schedule.take(4);
        assert_eq!((schedule.due(5_999_999), schedule.due(6_000_000)), (0, 1));
    }

    #[test]
    fn no_rate_drifts() {
        // A third of a message a second, and a rate whose interval is no whole number of nanoseconds.
        for rate in [1.0 / 3.0, 3.0, 70_000_001.0] {
            let mut schedule = Schedule::new(0, rate);
            let hour = 3_600_000_000_000;
            let due = schedule.due(hour);
            assert!((due as f64 - rate * 3600.0).abs() <= 1.0 + rate * 3600.0 / 1e5, "{due} at {rate}");
            schedule.take(due);
            assert!(schedule.intended(0) > hour);
            assert_eq!(schedule.due(hour), 0);
        }
    }

    #[test]
    fn another_rate_begins_anew_and_the_same_rate_does_not() {
        let mut schedule = Schedule::new(0, 1000.0);
        schedule.change_rate(9_000_000, 1000.0);
        assert_eq!(schedule.due(9_000_000), 10);
        schedule.change_rate(9_000_000, 2000.0);
        assert_eq!((schedule.due(9_000_000), schedule.intended(1)), (1, 9_500_000));
    }
}

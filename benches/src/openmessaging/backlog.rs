//! Builds a backlog and drains it: consumers pause until enough has piled up, then go on while producers never stop.

/// A backlog of as many messages counts as drained (OpenMessaging's number): some are always on their way.
pub const DRAINED_MESSAGES: u64 = 1000;

/// What to do with the consumers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Nothing changes.
    GoOn,
    /// Let them go on: the backlog is as large as asked for.
    Resume,
    /// The backlog is drained; the test's time begins.
    Drained,
}

/// One building and draining. Times are nanoseconds since the run began.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Backlog {
    wanted_messages: u64,
    drained_messages: u64,
    started: u64,
    built: Option<u64>,
    drained: Option<u64>,
}

impl Backlog {
    /// Starts at `now`, with consumers that pause. `bytes` of bodies of `message_size` have to pile up; `ratio` of that
    /// has to be drained.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a share of a number that fits")]
    pub fn new(now: u64, bytes: u64, message_size: usize, ratio: f64) -> Self {
        let wanted_messages = (bytes / (message_size as u64).max(1)).max(1);
        let rest = ((1.0 - ratio).clamp(0.0, 1.0) * wanted_messages as f64) as u64;
        Self {
            wanted_messages,
            drained_messages: rest.max(DRAINED_MESSAGES.min(wanted_messages)),
            started: now,
            built: None,
            drained: None,
        }
    }

    /// Looks at the backlog, in messages over all subscriptions.
    pub fn look(&mut self, now: u64, backlog: u64) -> Order {
        match (self.built, self.drained) {
            (None, _) if backlog >= self.wanted_messages => {
                self.built = Some(now);
                Order::Resume
            }
            (Some(_), None) if backlog <= self.drained_messages => {
                self.drained = Some(now);
                Order::Drained
            }
            _ => Order::GoOn,
        }
    }

    /// How long it took to pile up, in seconds.
    #[must_use]
    pub fn build_seconds(&self) -> Option<f64> {
        self.built.map(|built| seconds(self.started, built))
    }

    /// How long it took to drain, in seconds.
    #[must_use]
    pub fn drain_seconds(&self) -> Option<f64> {
        Some(seconds(self.built?, self.drained?))
    }
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_built_then_drained_and_then_left_alone() {
        let mut backlog = Backlog::new(1_000_000_000, 10_000_000, 1000, 1.0);
        let steps = [
            (2, 9_999, Order::GoOn),
            (3, 10_000, Order::Resume),
            (4, 12_000, Order::GoOn),
            (5, 1_001, Order::GoOn),
            (6, 1_000, Order::Drained),
            (7, 20_000, Order::GoOn),
        ];
        for (second, messages, order) in steps {
            assert_eq!(backlog.look(second * 1_000_000_000, messages), order, "in second {second}");
        }
        assert_eq!((backlog.build_seconds(), backlog.drain_seconds()), (Some(2.0), Some(3.0)));
    }

    #[test]
    fn a_part_of_it_may_be_enough() {
        let mut backlog = Backlog::new(0, 10_000_000, 1000, 0.25);
        assert_eq!(backlog.look(1, 10_000), Order::Resume);
        assert_eq!(backlog.drain_seconds(), None);
        assert_eq!(backlog.look(2, 7_501), Order::GoOn);
        assert_eq!(backlog.look(3, 7_500), Order::Drained);
    }
}

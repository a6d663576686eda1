//! What happens to an actor that panicked: a pause and a restart, or the end.

use std::collections::VecDeque;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

use super::retry::doubled;

/// How often an actor may be restarted and how long it pauses before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RestartSettings {
    /// The first pause; doubles with each further restart within the window.
    pub(crate) shortest_pause: Duration,
    /// The longest pause.
    pub(crate) longest_pause: Duration,
    /// Most restarts within the window.
    pub(crate) max_restarts: usize,
    /// How long a restart counts.
    pub(crate) window: Duration,
}

impl Default for RestartSettings {
    /// Five restarts a minute, after 10 ms to 1 s.
    fn default() -> Self {
        Self {
            shortest_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(1),
            max_restarts: 5,
            window: Duration::from_secs(60),
        }
    }
}

/// What to do with an actor that panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// Rebuild it after this pause.
    RestartAfter(Duration),
    /// It was restarted too often: tell its parent.
    GiveUp,
}

/// The restarts of one actor within a sliding window.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RestartBudget {
    settings: RestartSettings,
    /// Times of restarts, oldest first; at most `max_restarts`.
    restarts: VecDeque<Timestamp>,
}

impl RestartBudget {
    /// A budget of which nothing is used.
    #[must_use]
    pub(crate) fn new(settings: RestartSettings) -> Self {
        Self { settings, restarts: VecDeque::new() }
    }

    /// Decides about a panic at this time. A clock that went back makes earlier restarts count longer, never less.
    pub(crate) fn on_panic(&mut self, now: Timestamp) -> Decision {
        while self.restarts.front().is_some_and(|at| now.since(*at) >= self.settings.window) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.settings.max_restarts {
            return Decision::GiveUp;
        }
        let times = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        self.restarts.push_back(now);
        Decision::RestartAfter(doubled(self.settings.shortest_pause, times, self.settings.longest_pause))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Decision::{GiveUp, RestartAfter};
    use super::*;

    const SETTINGS: RestartSettings = RestartSettings {
        shortest_pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(50),
        max_restarts: 4,
        window: Duration::from_secs(60),
    };

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn pause(millis: u64) -> Decision {
        RestartAfter(Duration::from_millis(millis))
    }

    #[test]
    fn pauses_double_and_the_budget_ends() {
        let mut budget = RestartBudget::new(SETTINGS);
        let decisions = [0, 1, 2, 3, 4].map(|millis| budget.on_panic(at(millis)));
        assert_eq!(decisions, [pause(10), pause(20), pause(40), pause(50), GiveUp]);
    }

    #[test]
    fn old_restarts_do_not_count() {
        let mut budget = RestartBudget::new(SETTINGS);
        for millis in [0, 1000, 2000, 3000] {
            budget.on_panic(at(millis));
        }
        assert_eq!(budget.on_panic(at(59_999)), GiveUp);
        assert_eq!(budget.on_panic(at(60_000)), pause(50), "the first one is out of the window");
        assert_eq!(budget.on_panic(at(1_000_000)), pause(10));
        assert_eq!(budget.on_panic(at(0)), pause(20), "a clock that goes back forgives nothing");
    }

    proptest! {
        #[test]
        fn never_more_restarts_in_a_window_than_allowed(gaps in prop::collection::vec(0i64..40_000, 1..60)) {
            let mut budget = RestartBudget::new(SETTINGS);
            let (mut now, mut restarts) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                let recent = restarts.iter().filter(|restart| now - **restart < 60_000).count();
                let decision = budget.on_panic(at(now));
                prop_assert_eq!(decision == GiveUp, recent == 4);
                if decision != GiveUp {
                    restarts.push(now);
                }
            }
        }
    }
}

//! What happens to an actor that panicked: a pause and a restart, or the end; and to a request that keeps killing.

use std::collections::VecDeque;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

use super::retry::doubled;

/// Most requests remembered as killers; the oldest is forgotten first.
pub const MAX_SUSPECTS: usize = 256;
/// Panics by the same request after which it is refused.
pub const MAX_KILLS: u32 = 2;
/// How long a request is remembered after its last kill: what killed once may be harmless after a repair.
pub const SUSPECT_MEMORY: Duration = Duration::from_secs(600);

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

/// Remembers by hash which requests were under way at a panic. One that killed twice is refused, so that its sender's
/// retries cannot use up the restart budget of an actor that serves others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Quarantine {
    /// Oldest kill first; at most [`MAX_SUSPECTS`].
    suspects: VecDeque<Suspect>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Suspect {
    request: u64,
    kills: u32,
    last: Timestamp,
}

impl Quarantine {
    /// Nobody is suspected.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Notes that an actor panicked while it handled the request with this hash.
    pub(crate) fn killed_by(&mut self, request: u64, now: Timestamp) {
        self.forget_old(now);
        let known = self.suspects.iter().position(|suspect| suspect.request == request);
        let kills = known.and_then(|at| self.suspects.remove(at)).map_or(0, |suspect| suspect.kills);
        if self.suspects.len() == MAX_SUSPECTS {
            self.suspects.pop_front();
        }
        self.suspects.push_back(Suspect { request, kills: kills.saturating_add(1), last: now });
    }

    /// Whether the request with this hash has killed too often to be run again.
    #[must_use]
    pub(crate) fn refuses(&self, request: u64, now: Timestamp) -> bool {
        self.suspects.iter().any(|suspect| {
            suspect.request == request && suspect.kills >= MAX_KILLS && now.since(suspect.last) < SUSPECT_MEMORY
        })
    }

    /// Whether nobody is suspected: then requests need not be hashed.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }

    fn forget_old(&mut self, now: Timestamp) {
        self.suspects.retain(|suspect| now.since(suspect.last) < SUSPECT_MEMORY);
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

    #[test]
    fn the_second_kill_puts_a_request_in_quarantine() {
        let mut quarantine = Quarantine::new();
        quarantine.killed_by(7, at(0));
        quarantine.killed_by(8, at(0));
        assert!(!quarantine.refuses(7, at(0)));
        quarantine.killed_by(7, at(10));
        assert!(quarantine.refuses(7, at(10)) && !quarantine.refuses(8, at(10)));
        assert!(quarantine.refuses(7, at(600_009)) && !quarantine.refuses(7, at(600_010)), "not for ever");
        quarantine.killed_by(9, at(600_010));
        assert!(!quarantine.is_empty());
        assert_eq!(quarantine.suspects.len(), 1, "old suspects are forgotten");
    }

    #[test]
    fn suspects_are_bounded() {
        let mut quarantine = Quarantine::new();
        let most = u64::try_from(MAX_SUSPECTS).unwrap();
        for request in 0..=most {
            quarantine.killed_by(request, at(0));
        }
        assert_eq!(quarantine.suspects.len(), MAX_SUSPECTS);
        quarantine.killed_by(0, at(0));
        quarantine.killed_by(most, at(0));
        assert!(!quarantine.refuses(0, at(0)), "the oldest made room");
        assert!(quarantine.refuses(most, at(0)));
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

//! Which requests kill the actors that handle them.
#![allow(dead_code, reason = "the supervisor does not tell requests apart yet")]

use std::collections::VecDeque;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

/// Most requests remembered as killers; the oldest is forgotten first.
pub(crate) const MAX_SUSPECTS: usize = 256;
/// Panics by the same request after which it is refused.
pub(crate) const MAX_KILLS: u32 = 2;
/// How long a request is remembered after its last kill: what killed once may be harmless after a repair.
pub(crate) const SUSPECT_MEMORY: Duration = Duration::from_secs(600);

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
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
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
}

//! What becomes of a message that was not consumed: when it comes again, or why it is a dead letter.

use std::fmt;
use std::time::Duration;

use cuemq_storage_api::Timestamp;

use super::retry::RetryPolicy;

/// Why a message is a dead letter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum DeadReason {
    /// It failed after its last redelivery.
    RetriesExceeded,
    /// A consumer declared that it will never be able to handle it.
    Rejected,
    /// It was not consumed within its time to live.
    Expired,
    /// Its topic had more messages than it may have.
    MaxLength,
}

impl DeadReason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::RetriesExceeded, Self::Rejected, Self::Expired, Self::MaxLength];

    /// The words for it, as dead letters carry them.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetriesExceeded => "retries exceeded",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
        }
    }

    /// The reason that these words name.
    #[must_use]
    pub(crate) fn parse(words: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == words)
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened to a message instead of its consumption.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FailureCause {
    /// A delivery failed; the message shall come again.
    Retry {
        /// The pause before that; `None` asks the group's policy.
        delay: Option<Duration>,
        /// What the consumer said.
        error: Option<String>,
    },
    /// A consumer will never be able to handle it.
    Rejected {
        /// What the consumer said.
        error: Option<String>,
    },
    /// Its time to live is over.
    #[allow(dead_code, reason = "said by the scheduler of expiries")]
    Expired,
    /// Its topic has no room for it.
    #[allow(dead_code, reason = "messages that nobody has are withdrawn, not failed")]
    MaxLength,
}

impl FailureCause {
    /// What the consumer said, if it was a consumer.
    #[must_use]
    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Retry { error, .. } | Self::Rejected { error } => error.as_deref(),
            Self::Expired | Self::MaxLength => None,
        }
    }

    /// Whether a delivery failed, as opposed to a message that nobody got hold of.
    #[must_use]
    pub(crate) fn is_of_a_delivery(&self) -> bool {
        matches!(self, Self::Retry { .. } | Self::Rejected { .. })
    }
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It goes to the group's retry topic now.
    AgainNow,
    /// It goes to the group's retry topic at this time.
    AgainAt(Timestamp),
    /// It goes to the group's dead letters now.
    Dead(DeadReason),
}

/// Decides. `failures` counts the deliveries that failed, this one included.
///
/// The policy alone says how many redeliveries there are; a pause that is asked for only replaces the policy's. A
/// message is never put off beyond its own end: it comes back at that instant, and one that has ended already is dead.
#[must_use]
pub(crate) fn judge(
    policy: &RetryPolicy,
    cause: &FailureCause,
    failures: u32,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Verdict {
    let asked = match cause {
        FailureCause::Retry { delay, .. } => *delay,
        FailureCause::Rejected { .. } => return Verdict::Dead(DeadReason::Rejected),
        FailureCause::Expired => return Verdict::Dead(DeadReason::Expired),
        FailureCause::MaxLength => return Verdict::Dead(DeadReason::MaxLength),
    };
    let Some(pause) = policy.delay_of(failures) else { return Verdict::Dead(DeadReason::RetriesExceeded) };
    if expires_at.is_some_and(|end| end <= now) {
        return Verdict::Dead(DeadReason::Expired);
    }
    let due = now.plus(asked.unwrap_or(pause));
    let due = expires_at.map_or(due, |end| due.min(end));
    if due <= now { Verdict::AgainNow } else { Verdict::AgainAt(due) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn after(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    fn retry(delay: Option<u64>) -> FailureCause {
        FailureCause::Retry { delay: delay.map(Duration::from_secs), error: None }
    }

    #[test]
    fn the_policy_decides_when_and_how_often() {
        let policy = RetryPolicy::default();
        for (failures, asked, verdict) in [
            (1, None, Verdict::AgainAt(after(10))),
            (2, None, Verdict::AgainAt(after(30))),
            (16, None, Verdict::AgainAt(after(7200))),
            (17, None, Verdict::Dead(DeadReason::RetriesExceeded)),
            // A pause of one's own takes the place of the policy's pause, not of its end.
            (1, Some(5), Verdict::AgainAt(after(5))),
            (16, Some(0), Verdict::AgainNow),
            (17, Some(5), Verdict::Dead(DeadReason::RetriesExceeded)),
            (u32::MAX, Some(0), Verdict::Dead(DeadReason::RetriesExceeded)),
        ] {
            assert_eq!(judge(&policy, &retry(asked), failures, None, NOW), verdict, "failure {failures}, {asked:?}");
        }
        let never = RetryPolicy::Fixed { pause: Duration::ZERO, redeliveries: 0 };
        assert_eq!(judge(&never, &retry(None), 1, None, NOW), Verdict::Dead(DeadReason::RetriesExceeded));
        let at_once = RetryPolicy::Fixed { pause: Duration::ZERO, redeliveries: 1 };
        assert_eq!(judge(&at_once, &retry(None), 1, None, NOW), Verdict::AgainNow);
    }

    #[test]
    fn nothing_is_put_off_beyond_its_end() {
        let policy = RetryPolicy::default();
        for (failures, end, asked, verdict) in [
            (1, after(9), None, Verdict::AgainAt(after(9))),
            (1, after(10), None, Verdict::AgainAt(after(10))),
            (1, after(11), None, Verdict::AgainAt(after(10))),
            (1, after(9), Some(8), Verdict::AgainAt(after(8))),
            (1, after(9), Some(0), Verdict::AgainNow),
            (1, NOW, Some(0), Verdict::Dead(DeadReason::Expired)),
            (1, Timestamp::MIN, None, Verdict::Dead(DeadReason::Expired)),
            // It has had all of its redeliveries: that says more.
            (17, NOW, None, Verdict::Dead(DeadReason::RetriesExceeded)),
        ] {
            assert_eq!(judge(&policy, &retry(asked), failures, Some(end), NOW), verdict, "{end}, {asked:?}");
        }
    }

    #[test]
    fn other_causes_are_final() {
        let policy = RetryPolicy::default();
        for (cause, reason) in [
            (FailureCause::Rejected { error: Some("no".to_owned()) }, DeadReason::Rejected),
            (FailureCause::Expired, DeadReason::Expired),
            (FailureCause::MaxLength, DeadReason::MaxLength),
        ] {
            for failures in [0, 1, 99] {
                assert_eq!(judge(&policy, &cause, failures, Some(after(9)), NOW), Verdict::Dead(reason));
            }
        }
    }

    #[test]
    fn reasons_are_read_back() {
        for reason in DeadReason::ALL {
            assert_eq!(DeadReason::parse(&reason.to_string()), Some(reason));
        }
        assert_eq!(DeadReason::parse("old age"), None);
    }

    proptest! {
        #[test]
        fn it_never_comes_early_nor_after_its_end(
            most in 0u32..40, failures in 1u32..60, asked in prop::option::of(0u64..100), end in prop::option::of(0u64..100),
        ) {
            let policy = RetryPolicy::Fixed { pause: Duration::from_secs(50), redeliveries: most };
            let end = end.map(after);
            let earliest = after(asked.unwrap_or(50));
            match judge(&policy, &retry(asked), failures, end, NOW) {
                Verdict::Dead(DeadReason::RetriesExceeded) => prop_assert!(failures > most),
                Verdict::Dead(reason) => prop_assert!(reason == DeadReason::Expired && end == Some(NOW)),
                Verdict::AgainNow => prop_assert!(failures <= most && earliest <= NOW),
                Verdict::AgainAt(due) => {
                    prop_assert!(failures <= most && due > NOW);
                    prop_assert_eq!(due, end.map_or(earliest, |end| end.min(earliest)));
                }
            }
        }
    }
}

//! What a topic demands of its messages.

use std::time::Duration;

use super::expiry::OnExpiry;
use super::length::MaxLength;

/// The rules of one topic; by default there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TopicRules {
    /// The longest time to live of its messages.
    pub(crate) ttl: Option<Duration>,
    /// What becomes of those that outlive it, or a time to live of their own.
    pub(crate) on_expiry: OnExpiry,
    /// The most that may wait in each of its queues.
    pub(crate) max_length: Option<MaxLength>,
}

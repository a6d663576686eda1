//! In which order a member is given the messages of its queues.

/// In which order a consumer is given the messages of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum Order {
    /// As many at a time as the consumer takes; one that fails comes again later, behind others.
    #[default]
    Concurrent,
    /// One at a time: the next one comes when the one before is done, and one that fails before any other.
    Queue,
}

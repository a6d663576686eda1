//! In which order a member is given the messages of its queues.

/// In which order a consumer gets the messages of one queue, and what waits while one of them is out or failing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Order {
    /// As many at a time as the consumer takes. One that fails comes again later and holds nothing back.
    #[default]
    Concurrent,
    /// One at a time: the next one comes when the one before is done. One that fails comes again before any other of
    /// its queue, and suspends that queue alone.
    Queue,
    /// Messages of one sharding key one at a time and in order, different keys at the same time. One that fails comes
    /// again before any other of its key and holds back that key alone, up to 2,048 open messages of its queue.
    /// Messages without a sharding key are concurrent.
    Key,
}

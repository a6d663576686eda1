//! How far a group is in a topic, asked of the broker.

use anyhow::Result;
use cuemq::{Broker, ErrorKind};

/// What a group has and has not consumed of a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// Messages below the group's committed offsets, also those that have expired since.
    pub consumed: u64,
    /// Messages that the group will get, if no more are sent.
    pub waiting: u64,
}

impl Backlog {
    /// Looks at every queue of the topic; a topic that does not exist has no messages.
    ///
    /// # Errors
    /// A failed read.
    pub async fn of(broker: &Broker, group: &str, topic: &str) -> Result<Self> {
        let queues = match broker.describe_topic(topic) {
            Ok(description) => description.queues,
            Err(error) if error.kind() == ErrorKind::UnknownTopic => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let known = match broker.describe_group(group).await {
            Ok(description) => description.queues,
            Err(error) if error.kind() == ErrorKind::UnknownGroup => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut backlog = Self::default();
        for queue in queues {
            // A queue that the group never read begins with its oldest message.
            let committed = known.iter().find(|lag| lag.queue == queue.queue).map_or(queue.min, |lag| lag.committed);
            let next = committed.max(queue.min).get();
            backlog.consumed += committed.get();
            backlog.waiting += queue.end.get().saturating_sub(next);
        }
        Ok(backlog)
    }
}

//! Queues that came to a topic which the group reads already.

use cuemq_storage_api::TopicName;

use super::offsets::OffsetOwner;
use super::{GroupActor, Start};
use crate::error::Result;

impl GroupActor {
    /// Has the group begin with new queues at their first message: wherever its members wanted to begin with the topic,
    /// what is sent to a queue that was added since is meant for it.
    pub(super) fn take_up_new_queues(&mut self, topic: &TopicName) -> Result<()> {
        if topic.is_system() || !self.offsets.readers_of(topic).contains(&None) {
            return Ok(());
        }
        let Some(handle) = self.shared.topics.get(topic) else { return Ok(()) };
        for queue in handle.queues() {
            let owner = OffsetOwner { queue: queue.key().clone(), member: None };
            if self.offsets.committed(&owner).is_none() {
                self.offsets.open(&self.shared, &owner, Start::Earliest)?;
            }
        }
        Ok(())
    }
}

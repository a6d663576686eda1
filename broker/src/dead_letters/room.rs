//! Room for letters that are sent again to queues of limited length.

use std::collections::BTreeMap;
use std::sync::Arc;

use cuemq_storage_api::QueueKey;

use crate::actors::group::{LetterToHandle, sent_again};
use crate::actors::room::{LimitedQueue, Room, limited};
use crate::domain::length::Size;
use crate::error::Result;
use crate::shared::Shared;

/// Letters that one write can send, with what they need of queues of limited length.
#[derive(Default)]
pub(super) struct Portion {
    pub(super) letters: Vec<LetterToHandle>,
    demands: BTreeMap<QueueKey, (Arc<LimitedQueue>, Size)>,
}

impl Portion {
    /// The room that these letters need, in the order in which everybody locks.
    ///
    /// # Errors
    /// When it is not known whether there is room.
    pub(super) async fn rooms(&mut self, shared: &Shared) -> Result<Vec<Room>> {
        let mut rooms = Vec::with_capacity(self.demands.len());
        for (_, (queue, size)) in std::mem::take(&mut self.demands) {
            rooms.push(queue.room_for(shared, size).await?);
        }
        Ok(rooms)
    }
}

/// Splits letters so that no queue of limited length gets more at once than it may ever hold, and chooses the queues of
/// those that go to such a topic.
pub(super) fn portions(shared: &Shared, letters: Vec<LetterToHandle>) -> Vec<Portion> {
    let (mut portions, mut portion) = (Vec::new(), Portion::default());
    for mut letter in letters {
        if let Some((key, queue, size)) = demand(shared, &mut letter) {
            let sum = portion.demands.get(&key).map_or(size, |(_, sum)| sum.and(size));
            let sum = if queue.too_large(sum).is_some() {
                portions.push(std::mem::take(&mut portion));
                size
            } else {
                sum
            };
            portion.demands.insert(key, (queue, sum));
        }
        portion.letters.push(letter);
    }
    portions.push(portion);
    portions.retain(|portion| !portion.letters.is_empty());
    portions
}

fn demand(shared: &Shared, letter: &mut LetterToHandle) -> Option<(QueueKey, Arc<LimitedQueue>, Size)> {
    let send = letter.send.as_mut()?;
    let topic = shared.topics.get(&send.topic).filter(|topic| topic.rules().max_length.is_some())?;
    let key = {
        let routes = topic.routes();
        let wanted = send.queue.and_then(|id| routes.queue(id));
        wanted.unwrap_or_else(|| routes.choose(send.record.attributes.sharding_key())).key().clone()
    };
    send.queue = Some(key.queue);
    let queue = limited(shared, &key)?;
    let size = Size::of([&sent_again(&topic, &send.record, shared.clock.now())]);
    Some((key, queue, size))
}

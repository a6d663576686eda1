//! Due messages of queues that may not grow beyond a length.

use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueKey, WriteBatch};

use super::recur::comes_again;
use super::undeliverable;
use crate::actors::expiry::Endings;
use crate::actors::room::limited;
use crate::domain::delay::TimerKey;
use crate::domain::length::Size;
use crate::error::Result;
use crate::settings::Flush;
use crate::shared::Shared;
use crate::tables::delay::{self as table, DelayOrigin, DelayRow};

/// What became of due messages.
#[derive(Default)]
pub(super) struct Fired {
    /// They have to wait.
    pub(super) later: Vec<TimerKey>,
    /// The next times of those that recur.
    pub(super) again: Vec<TimerKey>,
    /// They are in their queues.
    pub(super) moved: Vec<TimerKey>,
}

/// Moves due messages one by one, each when its queue has room.
pub(super) async fn fire(shared: Arc<Shared>, timers: Vec<TimerKey>) -> Fired {
    let mut fired = Fired::default();
    for timer in timers {
        match fire_one(&shared, timer, &mut fired).await {
            Ok(true) => {}
            Ok(false) => fired.later.push(timer),
            Err(error) => {
                tracing::warn!(%error, "a due message could not be moved yet");
                if error.is_certainly_not_applied() {
                    fired.later.push(timer);
                }
            }
        }
    }
    fired
}

/// Whether it is moved, or was before.
async fn fire_one(shared: &Arc<Shared>, timer: TimerKey, fired: &mut Fired) -> Result<bool> {
    let key = table::key(timer);
    let Some(row) = shared.storage.engine().get(&table::TABLE, &key)? else { return Ok(true) };
    let row = DelayRow::decode(&row)?;
    let Some(topic) = shared.topics.get(&row.topic) else { return Ok(false) };
    let sharding_key = row.record.attributes.sharding_key().map(str::to_owned);
    let chosen = {
        let routes = topic.routes();
        let chosen = row.queue.and_then(|id| routes.queue(id));
        chosen.unwrap_or_else(|| routes.choose(sharding_key.as_deref())).key().clone()
    };
    let Some(limited) = limited(shared, &chosen) else { return Ok(false) };
    let mut record = row.record.clone();
    if let DelayOrigin::Recurrence(_) = row.origin {
        record.born_at = timer.due;
    }
    let size = Size::of([&record]);
    let never_fits = limited.too_large(size).is_some();
    let mut room = if never_fits { None } else { Some(limited.room_for(shared, size).await?) };
    let (written, endings, again) = {
        // Queues are chosen and written to while they stay what they are.
        let storage = shared.storage.clone();
        let passage = storage.passage();
        if !topic.routes().take(chosen.queue, sharding_key.as_deref().filter(|_| row.queue.is_none())) {
            return Ok(false);
        }
        let (mut batch, mut endings) = (WriteBatch::new(shared.clock.now()), Endings::default());
        match &mut room {
            // Where an operator finds it.
            None => {
                batch.append(&QueueKey::new(undeliverable(), QueueId::FIRST), record);
            }
            Some(room) => {
                if room.take(size) {
                    room.begin_in(&mut batch);
                    endings.append(shared, &mut batch, &chosen, record);
                } else if !room.keep_refused(&record, &mut batch)? {
                    return Ok(false);
                }
            }
        }
        let again = match row.origin {
            DelayOrigin::Recurrence(number) => comes_again(shared, number, &row, &mut batch)?,
            _ => None,
        };
        batch.delete(&table::TABLE, key);
        let flush = if never_fits { Flush::Durable } else { topic.flush() };
        (passage.write_and_wait(batch, flush), endings, again)
    };
    // The room is held until then.
    written.await?;
    fired.moved.push(timer);
    fired.again.extend(again);
    endings.stored(shared);
    Ok(true)
}

//! Due messages of queues that may not grow beyond a length.

use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueKey, WriteBatch};

use super::undeliverable;
use crate::actors::expiry::Endings;
use crate::actors::room::Room;
use crate::domain::delay::TimerKey;
use crate::domain::length::Size;
use crate::error::Result;
use crate::settings::Flush;
use crate::shared::Shared;
use crate::tables::delay::{self as table, DelayRow};

/// Moves due messages one by one, each when its queue has room. Those that have to wait come back.
pub(super) async fn fire(shared: Arc<Shared>, timers: Vec<TimerKey>) -> Vec<TimerKey> {
    let mut again = Vec::new();
    for timer in timers {
        match fire_one(&shared, timer).await {
            Ok(true) => {}
            Ok(false) => again.push(timer),
            Err(error) => {
                tracing::warn!(%error, "a due message could not be moved yet");
                if error.is_certainly_not_applied() {
                    again.push(timer);
                }
            }
        }
    }
    again
}

/// Whether it is moved, or was before.
async fn fire_one(shared: &Arc<Shared>, timer: TimerKey) -> Result<bool> {
    let key = table::key(timer);
    let Some(row) = shared.storage.engine().get(&table::TABLE, &key)? else { return Ok(true) };
    let row = DelayRow::decode(&row)?;
    let Some(topic) = shared.topics.get(&row.topic) else { return Ok(false) };
    // The number of queues with a limit stays, so what is chosen now holds.
    let chosen = row.queue.and_then(|id| topic.queue(id).ok());
    let chosen = chosen.map_or_else(|| topic.next_queue(row.record.attributes.sharding_key()), Ok)?;
    let Some(limited) = chosen.limited() else { return Ok(false) };
    let size = Size::of([&row.record]);
    let (mut batch, mut endings) = (WriteBatch::new(shared.clock.now()), Endings::default());
    let mut room: Option<Room> = None;
    if limited.too_large(size).is_some() {
        // It never fits: where an operator finds it.
        batch.append(&QueueKey::new(undeliverable(), QueueId::FIRST), row.record);
    } else {
        let found = room.insert(limited.room_for(shared, size).await?);
        if found.take(size) {
            found.begin_in(&mut batch);
            endings.append(shared, &mut batch, chosen.key(), row.record);
        } else if !found.keep_refused(&row.record, &mut batch)? {
            return Ok(false);
        }
    }
    batch.delete(&table::TABLE, key);
    let flush = if room.is_some() { topic.flush() } else { Flush::Durable };
    shared.storage.write_and_wait(batch, flush).await?;
    shared.delayed.subtract(1);
    endings.stored(shared);
    Ok(true)
}

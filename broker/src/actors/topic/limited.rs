//! Batches over queues that may not grow beyond a length: all of one or nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cuemq_storage_api::WriteBatch;
use tokio::sync::oneshot;

use super::messages::{SpanRequest, WaitingSpan};
use super::{Parts, Spanning};
use crate::actors::expiry::Endings;
use crate::actors::mailbox::Inbox;
use crate::actors::room::{LimitedQueue, NoRoom, Room, limited, rooms_for};
use crate::domain::length::Size;
use crate::error::{Error, Result, SharedError};
use crate::settings::Flush;
use crate::shared::Shared;

/// Writes the batch that waited longest, if every queue has room for its part of it.
pub(super) async fn write_next(shared: Arc<Shared>, flush: Flush, inbox: Arc<Inbox<SpanRequest>>, spanning: Spanning) {
    let lock = spanning.lock.lock().await;
    if spanning.parked.load(Ordering::Acquire) {
        return;
    }
    let Some(request) = inbox.pop() else { return };
    let (parts, waiting) = request.split();
    let demands = demands(&shared, &parts);
    write(shared, flush, demands, parts, waiting).await;
    drop(lock);
}

/// The queues with a limit, and what comes to each.
fn demands(shared: &Shared, parts: &Parts) -> Vec<(Arc<LimitedQueue>, Size)> {
    parts.iter().filter_map(|(queue, records)| Some((limited(shared, queue)?, Size::of(records)))).collect()
}

async fn write(
    shared: Arc<Shared>,
    flush: Flush,
    demands: Vec<(Arc<LimitedQueue>, Size)>,
    parts: Parts,
    waiting: WaitingSpan,
) {
    let rooms = match rooms_for(&shared, demands).await {
        Ok(rooms) => rooms,
        Err(NoRoom { error, rooms }) => {
            let error = keep(&shared, flush, &parts, rooms, error).await;
            waiting.answer(shared.store_id, &Err(SharedError::new(error)));
            return;
        }
    };
    let (mut batch, mut endings) = (WriteBatch::new(shared.clock.now()), Endings::default());
    for (queue, records) in parts {
        endings.append_all(&shared, &mut batch, &queue, records);
    }
    rooms.iter().for_each(|room| room.begin_in(&mut batch));
    let (written, done) = oneshot::channel::<()>();
    let for_done = Arc::clone(&shared);
    shared.storage.write(batch, flush, move |result| {
        if result.is_ok() {
            endings.stored(&for_done);
        }
        waiting.answer(for_done.store_id, &result);
        drop(written);
    });
    // The rooms are held until then.
    let _ = done.await;
    drop(rooms);
}

/// Keeps what is refused, where the limit says so; what the sender is told.
async fn keep(shared: &Shared, flush: Flush, parts: &Parts, rooms: Vec<Room>, error: Error) -> Error {
    let mut batch = WriteBatch::new(shared.clock.now());
    let letters = |batch: &mut WriteBatch| -> Result<bool> {
        let mut kept = false;
        for (queue, records) in parts {
            let Some(room) = rooms.iter().find(|room| room.key() == queue) else { continue };
            for record in records {
                kept |= room.keep_refused(record, batch)?;
            }
        }
        Ok(kept)
    };
    match letters(&mut batch) {
        Ok(false) => error,
        Ok(true) => match shared.storage.write_and_wait(batch, flush).await {
            Ok(_) => rooms.first().map_or(error, |room| room.refusal(true)),
            Err(failed) => failed,
        },
        Err(failed) => failed,
    }
}

//! The writes of a queue that may not grow beyond a length.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use cuemq_storage_api::{QueueKey, WriteBatch};
use tokio::sync::oneshot;

use super::QueueWriter;
use super::burst::{self, Burst};
use crate::actors::expiry::Endings;
use crate::actors::room::{LimitedQueue, Room};
use crate::domain::length::Size;
use crate::error::{Error, SharedError};
use crate::settings::Flush;
use crate::shared::Shared;

/// Writes what was admitted, as far as there is room, in order. Nothing leaves the writer before nobody else appends: a
/// change of the topic's queues, which waits for that too, finds all that is not written yet.
pub(super) async fn write(writer: Arc<Mutex<QueueWriter>>, queue: Arc<LimitedQueue>) {
    loop {
        let lock = queue.lock().await;
        let Some((shared, key, flush, part, size)) = next(&writer, &queue) else { return };
        match queue.room_under(lock, &shared, size).await {
            Ok(room) => write_part(&shared, &key, flush, part, room).await,
            Err(error) => {
                let error = SharedError::new(error);
                part.into_iter().for_each(|burst| burst.refuse(error.get()));
            }
        }
    }
}

type Part = (Arc<Shared>, QueueKey, Flush, Vec<Burst>, Size);

fn next(writer: &Mutex<QueueWriter>, queue: &LimitedQueue) -> Option<Part> {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    if writer.parked.load(Ordering::Acquire) {
        return None;
    }
    let mut waiting = VecDeque::from(std::mem::take(&mut writer.admitted));
    let part = next_part(queue, &mut waiting);
    writer.admitted = waiting.into();
    part.map(|(part, size)| (Arc::clone(&writer.shared), writer.key.clone(), writer.flush, part, size))
}

/// As many bursts as the empty queue has room for. One that never has is refused here.
fn next_part(queue: &LimitedQueue, waiting: &mut VecDeque<Burst>) -> Option<(Vec<Burst>, Size)> {
    let (mut part, mut size) = (Vec::new(), Size::default());
    while let Some(burst) = waiting.pop_front() {
        let more = Size::of(burst.all());
        if let Some(error) = queue.too_large(more) {
            burst.refuse(error);
            continue;
        }
        if !size.and(more).fits_in(queue.limit().whole()) {
            waiting.push_front(burst);
            break;
        }
        size = size.and(more);
        part.push(burst);
    }
    (!part.is_empty()).then_some((part, size))
}

/// One write: what fits into the queue, and the rest, where the limit says so, among the dead letters.
async fn write_part(shared: &Arc<Shared>, key: &QueueKey, flush: Flush, part: Vec<Burst>, mut room: Room) {
    let (mut batch, mut endings) = (WriteBatch::new(shared.clock.now()), Endings::default());
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    room.begin_in(&mut batch);
    for burst in part {
        if room.take(Size::of(burst.all())) {
            let (records, rest) = burst.into_parts();
            endings.append_all(shared, &mut batch, key, records);
            accepted.push(rest);
        } else {
            refused.push(burst);
        }
    }
    // Behind the appends of the queue, so that each burst finds its own by its number.
    let kept = refused.iter().flat_map(Burst::all).try_fold(false, |_, record| room.keep_refused(record, &mut batch));
    let kept = match kept {
        Ok(kept) => kept,
        Err(error) => return refuse_all(accepted, refused, &SharedError::new(error)),
    };
    let (key, store_id, for_endings) = (key.clone(), shared.store_id, Arc::clone(shared));
    let (written, done) = oneshot::channel();
    shared.storage.write(batch, flush, move |result| {
        let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
        if result.is_ok() {
            endings.stored(&for_endings);
        }
        burst::answer(&key, store_id, accepted, result);
        // The actor may have gone away.
        let _ = written.send(outcome);
    });
    // The room is held until then.
    let outcome = done.await.unwrap_or_else(|_| Err(SharedError::new(Error::lost("the write"))));
    for burst in refused {
        burst.refuse(match &outcome {
            Ok(()) => room.refusal(kept),
            Err(error) => error.get(),
        });
    }
}

fn refuse_all(accepted: Vec<burst::Waiting>, refused: Vec<Burst>, error: &SharedError) {
    accepted.into_iter().for_each(|burst| burst.refuse(error));
    refused.into_iter().for_each(|burst| burst.refuse(error.get()));
}

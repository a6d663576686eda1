//! Half messages of queues that may not grow beyond a length: a commit finds room like a send.

use std::sync::Arc;

use cuemq_storage_api::WriteBatch;

use super::messages::Finish;
use super::{appended_record, put_outcome, receipt, target};
use crate::actors::expiry::Endings;
use crate::actors::room::limited;
use crate::domain::length::Size;
use crate::domain::transaction::{Decision, TransactionId};
use crate::error::{Error, ErrorKind, SharedError};
use crate::shared::Shared;
use crate::tables::half_message::HalfMessageRow;

/// What became of a commit.
pub(super) enum Committed {
    /// It is stored; or it is not, and the half message stays as it was.
    Told(Finish),
    /// It is stored that there was no room: the message is a dead letter of the groups that read the queue.
    Kept(SharedError),
}

/// Appends a half message when its queue has room. Where it has none the half stays undecided, or becomes dead letters.
pub(super) async fn commit(shared: Arc<Shared>, transaction: TransactionId, row: HalfMessageRow) -> Committed {
    loop {
        match try_to_commit(&shared, transaction, &row).await {
            Ok(Some(committed)) => return committed,
            // The topic's queues changed meanwhile: it goes to another one.
            Ok(None) => {}
            Err(error) => return Committed::Told(Err(SharedError::new(error))),
        }
    }
}

async fn try_to_commit(
    shared: &Arc<Shared>,
    transaction: TransactionId,
    row: &HalfMessageRow,
) -> Result<Option<Committed>, Error> {
    let (queue, flush) = target(shared, row);
    let (Some(limited), Some(topic)) = (limited(shared, &queue), shared.topics.get(&row.topic)) else {
        let text = format!("nothing was decided: topic {} was deleted meanwhile", row.topic);
        return Err(Error::new(ErrorKind::NotStored, text));
    };
    let size = Size::of([&appended_record(shared, row, shared.clock.now())]);
    if let Some(error) = limited.too_large(size) {
        return Err(error);
    }
    let mut room = limited.room_for(shared, size).await?;
    let (written, endings, fits) = {
        let storage = shared.storage.clone();
        let passage = storage.passage();
        if !topic.routes().take(queue.queue, row.record.attributes.sharding_key()) {
            return Ok(None);
        }
        let (mut batch, mut endings) = (WriteBatch::new(shared.clock.now()), Endings::default());
        let record = appended_record(shared, row, batch.stored_at());
        let fits = room.take(size);
        if fits {
            room.begin_in(&mut batch);
            endings.append(shared, &mut batch, &queue, record);
        } else if !room.keep_refused(&record, &mut batch)? {
            return Err(room.refusal(false));
        }
        put_outcome(&mut batch, transaction, Decision::Commit);
        (passage.write_and_wait(batch, flush), endings, fits)
    };
    // The room is held until then.
    let result = written.await.map_err(SharedError::new);
    if result.is_ok() {
        endings.stored(shared);
        if !fits {
            return Ok(Some(Committed::Kept(SharedError::new(room.refusal(true)))));
        }
    }
    Ok(Some(Committed::Told(receipt(&result, Some(queue), shared.store_id))))
}

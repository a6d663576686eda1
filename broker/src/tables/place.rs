//! How a message's place in a queue stands at the end of a key.

use bytes::{BufMut, BytesMut};
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, TopicName};

use super::codec::DecodeError;

/// Bytes of a place: `queue u32 BE | offset u64 BE`, so that a queue's messages lie in their order.
pub(super) const PLACE_BYTES: usize = 12;

/// Writes a place.
pub(super) fn put_place(key: &mut BytesMut, queue: QueueId, offset: QueueOffset) {
    key.put_u32(queue.get());
    key.put_u64(offset.get());
}

/// Reads a place in a topic from exactly its bytes.
///
/// # Errors
/// When there are fewer or more bytes, or a number is out of its bounds.
pub(super) fn decode_place(
    table: &'static str,
    topic: TopicName,
    place: &[u8],
) -> Result<(QueueKey, QueueOffset), DecodeError> {
    let malformed = || DecodeError::new(table, "key does not end with queue and offset");
    let (queue, offset) = place.split_first_chunk().ok_or_else(malformed)?;
    let queue = QueueId::new(u32::from_be_bytes(*queue)).map_err(DecodeError::invalid(table))?;
    let offset = u64::from_be_bytes(offset.try_into().map_err(|_| malformed())?);
    if offset > MAX_POSITION {
        return Err(DecodeError::new(table, "an offset is above 2^53"));
    }
    Ok((QueueKey::new(topic, queue), QueueOffset::new(offset)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn place(topic: &str, queue: u32) -> QueueKey {
        QueueKey::new(TopicName::from_stored(topic).unwrap(), QueueId::new(queue).unwrap())
    }
}

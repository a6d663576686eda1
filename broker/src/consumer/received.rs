//! A message as a consumer sees it.

use std::ops::Range;

use bytes::Bytes;
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, StoredRecord, Timestamp};
use serde::de::DeserializeOwned;

use crate::domain::failure::DeadReason;
use crate::error::Result;
use crate::message::{
    ATTEMPTS, DEAD_REASON, DIED_AT, FIRST_FAILED_AT, LAST_ERROR, MessageId, ORIGIN_ID, ORIGIN_OFFSET, ORIGIN_QUEUE,
    ORIGIN_TOPIC, REDRIVEN_FROM, SYSTEM_PROPERTY_PREFIX, from_json,
};

/// A stored message. Body and attributes may be slices of a whole segment of the store: copy what is kept for long.
#[derive(Clone, Debug)]
pub struct Received {
    queue: QueueKey,
    stored: StoredRecord,
    id: MessageId,
    attempts: u32,
}

impl Received {
    /// `redeliveries` counts those that storage does not know of.
    pub(crate) fn new(queue: QueueKey, stored: StoredRecord, store_id: u64, redeliveries: u32) -> Self {
        let before = stored.record.attributes.property(ATTEMPTS).and_then(|text| text.parse().ok()).unwrap_or(0);
        let id = MessageId::new(store_id, stored.position);
        Self { queue, stored, id, attempts: u32::saturating_add(before, redeliveries) }
    }

    pub(crate) fn stored(&self) -> &StoredRecord {
        &self.stored
    }

    /// Its offset as a range, for an acknowledgement.
    pub(super) fn range(&self) -> Range<QueueOffset> {
        self.stored.offset..self.stored.offset.plus(1)
    }

    /// The topic it was sent to; for a redelivery the first one.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.property_of_broker(ORIGIN_TOPIC).unwrap_or(self.queue.topic.as_str())
    }

    /// The queue it lies in; for a redelivery that of the group's retry topic.
    #[must_use]
    pub fn queue(&self) -> &QueueKey {
        &self.queue
    }

    /// Its offset in that queue.
    #[must_use]
    pub fn offset(&self) -> QueueOffset {
        self.stored.offset
    }

    /// Its own id. A redelivery has one of its own; see [`origin_id`](Received::origin_id).
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The id under which it was first stored: the same for all redeliveries and for the dead letter.
    #[must_use]
    pub fn origin_id(&self) -> MessageId {
        self.property_of_broker(ORIGIN_ID).and_then(|text| text.parse().ok()).unwrap_or(self.id)
    }

    /// How often it was delivered before and not acknowledged: 0 at the first delivery. What a consumer said of a failed
    /// delivery counts over crashes; deliveries that were only dropped may be missing after one.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The queue of [`topic`](Received::topic) in which it was first stored.
    #[must_use]
    pub fn origin_queue(&self) -> QueueId {
        let queue = self.value_of_broker(ORIGIN_QUEUE).and_then(|number| QueueId::new(number).ok());
        queue.unwrap_or(self.queue.queue)
    }

    /// Its offset in that queue.
    #[must_use]
    pub fn origin_offset(&self) -> QueueOffset {
        let offset = self.value_of_broker(ORIGIN_OFFSET).filter(|offset| *offset <= MAX_POSITION);
        offset.map_or(self.stored.offset, QueueOffset::new)
    }

    /// When a delivery of it failed for the first time; of dead letters and of what was retried.
    #[must_use]
    pub fn first_failed_at(&self) -> Option<Timestamp> {
        self.value_of_broker(FIRST_FAILED_AT).map(Timestamp::from_millis)
    }

    /// What the consumer said of the last failure of which it said anything, up to 1 KiB of it.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.property_of_broker(LAST_ERROR)
    }

    /// Why it is a dead letter, if it is one.
    #[must_use]
    pub fn dead_reason(&self) -> Option<DeadReason> {
        self.property_of_broker(DEAD_REASON).and_then(DeadReason::parse)
    }

    /// When it became a dead letter, if it is one.
    #[must_use]
    pub fn died_at(&self) -> Option<Timestamp> {
        self.value_of_broker(DIED_AT).map(Timestamp::from_millis)
    }

    /// The id under which it was first stored before it became a dead letter that was sent to its topic again.
    #[must_use]
    pub fn redriven_from(&self) -> Option<MessageId> {
        self.value_of_broker(REDRIVEN_FROM)
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.stored.record.body
    }

    /// The body, read as JSON.
    ///
    /// # Errors
    /// `Invalid` when it is not such a value.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        from_json(self.body())
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.stored.record.attributes.tag()
    }

    /// The keys under which it can be found.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.stored.record.attributes.keys()
    }

    /// The sharding key.
    #[must_use]
    pub fn sharding_key(&self) -> Option<&str> {
        self.stored.record.attributes.sharding_key()
    }

    /// A property that the producer set.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        if name.starts_with(SYSTEM_PROPERTY_PREFIX) { None } else { self.property_of_broker(name) }
    }

    /// When the producer made it.
    #[must_use]
    pub fn born_at(&self) -> Timestamp {
        self.stored.record.born_at
    }

    /// When the broker stored it.
    #[must_use]
    pub fn stored_at(&self) -> Timestamp {
        self.stored.stored_at
    }

    fn value_of_broker<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.property_of_broker(name)?.parse().ok()
    }

    fn property_of_broker(&self, name: &str) -> Option<&str> {
        self.stored.record.attributes.property(name)
    }
}

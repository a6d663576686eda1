//! The copy of a message that was not consumed: what it says of the original, for its redelivery or as a dead letter.

use cuemq_storage_api::{AttributesBuilder, InvalidInput, QueueKey, Record, StoredRecord, Timestamp};

use super::failure::DeadReason;
use crate::limits::MAX_ERROR_BYTES;
use crate::message::{
    ATTEMPTS, DEAD_REASON, DIED_AT, EXPIRES_AT, FIRST_FAILED_AT, LAST_ERROR, MessageId, ORIGIN_ID, ORIGIN_OFFSET,
    ORIGIN_QUEUE, ORIGIN_TOPIC,
};

/// What a copy is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailedCopy<'a> {
    /// The message as it lies in `queue`: the first one, or a copy for an earlier redelivery.
    pub(crate) original: &'a StoredRecord,
    /// Where it lies.
    pub(crate) queue: &'a QueueKey,
    /// The id under which the message was first stored.
    pub(crate) origin_id: MessageId,
    /// How many deliveries failed.
    pub(crate) failures: u32,
    /// Whether a delivery failed just now.
    pub(crate) failed: bool,
    /// What the consumer said.
    pub(crate) error: Option<&'a str>,
    /// Why it is a dead letter, if it is.
    pub(crate) dead: Option<DeadReason>,
    /// The time.
    pub(crate) now: Timestamp,
}

impl FailedCopy<'_> {
    /// The same message with the broker's own properties brought up to date. Where it came from and when it first
    /// failed stay as the first copy said; a dead letter has no end of its own any more.
    ///
    /// # Errors
    /// When that is more than an engine stores, which the bounds of what producers send rule out.
    pub(crate) fn record(&self) -> Result<Record, InvalidInput> {
        let original = &self.original.record;
        let keeps = |name: &str| self.keeps(name);
        let mut builder = AttributesBuilder::from_attributes_keeping(&original.attributes, keeps);
        self.add_origin(&mut builder);
        builder.property(ATTEMPTS, &self.failures.to_string());
        let property = |name| original.attributes.property(name);
        if self.failed && property(FIRST_FAILED_AT).is_none() {
            builder.property(FIRST_FAILED_AT, &self.now.as_millis().to_string());
        }
        if let Some(error) = self.error {
            builder.property(LAST_ERROR, cut(error, MAX_ERROR_BYTES));
        }
        if let Some(reason) = self.dead {
            builder.property(DEAD_REASON, reason.as_str()).property(DIED_AT, &self.now.as_millis().to_string());
        }
        Ok(Record::new(original.body.clone(), original.born_at).with_attributes(builder.build()?))
    }

    fn keeps(&self, name: &str) -> bool {
        match name {
            ATTEMPTS | DEAD_REASON | DIED_AT => false,
            LAST_ERROR => self.error.is_none(),
            EXPIRES_AT => self.dead.is_none(),
            _ => true,
        }
    }

    fn add_origin(&self, builder: &mut AttributesBuilder) {
        if self.original.record.attributes.property(ORIGIN_ID).is_some() {
            return;
        }
        builder
            .property(ORIGIN_TOPIC, self.queue.topic.as_str())
            .property(ORIGIN_QUEUE, &self.queue.queue.get().to_string())
            .property(ORIGIN_OFFSET, &self.original.offset.get().to_string())
            .property(ORIGIN_ID, &self.origin_id.to_string());
    }
}

/// The dead letter of a message that was refused because its queue has no room: it never had an offset or an id.
///
/// # Errors
/// As [`FailedCopy::record`].
pub(crate) fn refused_copy(refused: &Record, queue: &QueueKey, now: Timestamp) -> Result<Record, InvalidInput> {
    let keeps = |name: &str| name != EXPIRES_AT;
    let mut builder = AttributesBuilder::from_attributes_keeping(&refused.attributes, keeps);
    builder
        .property(ORIGIN_TOPIC, queue.topic.as_str())
        .property(ORIGIN_QUEUE, &queue.queue.get().to_string())
        .property(ATTEMPTS, "0")
        .property(DEAD_REASON, DeadReason::MaxLength.as_str())
        .property(DIED_AT, &now.as_millis().to_string());
    Ok(Record::new(refused.body.clone(), refused.born_at).with_attributes(builder.build()?))
}

/// When a message stops being of use, if it ever does.
#[must_use]
pub(crate) fn expires_at(record: &Record) -> Option<Timestamp> {
    record.attributes.property(EXPIRES_AT)?.parse().ok().map(Timestamp::from_millis)
}

/// As much of a text as fits into so many bytes, in whole characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=text.len().min(most)).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::limits::MAX_KEY_BYTES;
    use cuemq_storage_api::{Attribute, GroupName, LogPosition, QueueId, QueueOffset, TopicName};

    use super::*;
    use crate::limits::MAX_PROPERTIES_BYTES;

    const NOW: Timestamp = Timestamp::from_millis(5000);

    fn orders() -> QueueKey {
        QueueKey::new(TopicName::new("orders").unwrap(), QueueId::new(3).unwrap())
    }

    fn retries() -> QueueKey {
        let group = GroupName::new("group").unwrap();
        QueueKey::new(TopicName::retry_of(&group), QueueId::FIRST)
    }

    fn stored(record: Record, offset: u64) -> StoredRecord {
        let (offset, position) = (QueueOffset::new(offset), LogPosition::new(offset * 1000));
        StoredRecord { offset, position, stored_at: NOW, record }
    }

    fn message() -> Record {
        let mut builder = AttributesBuilder::default();
        builder.property(EXPIRES_AT, "9000").tag("t").key("k1").key("k2").sharding_key("s").property("a", "1");
        Record::new("body", Timestamp::from_millis(7)).with_attributes(builder.build().unwrap())
    }

    fn failed<'a>(original: &'a StoredRecord, queue: &'a QueueKey) -> FailedCopy<'a> {
        let origin_id = MessageId::new(1, LogPosition::new(7000));
        FailedCopy { original, queue, origin_id, failures: 1, failed: true, error: None, dead: None, now: NOW }
    }

    fn properties(record: &Record) -> Vec<(&str, &str)> {
        record.attributes.properties().collect()
    }

    const ID: &str = "00000000000000010000000000001B58";

    #[test]
    fn a_first_failure_says_where_the_message_came_from() {
        let (original, queue) = (stored(message(), 7), orders());
        let copy = FailedCopy { error: Some("no stock"), ..failed(&original, &queue) }.record().unwrap();
        assert_eq!((&copy.body, copy.born_at), (&original.record.body, original.record.born_at));
        assert_eq!((copy.attributes.tag(), copy.attributes.sharding_key()), (Some("t"), Some("s")));
        assert_eq!(copy.attributes.keys().collect::<Vec<_>>(), ["k1", "k2"]);
        let expected = [
            (EXPIRES_AT, "9000"),
            ("a", "1"),
            (ORIGIN_TOPIC, "orders"),
            (ORIGIN_QUEUE, "3"),
            (ORIGIN_OFFSET, "7"),
            (ORIGIN_ID, ID),
            (ATTEMPTS, "1"),
            (FIRST_FAILED_AT, "5000"),
            (LAST_ERROR, "no stock"),
        ];
        assert_eq!(properties(&copy), expected);
        assert_eq!(expires_at(&copy), Some(Timestamp::from_millis(9000)));
        assert!(matches!(copy.attributes.iter().next(), Some(Attribute::Property(EXPIRES_AT, _))), "first, as before");
    }

    #[test]
    fn a_later_failure_keeps_the_origin_and_the_first_time() {
        let (original, queue, again) = (stored(message(), 7), orders(), retries());
        let first = FailedCopy { error: Some("no stock"), ..failed(&original, &queue) }.record().unwrap();
        let first = stored(first, 99);
        let later = FailedCopy { failures: 2, now: Timestamp::from_millis(8000), ..failed(&first, &again) };
        let silent = later.record().unwrap();
        let origin =
            [(EXPIRES_AT, "9000"), ("a", "1"), (ORIGIN_TOPIC, "orders"), (ORIGIN_QUEUE, "3"), (ORIGIN_OFFSET, "7")];
        let mut expected = origin.to_vec();
        expected.extend([(ORIGIN_ID, ID), (FIRST_FAILED_AT, "5000"), (LAST_ERROR, "no stock"), (ATTEMPTS, "2")]);
        assert_eq!(properties(&silent), expected, "who says nothing leaves the last word standing");

        let dead = FailedCopy { error: Some("gone"), dead: Some(DeadReason::Rejected), ..later }.record().unwrap();
        let mut expected = origin[1..].to_vec();
        expected.extend([(ORIGIN_ID, ID), (FIRST_FAILED_AT, "5000"), (ATTEMPTS, "2"), (LAST_ERROR, "gone")]);
        expected.extend([(DEAD_REASON, "rejected"), (DIED_AT, "8000")]);
        assert_eq!(properties(&dead), expected, "a dead letter does not expire");
    }

    #[test]
    fn what_nobody_got_hold_of_has_not_failed() {
        let (original, queue) = (stored(message(), 7), orders());
        let expired =
            FailedCopy { failures: 0, failed: false, dead: Some(DeadReason::Expired), ..failed(&original, &queue) };
        let copy = expired.record().unwrap();
        assert_eq!(copy.attributes.property(FIRST_FAILED_AT), None);
        assert_eq!(copy.attributes.property(ATTEMPTS), Some("0"));
        assert_eq!(copy.attributes.property(DEAD_REASON), Some("expired"));
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        for (error, kept) in [
            ("x".repeat(MAX_ERROR_BYTES), MAX_ERROR_BYTES),
            ("x".repeat(MAX_ERROR_BYTES + 1), MAX_ERROR_BYTES),
            (format!("x{}", "é".repeat(MAX_ERROR_BYTES)), MAX_ERROR_BYTES - 1),
            ("€".repeat(MAX_ERROR_BYTES), MAX_ERROR_BYTES / 3 * 3),
            (String::new(), 0),
        ] {
            assert_eq!(cut(&error, MAX_ERROR_BYTES).len(), kept);
        }
    }

    /// The most that a producer may send, and the most that the broker adds.
    #[test]
    fn the_largest_copy_can_be_stored() {
        let mut builder = AttributesBuilder::default();
        builder.property(EXPIRES_AT, &i64::MIN.to_string());
        builder.property("p", &"x".repeat(MAX_PROPERTIES_BYTES - MAX_KEY_BYTES - 11)).key(&"k".repeat(MAX_KEY_BYTES));
        let record = Record::new("", Timestamp::MIN).with_attributes(builder.build().unwrap());
        let original = stored(record, 1 << 40);
        let queue = QueueKey::new(TopicName::new(&"t".repeat(127)).unwrap(), QueueId::new(999_999).unwrap());
        let error = "e".repeat(5000);
        let copy = FailedCopy {
            failures: u32::MAX,
            error: Some(&error),
            dead: None,
            now: Timestamp::MIN,
            ..failed(&original, &queue)
        };
        let copy = stored(copy.record().unwrap(), 1);
        let dead = FailedCopy { dead: Some(DeadReason::RetriesExceeded), ..failed(&copy, &queue) };
        dead.record().unwrap().check().unwrap();
    }
}

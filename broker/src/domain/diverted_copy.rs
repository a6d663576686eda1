//! The copy of a message that is diverted to another topic.

use cuemq_storage_api::{AttributesBuilder, InvalidInput, QueueKey, Record, StoredRecord};

use crate::message::{MessageId, ORIGIN_ID, ORIGIN_OFFSET, ORIGIN_QUEUE, ORIGIN_TOPIC};

/// The same message, which says where it came from unless it does already.
///
/// # Errors
/// When its attributes leave no room for that; engines have some in reserve.
pub(crate) fn diverted(original: &StoredRecord, queue: &QueueKey, id: MessageId) -> Result<Record, InvalidInput> {
    let record = original.record.clone();
    if record.attributes.property(ORIGIN_ID).is_some() {
        return Ok(record);
    }
    let mut attributes = AttributesBuilder::from_attributes(&record.attributes);
    attributes
        .property(ORIGIN_TOPIC, queue.topic.as_str())
        .property(ORIGIN_QUEUE, &queue.queue.get().to_string())
        .property(ORIGIN_OFFSET, &original.offset.get().to_string())
        .property(ORIGIN_ID, &id.to_string());
    Ok(record.with_attributes(attributes.build()?))
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::{LogPosition, QueueId, QueueOffset, Timestamp, TopicName};

    use super::*;

    #[test]
    fn everything_is_kept_and_the_first_origin_counts() {
        let mut attributes = AttributesBuilder::default();
        attributes.tag("t").key("k1").key("k2").sharding_key("s").property("a", "1");
        let record = Record::new("body", Timestamp::from_millis(7)).with_attributes(attributes.build().unwrap());
        let queue = |name: &str| QueueKey::new(TopicName::new(name).unwrap(), QueueId::new(3).unwrap());
        let stored = |record: Record, offset| {
            let (offset, position) = (QueueOffset::new(offset), LogPosition::new(offset));
            StoredRecord { offset, position, stored_at: Timestamp::from_millis(9), record }
        };
        let first =
            diverted(&stored(record.clone(), 5), &queue("orders"), MessageId::new(1, LogPosition::new(5))).unwrap();
        assert_eq!((&first.body, first.born_at), (&record.body, record.born_at));
        let read = &first.attributes;
        assert_eq!((read.tag(), read.sharding_key()), (Some("t"), Some("s")));
        assert_eq!(read.keys().collect::<Vec<_>>(), ["k1", "k2"]);
        let properties: Vec<_> = read.properties().collect();
        let origin = [
            ("a", "1"),
            (ORIGIN_TOPIC, "orders"),
            (ORIGIN_QUEUE, "3"),
            (ORIGIN_OFFSET, "5"),
            (ORIGIN_ID, "00000000000000010000000000000005"),
        ];
        assert_eq!(properties, origin);
        let again = diverted(&stored(first.clone(), 8), &queue("other"), MessageId::new(1, LogPosition::new(8)));
        assert_eq!(again.unwrap(), first, "diverted twice it still says where it was sent to");
    }
}

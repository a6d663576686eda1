//! When a message stops being of use, and how a record says so.
//!
//! The time stands in the record's first attribute, so that whoever looks for it reads a few bytes of those that have
//! one and nothing of the others.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use cuemq_storage_api::{Attribute, Attributes, AttributesBuilder, Timestamp};
use serde::{Deserialize, Serialize};

use crate::message::EXPIRES_AT;

/// What becomes of a message that a group did not consume within its time to live.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnExpiry {
    /// It goes to the group's dead letters, with the reason `expired`.
    #[default]
    DeadLetter,
    /// It is dropped and counted.
    Drop,
}

/// The end of a message that becomes visible at `visible`: the shorter of its own and its topic's time to live counts.
#[must_use]
pub(crate) fn end_of_life(visible: Timestamp, own: Option<Duration>, topic: Option<Duration>) -> Option<Timestamp> {
    let shorter = match (own, topic) {
        (Some(own), Some(topic)) => Some(own.min(topic)),
        (own, topic) => own.or(topic),
    };
    shorter.map(|ttl| visible.plus(ttl))
}

/// The same attributes with the end of the message before them.
#[must_use]
pub(crate) fn stamp(attributes: &Attributes, end: Timestamp) -> Attributes {
    let mut first = AttributesBuilder::default();
    first.property(EXPIRES_AT, &end.as_millis().to_string());
    let first = first.build().expect("one short property is within every limit");
    let (first, rest) = (first.as_bytes(), attributes.as_bytes());
    let mut block = BytesMut::with_capacity(first.len() + rest.len());
    block.put_slice(first);
    block.put_slice(rest);
    Attributes::from_stored(block.freeze())
}

/// The attributes of a message that becomes visible at `to` instead of `from`: it lives as long as it would have.
#[must_use]
pub(crate) fn shift_end(attributes: &Attributes, from: Timestamp, to: Timestamp) -> Attributes {
    let Some(end) = expires_at(attributes) else { return attributes.clone() };
    let stamped = stamp(&Attributes::EMPTY, end).as_bytes().len();
    let rest = Attributes::from_stored(attributes.as_bytes().slice(stamped..));
    stamp(&rest, to.plus(end.since(from)))
}

/// When a message with these attributes ends, if it ever does.
#[must_use]
#[inline]
pub(crate) fn expires_at(attributes: &Attributes) -> Option<Timestamp> {
    // Kind and length of the field and of its name, then the name.
    const NAME_AT: usize = 5;
    let name = attributes.as_bytes().get(NAME_AT..NAME_AT + EXPIRES_AT.len())?;
    if name != EXPIRES_AT.as_bytes() {
        return None;
    }
    match attributes.iter().next()? {
        Attribute::Property(EXPIRES_AT, end) => end.parse().ok().map(Timestamp::from_millis),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    #[test]
    fn the_shorter_time_to_live_counts() {
        let seconds = Duration::from_secs;
        for (own, topic, end) in [
            (None, None, None),
            (Some(seconds(1)), None, Some(2_000)),
            (None, Some(seconds(2)), Some(3_000)),
            (Some(seconds(1)), Some(seconds(2)), Some(2_000)),
            (Some(seconds(3)), Some(seconds(2)), Some(3_000)),
            (Some(Duration::ZERO), Some(seconds(2)), Some(1_000)),
        ] {
            assert_eq!(end_of_life(NOW, own, topic), end.map(Timestamp::from_millis), "{own:?}, {topic:?}");
        }
        assert_eq!(end_of_life(NOW, Some(Duration::MAX), None), Some(Timestamp::MAX));
    }

    #[test]
    fn only_the_first_attribute_counts() {
        assert_eq!(expires_at(&Attributes::EMPTY), None);
        let mut builder = AttributesBuilder::default();
        builder.tag("t").property(EXPIRES_AT, "5");
        assert_eq!(expires_at(&builder.build().unwrap()), None);
        let mut builder = AttributesBuilder::default();
        builder.tag(&format!("xx{EXPIRES_AT}"));
        assert_eq!(expires_at(&builder.build().unwrap()), None, "a tag with these letters");
        let mut builder = AttributesBuilder::default();
        builder.property(&format!("{EXPIRES_AT}x"), "5");
        assert_eq!(expires_at(&builder.build().unwrap()), None, "a longer name");
        let mut builder = AttributesBuilder::default();
        builder.property(EXPIRES_AT, "soon");
        assert_eq!(expires_at(&builder.build().unwrap()), None);
    }

    proptest! {
        #[test]
        fn a_stamp_is_read_back_and_hides_nothing(end: i64, tag in "[a-z]{1,9}", value in ".{0,40}") {
            let mut builder = AttributesBuilder::default();
            builder.tag(&tag).property("p", &value);
            let plain = builder.build().unwrap();
            let stamped = stamp(&plain, Timestamp::from_millis(end));
            prop_assert_eq!(expires_at(&stamped), Some(Timestamp::from_millis(end)));
            prop_assert_eq!(stamped.iter().skip(1).collect::<Vec<_>>(), plain.iter().collect::<Vec<_>>());
            prop_assert_eq!(Attributes::decode(stamped.as_bytes().clone()).unwrap(), stamped);
        }
    }
}

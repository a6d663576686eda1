//! Dead letters: which of them somebody asks for, what a re-driven one looks like, how many need not be kept.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use cuemq_storage_api::{Attributes, AttributesBuilder, InvalidInput, QueueOffset, Record, Timestamp};

use super::failure::DeadReason;
use crate::message::{
    DEAD_REASON, DIED_AT, LAST_ERROR, ORIGIN_ID, ORIGIN_OFFSET, ORIGIN_QUEUE, ORIGIN_TOPIC, REDRIVEN_FROM,
    SYSTEM_PROPERTY_PREFIX,
};

/// Which dead letters: all, or those that meet everything that is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LetterFilter {
    reason: Option<DeadReason>,
    topic: Option<String>,
    key: Option<String>,
    died: Option<Range<Timestamp>>,
    text: Option<String>,
}

impl LetterFilter {
    /// Every letter.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Those that died for this reason.
    #[must_use]
    pub fn reason(mut self, reason: DeadReason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Those that were first sent to this topic.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Those that carry this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Those that became dead letters within this time.
    #[must_use]
    pub fn died_within(mut self, time: Range<Timestamp>) -> Self {
        self.died = Some(time);
        self
    }

    /// Those with this text in their body or in what was said of their last failure.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Whether a letter is meant.
    #[must_use]
    pub(crate) fn matches(&self, letter: &Record) -> bool {
        let property = |name| letter.attributes.property(name);
        self.reason.is_none_or(|reason| property(DEAD_REASON) == Some(reason.as_str()))
            && self.topic.as_deref().is_none_or(|topic| property(ORIGIN_TOPIC) == Some(topic))
            && self.key.as_deref().is_none_or(|key| letter.attributes.keys().any(|known| known == key))
            && self.died.as_ref().is_none_or(|time| died_at(letter).is_some_and(|at| time.contains(&at)))
            && self.text.as_deref().is_none_or(|text| {
                contains(&letter.body, text) || property(LAST_ERROR).is_some_and(|error| error.contains(text))
            })
    }
}

fn died_at(letter: &Record) -> Option<Timestamp> {
    letter.attributes.property(DIED_AT)?.parse().ok().map(Timestamp::from_millis)
}

fn contains(body: &Bytes, text: &str) -> bool {
    match str::from_utf8(body) {
        Ok(body) => body.contains(text),
        Err(_) => text.is_empty() || body.windows(text.len()).any(|part| part == text.as_bytes()),
    }
}

/// Body and attributes that take the place of a letter's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Edited {
    pub(crate) body: Bytes,
    pub(crate) attributes: Attributes,
}

/// The message that a letter becomes when it is sent to its topic again: what its producer made of it, as if it had
/// never failed, and the id under which it was first stored.
///
/// # Errors
/// When that is more than an engine stores, which the bounds of what producers send rule out.
pub(crate) fn for_origin(letter: &Record, edited: Option<&Edited>) -> Result<Record, InvalidInput> {
    let mut builder = begin(letter, edited);
    if let Some(id) = letter.attributes.property(ORIGIN_ID) {
        builder.property(REDRIVEN_FROM, id);
    }
    finish(letter, edited, builder)
}

/// The message that a letter becomes when its group alone gets it again: it still says where it came from, and has not
/// failed yet.
///
/// # Errors
/// As [`for_origin`].
pub(crate) fn for_group(letter: &Record, edited: Option<&Edited>) -> Result<Record, InvalidInput> {
    let mut builder = begin(letter, edited);
    for name in [ORIGIN_TOPIC, ORIGIN_QUEUE, ORIGIN_OFFSET, ORIGIN_ID] {
        if let Some(value) = letter.attributes.property(name) {
            builder.property(name, value);
        }
    }
    finish(letter, edited, builder)
}

fn finish(letter: &Record, edited: Option<&Edited>, builder: AttributesBuilder) -> Result<Record, InvalidInput> {
    let body = edited.map_or(&letter.body, |edited| &edited.body).clone();
    Ok(Record::new(body, letter.born_at).with_attributes(builder.build()?))
}

/// All that a producer set, or what was set instead.
fn begin(letter: &Record, edited: Option<&Edited>) -> AttributesBuilder {
    if let Some(edited) = edited {
        return AttributesBuilder::from_attributes(&edited.attributes);
    }
    let keeps = |name: &str| !name.starts_with(SYSTEM_PROPERTY_PREFIX);
    AttributesBuilder::from_attributes_keeping(&letter.attributes, keeps)
}

/// The first letter from `start` on that is not among those dealt with: everything before it need not be kept.
#[must_use]
pub(crate) fn first_open(start: QueueOffset, handled: &BTreeSet<QueueOffset>) -> QueueOffset {
    let mut open = start;
    while handled.contains(&open) {
        open = open.plus(1);
    }
    open
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{ATTEMPTS, EXPIRES_AT, FIRST_FAILED_AT};

    fn letter() -> Record {
        let mut builder = AttributesBuilder::default();
        builder.tag("t").key("k1").key("k2").sharding_key("s").property("a", "1");
        builder
            .property(ORIGIN_TOPIC, "orders")
            .property(ORIGIN_QUEUE, "3")
            .property(ORIGIN_OFFSET, "7")
            .property(ORIGIN_ID, "0F")
            .property(ATTEMPTS, "17")
            .property(FIRST_FAILED_AT, "500")
            .property(LAST_ERROR, "no stock")
            .property(DEAD_REASON, "rejected")
            .property(DIED_AT, "1000");
        Record::new("seven shoes", Timestamp::from_millis(7)).with_attributes(builder.build().unwrap())
    }

    #[test]
    fn a_filter_asks_for_all_of_it() {
        let time = |from: i64, to: i64| Timestamp::from_millis(from)..Timestamp::from_millis(to);
        let all = LetterFilter::all();
        let everything = all
            .clone()
            .reason(DeadReason::Rejected)
            .topic("orders")
            .key("k2")
            .died_within(time(1000, 1001))
            .text("shoes");
        for (filter, meant) in [
            (all.clone(), true),
            (everything.clone(), true),
            (everything.clone().text("no stock"), true),
            (everything.clone().reason(DeadReason::Expired), false),
            (everything.clone().topic("order"), false),
            (everything.clone().key("k"), false),
            (everything.clone().died_within(time(0, 1000)), false),
            (everything.clone().died_within(time(1001, 9000)), false),
            (everything.text("boots"), false),
            (all.clone().text(""), true),
        ] {
            assert_eq!(filter.matches(&letter()), meant, "{filter:?}");
        }
        let bytes = Record::new(vec![0xff, b'a', b'b', 0xfe], Timestamp::MIN);
        assert!(all.clone().text("ab").matches(&bytes) && !all.clone().text("ba").matches(&bytes));
        assert!(!all.died_within(Timestamp::MIN..Timestamp::MAX).matches(&bytes), "who knows when");
    }

    fn properties(record: &Record) -> Vec<(&str, &str)> {
        record.attributes.properties().collect()
    }

    #[test]
    fn a_redriven_letter_starts_anew() {
        let letter = letter();
        let copy = for_origin(&letter, None).unwrap();
        assert_eq!((&copy.body, copy.born_at), (&letter.body, letter.born_at));
        assert_eq!((copy.attributes.tag(), copy.attributes.sharding_key()), (Some("t"), Some("s")));
        assert_eq!(copy.attributes.keys().collect::<Vec<_>>(), ["k1", "k2"]);
        assert_eq!(properties(&copy), [("a", "1"), (REDRIVEN_FROM, "0F")]);

        let copy = for_group(&letter, None).unwrap();
        assert_eq!(copy.body, letter.body);
        let origin = [(ORIGIN_TOPIC, "orders"), (ORIGIN_QUEUE, "3"), (ORIGIN_OFFSET, "7"), (ORIGIN_ID, "0F")];
        assert_eq!(properties(&copy), [&[("a", "1")], &origin[..]].concat());
    }

    #[test]
    fn an_edited_letter_has_what_it_was_given() {
        let mut attributes = AttributesBuilder::default();
        attributes.property(EXPIRES_AT, "5").key("k3").property("b", "2");
        let edited = Edited { body: "one boot".into(), attributes: attributes.build().unwrap() };
        let copy = for_origin(&letter(), Some(&edited)).unwrap();
        assert_eq!(copy.body, "one boot");
        assert_eq!((copy.attributes.tag(), copy.attributes.sharding_key()), (None, None));
        assert_eq!(copy.attributes.keys().collect::<Vec<_>>(), ["k3"]);
        assert_eq!(properties(&copy), [(EXPIRES_AT, "5"), ("b", "2"), (REDRIVEN_FROM, "0F")]);
        assert_eq!(for_group(&letter(), Some(&edited)).unwrap().attributes.property(ORIGIN_ID), Some("0F"));
    }

    fn offsets(offsets: &[u64]) -> BTreeSet<QueueOffset> {
        offsets.iter().map(|offset| QueueOffset::new(*offset)).collect()
    }

    #[test]
    fn the_first_open_letter_ends_what_is_not_kept() {
        for (start, handled, open) in
            [(0, &[][..], 0), (5, &[0, 1, 2], 5), (0, &[1, 2], 0), (0, &[0, 1, 3], 2), (3, &[0, 3, 4, 5], 6)]
        {
            assert_eq!(first_open(QueueOffset::new(start), &offsets(handled)).get(), open);
        }
    }

    proptest! {
        #[test]
        fn nothing_open_is_given_up(start in 0u64..30, handled in prop::collection::btree_set(0u64..40, 0..40)) {
            let as_offsets = handled.iter().map(|offset| QueueOffset::new(*offset)).collect();
            let open = first_open(QueueOffset::new(start), &as_offsets).get();
            prop_assert!(!handled.contains(&open));
            prop_assert!((start..open).all(|offset| handled.contains(&offset)));
        }
    }
}

//! What a member of a group subscribes to, and which messages are meant by that.

use std::sync::Arc;

use cuemq_storage_api::{Record, TagHashes, TopicName};

use super::filter::TagFilter;
use crate::message::ORIGIN_TOPIC;

/// Most tag hashes that an engine compares each record with; beyond that it passes on everything.
const MAX_UNION_HASHES: usize = 64;

/// Topics, each with the tags that are wanted of it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Subscriptions(Arc<[(TopicName, TagFilter)]>);

impl Subscriptions {
    /// A topic comes at most once.
    #[must_use]
    pub(crate) fn new(mut filters: Vec<(TopicName, TagFilter)>) -> Self {
        filters.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self(filters.into())
    }

    /// The filter of a topic that is subscribed to.
    #[must_use]
    pub(crate) fn filter(&self, topic: &TopicName) -> Option<&TagFilter> {
        self.filter_of(topic.as_str())
    }

    fn filter_of(&self, topic: &str) -> Option<&TagFilter> {
        self.0.iter().find(|(known, _)| known.as_str() == topic).map(|(_, filter)| filter)
    }

    /// Whether every message of every topic is wanted.
    #[must_use]
    pub(crate) fn want_everything(&self) -> bool {
        self.0.iter().all(|(_, filter)| *filter == TagFilter::All)
    }

    /// Whether a message of a queue that the member may read is wanted. A redelivery, which lies in the group's retry
    /// topic, is wanted by those who want it of the topic it was sent to.
    #[must_use]
    pub(crate) fn want(&self, topic: &TopicName, record: &Record) -> bool {
        let tag = record.attributes.tag();
        match (self.filter(topic), record.attributes.property(ORIGIN_TOPIC)) {
            (Some(filter), _) => filter.matches(tag),
            (None, Some(origin)) => self.filter_of(origin).is_some_and(|filter| filter.matches(tag)),
            (None, None) => true,
        }
    }
}

/// The hashes that let through whatever any of these filters wants.
#[must_use]
pub(crate) fn union_of_hashes<'a>(filters: impl Iterator<Item = &'a TagFilter>) -> TagHashes {
    let mut union = Vec::new();
    for filter in filters {
        match filter.hashes() {
            TagHashes::All => return TagHashes::All,
            TagHashes::AnyOf(hashes) => union.extend(hashes),
        }
        union.sort_unstable();
        union.dedup();
        if union.len() > MAX_UNION_HASHES {
            return TagHashes::All;
        }
    }
    TagHashes::AnyOf(union)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cuemq_storage_api::{AttributesBuilder, GroupName, Timestamp, tag_hash};

    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    fn subscriptions(filters: &[(&str, &str)]) -> Subscriptions {
        let filter = |(name, tags): &(&str, &str)| (topic(name), TagFilter::parse(tags).unwrap());
        Subscriptions::new(filters.iter().map(filter).collect())
    }

    fn record(tag: &str, origin: Option<&str>) -> Record {
        let mut attributes = AttributesBuilder::default();
        attributes.tag(tag);
        if let Some(origin) = origin {
            attributes.property(ORIGIN_TOPIC, origin);
        }
        let (born_at, body) = (Timestamp::MIN, Bytes::new());
        Record { attributes: attributes.build().unwrap(), born_at, body }
    }

    #[test]
    fn a_redelivery_counts_as_what_it_was() {
        let both = subscriptions(&[("orders", "pay"), ("bills", "*")]);
        let retry = TopicName::retry_of(&GroupName::new("g").unwrap());
        for (of, tag, origin, wanted) in [
            (&topic("orders"), "pay", None, true),
            (&topic("orders"), "ship", None, false),
            (&topic("bills"), "ship", None, true),
            (&retry, "pay", Some("orders"), true),
            (&retry, "ship", Some("orders"), false),
            (&retry, "ship", Some("bills"), true),
            (&retry, "pay", Some("others"), false),
            (&retry, "pay", None, true),
        ] {
            assert_eq!(both.want(of, &record(tag, origin)), wanted, "{of} {tag} {origin:?}");
        }
        assert!(!both.want_everything() && subscriptions(&[("bills", "*")]).want_everything());
        assert_eq!(both, subscriptions(&[("bills", "*"), ("orders", "pay")]), "in whatever order");
    }

    #[test]
    fn a_union_lets_everything_through_that_anybody_wants() {
        let filters = ["a || b", "b || c"].map(|tags| TagFilter::parse(tags).unwrap());
        let TagHashes::AnyOf(hashes) = union_of_hashes(filters.iter()) else { panic!("nobody wants everything") };
        let mut expected = ["a", "b", "c"].map(tag_hash);
        expected.sort_unstable();
        assert_eq!(hashes, expected);
        assert_eq!(union_of_hashes(filters.iter().chain([&TagFilter::All])), TagHashes::All);
        let many: Vec<_> = (0..65).map(|n| TagFilter::parse(&format!("t{n}")).unwrap()).collect();
        assert_eq!(union_of_hashes(many.iter()), TagHashes::All, "too many to compare with");
    }
}

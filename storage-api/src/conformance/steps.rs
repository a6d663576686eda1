//! What the model check does to an engine: generated steps over few names, so that they meet often.

use proptest::prelude::*;

use crate::batch::WriteBatch;
use crate::record::{Record, tag_hash};
use crate::types::{QueueKey, Table, Timestamp};

use super::sample::{attributes, queue_of, record};

/// The keys that records carry; two of them share a hash.
pub(super) const KEYS: [&str; 3] = ["k", "Aa", "BB"];
/// The topics that are asked for keys; the last one has no queue.
pub(super) const TOPICS: [&str; 4] = ["a", "ab", "b", "none"];
/// The tables that are written to.
pub(super) const TABLES: [Table; 2] = [Table::named("model"), Table::named("model.b")];
const TAGS: [&str; 3] = ["x", "Aa", "BB"];
const STEPS: std::ops::RangeInclusive<usize> = 1..=60;

/// The queues that are written to.
pub(super) fn queues() -> [QueueKey; 4] {
    [queue_of("a", 0), queue_of("a", 1), queue_of("ab", 0), queue_of("b", 7)]
}

/// An offset, told by its distance from one of a queue's bounds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    BehindMin(i8),
    BehindEnd(i8),
}

/// One change of a batch.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Append {
        queue: usize,
        records: Vec<Content>,
    },
    Put {
        table: usize,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// A row for a record that an earlier change of the batch appends; none when there is no such change.
    PutPlaced {
        table: usize,
        key: Vec<u8>,
        prefix: Vec<u8>,
        append: usize,
    },
    Delete {
        table: usize,
        key: Vec<u8>,
    },
    Trim {
        queue: usize,
        before: Place,
    },
}

/// What a record holds.
#[derive(Clone, Debug)]
pub(super) struct Content {
    body_bytes: usize,
    fill: u8,
    keys: Vec<usize>,
    tag: Option<usize>,
}

impl Content {
    pub(super) fn record(&self) -> Record {
        let block = attributes(|a| {
            for key in &self.keys {
                a.key(KEYS[*key]);
            }
            if let Some(tag) = self.tag {
                a.tag(TAGS[tag]);
            }
        });
        record(vec![self.fill; self.body_bytes]).with_attributes(block)
    }
}

/// One question about a queue.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) queue: usize,
    pub(super) from: Place,
    pub(super) until: Option<Place>,
    pub(super) max_messages: usize,
    pub(super) max_bytes: usize,
    tags: Option<Vec<usize>>,
}

impl Question {
    pub(super) fn tags(&self) -> crate::engine::TagHashes {
        match &self.tags {
            None => crate::engine::TagHashes::All,
            Some(tags) => crate::engine::TagHashes::AnyOf(tags.iter().map(|tag| tag_hash(TAGS[*tag])).collect()),
        }
    }
}

/// Times in a step are milliseconds from the time of the batch before it.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Apply { after: i64, changes: Vec<Change> },
    Sync,
    Fetch(Question),
    OffsetAt { queue: usize, before: i64 },
    RecordAt { nth: usize },
    Find { topic: usize, key: usize, ages: (i64, i64), limit: usize },
    Get { table: usize, key: Vec<u8> },
    Scan { table: usize, from: Vec<u8>, to: Option<Vec<u8>>, limit: usize },
    Maintain { after: i64 },
    Reopen,
    Crash { seed: u64 },
}

/// Up to sixty steps.
pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), STEPS)
}

fn step() -> impl Strategy<Value = Step> {
    let time = || prop_oneof![6 => 0..4i64, 2 => Just(0i64), 1 => -4..0i64, 1 => 5_000..15_000i64];
    let age = || prop_oneof![3 => -2..10i64, 1 => Just(100_000i64)];
    prop_oneof![
        14 => (time(), proptest::collection::vec(change(), 0..5))
            .prop_map(|(after, changes)| Step::Apply { after, changes }),
        3 => Just(Step::Sync),
        6 => question().prop_map(Step::Fetch),
        2 => (queue(), age()).prop_map(|(queue, before)| Step::OffsetAt { queue, before }),
        2 => any::<usize>().prop_map(|nth| Step::RecordAt { nth }),
        3 => (0..TOPICS.len(), 0..KEYS.len(), (age(), age()), prop_oneof![0..4usize, Just(usize::MAX)])
            .prop_map(|(topic, key, ages, limit)| Step::Find { topic, key, ages, limit }),
        1 => (table(), row_key()).prop_map(|(table, key)| Step::Get { table, key }),
        2 => (table(), row_key(), proptest::option::of(row_key()), prop_oneof![0..4usize, Just(usize::MAX)])
            .prop_map(|(table, from, to, limit)| Step::Scan { table, from, to, limit }),
        1 => (0..12_000i64).prop_map(|after| Step::Maintain { after }),
        1 => Just(Step::Reopen),
        2 => prop_oneof![Just(0u64), any::<u64>()].prop_map(|seed| Step::Crash { seed }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (queue(), proptest::collection::vec(content(), 1..5))
            .prop_map(|(queue, records)| Change::Append { queue, records }),
        3 => (table(), row_key(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(table, key, value)| Change::Put { table, key, value }),
        2 => (table(), row_key(), proptest::collection::vec(any::<u8>(), 0..9), any::<usize>())
            .prop_map(|(table, key, prefix, append)| Change::PutPlaced { table, key, prefix, append }),
        1 => (table(), row_key()).prop_map(|(table, key)| Change::Delete { table, key }),
        1 => (queue(), place()).prop_map(|(queue, before)| Change::Trim { queue, before }),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    let body_bytes = prop_oneof![8 => 0..40usize, 2 => 40..600usize, 1 => 3_000..9_000usize];
    let keys = proptest::collection::vec(0..KEYS.len(), 0..3);
    (body_bytes, any::<u8>(), keys, proptest::option::of(0..TAGS.len()))
        .prop_map(|(body_bytes, fill, keys, tag)| Content { body_bytes, fill, keys, tag })
}

fn question() -> impl Strategy<Value = Question> {
    let max_messages = prop_oneof![1 => Just(0usize), 6 => 1..8usize, 3 => Just(usize::MAX)];
    let max_bytes = prop_oneof![1 => Just(0usize), 4 => 1..300usize, 5 => Just(usize::MAX)];
    let tags = proptest::option::of(proptest::collection::vec(0..TAGS.len(), 0..3));
    (queue(), place(), proptest::option::weighted(0.3, place()), max_messages, max_bytes, tags).prop_map(
        |(queue, from, until, max_messages, max_bytes, tags)| Question {
            queue,
            from,
            until,
            max_messages,
            max_bytes,
            tags,
        },
    )
}

fn queue() -> impl Strategy<Value = usize> {
    0..queues().len()
}

fn table() -> impl Strategy<Value = usize> {
    0..TABLES.len()
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![(-1..8i8).prop_map(Place::BehindMin), (-8..2i8).prop_map(Place::BehindEnd)]
}

fn row_key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(0xff)], 1..4)
}

/// The batch of a step, with places looked up by `locate`.
pub(super) fn batch(
    at: Timestamp,
    changes: &[Change],
    locate: impl Fn(&QueueKey, Place) -> crate::types::QueueOffset,
) -> WriteBatch {
    let queues = queues();
    let mut batch = WriteBatch::new(at);
    for change in changes {
        match change {
            Change::Append { queue, records } => {
                batch.append_all(&queues[*queue], records.iter().map(Content::record).collect())
            }
            Change::Put { table, key, value } => batch.put(&TABLES[*table], key.clone(), value.clone()),
            Change::PutPlaced { table, key, prefix, append } => {
                // The first record of any append so far: each has one.
                let Some(append) = append.checked_rem(batch.append_operations()) else { continue };
                batch.put_placed(&TABLES[*table], key.clone(), prefix.clone(), append, 0)
            }
            Change::Delete { table, key } => batch.delete(&TABLES[*table], key.clone()),
            Change::Trim { queue, before } => batch.trim(&queues[*queue], locate(&queues[*queue], *before)),
        };
    }
    batch
}

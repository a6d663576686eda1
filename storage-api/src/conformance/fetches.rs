//! Fetches: limits, the range they may read, filters, and where to go on.

use super::Fixture;
use super::sample::{append_numbers, assert_refused, batch, fetch, fresh, numbers, offset, offsets, orders, record};
use super::sample::{tagged, topic};
use crate::batch::WriteBatch;
use crate::engine::{Engine, Fetch, FetchLimit, FetchRequest, TagHashes};
use crate::error::ErrorKind;
use crate::limits::MAX_FETCH_MESSAGES;
use crate::record::tag_hash;
use crate::types::{QueueId, QueueKey, QueueOffset};

const ALL: usize = 1_000;

fn fetch_until(engine: &impl Engine, queue: &QueueKey, from: u64, until: u64) -> Fetch {
    let request = FetchRequest::all(queue, offset(from), FetchLimit::messages(ALL));
    engine.fetch(FetchRequest { until: Some(offset(until)), ..request }).unwrap()
}

fn fetch_bytes(engine: &impl Engine, queue: &QueueKey, from: u64, max_bytes: usize) -> Fetch {
    let limit = FetchLimit { max_messages: ALL, max_bytes };
    engine.fetch(FetchRequest::all(queue, offset(from), limit)).unwrap()
}

fn fetch_tags(engine: &impl Engine, queue: &QueueKey, from: u64, limit: FetchLimit, tags: &[&str]) -> Fetch {
    let tags = TagHashes::AnyOf(tags.iter().map(|tag| tag_hash(tag)).collect());
    engine.fetch(FetchRequest { queue, from: offset(from), until: None, limit, tags: &tags }).unwrap()
}

/// A queue `orders/0` whose records carry these tags in turn; an empty one stands for none.
fn tagged_queue<F: Fixture>(tags: &[&str]) -> (F, F::Engine) {
    let (fixture, engine) = fresh::<F>();
    let records = tags.iter().map(|tag| if tag.is_empty() { record("none") } else { tagged(tag.to_string(), tag) });
    engine.apply(batch(0, &orders(0), records.collect())).unwrap();
    (fixture, engine)
}

/// At most `max_messages` records come, in order, and `next` is behind the last of them.
pub fn the_count_limit_holds<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 10);
    for (from, limit, expected) in [(0, 1, 0..1), (0, 4, 0..4), (4, 4, 4..8), (8, 4, 8..10), (0, 10, 0..10)] {
        let fetched = fetch(&engine, &orders(0), from, limit);
        assert_eq!(offsets(&fetched.records), expected.clone().collect::<Vec<_>>());
        assert_eq!(numbers(&fetched.records), expected.clone().collect::<Vec<_>>());
        assert_eq!(fetched.next, offset(expected.end));
    }
}

/// Bodies and attributes together stay within `max_bytes`.
pub fn the_byte_limit_holds<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let attributed = tagged("0123456", "abcdefg");
    let each = attributed.payload_bytes();
    assert_eq!(each, 17);
    engine.apply(batch(0, &orders(0), vec![attributed; 6])).unwrap();
    for (max_bytes, expected) in [(each * 2, 2), (each * 3 - 1, 2), (each * 3, 3), (each * 6, 6), (usize::MAX, 6)] {
        let fetched = fetch_bytes(&engine, &orders(0), 0, max_bytes);
        assert_eq!(fetched.records.len(), expected, "within {max_bytes} bytes");
        assert_eq!(fetched.next, offset(expected as u64));
    }
}

/// One record comes even if it alone is larger than `max_bytes`, and then no other.
pub fn one_record_comes_however_large<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    engine.apply(batch(0, &orders(0), vec![record(vec![1; 5_000]), record("x"), record("")])).unwrap();
    for max_bytes in [0, 1, 4_999, 5_000] {
        let fetched = fetch_bytes(&engine, &orders(0), 0, max_bytes);
        assert!(offsets(&fetched.records).starts_with(&[0]));
        assert_eq!((fetched.records.len(), fetched.next), (1, offset(1)));
    }
    assert_eq!(fetch_bytes(&engine, &orders(0), 1, 0).records.len(), 1);
    assert_eq!(fetch_bytes(&engine, &orders(0), 0, 5_001).records.len(), 3);
}

/// A limit of no records returns none and stays where it is; the bounds are checked all the same.
pub fn a_limit_of_zero_returns_nothing<F: Fixture>() {
    let queue = orders(0);
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &queue, 0, 3);
    for from in 0..=3 {
        let fetched = fetch(&engine, &queue, from, 0);
        assert!(fetched.records.is_empty());
        assert_eq!((fetched.next, fetched.bounds), (offset(from), offset(0)..offset(3)));
    }
    let request = FetchRequest::all(&queue, offset(4), FetchLimit::messages(0));
    assert_refused(engine.fetch(request), ErrorKind::OutOfRange);
}

/// From the end on there is nothing, and `next` is the end.
pub fn nothing_comes_from_the_end<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 3);
    let fetched = fetch(&engine, &orders(0), 3, ALL);
    assert!(fetched.records.is_empty());
    assert_eq!(fetched.next, offset(3));
    append_numbers(&engine, &orders(0), 3, 1);
    assert_eq!(numbers(&fetch(&engine, &orders(0), 3, ALL).records), [3]);
}

/// A queue that never had a record is empty at 0, and is not listed for having been asked about.
pub fn an_unknown_queue_is_empty<F: Fixture>() {
    let queue = orders(9);
    let (_fixture, engine) = fresh::<F>();
    let fetched = fetch(&engine, &queue, 0, ALL);
    assert!(fetched.records.is_empty());
    assert_eq!((fetched.next, fetched.bounds), (offset(0), offset(0)..offset(0)));
    assert_eq!(engine.bounds(&queue).unwrap(), offset(0)..offset(0));
    let request = FetchRequest::all(&queue, offset(1), FetchLimit::messages(ALL));
    assert_refused(engine.fetch(request), ErrorKind::OutOfRange);
    assert!(engine.queues().unwrap().is_empty());
}

/// A fetch reads only below `until`, and its bounds are those of the whole queue all the same.
pub fn until_hides_what_is_behind<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 10);
    let fetched = fetch_until(&engine, &orders(0), 2, 7);
    assert_eq!(numbers(&fetched.records), [2, 3, 4, 5, 6]);
    assert_eq!((fetched.next, fetched.bounds), (offset(7), offset(0)..offset(10)));
    let at_until = fetch_until(&engine, &orders(0), 7, 7);
    assert!(at_until.records.is_empty());
    assert_eq!(at_until.next, offset(7));
}

/// With `until` below `from` nothing comes and `next` does not go back.
pub fn until_below_from_returns_nothing<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 10);
    let fetched = fetch_until(&engine, &orders(0), 5, 3);
    assert!(fetched.records.is_empty());
    assert_eq!(fetched.next, offset(5));
}

/// An `until` behind the end reads to the end.
pub fn until_beyond_the_end_is_the_end<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 4);
    let fetched = fetch_until(&engine, &orders(0), 1, 400);
    assert_eq!(numbers(&fetched.records), [1, 2, 3]);
    assert_eq!(fetched.next, offset(4));
}

/// Below the minimum and above the end a fetch is refused, and the text names both bounds.
pub fn outside_the_bounds_is_refused<F: Fixture>() {
    let queue = orders(0);
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &queue, 0, 1_234);
    let mut trim = WriteBatch::new(super::sample::at(1));
    trim.trim(&queue, offset(567));
    engine.apply(trim).unwrap();
    for from in [0, 566, 1_235, 1 << 52] {
        let request = FetchRequest::all(&queue, offset(from), FetchLimit::messages(1));
        let error = engine.fetch(request).expect_err("outside the bounds");
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        let text = error.to_string();
        assert!(text.contains("567") && text.contains("1234"), "both bounds are named: {text}");
    }
    assert_eq!(numbers(&fetch(&engine, &queue, 567, 1).records), [567]);
}

/// Every answer carries the queue's bounds as they were when it was read.
pub fn bounds_come_with_every_fetch<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for count in 1..4 {
        append_numbers(&engine, &orders(0), 0, 2);
        assert_eq!(fetch(&engine, &orders(0), 1, 1).bounds, offset(0)..offset(count * 2));
    }
}

/// Only records whose tag has one of the hashes come, with or without others between them.
pub fn a_filter_passes_what_matches<F: Fixture>() {
    let queue = orders(0);
    let (_fixture, engine) = tagged_queue::<F>(&["a", "b", "", "a", "c", "a", "order-created-event"]);
    let limit = FetchLimit::messages(ALL);
    assert_eq!(offsets(&fetch_tags(&engine, &queue, 0, limit, &["a"]).records), [0, 3, 5]);
    assert_eq!(offsets(&fetch_tags(&engine, &queue, 1, limit, &["c", "b"]).records), [1, 4]);
    assert_eq!(offsets(&fetch_tags(&engine, &queue, 0, limit, &["order-created-event"]).records), [6]);
    let untagged = TagHashes::AnyOf(vec![0]);
    let request = FetchRequest { tags: &untagged, ..FetchRequest::all(&queue, offset(0), limit) };
    assert_eq!(offsets(&engine.fetch(request).unwrap().records), [2]);
    let none = TagHashes::AnyOf(Vec::new());
    let request = FetchRequest { tags: &none, ..FetchRequest::all(&queue, offset(0), limit) };
    assert!(engine.fetch(request).unwrap().records.is_empty());
}

/// Going on from `next` finds every matching record once, and the last page ends at the end.
pub fn next_passes_over_what_was_skipped<F: Fixture>() {
    let (_fixture, engine) = tagged_queue::<F>(&["b", "a", "b", "b", "a", "a", "b", "a", "b", "b"]);
    let (mut next, mut found) = (offset(0), Vec::new());
    loop {
        let page = fetch_tags(&engine, &orders(0), next.get(), FetchLimit::messages(1), &["a"]);
        found.extend(offsets(&page.records));
        assert!(page.next > next, "a fetch before the end goes on");
        next = page.next;
        if page.next == page.bounds.end {
            break;
        }
    }
    assert_eq!(found, [1, 4, 5, 7]);
    let all = fetch_tags(&engine, &orders(0), 0, FetchLimit::messages(ALL), &["a"]);
    assert_eq!((offsets(&all.records), all.next), (vec![1, 4, 5, 7], offset(10)));
}

/// Where no record matches, `next` has passed over all of them, but never over `until`.
pub fn a_filter_that_matches_nothing_reaches_the_end<F: Fixture>() {
    let queue = orders(0);
    let (_fixture, engine) = tagged_queue::<F>(&["a", "b", "a", "c"]);
    let fetched = fetch_tags(&engine, &queue, 0, FetchLimit::messages(ALL), &["z"]);
    assert!(fetched.records.is_empty());
    assert_eq!(fetched.next, offset(4));
    let tags = TagHashes::AnyOf(vec![tag_hash("z")]);
    let request = FetchRequest::all(&queue, offset(1), FetchLimit::messages(ALL));
    let hidden = engine.fetch(FetchRequest { until: Some(offset(3)), tags: &tags, ..request }).unwrap();
    assert!(hidden.records.is_empty());
    assert_eq!(hidden.next, offset(3));
}

/// Limits count what passes the filter, not what it skips; the first match comes however large it is.
pub fn a_filter_keeps_within_its_limits<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let large = |tag: &str| tagged(vec![7; 1_000], tag);
    let records = vec![large("a"), large("b"), large("a"), large("b"), large("b"), large("b"), large("a")];
    let each = records[0].payload_bytes();
    engine.apply(batch(0, &orders(0), records)).unwrap();
    let of = |from, max_messages, max_bytes| {
        let limit = FetchLimit { max_messages, max_bytes };
        offsets(&fetch_tags(&engine, &orders(0), from, limit, &["b"]).records)
    };
    assert_eq!(of(0, 2, usize::MAX), [1, 3]);
    assert_eq!(of(0, ALL, each * 3), [1, 3, 4]);
    assert_eq!(of(0, ALL, 1), [1]);
    assert_eq!(of(2, ALL, 1), [3]);
}

/// A filter works on hashes alone: tags that share one both pass, and the caller checks the tag.
pub fn tags_that_share_a_hash_both_pass<F: Fixture>() {
    assert_eq!(tag_hash("Aa"), tag_hash("BB"));
    let (_fixture, engine) = tagged_queue::<F>(&["Aa", "C", "BB"]);
    let fetched = fetch_tags(&engine, &orders(0), 0, FetchLimit::messages(ALL), &["Aa"]);
    assert_eq!(offsets(&fetched.records), [0, 2]);
    assert_eq!(fetched.records[1].record.attributes.tag(), Some("BB"));
}

/// Going on from `next` covers a queue exactly once, whatever the limits.
pub fn pages_cover_a_queue_once<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for first in (0..500).step_by(25) {
        append_numbers(&engine, &orders(0), first, 25);
    }
    for limit in [FetchLimit::messages(7), FetchLimit { max_messages: ALL, max_bytes: 100 }] {
        let (mut next, mut found) = (QueueOffset::ZERO, Vec::new());
        while next < offset(500) {
            let page = engine.fetch(FetchRequest::all(&orders(0), next, limit)).unwrap();
            assert!(page.next > next, "a fetch before the end goes on");
            found.extend(numbers(&page.records));
            next = page.next;
        }
        assert_eq!(found, (0..500).collect::<Vec<_>>());
    }
}

/// No fetch returns more than [`MAX_FETCH_MESSAGES`] records, and `next` says so.
pub fn no_fetch_returns_more_than_the_cap<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let queue = QueueKey::new(topic("long"), QueueId::FIRST);
    for records in [vec![record(""); MAX_FETCH_MESSAGES], vec![record(""); 10]] {
        engine.apply(batch(0, &queue, records)).unwrap();
    }
    let fetched = fetch(&engine, &queue, 3, usize::MAX);
    let last = MAX_FETCH_MESSAGES as u64 + 2;
    assert_eq!(fetched.records.len(), MAX_FETCH_MESSAGES);
    assert_eq!(fetched.records.last().map(|stored| stored.offset), Some(offset(last)));
    assert_eq!(fetched.next, offset(last + 1));
}

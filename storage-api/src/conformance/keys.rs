//! Look-up by key.

use super::Fixture;
use super::sample::{at, attributes, batch, fresh, keyed, offset, orders, queue_of, record, tagged, topic};
use crate::batch::WriteBatch;
use crate::engine::{Engine, KeyQuery};
use crate::limits::MAX_KEY_BYTES;
use crate::record::{LocatedRecord, tag_hash};
use crate::types::Timestamp;

const ALL: usize = 1_000;

fn find_in(engine: &impl Engine, name: &str, key: &str, times: (Timestamp, Timestamp), limit: usize) -> Vec<String> {
    let query = KeyQuery { topic: &topic(name), key, from: times.0, to: times.1, limit };
    let text = |located: LocatedRecord| String::from_utf8(located.stored.record.body.to_vec()).unwrap();
    engine.find(query).unwrap().into_iter().map(text).collect()
}

/// The bodies of the records of topic `orders` that carry a key.
fn find(engine: &impl Engine, key: &str) -> Vec<String> {
    find_in(engine, "orders", key, (Timestamp::MIN, Timestamp::MAX), ALL)
}

/// Adds one record with a key per body, each in a batch of its own, one millisecond apart.
fn write(engine: &impl Engine, key: &str, bodies: &[&str]) {
    for (body, millis) in bodies.iter().zip(0..) {
        engine.apply(batch(millis, &orders(0), vec![keyed(body.to_string(), key)])).unwrap();
    }
}

/// What carries the key is found, newest first, with its queue, offset and times.
pub fn the_newest_comes_first<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    write(&engine, "k", &["first", "second", "third"]);
    write(&engine, "other", &["no"]);
    assert_eq!(find(&engine, "k"), ["third", "second", "first"]);
    let query = KeyQuery { topic: &topic("orders"), key: "k", from: Timestamp::MIN, to: Timestamp::MAX, limit: ALL };
    let found = engine.find(query).unwrap();
    let newest = &found[0];
    assert_eq!((&newest.queue, newest.stored.offset, newest.stored.stored_at), (&orders(0), offset(2), at(2)));
    assert_eq!(engine.record_at(newest.stored.position).unwrap().as_ref(), Some(newest));
}

/// All queues of the topic are searched; the order is that of writing.
pub fn every_queue_of_the_topic_is_searched<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for (n, id) in [5, 0, 900, 3, 0].into_iter().enumerate() {
        engine.apply(batch(0, &orders(id), vec![keyed(format!("{n}"), "k")])).unwrap();
    }
    assert_eq!(find(&engine, "k"), ["4", "3", "2", "1", "0"]);
}

/// A key belongs to its topic.
pub fn topics_are_kept_apart<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for name in ["orders", "order", "orders2"] {
        engine.apply(batch(0, &queue_of(name, 0), vec![keyed(name.to_owned(), "k")])).unwrap();
    }
    for name in ["orders", "order", "orders2"] {
        assert_eq!(find_in(&engine, name, "k", (at(0), at(1)), ALL), [name]);
    }
    assert!(find_in(&engine, "nothing", "k", (at(0), at(1)), ALL).is_empty());
}

/// Keys whose hashes are equal are different keys, and so are topic and key that read the same when joined.
pub fn colliding_keys_are_kept_apart<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let keys = ["AaAa", "BBBB", "AaBB", "BBAa"];
    assert!(keys.iter().all(|key| tag_hash(key) == tag_hash(keys[0])));
    for key in keys {
        engine.apply(batch(0, &orders(0), vec![keyed(key.to_owned(), key)])).unwrap();
    }
    for key in keys {
        assert_eq!(find(&engine, key), [key]);
    }
    engine.apply(batch(0, &queue_of("ab", 0), vec![keyed("ab", "c#d")])).unwrap();
    engine.apply(batch(0, &queue_of("a", 0), vec![keyed("a", "bc#d")])).unwrap();
    assert_eq!(find_in(&engine, "ab", "c#d", (at(0), at(1)), ALL), ["ab"]);
    assert_eq!(find_in(&engine, "a", "bc#d", (at(0), at(1)), ALL), ["a"]);
}

/// The whole key counts: neither a beginning of it nor other case, and a tag is no key.
pub fn only_the_whole_key_counts<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    write(&engine, "key-1", &["x"]);
    engine.apply(batch(9, &orders(0), vec![tagged("tag", "key"), record("none")])).unwrap();
    for key in ["key", "key-", "key-10", "KEY-1", "key-1 ", "ey-1"] {
        assert!(find(&engine, key).is_empty(), "{key:?} is another key");
    }
    assert_eq!(find(&engine, "key-1"), ["x"]);
}

/// The time range holds its first moment and not its last.
pub fn the_time_range_is_half_open<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    write(&engine, "k", &["0", "1", "2", "3", "4"]);
    let between = |from, to| find_in(&engine, "orders", "k", (at(from), at(to)), ALL);
    assert_eq!(between(1, 4), ["3", "2", "1"]);
    assert_eq!(between(4, 5), ["4"]);
    assert_eq!(between(-9, 1), ["0"]);
    for (from, to) in [(2, 2), (3, 1), (5, 99), (-9, 0)] {
        assert!(between(from, to).is_empty(), "between {from} and {to}");
    }
}

/// A limit keeps the newest; a limit of none keeps none.
pub fn the_limit_keeps_the_newest<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    write(&engine, "k", &["0", "1", "2", "3", "4"]);
    let newest = |limit| find_in(&engine, "orders", "k", (at(0), at(100)), limit);
    assert_eq!(newest(2), ["4", "3"]);
    assert_eq!(newest(5).len(), 5);
    assert_eq!(newest(usize::MAX).len(), 5);
    assert!(newest(0).is_empty());
    assert_eq!(find_in(&engine, "orders", "k", (at(0), at(3)), 2), ["2", "1"]);
}

/// Trimmed records are not found; those of other queues are.
pub fn trimmed_records_are_not_found<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    write(&engine, "k", &["0", "1", "2"]);
    engine.apply(batch(3, &orders(1), vec![keyed("3", "k")])).unwrap();
    let mut trim = WriteBatch::new(at(4));
    trim.trim(&orders(0), offset(2));
    engine.apply(trim).unwrap();
    assert_eq!(find(&engine, "k"), ["3", "2"]);
    assert_eq!(find_in(&engine, "orders", "k", (at(0), at(9)), 1), ["3"]);
}

/// A record with several keys is found under each of them, and once under one that it carries twice.
pub fn each_key_of_a_record_finds_it_once<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let many = attributes(|a| {
        a.key("a").tag("t").key("b").property("key", "p").key("a").sharding_key("s").key("Aa").key("BB");
    });
    engine.apply(batch(0, &orders(0), vec![record("x").with_attributes(many)])).unwrap();
    for key in ["a", "b", "Aa", "BB"] {
        assert_eq!(find(&engine, key), ["x"], "under {key:?}");
    }
    for key in ["t", "p", "s", "key"] {
        assert!(find(&engine, key).is_empty(), "{key:?} is no key");
    }
}

/// Keys of any letters and of the greatest length work.
pub fn long_and_foreign_keys_work<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let longest = "k".repeat(MAX_KEY_BYTES);
    for key in [&longest, "ключ", "a b\tc\0d", "%/#\\"] {
        engine.apply(batch(0, &orders(0), vec![keyed(format!("{} bytes", key.len()), key)])).unwrap();
        assert_eq!(find(&engine, key), [format!("{} bytes", key.len())]);
    }
    assert!(find(&engine, &longest[1..]).is_empty());
}

/// Many records under one key and many keys in one topic are told apart.
pub fn many_keys_are_told_apart<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for round in 0..10 {
        let records = (0..200).map(|n| keyed(format!("{round}-{n}"), &format!("key-{}", n % 50))).collect();
        engine.apply(batch(round, &orders(u32::try_from(round % 3).unwrap()), records)).unwrap();
    }
    for n in 0..50 {
        let found = find(&engine, &format!("key-{n}"));
        assert_eq!(found.len(), 40);
        assert_eq!((found[0].as_str(), found[39].as_str()), (&*format!("9-{}", n + 150), &*format!("0-{n}")));
    }
}

//! Appends: offsets, positions, times, and that what went in comes out.

use bytes::Bytes;

use super::Fixture;
use super::sample::{append_numbers, attributes, batch, fresh, numbers, offsets, orders, queue_of, read_all, record};
use super::sample::{at, offset};
use crate::batch::{Appended, WriteBatch};
use crate::engine::Engine;
use crate::limits::{MAX_ATTRIBUTES_BYTES, MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_QUEUE_ID};
use crate::record::{Attribute, Record};
use crate::types::{GroupName, QueueId, QueueKey, Timestamp, TopicName};

/// The records of a queue are counted from 0 without a gap, over batches of any size.
pub fn offsets_are_dense_from_zero<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let queue = orders(0);
    let mut written = 0;
    for count in [1, 3, 1, 7, 20] {
        let applied = append_numbers(&engine, &queue, written, count);
        let count = u32::try_from(count).unwrap();
        assert_eq!(applied.appends, [Appended { first: offset(written), count }]);
        written += u64::from(count);
    }
    let all = read_all(&engine, &queue);
    assert_eq!(offsets(&all), (0..written).collect::<Vec<_>>());
    assert_eq!(numbers(&all), (0..written).collect::<Vec<_>>());
    assert_eq!(engine.bounds(&queue).unwrap(), offset(0)..offset(written));
}

/// One batch appends to several queues and reports each append in the batch's order.
pub fn one_batch_serves_many_queues<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(1), 0, 2);
    let mut mixed = WriteBatch::new(at(5));
    mixed.append_all(&orders(2), vec![record("c0"), record("c1")]);
    mixed.append_all(&orders(1), vec![record("b2")]);
    mixed.append_all(&queue_of("payments", 1), vec![record("p0"), record("p1"), record("p2")]);
    let applied = engine.apply(mixed).unwrap();
    let expected = [(0, 2), (2, 1), (0, 3)].map(|(first, count)| Appended { first: offset(first), count });
    assert_eq!(applied.appends, expected);
    assert_eq!(applied.positions.len(), 6);
    assert_eq!(engine.bounds(&orders(1)).unwrap(), offset(0)..offset(3));
    assert_eq!(read_all(&engine, &orders(1))[2].record.body, "b2");
    assert_eq!(bodies(&engine, &queue_of("payments", 1)), ["p0", "p1", "p2"]);
    assert_eq!(bodies(&engine, &orders(2)), ["c0", "c1"]);
}

/// Two appends to one queue within a batch follow each other.
pub fn one_queue_may_come_twice_in_a_batch<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut mixed = WriteBatch::new(at(0));
    mixed.append_all(&orders(0), vec![record("a0"), record("a1")]);
    mixed.append_all(&orders(1), vec![record("b0")]);
    mixed.append_all(&orders(0), vec![record("a2")]);
    let applied = engine.apply(mixed).unwrap();
    let expected = [(0, 2), (0, 1), (2, 1)].map(|(first, count)| Appended { first: offset(first), count });
    assert_eq!(applied.appends, expected);
    assert_eq!(bodies(&engine, &orders(0)), ["a0", "a1", "a2"]);
    let stored = read_all(&engine, &orders(0));
    let positions: Vec<_> = stored.iter().map(|stored| stored.position).collect();
    assert_eq!(positions, [applied.positions[0], applied.positions[1], applied.positions[3]]);
}

/// Positions rise in write order over all queues and are those that reading shows.
pub fn positions_rise_over_queues_and_batches<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut positions = Vec::new();
    for round in 0..10 {
        let mut mixed = WriteBatch::new(at(round));
        for id in [3, 1, 2] {
            mixed.append_all(&orders(id), vec![record("x"), record("yy")]);
        }
        positions.extend(engine.apply(mixed).unwrap().positions);
    }
    assert_eq!(positions.len(), 60);
    assert!(positions.is_sorted_by(|a, b| a < b), "positions rise: {positions:?}");
    let mut read: Vec<_> = (1..4).flat_map(|id| read_all(&engine, &orders(id))).map(|stored| stored.position).collect();
    read.sort_unstable();
    assert_eq!(read, positions);
}

/// A batch with an earlier time than its predecessor gets the predecessor's, whatever either of them holds.
pub fn stored_times_never_fall<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut seen = Vec::new();
    for millis in [10, 5, 20, 19, 21, 0] {
        let applied = engine.apply(batch(millis, &orders(0), vec![record("x")])).unwrap();
        seen.push(applied.stored_at);
    }
    assert_eq!(seen, [10, 10, 20, 20, 21, 21].map(at));
    let mut rows = WriteBatch::new(at(30));
    rows.put(&super::sample::ROWS, "k", "v");
    assert_eq!(engine.apply(rows).unwrap().stored_at, at(30));
    assert_eq!(engine.apply(batch(25, &orders(1), vec![record("x")])).unwrap().stored_at, at(30));
    let read: Vec<_> = read_all(&engine, &orders(0)).iter().map(|stored| stored.stored_at).collect();
    assert_eq!(read, seen);
    assert_eq!(read_all(&engine, &orders(1))[0].stored_at, at(30));
}

/// An empty batch writes nothing, moves no time on, and reports the mark that already holds.
pub fn an_empty_batch_changes_nothing<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mark = append_numbers(&engine, &orders(0), 0, 2).mark;
    let nothing = engine.apply(WriteBatch::new(at(1_000))).unwrap();
    assert_eq!(nothing.mark, mark);
    assert!(nothing.appends.is_empty() && nothing.positions.is_empty());
    let after = engine.apply(batch(1, &orders(0), vec![record("x")])).unwrap();
    assert_eq!(after.stored_at, at(1));
    assert_eq!(engine.queues().unwrap(), [(orders(0), offset(0)..offset(3))]);
}

/// A record without body and attributes is a record.
pub fn empty_bodies_are_kept<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    engine.apply(batch(0, &orders(0), vec![record(""), record("x"), record(""), record("")])).unwrap();
    assert_eq!(bodies(&engine, &orders(0)), ["", "x", "", ""]);
}

/// Bodies of 1 MiB and more come back whole, and so do their small neighbours.
pub fn large_bodies_are_kept<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let large = |bytes: usize, seed: u8| {
        let pattern = (0..bytes).map(|i| u8::try_from(i % 251).unwrap().wrapping_add(seed));
        Bytes::from(pattern.collect::<Vec<_>>())
    };
    let written = [Bytes::from("small"), large(1 << 20, 1), Bytes::from("between"), large((3 << 20) + 17, 2)];
    engine.apply(batch(0, &orders(0), written.iter().cloned().map(record).collect())).unwrap();
    engine.apply(batch(1, &orders(0), vec![record("after")])).unwrap();
    let read = read_all(&engine, &orders(0));
    assert_eq!(read.len(), 5);
    for (stored, body) in read.iter().zip(&written) {
        assert!(stored.record.body == *body, "the body at {} differs", stored.offset);
    }
    assert_eq!(read[4].record.body, "after");
}

/// Bodies may hold any bytes, runs of zeros and of ones among them.
pub fn bodies_of_all_bytes_are_kept<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let all: Vec<u8> = (0..=255).collect();
    let written = vec![vec![0; 300], all.clone(), vec![255; 300], all.into_iter().rev().collect(), vec![0]];
    engine.apply(batch(0, &orders(0), written.iter().cloned().map(record).collect())).unwrap();
    let read: Vec<_> = read_all(&engine, &orders(0)).iter().map(|stored| stored.record.body.to_vec()).collect();
    assert_eq!(read, written);
}

/// Tag, keys, sharding key and properties come back in their order, up to the largest block.
pub fn attributes_come_back<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let rich = attributes(|a| {
        a.tag("päid").key("k1").key("k2").sharding_key("s").property("a", "1").property("a", "2").property("b", "");
    });
    let fill = "x".repeat(MAX_ATTRIBUTES_BYTES - 5 - "name".len());
    let largest = attributes(|a| {
        a.property("name", &fill);
    });
    assert_eq!(largest.as_bytes().len(), MAX_ATTRIBUTES_BYTES);
    let longest_key = "k".repeat(MAX_KEY_BYTES);
    let long_key = attributes(|a| {
        a.key(&longest_key);
    });
    let written: Vec<_> =
        [rich, largest, long_key].into_iter().map(|block| record("body").with_attributes(block)).collect();
    engine.apply(batch(0, &orders(0), written.clone())).unwrap();
    let read: Vec<_> = read_all(&engine, &orders(0)).into_iter().map(|stored| stored.record).collect();
    assert!(read == written, "records with attributes differ");
    let fields: Vec<_> = read[0].attributes.iter().collect();
    assert_eq!(fields[..3], [Attribute::Tag("päid"), Attribute::Key("k1"), Attribute::Key("k2")]);
    assert_eq!(read[0].attributes.property("a"), Some("2"));
}

/// The producer's time is kept as it is, even where it makes no sense.
pub fn born_times_come_back<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let times = [Timestamp::MIN, Timestamp::from_millis(-1), Timestamp::from_millis(0), at(7), Timestamp::MAX];
    let records = times.iter().map(|born_at| Record::new("x", *born_at)).collect();
    engine.apply(batch(0, &orders(0), records)).unwrap();
    let read: Vec<_> = read_all(&engine, &orders(0)).iter().map(|stored| stored.record.born_at).collect();
    assert_eq!(read, times);
}

/// A thousand queues keep their records apart.
pub fn a_thousand_queues<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let key = |n: u64| queue_of(["a", "b", "a-b", "B"][usize::try_from(n % 4).unwrap()], u32::try_from(n).unwrap());
    for round in 0..2 {
        let mut wide = WriteBatch::new(at(round));
        for n in 0..1_000u64 {
            wide.append(&key(n), record(n.to_be_bytes().to_vec()));
        }
        assert_eq!(engine.apply(wide).unwrap().appends.len(), 1_000);
    }
    assert_eq!(engine.queues().unwrap().len(), 1_000);
    for n in (0..1_000).step_by(37) {
        assert_eq!(numbers(&read_all(&engine, &key(n))), [n, n]);
    }
}

/// A batch of ten thousand records is one batch like any other.
pub fn a_batch_of_ten_thousand<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 1);
    let applied = append_numbers(&engine, &orders(0), 1, 10_000);
    assert_eq!(applied.appends, [Appended { first: offset(1), count: 10_000 }]);
    assert_eq!(applied.positions.len(), 10_000);
    assert_eq!(numbers(&read_all(&engine, &orders(0))), (0..10_001).collect::<Vec<_>>());
}

/// The longest topic names and the highest queue id are stored, those of retry topics among them.
pub fn the_longest_names_are_kept<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let longest = "g".repeat(MAX_NAME_BYTES);
    let highest = QueueId::new(MAX_QUEUE_ID).unwrap();
    let retry = TopicName::retry_of(&GroupName::new(&longest).unwrap());
    for topic in [retry, TopicName::new(&longest).unwrap(), TopicName::new("%").unwrap()] {
        for id in [QueueId::FIRST, highest] {
            let key = QueueKey::new(topic.clone(), id);
            append_numbers(&engine, &key, 7, 1);
            assert_eq!(numbers(&read_all(&engine, &key)), [7]);
        }
    }
    assert_eq!(engine.queues().unwrap().len(), 6);
}

fn bodies(engine: &impl Engine, queue: &QueueKey) -> Vec<Bytes> {
    read_all(engine, queue).into_iter().map(|stored| stored.record.body).collect()
}

//! A write that touches everything, so that half of it can be told from all of it.

use crate::batch::{Applied, WriteBatch};
use crate::engine::Engine;
use crate::types::QueueKey;

use super::sample::{OTHER_ROWS, ROWS, at, attributes, numbers, offset, offsets, orders, queue_of, read_all, record};

const COUNT: &[u8] = b"count";

/// The queue that gets one record per round.
pub(super) fn single() -> QueueKey {
    orders(0)
}

/// The queue that gets two.
pub(super) fn double() -> QueueKey {
    queue_of("payments", 7)
}

/// The key under which the record of a round is found.
pub(super) fn key_of(round: u64) -> String {
    format!("round-{round}")
}

/// One record to one queue, two to another, a row, and a row that counts the rounds.
pub(super) fn round(round: u64) -> WriteBatch {
    let mut batch = WriteBatch::new(at(i64::try_from(round).unwrap()));
    let numbered = |n: u64| record(n.to_be_bytes().to_vec());
    let keyed = numbered(round).with_attributes(attributes(|a| {
        a.key(&key_of(round));
    }));
    batch.append(&single(), keyed).append_all(&double(), vec![numbered(round * 2), numbered(round * 2 + 1)]);
    batch.put(&ROWS, round.to_be_bytes().to_vec(), vec![7]).put(&OTHER_ROWS, COUNT, (round + 1).to_be_bytes().to_vec());
    batch
}

/// Writes rounds `from..to`.
pub(super) fn write(engine: &impl Engine, from: u64, to: u64) -> Vec<Applied> {
    (from..to).map(|n| engine.apply(round(n)).unwrap()).collect()
}

/// How many rounds the counting row knows of.
pub(super) fn counted(engine: &impl Engine) -> u64 {
    let row = engine.get(&OTHER_ROWS, COUNT).unwrap();
    row.map_or(0, |count| u64::from_be_bytes(count[..].try_into().unwrap()))
}

/// Asserts that rounds `0..n` are there, each whole and nothing else, and returns `n`.
pub(super) fn whole(engine: &impl Engine) -> u64 {
    let count = counted(engine);
    let singles = read_all(engine, &single());
    assert_eq!(numbers(&singles), (0..count).collect::<Vec<_>>());
    assert_eq!(offsets(&singles), (0..count).collect::<Vec<_>>());
    assert_eq!(numbers(&read_all(engine, &double())), (0..count * 2).collect::<Vec<_>>());
    let rows: Vec<_> = engine.scan(&ROWS, &[], None, usize::MAX).unwrap();
    let keys: Vec<_> = rows.iter().map(|(key, _)| u64::from_be_bytes(key[..].try_into().unwrap())).collect();
    assert_eq!(keys, (0..count).collect::<Vec<_>>());
    for (stored, millis) in singles.iter().zip(0..) {
        assert_eq!(stored.stored_at, at(millis));
        let located = engine.record_at(stored.position).unwrap().expect("a record that was just read");
        assert_eq!((&located.queue, &located.stored), (&single(), stored));
    }
    let listed = if count == 0 {
        Vec::new()
    } else {
        vec![(single(), offset(0)..offset(count)), (double(), offset(0)..offset(count * 2))]
    };
    assert_eq!(engine.queues().unwrap(), listed);
    count
}

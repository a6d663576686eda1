//! Look-up by position.

use super::Fixture;
use super::sample::{append_numbers, at, fresh, offset, orders, queue_of, read_all};
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::types::LogPosition;

/// Every position that was given leads to exactly its record, in whatever queue it lies.
pub fn every_position_leads_to_its_record<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let queues = [orders(0), queue_of("payments", 3), orders(1)];
    for round in 0..5 {
        for queue in &queues {
            append_numbers(&engine, queue, round * 3, 3);
        }
    }
    for queue in &queues {
        let all = read_all(&engine, queue);
        assert_eq!(all.len(), 15);
        for stored in all {
            let located = engine.record_at(stored.position).unwrap().expect("a position that was read");
            assert_eq!((&located.queue, &located.stored), (queue, &stored));
        }
    }
}

/// Where no record begins there is none: between positions, behind the last, in an empty store.
pub fn no_record_begins_elsewhere<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    assert_eq!(engine.record_at(LogPosition::new(0)).unwrap(), None);
    let positions = append_numbers(&engine, &orders(0), 0, 20).positions;
    let (first, last) = (positions[0].get(), positions[19].get());
    for between in (first.saturating_sub(3)..last + 200).map(LogPosition::new) {
        let found = engine.record_at(between).unwrap();
        assert_eq!(found.is_some(), positions.contains(&between), "at position {between}");
    }
    assert_eq!(engine.record_at(LogPosition::new((1 << 53) - 1)).unwrap(), None);
}

/// A trimmed record is not found by its position any more; its neighbours are.
pub fn trimmed_records_are_gone<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let positions = append_numbers(&engine, &orders(0), 0, 6).positions;
    let mut batch = WriteBatch::new(at(1));
    batch.trim(&orders(0), offset(4));
    engine.apply(batch).unwrap();
    for (position, n) in positions.into_iter().zip(0..) {
        assert_eq!(engine.record_at(position).unwrap().is_some(), n >= 4, "record {n}");
    }
}

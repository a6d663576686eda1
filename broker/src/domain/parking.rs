//! Pops that wait for messages: first come, first served within a pool, bounded in number and time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cuemq_storage_api::Timestamp;

use super::flight::PoolId;

/// Everybody who waits; `T` is what it takes to answer one.
#[derive(Debug)]
pub(crate) struct Parking<T> {
    most: usize,
    next: u64,
    waiting: BTreeMap<u64, Parked<T>>,
    by_pool: HashMap<PoolId, BTreeSet<u64>>,
    deadlines: BTreeSet<(Timestamp, u64)>,
}

#[derive(Debug)]
struct Parked<T> {
    pool: PoolId,
    until: Timestamp,
    wish: T,
}

impl<T> Parking<T> {
    /// Nobody waits, and never more than `most` will.
    #[must_use]
    pub(crate) fn new(most: usize) -> Self {
        Self { most, next: 0, waiting: BTreeMap::new(), by_pool: HashMap::new(), deadlines: BTreeSet::new() }
    }

    /// Has one wait; returns the one that waits longest when there is no room for both.
    pub(crate) fn park(&mut self, pool: PoolId, until: Timestamp, wish: T) -> Option<T> {
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert(ticket, Parked { pool, until, wish });
        self.by_pool.entry(pool).or_default().insert(ticket);
        self.deadlines.insert((until, ticket));
        if self.waiting.len() <= self.most {
            return None;
        }
        let oldest = self.waiting.first_key_value().map(|(ticket, _)| *ticket)?;
        self.leave(oldest)
    }

    /// Whether anybody waits for this pool.
    #[must_use]
    pub(crate) fn has(&self, pool: PoolId) -> bool {
        self.by_pool.contains_key(&pool)
    }

    /// The one that waits longest for this pool.
    pub(crate) fn first(&self, pool: PoolId) -> Option<&T> {
        let ticket = self.by_pool.get(&pool)?.first()?;
        self.waiting.get(ticket).map(|parked| &parked.wish)
    }

    /// Takes the one that waits longest for this pool.
    pub(crate) fn take_first(&mut self, pool: PoolId) -> Option<T> {
        let ticket = self.by_pool.get(&pool)?.first().copied()?;
        self.leave(ticket)
    }

    /// Takes the next one whose time is over.
    pub(crate) fn take_expired(&mut self, now: Timestamp) -> Option<(PoolId, T)> {
        let (_, ticket) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)?;
        let pool = self.waiting.get(&ticket)?.pool;
        self.leave(ticket).map(|wish| (pool, wish))
    }

    /// When the next one has waited long enough.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes all of them, the one that waits longest first.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.by_pool.clear();
        self.deadlines.clear();
        std::mem::take(&mut self.waiting).into_values().map(|parked| parked.wish).collect()
    }

    fn leave(&mut self, ticket: u64) -> Option<T> {
        let Parked { pool, until, wish } = self.waiting.remove(&ticket)?;
        self.deadlines.remove(&(until, ticket));
        if let Some(tickets) = self.by_pool.get_mut(&pool) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.by_pool.remove(&pool);
            }
        }
        Some(wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PoolId = PoolId(1);
    const B: PoolId = PoolId(2);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn first_come_first_served_within_a_pool() {
        let mut parking = Parking::new(9);
        for (pool, until, name) in [(A, 9, "a1"), (B, 3, "b1"), (A, 1, "a2")] {
            assert_eq!(parking.park(pool, at(until), name), None);
        }
        assert_eq!(parking.first(A), Some(&"a1"));
        assert_eq!(parking.take_first(A), Some("a1"));
        assert_eq!(parking.first(A), Some(&"a2"));
        assert_eq!(parking.take_first(A), Some("a2"));
        assert_eq!((parking.take_first(A), parking.has(A), parking.has(B)), (None, false, true));
        assert_eq!((parking.take_all(), parking.next_deadline()), (vec!["b1"], None));
    }

    #[test]
    fn whoever_waited_long_enough_is_told() {
        let mut parking = Parking::new(9);
        for (until, name) in [(9, "late"), (3, "soon"), (3, "soon too")] {
            parking.park(A, at(until), name);
        }
        assert_eq!((parking.take_expired(at(2)), parking.next_deadline()), (None, Some(at(3))));
        assert_eq!(parking.take_expired(at(3)), Some((A, "soon")));
        assert_eq!(parking.take_expired(at(3)), Some((A, "soon too")));
        assert_eq!((parking.take_expired(at(3)), parking.next_deadline()), (None, Some(at(9))));
    }

    #[test]
    fn the_longest_waiting_makes_room() {
        let mut parking = Parking::new(2);
        assert_eq!(parking.park(A, at(9), 1), None);
        assert_eq!(parking.park(B, at(1), 2), None);
        assert_eq!(parking.park(B, at(1), 3), Some(1));
        assert!(!parking.has(A));
        assert_eq!(parking.take_all(), [2, 3]);
    }
}

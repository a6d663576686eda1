use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::domain::routing::{QueueCount, by_sharding_key};

fn queue(id: usize) -> QueueId {
    QueueId::new(u32::try_from(id).unwrap()).unwrap()
}

fn change(ends: &[u64]) -> QueueChange {
    QueueChange::new(ends.iter().copied().map(QueueOffset::new).collect())
}

fn done(committed: &[u64]) -> impl Fn(QueueId) -> QueueOffset {
    move |queue| QueueOffset::new(committed.get(queue.get() as usize).copied().unwrap_or(0))
}

fn limits(fences: &Fences, queues: usize) -> Vec<Option<u64>> {
    (0..queues).map(|id| fences.limit(queue(id)).map(QueueOffset::get)).collect()
}

#[test]
fn each_change_opens_when_everything_before_it_is_done() {
    let changes = [change(&[3, 2]), change(&[5, 2, 4])];
    let mut fences = Fences::new(changes.clone().into(), None);
    assert_eq!(limits(&fences, 3), [Some(3), Some(2), Some(0)], "the new queue waits");
    assert!(!fences.advance(done(&[3, 1])));
    assert_eq!(limits(&fences, 3), [Some(3), Some(2), Some(0)]);
    assert!(fences.advance(done(&[3, 2])));
    assert_eq!((limits(&fences, 4), fences.passed), (vec![Some(5), Some(2), Some(4), Some(0)], 1));
    assert!(!fences.advance(done(&[5, 2, 3])));
    assert!(fences.advance(done(&[5, 2, 4])));
    assert_eq!((limits(&fences, 4), fences.are_open()), (vec![None; 4], true));
    assert_eq!([[0; 3], [3, 2, 0], [5, 2, 4]].map(|committed| passed(&changes, done(&committed))), [0, 1, 2]);
}

#[test]
fn a_change_that_is_being_made_stops_at_what_can_be_seen() {
    let mut fences = Fences::new([change(&[3])].into(), Some(change(&[4, 0])));
    assert_eq!(limits(&fences, 2), [Some(3), Some(0)]);
    assert!(fences.advance(done(&[9])));
    assert_eq!((limits(&fences, 2), fences.are_open()), (vec![Some(4), Some(0)], false));
}

#[test]
fn a_change_of_empty_queues_stops_nobody() {
    let mut fences = Fences::new([change(&[0, 0])].into(), None);
    assert!(fences.advance(done(&[])) && fences.are_open());
}

/// A topic under changes and its consumers, which take one message of a queue at a time.
#[derive(Default)]
struct World {
    written: u32,
    queues: Vec<Vec<(u8, u32)>>,
    sent: BTreeMap<u8, u32>,
    changes: Vec<QueueChange>,
    /// Per queue: how many are done, and whether the next one is with a handler.
    consumed: Vec<(usize, bool)>,
    completed: BTreeMap<u8, Vec<u32>>,
}

impl World {
    fn set_queues(&mut self, count: u32) {
        if self.written != 0 {
            let ends = self.queues.iter().map(|queue| QueueOffset::new(queue.len() as u64)).collect();
            self.changes.push(QueueChange::new(ends));
        }
        self.written = count;
        let readable = self.queues.len().max(count as usize);
        self.queues.resize_with(readable, Vec::new);
        self.consumed.resize(readable, (0, false));
    }

    fn send(&mut self, key: u8) {
        let number = self.sent.entry(key).or_default();
        let at = by_sharding_key(&key.to_string(), QueueCount::new(self.written).unwrap());
        self.queues[at.get() as usize].push((key, *number));
        *number += 1;
    }

    /// Gives out the next message of a queue, or completes the one that is out.
    fn consume(&mut self, at: usize, fenced: bool) -> bool {
        let at = at % self.queues.len();
        let (next, out) = self.consumed[at];
        let Some((key, number)) = self.queues[at].get(next).copied() else { return false };
        if out {
            self.completed.entry(key).or_default().push(number);
            self.consumed[at] = (next + 1, false);
            return true;
        }
        let mut fences = Fences::new(self.changes.clone().into(), None);
        fences.advance(|queue| QueueOffset::new(self.consumed[queue.get() as usize].0 as u64));
        if fenced && fences.limit(queue(at)).is_some_and(|limit| QueueOffset::new(next as u64) >= limit) {
            return false;
        }
        self.consumed[at] = (next, true);
        true
    }

    fn consume_everything(&mut self, fenced: bool) {
        while (0..self.queues.len()).rev().any(|at| self.consume(at, fenced)) {}
    }

    fn in_order(&self) -> bool {
        self.sent.iter().all(|(key, sent)| self.completed.get(key).is_some_and(|all| all.iter().copied().eq(0..*sent)))
    }
}

/// Without fences a key's newer messages overtake: the test below would see that.
#[test]
fn without_fences_the_order_breaks() {
    let run = |fenced: bool| {
        let mut world = World::default();
        for count in [4, 16, 4, 3] {
            world.set_queues(count);
            (0..4).for_each(|_| (0..20).for_each(|key| world.send(key)));
        }
        world.consume_everything(fenced);
        world.in_order()
    };
    assert!(run(true), "with fences everything comes, each key in order");
    assert!(!run(false));
}

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    SetQueues(u32),
    Consume(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u8..12).prop_map(Step::Send),
        1 => (1u32..12).prop_map(Step::SetQueues),
        16 => (0usize..12).prop_map(Step::Consume),
    ]
}

proptest! {
    #[test]
    fn each_key_is_consumed_in_its_order(steps in prop::collection::vec(any_step(), 0..300)) {
        let mut world = World::default();
        world.set_queues(3);
        for step in steps {
            match step {
                Step::Send(key) => world.send(key),
                Step::SetQueues(count) => world.set_queues(count),
                Step::Consume(at) => drop(world.consume(at, true)),
            }
        }
        world.consume_everything(true);
        prop_assert!(world.in_order(), "nothing is stuck, and each key is in order");
    }
}

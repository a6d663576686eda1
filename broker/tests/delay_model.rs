//! Random lives of delayed messages against a plain model: sent, moved, taken back, over clock steps and restarts.
//! After every step the queue holds exactly what was due, none early, ordered by due time.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::{Kind, Store};
use common::{Settler, manual_clock, read_all, run};
use cuemq::{Broker, ManualClock, Recalled, Rescheduled, ScheduledId, Timestamp, TopicSpec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[derive(Clone, Copy, Debug)]
enum Step {
    Send { after_ms: u64 },
    Recall { which: usize },
    Reschedule { which: usize, after_ms: u64 },
    Advance { ms: u64 },
    Restart { down_ms: u64, kill: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    // Short times, so that many meet; and one of ten years.
    let after = || prop_oneof![20 => 0u64..40, 1 => Just(10 * 365 * 24 * 3_600_000)];
    prop_oneof![
        6 => after().prop_map(|after_ms| Step::Send { after_ms }),
        2 => (0usize..20).prop_map(|which| Step::Recall { which }),
        2 => (0usize..20, after()).prop_map(|(which, after_ms)| Step::Reschedule { which, after_ms }),
        4 => (0u64..20).prop_map(|ms| Step::Advance { ms }),
        1 => (0u64..60, any::<bool>()).prop_map(|(down_ms, kill)| Step::Restart { down_ms, kill }),
    ]
}

/// What has to happen.
#[derive(Default)]
struct Model {
    /// The message and its id by due time and order of its scheduling.
    waiting: BTreeMap<(Timestamp, u64), (u64, ScheduledId)>,
    ids: Vec<(ScheduledId, u64)>,
    delivered: Vec<(u64, Timestamp)>,
    sent: u64,
    scheduled: u64,
}

impl Model {
    fn schedule(&mut self, id: ScheduledId, number: u64) {
        self.waiting.insert((id.due(), self.scheduled), (number, id));
        self.ids.push((id, number));
        self.scheduled += 1;
    }

    fn deliver(&mut self, now: Timestamp) {
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) {
            let due = first.key().0;
            self.delivered.push((first.remove().0, due));
        }
    }

    /// Takes a message out; whether it waited under this id.
    fn take(&mut self, id: ScheduledId) -> bool {
        let key = self.waiting.iter().find(|(_, (_, known))| *known == id).map(|(key, _)| *key);
        key.is_some_and(|key| self.waiting.remove(&key).is_some())
    }
}

async fn play(kind: Kind, steps: Vec<Step>) {
    let (store, clock, mut model) = (Store::new(kind), manual_clock(), Model::default());
    let mut broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut settler = Settler::new(&broker, &clock).await;
    for step in steps {
        if let Step::Restart { down_ms, kill } = step {
            if kill {
                store.kill(broker).await;
            } else {
                broker.shutdown().await.unwrap();
            }
            clock.advance(Duration::from_millis(down_ms));
            broker = store.open_at(&clock).await;
            settler = Settler::new(&broker, &clock).await;
        } else {
            act(step, &broker, &clock, &mut model).await;
        }
        settler.settle().await;
        model.deliver(clock.now());
        let found = read_all(&broker, "orders").await;
        let numbers: Vec<u64> = found.iter().map(number_of).collect();
        let expected: Vec<u64> = model.delivered.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, expected, "after {step:?}");
        for (message, (number, due)) in found.iter().zip(&model.delivered) {
            assert!(message.stored_at() >= *due, "message {number} was early");
        }
    }
    broker.shutdown().await.unwrap();
}

async fn act(step: Step, broker: &Broker, clock: &ManualClock, model: &mut Model) {
    match step {
        Step::Send { after_ms } => {
            let message = numbered(model.sent).delay(Duration::from_millis(after_ms));
            let receipt = broker.producer("orders").await.unwrap().send(message).await.unwrap();
            model.schedule(receipt.scheduled.unwrap(), model.sent);
            model.sent += 1;
        }
        Step::Recall { which } => {
            if let Some((id, _)) = model.ids.get(which % model.ids.len().max(1)).copied() {
                let waited = model.take(id);
                let expected = if waited { Recalled::Recalled } else { Recalled::NotWaiting };
                assert_eq!(broker.recall(&id).await.unwrap(), expected);
            }
        }
        Step::Reschedule { which, after_ms } => {
            if let Some((id, number)) = model.ids.get(which % model.ids.len().max(1)).copied() {
                let at = clock.now().plus(Duration::from_millis(after_ms));
                let waited = model.take(id);
                match broker.reschedule(&id, at).await.unwrap() {
                    Rescheduled::Rescheduled(id) if waited => model.schedule(id, number),
                    Rescheduled::NotWaiting if !waited => {}
                    other => panic!("{other:?}, though it waited: {waited}"),
                }
            }
        }
        Step::Advance { ms } => clock.advance(Duration::from_millis(ms)),
        Step::Restart { .. } => {}
    }
}

fn check(kind: Kind, cases: u32) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(any_step(), 1..60);
    TestRunner::new(config)
        .run(&steps, |steps| {
            run(play(kind, steps));
            Ok(())
        })
        .unwrap();
}

#[test]
fn memory() {
    check(Kind::Memory, 48);
}

#[test]
fn mmap() {
    check(Kind::Mmap, 4);
}

#[test]
fn lsm() {
    check(Kind::Lsm, 4);
}

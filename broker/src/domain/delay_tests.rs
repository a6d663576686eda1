use proptest::prelude::*;

use super::DelayEffect::Refill;
use super::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn timer(due: i64, sequence: u64) -> TimerKey {
    TimerKey::new(at(due), sequence)
}

/// A schedule that has read an empty table.
fn empty() -> DelaySchedule {
    let mut out = Vec::new();
    let mut schedule = DelaySchedule::start(&mut out);
    assert_eq!(out, [Refill { from: TimerKey::FIRST, limit: REFILL_TIMERS }]);
    schedule.refill(&[], true, &mut out);
    assert_eq!(out.len(), 1, "all is in memory, nothing more to read");
    schedule
}

#[test]
fn never_early_and_in_due_order() {
    let mut schedule = empty();
    let mut out = Vec::new();
    for key in [timer(30, 1), timer(10, 2), timer(20, 4), timer(20, 3)] {
        schedule.schedule(key);
    }
    assert_eq!(schedule.next_wakeup(), Some(at(10)));
    assert_eq!(schedule.due(at(9), 10, &mut out), []);
    assert_eq!(schedule.due(at(20), 2, &mut out), [timer(10, 2), timer(20, 3)], "ties by number, at most the limit");
    assert_eq!(schedule.due(at(20), 2, &mut out), [timer(20, 4)]);
    assert_eq!(schedule.next_wakeup(), Some(at(30)));
    assert!(schedule.cancel(timer(30, 1), &mut out) && !schedule.cancel(timer(30, 1), &mut out));
    assert_eq!((schedule.next_wakeup(), out), (None, vec![]));
}

#[test]
fn overdue_timers_drain_after_a_restart() {
    let (mut out, mut schedule) = (Vec::new(), empty());
    for sequence in 0..100 {
        schedule.schedule(timer(-5, sequence));
    }
    assert_eq!(schedule.due(at(1_000_000), 1000, &mut out).len(), 100);
    assert_eq!(schedule.window.len(), 0);
}

#[test]
fn what_lies_beyond_the_window_is_not_kept_and_comes_back() {
    let mut out = Vec::new();
    let mut schedule = DelaySchedule::with_capacity(4, &mut out);
    schedule.refill(&[timer(1, 0), timer(2, 0), timer(3, 0), timer(4, 0)], false, &mut out);
    schedule.schedule(timer(9, 0));
    assert_eq!(schedule.window.len(), 4, "9 is behind the horizon");
    schedule.schedule(timer(0, 0));
    assert_eq!((schedule.window.len(), schedule.horizon), (4, Some(timer(4, 0))), "4 made room for 0");
    out.clear();
    assert_eq!(schedule.due(at(2), 10, &mut out), [timer(0, 0), timer(1, 0), timer(2, 0)]);
    assert_eq!(out, [Refill { from: timer(4, 0), limit: 4 }]);
    schedule.refill(&[timer(4, 0), timer(9, 0)], true, &mut out);
    assert_eq!(schedule.due(at(9), 10, &mut out), [timer(3, 0), timer(4, 0), timer(9, 0)]);
    assert_eq!(out.len(), 1);
}

#[test]
fn changes_during_a_refill_count() {
    let mut out = Vec::new();
    let mut schedule = DelaySchedule::with_capacity(8, &mut out);
    schedule.schedule(timer(5, 0));
    schedule.cancel(timer(7, 0), &mut out);
    assert_eq!(schedule.next_wakeup(), None, "the first rows are not there yet");
    schedule.refill(&[timer(6, 0), timer(7, 0)], true, &mut out);
    assert_eq!(schedule.due(at(9), 9, &mut out), [timer(5, 0), timer(6, 0)]);
}

#[test]
fn a_cancellation_during_a_refill_that_is_taken_back_counts_too() {
    let mut out = Vec::new();
    let mut schedule = DelaySchedule::with_capacity(8, &mut out);
    schedule.cancel(timer(7, 0), &mut out);
    schedule.schedule(timer(7, 0));
    schedule.refill(&[timer(7, 0)], true, &mut out);
    assert_eq!(schedule.due(at(9), 9, &mut out), [timer(7, 0)]);
}

#[test]
fn a_window_that_overflows_during_a_refill_misses_nothing() {
    let mut out = Vec::new();
    let mut schedule = DelaySchedule::with_capacity(2, &mut out);
    schedule.refill(&[timer(10, 0), timer(20, 0)], false, &mut out);
    assert_eq!(schedule.due(at(20), 9, &mut out), [timer(10, 0), timer(20, 0)]);
    assert_eq!(out.pop(), Some(Refill { from: timer(20, 1), limit: 2 }));
    for key in [timer(20, 0), timer(13, 0), timer(12, 0)] {
        schedule.schedule(key);
    }
    assert_eq!(schedule.horizon, Some(timer(20, 0)), "20 made room for 12");
    schedule.refill(&[timer(30, 0)], true, &mut out);
    assert_eq!(schedule.due(at(30), 9, &mut out), [timer(12, 0), timer(13, 0)], "not 30 before 20");
    assert_eq!(out.pop(), Some(Refill { from: timer(20, 0), limit: 2 }));
    schedule.refill(&[timer(20, 0), timer(30, 0)], false, &mut out);
    assert_eq!(schedule.due(at(30), 9, &mut out), [timer(20, 0), timer(30, 0)]);
}

#[test]
fn rows_that_nobody_asked_for_change_nothing() {
    let (mut out, mut schedule) = (Vec::new(), empty());
    schedule.refill(&[timer(2, 2)], true, &mut out);
    assert_eq!((out, schedule.window.len()), (vec![], 0));
}

#[test]
fn keys_are_followed_without_a_gap() {
    assert_eq!(timer(1, 7).next(), Some(timer(1, 8)));
    assert_eq!(timer(1, u64::MAX).next(), Some(timer(2, 0)));
    assert_eq!(TimerKey::new(Timestamp::MAX, u64::MAX).next(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Schedule(i64),
    Cancel(usize),
    Due { wait: i64, limit: usize },
    Scan,
    Answer,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (-5i64..40).prop_map(Step::Schedule),
        3 => (0usize..20).prop_map(Step::Cancel),
        5 => (0i64..8, 0usize..6).prop_map(|(wait, limit)| Step::Due { wait, limit }),
        4 => Just(Step::Scan),
        4 => Just(Step::Answer),
    ]
}

/// The whole table as the engine has it, and a scan that may have read before later changes.
struct World {
    schedule: DelaySchedule,
    stored: BTreeSet<TimerKey>,
    asked: Option<(TimerKey, usize)>,
    scanned: Option<(Vec<TimerKey>, bool)>,
    out: Vec<DelayEffect>,
    now: i64,
    sequence: u64,
}

impl World {
    fn new(max_in_memory: usize, stored: BTreeSet<TimerKey>) -> Self {
        let mut out = Vec::new();
        let schedule = DelaySchedule::with_capacity(max_in_memory, &mut out);
        let mut world = Self { schedule, stored, asked: None, scanned: None, out, now: 0, sequence: 1000 };
        world.note_requests();
        world
    }

    fn note_requests(&mut self) {
        for Refill { from, limit } in self.out.drain(..) {
            assert_eq!(self.asked.replace((from, limit)), None, "one refill at a time");
        }
    }

    fn scan(&mut self) {
        if let (Some((from, limit)), None) = (self.asked, &self.scanned) {
            let rows: Vec<TimerKey> = self.stored.range(from..).take(limit).copied().collect();
            let complete = rows.len() < limit;
            self.scanned = Some((rows, complete));
        }
    }

    fn answer(&mut self) {
        if let Some((rows, complete)) = self.scanned.take() {
            self.asked = None;
            self.schedule.refill(&rows, complete, &mut self.out);
        }
    }

    fn due(&mut self, limit: usize) -> usize {
        let due = self.schedule.due(at(self.now), limit, &mut self.out);
        let first: Vec<TimerKey> =
            self.stored.iter().take_while(|timer| timer.due <= at(self.now)).take(due.len()).copied().collect();
        assert_eq!(due, first, "the earliest there are, none before its time, none twice");
        for timer in &due {
            self.stored.remove(timer);
        }
        due.len()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Schedule(due) => {
                self.sequence += 1;
                let timer = timer(self.now + due, self.sequence);
                self.stored.insert(timer);
                self.schedule.schedule(timer);
            }
            Step::Cancel(n) => {
                if let Some(timer) = self.stored.iter().nth(*n).copied() {
                    self.stored.remove(&timer);
                    self.schedule.cancel(timer, &mut self.out);
                }
            }
            Step::Due { wait, limit } => {
                self.now += wait;
                self.due(*limit);
            }
            Step::Scan => self.scan(),
            Step::Answer => self.answer(),
        }
        self.note_requests();
        assert!(self.schedule.window.len() <= self.schedule.max_in_memory);
        let wakeup = self.schedule.next_wakeup();
        assert!(wakeup.is_some() || self.asked.is_some() || self.stored.is_empty(), "nothing would wake it");
    }
}

proptest! {
    #[test]
    fn equals_a_sorted_set(
        max_in_memory in 1usize..8,
        before in prop::collection::btree_set(0i64..40, 0..20),
        steps in prop::collection::vec(any_step(), 0..120),
    ) {
        let stored = before.into_iter().map(|due| timer(due, 0)).collect();
        let mut world = World::new(max_in_memory, stored);
        for step in &steps {
            world.take(step);
        }
        world.now += 1000;
        let mut rounds = 0;
        while !world.stored.is_empty() {
            world.take(&Step::Scan);
            world.take(&Step::Answer);
            world.due(100);
            world.note_requests();
            rounds += 1;
            prop_assert!(rounds < 1000, "{} timers were lost", world.stored.len());
        }
    }
}

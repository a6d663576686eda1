//! Whatever the interleaving: the committed transactions have seen and done what they would have in the order of their
//! commits, one after the other.

use std::cell::RefCell;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

const TABLE: Table = Table::named("app.t");

/// Rows in memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Memory(RefCell<WriteSet>);

impl Memory {
    fn of(rows: &[(&str, &str)]) -> Self {
        let memory = Self::default();
        for (key, value) in rows {
            memory.0.borrow_mut().set(&TABLE, text(key), Some(text(value)));
        }
        memory
    }

    fn apply(&self, writes: &WriteSet) {
        self.0.borrow_mut().absorb(writes);
    }

    fn rows(&self) -> Vec<Row> {
        self.scan(&TABLE, b"", None, usize::MAX).unwrap()
    }
}

impl Rows for Memory {
    type Error = Infallible;

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>, Infallible> {
        Ok(self.0.borrow().written(table, key).cloned().flatten())
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, Infallible> {
        let rows = self.0.borrow();
        let all = rows.within(table, from, to).filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
        Ok(all.take(limit).collect())
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn commits(round: &mut Round, memory: &Memory, view: &View) -> bool {
    round.admit(memory, view, false).unwrap()
}

#[test]
fn own_writes_are_seen_and_leave_no_reads() {
    let (memory, mut view) = (Memory::of(&[("b", "1"), ("d", "2")]), View::default());
    view.set(&TABLE, text("a"), Some(text("own")));
    view.set(&TABLE, text("b"), None);
    view.set(&TABLE, text("d"), Some(text("over")));
    assert_eq!(view.get(&memory, &TABLE, b"a").unwrap(), Some(text("own")));
    assert_eq!(view.get(&memory, &TABLE, b"b").unwrap(), None);
    assert!(view.reads().is_empty());
    let (rows, looked_at) = view.scan(&memory, &TABLE, b"", None, 9).unwrap();
    assert_eq!(rows, [(text("a"), text("own")), (text("d"), text("over"))]);
    assert_eq!(looked_at, 2);
    let mut round = Round::default();
    assert!(commits(&mut round, &memory, &view));
}

#[test]
fn what_changed_since_it_was_read_is_a_conflict() {
    for (key, value, again) in [
        ("a", Some("2"), true),
        ("a", None, true),
        ("absent", Some("2"), true),
        ("untouched", Some("2"), false),
        ("a", Some("1"), false),
    ] {
        let (memory, mut view) = (Memory::of(&[("a", "1")]), View::default());
        view.get(&memory, &TABLE, b"a").unwrap();
        view.get(&memory, &TABLE, b"absent").unwrap();
        let mut other = View::default();
        other.set(&TABLE, text(key), value.map(text));
        let mut round = Round::default();
        assert!(commits(&mut round, &memory, &other), "it read nothing");
        assert_eq!(!commits(&mut round, &memory, &view), again, "before it in the round: {key}");
        memory.apply(other.writes());
        assert_eq!(!commits(&mut Round::default(), &memory, &view), again, "stored before it: {key}");
    }
}

#[test]
fn one_that_only_looks_leaves_nothing_in_the_round() {
    let (memory, mut view) = (Memory::default(), View::default());
    view.get(&memory, &TABLE, b"a").unwrap();
    view.set(&TABLE, text("a"), Some(text("1")));
    let mut round = Round::default();
    assert!(round.admit(&memory, &view, true).unwrap());
    assert!(commits(&mut round, &memory, &view), "a is as before");
    assert!(!commits(&mut round, &memory, &view), "now it is not");
}

#[test]
fn a_row_that_appears_in_a_scanned_range_is_a_conflict() {
    let rows = [("b", "1"), ("d", "1"), ("f", "1"), ("h", "1")];
    for (from, to, limit, key, again) in [
        ("a", Some("g"), 9, "c", true),
        ("a", Some("g"), 9, "f0", true),
        ("a", Some("g"), 9, "g", false),
        ("a", Some("g"), 9, "9", false),
        ("a", Some("g"), 2, "c", true),
        ("a", Some("g"), 2, "d0", false),
        ("a", None, 9, "z", true),
        ("a", None, 4, "z", false),
        ("a", None, 0, "a", false),
        ("g", Some("b"), 9, "c", false),
    ] {
        let (memory, mut view) = (Memory::of(&rows), View::default());
        view.scan(&memory, &TABLE, from.as_bytes(), to.map(str::as_bytes), limit).unwrap();
        let mut other = View::default();
        other.set(&TABLE, text(key), Some(text("new")));
        let mut round = Round::default();
        assert!(commits(&mut round, &memory, &other));
        assert_eq!(!commits(&mut round, &memory, &view), again, "{from}..{to:?} most {limit}, then {key}");
    }
}

#[test]
fn a_row_that_goes_from_a_scanned_range_is_a_conflict() {
    let (memory, mut view) = (Memory::of(&[("a", "1"), ("b", "1")]), View::default());
    view.scan(&memory, &TABLE, b"a", None, 9).unwrap();
    let mut other = View::default();
    other.set(&TABLE, text("b"), None);
    memory.apply(other.writes());
    assert!(!commits(&mut Round::default(), &memory, &view));
}

#[test]
fn long_ranges_are_read_page_by_page() {
    let memory = Memory::default();
    let key = |n: usize| Bytes::from(format!("{n:06}"));
    for n in 0..PAGE_ROWS * 2 + 10 {
        memory.0.borrow_mut().set(&TABLE, key(n), Some(text("x")));
    }
    let mut view = View::default();
    // Own deletions make the merged pages shorter than those read.
    for n in 0..PAGE_ROWS + 5 {
        view.set(&TABLE, key(n), None);
    }
    let (rows, _) = view.scan(&memory, &TABLE, b"", None, 3).unwrap();
    assert_eq!(rows.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), [5, 6, 7].map(|n| key(PAGE_ROWS + n)));
    let (rows, _) = view.scan(&memory, &TABLE, b"", None, usize::MAX).unwrap();
    assert_eq!(rows.len(), PAGE_ROWS + 5);
}

/// One step of a program whose writes depend on everything that it has read.
#[derive(Clone, Debug)]
enum Step {
    Get(u8),
    Put(u8),
    Delete(u8),
    Scan(u8, u8, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..6).prop_map(Step::Get),
        (0u8..6).prop_map(Step::Put),
        (0u8..6).prop_map(Step::Delete),
        (0u8..6, 0u8..7, 0usize..4).prop_map(|(from, to, limit)| Step::Scan(from, to, limit)),
    ]
}

/// A program on its way.
#[derive(Clone, Debug, Default)]
struct Running {
    view: View,
    at: usize,
    /// A number that every read changes.
    seen: u64,
    waits: bool,
}

impl Running {
    fn step(&mut self, rows: &Memory, program: &[Step], number: usize) {
        let mut note = |value: &[u8]| {
            for byte in value.iter().chain(&[255]) {
                self.seen = self.seen.wrapping_mul(31).wrapping_add(u64::from(*byte) + 1);
            }
        };
        match &program[self.at] {
            Step::Get(key) => note(&self.view.get(rows, &TABLE, &[*key]).unwrap().unwrap_or_default()),
            Step::Put(key) => {
                let value = format!("{number}.{}", self.seen);
                self.view.set(&TABLE, Bytes::copy_from_slice(&[*key]), Some(value.into()));
            }
            Step::Delete(key) => self.view.set(&TABLE, Bytes::copy_from_slice(&[*key]), None),
            Step::Scan(from, to, limit) => {
                let (found, _) = self.view.scan(rows, &TABLE, &[*from], Some(&[*to]), *limit).unwrap();
                for (key, value) in found {
                    note(&key);
                    note(&value);
                }
            }
        }
        self.at += 1;
    }
}

proptest! {
    /// Programs run step by step beside each other and commit in rounds. Replayed one after the other in the order of
    /// their commits, each sees and writes the same.
    #[test]
    fn equals_the_order_of_the_commits(
        programs in prop::collection::vec(prop::collection::vec(any_step(), 1..6), 1..7),
        schedule in prop::collection::vec(0usize..9, 0..150),
    ) {
        let memory = Memory::of(&[("\u{1}", "one"), ("\u{3}", "three")]);
        let before = memory.clone();
        let mut running = vec![Running::default(); programs.len()];
        let mut committed: Vec<(usize, Running)> = Vec::new();
        let rounds = std::iter::repeat_n(8usize, 40);
        let rest = (0..40).flat_map(|_| (0..programs.len()).cycle().take(programs.len() * 5).chain([8]));
        for event in schedule.into_iter().chain(rest).chain(rounds) {
            if event >= programs.len() {
                let mut round = Round::default();
                let mut writes = Vec::new();
                for (number, program) in running.iter_mut().enumerate().take(programs.len()) {
                    if !program.waits {
                        continue;
                    }
                    if commits(&mut round, &memory, &program.view) {
                        writes.push(program.view.writes().clone());
                        committed.push((number, program.clone()));
                        program.waits = false;
                    } else {
                        *program = Running::default();
                    }
                }
                writes.iter().for_each(|writes| memory.apply(writes));
                continue;
            }
            let (program, run) = (&programs[event], &mut running[event]);
            if run.at < program.len() {
                run.step(&memory, program, event);
                run.waits = run.at == program.len();
            }
        }
        prop_assert_eq!(committed.len(), programs.len(), "each commits, because each runs alone in the end");
        let serial = before;
        for (number, ran) in &committed {
            let mut alone = Running::default();
            while alone.at < programs[*number].len() {
                alone.step(&serial, &programs[*number], *number);
            }
            prop_assert_eq!((alone.seen, alone.view.writes()), (ran.seen, ran.view.writes()), "program {}", number);
            serial.apply(alone.view.writes());
        }
        prop_assert_eq!(serial.rows(), memory.rows());
    }
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::Decision::{Commit, Rollback};
use super::TransactionEffect::{Check, Finish, Forget, GiveUp};
use super::*;

const T1: TransactionId = TransactionId(1);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn group() -> GroupName {
    GroupName::new("payments").unwrap()
}

fn settings() -> TransactionSettings {
    TransactionSettings {
        first_check_after: Duration::from_secs(6),
        check_interval: Duration::from_secs(30),
        max_checks: 15,
        max_open: 4,
    }
}

fn begun() -> Transactions {
    let mut transactions = Transactions::new(settings());
    assert_eq!(transactions.begin(T1, group(), at(0)), Ok(at(6)));
    transactions
}

#[derive(Clone, Copy, Debug)]
enum State {
    Unknown,
    Open,
    Deciding(Decision),
    Decided(Decision),
    GivingUp,
    GivenUp,
}

fn in_state(state: State) -> Transactions {
    let mut transactions = begun();
    let mut out = Vec::new();
    match state {
        State::Unknown => transactions.abandon(T1),
        State::Open => {}
        State::Deciding(decision) => {
            transactions.end(T1, decision, &mut out).unwrap();
        }
        State::Decided(decision) => {
            transactions.end(T1, decision, &mut out).unwrap();
            transactions.decided(T1, at(1), &mut out);
        }
        State::GivingUp | State::GivenUp => {
            transactions = Transactions::new(settings());
            transactions.restore_half(T1, group(), 15, at(0));
            transactions.tick(at(0), 10, &mut out);
            assert_eq!(out, [GiveUp { transaction: T1 }]);
            if matches!(state, State::GivenUp) {
                transactions.decided(T1, at(1), &mut out);
            }
        }
    }
    transactions
}

#[test]
fn the_first_decision_stands() {
    use State::{Decided, Deciding, GivenUp, GivingUp, Open, Unknown};
    let conflict = |first| Err(EndRefused::Conflict { first });
    for (state, commit, rollback) in [
        (Unknown, Err(EndRefused::Unknown), Err(EndRefused::Unknown)),
        (Open, Ok(Ending::Started), Ok(Ending::Started)),
        (Deciding(Commit), Ok(Ending::UnderWay), conflict(Commit)),
        (Deciding(Rollback), conflict(Rollback), Ok(Ending::UnderWay)),
        (Decided(Commit), Ok(Ending::Already), conflict(Commit)),
        (Decided(Rollback), conflict(Rollback), Ok(Ending::Already)),
        (GivingUp, conflict(Rollback), Ok(Ending::UnderWay)),
        (GivenUp, conflict(Rollback), Ok(Ending::Already)),
    ] {
        for (decision, expected) in [(Commit, commit), (Rollback, rollback)] {
            let mut out = Vec::new();
            let mut transactions = in_state(state);
            assert_eq!(transactions.end(T1, decision, &mut out), expected, "{state:?}, {decision:?}");
            let finish = Finish { transaction: T1, decision };
            let effects = if expected == Ok(Ending::Started) { vec![finish] } else { vec![] };
            assert_eq!(out, effects, "{state:?}, {decision:?}");
        }
    }
}

#[test]
fn fifteen_checks_and_then_the_end() {
    let mut transactions = begun();
    let mut out = Vec::new();
    transactions.tick(Timestamp::from_millis(5_999), 10, &mut out);
    assert_eq!(out, [], "not before 6 s");
    for attempt in 1..=15 {
        let now = at(6 + 30 * (i64::from(attempt) - 1));
        assert_eq!(transactions.next_wakeup(), Some(now));
        transactions.tick(now, 10, &mut out);
        let next_check_at = now.plus(Duration::from_secs(30));
        assert_eq!(out, [Check { transaction: T1, group: group(), attempt, next_check_at }]);
        out.clear();
    }
    transactions.tick(at(6 + 30 * 15), 10, &mut out);
    assert_eq!(out, [GiveUp { transaction: T1 }]);
    assert_eq!(transactions.next_wakeup(), None, "nothing is checked while it is moved");
    transactions.not_decided(T1);
    assert_eq!(transactions.next_wakeup(), Some(at(6 + 30 * 16)), "a full disk is no reason for a busy loop");
}

#[test]
fn no_check_while_a_decision_is_stored_and_again_when_it_was_not() {
    let mut transactions = begun();
    let mut out = Vec::new();
    transactions.end(T1, Commit, &mut out).unwrap();
    out.clear();
    transactions.tick(at(100), 10, &mut out);
    assert_eq!(out, []);
    transactions.not_decided(T1);
    transactions.not_decided(T1);
    assert_eq!(transactions.end(T1, Rollback, &mut out), Ok(Ending::Started), "the first one never came to be");
    transactions.not_decided(T1);
    out.clear();
    transactions.tick(at(100), 10, &mut out);
    assert_eq!(out, [Check { transaction: T1, group: group(), attempt: 1, next_check_at: at(130) }]);
}

#[test]
fn a_late_not_decided_does_not_reopen_what_is_decided() {
    let mut transactions = in_state(State::Decided(Commit));
    transactions.not_decided(T1);
    transactions.decided(T1, at(9), &mut Vec::new());
    assert_eq!(transactions.open(), 0);
    assert_eq!(transactions.end(T1, Commit, &mut Vec::new()), Ok(Ending::Already));
}

#[test]
fn open_transactions_are_bounded() {
    let mut transactions = Transactions::new(settings());
    for n in 0..4 {
        transactions.begin(TransactionId(n), group(), at(0)).unwrap();
    }
    assert_eq!(transactions.begin(TransactionId(9), group(), at(0)), Err(TooManyOpen { limit: 4 }));
    transactions.abandon(TransactionId(2));
    transactions.begin(TransactionId(9), group(), at(0)).unwrap();
    assert_eq!(transactions.open(), 4);
}

#[test]
fn decisions_are_forgotten_after_a_day_or_when_there_are_too_many() {
    let mut transactions = in_state(State::Decided(Commit));
    let mut out = Vec::new();
    let day = 24 * 3600;
    assert_eq!(transactions.next_wakeup(), Some(at(1 + day)));
    transactions.tick(at(day), 10, &mut out);
    assert_eq!(out, []);
    transactions.tick(at(1 + day), 10, &mut out);
    assert_eq!(out, [Forget { transaction: T1 }]);
    assert_eq!(transactions.end(T1, Commit, &mut out), Err(EndRefused::Unknown));

    let most = u64::try_from(MAX_REMEMBERED_DECISIONS).unwrap();
    for n in 0..most {
        transactions.restore_outcome(TransactionId(n + 10), Commit, at(0));
    }
    out.clear();
    transactions.begin(T1, group(), at(0)).unwrap();
    transactions.end(T1, Commit, &mut out).unwrap();
    transactions.decided(T1, at(1), &mut out);
    assert_eq!(out, [Finish { transaction: T1, decision: Commit }, Forget { transaction: TransactionId(10) }]);
}

#[test]
fn a_tick_is_bounded_and_goes_on_where_it_stopped() {
    let mut transactions = Transactions::new(settings());
    for n in 0..4 {
        transactions.begin(TransactionId(n), group(), at(0)).unwrap();
    }
    let mut out = Vec::new();
    transactions.tick(at(1000), 3, &mut out);
    assert_eq!((out.len(), transactions.next_wakeup()), (3, Some(at(6))));
    transactions.tick(at(1000), 3, &mut out);
    assert_eq!((out.len(), transactions.next_wakeup()), (4, Some(at(1030))), "each once, whatever was missed");
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u64),
    End(u64, bool),
    Stored(u64, bool),
    Wait(u64),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u64..5).prop_map(Step::Begin),
        4 => (0u64..5, any::<bool>()).prop_map(|(t, commit)| Step::End(t, commit)),
        4 => (0u64..5, any::<bool>()).prop_map(|(t, stored)| Step::Stored(t, stored)),
        4 => (0u64..60).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

/// What is durable: rows of half messages with their checks, rows of outcomes.
#[derive(Default)]
struct Rows {
    halves: BTreeMap<TransactionId, (u32, Timestamp)>,
    outcomes: BTreeMap<TransactionId, (Decision, Timestamp)>,
    storing: BTreeMap<TransactionId, Decision>,
    born: BTreeMap<TransactionId, Timestamp>,
}

impl Rows {
    fn perform(&mut self, out: &mut Vec<TransactionEffect>, now: Timestamp) {
        for effect in out.drain(..) {
            match effect {
                Finish { transaction, decision } => {
                    assert_eq!(self.storing.insert(transaction, decision), None, "one decision at a time");
                }
                GiveUp { transaction } => {
                    assert_eq!(self.halves[&transaction].0, 15, "not before the last check");
                    assert_eq!(self.storing.insert(transaction, Rollback), None);
                }
                Check { transaction, attempt, next_check_at, .. } => {
                    let row = self.halves.get_mut(&transaction).expect("only what is open is checked");
                    assert!(now >= row.1, "not before its time");
                    assert!(now >= self.born[&transaction].plus(Duration::from_secs(6)));
                    assert_eq!((attempt, self.storing.get(&transaction)), (row.0 + 1, None));
                    *row = (attempt, next_check_at);
                }
                Forget { transaction } => {
                    self.outcomes.remove(&transaction).expect("forgotten once");
                }
            }
        }
    }

    fn recover(&self) -> Transactions {
        let mut transactions = Transactions::new(settings());
        for (transaction, (checks, next_check_at)) in &self.halves {
            transactions.restore_half(*transaction, group(), *checks, *next_check_at);
        }
        for (transaction, (decision, at)) in &self.outcomes {
            transactions.restore_outcome(*transaction, *decision, *at);
        }
        transactions
    }
}

proptest! {
    #[test]
    fn one_outcome_for_each_whatever_fails(steps in prop::collection::vec(any_step(), 0..80)) {
        let (mut transactions, mut rows, mut now, mut lives) = (Transactions::new(settings()), Rows::default(), at(0), 0);
        let mut out = Vec::new();
        for step in steps {
            match step {
                Step::Begin(n) => {
                    lives += 1;
                    let transaction = TransactionId(lives * 5 + n);
                    if let Ok(next_check_at) = transactions.begin(transaction, group(), now) {
                        rows.halves.insert(transaction, (0, next_check_at));
                        rows.born.insert(transaction, now);
                    }
                }
                Step::End(n, commit) => {
                    let decision = if commit { Commit } else { Rollback };
                    let Some(transaction) = rows.born.keys().rev().nth(usize::try_from(n).unwrap()).copied() else { continue };
                    let stored = rows.outcomes.get(&transaction).map(|(first, _)| *first);
                    let storing = rows.storing.get(&transaction).copied();
                    let expected = match (stored, storing) {
                        (Some(first), _) => same(first, decision, Ending::Already),
                        (None, Some(first)) => same(first, decision, Ending::UnderWay),
                        (None, None) => Ok(Ending::Started),
                    };
                    prop_assert_eq!(transactions.end(transaction, decision, &mut out), expected);
                }
                Step::Stored(n, stored) => {
                    let storing = rows.storing.iter().nth(usize::try_from(n).unwrap()).map(|(t, d)| (*t, *d));
                    let Some((transaction, decision)) = storing else { continue };
                    rows.storing.remove(&transaction);
                    if stored {
                        rows.halves.remove(&transaction).expect("the half message is still there");
                        prop_assert_eq!(rows.outcomes.insert(transaction, (decision, now)), None);
                        transactions.decided(transaction, now, &mut out);
                    } else {
                        transactions.not_decided(transaction);
                    }
                }
                Step::Wait(seconds) => {
                    now = now.plus(Duration::from_secs(seconds));
                    transactions.tick(now, 100, &mut out);
                    prop_assert!(transactions.next_wakeup().is_none_or(|at| at > now));
                }
                Step::Restart => {
                    rows.storing.clear();
                    transactions = rows.recover();
                }
            }
            rows.perform(&mut out, now);
            prop_assert_eq!(transactions.open(), rows.halves.len());
        }
        rows.storing.clear();
        let mut recovered = rows.recover();
        let mut rounds = 0;
        while recovered.open() > 0 {
            now = now.plus(Duration::from_secs(30));
            recovered.tick(now, 100, &mut out);
            rows.perform(&mut out, now);
            for transaction in std::mem::take(&mut rows.storing).into_keys() {
                rows.halves.remove(&transaction);
                recovered.decided(transaction, now, &mut out);
            }
            rounds += 1;
            prop_assert!(rounds <= 18, "undecided for ever");
        }
    }
}

//! Kills the quickstart with SIGKILL at random moments and holds the broker to what it had acknowledged.
//!
//! The child writes every acknowledgement to its standard output right after the receipt; what has arrived in this
//! process is the ledger. Afterwards the data directory is read back here and compared with it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and tells its seed")]

mod audit;
mod child;
#[path = "../killing/mod.rs"]
mod killing;

use std::path::Path;

use audit::{Problem, Store, Stored, audit};
use child::{command, note};
use cuemq_examples::backlog::Backlog;
use cuemq_examples::input::Input;
use cuemq_examples::ledger::Entry;
use cuemq_examples::store::{EngineKind, FlushKind, StoreArguments};
use killing::{Campaign, finish};

/// Kills per engine unless the environment says otherwise.
const KILLS: u64 = 10;
/// A child that is killed has written at most so many entries of its ledger.
const MOST_ENTRIES: u64 = 1500;

/// Runs and kills, runs to the end, and returns the ledger of all acknowledgements.
fn kill_and_finish(store: &StoreArguments, campaign: &mut Campaign) -> Vec<Entry> {
    let mut ledger = Vec::new();
    while campaign.kill_next(command(store), |line| note(&mut ledger, line)) {}
    finish(command(store), |line| note(&mut ledger, line));
    println!("{}: {} kills, {} acknowledged events", store.engine_name(), campaign.killed(), ledger.len());
    ledger
}

async fn survives_kills(test: &str, engine: EngineKind) {
    let mut campaign = Campaign::new(test, KILLS, MOST_ENTRIES);
    let seed = campaign.seed();
    let directory = tempfile::tempdir().unwrap();
    let store = StoreArguments { engine, dir: directory.path().join("store"), flush: FlushKind::Durable };
    let mut ledger = kill_and_finish(&store, &mut campaign);
    assert!(!ledger.is_empty(), "nothing was acknowledged, so nothing was tested");

    let input = Input::given(None);
    let lines: Vec<_> = input.lines().unwrap().map(|line| line.unwrap().bytes).collect();
    let found = Store::read(&store, &input.topic()).await;
    let problems = audit(&ledger, &found, &lines);
    assert!(problems.is_empty(), "seed {seed}: {} problems, first {:?}", problems.len(), problems.first());
    let group = Backlog { consumed: found.messages.len() as u64, waiting: 0 };
    assert_eq!(found.group, group, "seed {seed}: the group has not processed everything");

    // The control: an acknowledgement of an event that was never sent has to be missed.
    let mut forged = ledger[0].clone();
    forged.round = 1_000_000;
    forged.offset += found.messages.len() as u64;
    ledger.push(forged.clone());
    assert_eq!(audit(&ledger, &found, &lines), [Problem::Missing(forged)]);
}

#[tokio::test]
async fn the_commit_log_engine_keeps_what_it_acknowledged() {
    survives_kills("the_commit_log_engine_keeps_what_it_acknowledged", EngineKind::Mmap).await;
}

#[tokio::test]
async fn the_lsm_engine_keeps_what_it_acknowledged() {
    survives_kills("the_lsm_engine_keeps_what_it_acknowledged", EngineKind::Lsm).await;
}

/// A store with one line of one key per queue offset, and the ledger that fits it.
fn small() -> (Vec<Entry>, Store, Vec<bytes::Bytes>) {
    let lines: Vec<bytes::Bytes> = (0..4_u64).map(|line| format!("k {line}").into()).collect();
    let stored = |(line, body): (u64, &bytes::Bytes)| Stored {
        queue: 0,
        offset: line,
        place: (0, line),
        key: "k".to_owned(),
        body: body.clone(),
    };
    let messages: Vec<Stored> = (0..).zip(&lines).map(stored).collect();
    let entry = |m: &Stored| Entry { round: 0, line: m.place.1, queue: 0, offset: m.offset, key: m.key.clone() };
    let ledger = messages.iter().map(entry).collect();
    (ledger, Store { messages, group: Backlog::default() }, lines)
}

#[test]
fn the_audit_finds_what_is_wrong() {
    let (ledger, good, lines) = small();
    assert_eq!(audit(&ledger, &good, &lines), []);

    let mut lost = good.clone();
    lost.messages.pop();
    let problems = audit(&ledger, &lost, &lines);
    assert_eq!(problems, [Problem::Missing(ledger[3].clone()), Problem::Absent { round: 0, line: 3 }]);

    let mut altered = good.clone();
    altered.messages[2].body = "k 7".into();
    let message = altered.messages[2].clone();
    assert_eq!(audit(&ledger, &altered, &lines), [Problem::Altered(message)]);

    let mut swapped = good.clone();
    swapped.messages.swap(1, 2);
    (swapped.messages[1].offset, swapped.messages[2].offset) = (1, 2);
    let problems = audit(&ledger, &swapped, &lines);
    assert!(problems.contains(&Problem::OutOfOrder(swapped.messages[2].clone())), "{problems:?}");

    let mut twice = good.clone();
    let mut copy = good.messages[3].clone();
    copy.offset = 4;
    twice.messages.push(copy.clone());
    assert!(audit(&ledger, &twice, &lines).contains(&Problem::Twice(copy)));
}

#[test]
fn a_second_process_is_refused_with_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    for engine in [EngineKind::Mmap, EngineKind::Lsm] {
        let dir = directory.path().join(format!("{engine:?}"));
        let store = StoreArguments { engine, dir, flush: FlushKind::Durable };
        let builder = store.builder().unwrap();
        let refused = child::refused(&store);
        assert!(refused.contains("another process has it open") && refused.contains("--dir"), "{refused}");
        assert!(refused.contains(&Path::new(&store.dir).display().to_string()), "{refused}");
        drop(builder);
    }
}

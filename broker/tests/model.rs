//! Random runs of everything a consumer group can go through, compared with a plain reference: what may come and what
//! must, how often it failed before, what ends as a dead letter and why. On every engine.
//!
//! A run sends (at once, later, with a time to live of its own or of the topic), consumes (members and pop consumers that
//! come and go, in each order), settles (acknowledges, fails, rejects, drops, renews, once more by a receipt that is over),
//! lets time pass, pauses, sends dead letters again, changes the number of queues, moves the group, reads by offset
//! beside it, restarts and kills.
//!
//! `CUEMQ_DELIVERY_CASES` raises the number of runs per engine, `CUEMQ_DELIVERY_SEED` is the seed of the first; each of the
//! others has the next one. A difference is printed with the shortest run that shows it and the line that plays it again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]
#![allow(clippy::print_stdout, reason = "a campaign tells its runs and seeds")]

#[macro_use]
mod common;
#[path = "model/entry.rs"]
mod entry;
#[path = "model/hands.rs"]
mod hands;
#[path = "model/operations.rs"]
mod operations;
#[path = "model/operator.rs"]
mod operator;
#[path = "model/play.rs"]
mod play;
#[path = "model/puller.rs"]
mod puller;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/step.rs"]
mod step;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use common::run;
use common::store::{Kind, Store};
use play::Play;
use step::Run;

const CASES_VARIABLE: &str = "CUEMQ_DELIVERY_CASES";
const SEED_VARIABLE: &str = "CUEMQ_DELIVERY_SEED";
const MOST_SHRINK_STEPS: u32 = 400;
const MOST_SHRINK_MS: u32 = 60_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Plays `cases` random runs, or as many as the variable says.
fn compare(kind: Kind, cases: u64) {
    let cases = number(CASES_VARIABLE).unwrap_or(cases);
    let first = number(SEED_VARIABLE).unwrap_or(0);
    for seed in first..first + cases {
        if let Err(difference) = play_one(seed, || Store::new(kind)) {
            let test = format!("{kind:?}").to_lowercase();
            panic!(
                "the broker differs from the reference; again by\n{SEED_VARIABLE}={seed} {CASES_VARIABLE}=1 \
                 cargo test -p cuemq --test model {test}\n{difference}"
            );
        }
    }
    println!("{kind:?}: {cases} runs, seeds {first} to {}, 0 differences", first + cases - 1);
}

/// Plays the run of a seed. What it differs in is told for the shortest run that still differs.
fn play_one(seed: u64, store: impl Fn() -> Store) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: MOST_SHRINK_STEPS,
        max_shrink_time: MOST_SHRINK_MS,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(&step::runs(), |plan: Run| {
        run(async {
            let mut play = Play::begin(store(), &plan).await;
            for step in &plan.steps {
                play.step(step).await;
            }
            play.end().await;
        });
        Ok::<(), TestCaseError>(())
    });
    outcome.map_err(|difference| difference.to_string())
}

#[test]
fn memory() {
    compare(Kind::Memory, 60);
}

#[test]
fn mmap() {
    compare(Kind::Mmap, 20);
}

#[test]
fn lsm() {
    compare(Kind::Lsm, 8);
}

/// A broker whose acknowledgements are not kept is found out.
#[test]
fn negative_control() {
    let found = (0..60).any(|seed| play_one(seed, || Store::forgetting("consumer_offset")).is_err());
    assert!(found, "nobody noticed that acknowledgements were lost");
}

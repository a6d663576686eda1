//! Random runs of everything a consumer group can go through, compared with a plain reference: what may come and what
//! must, how often it failed before, what ends as a dead letter. On every engine.
//!
//! `CUEMQ_DELIVERY_CASES` raises the number of runs per engine, `CUEMQ_DELIVERY_SEED` chooses others.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;
#[path = "model/play.rs"]
mod play;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/step.rs"]
mod step;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use common::run;
use common::store::{Kind, Store};
use play::Play;

const CASES_VARIABLE: &str = "CUEMQ_DELIVERY_CASES";
const SEED_VARIABLE: &str = "CUEMQ_DELIVERY_SEED";
const MOST_SHRINK_STEPS: u32 = 200;
const MOST_SHRINK_MS: u32 = 60_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Plays `cases` random runs, or as many as the variable says.
fn compare(kind: Kind, cases: u32) {
    let cases = number(CASES_VARIABLE).map_or(cases, |cases| u32::try_from(cases).unwrap());
    let seed = number(SEED_VARIABLE).unwrap_or(0);
    if let Err(difference) = play_all(cases, seed, || Store::new(kind)) {
        panic!("the broker differs from the reference ({SEED_VARIABLE}={seed}): {difference}");
    }
}

fn play_all(cases: u32, seed: u64, store: impl Fn() -> Store) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: MOST_SHRINK_STEPS,
        max_shrink_time: MOST_SHRINK_MS,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(&step::runs(), |(order, steps)| {
        run(async {
            let mut play = Play::begin(store(), order).await;
            for step in &steps {
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
    let found = play_all(60, 0, || Store::forgetting("consumer_offset"));
    assert!(found.is_err(), "nobody noticed that acknowledgements were lost");
}

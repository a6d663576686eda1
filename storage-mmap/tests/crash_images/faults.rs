//! A failure at every call of the file layer, one run per call: no promise is broken by it, in this process or after
//! it.

#![expect(clippy::unwrap_used, reason = "all of it is test code, in functions that several tests share")]

use std::collections::BTreeMap;
use std::io;

use cuemq_storage_api::{Engine, ErrorKind, Outcome, StorageError, Timestamp, WriteBatch};
use cuemq_storage_mmap::MmapSettings;
use cuemq_storage_mmap::files::MemoryFiles;
use cuemq_storage_mmap::files::memory::{EverythingWritten, FaultEffect, FaultTarget, NothingUnsynced, SeededChoices};

use crate::check::{self, Expected, failed};
use crate::kill;
use crate::ledger::{Ledger, NEWEST, NEWEST_KEY};
use crate::workload::{self, Life, open, sound};

/// Odd ones with positioned writes, even ones with stores into mapped files.
const SCRIPTS: u64 = 4;
const STEPS: usize = 40;
const EFFECTS: [FaultEffect; 4] = [
    FaultEffect::Fail(io::ErrorKind::StorageFull),
    FaultEffect::Fail(io::ErrorKind::Other),
    FaultEffect::ShortWrite(100, io::ErrorKind::Other),
    FaultEffect::ShortWrite(1000, io::ErrorKind::StorageFull),
];

/// How a script ended.
struct Outcomes {
    ledger: Ledger,
    /// So many batches are durable.
    durable: usize,
    expired: BTreeMap<cuemq_storage_api::QueueKey, u64>,
}

/// Two openings of one store with work in each. Answers with what was promised; `reference` is the same script
/// without a fault.
fn script(
    files: &MemoryFiles,
    settings: &MmapSettings,
    seed: u64,
    reference: Option<&Ledger>,
) -> Result<Outcomes, String> {
    let mut choices = SeededChoices::new(seed);
    let (mut numbers, mut end) = (0, None);
    let mut outcomes = Outcomes { ledger: Ledger::default(), durable: 0, expired: BTreeMap::new() };
    for _ in 0..2 {
        let engine = match open(files, settings, sound) {
            Ok(engine) => engine,
            // The fault is spent, so a second attempt must succeed.
            Err(_) => open(files, settings, sound).map_err(failed)?,
        };
        let mut life = Life::begin(engine, files.clone(), outcomes.ledger, &mut numbers).map_err(failed)?;
        life.promise_durable(outcomes.durable);
        for _ in 0..STEPS {
            if let Err(error) = life.step(&mut choices)
                && is_over(&mut life, &error, reference)?
            {
                end = Some(());
                break;
            }
        }
        if end.is_none() && life.close().is_err() {
            end = Some(());
        }
        outcomes = Outcomes { durable: life.durable(), ledger: life.ledger, expired: life.expired };
        kill_if(end.is_some(), files);
        if end.is_some() {
            break;
        }
    }
    Ok(outcomes)
}

fn kill_if(is_over: bool, files: &MemoryFiles) {
    if is_over {
        kill(files);
    }
}

/// Checks that the engine after an error is what the error says: unharmed, or closed to every write.
fn is_over(life: &mut Life<'_>, error: &StorageError, reference: Option<&Ledger>) -> Result<bool, String> {
    let reference = reference.ok_or_else(|| format!("a step fails without a fault: {error}"))?;
    let mut probe = WriteBatch::new(Timestamp::from_millis(0));
    probe.put(&NEWEST, NEWEST_KEY, u64::MAX.to_le_bytes().to_vec());
    let Some(refused) = life.engine.sync().err() else {
        // It goes on: then surely nothing was stored, and what was applied before is durable now.
        life.promise_durable(life.ledger.len());
        let said = error.outcome() == Outcome::NotStored && error.kind() != ErrorKind::Poisoned;
        return if said { Ok(false) } else { Err(format!("the engine goes on after: {error}")) };
    };
    let written = life.engine.apply(probe).err().ok_or("a poisoned engine takes a batch")?;
    if refused.kind() != ErrorKind::Poisoned || written.kind() != ErrorKind::Poisoned {
        return Err(format!("after {error} sync answers {refused} and apply {written}"));
    }
    if error.outcome() == Outcome::Unknown && error.operation() == "apply" {
        life.ledger.push_from(reference);
    }
    Ok(true)
}

fn check_survivors(files: &MemoryFiles, settings: &MmapSettings, outcomes: &Outcomes, seed: u64) -> Result<(), String> {
    let mut choices = SeededChoices::new(seed);
    let expected = Expected {
        ledger: &outcomes.ledger,
        least: outcomes.durable,
        most: outcomes.ledger.len(),
        expired: &outcomes.expired,
    };
    files.clear_faults();
    let images = [files.crash(&mut NothingUnsynced), files.crash(&mut EverythingWritten), files.crash(&mut choices)];
    for (number, image) in images.into_iter().enumerate() {
        let engine = open(&image, settings, sound).map_err(failed)?;
        check::content(&engine, expected, &mut choices).map_err(|violation| format!("image {number}: {violation}"))?;
        kill(&image);
    }
    // The machine lives on: its cache still shows what a failed sync has lost, and the engine must not believe it.
    let engine = open(files, settings, sound).map_err(failed)?;
    let count =
        check::content(&engine, expected, &mut choices).map_err(|violation| format!("reopened: {violation}"))?;
    let expected = Expected { least: count, most: count, ..expected };
    let lost_power = files.crash(&mut NothingUnsynced);
    kill(files);
    let engine = open(&lost_power, settings, sound).map_err(failed)?;
    check::content(&engine, expected, &mut choices)
        .map_err(|violation| format!("reopened and cut off: {violation}"))?;
    kill(&lost_power);
    Ok(())
}

#[test]
fn a_failure_at_any_call_breaks_no_promise() {
    let mut runs = 0;
    for seed in 1..=SCRIPTS {
        let fresh = || fresh_files(seed.is_multiple_of(2));
        let settings = workload::settings(&mut SeededChoices::new(seed * 1000));
        let files = fresh();
        let reference = script(&files, &settings, seed, None).expect("the script passes without a fault");
        let calls = files.calls();
        assert!(reference.durable == reference.ledger.len() && calls > 300, "{calls} calls");
        for nth in 1..=calls {
            for effect in EFFECTS {
                let files = fresh();
                files.fail(FaultTarget::NthCall(nth), effect);
                let outcomes = script(&files, &settings, seed, Some(&reference.ledger));
                let checked = outcomes.and_then(|outcomes| check_survivors(&files, &settings, &outcomes, nth));
                if let Err(violation) = checked {
                    panic!("script {seed}, call {nth} of {calls}, {effect:?}: {violation}");
                }
                runs += 1;
            }
        }
    }
    println!("{runs} runs");
}

fn fresh_files(is_mapped: bool) -> MemoryFiles {
    if is_mapped { MemoryFiles::new().mapped_for_writing() } else { MemoryFiles::new() }
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    [false, true].into_iter().for_each(refuses_and_goes_on);
}

fn refuses_and_goes_on(is_mapped: bool) {
    let mut choices = SeededChoices::new(9);
    let settings = MmapSettings { segment_bytes: 8 << 10, ..workload::settings(&mut choices) };
    let files = fresh_files(is_mapped);
    let engine = open(&files, &settings, sound).unwrap();
    let mut numbers = 0;
    let mut life = Life::begin(engine, files.clone(), Ledger::default(), &mut numbers).unwrap();
    files.limit_room(40 << 10);
    let refused = (0..500).find_map(|_| life.apply(&mut choices).err()).expect("the disk is full at last");
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Full, Outcome::NotStored));
    life.sync().unwrap();
    let all = life.ledger.len();
    let expired = BTreeMap::new();
    check::content(
        &life.engine,
        Expected { ledger: &life.ledger, least: all, most: all, expired: &expired },
        &mut choices,
    )
    .unwrap();
    files.limit_room(1 << 30);
    (0..20).for_each(|_| life.apply(&mut choices).unwrap());
    life.sync().unwrap();
    let crashed = files.crash(&mut NothingUnsynced);
    let again = open(&crashed, &settings, sound).unwrap();
    let all = life.ledger.len();
    check::content(&again, Expected { ledger: &life.ledger, least: all, most: all, expired: &expired }, &mut choices)
        .unwrap();
}

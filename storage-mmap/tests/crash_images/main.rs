//! Power cuts at every moment: a store must open on whatever a disk can hold then, and keep its promises.
//!
//! A random workload runs on recorded files. From the recording come *images*: what the disk could hold if the power
//! went at some moment. Each image is opened and compared with what had been promised up to that moment. One image
//! per round becomes the store of the next round, so that what one recovery discarded can be looked for after others.
//!
//! `CUEMQ_CRASH_IMAGES` sets the number of images, `CUEMQ_CRASH_SEED` the first seed. A failure prints its seed.

#[macro_use]
#[path = "../layers/handing_on.rs"]
mod handing_on;

mod check;
mod faults;
mod flips;
mod ledger;
mod plants;
mod workload;

use std::collections::BTreeMap;

use cuemq_storage_mmap::MmapSettings;
use cuemq_storage_mmap::files::MemoryFiles;
use cuemq_storage_mmap::files::memory::{
    Choices, EverythingWritten, FaultEffect, FaultTarget, FileCall, NothingUnsynced, SeededChoices,
};

use check::{Expected, failed};
use ledger::Ledger;
use workload::{Life, Plant, mapped, open, sound};

const DEFAULT_IMAGES: u64 = 100_000;
const ROUNDS: usize = 3;
const MAX_STEPS: usize = 40;
const IMAGES_PER_ROUND: usize = 40;

/// Runs one seed; the number of images checked, or the first violation.
fn run(seed: u64, plant: Plant) -> Result<u64, String> {
    let mut choices = SeededChoices::new(seed);
    let settings = workload::settings(&mut choices);
    let (mut numbers, mut images) = (0, 0);
    let mut files = MemoryFiles::new();
    let mut ledger = Ledger::default();
    files.start_recording();
    for _ in 0..ROUNDS {
        let engine = open(&files, &settings, plant).map_err(failed)?;
        let mut life = Life::begin(engine, files.clone(), ledger, &mut numbers).map_err(failed)?;
        for _ in 0..choices.pick(MAX_STEPS) {
            life.step(&mut choices).map_err(failed)?;
        }
        if choices.pick(4) == 0 {
            life.close().map_err(failed)?;
        }
        let (next, count) = crash_and_check(&life, &settings, plant, &mut choices, &mut images)?;
        kill(&files);
        ledger = life.ledger;
        ledger.truncate(count);
        files = next;
    }
    Ok(images)
}

/// Checks many images of one life, and hands on the last one with the number of batches in it.
fn crash_and_check(
    life: &Life<'_>,
    settings: &MmapSettings,
    plant: Plant,
    choices: &mut SeededChoices,
    images: &mut u64,
) -> Result<(MemoryFiles, usize), String> {
    let mut history = life.files.history();
    let mut moments: Vec<u64> =
        (0..IMAGES_PER_ROUND).map(|_| moment_within(history.at(), history.end(), choices)).collect();
    moments.sort_unstable();
    let survivor = choices.pick(moments.len());
    let mut handed_on = None;
    for (number, moment) in moments.into_iter().enumerate() {
        history.advance_to(moment);
        // Each image has choices of its own, so that one that fails can be looked at alone.
        let mut choices = SeededChoices::new(choices.next_number());
        let image = cut(&history, &mut choices);
        let (least, most) = life.promised(moment);
        let expected = Expected { ledger: &life.ledger, least, most, expired: &life.expired };
        let context = |violation| format!("image {number} at moment {moment}: {violation}");
        let (left, count) = recover(image, settings, expected, plant, &mut choices).map_err(context)?;
        *images += 1;
        if number == survivor {
            handed_on = Some((left, count));
        }
    }
    handed_on.ok_or_else(|| "no image".to_owned())
}

fn moment_within(first: u64, last: u64, choices: &mut SeededChoices) -> u64 {
    first + choices.pick(usize::try_from(last - first).expect("a short history") + 1) as u64
}

fn cut(history: &cuemq_storage_mmap::files::memory::History, choices: &mut SeededChoices) -> MemoryFiles {
    match choices.pick(8) {
        0 => history.crash(&mut NothingUnsynced),
        1 => history.crash(&mut EverythingWritten),
        _ => history.crash(choices),
    }
}

/// Opens an image and checks it; in one case of five the power goes again while it is being opened.
fn recover(
    image: MemoryFiles,
    settings: &MmapSettings,
    expected: Expected<'_>,
    plant: Plant,
    choices: &mut SeededChoices,
) -> Result<(MemoryFiles, usize), String> {
    if choices.pick(5) != 0 {
        return examine(image, settings, expected, plant, choices);
    }
    image.start_recording();
    let engine = open(&image, settings, plant).map_err(failed)?;
    let count = check::content(&engine, expected, choices)?;
    let opened_at = image.moment();
    kill(&image);
    drop(engine);
    let mut history = image.history();
    let moment = moment_within(history.at(), opened_at, choices);
    history.advance_to(moment);
    let again = cut(&history, choices);
    // Once it is open, what it holds is durable.
    let least = if moment == opened_at { count } else { expected.least };
    let nested = Expected { least, most: if moment == opened_at { count } else { expected.most }, ..expected };
    examine(again, settings, nested, plant, choices)
        .map_err(|violation| format!("second crash at {moment}: {violation}"))
}

/// Opens an image, checks it, and leaves it as it was after opening.
fn examine(
    image: MemoryFiles,
    settings: &MmapSettings,
    expected: Expected<'_>,
    plant: Plant,
    choices: &mut SeededChoices,
) -> Result<(MemoryFiles, usize), String> {
    image.start_recording();
    let before = check::epoch(&image);
    let engine = open(&image, settings, plant).map_err(failed)?;
    if check::epoch(&image) <= before {
        return Err(format!("the epoch stays at {before}"));
    }
    check::clean_end(&engine, &image, settings)?;
    let count = check::content(&engine, expected, choices)?;
    let left = image.crash(&mut EverythingWritten);
    match choices.pick(10) {
        0 => {
            opens_again_unchanged(&image, settings, Expected { least: count, most: count, ..expected }, plant, choices)?
        }
        1 => goes_on(engine, &image, settings, Expected { least: count, most: count, ..expected }, plant, choices)?,
        _ => {}
    }
    kill(&image);
    left.start_recording();
    Ok((left, count))
}

/// Opens the same state a second time: the log must not change by a byte.
fn opens_again_unchanged(
    image: &MemoryFiles,
    settings: &MmapSettings,
    expected: Expected<'_>,
    plant: Plant,
    choices: &mut SeededChoices,
) -> Result<(), String> {
    let second = image.crash(&mut EverythingWritten);
    let before = check::log(&second)?;
    let engine = open(&second, settings, plant).map_err(failed)?;
    check::content(&engine, expected, choices)?;
    let after = check::log(&second)?;
    kill(&second);
    if before != after { Err("a second opening changed the log".to_owned()) } else { Ok(()) }
}

/// Works on after the recovery and crashes once more with nothing kept that was not synced.
fn goes_on(
    engine: cuemq_storage_mmap::MmapEngine,
    image: &MemoryFiles,
    settings: &MmapSettings,
    expected: Expected<'_>,
    plant: Plant,
    choices: &mut SeededChoices,
) -> Result<(), String> {
    let mut numbers = 1 << 40;
    let mut ledger = expected.ledger.clone();
    ledger.truncate(expected.most);
    let mut life = Life::begin(engine, image.clone(), ledger, &mut numbers).map_err(failed)?;
    for _ in 0..3 {
        life.apply(choices).map_err(failed)?;
    }
    life.sync().map_err(failed)?;
    let crashed = image.crash(&mut NothingUnsynced);
    let again = open(&crashed, settings, plant).map_err(failed)?;
    let all = life.ledger.len();
    let expected = Expected { ledger: &life.ledger, least: all, most: all, expired: expected.expired };
    check::content(&again, expected, choices).map_err(|violation| format!("after working on: {violation}"))?;
    kill(&crashed);
    kill(image);
    Ok(())
}

/// Lets no call through any more, so that an engine that is dropped writes nothing.
fn kill(files: &MemoryFiles) {
    for call in [FileCall::Open, FileCall::Write, FileCall::SyncData, FileCall::Rename, FileCall::SetLen] {
        files.fail(FaultTarget::Every(call), FaultEffect::Fail(std::io::ErrorKind::Other));
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_image_keeps_the_promises() {
    let wanted = number("CUEMQ_CRASH_IMAGES").unwrap_or(DEFAULT_IMAGES);
    let first = number("CUEMQ_CRASH_SEED").unwrap_or(1);
    let (mut seed, mut images) = (first, 0);
    while images < wanted {
        let way = if seed.is_multiple_of(2) { sound } else { mapped };
        match std::panic::catch_unwind(|| run(seed, way)) {
            Ok(Ok(checked)) => images += checked,
            Ok(Err(violation)) => panic!("{violation}\n{}", replay(seed)),
            Err(panic) => {
                println!("{}", replay(seed));
                std::panic::resume_unwind(panic);
            }
        }
        seed += 1;
    }
    println!("{images} images of {} seeds from {first} on", seed - first);
}

fn replay(seed: u64) -> String {
    format!(
        "repeat with: CUEMQ_CRASH_SEED={seed} CUEMQ_CRASH_IMAGES=1 \
         cargo test -p cuemq-storage-mmap --test crash_images every_image"
    )
}

/// Runs seeds on a broken disk or engine until the checker sees it.
fn first_violation(plant: Plant) -> String {
    const MOST_SEEDS: u64 = 200;
    (1..=MOST_SEEDS)
        .find_map(|seed| run(seed, plant).err())
        .unwrap_or_else(|| panic!("{MOST_SEEDS} seeds, and the checker sees nothing"))
}

#[test]
fn a_disk_that_only_pretends_to_sync_is_seen() {
    let violation = first_violation(plants::no_sync);
    let is_loss = ["durable", "Corrupt", "Version"].iter().any(|word| violation.contains(word));
    assert!(is_loss, "{violation}");
}

#[test]
fn a_torn_end_that_is_not_cut_off_is_seen() {
    let violation = first_violation(plants::no_zeroing);
    assert!(violation.contains("behind the log's end"), "{violation}");
}

#[test]
fn an_epoch_that_does_not_rise_is_seen() {
    let violation = first_violation(plants::no_new_epoch);
    assert!(violation.contains("epoch"), "{violation}");
}

#[test]
fn room_that_is_filled_over_a_frame_is_seen() {
    let violation = first_violation(plants::zeros_over_frames);
    assert!(violation.contains("Corrupt") || violation.contains("batches are there"), "{violation}");
}

#[test]
fn stores_that_no_sync_covers_are_seen() {
    let violation = first_violation(plants::stores_never_synced);
    assert!(violation.contains("Corrupt") || violation.contains("durable"), "{violation}");
}

#[test]
fn an_expected_store_is_told_from_another() {
    // The checker itself: a ledger with one batch more or less than the store has.
    let mut choices = SeededChoices::new(3);
    let settings = workload::settings(&mut choices);
    let files = MemoryFiles::new();
    let mut numbers = 0;
    let engine = open(&files, &settings, sound).unwrap();
    let mut life = Life::begin(engine, files.clone(), Ledger::default(), &mut numbers).unwrap();
    (0..5).for_each(|_| life.apply(&mut choices).unwrap());
    let expired = BTreeMap::new();
    let mut check = |ledger: &Ledger, least, most| {
        check::content(&life.engine, Expected { ledger, least, most, expired: &expired }, &mut choices)
    };
    assert_eq!(check(&life.ledger, 5, 5), Ok(5));
    assert!(check(&life.ledger, 0, 4).is_err());
    let mut shorter = life.ledger.clone();
    shorter.truncate(4);
    assert!(check(&shorter, 0, 4).is_err());
}

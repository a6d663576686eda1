//! Style as a test: who imports whom, and how large files are.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its sources fails")]

use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 500;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn files_of(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in folders {
        rust_files(&workspace().join(folder), &mut found);
    }
    assert!(!found.is_empty(), "nothing found in {folders:?}");
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn lines_with(files: &[(PathBuf, String)], words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            if !line.trim_start().starts_with("//") && words.iter().any(|word| line.contains(word)) {
                hits.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    hits
}

#[test]
fn files_stay_readable() {
    let folders = ["broker", "storage-api", "storage-mmap", "storage-lsm", "examples", "benches"];
    let long: Vec<String> = files_of(&folders)
        .into_iter()
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn machines_touch_nothing_but_values() {
    let forbidden = [
        "crate::actors",
        "crate::storage",
        "crate::shared",
        "crate::clock",
        "crate::broker",
        "crate::tables",
        "actix",
        "tokio::",
        "async ",
        ".await",
        "Mutex",
        "RwLock",
        "tracing::",
        "SystemTime",
        "Instant",
        "Engine",
    ];
    let hits = lines_with(&files_of(&["broker/src/domain"]), &forbidden);
    assert!(hits.is_empty(), "a machine decides and does nothing else:\n{}", hits.join("\n"));
}

#[test]
fn engines_and_rows_know_no_actors() {
    let hits =
        lines_with(&files_of(&["storage-api/src", "storage-mmap/src", "storage-lsm/src"]), &["actix", "cuemq::"]);
    assert!(hits.is_empty(), "engines know bytes, tables and offsets only:\n{}", hits.join("\n"));
    let hits = lines_with(&files_of(&["broker/src/tables"]), &["crate::actors", "crate::storage", "actix", "tokio::"]);
    assert!(hits.is_empty(), "a row's codec does no I/O:\n{}", hits.join("\n"));
}

#[test]
fn the_broker_names_an_engine_in_one_file() {
    let hits: Vec<String> = lines_with(&files_of(&["broker/src"]), &["cuemq_storage_mmap", "cuemq_storage_lsm"])
        .into_iter()
        .filter(|hit| !hit.contains("engines.rs"))
        .collect();
    assert!(hits.is_empty(), "engines are components:\n{}", hits.join("\n"));
}

#[test]
fn unsafe_stands_in_one_file() {
    let folders = ["broker/src", "storage-api/src", "storage-mmap/src", "storage-lsm/src"];
    let hits: Vec<String> =
        lines_with(&files_of(&folders), &["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code"])
            .into_iter()
            .filter(|hit| !hit.contains("mapped_file.rs"))
            .collect();
    assert!(hits.is_empty(), "only the mapping needs it:\n{}", hits.join("\n"));
}

/// What the library decides by time follows its clock, so that a program's test moves all of it.
#[test]
fn timers_are_the_clocks() {
    let timers = [
        "tokio::time",
        "actix_rt::time",
        "actix::clock",
        "run_later",
        "run_interval",
        "_timeout(",
        "_timeout_while(",
        "thread::sleep",
    ];
    // Threads that look again, the pause after a panic, the patience of a shutdown, and a fault that never comes: none
    // of them decides what becomes of a message.
    let homes = [
        "broker/src/actors/supervisor.rs",
        "broker/src/broker.rs",
        "broker/src/clock.rs",
        "broker/src/storage/maintenance.rs",
        "broker/src/storage/sync.rs",
        "storage-api/src/fault.rs",
        "storage-lsm/src/fjall_kv.rs",
        "storage-mmap/src/commit_log/ahead.rs",
    ];
    let folders = ["broker/src", "storage-api/src", "storage-mmap/src", "storage-lsm/src"];
    let mut hits = lines_with(&files_of(&folders), &timers);
    hits.retain(|hit| !homes.iter().any(|home| hit.contains(home)) && !hit.contains("/tests"));
    assert!(hits.is_empty(), "time enters through a Clock:\n{}", hits.join("\n"));
}

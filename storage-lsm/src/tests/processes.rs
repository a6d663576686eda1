//! What another process sees, and what a killed one leaves.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use cuemq_storage_api::{Engine, ErrorKind};

use super::*;

/// Names the directory in which [`a_process_to_be_killed`] works.
const DIRECTORY_VARIABLE: &str = "CUEMQ_LSM_TEST_DIRECTORY";
const SAID: &str = "applied";

/// Not a test by itself: applies batches without a sync, says so, and waits to be killed.
#[test]
fn a_process_to_be_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else { return };
    let engine = open(Path::new(&directory));
    for body in 0..100 {
        engine.apply(batch(&queue("t", 0), body, body + 1)).unwrap();
    }
    println!("\n{SAID}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    unreachable!("the parent kills this process and writes nothing");
}

fn start(directory: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::processes::a_process_to_be_killed", "--nocapture"])
        .env(DIRECTORY_VARIABLE, directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == SAID), "the other process failed");
    child
}

#[test]
fn a_killed_process_loses_nothing_that_was_applied() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = start(directory.path());
    let error = LsmEngine::open(directory.path(), &small()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let engine = open(directory.path());
    assert_eq!(bodies(&engine, &queue("t", 0)), (0..100).map(|body| body.to_string()).collect::<Vec<_>>());
    assert_eq!(engine.apply(batch(&queue("t", 0), 100, 101)).unwrap().appends[0].first, offset(100));
}

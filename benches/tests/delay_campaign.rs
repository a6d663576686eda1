//! The campaign over many delayed messages, in small: nothing is lost over two kills, and what is lost is found.
#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::process::{Command, Output};

fn campaign(engine: &str, more: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_delay-campaign"))
        .args(["--timers", "20000", "--sample", "20", "--engine", engine])
        .args(more)
        .env(cuemq_benches::place::DIRECTORY_VARIABLE, directory.path())
        .output()
        .unwrap()
}

fn loses_nothing(engine: &str) {
    let output = campaign(engine, &["--patience", "600"]);
    let (said, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}{error}");
    for fact in ["lost", "twice"] {
        let line = said.lines().find(|line| line.trim_start().starts_with(fact)).unwrap();
        assert_eq!(line.split_whitespace().last(), Some("0"), "{said}");
    }
}

#[test]
fn the_map_engine_loses_none_over_two_kills() {
    loses_nothing("mmap");
}

#[test]
fn the_lsm_engine_loses_none_over_two_kills() {
    loses_nothing("lsm");
}

#[test]
fn a_message_that_is_missing_is_found() {
    let output = campaign("mmap", &["--patience", "5", "--forget", "4242"]);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("acknowledged messages are lost"), "{error}");
}

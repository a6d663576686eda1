//! The quickstart as a child process.

use std::process::{Command, Stdio};

use cuemq_examples::ledger::Entry;
use cuemq_examples::store::StoreArguments;

use crate::killing::program;

/// The program over a store.
pub(crate) fn command(store: &StoreArguments) -> Command {
    let mut command = program("quickstart", store);
    command.args(["--in-flight", "64", "--ledger", "-"]).stderr(Stdio::null());
    command
}

/// Takes the entry of a line into the ledger, if it has one.
pub(crate) fn note(ledger: &mut Vec<Entry>, line: &str) -> bool {
    let entry = line.parse().ok();
    let is_one = entry.is_some();
    ledger.extend(entry);
    is_one
}

/// Runs a child that has to fail; what it said.
pub(crate) fn refused(store: &StoreArguments) -> String {
    let output = command(store).stderr(Stdio::piped()).output().expect("the quickstart starts");
    assert_eq!(output.status.code(), Some(1), "the quickstart was not refused");
    String::from_utf8(output.stderr).expect("errors are text")
}

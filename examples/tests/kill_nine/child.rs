//! The quickstart as a child process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use cuemq_examples::ledger::Entry;
use cuemq_examples::store::StoreArguments;

/// When to kill: after so many entries of the ledger, or, without a number, right after the start; and so many turns
/// of an empty loop later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) entries: Option<u64>,
    pub(crate) spins: u64,
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// Killed while it was running.
    Killed,
    /// By itself and successfully, before the moment had come.
    Finished,
}

/// The example's program: `cargo test` builds it beside the directory of this test's program.
fn quickstart() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let program = test.parent().and_then(|deps| deps.parent()).map(|profile| profile.join("examples/quickstart"));
    let program = program.expect("a test's program lies in target/<profile>/deps");
    assert!(program.exists(), "{} is not built: run cargo build -p cuemq-examples --examples", program.display());
    program
}

fn command(store: &StoreArguments) -> Command {
    let mut command = Command::new(quickstart());
    command.args(["--engine", store.engine_name(), "--flush", "durable", "--in-flight", "64", "--ledger", "-"]);
    command.arg("--dir").arg(&store.dir).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Runs a child until the moment comes, or to its end; adds what it acknowledged to the ledger.
pub(crate) fn run(store: &StoreArguments, moment: Option<Moment>, ledger: &mut Vec<Entry>) -> Ended {
    let mut child = command(store).stderr(Stdio::null()).spawn().expect("the quickstart starts");
    let mut output = BufReader::new(child.stdout.take().expect("the output is piped"));
    let finished = match moment {
        None => read(&mut output, u64::MAX, ledger),
        Some(Moment { entries: None, .. }) => false,
        Some(Moment { entries: Some(entries), .. }) => read(&mut output, entries, ledger),
    };
    if finished {
        let status = child.wait().expect("a child can be waited for");
        assert!(status.success(), "the quickstart failed: {status}");
        return Ended::Finished;
    }
    for _ in 0..moment.map_or(0, |moment| moment.spins) {
        std::thread::yield_now();
    }
    kill(child, &mut output, ledger)
}

fn kill(mut child: Child, output: &mut BufReader<ChildStdout>, ledger: &mut Vec<Entry>) -> Ended {
    // On Unix this is SIGKILL. It may come too late, and then the child has ended by itself.
    child.kill().expect("a child can be killed");
    // What was written before the kill was acknowledged before it.
    read(output, u64::MAX, ledger);
    let status = child.wait().expect("a child can be waited for");
    if status.code().is_none() {
        return Ended::Killed;
    }
    assert!(status.success(), "the quickstart failed before it was killed: {status}");
    Ended::Finished
}

/// Reads entries until there are enough; true when the output ended before.
fn read(output: &mut BufReader<ChildStdout>, enough: u64, ledger: &mut Vec<Entry>) -> bool {
    let (mut entries, mut line) = (0, String::new());
    while entries <= enough {
        line.clear();
        if output.read_line(&mut line).expect("the output is text") == 0 {
            return true;
        }
        // A line that was cut off by the kill has no end, and is no evidence.
        if let Some(Ok(entry)) = line.strip_suffix('\n').map(str::parse) {
            ledger.push(entry);
            entries += 1;
        }
    }
    false
}

/// Runs a child that has to fail; what it said.
pub(crate) fn refused(store: &StoreArguments) -> String {
    let output = command(store).stderr(Stdio::piped()).output().expect("the quickstart starts");
    assert_eq!(output.status.code(), Some(1), "the quickstart was not refused");
    String::from_utf8(output.stderr).expect("errors are text")
}

//! Target 11: the start of a program with a broker in it, the memory of one that idles, the size of a small one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::Context;
use super::child::Child;
use super::row::{Goal, Row, Subject, against};
use crate::Result;
use crate::stopwatch::{Stopwatch, idle as let_idle};

const START_MS: f64 = 50.0;
const IDLE_MB: f64 = 25.0;
const PROGRAM_MB: f64 = 10.0;
/// How long a broker idles before its memory is looked at: its maintenance has run by then.
const IDLE: Duration = Duration::from_millis(1200);
const EXAMPLE: &str = "quickstart";

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if context.program.is_some() {
        rows.push(start(context)?);
        rows.push(idle(context)?);
    }
    rows.extend(program(context)?);
    Ok(rows)
}

fn subject(name: &str, unit: &'static str, limit: &'static str, flush: &'static str, note: &str) -> Subject {
    Subject { number: 11, name: name.into(), unit, flush, limit, goal: Goal::AtMost(1.0), note: note.into() }
}

fn start(context: &Context) -> Result<Row> {
    let pairs = against(context.scale.pairs, START_MS, || {
        let folder = context.place.folder()?;
        let watch = Stopwatch::start();
        let mut child = Child::start(context, "start", folder.path(), 0)?;
        let offset = child.number()?;
        let time = watch.elapsed();
        child.end()?;
        if offset != 0 {
            Err(format!("the first message has offset {offset}").into())
        } else {
            Ok(time.as_secs_f64() * 1e3)
        }
    })?;
    let verified = pairs.len() as u64;
    let note = "from the start of a new process to its first receipt, default settings, mmap engine, empty directory";
    Ok(subject("start to first acknowledged message", "ms", "50 ms", "durable", note).row(pairs, verified))
}

fn idle(context: &Context) -> Result<Row> {
    let begin = || {
        let folder = context.place.folder()?;
        let mut child = Child::start(context, "start", folder.path(), 0)?;
        child.number()?;
        Ok((folder, child))
    };
    // All idle at the same time: none has to do with another.
    let mut begun = (0..context.scale.pairs).map(|_| begin()).collect::<Result<Vec<_>>>()?;
    let_idle(IDLE);
    let pairs = against(context.scale.pairs, IDLE_MB, || {
        let (_folder, child) = begun.pop().ok_or("as many processes were begun as are looked at")?;
        let bytes = child.resident_bytes()?;
        child.end()?;
        Ok(megabytes(bytes))
    })?;
    let verified = pairs.len() as u64;
    let note = "VmRSS of a process with an open broker, one topic, one message, after 1.2 s; program code included";
    Ok(subject("idle resident memory", "MB", "25 MB", "durable", note).row(pairs, verified))
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The stripped size of the example, as the README's first command builds it: whoever ran that waits for nothing here. What
/// other packages of the workspace ask for is in it, so a program of its own is smaller. No row when nothing may be built.
fn program(context: &Context) -> Result<Option<Row>> {
    if !context.scale.builds {
        return Ok(None);
    }
    build(&context.target)?;
    let path = context.target.join("release/examples").join(EXAMPLE);
    let folder = context.place.folder()?;
    let stripped = folder.path().join(EXAMPLE);
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(&path).status();
    let (measured, note) = match status {
        Ok(status) if status.success() => (stripped, "release profile, strip"),
        _ => (path, "NOT stripped: strip is missing"),
    };
    let bytes = std::fs::metadata(measured)?.len();
    let pairs = against(1, PROGRAM_MB, || Ok(megabytes(bytes)))?;
    Ok(Some(subject("stripped size of quickstart", "MB", "10 MB", "-", note).row(pairs, 0)))
}

fn build(target: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // Not quiet: it may take a minute, and whoever watches has to see of what.
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--example", EXAMPLE])
        .arg("--manifest-path")
        .arg(workspace)
        .arg("--target-dir")
        .arg(target)
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("the example {EXAMPLE} cannot be built: {status}").into()) }
}

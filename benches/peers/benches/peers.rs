//! `cargo bench --manifest-path benches/peers/Cargo.toml`: CueMQ beside its peers, then one table.
#![expect(clippy::print_stdout, reason = "a benchmark is run by hand and read in a terminal")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cuemq_benches::limits::{Encoder, Limits};
use cuemq_benches::machine::Machine;
use cuemq_benches::place::Place;
use cuemq_peers::contender::{Opener, environment, has_environment};
use cuemq_peers::profile::Profile;
use cuemq_peers::report::Report;
use cuemq_peers::{Result, run, table};

fn main() -> ExitCode {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let outcome = match (has("--bench"), has("--test")) {
        // `cargo test --benches` passes nothing.
        (false, false) => Ok(ExitCode::SUCCESS),
        _ if !has_environment() => again(),
        (_, true) => test(),
        (true, false) => measure(),
    };
    outcome.unwrap_or_else(|failure| {
        println!("benchmark failed: {failure}");
        ExitCode::FAILURE
    })
}

/// The target directory of CueMQ itself, so that both reports lie beside each other.
fn target() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").filter(|name| !name.is_empty());
    own.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
}

/// Runs this program once more, in the environment that a peer wants, and removes afterwards what that one leaves.
fn again() -> Result<ExitCode> {
    let folder = Place::from_environment(&target())?.folder()?;
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .envs(environment(folder.path().as_os_str()))
        .status()?;
    folder.close()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One tiny verified pass of everything.
fn test() -> Result<ExitCode> {
    let mut opener = Opener::new(Place::from_environment(&target())?)?;
    let outcome = run::run(&Profile::tiny(), &mut opener, |_| ())?;
    println!("{} configurations run, {} messages checked", outcome.rates.len(), outcome.checked);
    Ok(ExitCode::SUCCESS)
}

fn measure() -> Result<ExitCode> {
    let profile = Profile::from_environment()?;
    let place = Place::from_environment(&target())?;
    let machine = Machine::ask(place.directory())?;
    let limits = |size| Limits::measure(&profile.engine, &mut Encoder::new(size), place.directory());
    let limits = profile.sizes.iter().map(|&size| limits(size)).collect::<Result<Vec<_>>>()?;
    let mut opener = Opener::new(place)?;
    let outcome = run::run(&profile, &mut opener, |step| println!("{step}"))?;
    let report = Report::new(&profile, machine, limits, &outcome);
    println!("{}", table::text(&report));
    println!("data: {}", report.write(&target().join("bench-report"))?.display());
    Ok(ExitCode::SUCCESS)
}

//! `cargo bench --bench targets`: holds every target of the project's speed against its limit.
#![expect(clippy::print_stdout, reason = "a benchmark is run by hand and read in a terminal")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;
use cuemq_benches::targets::scale::Scale;
use cuemq_benches::targets::{self, Context};
use cuemq_benches::{Failure, Result};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("benchmark failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u8> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no parent")?.to_owned();
    let profile = Profile::from_environment()?;
    let context = Context { scale: Scale::of(&profile), profile, place: Place::from_environment(&target)?, program: None::<PathBuf>, target };
    for t in targets::ALL {
        if !numbers.is_empty() && !t.numbers.iter().any(|n| numbers.contains(n)) { continue; }
        let start = cuemq_benches::stopwatch::Stopwatch::start();
        let rows = t.measure(&context)?;
        for row in &rows {
            println!("{} {:60} {:>12} limit {:>12} ratio {:.3} {:.3} {:.3} {} {:?} verified {}", row.number, row.name, row.show(row.value), row.show(row.limit), row.ratio.min, row.ratio.median, row.ratio.max, row.target, row.met, row.verified);
        }
        println!("took {:?}", start.elapsed());
    }
    let _: Option<Failure> = None;
    Ok(())
}

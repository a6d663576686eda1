//! `cargo bench --bench targets`: holds every target of the project's speed against its limit.
#![expect(clippy::print_stdout, reason = "a benchmark is run by hand and read in a terminal")]

use std::path::Path;
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
    if arguments.first().map(String::as_str) == Some(targets::child::FLAG) {
        return targets::child::serve(&arguments[1..]);
    }
    let numbers: Vec<u8> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no parent")?.to_owned();
    let profile = if arguments.iter().any(|a| a == "--test") { Profile::tiny() } else { Profile::from_environment()? };
    let context = Context {
        scale: Scale::of(&profile),
        profile,
        place: Place::from_environment(&target)?,
        program: Some(std::env::current_exe()?),
        target,
    };
    for t in targets::ALL {
        if !numbers.is_empty() && !t.numbers.iter().any(|n| numbers.contains(n)) {
            continue;
        }
        let start = cuemq_benches::stopwatch::Stopwatch::start();
        let rows = t.measure(&context)?;
        for row in &rows {
            println!(
                "{} {:60} {:>12} limit {:>12} ratio {:.3} {:.3} {:.3} {} {:?} verified {}",
                row.number,
                row.name,
                row.show(row.value),
                row.show(row.limit),
                row.ratio.min,
                row.ratio.median,
                row.ratio.max,
                row.target,
                row.met,
                row.verified
            );
        }
        println!("took {:?}", start.elapsed());
    }
    let _: Option<Failure> = None;
    Ok(())
}

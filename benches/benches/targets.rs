//! `cargo bench --bench targets`: holds every target of the project's speed against its limit.
#![expect(clippy::print_stdout, reason = "a benchmark is run by hand and read in a terminal")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cuemq_benches::limits::{Encoder, GroupLimits, Limits};
use cuemq_benches::machine::Machine;
use cuemq_benches::neighbours::Neighbours;
use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;
use cuemq_benches::stopwatch::Stopwatch;
use cuemq_benches::targets::board::{self, Board};
use cuemq_benches::targets::choice::{Action, Choice};
use cuemq_benches::targets::row::Row;
use cuemq_benches::targets::scale::Scale;
use cuemq_benches::targets::{ALL, Context, Target, child};
use cuemq_benches::{Result, moment, table};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((flag, task)) if flag == child::FLAG => child::serve(task),
        _ => run(&Choice::of(&arguments)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("benchmark failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(choice: &Choice) -> Result<()> {
    let chosen = || ALL.iter().filter(|target| choice.takes(target.numbers, target.title));
    match choice.action {
        Action::Nothing => Ok(()),
        Action::List => {
            chosen().for_each(|target| println!("target {:?}, {}: benchmark", target.numbers, target.title));
            Ok(())
        }
        Action::Test => test(chosen()),
        Action::Measure if chosen().next().is_none() => Ok(()),
        Action::Measure => measure(chosen()),
    }
}

fn context(profile: Profile) -> Result<Context> {
    // Cargo names a folder within the target directory.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("cargo's temporary directory has no parent")?;
    Ok(Context {
        scale: Scale::of(&profile),
        profile,
        place: Place::from_environment(target)?,
        program: Some(std::env::current_exe()?),
        target: PathBuf::from(target),
    })
}

/// One tiny verified pass.
fn test<'a>(targets: impl Iterator<Item = &'a Target>) -> Result<()> {
    let context = context(Profile::tiny())?;
    let mut rows = 0;
    for target in targets {
        rows += target.measure(&context)?.len();
    }
    println!("{rows} rows of targets measured and checked");
    Ok(())
}

fn measure<'a>(targets: impl Iterator<Item = &'a Target>) -> Result<()> {
    let context = context(Profile::from_environment()?)?;
    let directory = context.target.join("bench-report");
    let latest = moment::text(moment::mark_start(&directory)?);
    let machine = Machine::ask(context.place.directory())?;
    let mut limits = GroupLimits::new();
    for &size in &context.scale.body_bytes {
        let measured = Limits::measure(&context.profile, &mut Encoder::new(size), context.place.directory())?;
        limits.insert(table::bytes(size), measured);
    }
    let mut board = Board::new(machine, limits, latest, &directory);
    for target in targets {
        let (watch, neighbours) = (Stopwatch::start(), Neighbours::watch());
        let rows = target.measure(&context)?;
        let (seconds, others) = (watch.elapsed().as_secs_f64(), neighbours.share(board.machine.cores));
        println!("{}: {} rows in {seconds:.1} s, {}", target.title, rows.len(), board::busy(others));
        for &number in target.numbers {
            let of_number = |row: &&Row| row.number == number;
            let of_number = rows.iter().filter(of_number).cloned().collect();
            board.take(number, target.title, context.profile.name, others, of_number);
        }
        // What is measured so far is not lost when a later target fails.
        board.write(&directory)?;
    }
    println!("{}", board::text(&board));
    println!("report: {}", directory.join("index.html").display());
    Ok(())
}

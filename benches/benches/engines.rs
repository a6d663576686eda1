//! `cargo bench`: measures every configuration with criterion, then prints one table and writes the report.
#![expect(clippy::print_stdout, reason = "a benchmark is run by hand and read in a terminal")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, PlotConfiguration, Throughput};
use cuemq_benches::configuration::Configuration;
use cuemq_benches::limits::{Encoder, GroupLimits, Limits};
use cuemq_benches::machine::Machine;
use cuemq_benches::paths::Rig;
use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;
use cuemq_benches::report::Report;
use cuemq_benches::{Failure, Result, measured, moment, paths, table};

/// Iterations of each configuration in a test run.
const TEST_ITERATIONS: u64 = 3;
/// Resamples for criterion's intervals: enough for the two digits that the report shows.
const RESAMPLES: usize = 5000;

fn main() -> ExitCode {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let outcome = match (has("--bench"), has("--test"), has("--list")) {
        (_, true, _) => test(),
        (true, _, true) => list(),
        (true, _, _) => measure(),
        // `cargo test --benches` passes nothing.
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("benchmark failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn target() -> Result<PathBuf> {
    // Cargo names a folder within the target directory.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    Ok(parent.ok_or("cargo's temporary directory has no parent")?.to_owned())
}

/// One tiny verified pass of everything.
fn test() -> Result<()> {
    let (profile, place) = (Profile::tiny(), Place::from_environment(&target()?)?);
    let all = Configuration::all(&profile);
    for configuration in &all {
        let named = |failure: Failure| Failure::from(format!("{configuration}: {failure}"));
        let mut rig = paths::build(configuration, &profile, &place).map_err(named)?;
        rig.run(TEST_ITERATIONS).map_err(named)?;
        rig.finish().map_err(named)?;
    }
    println!("{} configurations run and checked", all.len());
    Ok(())
}

fn list() -> Result<()> {
    for configuration in Configuration::all(&Profile::from_environment()?) {
        println!("{configuration}: benchmark");
    }
    Ok(())
}

fn measure() -> Result<()> {
    let profile = Profile::from_environment()?;
    let target = target()?;
    let place = Place::from_environment(&target)?;
    let machine = Machine::ask(place.directory())?;
    let (results, reports) = (results_directory(&target), target.join("bench-report"));
    let since = moment::mark_start(&reports)?;
    let mut criterion = criterion(&profile, &results);
    let all = Configuration::all(&profile);
    let mut run = Run { profile: &profile, place: &place, encoders: BTreeMap::new(), limits: GroupLimits::new() };
    for group in all.chunk_by(|a, b| a.group() == b.group()) {
        run.group(&mut criterion, group)?;
    }
    if criterion_only() {
        return Ok(());
    }
    criterion.final_summary();
    let measured = measured::read_results(&results, since, &all)?;
    if measured.is_empty() {
        println!("nothing was measured, so there is no report");
        return Ok(());
    }
    let report = Report::new(&profile, moment::text(since), machine, run.limits, &measured);
    println!("{}", table::text(&report));
    let page = report.write(&reports)?;
    println!("report: {}", page.display());
    Ok(())
}

/// Whether criterion was asked for something that leaves no results.
fn criterion_only() -> bool {
    std::env::args().any(|argument| argument.starts_with("--profile-time") || argument == "--load-baseline")
}

fn results_directory(target: &Path) -> PathBuf {
    std::env::var_os("CRITERION_HOME").map_or_else(|| target.join("criterion"), PathBuf::from)
}

fn criterion(profile: &Profile, results: &Path) -> Criterion {
    let criterion = Criterion::default()
        .output_directory(results)
        .warm_up_time(profile.warm_up)
        .measurement_time(profile.measurement)
        .sample_size(profile.samples)
        .nresamples(RESAMPLES);
    let criterion = if profile.criterion_plots { criterion } else { criterion.without_plots() };
    criterion.configure_from_args()
}

/// What one run measures with, and the limits that it has measured.
struct Run<'a> {
    profile: &'a Profile,
    place: &'a Place,
    /// By body size: making one takes longer than measuring with it.
    encoders: BTreeMap<usize, Encoder>,
    limits: GroupLimits,
}

impl Run<'_> {
    fn group(&mut self, criterion: &mut Criterion, configurations: &[Configuration]) -> Result<()> {
        let Some(first) = configurations.first() else { return Ok(()) };
        let mut group = criterion.benchmark_group(first.group());
        group.plot_config(PlotConfiguration::default().summary_scale(criterion::AxisScale::Logarithmic));
        for configuration in configurations {
            self.configuration(&mut group, configuration).map_err(|failure| format!("{configuration}: {failure}"))?;
        }
        group.finish();
        Ok(())
    }

    /// Measures one configuration and has it checked. The rig is made inside, because a filter may pass over it, but
    /// outside of what criterion times.
    fn configuration(&mut self, group: &mut BenchmarkGroup<'_, WallTime>, configuration: &Configuration) -> Result<()> {
        let elements = configuration.messages_per_iteration();
        let bytes = elements * configuration.body_bytes as u64;
        group.throughput(Throughput::ElementsAndBytes { elements, bytes });
        let mut rig: Option<Box<dyn Rig>> = None;
        // Criterion cannot be told of a failure; a panic leaves it without saving anything and removes the stores.
        let fail = |error: Failure| -> ! { panic!("{configuration}: {error}") };
        let id = BenchmarkId::new(configuration.engine.name(), configuration.parameter);
        group.bench_function(id, |bencher| {
            self.measure_limits_once(configuration).unwrap_or_else(|e| fail(e));
            let build = || paths::build(configuration, self.profile, self.place).unwrap_or_else(|e| fail(e));
            let rig = rig.get_or_insert_with(build);
            bencher.iter_custom(|iterations| rig.run(iterations).unwrap_or_else(|e| fail(e)));
        });
        if let Some(mut rig) = rig {
            let checked = rig.finish()?;
            println!("{configuration}: {checked} messages read back and checked");
        }
        Ok(())
    }

    /// The limits of a configuration's group, right before the first of them.
    fn measure_limits_once(&mut self, configuration: &Configuration) -> Result<()> {
        if let Entry::Vacant(unknown) = self.limits.entry(configuration.group()) {
            let size = configuration.body_bytes;
            let encoder = self.encoders.entry(size).or_insert_with(|| Encoder::new(size));
            unknown.insert(Limits::measure(self.profile, encoder, self.place.directory())?);
        }
        Ok(())
    }
}

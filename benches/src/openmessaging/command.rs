//! The command line of `cuemq-bench`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use cuemq::Flush;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::console::{Console, summary};
use super::driver::Driver;
use super::embedded::EmbeddedDriver;
use super::outcome::Outcome;
use super::run::{PATIENCE, Plan, run};
use super::workload::{MAX_MINUTES, MAX_RATE, Workload};
use crate::Result;
use crate::machine::Machine;
use crate::store::EngineKind;

/// Runs OpenMessaging workloads against an embedded broker and verifies every message.
///
/// Ctrl-C ends a run with what was measured until then; a second one ends at once.
#[derive(Clone, PartialEq, Debug, Parser)]
#[command(name = "cuemq-bench")]
pub struct Arguments {
    /// Workload files in OpenMessaging's YAML; they run one after the other
    #[arg(required = true)]
    pub workloads: Vec<PathBuf>,
    /// The storage engine; several, with commas, run one after the other
    #[arg(long, value_delimiter = ',', default_value = "mmap", value_parser = engine, value_name = "mmap|lsm|memory")]
    pub engine: Vec<EngineKind>,
    /// When a send is acknowledged: once it survives a power cut, or once the operating system has it
    #[arg(long, default_value = "durable", value_parser = flush, value_name = "durable|buffered")]
    pub flush: Flush,
    /// Keeps each run's store in a folder of this directory; by default in a temporary one that is removed
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Where the result files go, each named after its workload and driver
    #[arg(long, default_value = ".")]
    pub output: PathBuf,
    /// Measures for this long, whatever testDurationMinutes says
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_MINUTES * 60))]
    pub seconds: Option<u64>,
    /// Warms up for this long, whatever warmupDurationMinutes says
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=MAX_MINUTES * 60))]
    pub warmup_seconds: Option<u64>,
    /// Sends at this rate, whatever producerRate says; 0 finds the highest one that is sustained
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=MAX_RATE))]
    pub rate: Option<u64>,
    /// Builds a backlog of so many MiB, whatever consumerBacklogSizeGB says; 0 for none
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub backlog_mib: Option<u64>,
    /// Seconds between two lines of the report
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub report_seconds: u64,
    /// Most messages that a producer sends in one batch: what is due at once goes together
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub batch: u32,
    /// Most messages that are sent and not yet acknowledged
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub in_flight: u32,
    /// Threads that send; by default half the cores
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub producer_threads: Option<u32>,
    /// Threads that receive; by default half the cores
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub consumer_threads: Option<u32>,
}

/// Most body bytes that are sent and not yet acknowledged: half of what the broker admits.
const MAX_IN_FLIGHT_BYTES: usize = 128 << 20;

fn engine(name: &str) -> std::result::Result<EngineKind, String> {
    let found = EngineKind::ALL.into_iter().find(|engine| engine.name() == name);
    found.ok_or_else(|| "it is mmap, lsm or memory".into())
}

fn flush(name: &str) -> std::result::Result<Flush, String> {
    match name {
        "durable" => Ok(Flush::Durable),
        "buffered" => Ok(Flush::Buffered),
        _ => Err("it is durable or buffered".into()),
    }
}

impl Arguments {
    /// Runs everything, writes the result files and returns the tables. Files are read before the first run begins.
    ///
    /// # Errors
    /// A file that is not right, whatever a run met, or the first message that did not pass its check.
    pub async fn execute(&self, stop: watch::Receiver<bool>) -> Result<String> {
        let plans = self.workloads.iter().map(|path| self.plan(path)).collect::<Result<Vec<Plan>>>()?;
        std::fs::create_dir_all(&self.output)
            .map_err(|error| format!("the directory {} cannot be made: {error}", self.output.display()))?;
        let mut outcomes = Vec::new();
        for plan in &plans {
            for engine in &self.engine {
                if !*stop.borrow() {
                    let name = &plan.workload.name;
                    let outcome = self.run_one(plan, *engine, stop.clone()).await;
                    outcomes.push(outcome.map_err(|error| format!("{name} on {engine}: {error}"))?);
                }
            }
        }
        Ok(summary(&outcomes))
    }

    fn plan(&self, path: &Path) -> Result<Plan> {
        let mut workload = Workload::read(path)?;
        workload.test_seconds = self.seconds.unwrap_or(workload.test_seconds);
        workload.warmup_seconds = self.warmup_seconds.unwrap_or(workload.warmup_seconds);
        workload.producer_rate = self.rate.unwrap_or(workload.producer_rate);
        workload.backlog_bytes = self.backlog_mib.map_or(workload.backlog_bytes, |mib| mib << 20);
        workload.check().map_err(|error| format!("workload {}: {error}", path.display()))?;
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).div_ceil(2);
        let threads = |chosen: Option<u32>| chosen.map_or(threads, |threads| threads as usize);
        let in_flight = (self.in_flight as usize).min(MAX_IN_FLIGHT_BYTES / workload.message_size).max(1);
        Ok(Plan {
            workload,
            report_every: Duration::from_secs(self.report_seconds),
            batch: self.batch as usize,
            in_flight,
            publisher_threads: threads(self.producer_threads),
            subscriber_threads: threads(self.consumer_threads),
            patience: PATIENCE,
        })
    }

    async fn run_one(&self, plan: &Plan, engine: EngineKind, stop: watch::Receiver<bool>) -> Result<Outcome> {
        let mut console = Console::new(plan.workload.message_size);
        let store = Store::make(self.directory.as_deref(), &plan.workload.name, engine, self.flush)?;
        let machine = Machine::ask(store.path())?;
        console.line(&format!(
            "===== {} on {engine}, {:?}, {} =====",
            plan.workload.name, self.flush, machine.file_system
        ));
        if machine.volatile && engine != EngineKind::Memory {
            let directory = store.path().display();
            console.line(&format!(
                "WARNING: {directory} lies on tmpfs, which keeps nothing: no durable figure means anything; choose a \
                 disk with --directory"
            ));
        }
        let driver = EmbeddedDriver::open(engine, self.flush, store.path()).await?;
        let outcome = run(&driver, plan, &mut console, stop).await;
        let closed = driver.close().await;
        let outcome = outcome?;
        closed?;
        if outcome.periods.is_empty() {
            console.line("every message is verified; the run was ended before anything was measured");
            return Ok(outcome);
        }
        let text = serde_json::to_string_pretty(&outcome.to_json(self.conditions(plan, engine, &machine)))?;
        let path = self.output.join(format!("{}-{}.json", file_name(&outcome.workload.name), outcome.driver));
        std::fs::write(&path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        console.line(&format!("every message is verified; the result is in {}", path.display()));
        Ok(outcome)
    }

    /// What a figure depends on beside the workload.
    fn conditions(&self, plan: &Plan, engine: EngineKind, machine: &Machine) -> Value {
        json!({
            "engine": engine.name(),
            "flush": self.flush,
            "batch": plan.batch,
            "inFlight": plan.in_flight,
            "producerThreads": plan.publisher_threads,
            "consumerThreads": plan.subscriber_threads,
            "producerRate": plan.workload.producer_rate,
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machine,
        })
    }
}

/// Where a run keeps its store.
#[derive(Debug)]
enum Store {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Store {
    fn make(directory: Option<&Path>, workload: &str, engine: EngineKind, flush: Flush) -> Result<Self> {
        let Some(directory) = directory else {
            return Ok(Self::Temporary(tempfile::Builder::new().prefix("cuemq-bench-").tempdir()?));
        };
        let path = directory.join(format!("{}-{engine}-{flush:?}", file_name(workload)).to_lowercase());
        let made = std::fs::create_dir_all(&path).and_then(|()| std::fs::read_dir(&path)).map(|mut all| all.next());
        match made.map_err(|error| format!("the directory {} cannot be made: {error}", path.display()))? {
            None => Ok(Self::Kept(path)),
            Some(_) => {
                Err(format!("the directory {} is not empty: remove it, or name another directory", path.display())
                    .into())
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }
}

/// A name with a hyphen for everything that does not belong into the name of a file.
fn file_name(name: &str) -> String {
    let legal = |letter: char| letter.is_alphanumeric() || "_.".contains(letter);
    name.split(|letter| !legal(letter)).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent_and_override_the_file() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/1-topic-1-partition-1kb.yaml");
        let line =
            ["cuemq-bench", shipped, "--engine", "mmap,lsm", "--flush", "buffered", "--seconds", "3", "--rate=7"];
        let arguments = Arguments::try_parse_from(line).unwrap();
        assert_eq!(arguments.engine, [EngineKind::Mmap, EngineKind::Lsm]);
        assert_eq!(arguments.flush, Flush::Buffered);
        let plan = arguments.plan(Path::new(shipped)).unwrap();
        assert_eq!((plan.workload.test_seconds, plan.workload.warmup_seconds), (3, 60));
        assert_eq!(plan.workload.producer_rate, 7);
        for bad in [["--engine", "disk"], ["--flush", "never"], ["--batch", "0"], ["--seconds", "0"]] {
            assert!(Arguments::try_parse_from(["cuemq-bench", shipped].iter().chain(&bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_store_never_lands_in_another() {
        let folder = tempfile::tempdir().unwrap();
        let make = || Store::make(Some(folder.path()), "a / b", EngineKind::Mmap, Flush::Durable);
        let store = make().unwrap();
        assert_eq!(store.path().file_name().unwrap(), "a-b-mmap-durable");
        std::fs::write(store.path().join("x"), "x").unwrap();
        let error = make().unwrap_err().to_string();
        assert!(error.contains("is not empty: remove it"), "{error}");
    }
}

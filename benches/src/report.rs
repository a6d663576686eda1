//! Holds results against limits and engines against each other.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use serde::Serialize;

use crate::Result;
use crate::configuration::{Bound, Configuration, Path};
use crate::limits::GroupLimits;
use crate::machine::Machine;
use crate::measured::Measured;
use crate::page::{self, Part};
use crate::profile::Profile;
use crate::store::{EngineKind, settings_text};

/// One engine's figure.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Figure {
    /// Messages per second, or milliseconds per opening: [`Row::unit`] says which.
    pub value: f64,
    /// The value at the bad end of the median's confidence interval.
    pub worst: f64,
    /// The value at its good end.
    pub best: f64,
    /// Body bytes per second in millions; `None` for openings.
    pub megabytes_per_second: Option<f64>,
    /// Share of the limit; `None` without one.
    pub of_limit: Option<f64>,
    /// How much faster than in the baseline, as a share; `None` without one.
    pub change: Option<f64>,
}

/// One path at one size and parameter, all engines beside each other.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The path's name.
    pub path: &'static str,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// What `parameter` counts.
    pub parameter_name: &'static str,
    /// Batch, writers, messages in flight or stored.
    pub parameter: usize,
    /// What acknowledged data survives.
    pub flush: &'static str,
    /// `msg/s` or `ms`.
    pub unit: &'static str,
    /// By engine name.
    pub figures: BTreeMap<&'static str, Figure>,
    /// What the figures are held against: its name.
    pub limit_name: Option<&'static str>,
    /// And its value in the row's unit.
    pub limit: Option<f64>,
    /// The faster one of the engines that keep anything.
    pub winner: Option<&'static str>,
    /// How many times as fast the commit log is as the LSM tree.
    pub mmap_to_lsm: Option<f64>,
}

/// What is left of the raw engine's rate when the same batches go through the actors.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ActorShare {
    /// The engine.
    pub engine: &'static str,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Messages per batch, raw and through the actors.
    pub batch: usize,
    /// Messages per second through the actors, as a share of the raw engine's.
    pub share: f64,
}

/// The whole outcome of a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// `quick` or `full`.
    pub profile: &'static str,
    /// When the run began.
    pub measured_at: String,
    /// What it was measured on.
    pub machine: Machine,
    /// What the machine can do at best, measured right before each group of configurations.
    pub limits: GroupLimits,
    /// What differs from the engines' defaults.
    pub settings: String,
    /// In the order of the paths.
    pub rows: Vec<Row>,
    /// Actors against raw engine.
    pub actors: Vec<ActorShare>,
}

impl Report {
    /// Judges the results of a run.
    #[must_use]
    pub fn new(
        profile: &Profile,
        measured_at: String,
        machine: Machine,
        limits: GroupLimits,
        results: &BTreeMap<Configuration, Measured>,
    ) -> Self {
        let mut by_row: BTreeMap<(Path, usize, usize), Vec<(Configuration, Measured)>> = BTreeMap::new();
        for (configuration, measured) in results {
            let key = (configuration.path, configuration.body_bytes, configuration.parameter);
            by_row.entry(key).or_default().push((*configuration, *measured));
        }
        let rows: Vec<Row> = by_row.into_iter().map(|(key, engines)| row(key, &engines, &limits)).collect();
        let actors = actor_shares(&rows);
        Self { profile: profile.name, measured_at, machine, limits, settings: settings_text(profile), rows, actors }
    }

    /// Writes the comparison and refreshes the report; returns the report's page.
    ///
    /// # Errors
    /// When a file cannot be written or a plot not drawn.
    pub fn write(&self, directory: &FilePath) -> Result<PathBuf> {
        page::publish(directory, Part::Comparison, &page::comparison(self)?, self)
    }

    /// The rows of one path.
    pub fn rows_of(&self, path: Path) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.path == path.name())
    }
}

fn row(key: (Path, usize, usize), engines: &[(Configuration, Measured)], limits: &GroupLimits) -> Row {
    let (path, body_bytes, parameter) = key;
    let bound = path.bound(parameter);
    let group = engines.first().and_then(|(configuration, _)| limits.get(&configuration.group()));
    let limit = group.and_then(|limits| limits.messages_per_second(bound, parameter));
    let figures: BTreeMap<_, _> = engines
        .iter()
        .map(|(configuration, measured)| (configuration.engine.name(), figure(configuration, measured, limit)))
        .collect();
    let speed = |engine: EngineKind| {
        let value = figures.get(engine.name())?.value;
        Some(if path.is_reopen() { 1.0 / value } else { value })
    };
    let mmap_to_lsm = speed(EngineKind::Mmap).zip(speed(EngineKind::Lsm)).map(|(mmap, lsm)| mmap / lsm);
    let faster = |factor| if factor >= 1.0 { EngineKind::Mmap } else { EngineKind::Lsm };
    Row {
        path: path.name(),
        body_bytes,
        parameter_name: path.parameter(),
        parameter,
        flush: path.flush(),
        unit: if path.is_reopen() { "ms" } else { "msg/s" },
        winner: mmap_to_lsm.map(|factor| faster(factor).name()),
        mmap_to_lsm,
        limit_name: limit.and_then(|_| limit_name(bound)),
        limit,
        figures,
    }
}

fn limit_name(bound: Bound) -> Option<&'static str> {
    match bound {
        Bound::Limit => Some("LIMIT"),
        Bound::BatchPerSync => Some("batch/SYNC"),
        Bound::HalfTheWritersPerSync => Some("writers/2/SYNC"),
        Bound::Ping => Some("1/PING"),
        Bound::None => None,
    }
}

fn figure(configuration: &Configuration, measured: &Measured, limit: Option<f64>) -> Figure {
    let change = measured.change.map(|longer| 1.0 / (1.0 + longer) - 1.0);
    if configuration.path.is_reopen() {
        let [value, worst, best] = [measured.nanos, measured.nanos_high, measured.nanos_low].map(|nanos| nanos / 1e6);
        return Figure { value, worst, best, megabytes_per_second: None, of_limit: None, change };
    }
    #[expect(clippy::cast_precision_loss, reason = "messages of one iteration")]
    let messages = configuration.messages_per_iteration() as f64;
    let rate = |nanos: f64| messages * 1e9 / nanos;
    #[expect(clippy::cast_precision_loss, reason = "bytes of one body")]
    let megabytes = configuration.body_bytes as f64 / 1e6;
    let value = rate(measured.nanos);
    Figure {
        value,
        worst: rate(measured.nanos_high),
        best: rate(measured.nanos_low),
        megabytes_per_second: Some(value * megabytes),
        of_limit: limit.map(|limit| value / limit),
        change,
    }
}

fn actor_shares(rows: &[Row]) -> Vec<ActorShare> {
    let raw = |sent: &Row| {
        let same = |row: &&Row| row.body_bytes == sent.body_bytes && row.parameter == sent.parameter;
        rows.iter().filter(|row| row.path == Path::AppendBuffered.name()).find(same)
    };
    let mut shares = Vec::new();
    for sent in rows.iter().filter(|row| row.path == Path::SendBatch.name()) {
        let Some(raw) = raw(sent) else { continue };
        for (engine, figure) in &sent.figures {
            if let Some(alone) = raw.figures.get(engine) {
                let (body_bytes, batch) = (sent.body_bytes, sent.parameter);
                shares.push(ActorShare { engine, body_bytes, batch, share: figure.value / alone.value });
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::limits::{Limits, Spread};

    fn sample() -> Report {
        let spread = Spread { p50_us: 100.0, p99_us: 200.0 };
        let limits = Limits { body_bytes: 256, encode_per_second: 1e7, sync: spread, ping: spread };
        let machine = crate::machine::tests::sample();
        let profile = Profile { body_bytes: vec![256], batches: vec![1, 64, 256], ..Profile::quick() };
        let all = Configuration::all(&profile);
        let measured = |configuration: &Configuration| {
            let nanos = if configuration.engine == EngineKind::Lsm { 4e6 } else { 1e6 };
            Measured { nanos, nanos_low: nanos / 2.0, nanos_high: nanos * 2.0, change: Some(1.0) }
        };
        let limits = all.iter().map(|configuration| (configuration.group(), limits)).collect();
        let results = all.iter().map(|configuration| (*configuration, measured(configuration))).collect();
        Report::new(&profile, "today".into(), machine, limits, &results)
    }

    #[test]
    fn rates_factors_and_limits_are_right() {
        let report = sample();
        let row = report.rows_of(Path::AppendBuffered).find(|row| row.parameter == 64).unwrap();
        let mmap = row.figures["mmap"];
        assert!((mmap.value - 64_000.0).abs() < 1e-6, "{mmap:?}");
        assert!((mmap.megabytes_per_second.unwrap() - 16.384).abs() < 1e-9);
        assert!((mmap.of_limit.unwrap() - 0.0064).abs() < 1e-12);
        assert!((mmap.change.unwrap() + 0.5).abs() < 1e-12, "twice the time is half the speed");
        assert!((mmap.worst - 32_000.0).abs() < 1e-6 && (mmap.best - 128_000.0).abs() < 1e-6);
        assert_eq!((row.winner, row.mmap_to_lsm), (Some("mmap"), Some(4.0)));
        let durable = report.rows_of(Path::AppendDurable).find(|row| row.parameter == 64).unwrap();
        assert!((durable.limit.unwrap() - 640_000.0).abs() < 1e-6);
        assert!(!durable.figures.contains_key("memory"), "memory has nothing to sync");
    }

    #[test]
    fn openings_are_times_and_the_shorter_one_wins() {
        let report = sample();
        let row = report.rows_of(Path::ReopenDropped).next().unwrap();
        assert_eq!((row.unit, row.winner, row.mmap_to_lsm), ("ms", Some("mmap"), Some(4.0)));
        assert!((row.figures["lsm"].value - 4.0).abs() < 1e-12);
        assert_eq!(row.limit, None);
    }

    #[test]
    fn actors_are_held_against_the_same_batches() {
        let report = sample();
        assert_eq!(report.actors.len(), 2 * 3, "batches of 64 and 256, three engines");
        assert!(report.actors.iter().all(|actor| (actor.share - 1.0).abs() < 1e-12));
    }

    #[test]
    fn a_report_is_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        let page = sample().write(directory.path()).unwrap();
        let html = fs::read_to_string(page).unwrap();
        assert_eq!(html.matches("<svg").count(), Path::ALL.len());
        assert!(html.contains("a &lt;processor&gt;"), "text is escaped");
        assert!(!html.contains("http-equiv") && !html.contains("src="), "self-contained");
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(directory.path().join("summary.json")).unwrap()).unwrap();
        assert_eq!(json["comparison"]["rows"].as_array().unwrap().len(), sample().rows.len());
    }
}

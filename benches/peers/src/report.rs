//! Rates, factors, and who is ahead.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path as FilePath, PathBuf};

use cuemq_benches::limits::Limits;
use cuemq_benches::machine::Machine;
use serde::Serialize;

use crate::Result;
use crate::contender::{Contender, Terms};
use crate::profile::Profile;
use crate::run::{Cell, Outcome, Path};
use crate::versions::version;

/// Everything that a run found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which profile was run.
    pub profile: &'static str,
    /// Rounds; each figure is the median of so many.
    pub rounds: usize,
    /// What it was run on.
    pub machine: Machine,
    /// The machine's limits, measured before the rounds, by body size.
    pub limits: Vec<Limits>,
    /// Messages that were read back and checked, all without a fault.
    pub checked: u64,
    /// Who took part, on which terms.
    pub contenders: Vec<Participant>,
    /// One row per path, size, batch and contender.
    pub rows: Vec<Row>,
}

/// Somebody who took part.
#[derive(Clone, Debug, Serialize)]
pub struct Participant {
    /// Its name in the rows.
    pub name: &'static str,
    /// The package whose version it is.
    pub package: &'static str,
    /// The version.
    pub version: &'static str,
    /// How it was used, and what that promises.
    pub terms: Terms,
}

/// How a figure went in the course of the rounds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// Half of the rounds were below.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` without any figure.
    #[must_use]
    pub fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_unstable_by(f64::total_cmp);
        let median = *figures.get(figures.len() / 2)?;
        Some(Self { min: *figures.first()?, median, max: *figures.last()? })
    }
}

/// One contender in one discipline.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub path: Path,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Messages per append or page, or writers.
    pub batch: usize,
    /// Whose row it is.
    pub contender: &'static str,
    /// Messages per second.
    pub rate: Spread,
    /// How many times as fast CueMQ was, round by round, for the engine and the broker; empty in CueMQ's own rows.
    pub factors: BTreeMap<&'static str, Spread>,
}

impl Row {
    /// Whether the median says that CueMQ, used in this way, is ahead; `None` where that was not compared.
    #[must_use]
    pub fn ahead(&self, ours: Contender) -> Option<bool> {
        self.factors.get(ours.name()).map(|factor| factor.median > 1.0)
    }
}

impl Report {
    /// Judges what was measured.
    #[must_use]
    pub fn new(profile: &Profile, machine: Machine, limits: Vec<Limits>, outcome: &Outcome) -> Self {
        let participant = |contender: Contender| Participant {
            name: contender.name(),
            package: contender.package(),
            version: version(contender.package()),
            terms: contender.terms(),
        };
        Self {
            profile: profile.engine.name,
            rounds: profile.rounds,
            machine,
            limits,
            checked: outcome.checked,
            // A broker is on the same terms with one in flight.
            contenders: Contender::ALL.into_iter().filter(|c| *c != Contender::BrokerAlone).map(participant).collect(),
            rows: outcome.rates.iter().filter_map(|(cell, rates)| row(outcome, cell, rates)).collect(),
        }
    }

    /// Writes `peers.json` into a directory and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &FilePath) -> Result<PathBuf> {
        fs::create_dir_all(directory)?;
        let file = directory.join("peers.json");
        fs::write(&file, serde_json::to_vec_pretty(self)?)?;
        Ok(file)
    }
}

fn row(outcome: &Outcome, cell: &Cell, rates: &[f64]) -> Option<Row> {
    let factor = |ours: Contender| {
        let own = outcome.rates.get(&Cell { contender: ours, ..*cell })?;
        let factors = own.iter().zip(rates).map(|(own, other)| own / other).collect();
        Some((ours.name(), Spread::of(factors)?))
    };
    let ours = Contender::OURS.into_iter().filter(|_| cell.contender.is_peer());
    Some(Row {
        path: cell.path,
        body_bytes: cell.body_bytes,
        batch: cell.batch,
        contender: cell.contender.name(),
        rate: Spread::of(rates.to_vec())?,
        factors: ours.filter_map(factor).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_taken_within_a_round() {
        let cell = |contender| Cell { path: Path::Fetch, body_bytes: 256, batch: 1, contender };
        let rates = BTreeMap::from([
            (cell(Contender::Engine), vec![10.0, 40.0, 90.0]),
            (cell(Contender::Broker), vec![1.0, 2.0, 3.0]),
            (cell(Contender::Fjall), vec![5.0, 10.0, 15.0]),
        ]);
        let outcome = Outcome { rates, checked: 1 };
        let rows: Vec<_> = outcome.rates.iter().filter_map(|(cell, rates)| row(&outcome, cell, rates)).collect();
        assert!(rows[0].factors.is_empty(), "CueMQ is not held against itself");
        let peer = &rows[2];
        assert_eq!(peer.factors["CueMQ mmap engine"], Spread { min: 2.0, median: 4.0, max: 6.0 });
        assert_eq!((peer.ahead(Contender::Engine), peer.ahead(Contender::Broker)), (Some(true), Some(false)));
        assert_eq!(peer.ahead(Contender::BrokerAlone), None);
    }
}

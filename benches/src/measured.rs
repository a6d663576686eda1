//! Reads back what criterion measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::configuration::Configuration;

/// Criterion's result for one configuration.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// The median time of one iteration, in nanoseconds.
    pub nanos: f64,
    /// The lower end of the median's confidence interval.
    pub nanos_low: f64,
    /// The upper end of it.
    pub nanos_high: f64,
    /// How much longer an iteration takes than in the baseline, as a share: 0.1 is a tenth more. `None` without one.
    pub change: Option<f64>,
}

#[derive(Deserialize)]
struct Identity {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// All results below criterion's directory, written at `since` or later, of the configurations asked for. What an
/// earlier run left is not of this machine's present state, so it is passed over.
///
/// # Errors
/// A result that cannot be read.
pub fn read_results(
    directory: &Path,
    since: SystemTime,
    configurations: &[Configuration],
) -> Result<BTreeMap<Configuration, Measured>> {
    let wanted = |identity: &Identity| {
        configurations.iter().find(|configuration| {
            configuration.group() == identity.group_id
                && identity.function_id.as_deref() == Some(configuration.engine.name())
                && identity.value_str.as_deref() == Some(configuration.parameter.to_string().as_str())
        })
    };
    let mut results = BTreeMap::new();
    visit(directory, &mut |folder| {
        let Some(identity) = read_fresh::<Identity>(&folder.join("new/benchmark.json"), since)? else { return Ok(()) };
        let Some(configuration) = wanted(&identity) else { return Ok(()) };
        let Some(new) = read_fresh::<Estimates>(&folder.join("new/estimates.json"), since)? else { return Ok(()) };
        let change = read_fresh::<Estimates>(&folder.join("change/estimates.json"), since)?;
        let measured = Measured {
            nanos: new.median.point_estimate,
            nanos_low: new.median.confidence_interval.lower_bound,
            nanos_high: new.median.confidence_interval.upper_bound,
            change: change.map(|change| change.median.point_estimate),
        };
        results.insert(*configuration, measured);
        Ok(())
    })?;
    Ok(results)
}

/// Calls back for a directory and everything below it.
fn visit(directory: &Path, each: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    each(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), each)?;
        }
    }
    Ok(())
}

/// A JSON file; `None` when it is not there or older than `since`.
fn read_fresh<T: DeserializeOwned>(path: &Path, since: SystemTime) -> Result<Option<T>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.modified()? >= since => {}
        _ => return Ok(None),
    }
    let value = serde_json::from_slice(&fs::read(path)?);
    Ok(Some(value.map_err(|error| format!("{} cannot be read: {error}", path.display()))?))
}

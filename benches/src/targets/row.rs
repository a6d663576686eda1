//! One row of the targets' table: a value beside its own limit, several times in one run, and whether that is enough.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::table::short;

/// One measurement and the limit around it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pair {
    /// What the path reached, in the row's unit.
    pub value: f64,
    /// The mean of the limits right before and right behind it, in the same unit.
    pub limit: f64,
}

impl Pair {
    /// The value as a share of the limit.
    #[must_use]
    pub fn ratio(self) -> f64 {
        self.value / self.limit
    }
}

/// Measures limit, path, limit, path, ..., limit; `count` pairs. A machine is not equally fast all the time, so each
/// value is held against the limits on both sides of it.
///
/// # Errors
/// Whatever limit or path meet.
pub fn side_by_side(
    count: usize,
    mut limit: impl FnMut() -> Result<f64>,
    mut path: impl FnMut() -> Result<f64>,
) -> Result<Vec<Pair>> {
    let mut pairs = Vec::with_capacity(count);
    let mut before = limit()?;
    for _ in 0..count {
        let value = path()?;
        let after = limit()?;
        pairs.push(Pair { value, limit: f64::midpoint(before, after) });
        before = after;
    }
    Ok(pairs)
}

/// Measures the path alone against a limit that does not change, such as a number of milliseconds.
///
/// # Errors
/// Whatever the path meets.
pub fn against(count: usize, limit: f64, mut path: impl FnMut() -> Result<f64>) -> Result<Vec<Pair>> {
    std::iter::repeat_with(|| Ok(Pair { value: path()?, limit })).take(count).collect()
}

/// Lowest, median and highest of some numbers.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// The lowest.
    pub min: f64,
    /// The one in the middle; of two in the middle, the higher one.
    pub median: f64,
    /// The highest.
    pub max: f64,
}

impl Extent {
    /// Of at least one number.
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_unstable_by(f64::total_cmp);
        Self { min: numbers[0], median: numbers[numbers.len() / 2], max: numbers[numbers.len() - 1] }
    }
}

/// What the median has to reach.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least this share of the limit.
    AtLeast(f64),
    /// At most this share of the limit.
    AtMost(f64),
    /// The value itself is 0.
    Zero,
    /// Nothing: the row is there to be looked at.
    None,
}

impl Goal {
    /// The value that would just do; `None` without a goal.
    #[must_use]
    pub fn value(self, limit: f64) -> Option<f64> {
        match self {
            Self::AtLeast(share) | Self::AtMost(share) => Some(share * limit),
            Self::Zero => Some(0.0),
            Self::None => None,
        }
    }

    fn is_met(self, value: f64, ratio: f64) -> Option<bool> {
        match self {
            Self::AtLeast(share) => Some(ratio >= share),
            Self::AtMost(share) => Some(ratio <= share),
            Self::Zero => Some(value == 0.0),
            Self::None => None,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(share) => write!(f, ">= {share}"),
            Self::AtMost(share) => write!(f, "<= {share}"),
            Self::Zero => f.write_str("0"),
            Self::None => f.write_str("-"),
        }
    }
}

/// What a row says of itself before it is measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    /// The number of the target.
    pub number: u8,
    /// What was measured, with sizes.
    pub name: String,
    /// Of the value and of the limit.
    pub unit: &'static str,
    /// What acknowledged or read data survives.
    pub flush: &'static str,
    /// What the value is held against.
    pub limit: &'static str,
    /// What the ratio has to reach.
    pub goal: Goal,
    /// What else a reader has to know to judge it.
    pub note: String,
}

impl Subject {
    /// The row of at least one pair. `verified` counts the messages that were read back and checked, or the receipts.
    #[must_use]
    pub fn row(self, pairs: Vec<Pair>, verified: u64) -> Row {
        let value = Extent::of(pairs.iter().map(|pair| pair.value).collect());
        let limit = Extent::of(pairs.iter().map(|pair| pair.limit).collect());
        let ratio = Extent::of(pairs.iter().map(|pair| pair.ratio()).collect());
        Row {
            number: self.number,
            name: self.name,
            value: value.median,
            unit: self.unit.to_owned(),
            limit_name: self.limit.to_owned(),
            limit: limit.median,
            ratio,
            target: self.goal,
            met: self.goal.is_met(value.median, ratio.median),
            flush: self.flush.to_owned(),
            verified,
            command: command(self.number),
            note: self.note,
            pairs,
        }
    }
}

/// How one target is measured again.
#[must_use]
pub fn command(number: u8) -> String {
    format!("cargo bench --bench targets -- {number}")
}

/// One row, measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The number of the target.
    pub number: u8,
    /// What was measured, with sizes.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Of value and limit.
    pub unit: String,
    /// What the value is held against.
    pub limit_name: String,
    /// The median of it.
    pub limit: f64,
    /// Value to limit, pair by pair.
    pub ratio: Extent,
    /// What the median of the ratios has to reach.
    pub target: Goal,
    /// Whether it does; `None` without a target.
    pub met: Option<bool>,
    /// What acknowledged or read data survives.
    pub flush: String,
    /// Messages that were read back and checked, or receipts.
    pub verified: u64,
    /// Measures it again.
    pub command: String,
    /// What else a reader has to know to judge it.
    pub note: String,
    /// All measurements, in the order in which they were made.
    pub pairs: Vec<Pair>,
}

impl Row {
    /// A number in the row's unit, short.
    #[must_use]
    pub fn show(&self, number: f64) -> String {
        match self.unit.as_str() {
            "msg/s" => format!("{}/s", short(number)),
            unit if number.abs() >= 100.0 => format!("{number:.0} {unit}"),
            unit if number == 0.0 || number.abs() >= 0.1 => format!("{number:.1} {unit}"),
            unit => format!("{number:.6} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(goal: Goal) -> Subject {
        Subject {
            number: 1,
            name: "append".into(),
            unit: "msg/s",
            flush: "buffered",
            limit: "LIMIT",
            goal,
            note: String::new(),
        }
    }

    #[test]
    fn each_value_stands_between_two_limits() {
        let (mut limits, mut values) = ([10.0, 20.0, 40.0].into_iter(), [6.0, 3.0].into_iter());
        let pairs = side_by_side(2, || Ok(limits.next().unwrap()), || Ok(values.next().unwrap())).unwrap();
        assert_eq!(pairs, [Pair { value: 6.0, limit: 15.0 }, Pair { value: 3.0, limit: 30.0 }]);
    }

    #[test]
    fn the_median_of_the_ratios_is_judged() {
        let pairs = |ratios: [f64; 3]| ratios.map(|value| Pair { value, limit: 1.0 }).to_vec();
        let row = subject(Goal::AtLeast(0.7)).row(pairs([0.9, 0.1, 0.7]), 5);
        assert_eq!((row.ratio.min, row.ratio.median, row.ratio.max), (0.1, 0.7, 0.9));
        assert_eq!((row.met, row.verified, row.command.as_str()), (Some(true), 5, "cargo bench --bench targets -- 1"));
        assert_eq!(subject(Goal::AtLeast(0.7)).row(pairs([0.9, 0.6, 0.1]), 5).met, Some(false));
        assert_eq!(subject(Goal::AtMost(3.0)).row(pairs([4.0, 3.0, 1.0]), 5).met, Some(true));
        assert_eq!(subject(Goal::AtMost(3.0)).row(pairs([4.0, 3.1, 1.0]), 5).met, Some(false));
        assert_eq!(subject(Goal::Zero).row(pairs([0.0, 0.0, 0.0]), 5).met, Some(true));
        assert_eq!(subject(Goal::Zero).row(pairs([0.0, 1.0, 2.0]), 5).met, Some(false));
        assert_eq!(subject(Goal::None).row(pairs([1.0, 1.0, 1.0]), 5).met, None);
    }
}

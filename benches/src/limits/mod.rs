//! What this machine can do at best, measured in the same run as everything that is held against it.

mod encode;
mod fresh;
mod ping;
mod pipeline;
mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use encode::Encoder;
pub use fresh::{FreshLog, RoomAhead};
pub use ping::ping_time;
pub use pipeline::Pipeline;
pub use sync::SyncFile;

use crate::Result;
use crate::configuration::Bound;
use crate::profile::Profile;
use crate::table::{bytes, short};

/// Digits that histograms of times keep.
pub(crate) const HISTOGRAM_DIGITS: u8 = 3;

/// Median and tail of a time, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// Half of all are shorter.
    pub p50_us: f64,
    /// 99 of 100 are shorter.
    pub p99_us: f64,
}

impl Spread {
    /// Of at least one time in nanoseconds.
    fn of(mut nanos: Vec<f64>) -> Self {
        nanos.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| nanos[(nanos.len() - 1) * percent / 100] / 1e3;
        Self { p50_us: at(50), p99_us: at(99) }
    }

    /// Of a histogram of nanoseconds.
    pub(crate) fn of_histogram(times: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "times are shorter than 2^52 ns")]
        let at = |share| times.value_at_quantile(share) as f64 / 1e3;
        Self { p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// The physical limits at one body size.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of each body.
    pub body_bytes: usize,
    /// LIMIT: messages per second of one thread that encodes records in place.
    pub encode_per_second: f64,
    /// SYNC: a positioned write of 4 KiB and an fdatasync.
    pub sync: Spread,
    /// PING: a round trip between two threads.
    pub ping: Spread,
}

impl Limits {
    /// Measures all of them at the encoder's size. A machine is not equally fast all the time, so each group of
    /// configurations is held against what was measured right before it.
    ///
    /// # Errors
    /// When the file in `directory` cannot be written or a thread is lost.
    pub fn measure(profile: &Profile, encoder: &mut Encoder, directory: &Path) -> Result<Self> {
        Ok(Self {
            body_bytes: encoder.body_bytes(),
            encode_per_second: encoder.rate(),
            sync: SyncFile::new(directory)?.time(profile.limit_rounds)?,
            ping: ping_time(profile.limit_rounds)?,
        })
    }

    /// What a bound comes to, in messages per second.
    #[must_use]
    pub fn messages_per_second(&self, bound: Bound, parameter: usize) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "batches and writers are far below 2^52")]
        let count = parameter as f64;
        match bound {
            Bound::Limit => Some(self.encode_per_second),
            Bound::BatchPerSync => Some(count * 1e6 / self.sync.p50_us),
            Bound::HalfTheWritersPerSync => Some(count / 2.0 * 1e6 / self.sync.p50_us),
            Bound::Ping => Some(1e6 / self.ping.p50_us),
            Bound::None => None,
        }
    }
}

/// Limits of every group of configurations, by the group's name.
pub type GroupLimits = BTreeMap<String, Limits>;

/// What a report says of all limits of a run: a name, and how far its figures went.
#[must_use]
pub fn facts(limits: &GroupLimits) -> Vec<(String, String)> {
    let micros = |figures: Range| format!("{:.1} us, from {:.1} to {:.1}", figures.median, figures.low, figures.high);
    let rates =
        |figures: Range| format!("{}/s, from {} to {}", short(figures.median), short(figures.low), short(figures.high));
    let sync = Range::of(limits.values().map(|limits| limits.sync.p50_us));
    let ping = Range::of(limits.values().map(|limits| limits.ping.p50_us));
    let sizes: BTreeSet<usize> = limits.values().map(|limits| limits.body_bytes).collect();
    let encode = sizes.into_iter().map(|size| {
        let of_size = limits.values().filter(|limits| limits.body_bytes == size);
        let range = Range::of(of_size.map(|limits| limits.encode_per_second));
        (format!("LIMIT {}, one thread encodes in place", bytes(size)), range.map(rates))
    });
    let times = [
        ("SYNC, p50 of writing 4 KiB in place and fdatasync".to_owned(), sync.map(micros)),
        ("PING, p50 of a round trip between two threads".to_owned(), ping.map(micros)),
    ];
    times.into_iter().chain(encode).filter_map(|(name, value)| Some((name, value?))).collect()
}

/// How far a figure went in the course of a run.
#[derive(Clone, Copy)]
struct Range {
    low: f64,
    median: f64,
    high: f64,
}

impl Range {
    /// `None` without any figure.
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_unstable_by(f64::total_cmp);
        Some(Self { low: *figures.first()?, median: figures[figures.len() / 2], high: *figures.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_measured_and_turned_into_rates() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits::measure(&Profile::tiny(), &mut Encoder::new(256), directory.path()).unwrap();
        assert!(limits.encode_per_second > 1000.0);
        assert!(limits.sync.p50_us > 0.0 && limits.sync.p50_us <= limits.sync.p99_us);
        assert!(limits.ping.p50_us > 0.0 && limits.ping.p50_us <= limits.ping.p99_us);
        let one = limits.messages_per_second(Bound::BatchPerSync, 1).unwrap();
        let writers = limits.messages_per_second(Bound::HalfTheWritersPerSync, 16).unwrap();
        assert!((writers / one - 8.0).abs() < 1e-9);
        assert_eq!(limits.messages_per_second(Bound::None, 1), None);
    }
}

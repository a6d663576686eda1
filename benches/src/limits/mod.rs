//! What this machine can do at best, measured in the same run as everything that is held against it.

mod encode;
mod ping;
mod sync;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

pub use encode::encode_rate;
pub use ping::ping_time;
pub use sync::sync_time;

use crate::Result;
use crate::configuration::Bound;
use crate::profile::Profile;

/// Median and tail of a time, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
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
}

/// The physical limits.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Limits {
    /// LIMIT by body size: messages per second of one thread that encodes records in place.
    pub encode_per_second: BTreeMap<usize, f64>,
    /// SYNC: a positioned write of 4 KiB and an fdatasync.
    pub sync: Spread,
    /// PING: a round trip between two threads.
    pub ping: Spread,
}

impl Limits {
    /// Measures all of them.
    ///
    /// # Errors
    /// When the file in `directory` cannot be written or a thread is lost.
    pub fn measure(profile: &Profile, directory: &Path) -> Result<Self> {
        let encode = profile.body_bytes.iter().map(|bytes| (*bytes, encode_rate(*bytes)));
        Ok(Self {
            encode_per_second: encode.collect(),
            sync: sync_time(directory, profile.limit_rounds)?,
            ping: ping_time(profile.limit_rounds)?,
        })
    }

    /// What a bound comes to, in messages per second.
    #[must_use]
    pub fn messages_per_second(&self, bound: Bound, body_bytes: usize, parameter: usize) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "batches and writers are far below 2^52")]
        let count = parameter as f64;
        match bound {
            Bound::Limit => self.encode_per_second.get(&body_bytes).copied(),
            Bound::BatchPerSync => Some(count * 1e6 / self.sync.p50_us),
            Bound::HalfTheWritersPerSync => Some(count / 2.0 * 1e6 / self.sync.p50_us),
            Bound::Ping => Some(1e6 / self.ping.p50_us),
            Bound::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_measured_and_turned_into_rates() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits::measure(&Profile::tiny(), directory.path()).unwrap();
        assert!(limits.encode_per_second[&256] > 1000.0);
        assert!(limits.sync.p50_us > 0.0 && limits.sync.p50_us <= limits.sync.p99_us);
        assert!(limits.ping.p50_us > 0.0 && limits.ping.p50_us <= limits.ping.p99_us);
        let one = limits.messages_per_second(Bound::BatchPerSync, 256, 1).unwrap();
        let writers = limits.messages_per_second(Bound::HalfTheWritersPerSync, 256, 16).unwrap();
        assert!((writers / one - 8.0).abs() < 1e-9);
        assert_eq!(limits.messages_per_second(Bound::None, 256, 1), None);
    }
}

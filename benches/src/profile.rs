//! How much is measured, and for how long.

use std::time::Duration;

use crate::Result;

/// Chooses the profile: `quick` or `full`.
pub const PROFILE_VARIABLE: &str = "CUEMQ_BENCH";

const MIB: u64 = 1 << 20;

/// How much is measured, and for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// `quick`, `full` or `tiny`.
    pub name: &'static str,
    /// Body sizes in bytes.
    pub body_bytes: Vec<usize>,
    /// Messages per raw append and per fetch.
    pub batches: Vec<usize>,
    /// Body bytes that one store takes before a fresh one replaces it: bounds the disk in use.
    pub store_bytes: u64,
    /// Body bytes in a store that is read, fetched or reopened.
    pub loaded_bytes: u64,
    /// Most memory that the LSM engine collects before it writes a table.
    pub lsm_memtable_bytes: u64,
    /// How long criterion warms up.
    pub warm_up: Duration,
    /// How long criterion measures.
    pub measurement: Duration,
    /// How many samples criterion takes; at least 10.
    pub samples: usize,
    /// Whether criterion draws its own plots, which take longer than a quick measurement.
    pub criterion_plots: bool,
    /// How often each physical limit is measured, in passes or round trips.
    pub limit_rounds: usize,
}

impl Profile {
    /// About half a minute on two cores.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            name: "quick",
            body_bytes: vec![256, 1024],
            batches: vec![1, 64],
            store_bytes: 32 * MIB,
            loaded_bytes: 4 * MIB,
            // The default of 64 MiB would be filled only once in a short run and never merged.
            lsm_memtable_bytes: 8 * MIB,
            warm_up: Duration::from_millis(40),
            measurement: Duration::from_millis(80),
            samples: 10,
            criterion_plots: false,
            limit_rounds: 200,
        }
    }

    /// For reports: some 20 minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            name: "full",
            body_bytes: vec![128, 256, 1024, 16 << 10],
            batches: vec![1, 16, 64, 256],
            store_bytes: 256 * MIB,
            loaded_bytes: 32 * MIB,
            lsm_memtable_bytes: 64 * MIB,
            warm_up: Duration::from_secs(1),
            measurement: Duration::from_secs(3),
            samples: 20,
            criterion_plots: true,
            limit_rounds: 1000,
        }
    }

    /// One small verified pass of everything, for tests: measures nothing.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            body_bytes: vec![256],
            batches: vec![1, 64],
            store_bytes: 64 << 10,
            loaded_bytes: 64 << 10,
            lsm_memtable_bytes: MIB,
            warm_up: Duration::from_millis(1),
            measurement: Duration::from_millis(1),
            samples: 10,
            criterion_plots: false,
            limit_rounds: 20,
        }
    }

    /// The profile that `CUEMQ_BENCH` names, `quick` when it names none.
    ///
    /// # Errors
    /// When it names another one.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(PROFILE_VARIABLE).as_deref() {
            Err(_) | Ok("" | "quick") => Ok(Self::quick()),
            Ok("full") => Ok(Self::full()),
            Ok(other) => Err(format!("{PROFILE_VARIABLE} is {other:?}: use quick or full").into()),
        }
    }

    /// How many messages of this size a loaded store has.
    #[must_use]
    pub fn loaded_messages(&self, body_bytes: usize) -> u64 {
        (self.loaded_bytes / body_bytes as u64).max(1)
    }
}

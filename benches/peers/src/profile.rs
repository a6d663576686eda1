//! How much is measured, and for how long.

use std::time::Duration;

use cuemq_benches::profile::PROFILE_VARIABLE;

use crate::Result;

const MIB: u64 = 1 << 20;

/// How much is measured, and for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// `quick`, `full` or `tiny`.
    pub name: &'static str,
    /// Body sizes in bytes.
    pub body_bytes: Vec<usize>,
    /// Messages per append.
    pub batches: Vec<usize>,
    /// The one of them after which reading back is measured too; it is checked after all of them.
    pub fetch_batch: usize,
    /// How often everything is measured. In each round all contenders take turns.
    pub rounds: usize,
    /// How long a store is written before it is measured.
    pub warm_up: Duration,
    /// How long it is measured.
    pub time: Duration,
    /// Body bytes after which it ends all the same: bounds the disk in use.
    pub most_bytes: u64,
    /// Writers of the group commit.
    pub writers: u64,
    /// Messages that each of them writes.
    pub messages_per_writer: u64,
    /// How often the physical limits are measured, in round trips.
    pub limit_rounds: usize,
}

impl Profile {
    /// Some two minutes on two cores.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            name: "quick",
            body_bytes: vec![256, 1024],
            batches: vec![1, 64, 256, 1024],
            fetch_batch: 256,
            rounds: 5,
            warm_up: Duration::from_millis(5),
            time: Duration::from_millis(50),
            most_bytes: 32 * MIB,
            writers: 16,
            messages_per_writer: 60,
            limit_rounds: 200,
        }
    }

    /// For reports: some fifteen minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            name: "full",
            rounds: 11,
            time: Duration::from_millis(250),
            most_bytes: 128 * MIB,
            messages_per_writer: 250,
            limit_rounds: 1000,
            ..Self::quick()
        }
    }

    /// One small pass of everything that only checks.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            body_bytes: vec![256],
            batches: vec![1, 64],
            fetch_batch: 64,
            rounds: 1,
            warm_up: Duration::ZERO,
            time: Duration::from_millis(1),
            most_bytes: MIB,
            writers: 4,
            messages_per_writer: 5,
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
}

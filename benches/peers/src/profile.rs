//! How much is measured, and for how long.

use std::time::Duration;

use cuemq_benches::profile::Profile as EngineProfile;

use crate::Result;

const MIB: u64 = 1 << 20;

/// How much is measured, and for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The profile of CueMQ's own benchmark that goes with it: names it, and says how its engines are opened and how
    /// often the machine's limits are measured.
    pub engine: EngineProfile,
    /// Bytes of the bodies, size by size.
    pub sizes: Vec<usize>,
    /// Messages per append.
    pub appends: Vec<usize>,
    /// The one of them after which reading back is measured too; it is checked after all of them.
    pub fetch_after: usize,
    /// How often everything is measured. In each round all contenders take turns.
    pub rounds: usize,
    /// How long a store is written before it is measured.
    pub before: Duration,
    /// How long it is measured.
    pub time: Duration,
    /// Body bytes after which it ends all the same: bounds the disk in use.
    pub most_bytes: u64,
    /// Writers of the group commit.
    pub writers: u64,
    /// Messages that each of them writes.
    pub messages_per_writer: u64,
}

impl Profile {
    /// Some two minutes on two cores.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            engine: EngineProfile::quick(),
            sizes: vec![256, 1024],
            appends: vec![1, 64, 256, 1024],
            fetch_after: 256,
            rounds: 5,
            before: Duration::from_millis(5),
            time: Duration::from_millis(50),
            most_bytes: 32 * MIB,
            writers: 16,
            messages_per_writer: 60,
        }
    }

    /// For reports: some fifteen minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            engine: EngineProfile::full(),
            rounds: 11,
            time: Duration::from_millis(250),
            most_bytes: 128 * MIB,
            messages_per_writer: 250,
            ..Self::quick()
        }
    }

    /// One small pass of everything that only checks.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            engine: EngineProfile::tiny(),
            sizes: vec![256],
            appends: vec![1, 64],
            fetch_after: 64,
            rounds: 1,
            before: Duration::ZERO,
            time: Duration::from_millis(1),
            most_bytes: MIB,
            writers: 4,
            messages_per_writer: 5,
        }
    }

    /// The profile that goes with the one that `CUEMQ_BENCH` names.
    ///
    /// # Errors
    /// When it names none that there is.
    pub fn from_environment() -> Result<Self> {
        let engine = EngineProfile::from_environment()?;
        Ok(if engine.name == EngineProfile::full().name { Self::full() } else { Self::quick() })
    }
}

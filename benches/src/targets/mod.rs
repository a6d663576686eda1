//! The targets of the project's speed, and of the delivery beside it: each row is measured beside its own limit in the same process and run,
//! several times in turns, and everything it counts is read back and checked.

mod append;
mod bare_fjall;
mod durable;
mod fetch;
mod growth;
mod key_order;
mod latency;
mod lsm;
mod opening;
mod start;
mod supervision;
mod through;
mod transactions;

pub mod board;
pub mod child;
pub mod choice;
pub mod plot;
pub mod row;
pub mod scale;

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::place::Place;
use crate::profile::Profile;
use row::Row;
use scale::Scale;

/// What every target is measured with.
#[derive(Debug)]
pub struct Context {
    /// The profile.
    pub profile: Profile,
    /// How much is measured.
    pub scale: Scale,
    /// Where the stores lie.
    pub place: Place,
    /// The program that [`child`] runs in, for what needs a process of its own; without it such rows are left out.
    pub program: Option<PathBuf>,
    /// Cargo's target directory.
    pub target: PathBuf,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its numbers in the table: one, or two that are measured in turns.
    pub numbers: &'static [u8],
    /// What it is about.
    pub title: &'static str,
    measure: fn(&Context) -> Result<Vec<Row>>,
}

impl Target {
    /// Measures its rows.
    ///
    /// # Errors
    /// Whatever engine or broker meet, and what a check finds.
    pub fn measure(&self, context: &Context) -> Result<Vec<Row>> {
        (self.measure)(context)
            .map_err(|failure| format!("target {:?}, {}: {failure}", self.numbers, self.title).into())
    }
}

/// All targets but the ninth, embedded peers, which has a crate of its own.
pub const ALL: [Target; 12] = [
    Target { numbers: &[1], title: "raw apply", measure: append::run },
    Target { numbers: &[2, 3], title: "through the actors, and to a consumer and back", measure: through::run },
    Target { numbers: &[4], title: "latency from a send to a handler", measure: latency::run },
    Target { numbers: &[5], title: "group commit", measure: durable::run },
    Target { numbers: &[6], title: "fetch", measure: fetch::run },
    Target { numbers: &[7], title: "the LSM engine against bare fjall", measure: lsm::run },
    Target { numbers: &[8], title: "opening a store again", measure: opening::run },
    Target { numbers: &[10], title: "queues, groups, backlog, idle topics", measure: growth::run },
    Target { numbers: &[11], title: "start, idle memory, size", measure: start::run },
    Target { numbers: &[12], title: "supervision", measure: supervision::run },
    Target { numbers: &[13], title: "order by key beside one that hangs", measure: key_order::run },
    Target { numbers: &[14], title: "transactions beside plain sends", measure: transactions::run },
];

/// A rate.
#[expect(clippy::cast_precision_loss, reason = "messages of one pass are far below 2^52")]
fn per_second(messages: u64, time: Duration) -> f64 {
    messages as f64 / time.as_secs_f64()
}

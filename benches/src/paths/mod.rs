//! The loads: each runs one configuration, times it, and proves that what it counted is there.

mod append;
pub(crate) mod end_to_end;
pub(crate) mod fetch;
pub(crate) mod group_commit;
pub(crate) mod house;
pub(crate) mod reopen;
pub(crate) mod send;
pub(crate) mod transact;

use std::sync::Arc;
use std::time::Duration;

use cuemq::Flush;
use house::House;

use crate::Result;
use crate::configuration::{Configuration, Path};
use crate::place::Place;
use crate::profile::Profile;
use crate::workload::Bodies;

/// One configuration, ready to run.
pub trait Rig {
    /// Runs the load so many times and returns the time that took, without preparation, change of stores and checks.
    ///
    /// # Errors
    /// Whatever engine or broker meet, and what a check finds.
    fn run(&mut self, iterations: u64) -> Result<Duration>;

    /// Reads back and checks what was not checked while it ran, closes everything, and returns how many messages were
    /// checked in all.
    ///
    /// # Errors
    /// What the check finds.
    fn finish(&mut self) -> Result<u64>;
}

/// Makes the rig of a configuration, with its store loaded if it reads one.
///
/// # Errors
/// Whatever engine or broker meet.
pub fn build(configuration: &Configuration, profile: &Profile, place: &Place) -> Result<Box<dyn Rig>> {
    let setting = Setting { configuration: *configuration, profile: profile.clone(), place: place.clone() };
    Ok(match configuration.path {
        Path::AppendBuffered | Path::AppendDurable => Box::new(append::AppendRig::new(setting)?),
        Path::GroupCommit => Box::new(group_commit::GroupCommitRig::new(setting)?),
        Path::SendSingle | Path::SendBatch => Box::new(send::SendRig::new(setting)?),
        Path::EndToEnd => Box::new(end_to_end::EndToEndRig::new(setting)?),
        Path::FetchTail => Box::new(fetch::TailRig::new(setting)?),
        Path::FetchCold => Box::new(fetch::ColdRig::new(setting)?),
        Path::ReopenClean => Box::new(reopen::CleanRig::new(setting)?),
        Path::ReopenDropped => Box::new(reopen::DroppedRig::new(setting)?),
    })
}

/// What every rig is made from.
#[derive(Clone, Debug)]
struct Setting {
    configuration: Configuration,
    profile: Profile,
    place: Place,
}

impl Setting {
    /// Iterations that one store has room for.
    fn iterations_per_store(&self) -> u64 {
        let configuration = &self.configuration;
        let bytes = configuration.messages_per_iteration() * configuration.body_bytes as u64;
        (self.profile.store_bytes / bytes).max(1)
    }

    /// Iterations until a broker's present store is full.
    fn room(&self, house: &House) -> u64 {
        self.iterations_per_store().saturating_sub(house.ledger.end() / self.configuration.messages_per_iteration())
    }

    fn house(&self, flush: Flush) -> Result<House> {
        let bodies = Arc::new(Bodies::new(self.configuration.body_bytes));
        House::new(self.configuration.engine, bodies, flush, &self.profile, &self.place)
    }
}

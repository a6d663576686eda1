//! What every engine must keep, one case per law.
//!
//! An engine's tests implement [`Fixture`] for whatever they open it over and expand
//! [`conformance_suite!`](crate::conformance_suite) once per fixture, inside a module:
//!
//! ```ignore
//! mod over_real_files {
//!     use super::*;
//!     cuemq_storage_api::conformance_suite!(TempDirFixture);
//! }
//! ```
//!
//! Each case opens its own fresh store, needs no clock and no sleep, and fails by panicking. The `model` group drives
//! the engine and [`MemoryEngine`](crate::MemoryEngine) with generated operations and compares all answers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a case fails")]

use crate::engine::{Engine, Retention};
use crate::error::Result;

pub mod appends;
pub mod fetches;
pub mod positions;
mod sample;
pub mod trims;

/// Something an engine can be opened over again and again: a directory, a bucket, a map.
pub trait Fixture: Sized {
    /// The engine that is tested.
    type Engine: Engine;

    /// How many payload bytes at most stay behind when the records among them expire, because the engine gives back
    /// whole files: the size of one such file, and a fixture makes it small. 0 where each record goes by itself.
    const EXPIRY_GRAIN_BYTES: usize = 0;

    /// A place where nothing was ever stored. Owns what it uses and removes it when dropped.
    fn fresh() -> Self;

    /// Opens the engine there, with this retention and otherwise settings of the fixture's choice.
    ///
    /// # Errors
    /// What the engine's own `open` meets; `Locked` while another engine is open there.
    fn open_with(&mut self, retention: Retention) -> Result<Self::Engine>;

    /// Opens the engine there with a retention that removes nothing younger than three days, however full the disk.
    ///
    /// # Errors
    /// As [`open_with`](Fixture::open_with).
    fn open(&mut self) -> Result<Self::Engine> {
        self.open_with(Retention { disk_watermark_percent: 100, ..Retention::default() })
    }

    /// Closes the engine and opens it again.
    ///
    /// # Errors
    /// What closing or opening meets.
    fn reopen(&mut self, engine: Self::Engine) -> Result<Self::Engine> {
        engine.close()?;
        drop(engine);
        self.open()
    }

    /// Ends the engine as a crash does, without closing it, and leaves what a crash may leave: everything synced
    /// and, of the rest, what the fixture can lose. `seed` says how much of that: 0 loses as much as possible, other
    /// numbers choose among what is possible. A fixture over real files loses nothing and ignores it.
    fn crash(&mut self, engine: Self::Engine, seed: u64);
}

/// Expands to one test per conformance case, in one module per group, for a type that implements
/// [`Fixture`](crate::conformance::Fixture).
#[macro_export]
macro_rules! conformance_suite {
    ($fixture:ty) => {
        $crate::conformance_cases!(conformance_tests, $fixture);
    };
}

/// The one list of all cases, handed to another macro.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($then:ident, $fixture:ty) => {
        $crate::$then! { $fixture;
            appends {
                offsets_are_dense_from_zero,
                one_batch_serves_many_queues,
                one_queue_may_come_twice_in_a_batch,
                positions_rise_over_queues_and_batches,
                stored_times_never_fall,
                an_empty_batch_changes_nothing,
                empty_bodies_are_kept,
                large_bodies_are_kept,
                bodies_of_all_bytes_are_kept,
                attributes_come_back,
                born_times_come_back,
                a_thousand_queues,
                a_batch_of_ten_thousand,
                the_longest_names_are_kept,
            }
            fetches {
                the_count_limit_holds,
                the_byte_limit_holds,
                one_record_comes_however_large,
                a_limit_of_zero_returns_nothing,
                nothing_comes_from_the_end,
                an_unknown_queue_is_empty,
                until_hides_what_is_behind,
                until_below_from_returns_nothing,
                until_beyond_the_end_is_the_end,
                outside_the_bounds_is_refused,
                bounds_come_with_every_fetch,
                a_filter_passes_what_matches,
                next_passes_over_what_was_skipped,
                a_filter_that_matches_nothing_reaches_the_end,
                a_filter_keeps_within_its_limits,
                tags_that_share_a_hash_both_pass,
                pages_cover_a_queue_once,
                no_fetch_returns_more_than_the_cap,
            }
            trims {
                a_trim_raises_the_minimum,
                a_trim_stops_at_the_end,
                a_trim_never_goes_back,
                an_empty_queue_goes_on_counting,
                a_trim_of_an_unknown_queue_makes_none,
                a_trim_sees_the_appends_before_it,
                a_trim_spares_the_appends_behind_it,
                a_trim_spares_other_queues,
                trimmed_queues_stay_listed,
                queues_are_listed_in_key_order,
            }
            positions {
                every_position_leads_to_its_record,
                no_record_begins_elsewhere,
                trimmed_records_are_gone,
            }
        }
    };
}

/// Makes tests of the list.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($fixture:ty; $($group:ident { $($case:ident),* $(,)? })*) => {
        $(mod $group {
            #[allow(unused_imports)]
            use super::*;
            $(#[test]
            fn $case() {
                $crate::conformance::$group::$case::<$fixture>();
            })*
        })*
    };
}

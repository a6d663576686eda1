//! What every engine must keep, one case per law.
//!
//! An engine's tests implement [`Fixture`] for whatever they open it over and expand
//! [`conformance_suite!`](crate::conformance_suite) once per fixture, inside a module:
//!
//! ```
//! use cuemq_storage_api::conformance::Fixture;
//! use cuemq_storage_api::{MemoryEngine, MemoryStore, Result, Retention};
//!
//! struct MemoryFixture(MemoryStore);
//!
//! impl Fixture for MemoryFixture {
//!     type Engine = MemoryEngine;
//!
//!     fn fresh() -> Self {
//!         Self(MemoryStore::new())
//!     }
//!
//!     fn open_with(&mut self, retention: Retention) -> Result<MemoryEngine> {
//!         Ok(MemoryEngine::open(&self.0)?.with_retention(retention))
//!     }
//!
//!     fn crash(&mut self, engine: MemoryEngine, seed: u64) {
//!         self.0.crash(usize::try_from(seed % 13).expect("below 13"));
//!         drop(engine);
//!     }
//! }
//!
//! mod over_memory {
//!     use super::*;
//!     cuemq_storage_api::conformance_suite!(MemoryFixture);
//! }
//! # cuemq_storage_api::conformance::trims::a_trim_never_goes_back::<MemoryFixture>();
//! ```
//!
//! Each case opens its own fresh store, needs no clock and no sleep, and fails by panicking. The `model` group drives
//! the engine and [`MemoryEngine`](crate::MemoryEngine) with generated operations and compares all answers.
//!
//! # What the cases settle
//!
//! The trait says what a method does; where two engines could read it differently, the cases decide:
//!
//! * A trim stops at the queue's end as it is at that place in the batch: behind an append it sees the new records,
//!   before one it does not. Trimming a queue that never had a record does not bring it into being.
//! * Of a put and a delete of one row within a batch the last one counts.
//! * A placed row keeps its place among the changes: a put or delete of the same row behind it wins.
//! * Every batch that is not empty has a higher mark than the one before it and moves the stored time on, whether it
//!   holds records or not; that time is remembered over a restart. An empty batch reports the mark that holds.
//! * A fetch checks its bounds even when its limit is 0. `until` below `from` returns nothing and `next` is `from`;
//!   `until` behind the end is the end. Where nothing matches, `next` is `until` or the end; where a limit stopped
//!   the fetch, `next` lies behind the last record returned and no further than the next record that matches.
//! * A scan whose `to` is not above its `from` has no rows.
//! * After a clean reopening everything found is durable. After a crash it is once a sync has covered it.
//! * Retention by age removes what is older than its age, not what is exactly as old. How much more stays is up to
//!   the engine, within [`Fixture::EXPIRY_GRAIN_BYTES`]. After a crash, what expired may be back.
//! * Dropping an engine that was not closed frees its store.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a case fails")]

use crate::engine::{Engine, Retention};
use crate::error::Result;

pub mod appends;
pub mod batches;
pub mod caps;
pub mod closes;
pub mod crashes;
pub mod fetches;
pub mod keys;
pub mod maintenance;
pub mod marks;
pub mod model;
pub mod places;
pub mod positions;
pub mod readers;
pub mod reopens;
mod rounds;
mod sample;
mod steps;
pub mod tables;
pub mod times;
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
            times {
                the_first_at_or_after_a_time,
                equal_times_lead_to_the_first,
                beyond_the_records_are_the_bounds,
                an_unknown_queue_answers_zero,
                trimmed_times_lead_to_the_minimum,
                times_that_were_raised_are_found_raised,
                every_time_of_a_long_queue_is_found,
            }
            keys {
                the_newest_comes_first,
                every_queue_of_the_topic_is_searched,
                topics_are_kept_apart,
                colliding_keys_are_kept_apart,
                only_the_whole_key_counts,
                the_time_range_is_half_open,
                the_limit_keeps_the_newest,
                trimmed_records_are_not_found,
                each_key_of_a_record_finds_it_once,
                long_and_foreign_keys_work,
                many_keys_are_told_apart,
            }
            tables {
                rows_that_were_put_are_there,
                the_last_value_counts,
                deleted_rows_are_gone,
                within_a_batch_the_last_word_counts,
                rows_come_in_byte_order,
                a_scan_is_half_open,
                an_empty_range_has_no_rows,
                a_limited_scan_goes_on_behind_its_last_key,
                tables_are_kept_apart,
                long_keys_and_large_values_are_kept,
                many_rows_over_many_batches,
                no_scan_returns_more_than_the_cap,
            }
            batches {
                a_batch_lands_in_queues_and_tables,
                a_refused_batch_leaves_nothing,
                a_move_is_one_batch,
                joined_batches_are_one,
                batches_without_records_have_marks,
            }
            places {
                a_row_names_its_record,
                later_appends_count_on,
                queues_are_counted_apart,
                joined_batches_keep_their_places,
                trimmed_queues_count_on,
                a_reopened_store_counts_on,
                the_last_word_on_a_row_counts,
                a_place_without_a_record_is_refused,
                rows_and_records_crash_together,
            }
            reopens {
                an_empty_store_reopens_empty,
                everything_is_the_same,
                offsets_and_positions_go_on,
                trims_stay,
                rows_stay_as_the_last_word_said,
                lookups_answer_as_before,
                a_large_last_record_is_whole,
                an_engine_that_was_only_dropped_can_be_reopened,
            }
            crashes {
                what_was_synced_stays,
                a_suffix_may_go_but_never_half_a_batch,
                a_crash_before_the_first_sync_leaves_a_store,
                writing_goes_on_after_a_crash,
                crashes_may_follow_each_other,
                a_crash_after_reopening_keeps_what_was_there,
                what_survived_is_synced_by_the_next_sync,
                synced_trims_and_deletions_stay,
                a_large_batch_is_whole_or_gone,
                times_do_not_fall_over_a_crash,
            }
            readers {
                a_reader_never_sees_half_a_batch,
                what_is_within_bounds_can_be_fetched,
                what_can_be_fetched_is_found,
                trims_do_not_disturb_readers,
                writers_take_turns,
            }
            caps {
                a_body_beyond_the_cap_is_refused,
                attributes_beyond_the_cap_are_refused,
                row_keys_beyond_the_caps_are_refused,
                a_value_beyond_the_cap_is_refused,
                too_many_changes_are_refused,
                too_many_bytes_are_refused,
                at_the_caps_all_is_well,
            }
            closes {
                a_second_close_does_nothing,
                a_closed_engine_refuses_everything,
                closing_makes_durable,
                records_outlive_their_engine,
                a_second_engine_is_locked_out,
            }
            marks {
                marks_rise_with_every_batch,
                a_sync_covers_what_was_applied,
                a_sync_without_writes_succeeds,
                the_durable_mark_never_falls,
                a_reopened_store_is_durable,
            }
            maintenance {
                nothing_visible_changes,
                old_records_expire,
                expired_records_stay_away,
                rows_do_not_expire,
                the_oldest_go_when_there_are_too_many_bytes,
            }
            model {
                matches_memory,
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

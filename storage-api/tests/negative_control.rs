//! The suite is worth something only if a broken engine fails it: each bug planted here is caught by the cases that
//! are about it and, where it can be seen through one engine's answers, by the model check too.
#![cfg(feature = "conformance")]

mod fixture;

use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::catch_unwind;

use bytes::Bytes;
use cuemq_storage_api::conformance::{
    Fixture, appends, batches, closes, crashes, fetches, keys, maintenance, marks, model, places, positions, reopens,
    tables, times, trims,
};
use cuemq_storage_api::{
    Appended, Applied, Capabilities, Engine, Fetch, FetchLimit, FetchRequest, KeyQuery, LocatedRecord, LogPosition,
    Maintenance, Mark, MemoryEngine, QueueKey, QueueOffset, Result, Retention, Row, Table, TagHashes, Timestamp,
    WriteBatch, WriteOperation, tag_hash,
};
use fixture::MemoryFixture;

/// One thing done wrong; everything else is done by the sound engine.
trait Bug: Debug + Send + Sync + 'static {
    fn apply(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
        engine.apply(batch)
    }
    fn sync(engine: &MemoryEngine) -> Result<Mark> {
        engine.sync()
    }
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        engine.fetch(request)
    }
    fn offset_at(engine: &MemoryEngine, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        engine.offset_at(queue, at)
    }
    fn record_at(engine: &MemoryEngine, position: LogPosition) -> Result<Option<LocatedRecord>> {
        engine.record_at(position)
    }
    fn find(engine: &MemoryEngine, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        engine.find(query)
    }
    fn scan(engine: &MemoryEngine, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        engine.scan(table, from, to, limit)
    }
    fn maintain(engine: &MemoryEngine, now: Timestamp) -> Result<Maintenance> {
        engine.maintain(now)
    }
    fn close(engine: &MemoryEngine) -> Result<()> {
        engine.close()
    }
}

#[derive(Debug)]
struct BrokenEngine<B>(MemoryEngine, PhantomData<B>);

impl<B: Bug> Engine for BrokenEngine<B> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        B::apply(&self.0, batch)
    }
    fn sync(&self) -> Result<Mark> {
        B::sync(&self.0)
    }
    fn durable(&self) -> Mark {
        self.0.durable()
    }
    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        B::fetch(&self.0, request)
    }
    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        self.0.bounds(queue)
    }
    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        self.0.queues()
    }
    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        B::offset_at(&self.0, queue, at)
    }
    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        B::record_at(&self.0, position)
    }
    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        B::find(&self.0, query)
    }
    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get(table, key)
    }
    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        B::scan(&self.0, table, from, to, limit)
    }
    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        B::maintain(&self.0, now)
    }
    fn close(&self) -> Result<()> {
        B::close(&self.0)
    }
}

struct BrokenFixture<B>(MemoryFixture, PhantomData<B>);

impl<B: Bug> Fixture for BrokenFixture<B> {
    type Engine = BrokenEngine<B>;

    fn fresh() -> Self {
        Self(MemoryFixture::fresh(), PhantomData)
    }
    fn open_with(&mut self, retention: Retention) -> Result<BrokenEngine<B>> {
        Ok(BrokenEngine(self.0.open_with(retention)?, PhantomData))
    }
    fn crash(&mut self, engine: BrokenEngine<B>, seed: u64) {
        self.0.crash(engine.0, seed);
    }
}

/// Plants a bug and names the cases that must fail for it.
macro_rules! bug {
    ($name:ident as $test:ident: $($group:ident::$case:ident),+; $($broken:item)+) => {
        #[derive(Debug)]
        struct $name;
        impl Bug for $name { $($broken)+ }

        #[test]
        fn $test() {
            $(
                let outcome = catch_unwind($group::$case::<BrokenFixture<$name>>);
                assert!(outcome.is_err(), "{} does not catch {}", stringify!($group::$case), stringify!($name));
            )+
        }
    };
}

fn records_of(engine: &MemoryEngine, queue: &QueueKey) -> Result<Fetch> {
    let bounds = engine.bounds(queue)?;
    engine.fetch(FetchRequest::all(queue, bounds.start, FetchLimit::messages(usize::MAX)))
}

/// Applies each change as a batch of its own and answers as if it had been one.
fn apply_one_by_one(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
    let stored_at = batch.stored_at();
    let mut whole = engine.apply(WriteBatch::new(stored_at))?;
    for operation in batch.into_operations() {
        let mut single = WriteBatch::new(stored_at);
        match operation {
            WriteOperation::Append { queue, records } => single.append_all(&queue, records),
            WriteOperation::Put { table, key, value } => single.put(&table, key, value),
            WriteOperation::PutPlaced { table, key, prefix, append, record } => {
                let appended: &Appended = &whole.appends[append];
                let place = appended.first.plus(record as u64).get().to_be_bytes();
                single.put(&table, key, [&prefix[..], &place].concat())
            }
            WriteOperation::Delete { table, key } => single.delete(&table, key),
            WriteOperation::Trim { queue, before } => single.trim(&queue, before),
        };
        let part = engine.apply(single)?;
        (whole.mark, whole.stored_at) = (part.mark, part.stored_at);
        whole.appends.extend(part.appends);
        whole.positions.extend(part.positions);
    }
    Ok(whole)
}

bug! { LosesTheLastRecord as losing_the_last_record_of_a_batch_is_caught:
    appends::offsets_are_dense_from_zero, appends::a_batch_of_ten_thousand, model::matches_memory;
    fn apply(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
        let mut shorter = WriteBatch::new(batch.stored_at());
        for operation in batch.into_operations() {
            match operation {
                WriteOperation::Append { queue, mut records } => {
                    let keep = records.len() - usize::from(records.len() > 1);
                    records.truncate(keep);
                    shorter.append_all(&queue, records)
                }
                WriteOperation::Put { table, key, value } => shorter.put(&table, key, value),
                WriteOperation::PutPlaced { table, key, prefix, append, record } => {
                    shorter.put_placed(&table, key, prefix, append, record)
                }
                WriteOperation::Delete { table, key } => shorter.delete(&table, key),
                WriteOperation::Trim { queue, before } => shorter.trim(&queue, before),
            };
        }
        engine.apply(shorter)
    }
}

bug! { HalfABatch as half_batches_are_caught:
    batches::a_refused_batch_leaves_nothing, crashes::a_suffix_may_go_but_never_half_a_batch,
    crashes::synced_trims_and_deletions_stay, model::matches_memory;
    fn apply(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
        apply_one_by_one(engine, batch)
    }
}

bug! { ForgetsAppendsBefore as places_that_ignore_the_batchs_own_appends_are_caught:
    places::later_appends_count_on, places::joined_batches_keep_their_places, model::matches_memory;
    fn apply(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
        let mut changed = WriteBatch::new(batch.stored_at());
        let mut ends = Vec::new();
        for operation in batch.into_operations() {
            match operation {
                WriteOperation::Append { queue, records } => {
                    ends.push(engine.bounds(&queue)?.end);
                    changed.append_all(&queue, records)
                }
                WriteOperation::Put { table, key, value } => changed.put(&table, key, value),
                WriteOperation::PutPlaced { table, key, prefix, append, record } => {
                    let place = ends[append].plus(record as u64).get().to_be_bytes();
                    changed.put(&table, key, [&prefix[..], &place].concat())
                }
                WriteOperation::Delete { table, key } => changed.delete(&table, key),
                WriteOperation::Trim { queue, before } => changed.trim(&queue, before),
            };
        }
        engine.apply(changed)
    }
}

bug! { TimesFall as falling_times_are_caught: appends::stored_times_never_fall, model::matches_memory;
    fn apply(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
        let stored_at = batch.stored_at();
        Ok(Applied { stored_at, ..engine.apply(batch)? })
    }
}

bug! { TrimsTooMuch as trimming_one_too_many_is_caught:
    trims::a_trim_raises_the_minimum, trims::a_trim_never_goes_back, reopens::trims_stay, model::matches_memory;
    fn apply(engine: &MemoryEngine, batch: WriteBatch) -> Result<Applied> {
        let mut changed = WriteBatch::new(batch.stored_at());
        for operation in batch.operations() {
            if let WriteOperation::Trim { queue, before } = operation {
                changed.trim(queue, before.plus(1));
            }
        }
        if changed.is_empty() { engine.apply(batch) } else { engine.apply(changed) }
    }
}

bug! { SyncsNothing as a_sync_that_lies_is_caught:
    crashes::what_was_synced_stays, crashes::writing_goes_on_after_a_crash, marks::a_sync_covers_what_was_applied,
    model::matches_memory;
    fn sync(engine: &MemoryEngine) -> Result<Mark> {
        Ok(engine.apply(WriteBatch::new(Timestamp::MIN))?.mark)
    }
}

bug! { NextStaysBehind as a_next_that_does_not_go_on_is_caught:
    fetches::the_count_limit_holds, fetches::pages_cover_a_queue_once, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        let mut fetch = engine.fetch(request)?;
        fetch.next = fetch.records.last().map_or(fetch.next, |last| last.offset);
        Ok(fetch)
    }
}

bug! { NextIgnoresSkipped as a_next_before_skipped_records_is_caught:
    fetches::next_passes_over_what_was_skipped, fetches::a_filter_that_matches_nothing_reaches_the_end,
    model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        let mut fetch = engine.fetch(request)?;
        fetch.next = fetch.records.last().map_or(request.from, |last| last.offset.plus(1));
        Ok(fetch)
    }
}

bug! { NextSkipsTooMuch as a_next_that_loses_records_is_caught:
    fetches::the_count_limit_holds, fetches::the_byte_limit_holds, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        let mut fetch = engine.fetch(request)?;
        fetch.next = request.until.unwrap_or(fetch.bounds.end).clamp(request.from, fetch.bounds.end);
        Ok(fetch)
    }
}

bug! { IgnoresUntil as reading_beyond_until_is_caught:
    fetches::until_hides_what_is_behind, fetches::until_below_from_returns_nothing, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        engine.fetch(FetchRequest { until: None, ..request })
    }
}

bug! { IgnoresBytes as reading_beyond_the_byte_limit_is_caught:
    fetches::the_byte_limit_holds, fetches::one_record_comes_however_large, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        let limit = FetchLimit { max_bytes: usize::MAX, ..request.limit };
        engine.fetch(FetchRequest { limit, ..request })
    }
}

bug! { NothingTooLarge as a_large_record_that_blocks_its_queue_is_caught:
    fetches::one_record_comes_however_large, fetches::a_filter_keeps_within_its_limits, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        let mut fetch = engine.fetch(request)?;
        if fetch.records.first().is_some_and(|first| first.record.payload_bytes() > request.limit.max_bytes) {
            fetch.next = fetch.records.remove(0).offset;
        }
        Ok(fetch)
    }
}

bug! { NoFilter as a_filter_that_passes_everything_is_caught:
    fetches::a_filter_passes_what_matches, fetches::tags_that_share_a_hash_both_pass, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        engine.fetch(FetchRequest { tags: &TagHashes::All, ..request })
    }
}

bug! { ClampsOutOfRange as an_out_of_range_that_is_hidden_is_caught:
    fetches::outside_the_bounds_is_refused, fetches::an_unknown_queue_is_empty, model::matches_memory;
    fn fetch(engine: &MemoryEngine, request: FetchRequest<'_>) -> Result<Fetch> {
        let bounds = engine.bounds(request.queue)?;
        engine.fetch(FetchRequest { from: request.from.clamp(bounds.start, bounds.end), ..request })
    }
}

bug! { StrictlyAfter as a_time_look_up_that_is_off_by_one_is_caught:
    times::the_first_at_or_after_a_time, times::equal_times_lead_to_the_first, model::matches_memory;
    fn offset_at(engine: &MemoryEngine, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        engine.offset_at(queue, at.plus(std::time::Duration::from_millis(1)))
    }
}

bug! { NearestRecord as a_position_between_records_is_caught: positions::no_record_begins_elsewhere;
    fn record_at(engine: &MemoryEngine, position: LogPosition) -> Result<Option<LocatedRecord>> {
        let at = |position| engine.record_at(LogPosition::new(position));
        Ok(at(position.get())?.or(at(position.get().saturating_sub(1))?))
    }
}

bug! { FindsCollisions as hash_collisions_are_caught:
    keys::colliding_keys_are_kept_apart, model::matches_memory;
    fn find(engine: &MemoryEngine, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        let mut found = Vec::new();
        for (queue, _) in engine.queues()?.into_iter().filter(|(queue, _)| queue.topic == *query.topic) {
            for stored in records_of(engine, &queue)?.records {
                let in_time = query.from <= stored.stored_at && stored.stored_at < query.to;
                let hash = tag_hash(query.key);
                if in_time && stored.record.attributes.keys().any(|key| tag_hash(key) == hash) {
                    found.push(LocatedRecord { queue: queue.clone(), stored });
                }
            }
        }
        found.sort_by_key(|located| std::cmp::Reverse(located.stored.position));
        found.truncate(query.limit);
        Ok(found)
    }
}

bug! { OldestFirst as the_wrong_order_of_found_records_is_caught:
    keys::the_newest_comes_first, keys::the_limit_keeps_the_newest, model::matches_memory;
    fn find(engine: &MemoryEngine, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        let mut found = engine.find(KeyQuery { limit: usize::MAX, ..query })?;
        found.reverse();
        found.truncate(query.limit);
        Ok(found)
    }
}

bug! { ClosedTimeRange as a_time_range_that_has_its_end_is_caught:
    keys::the_time_range_is_half_open, model::matches_memory;
    fn find(engine: &MemoryEngine, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        engine.find(KeyQuery { to: query.to.plus(std::time::Duration::from_millis(1)), ..query })
    }
}

bug! { ScansTooFar as a_scan_that_has_its_end_is_caught: tables::a_scan_is_half_open, model::matches_memory;
    fn scan(engine: &MemoryEngine, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let to = to.map(|to| [to, &[0]].concat());
        engine.scan(table, from, to.as_deref(), limit)
    }
}

bug! { NeverExpires as retention_that_does_nothing_is_caught:
    maintenance::old_records_expire, maintenance::the_oldest_go_when_there_are_too_many_bytes;
    fn maintain(_engine: &MemoryEngine, _now: Timestamp) -> Result<Maintenance> {
        Ok(Maintenance::default())
    }
}

bug! { ExpiresEarly as retention_that_takes_the_young_is_caught:
    maintenance::old_records_expire, model::matches_memory;
    fn maintain(engine: &MemoryEngine, now: Timestamp) -> Result<Maintenance> {
        engine.maintain(now.plus(std::time::Duration::from_secs(5)))
    }
}

bug! { NeverCloses as a_close_that_does_nothing_is_caught:
    closes::a_closed_engine_refuses_everything, closes::closing_makes_durable;
    fn close(_engine: &MemoryEngine) -> Result<()> {
        Ok(())
    }
}

//! The model check: an engine and [`MemoryEngine`] get the same generated steps and must give the same answers.
//!
//! Positions differ between engines and are compared through a table of those that were given; marks are compared by
//! what they promise. After a crash the engine must stand where the model stood after some first part of the batches,
//! no shorter than what was durable; the model is then set back to there.

use std::time::Duration;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::Fixture;
use super::sample::{at, read_all, topic};
use super::steps::{self, KEYS, Place, Question, Step, TABLES, TOPICS};
use crate::batch::WriteBatch;
use crate::engine::{Engine, FetchLimit, FetchRequest, KeyQuery, Retention, Row};
use crate::memory::MemoryEngine;
use crate::record::{LocatedRecord, Record, StoredRecord};
use crate::types::{LogPosition, Mark, QueueKey, QueueOffset, Table, Timestamp};

/// Raises the number of cases of [`matches_memory`].
pub const CASES_VARIABLE: &str = "CUEMQ_MODEL_CASES";
/// Chooses other cases; a number, 0 unless set.
pub const SEED_VARIABLE: &str = "CUEMQ_MODEL_SEED";

const CASES: u32 = 48;
/// Times at which a run asks for keys in the end.
const MOST_TIMES: usize = 8;
const MOST_SHRINK_STEPS: u32 = 1_000;
const RETENTION: Retention =
    Retention { age: Duration::from_millis(10_000), max_bytes: None, disk_watermark_percent: 100 };

/// The engine answers as the in-memory engine does, over 48 generated runs or as many as `CUEMQ_MODEL_CASES` says.
pub fn matches_memory<F: Fixture>() {
    let cases = std::env::var(CASES_VARIABLE).map(|cases| cases.parse().expect("CUEMQ_MODEL_CASES is a number"));
    check_against_memory::<F>(cases.unwrap_or(CASES));
}

/// Drives an engine and the model through this many generated runs of up to sixty steps, each over a fresh store.
///
/// # Panics
/// At the first difference, with the shortest run found that shows it and the seed of the whole.
pub fn check_against_memory<F: Fixture>(cases: u32) {
    let seed: u64 = std::env::var(SEED_VARIABLE).map_or(0, |seed| seed.parse().expect("CUEMQ_MODEL_SEED is a number"));
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: MOST_SHRINK_STEPS, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(&steps::steps(), |steps| {
        let mut run = Run::<F>::begin();
        steps.iter().for_each(|step| run.take(step));
        run.compare_all();
        run.compare_lookups();
        run.reopen();
        run.compare_all();
        run.compare_lookups();
        Ok::<(), TestCaseError>(())
    });
    if let Err(difference) = outcome {
        panic!("the engine differs from the model ({SEED_VARIABLE}={seed}): {difference}");
    }
}

/// What the model has been through, so that it can be set back.
enum Event {
    Applied(WriteBatch),
    Expired(Vec<(QueueKey, QueueOffset)>),
}

/// One run: the engine, the model beside it, and what is needed to compare them.
struct Run<F: Fixture> {
    fixture: F,
    engine: Option<F::Engine>,
    model: MemoryEngine,
    events: Vec<Event>,
    /// The mark of what this session found when it began.
    found: Mark,
    /// The mark of each event since then, which are those from `session_start` on.
    marks: Vec<Mark>,
    session_start: usize,
    /// How many events are durable for certain, whatever the marks say.
    durable_events: usize,
    /// The engine's position of each record; the model's is the index.
    positions: Vec<LogPosition>,
    now: i64,
    latest: i64,
    /// No batch is older than this: the latest time before the last crash.
    earliest: i64,
}

impl<F: Fixture> Run<F> {
    fn begin() -> Self {
        let mut fixture = F::fresh();
        let engine = fixture.open_with(RETENTION).unwrap();
        let found = mark_of(&engine);
        Self {
            fixture,
            engine: Some(engine),
            found,
            model: MemoryEngine::new(),
            events: Vec::new(),
            marks: Vec::new(),
            session_start: 0,
            durable_events: 0,
            positions: Vec::new(),
            now: 0,
            latest: 0,
            earliest: i64::MIN,
        }
    }

    fn engine(&self) -> &F::Engine {
        self.engine.as_ref().expect("an engine is open between steps")
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Apply { after, changes } => {
                let batch = steps::batch(self.move_on(*after), changes, |queue, place| self.locate(queue, place));
                self.apply(batch);
            }
            Step::Sync => self.sync(),
            Step::Fetch(question) => self.fetch(question),
            Step::OffsetAt { queue, before } => {
                let (queue, time) = (&steps::queues()[*queue], at(self.now - before));
                let (answer, expected) = (self.engine().offset_at(queue, time), self.model.offset_at(queue, time));
                assert_eq!(answer.unwrap(), expected.unwrap(), "offset_at {queue} {time}");
            }
            Step::RecordAt { nth } => {
                if let Some(index) = nth.checked_rem(self.positions.len()) {
                    self.compare_position(index);
                }
            }
            Step::Find { topic: name, key, ages, limit } => {
                let (from, to) = (at(self.now - ages.0), at(self.now - ages.1));
                self.compare_found(KeyQuery { topic: &topic(TOPICS[*name]), key: KEYS[*key], from, to, limit: *limit });
            }
            Step::Get { table, key } => {
                let (answer, expected) =
                    (self.engine().get(&TABLES[*table], key), self.model.get(&TABLES[*table], key));
                assert_eq!(answer.unwrap(), expected.unwrap(), "get {key:?}");
            }
            Step::Scan { table, from, to, limit } => {
                self.compare_scan(&TABLES[*table], from, to.as_deref(), *limit);
            }
            Step::Maintain { after } => self.maintain(at(self.now + after)),
            Step::Reopen => self.reopen(),
            Step::Crash { seed } => self.crash(*seed),
        }
    }

    fn last_mark(&self) -> Mark {
        self.marks.last().copied().unwrap_or(self.found)
    }

    fn move_on(&mut self, after: i64) -> Timestamp {
        self.now = (self.now + after).max(self.earliest);
        self.latest = self.latest.max(self.now);
        at(self.now)
    }

    fn locate(&self, queue: &QueueKey, place: Place) -> QueueOffset {
        let bounds = self.model.bounds(queue).unwrap();
        QueueOffset::new(match place {
            Place::BehindMin(by) => bounds.start.get().saturating_add_signed(by.into()),
            Place::BehindEnd(by) => bounds.end.get().saturating_add_signed(by.into()),
        })
    }

    fn apply(&mut self, batch: WriteBatch) {
        let (answer, expected) =
            (self.engine().apply(batch.clone()).unwrap(), self.model.apply(batch.clone()).unwrap());
        assert_eq!((answer.stored_at, &answer.appends), (expected.stored_at, &expected.appends));
        assert_eq!(answer.positions.len(), expected.positions.len());
        let last = self.last_mark();
        if batch.is_empty() {
            assert_eq!(answer.mark, last, "an empty batch has the mark of its predecessor");
            return;
        }
        assert!(last < answer.mark, "marks rise: {last:?}, {:?}", answer.mark);
        for position in answer.positions {
            assert!(self.positions.last().is_none_or(|last| *last < position), "positions rise: {position}");
            self.positions.push(position);
        }
        self.marks.push(answer.mark);
        self.events.push(Event::Applied(batch));
    }

    fn sync(&mut self) {
        let before = self.engine().durable();
        let synced = self.engine().sync().unwrap();
        let last = self.last_mark();
        assert!(synced >= last, "a sync covers what was applied: {synced:?}, {last:?}");
        assert!(self.engine().durable() >= synced.max(before), "the durable mark lags behind the sync");
        self.durable_events = self.events.len();
    }

    fn fetch(&self, question: &Question) {
        let queue = &steps::queues()[question.queue];
        let limit = FetchLimit { max_messages: question.max_messages, max_bytes: question.max_bytes };
        let (from, tags) = (self.locate(queue, question.from), question.tags());
        let until = question.until.map(|until| self.locate(queue, until));
        let request = FetchRequest { queue, from, until, limit, tags: &tags };
        let (answer, expected) = match (self.engine().fetch(request), self.model.fetch(request)) {
            (Ok(answer), Ok(expected)) => (answer, expected),
            (Err(answer), Err(expected)) => return assert_eq!(answer.kind(), expected.kind(), "{request:?}"),
            (answer, expected) => panic!("{request:?}: {answer:?}, expected {expected:?}"),
        };
        assert_eq!(answer.bounds, expected.bounds, "{request:?}");
        assert_eq!(answer.records, self.stored(expected.records), "{request:?}");
        if answer.next == expected.next {
            return;
        }
        // Where a limit ended the fetch, it may go on anywhere before the next record that matches.
        let least = answer.records.last().map_or(from, |last| last.offset.plus(1));
        let end = until.map_or(expected.bounds.end, |until| until.min(expected.bounds.end));
        let limited = answer.records.len() == limit.max_messages || expected.next < end;
        let most = answer.next.max(expected.next);
        let all = FetchLimit::messages(usize::MAX);
        let passed = FetchRequest { from: least, until: Some(most), limit: all, ..request };
        let passed_over = self.model.fetch(passed).unwrap().records;
        let sound = limited && limit.max_messages > 0 && answer.next >= least && answer.next <= end;
        assert!(sound && passed_over.is_empty(), "{request:?}: next is {}, not {}", answer.next, expected.next);
    }

    fn maintain(&mut self, now: Timestamp) {
        let done = self.engine().maintain(now).unwrap();
        let (found, expected) = (self.engine().queues().unwrap(), self.model.queues().unwrap());
        assert_eq!(found.len(), expected.len(), "maintenance adds and removes no queue");
        let mut expired = Vec::new();
        for ((queue, after), (model_queue, before)) in found.into_iter().zip(expected) {
            assert_eq!((&queue, after.end), (&model_queue, before.end));
            assert!(before.start <= after.start && after.start <= after.end, "{queue}: {before:?} became {after:?}");
            let gone = read_all(&self.model, &queue).into_iter().filter(|stored| stored.offset < after.start);
            for stored in gone {
                assert!(now.since(stored.stored_at) > RETENTION.age, "{} of {queue} was too young", stored.offset);
            }
            if after.start > before.start {
                expired.push((queue, before.start, after.start));
            }
        }
        let count: u64 = expired.iter().map(|(_, before, after)| after.get() - before.get()).sum();
        assert_eq!(done.expired_records, count);
        if count > 0 {
            let trims: Vec<_> = expired.into_iter().map(|(queue, _, after)| (queue, after)).collect();
            trim(&self.model, &trims);
            self.events.push(Event::Expired(trims));
            self.marks.push(self.last_mark());
        }
    }

    fn reopen(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.close().unwrap();
        }
        self.durable_events = self.events.len();
        self.open();
    }

    fn open(&mut self) {
        let engine = self.fixture.open_with(RETENTION).unwrap();
        self.found = mark_of(&engine);
        self.engine = Some(engine);
        self.session_start = self.events.len();
        self.marks.clear();
    }

    fn crash(&mut self, seed: u64) {
        let Some(engine) = self.engine.take() else { return };
        let durable = engine.durable();
        let mut least = self.durable_events;
        if self.found <= durable {
            least = least.max(self.session_start + self.marks.iter().take_while(|mark| **mark <= durable).count());
        }
        self.fixture.crash(engine, seed);
        let engine = self.fixture.open_with(RETENTION).unwrap();
        let survivor = (least..=self.events.len()).rev().find_map(|events| self.stands_at(&engine, events));
        drop(engine);
        let Some((events, model)) = survivor else {
            panic!("after a crash the engine stands where it never stood, from {least} to {}", self.events.len());
        };
        self.model = model;
        self.events.truncate(events);
        self.durable_events = self.durable_events.min(events);
        let records = self.events.iter().map(|event| match event {
            Event::Applied(batch) => appended(batch),
            Event::Expired(_) => 0,
        });
        self.positions.truncate(records.sum());
        // A batch that cannot be seen may be there or not: from now on no time is as early as its.
        self.earliest = self.latest;
        self.open();
        self.compare_all();
    }

    /// The model after this many events, if the engine stands there too. What expired may have come back.
    fn stands_at(&self, engine: &F::Engine, events: usize) -> Option<(usize, MemoryEngine)> {
        let (most, model) = (self.replay(events, false), self.replay(events, true));
        let found = engine.queues().unwrap();
        let (all, left) = (most.queues().unwrap(), model.queues().unwrap());
        let between = found.len() == all.len()
            && found.iter().zip(all.iter().zip(&left)).all(|((queue, bounds), ((expected, all), (_, left)))| {
                queue == expected && all.start <= bounds.start && bounds.start <= left.start
            });
        let mins: Vec<_> = found.into_iter().map(|(queue, bounds)| (queue, bounds.start)).collect();
        trim(&most, &mins);
        (between && contents(engine) == contents(&most)).then_some((events, most))
    }

    fn replay(&self, events: usize, expire: bool) -> MemoryEngine {
        let model = MemoryEngine::new();
        for event in &self.events[..events] {
            match event {
                Event::Applied(batch) => drop(model.apply(batch.clone()).unwrap()),
                Event::Expired(trims) if expire => trim(&model, trims),
                Event::Expired(_) => {}
            }
        }
        model
    }

    fn compare_all(&self) {
        assert_eq!(self.engine().queues().unwrap(), self.model.queues().unwrap());
        for queue in steps::queues() {
            assert_eq!(read_all(self.engine(), &queue), self.stored(read_all(&self.model, &queue)), "{queue}");
        }
        for table in TABLES {
            self.compare_scan(&table, b"", None, usize::MAX);
        }
        (0..self.positions.len()).for_each(|index| self.compare_position(index));
    }

    /// Asks for the times, keys and ranges that can make a difference.
    fn compare_lookups(&self) {
        let mut times = Vec::new();
        for queue in steps::queues() {
            times.extend(read_all(&self.model, &queue).into_iter().map(|stored| stored.stored_at));
        }
        times.sort_unstable();
        times.dedup();
        let queues = steps::queues();
        for (queue, time) in queues.iter().flat_map(|queue| times.iter().map(move |time| (queue, *time))) {
            for time in [time, time.plus(Duration::from_millis(1))] {
                let answer = self.engine().offset_at(queue, time).unwrap();
                assert_eq!(answer, self.model.offset_at(queue, time).unwrap(), "offset_at {queue} {time}");
            }
        }
        let keys = || TOPICS.map(topic).into_iter().flat_map(|topic| KEYS.map(|key| (topic.clone(), key)));
        for time in times.iter().step_by(times.len() / MOST_TIMES + 1) {
            for (topic, key) in keys() {
                let query = KeyQuery { topic: &topic, key, from: Timestamp::MIN, to: *time, limit: 3 };
                self.compare_found(query);
                self.compare_found(KeyQuery { from: *time, to: Timestamp::MAX, limit: usize::MAX, ..query });
            }
        }
        for table in TABLES {
            for (key, value) in self.model.scan(&table, b"", None, usize::MAX).unwrap() {
                assert_eq!(self.engine().get(&table, &key).unwrap(), Some(value), "get {key:?}");
                self.compare_scan(&table, b"", Some(&key), usize::MAX);
                self.compare_scan(&table, &key, None, 2);
            }
        }
    }

    fn compare_found(&self, query: KeyQuery<'_>) {
        let (answer, expected) = (self.engine().find(query).unwrap(), self.model.find(query).unwrap());
        assert_eq!(answer, self.located(expected), "{query:?}");
    }

    fn compare_scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) {
        let scan = |engine: &dyn Engine| engine.scan(table, from, to, limit).unwrap();
        assert_eq!(scan(self.engine()), scan(&self.model), "{table} from {from:?} to {to:?}, at most {limit}");
    }

    fn compare_position(&self, index: usize) {
        let answer = self.engine().record_at(self.positions[index]).unwrap();
        let expected = self.model.record_at(LogPosition::new(index as u64)).unwrap();
        assert_eq!(answer, self.located(expected.into_iter().collect()).pop(), "record {index}");
    }

    fn located(&self, mut records: Vec<LocatedRecord>) -> Vec<LocatedRecord> {
        for located in &mut records {
            located.stored.position = self.positions[usize::try_from(located.stored.position.get()).unwrap()];
        }
        records
    }

    /// The model's records with the engine's positions.
    fn stored(&self, mut records: Vec<StoredRecord>) -> Vec<StoredRecord> {
        for stored in &mut records {
            stored.position = self.positions[usize::try_from(stored.position.get()).unwrap()];
        }
        records
    }
}

/// The mark up to which an engine has come, which an empty batch reports.
fn mark_of(engine: &impl Engine) -> Mark {
    engine.apply(WriteBatch::new(Timestamp::MIN)).unwrap().mark
}

fn appended(batch: &WriteBatch) -> usize {
    let records = batch.operations().iter().map(|operation| match operation {
        crate::batch::WriteOperation::Append { records, .. } => records.len(),
        _ => 0,
    });
    records.sum()
}

fn trim(model: &MemoryEngine, trims: &[(QueueKey, QueueOffset)]) {
    // The earliest time there is: what expired moves no time on.
    let mut batch = WriteBatch::new(Timestamp::MIN);
    for (queue, before) in trims {
        batch.trim(queue, *before);
    }
    model.apply(batch).unwrap();
}

type Contents = (Vec<Vec<(QueueOffset, Timestamp, Record)>>, Vec<Vec<Row>>);

/// Everything that can be seen but for positions.
fn contents(engine: &impl Engine) -> Contents {
    let records = |queue| {
        let stored = read_all(engine, &queue).into_iter();
        stored.map(|stored| (stored.offset, stored.stored_at, stored.record)).collect()
    };
    let rows = TABLES.map(|table| engine.scan(&table, b"", None, usize::MAX).unwrap());
    (steps::queues().map(records).into(), rows.into())
}

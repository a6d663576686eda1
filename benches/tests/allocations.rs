//! What one message costs the allocator on the steady paths: a guard against a copy of the payload or a box per message
//! that creeps in, which no clock is needed for. Everything is counted, on all threads.
//!
//! The bounds are what was measured when they were written, and a little. Whoever makes a path cheaper lowers its line.
#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::alloc::System;
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cuemq::{Broker, Flush, Message, PendingReceipt, Producer, TopicSpec};
use cuemq_benches::profile::Profile;
use cuemq_benches::store::EngineKind;
use cuemq_benches::workload::{Bodies, TOPIC, queue};
use cuemq_storage_api::{FetchLimit, FetchRequest, QueueOffset};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Large beside everything else that a message allocates, so that a copy of it shows.
const BODY_BYTES: usize = 4 << 10;
/// A path that copies no payload allocates less than this per message, in bytes.
const WITHOUT_A_COPY: f64 = BODY_BYTES as f64 / 4.0;
/// How much more often a whole batch may allocate when it has four times as many messages: a growing vector takes two
/// more steps, and some things happen once in so many bytes. Measured: 0.3 an append, 2 a fetch, 5 a batch sent.
const MORE_PER_LARGER_BATCH: f64 = 8.0;
/// Allocations of one `apply` of 64 records that are there already. Measured: 2.3.
const APPEND_PER_BATCH: f64 = 4.0;
/// Allocations of one fetch of 64 records. Measured: 3.
const FETCH_PER_BATCH: f64 = 5.0;
/// Allocations of one `send_batch` of 64 messages that are there already, from the call to the receipts. Measured: 18.
const SEND_PER_BATCH: f64 = 26.0;
/// Allocations of one message sent alone while 256 are in flight, from `enqueue` to its receipt. Measured: 0.1, all of it
/// the share of some 15 that a burst costs; so it rises as bursts get shorter, and the best of some runs counts.
const SEND_SINGLE_PER_MESSAGE: f64 = 1.0;
const SINGLE_RUNS: usize = 5;
/// Boxes planted per single message: as few as show.
const BOXES_PER_SINGLE: usize = 1;

const SMALL: usize = 64;
const LARGE: usize = 256;
const IN_FLIGHT: usize = 256;
/// Messages that go before what is counted: buffers have grown and files are mapped by then.
const WARM_UP: u64 = 2048;
const COUNTED: u64 = 8192;

/// Something wrong, put into a path to see whether the guard notices it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// A box for each message.
    Boxes,
    /// A copy of each body.
    Copies,
}

impl Planted {
    fn plant(self, bodies: &Bodies, messages: usize) {
        for message in 0..messages as u64 {
            match self {
                Self::Nothing => {}
                Self::Boxes => drop(black_box(Box::new(message))),
                Self::Copies => drop(black_box(Bytes::copy_from_slice(&bodies.body(message)))),
            }
        }
    }
}

/// What a path allocated.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Messages per batch; 1 where they go alone.
    batch: usize,
    messages: u64,
    allocations: usize,
    bytes: usize,
}

impl Cost {
    fn of(batch: usize, messages: u64, work: impl FnOnce()) -> Self {
        let region = Region::new(ALLOCATOR);
        work();
        let change = region.change();
        let allocations = change.allocations + change.reallocations;
        Self { batch, messages, allocations, bytes: change.bytes_allocated }
    }

    fn per_message(&self) -> f64 {
        self.allocations as f64 / self.messages as f64
    }

    fn per_batch(&self) -> f64 {
        self.per_message() * self.batch as f64
    }

    fn bytes_per_message(&self) -> f64 {
        self.bytes as f64 / self.messages as f64
    }

    fn check_copies(&self) -> Result<(), String> {
        within("bytes per message", self.bytes_per_message(), WITHOUT_A_COPY, self)
    }

    /// Whether a batch with more messages allocates no more often.
    fn check_growth(&self, larger: &Self) -> Result<(), String> {
        let more = larger.per_batch() - self.per_batch();
        within("more allocations per larger batch", more, MORE_PER_LARGER_BATCH, &(self, larger))
    }
}

fn within(what: &str, measured: f64, bound: f64, cost: &dyn std::fmt::Debug) -> Result<(), String> {
    if measured <= bound { Ok(()) } else { Err(format!("{measured:.2} {what}, at most {bound} are meant: {cost:?}")) }
}

/// The counters belong to the whole process, so tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bodies() -> Bodies {
    Bodies::new(BODY_BYTES)
}

fn append(batch: usize, planted: Planted) -> Cost {
    let (bodies, queue, folder) = (bodies(), queue(), tempfile::tempdir().unwrap());
    let engine = EngineKind::Mmap.open(folder.path(), &Profile::quick()).unwrap();
    let batches = |from: u64, to: u64| {
        let firsts = (from..to).step_by(batch);
        firsts.map(|first| bodies.batch(&queue, first, batch)).collect::<Vec<_>>()
    };
    let apply = |batch| drop(black_box(engine.apply(batch).unwrap()));
    batches(0, WARM_UP).into_iter().for_each(apply);
    let counted = batches(WARM_UP, WARM_UP + COUNTED);
    Cost::of(batch, COUNTED, || {
        for one in counted {
            apply(one);
            planted.plant(&bodies, batch);
        }
    })
}

fn fetch(batch: usize, planted: Planted) -> Cost {
    let (bodies, queue, folder) = (bodies(), queue(), tempfile::tempdir().unwrap());
    let engine = EngineKind::Mmap.open(folder.path(), &Profile::quick()).unwrap();
    for first in (0..WARM_UP + COUNTED).step_by(LARGE) {
        engine.apply(bodies.batch(&queue, first, LARGE)).unwrap();
    }
    let read = |from: u64| {
        let request = FetchRequest::all(&queue, QueueOffset::new(from), FetchLimit::messages(batch));
        let fetch = black_box(engine.fetch(request).unwrap());
        assert_eq!(fetch.records.len(), batch);
        bodies.check(from, &fetch.records[0].record.body).unwrap();
    };
    (0..WARM_UP).step_by(batch).for_each(read);
    Cost::of(batch, COUNTED, || {
        for from in (WARM_UP..WARM_UP + COUNTED).step_by(batch) {
            read(from);
            planted.plant(&bodies, batch);
        }
    })
}

/// A broker over the map engine with one topic of one queue.
struct House {
    runtime: Runtime,
    broker: Broker,
    producer: Producer,
    bodies: Bodies,
    _folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let (runtime, folder) = (Builder::new_current_thread().build().unwrap(), tempfile::tempdir().unwrap());
        let profile = Profile::quick();
        let opening = EngineKind::Mmap.open_broker(folder.path(), &profile, Flush::Buffered);
        let (broker, producer) = runtime.block_on(async {
            let broker = opening.await.unwrap();
            broker.create_topic(TopicSpec::new(TOPIC).queues(1)).await.unwrap();
            let producer = broker.producer(TOPIC).await.unwrap();
            (broker, producer)
        });
        Self { runtime, broker, producer, bodies: bodies(), _folder: folder }
    }

    fn messages(&self, first: u64, count: usize) -> Vec<Message> {
        (first..).take(count).map(|message| Message::new(self.bodies.body(message))).collect()
    }

    fn send_batches(self, batch: usize, planted: Planted) -> Cost {
        let batches = |from: u64, to: u64| (from..to).step_by(batch).map(|first| self.messages(first, batch));
        let send = |messages| {
            let receipts = self.runtime.block_on(self.producer.send_batch(messages)).unwrap();
            assert_eq!(receipts.len(), batch);
        };
        batches(0, WARM_UP).for_each(send);
        let counted: Vec<_> = batches(WARM_UP, WARM_UP + COUNTED).collect();
        let cost = Cost::of(batch, COUNTED, || {
            for messages in counted {
                send(messages);
                planted.plant(&self.bodies, batch);
            }
        });
        self.shut_down();
        cost
    }

    fn send_singles(self, planted: Planted) -> Cost {
        let send = |messages: Vec<Message>| {
            self.runtime.block_on(async {
                let mut pending = VecDeque::with_capacity(IN_FLIGHT);
                for message in messages {
                    if pending.len() == IN_FLIGHT {
                        let oldest: PendingReceipt = pending.pop_front().unwrap();
                        oldest.await.unwrap();
                    }
                    pending.push_back(self.producer.enqueue(message).unwrap());
                    planted.plant(&self.bodies, BOXES_PER_SINGLE);
                }
                for receipt in pending {
                    receipt.await.unwrap();
                }
            });
        };
        send(self.messages(0, usize::try_from(WARM_UP).unwrap()));
        let counted = self.messages(WARM_UP, usize::try_from(COUNTED).unwrap());
        let cost = Cost::of(1, COUNTED, || send(counted));
        self.shut_down();
        cost
    }

    /// What goes on in the background would be counted for the next test.
    fn shut_down(self) {
        self.runtime.block_on(self.broker.shutdown()).unwrap();
    }
}

#[test]
fn all_threads_are_counted() {
    let _alone = alone();
    let cost = Cost::of(1, 1000, || {
        std::thread::scope(|scope| {
            scope.spawn(|| Planted::Copies.plant(&bodies(), 1000));
        });
    });
    assert!(cost.per_message() >= 1.0, "{cost:?}");
    assert!(cost.check_copies().is_err(), "{cost:?}");
}

/// Whether a path allocates at most so often per batch of [`SMALL`], no more often in a larger one, and copies nothing;
/// and whether a box or a copy per message would have been noticed.
fn guard(what: &str, bound: f64, path: impl Fn(usize, Planted) -> Cost) {
    let _alone = alone();
    let [small, large] = [SMALL, LARGE].map(|batch| path(batch, Planted::Nothing));
    within(what, small.per_batch(), bound, &small).unwrap();
    small.check_growth(&large).unwrap();
    large.check_copies().unwrap();
    let [small, large] = [SMALL, LARGE].map(|batch| path(batch, Planted::Boxes));
    within(what, small.per_batch(), bound, &small).unwrap_err();
    small.check_growth(&large).unwrap_err();
    path(LARGE, Planted::Copies).check_copies().unwrap_err();
}

#[test]
fn an_append_allocates_nothing_per_message() {
    guard("allocations per append", APPEND_PER_BATCH, append);
}

#[test]
fn a_fetch_allocates_nothing_per_message() {
    guard("allocations per fetch", FETCH_PER_BATCH, fetch);
}

#[test]
fn a_batch_through_the_broker_allocates_nothing_per_message() {
    guard("allocations per batch sent", SEND_PER_BATCH, |batch, planted| House::new().send_batches(batch, planted));
}

#[test]
fn a_single_send_allocates_little() {
    let _alone = alone();
    let check = |cost: &Cost| within("allocations per message", cost.per_message(), SEND_SINGLE_PER_MESSAGE, cost);
    let runs: Vec<_> = (0..SINGLE_RUNS).map(|_| House::new().send_singles(Planted::Nothing)).collect();
    let best = runs.iter().min_by_key(|cost| cost.allocations).unwrap();
    check(best).unwrap();
    best.check_copies().unwrap();
    check(&House::new().send_singles(Planted::Boxes)).unwrap_err();
    House::new().send_singles(Planted::Copies).check_copies().unwrap_err();
}

//! An engine that fails on request, to see whoever uses it meet its failures.
//!
//! ```
//! use cuemq_storage_api::fault::{Fault, FaultEngine, Operation};
//! use cuemq_storage_api::{Engine, ErrorKind, MemoryEngine, Outcome, Table, Timestamp, WriteBatch};
//!
//! let engine = FaultEngine::new(MemoryEngine::new());
//! let faults = engine.faults();
//! faults.fail(Operation::Apply, 2, Fault::LandThenFail(ErrorKind::Io));
//!
//! let mut batch = WriteBatch::new(Timestamp::from_millis(0));
//! batch.put(&Table::new("settings")?, "colour", "green");
//! assert!(engine.apply(batch.clone()).is_ok());
//! let torn = engine.apply(batch.clone()).unwrap_err();
//! assert_eq!((torn.kind(), torn.outcome()), (ErrorKind::Io, Outcome::Unknown));
//! let refused = engine.apply(batch).unwrap_err();
//! assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Poisoned, Outcome::NotStored));
//! # Ok::<(), cuemq_storage_api::InvalidInput>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{Applied, WriteBatch};
use crate::engine::{Capabilities, Engine, Fetch, FetchRequest, KeyQuery, Maintenance, Row};
use crate::error::{ErrorKind, Result, StorageError};
use crate::record::LocatedRecord;
use crate::types::{LogPosition, Mark, QueueKey, QueueOffset, Table, Timestamp};

/// Most faults that can be scripted for one operation and have not happened yet.
pub const MAX_SCRIPTED_FAULTS: usize = 1_024;
/// How long [`Gate::wait_for`] waits before it takes the test for stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The operations that can be made to fail or wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// [`Engine::apply`].
    Apply,
    /// [`Engine::sync`].
    Sync,
    /// [`Engine::fetch`].
    Fetch,
    /// [`Engine::bounds`].
    Bounds,
    /// [`Engine::queues`].
    Queues,
    /// [`Engine::offset_at`].
    OffsetAt,
    /// [`Engine::record_at`].
    RecordAt,
    /// [`Engine::find`].
    Find,
    /// [`Engine::get`].
    Get,
    /// [`Engine::scan`].
    Scan,
    /// [`Engine::maintain`].
    Maintain,
    /// [`Engine::close`].
    Close,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Sync => "sync",
            Self::Fetch => "fetch",
            Self::Bounds => "bounds",
            Self::Queues => "queues",
            Self::OffsetAt => "offset_at",
            Self::RecordAt => "record_at",
            Self::Find => "find",
            Self::Get => "get",
            Self::Scan => "scan",
            Self::Maintain => "maintain",
            Self::Close => "close",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Apply | Self::Sync | Self::Maintain)
    }
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The call does not reach the engine, and the error says so (`NotStored`). Only a failed `sync` or `maintain`
    /// poisons the engine then, as the contract has it.
    Refuse(ErrorKind),
    /// The engine does the work, and the error leaves open whether it did (`Unknown`): a reply lost on its way.
    /// Poisons the engine when a write fails so.
    LandThenFail(ErrorKind),
    /// The call does not reach the engine, and the error leaves open whether it did (`Unknown`): a write that was
    /// torn. Poisons the engine when a write fails so.
    LoseThenFail(ErrorKind),
}

/// An engine around another one, which fails and waits as its [`Faults`] say.
///
/// It keeps the contract while it fails: after a write whose outcome is unknown, or a failed sync, it is poisoned,
/// refuses writes and goes on serving reads until it is opened anew (as another `FaultEngine`).
pub struct FaultEngine<E> {
    inner: Arc<E>,
    faults: Faults,
    poisoned: AtomicBool,
}

impl<E: Engine> FaultEngine<E> {
    /// Wraps an engine, owned or shared, without any fault.
    #[must_use]
    pub fn new(engine: impl Into<Arc<E>>) -> Self {
        Self::with_faults(engine, Faults::default())
    }

    /// Wraps an engine with existing faults: those of an engine that was open before, or scripted ahead.
    #[must_use]
    pub fn with_faults(engine: impl Into<Arc<E>>, faults: Faults) -> Self {
        Self { inner: engine.into(), faults, poisoned: AtomicBool::new(false) }
    }

    /// The handle through which faults are scripted while the engine is in use.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// The engine inside, which never fails on request.
    #[must_use]
    pub fn inner(&self) -> &E {
        &self.inner
    }

    fn call<T>(&self, operation: Operation, work: impl FnOnce(&E) -> Result<T>) -> Result<T> {
        let fault = self.faults.enter(operation);
        if operation.writes() && self.poisoned.load(Ordering::Acquire) {
            return Err(StorageError::not_stored(
                ErrorKind::Poisoned,
                operation.name(),
                "a write failed on request before: reopen the engine",
            ));
        }
        let Some(fault) = fault else { return work(&self.inner) };
        if let Fault::LandThenFail(_) = fault {
            work(&self.inner)?;
        }
        if operation.writes() && !(operation == Operation::Apply && matches!(fault, Fault::Refuse(_))) {
            self.poisoned.store(true, Ordering::Release);
        }
        Err(match fault {
            Fault::Refuse(kind) => StorageError::not_stored(kind, operation.name(), "refused on request"),
            Fault::LandThenFail(kind) | Fault::LoseThenFail(kind) => {
                StorageError::unknown(kind, operation.name(), "failed on request")
            }
        })
    }
}

impl<E: Engine> fmt::Debug for FaultEngine<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultEngine").field("inner", &self.inner).field("poisoned", &self.poisoned).finish()
    }
}

impl<E: Engine> Engine for FaultEngine<E> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        if batch.is_empty() {
            // Writes nothing, so it neither fails nor counts: a script means the writes, not what waits behind them.
            return self.inner.apply(batch);
        }
        self.call(Operation::Apply, |engine| engine.apply(batch))
    }

    fn sync(&self) -> Result<Mark> {
        self.call(Operation::Sync, E::sync)
    }

    fn durable(&self) -> Mark {
        self.inner.durable()
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.call(Operation::Fetch, |engine| engine.fetch(request))
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        self.call(Operation::Bounds, |engine| engine.bounds(queue))
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        self.call(Operation::Queues, E::queues)
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.call(Operation::OffsetAt, |engine| engine.offset_at(queue, at))
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.call(Operation::RecordAt, |engine| engine.record_at(position))
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.call(Operation::Find, |engine| engine.find(query))
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.call(Operation::Get, |engine| engine.get(table, key))
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        self.call(Operation::Scan, |engine| engine.scan(table, from, to, limit))
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.call(Operation::Maintain, |engine| engine.maintain(now))
    }

    fn close(&self) -> Result<()> {
        self.call(Operation::Close, E::close)
    }
}

/// The script of a [`FaultEngine`]: which calls fail, which wait, and how many there were. Cheap to clone, usable
/// from any thread while the engine is in use.
#[derive(Clone, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<BTreeMap<Operation, Script>>,
    changed: Condvar,
}

/// What is to happen to one operation.
#[derive(Default)]
struct Script {
    calls: u64,
    once: BTreeMap<u64, Fault>,
    always: Option<Fault>,
    gates: usize,
    waiting: u64,
    passes: u64,
}

impl Faults {
    /// Nothing fails and nothing waits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the `nth` call from now on fail; 1 is the next one. Failed and refused calls count too.
    ///
    /// # Panics
    /// When `nth` is 0, or [`MAX_SCRIPTED_FAULTS`] calls of this operation are yet to fail.
    pub fn fail(&self, operation: Operation, nth: u64, fault: Fault) {
        assert!(nth > 0, "the next call is number 1");
        let mut scripts = self.lock();
        let script = scripts.entry(operation).or_default();
        assert!(script.once.len() < MAX_SCRIPTED_FAULTS, "at most {MAX_SCRIPTED_FAULTS} faults wait for their call");
        script.once.insert(script.calls + nth, fault);
    }

    /// Lets every call fail from now on, until [`clear`](Faults::clear): a disk that stays full.
    pub fn fail_always(&self, operation: Operation, fault: Fault) {
        self.lock().entry(operation).or_default().always = Some(fault);
    }

    /// Forgets every fault of an operation that has not happened yet. Heals no poisoned engine, opens no gate.
    pub fn clear(&self, operation: Operation) {
        let mut scripts = self.lock();
        let script = scripts.entry(operation).or_default();
        script.once.clear();
        script.always = None;
    }

    /// How many calls of an operation have begun, those that wait or failed among them.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.lock().get(&operation).map_or(0, |script| script.calls)
    }

    /// Closes a gate in front of an operation: calls wait there, before they reach the engine or fail, until the
    /// gate is dropped or lets them pass.
    #[must_use = "dropping the gate opens it"]
    pub fn hold(&self, operation: Operation) -> Gate {
        self.lock().entry(operation).or_default().gates += 1;
        Gate { faults: self.clone(), operation }
    }

    /// Counts the call, waits while a gate is closed, and says how the call is to fail.
    fn enter(&self, operation: Operation) -> Option<Fault> {
        let mut scripts = self.lock();
        let script = scripts.entry(operation).or_default();
        script.calls += 1;
        let number = script.calls;
        script.waiting += 1;
        self.shared.changed.notify_all();
        let held = |scripts: &mut BTreeMap<Operation, Script>| {
            scripts.get(&operation).is_some_and(|script| script.gates > 0 && script.passes == 0)
        };
        let wait = self.shared.changed.wait_while(scripts, held);
        scripts = wait.unwrap_or_else(PoisonError::into_inner);
        let script = scripts.entry(operation).or_default();
        script.waiting -= 1;
        script.passes = script.passes.saturating_sub(1);
        script.once.remove(&number).or(script.always)
    }

    // A panic under this lock leaves counters that are each whole, so a poisoned lock is sound.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Operation, Script>> {
        self.shared.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

/// A closed gate in front of one operation, from [`Faults::hold`]. Dropping it lets everybody pass.
#[derive(Debug)]
pub struct Gate {
    faults: Faults,
    operation: Operation,
}

impl Gate {
    /// Returns when at least `count` calls wait at the gate.
    ///
    /// # Panics
    /// After [`STUCK_AFTER`], because those calls never came.
    pub fn wait_for(&self, count: u64) {
        let waiting = |scripts: &BTreeMap<_, Script>| scripts.get(&self.operation).map_or(0, |script| script.waiting);
        let too_few = |scripts: &mut BTreeMap<Operation, Script>| waiting(scripts) < count;
        let wait = self.faults.shared.changed.wait_timeout_while(self.faults.lock(), STUCK_AFTER, too_few);
        let (scripts, _) = wait.unwrap_or_else(PoisonError::into_inner);
        let waiting = waiting(&scripts);
        drop(scripts);
        let name = self.operation.name();
        assert!(waiting >= count, "{waiting} calls of {name} wait at the gate after {STUCK_AFTER:?}, not {count}");
    }

    /// Lets `count` calls pass, those that wait and those that come, and holds the others.
    pub fn let_pass(&self, count: u64) {
        self.faults.lock().entry(self.operation).or_default().passes += count;
        self.faults.shared.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut scripts = self.faults.lock();
        let script = scripts.entry(self.operation).or_default();
        script.gates -= 1;
        if script.gates == 0 {
            script.passes = 0;
        }
        self.faults.shared.changed.notify_all();
    }
}

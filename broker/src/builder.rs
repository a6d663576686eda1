//! Opens a broker: settings are plain data, components are plugged in.

use std::any::Any;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

use cuemq_storage_api::{Engine, WriteBatch};
use tokio::sync::oneshot;

use crate::actors::application::ApplicationHandle;
use crate::actors::delay::DelayHandle;
use crate::actors::expiry::ExpiryHandle;
use crate::actors::gateway::GatewayActor;
use crate::actors::group::GroupRequest;
use crate::actors::root::RootActor;
use crate::actors::supervisor::{Identity, Supervision};
use crate::actors::transaction::TransactionHandle;
use crate::admission::Admission;
use crate::broker::{Broker, Keeper, Running};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;
use crate::settings::{BrokerSettings, Flush};
use crate::shared::{Count, Numbers, Probe, ProbePoint, Registry, Shared};
use crate::state::{BrokerState, StateCell};
use crate::storage::StorageHandle;
use crate::tables::counter;

/// See [`Broker::builder`].
pub struct BrokerBuilder {
    engine: Arc<dyn Engine>,
    settings: BrokerSettings,
    clock: Option<Clock>,
    probe: Option<Probe>,
    company: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerBuilder")
            .field("engine", &self.engine)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl BrokerBuilder {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, settings: BrokerSettings::default(), clock: None, probe: None, company: None }
    }

    /// Replaces all settings.
    #[must_use]
    pub fn settings(mut self, settings: BrokerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets when sends are acknowledged, unless the topic says otherwise.
    #[must_use]
    pub fn flush(mut self, flush: Flush) -> Self {
        self.settings.flush = flush;
        self
    }

    /// Sets whether a send to an unknown topic creates it.
    #[must_use]
    pub fn auto_create_topics(mut self, auto: bool) -> Self {
        self.settings.auto_create_topics = auto;
        self
    }

    /// Changes settings in place.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut BrokerSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Plugs in a clock, such as a [`ManualClock`](crate::ManualClock)'s in a test.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// For tests of supervision: `probe` is called on the actor's thread right before it handles a message, and may
    /// panic there to see the actor restarted.
    #[must_use]
    pub fn probe(mut self, probe: impl Fn(ProbePoint<'_>) + Send + Sync + 'static) -> Self {
        self.probe = Some(Arc::new(probe));
        self
    }

    /// Has something live as long as the broker and dropped after it, such as a temporary directory.
    #[must_use]
    pub fn keep(mut self, company: impl Any + Send) -> Self {
        self.company = Some(Box::new(company));
        self
    }

    /// Starts the broker: threads, actors, and everything that storage has.
    ///
    /// # Errors
    /// `Invalid` names a setting; `Corrupt` a damaged row; `NotStored` when the operating system gives no threads.
    pub async fn open(self) -> Result<Broker> {
        self.settings.validate()?;
        let no_threads = |e| Error::new(ErrorKind::NotStored, format!("the operating system gives no threads: {e}"));
        let clock = match self.clock {
            Some(clock) => clock,
            None => Clock::system().map_err(no_threads)?,
        };
        let state = StateCell::new();
        let runtime = Runtime::start(self.settings.actor_threads).map_err(no_threads)?;
        let storage = match StorageHandle::start(self.engine, clock.clone(), state.clone()) {
            Ok(storage) => storage,
            Err(error) => {
                take_down(runtime, None).await;
                return Err(no_threads(error));
            }
        };
        let running = Running { runtime, company: self.company };
        open_on(running, storage, state, clock, self.settings, self.probe).await
    }
}

async fn open_on(
    running: Running,
    storage: StorageHandle,
    state: StateCell,
    clock: Clock,
    settings: BrokerSettings,
    probe: Option<Probe>,
) -> Result<Broker> {
    let (store_id, numbers) = match read_counters(&storage, &clock).await {
        Ok(read) => read,
        Err(error) => {
            take_down(running.runtime, Some(storage)).await;
            return Err(error);
        }
    };
    let restarts = Arc::new(AtomicU64::new(0));
    let failed = state.clone();
    let gave_up = move |identity: &Identity, cause: &str| {
        failed.fail(&format!("actor {identity} was given up after too many panics: {cause}"));
    };
    let supervision = Supervision { clock: clock.clone(), restarts: Arc::clone(&restarts), gave_up: Arc::new(gave_up) };
    let shared = Arc::new(Shared {
        admission: Admission::new(&settings),
        arbiters: running.runtime.arbiters().clone(),
        settings,
        clock,
        state,
        storage,
        supervision,
        topics: Registry::new(),
        groups: Registry::new(),
        delay: OnceLock::new(),
        expiry: OnceLock::new(),
        transaction: OnceLock::new(),
        application: OnceLock::new(),
        contended: Arc::default(),
        probe,
        store_id,
        numbers,
        delayed: Count::new(AtomicUsize::new(0)),
        restarts,
    });
    let (ready, started) = oneshot::channel();
    let root = RootActor::start(&shared, ready);
    let (gateway, gateway_keeper) = GatewayActor::start(&shared);
    let keeper = Arc::new(Keeper::new(Arc::clone(&shared), root, gateway, running));
    // From here on dropping the keeper takes everything down.
    let _ = gateway_keeper.set(Arc::downgrade(&keeper));
    match start_all(&shared, started).await {
        Ok(()) => {
            tracing::info!(engine = shared.storage.capabilities().name, "the broker is open");
            Ok(Broker::from_keeper(keeper))
        }
        Err(error) => {
            // The store is free again when the caller hears of the error, which says more than one of the closing.
            let _ = keeper.shutdown().await;
            Err(error)
        }
    }
}

/// Waits for what storage has to be running, then starts the rest.
async fn start_all(shared: &Arc<Shared>, started: oneshot::Receiver<Result<()>>) -> Result<()> {
    started.await.unwrap_or_else(|_| Err(Error::lost("the start of the broker")))?;
    // Topics first: due messages look for theirs.
    let _ = shared.expiry.set(ExpiryHandle::start(shared));
    let _ = shared.delay.set(DelayHandle::start(shared));
    let _ = shared.transaction.set(TransactionHandle::start(shared));
    let _ = shared.application.set(ApplicationHandle::start(shared));
    watch_for_failure(shared);
    // Each group clamps its offsets to what the log has before anything new is appended (promise P6); its first
    // answer comes after that.
    for (_, group) in shared.groups.all() {
        group.ask(|reply| GroupRequest::Describe { reply }).await?;
    }
    Ok(())
}

/// Reads what distinguishes this store and this opening of it, and notes the opening.
async fn read_counters(storage: &StorageHandle, clock: &Clock) -> Result<(u64, Numbers)> {
    let engine = storage.engine();
    let read = |name| -> Result<Option<u64>> {
        let row = engine.get(&counter::TABLE, &counter::key(name))?;
        Ok(row.map(|row| counter::decode_bound(&row)).transpose()?)
    };
    let store_id = read(counter::STORE_ID)?.unwrap_or_else(|| RandomState::new().hash_one("store"));
    let opening = read(counter::OPENINGS)?.unwrap_or(0) + 1;
    let mut batch = WriteBatch::new(clock.now());
    batch.put(&counter::TABLE, counter::key(counter::STORE_ID), counter::encode_bound(store_id));
    batch.put(&counter::TABLE, counter::key(counter::OPENINGS), counter::encode_bound(opening));
    storage.write_and_wait(batch, Flush::Durable).await?;
    Ok((store_id, Numbers::of_opening(opening)?))
}

/// Ends every session once the broker has failed, so that nobody waits for ever.
fn watch_for_failure(shared: &Arc<Shared>) {
    let (mut watch, weak) = (shared.state.watch(), Arc::downgrade(shared));
    shared.arbiters.control().spawn(async move {
        let state = match watch.wait_for(|state| *state != BrokerState::Running).await {
            Ok(state) => state.clone(),
            Err(_) => return,
        };
        let (BrokerState::Failed(cause), Some(shared)) = (state, weak.upgrade()) else { return };
        shared.admission.close();
        for (_, group) in shared.groups.all() {
            group.post(GroupRequest::Close { why: format!("the broker has failed: {cause}").into() });
        }
    });
}

/// Ends what an opening that failed has started, and releases the store. Joining threads blocks, so it is done on a
/// thread of its own.
#[expect(clippy::disallowed_methods, reason = "ends by itself once the actor system is down")]
async fn take_down(runtime: Runtime, storage: Option<StorageHandle>) {
    let (sender, receiver) = oneshot::channel();
    let take_down = move || {
        runtime.stop();
        if let Some(Err(error)) = storage.map(|storage| storage.close()) {
            tracing::error!(%error, "the engine could not be closed cleanly");
        }
        // Whoever opens the broker may have given up.
        let _ = sender.send(());
    };
    match std::thread::Builder::new().name("cuemq-shutdown".into()).spawn(take_down) {
        // An error means that the thread has ended.
        Ok(_) => drop(receiver.await),
        Err(error) => tracing::error!(%error, "no thread to stop the actor system"),
    }
}

//! What all actors and handles of one broker share.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use cuemq_storage_api::{GroupName, Timestamp, TopicName};

use crate::actors::application::ApplicationHandle;
use crate::actors::delay::DelayHandle;
use crate::actors::expiry::ExpiryHandle;
use crate::actors::group::{GroupHandle, GroupRequest};
use crate::actors::supervisor::Supervision;
use crate::actors::topic::TopicHandle;
use crate::actors::transaction::TransactionHandle;
use crate::admission::{Admission, Taken};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Delay;
use crate::runtime::Arbiters;
use crate::settings::BrokerSettings;
use crate::state::StateCell;
use crate::storage::StorageHandle;

/// Which message an actor is about to handle; see [`BrokerBuilder::probe`](crate::BrokerBuilder::probe).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ProbePoint<'a> {
    /// The kind of actor: `root`, `topic`, `queue`, `group`, `delay`, `expiry`, `transaction`, `application`.
    pub actor: &'static str,
    /// Which one of its kind, such as `orders/0`.
    pub name: &'a str,
    /// The message or timer, such as `Append`.
    pub message: &'static str,
}

pub(crate) type Probe = Arc<dyn Fn(ProbePoint<'_>) + Send + Sync>;

/// One per broker, behind an `Arc`.
pub(crate) struct Shared {
    pub(crate) settings: BrokerSettings,
    pub(crate) clock: Clock,
    pub(crate) state: StateCell,
    pub(crate) storage: StorageHandle,
    pub(crate) arbiters: Arbiters,
    pub(crate) supervision: Supervision,
    pub(crate) admission: Arc<Admission>,
    pub(crate) topics: Registry<TopicName, TopicHandle>,
    pub(crate) groups: Registry<GroupName, GroupHandle>,
    pub(crate) probe: Option<Probe>,
    /// Distinguishes this store's message ids from every other's.
    pub(crate) store_id: u64,
    pub(crate) numbers: Numbers,
    /// Delayed messages that wait for their time.
    pub(crate) delayed: Count,
    pub(crate) delay: OnceLock<DelayHandle>,
    pub(crate) expiry: OnceLock<ExpiryHandle>,
    pub(crate) transaction: OnceLock<TransactionHandle>,
    pub(crate) application: OnceLock<ApplicationHandle>,
    /// Transactions that others have been in the way of too often, one at a time, first come, first served.
    pub(crate) contended: Arc<tokio::sync::Mutex<()>>,
    pub(crate) restarts: Arc<AtomicU64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Shared {
    /// Tells the test's probe, if there is one, which message comes next. It may panic.
    pub(crate) fn probe(&self, actor: &'static str, name: &str, message: &'static str) {
        if let Some(probe) = &self.probe {
            probe(ProbePoint { actor, name, message });
        }
    }

    /// Whether a test looks at every message.
    pub(crate) fn is_probed(&self) -> bool {
        self.probe.is_some()
    }

    /// A number that this store never gave before.
    pub(crate) fn take_number(&self) -> u64 {
        self.numbers.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The delay scheduler; there once the broker is open.
    pub(crate) fn delay_handle(&self) -> DelayHandle {
        self.delay.get().expect("the scheduler starts before anybody gets a handle of the broker").clone()
    }

    /// The scheduler of expiries; there once the broker is open.
    pub(crate) fn expiry_handle(&self) -> ExpiryHandle {
        self.expiry.get().expect("the scheduler starts before anybody gets a handle of the broker").clone()
    }

    /// The transaction checker; there once the broker is open.
    pub(crate) fn transaction_handle(&self) -> TransactionHandle {
        self.transaction.get().expect("the checker starts before anybody gets a handle of the broker").clone()
    }

    /// The committer of transactions; there once the broker is open.
    pub(crate) fn application_handle(&self) -> ApplicationHandle {
        self.application.get().expect("the committer starts before anybody gets a handle of the broker").clone()
    }

    /// When a message that is sent now is due.
    pub(crate) fn due(&self, delay: Delay, now: Timestamp) -> Timestamp {
        match delay {
            Delay::For(delay) => now.plus(delay),
            Delay::Until(at) => at,
            Delay::Level(level) => now.plus(self.settings.delay_of_level(level).unwrap_or_default()),
        }
    }

    /// Fails unless the broker takes new work.
    pub(crate) fn check_running(&self) -> Result<()> {
        self.state.check_running()
    }

    /// Waits for room for what is sent; a broker that ends meanwhile says why.
    pub(crate) async fn admit(&self, messages: usize, bytes: usize) -> Result<Taken<'_>> {
        self.check_running()?;
        self.admission.take(messages, bytes).await.map_err(|error| self.why(error))
    }

    /// Takes room for what is sent if there is some, while the broker runs.
    pub(crate) fn try_admit(&self, messages: usize, bytes: usize) -> Result<Taken<'_>> {
        self.admission.try_take(messages, bytes).map_err(|error| self.why(error))
    }

    /// Why nothing is admitted any more, if that is what the error says.
    fn why(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Closed => self.check_running().err().unwrap_or(error),
            _ => error,
        }
    }

    /// Has every group look at a topic that has come, has changed or is gone: each knows itself whether it reads it.
    pub(crate) fn topic_changed(&self, topic: &TopicName) {
        for (_, group) in self.groups.all() {
            group.post(GroupRequest::TopicChanged { topic: topic.clone() });
        }
    }

    /// Answers everybody who is still waiting for an actor, and whoever asks from now on: the actors are gone.
    pub(crate) fn end(&self) {
        self.topics.all().iter().for_each(|(_, topic)| topic.end());
        self.groups.all().iter().for_each(|(_, group)| group.end());
        self.delay.get().iter().for_each(|delay| delay.end());
        self.expiry.get().iter().for_each(|expiry| expiry.end());
        self.transaction.get().iter().for_each(|transaction| transaction.end());
        self.application.get().iter().for_each(|application| application.end());
    }
}

/// Names to handles: written by the root, read by everybody.
pub(crate) struct Registry<K, V> {
    entries: RwLock<HashMap<K, Arc<V>>>,
}

impl<K: std::hash::Hash + Eq + Clone + Ord, V> Registry<K, V> {
    pub(crate) fn new() -> Self {
        Self { entries: RwLock::new(HashMap::new()) }
    }

    pub(crate) fn get(&self, name: &K) -> Option<Arc<V>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn insert(&self, name: K, handle: Arc<V>) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(name, handle);
    }

    pub(crate) fn remove(&self, name: &K) -> Option<Arc<V>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All handles, ordered by name.
    pub(crate) fn all(&self) -> Vec<(K, Arc<V>)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = entries.iter().map(|(name, handle)| (name.clone(), Arc::clone(handle))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

/// Maps the failure to reach an actor: it is gone, and with it the request at hand.
pub(crate) fn lost(what: &'static str) -> impl FnOnce(actix::MailboxError) -> Error {
    move |_| Error::lost(what)
}

/// Numbers that rise for ever, across restarts: the opening in the upper bits, a count in the lower ones.
#[derive(Debug)]
pub(crate) struct Numbers {
    first: u64,
    next: AtomicU64,
}

impl Numbers {
    /// Bits for the numbers of one opening: a million a second last for 12 days, and then borrow from the next one's
    /// only after 2^40 of them.
    const BITS: u32 = 40;

    /// The first of this opening: all of earlier ones are smaller.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn of_opening(opening: u64) -> Result<Self> {
        let first = opening.checked_mul(1 << Self::BITS).ok_or_else(|| {
            Error::new(ErrorKind::Full, format!("the store was opened {opening} times, more than it can number"))
        })?;
        Ok(Self { first, next: AtomicU64::new(first) })
    }
}

/// A bounded count.
#[derive(Debug)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn new(count: AtomicUsize) -> Self {
        Self(count)
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// Adds unless that would exceed `most`.
    pub(crate) fn add_within(&self, more: usize, most: usize) -> bool {
        let add = |count: usize| count.checked_add(more).filter(|sum| *sum <= most);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }

    pub(crate) fn subtract(&self, fewer: usize) {
        let subtract = |count: usize| Some(count.saturating_sub(fewer));
        // The closure never refuses.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, subtract);
    }

    pub(crate) fn add(&self, more: usize) {
        self.0.fetch_add(more, Ordering::AcqRel);
    }
}

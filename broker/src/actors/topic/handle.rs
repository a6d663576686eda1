//! The way to a topic: its settings, its queues' handles, and the actor for what spans several queues.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use actix::Addr;
use cuemq_storage_api::{QueueId, QueueKey, StorageError, TopicName};

use super::{KIND, SpanRequest, Spanning, TopicActor};
use crate::actors::mailbox::{Drain, Inbox, post};
use crate::actors::queue::QueueHandle;
use crate::actors::supervisor::Identity;
use crate::domain::fence::QueueChange;
use crate::domain::routing::{QueueCount, RoundRobin, by_sharding_key};
use crate::domain::topic_rules::TopicRules;
use crate::error::{Error, ErrorKind, Result};
use crate::settings::Flush;
use crate::shared::Shared;

/// Shared by everybody who sends to or reads from the topic.
#[derive(Debug)]
pub(crate) struct TopicHandle {
    name: TopicName,
    flush: Flush,
    rules: TopicRules,
    /// Replaced as a whole when the number of queues changes. Whoever chooses a queue and hands something over to it
    /// does both under one read lock, so that nothing is handed over under numbers of before.
    pub(super) layout: RwLock<Arc<Layout>>,
    pub(super) inbox: Arc<Inbox<SpanRequest>>,
    /// There once a batch has spanned queues.
    address: OnceLock<Addr<TopicActor>>,
    round_robin: Mutex<RoundRobin>,
    /// Whether the queues' actors wait until a change of the number of queues is stored.
    pub(super) parked: Arc<AtomicBool>,
    /// Whether such a change is under way, from before the groups hear of it until its end.
    pub(super) changing: AtomicBool,
    /// Held by a batch over limited queues that is being written.
    pub(super) spanning: Arc<tokio::sync::Mutex<()>>,
}

/// A topic's queues at one time.
#[derive(Debug)]
pub(crate) struct Layout {
    /// How many of them are written to: the first ones.
    pub(crate) written: QueueCount,
    /// All that can be read.
    pub(crate) queues: Vec<Arc<QueueHandle>>,
    /// Where the queues ended at earlier changes, oldest first.
    pub(crate) changes: Arc<[QueueChange]>,
}

/// The queues that are written to, which stay the same as long as this lives.
pub(crate) struct Routes<'a> {
    layout: RwLockReadGuard<'a, Arc<Layout>>,
    round_robin: &'a Mutex<RoundRobin>,
}

impl TopicHandle {
    /// The way to a topic of which the first `written` of `readable` queues are written to. Its actor and those of its
    /// queues start when they are first needed.
    pub(crate) fn new(
        shared: &Shared,
        name: TopicName,
        (written, readable): (QueueCount, QueueCount),
        changes: Vec<QueueChange>,
        flush: Flush,
        rules: TopicRules,
    ) -> std::result::Result<Self, StorageError> {
        let parked = Arc::new(AtomicBool::new(false));
        let queue = |id| {
            let key = QueueKey::new(name.clone(), id);
            QueueHandle::new(shared, key, flush, &rules, Arc::clone(&parked)).map(Arc::new)
        };
        let queues = readable.ids().map(queue).collect::<std::result::Result<Vec<_>, StorageError>>()?;
        let layout = RwLock::new(Arc::new(Layout { written, queues, changes: changes.into() }));
        let (inbox, address, round_robin) = (Inbox::new(), OnceLock::new(), Mutex::default());
        let (changing, spanning) = (AtomicBool::new(false), Arc::default());
        Ok(Self { name, flush, rules, layout, inbox, address, round_robin, parked, changing, spanning })
    }

    fn start(&self, shared: &Arc<Shared>) -> Addr<TopicActor> {
        let identity = Identity::new(KIND, &self.name);
        let actor = TopicActor {
            shared: Arc::clone(shared),
            name: Arc::clone(&identity.name),
            flush: self.flush,
            inbox: Arc::clone(&self.inbox),
            limited: self
                .rules
                .max_length
                .map(|_| Spanning { lock: Arc::clone(&self.spanning), parked: Arc::clone(&self.parked) }),
        };
        let abandoned = Arc::clone(&self.inbox);
        let orphaned = move || refuse_all(&abandoned, "its topic has failed");
        shared.supervision.start(shared.arbiters.carrier(), identity, move || actor, orphaned)
    }

    pub(crate) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(crate) fn flush(&self) -> Flush {
        self.flush
    }

    /// What it demands of its messages.
    pub(crate) fn rules(&self) -> &TopicRules {
        &self.rules
    }

    /// Its queues now.
    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The queues that can be read.
    pub(crate) fn queues(&self) -> Vec<Arc<QueueHandle>> {
        self.layout().queues.clone()
    }

    /// How many queues can be read.
    pub(crate) fn queue_count(&self) -> QueueCount {
        let queues = u32::try_from(self.layout().queues.len()).ok().and_then(|count| QueueCount::new(count).ok());
        queues.expect("a topic has at least one queue, and few")
    }

    /// How many queues are written to.
    pub(crate) fn written(&self) -> QueueCount {
        self.layout.read().unwrap_or_else(PoisonError::into_inner).written
    }

    /// One queue by number, to be read.
    pub(crate) fn queue(&self, id: QueueId) -> Result<Arc<QueueHandle>> {
        let layout = self.layout();
        layout.queues.get(id.get() as usize).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("topic {} has queues 0 to {}, not {id}", self.name, layout.queues.len().saturating_sub(1)),
            )
        })
    }

    /// The queues to write to; they stay until it is dropped, so hand over what they were chosen for before. Hold it
    /// for a moment only, and one at a time.
    pub(crate) fn routes(&self) -> Routes<'_> {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        Routes { layout, round_robin: &self.round_robin }
    }

    /// Hands over a batch that spans queues.
    pub(crate) fn append_across(&self, shared: &Arc<Shared>, request: SpanRequest) {
        let mut request = Some(request);
        if self.inbox.add(|waiting| waiting.extend(request.take()), || self.wake(shared)).is_err() {
            request.into_iter().for_each(|request| request.refuse(gone("its topic is closed")));
        }
    }

    pub(super) fn wake(&self, shared: &Arc<Shared>) {
        post(self.address.get_or_init(|| self.start(shared)), Drain);
    }

    /// Refuses what waits and whatever comes: the topic is deleted.
    pub(crate) fn close(&self) {
        refuse_all(&self.inbox, "its topic was deleted");
        self.layout().queues.iter().for_each(|queue| queue.close());
    }

    /// Refuses what waits and whatever comes: the broker has stopped.
    pub(crate) fn end(&self) {
        refuse_all(&self.inbox, "the broker has stopped");
        self.layout().queues.iter().for_each(|queue| queue.end());
    }
}

impl Routes<'_> {
    /// How many queues are written to.
    pub(crate) fn written(&self) -> QueueCount {
        self.layout.written
    }

    /// One of them by number.
    pub(crate) fn queue(&self, id: QueueId) -> Option<&QueueHandle> {
        let queue = self.layout.queues.get(id.get() as usize).filter(|_| self.layout.written.contains(id));
        queue.map(|queue| &**queue)
    }

    /// Whether a message with this sharding key, or without one, may go to that queue.
    pub(crate) fn take(&self, queue: QueueId, sharding_key: Option<&str>) -> bool {
        match sharding_key {
            Some(key) => by_sharding_key(key, self.layout.written) == queue,
            None => self.layout.written.contains(queue),
        }
    }

    /// The queue for a message: by its sharding key, or in turn (RocketMQ's round robin).
    pub(crate) fn choose(&self, sharding_key: Option<&str>) -> &QueueHandle {
        let written = self.layout.written;
        let id = match sharding_key {
            Some(key) => by_sharding_key(key, written),
            None if written == QueueCount::ONE => QueueId::FIRST,
            None => self.round_robin.lock().unwrap_or_else(PoisonError::into_inner).choose(written),
        };
        &self.layout.queues[id.get() as usize]
    }
}

fn refuse_all(inbox: &Inbox<SpanRequest>, why: &str) {
    for request in inbox.close() {
        request.refuse(gone(why));
    }
}

pub(super) fn gone(why: &str) -> Error {
    Error::new(ErrorKind::NotStored, format!("the batch was not stored: {why}"))
}

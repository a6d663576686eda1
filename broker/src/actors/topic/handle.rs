//! The way to a topic: its settings, its queues' handles, and the actor for what spans several queues.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use actix::Addr;
use cuemq_storage_api::{QueueId, QueueKey, StorageError, TopicName};

use super::{KIND, SpanRequest, TopicActor};
use crate::actors::mailbox::{Drain, Inbox, post};
use crate::actors::queue::QueueHandle;
use crate::actors::supervisor::Identity;
use crate::domain::routing::{QueueCount, RoundRobin};
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
    queues: Vec<QueueHandle>,
    inbox: Arc<Inbox<SpanRequest>>,
    /// There once a batch has spanned queues.
    address: OnceLock<Addr<TopicActor>>,
    count: QueueCount,
    round_robin: Mutex<RoundRobin>,
}

impl TopicHandle {
    /// The way to a topic. Its actor and those of its queues start when they are first needed.
    pub(crate) fn new(
        shared: &Shared,
        name: TopicName,
        count: QueueCount,
        flush: Flush,
        rules: TopicRules,
    ) -> std::result::Result<Self, StorageError> {
        let queue = |id| QueueHandle::new(shared, QueueKey::new(name.clone(), id), flush, &rules);
        let queues = count.ids().map(queue).collect::<std::result::Result<Vec<_>, StorageError>>()?;
        let (inbox, address, round_robin) = (Inbox::new(), OnceLock::new(), Mutex::default());
        Ok(Self { name, flush, rules, queues, inbox, address, count, round_robin })
    }

    fn start(&self, shared: &Arc<Shared>) -> Addr<TopicActor> {
        let identity = Identity::new(KIND, &self.name);
        let actor = TopicActor {
            shared: Arc::clone(shared),
            name: Arc::clone(&identity.name),
            flush: self.flush,
            inbox: Arc::clone(&self.inbox),
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

    pub(crate) fn queues(&self) -> &[QueueHandle] {
        &self.queues
    }

    pub(crate) fn queue_count(&self) -> QueueCount {
        self.count
    }

    /// One queue by number.
    pub(crate) fn queue(&self, id: QueueId) -> Result<&QueueHandle> {
        self.queues.get(id.get() as usize).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("topic {} has queues 0 to {}, not {id}", self.name, self.queues.len().saturating_sub(1)),
            )
        })
    }

    /// The queue for a message: by its sharding key, or in turn (RocketMQ's round robin).
    pub(crate) fn choose(&self, sharding_key: Option<&str>) -> &QueueHandle {
        let mut round_robin = self.round_robin.lock().unwrap_or_else(PoisonError::into_inner);
        let id = round_robin.route(sharding_key, self.count);
        &self.queues[id.get() as usize]
    }

    /// Hands over a batch that spans queues.
    pub(crate) fn append_across(&self, shared: &Arc<Shared>, request: SpanRequest) {
        let mut request = Some(request);
        let wake = || post(self.address.get_or_init(|| self.start(shared)), Drain);
        if self.inbox.add(|waiting| waiting.extend(request.take()), wake).is_err() {
            request.into_iter().for_each(|request| request.refuse(gone("its topic is closed")));
        }
    }

    /// Refuses what waits and whatever comes: the topic is deleted.
    pub(crate) fn close(&self) {
        refuse_all(&self.inbox, "its topic was deleted");
        self.queues.iter().for_each(QueueHandle::close);
    }

    /// Refuses what waits and whatever comes: the broker has stopped.
    pub(crate) fn end(&self) {
        refuse_all(&self.inbox, "the broker has stopped");
        self.queues.iter().for_each(QueueHandle::end);
    }
}

fn refuse_all(inbox: &Inbox<SpanRequest>, why: &str) {
    for request in inbox.close() {
        request.refuse(gone(why));
    }
}

fn gone(why: &str) -> Error {
    Error::new(ErrorKind::NotStored, format!("the batch was not stored: {why}"))
}

//! The broker as a program holds it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::Addr;
use cuemq_storage_api::{Engine, GroupName, MemoryEngine, QueueKey, QueueOffset, TopicName};
use tokio::sync::{oneshot, watch};

use crate::actors::delay::DelayHandle;
use crate::actors::gateway::GatewayActor;
use crate::actors::group::{GroupDescription, GroupHandle, GroupRequest};
use crate::actors::queue_change::SetQueues;
use crate::actors::root::{CreateTopic, DeleteTopic, EnsureGroup, RootActor};
use crate::actors::topic::TopicHandle;
use crate::application::{ApplicationTransaction, Committed};
use crate::builder::BrokerBuilder;
use crate::clock::Clock;
use crate::consumer::{ConsumerBuilder, PopConsumerBuilder, PullConsumer};
use crate::dead_letters::DeadLetters;
use crate::domain::topic_rules::TopicRules;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::SHUTDOWN_PATIENCE;
use crate::producer::Producer;
use crate::runtime::Runtime;
use crate::settings::{BrokerSettings, Flush, TopicSpec};
use crate::shared::{Shared, lost};
use crate::state::BrokerState;
use crate::transaction::{TransactionListener, TransactionProducer};

/// A message broker inside this process. Cheap to clone; clones, producers and consumers share one broker, which
/// lives until [`shutdown`](Broker::shutdown) or until the last of them is dropped. Several brokers may run in one
/// process. All methods work on any async runtime and on none.
#[derive(Clone)]
pub struct Broker {
    keeper: Arc<Keeper>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A topic as administration shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// When sends to it are acknowledged.
    pub flush: Flush,
    /// How many of its queues are written to: the first ones. The others are read until they are empty.
    pub written_queues: u32,
    /// Its queues that can be read.
    pub queues: Vec<QueueDescription>,
}

/// One queue as administration shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct QueueDescription {
    /// The queue.
    pub queue: QueueKey,
    /// The first offset that can be read.
    pub min: QueueOffset,
    /// The end of what consumers may read.
    pub end: QueueOffset,
    /// Sends that wait for the queue's actor.
    pub waiting: usize,
}

impl Broker {
    /// Starts from an engine; settings and components follow.
    #[must_use]
    pub fn builder(engine: impl Engine) -> BrokerBuilder {
        BrokerBuilder::new(Arc::new(engine))
    }

    /// Starts from an engine that was chosen while the program runs.
    #[must_use]
    pub fn builder_over(engine: Arc<dyn Engine>) -> BrokerBuilder {
        BrokerBuilder::new(engine)
    }

    /// A broker that keeps everything in memory: for tests, and for messages that may be lost with the process.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub async fn in_memory() -> Result<Self> {
        Self::builder(MemoryEngine::new()).open().await
    }

    pub(crate) fn from_keeper(keeper: Arc<Keeper>) -> Self {
        Self { keeper }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.keeper.shared()
    }

    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &BrokerSettings {
        &self.shared().settings
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared().clock
    }

    /// The engine's short name, such as `mmap`.
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        self.shared().storage.capabilities().name
    }

    /// What the broker says of itself now.
    #[must_use]
    pub fn state(&self) -> BrokerState {
        self.shared().state.get()
    }

    /// Every change of the state, for a health check.
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<BrokerState> {
        self.shared().state.watch()
    }

    /// How often an actor was restarted after a panic since the broker opened.
    #[must_use]
    pub fn actor_restarts(&self) -> u64 {
        self.shared().restarts.load(Ordering::Relaxed)
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// `Exists` when there is one of that name; `Invalid` names a bad name or number.
    pub async fn create_topic(&self, spec: TopicSpec) -> Result<TopicDescription> {
        self.shared().check_running()?;
        let name = TopicName::new(&spec.name)?;
        spec.rules.max_length.map_or(Ok(()), |limit| limit.check())?;
        let queues = spec.queues.unwrap_or(self.settings().default_queues);
        let create = CreateTopic { name, queues, flush: spec.flush, rules: spec.rules, must_be_new: true };
        let handle = self.keeper.root.send(create).await.map_err(lost("the creation of the topic"))??;
        self.describe(&handle)
    }

    /// The names of all topics that users made, in order.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let all = self.shared().topics.all();
        all.iter().filter(|(name, _)| !name.is_system()).map(|(name, _)| name.to_string()).collect()
    }

    /// What a topic looks like now; also retry, dead-letter and system topics.
    ///
    /// # Errors
    /// `UnknownTopic`.
    pub fn describe_topic(&self, topic: &str) -> Result<TopicDescription> {
        let name = TopicName::from_stored(topic)?;
        let handle = self.shared().topics.get(&name).ok_or_else(|| unknown_topic(&name))?;
        self.describe(&handle)
    }

    fn describe(&self, handle: &TopicHandle) -> Result<TopicDescription> {
        let layout = handle.layout();
        let describe = |queue: &Arc<crate::actors::queue::QueueHandle>| {
            let min = self.shared().storage.engine().bounds(queue.key())?.start;
            let end = queue.tail().visible().max(min);
            Ok(QueueDescription { queue: queue.key().clone(), min, end, waiting: queue.waiting() })
        };
        let queues = layout.queues.iter().map(describe).collect::<Result<_>>()?;
        let written_queues = layout.written.get();
        Ok(TopicDescription { name: handle.name().to_string(), flush: handle.flush(), written_queues, queues })
    }

    /// Changes how many queues of a topic are written to, up or down, while it is in use. Nothing is lost. Messages
    /// with a sharding key may go to another queue from then on; ordered consumers read nothing that was sent after the
    /// change before their group has consumed everything that was sent before it, so each key keeps its order. Queues
    /// beyond the new number stay readable as long as something is stored in one of them or behind it; a change, also one
    /// to the number that there is, and every opening of the broker look whether that is so. Senders wait until the
    /// change is stored.
    ///
    /// At most 16 changes are remembered per topic: of those from before which messages are stored, the oldest is
    /// forgotten when every group has passed it.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` names a bad number; `Full` names the group that has to pass the oldest change first.
    /// `NotStored` and others mean that the topic is as it was, and what was sent meanwhile is refused; `Unknown` that
    /// the broker has failed, and finds out when it is reopened.
    pub async fn set_queues(&self, topic: &str, queues: u32) -> Result<TopicDescription> {
        self.shared().check_running()?;
        let name = TopicName::new(topic)?;
        let handle =
            self.keeper.root.send(SetQueues { name, queues }).await.map_err(lost("the change of queues"))??;
        self.describe(&handle)
    }

    /// Deletes a topic with its messages. Members of groups lose its queues. Made again under the same name, its
    /// offsets go on where they ended, so that no stored offset ever points at another message.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` for the broker's own topics.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        self.shared().check_running()?;
        let name = TopicName::new(topic)?;
        self.keeper.root.send(DeleteTopic { name }).await.map_err(lost("the deletion of the topic"))?
    }

    /// The names of all consumer groups, in order.
    #[must_use]
    pub fn groups(&self) -> Vec<String> {
        self.shared().groups.all().iter().map(|(name, _)| name.to_string()).collect()
    }

    /// The members of a group and how far it is in each queue.
    ///
    /// # Errors
    /// `UnknownGroup`.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        let handle = self.group_handle(group)?;
        handle.ask(|reply| GroupRequest::Describe { reply }).await
    }

    /// The way to a group's actor.
    pub(crate) fn group_handle(&self, group: &str) -> Result<Arc<GroupHandle>> {
        let name = GroupName::new(group)?;
        self.shared().groups.get(&name).ok_or_else(|| {
            let text = format!("group {name} does not exist: a consumer of that name makes it");
            Error::new(ErrorKind::UnknownGroup, text)
        })
    }

    /// The dead letters of a group.
    ///
    /// # Errors
    /// `UnknownGroup`; a failed read.
    pub fn dead_letters(&self, group: &str) -> Result<DeadLetters> {
        DeadLetters::new(Arc::clone(&self.keeper), self.group_handle(group)?)
    }

    /// A producer for a topic, which is created if it does not exist and the settings allow it.
    ///
    /// # Errors
    /// `UnknownTopic` says how to create it; `Invalid` names a bad name.
    pub async fn producer(&self, topic: &str) -> Result<Producer> {
        let handle = self.keeper.topic(topic).await?;
        Ok(Producer::new(Arc::clone(&self.keeper), handle))
    }

    /// A producer of half messages for a topic. `listener` is asked about transactions of this producer group that
    /// nobody has decided, also about those that another, dead member began.
    ///
    /// # Errors
    /// As [`producer`](Broker::producer).
    pub async fn transaction_producer(
        &self,
        group: &str,
        topic: &str,
        listener: impl TransactionListener,
    ) -> Result<TransactionProducer> {
        let group = GroupName::new(group)?;
        let handle = self.keeper.topic(topic).await?;
        TransactionProducer::new(Arc::clone(&self.keeper), group, handle, listener).await
    }

    /// Runs a transaction over messages of any topics, acknowledgements of any groups and the program's own tables: all
    /// of it is stored by one write, or nothing is. `work` reads the latest committed rows and its own writes; when
    /// something that it read has been changed by somebody else before its turn to commit comes, it runs again, so it
    /// shall have no other effects. The commits follow each other, and each transaction has seen and done what it would
    /// have if it had run alone at its place in their order (it is serialisable). Those that had to run again four times
    /// take turns from then on, so that all come through; `work` must not wait for another transaction.
    ///
    /// What it writes is durable before this resolves if any topic that it sends to is durable, or the broker's default
    /// is; [`Committed::level`] says so. `work` runs on the caller's thread; a panic in it is the caller's. Dropping the
    /// future leaves it to chance whether the transaction is committed.
    ///
    /// # Errors
    /// What `work` returns, when it gives up after having seen what was there ([`Error::aborted`] is the word for that):
    /// nothing is done then. `Conflict` when others were first 64 times, or move the same offsets; `Stale` when a message that it acknowledges belongs to
    /// somebody else by now, or was acknowledged before: nothing is done. `Invalid`, `NotStored`, `Full`: nothing is
    /// done. `Unknown`: all of it is done, or nothing.
    pub async fn transaction<T>(
        &self,
        work: impl FnMut(&mut ApplicationTransaction) -> Result<T>,
    ) -> Result<Committed<T>> {
        crate::application::run(&self.keeper, work).await
    }

    /// A member of a consumer group, to be built.
    #[must_use]
    pub fn consumer(&self, group: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.keeper), group.into())
    }

    /// A consumer that takes a group's messages one by one, under receipts, to be built.
    #[must_use]
    pub fn pop_consumer(&self, group: impl Into<String>) -> PopConsumerBuilder {
        PopConsumerBuilder::new(Arc::clone(&self.keeper), group.into())
    }

    /// A consumer that reads the queues it is told to, from the offsets it is told.
    ///
    /// # Errors
    /// `Invalid` names a bad group name.
    pub async fn pull_consumer(&self, group: &str) -> Result<PullConsumer> {
        let name = GroupName::new(group)?;
        let ensure = EnsureGroup { name, broadcasting: false, strategy: None, retry: None, paused: None };
        let handle = self.keeper.group(ensure).await?;
        Ok(PullConsumer::new(Arc::clone(&self.keeper), handle))
    }

    /// The address that takes [`Publish`](crate::Publish) from the program's own actors.
    #[must_use]
    pub fn gateway(&self) -> Addr<GatewayActor> {
        self.keeper.gateway.clone()
    }

    /// Finishes what is under way, makes everything durable, ends all actors and threads, releases the directory.
    /// Safe to call more than once and from several places: all calls resolve when it is done.
    ///
    /// # Errors
    /// What the engine met when it was closed.
    pub async fn shutdown(&self) -> Result<()> {
        self.keeper.shutdown().await
    }
}

pub(crate) fn unknown_topic(name: &TopicName) -> Error {
    let text = format!(
        "topic {name} does not exist: create it with create_topic, or set auto_create_topics = true in the settings"
    );
    Error::new(ErrorKind::UnknownTopic, text)
}

/// Keeps a broker alive: held by its public handles, not by its actors.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    root: Addr<RootActor>,
    gateway: Addr<GatewayActor>,
    running: Mutex<Option<Running>>,
}

/// What has to be taken down at the end.
pub(crate) struct Running {
    pub(crate) runtime: Runtime,
    /// Whatever shall live as long as the broker, such as a temporary directory.
    pub(crate) company: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    pub(crate) fn new(
        shared: Arc<Shared>,
        root: Addr<RootActor>,
        gateway: Addr<GatewayActor>,
        running: Running,
    ) -> Self {
        Self { shared, root, gateway, running: Mutex::new(Some(running)) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn delay(&self) -> DelayHandle {
        self.shared.delay_handle()
    }

    /// A topic's handle; the topic is created if it may be.
    pub(crate) async fn topic(&self, topic: &str) -> Result<Arc<TopicHandle>> {
        let name = TopicName::new(topic)?;
        if let Some(handle) = self.shared.topics.get(&name) {
            return Ok(handle);
        }
        self.shared.check_running()?;
        if !self.shared.settings.auto_create_topics {
            return Err(unknown_topic(&name));
        }
        let queues = self.shared.settings.default_queues;
        let create = CreateTopic { name, queues, flush: None, rules: TopicRules::default(), must_be_new: false };
        self.root.send(create).await.map_err(lost("the creation of the topic"))?
    }

    /// A group's handle; the group is created if it does not exist, and changed if that is asked for.
    pub(crate) async fn group(&self, ensure: EnsureGroup) -> Result<Arc<GroupHandle>> {
        let unchanged = ensure.strategy.is_none() && ensure.retry.is_none() && ensure.paused.is_none();
        if let Some(handle) = self.shared.groups.get(&ensure.name).filter(|_| unchanged) {
            return Ok(handle);
        }
        self.shared.check_running()?;
        self.root.send(ensure).await.map_err(lost("the creation of the group"))?
    }

    fn take_running(&self) -> Option<Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) async fn shutdown(&self) -> Result<()> {
        let Some(running) = self.take_running() else {
            // Somebody else takes it down: wait for the end.
            let mut state = self.shared.state.watch();
            // The sender lives in `shared`, so this ends with `Stopped`.
            let _ = state.wait_for(|state| *state == BrokerState::Stopped).await;
            return Ok(());
        };
        let (sender, receiver) = oneshot::channel();
        take_down(Arc::clone(&self.shared), running, move |result| {
            // The caller may have gone away.
            let _ = sender.send(result);
        })?;
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the shutdown")))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(running) = self.take_running() {
            tracing::debug!("a broker was dropped without a shutdown: it is taken down in the background");
            let ended = |result: Result<()>| {
                if let Err(error) = result {
                    tracing::error!(%error, "a dropped broker could not be closed cleanly");
                }
            };
            if let Err(error) = take_down(Arc::clone(&self.shared), running, ended) {
                tracing::error!(%error, "a dropped broker could not be taken down");
            }
        }
    }
}

/// Takes a broker down on a thread of its own, because joining threads blocks.
#[expect(clippy::disallowed_methods, reason = "ends by itself once the broker is down")]
fn take_down(shared: Arc<Shared>, running: Running, ended: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
    shared.state.begin_stop();
    let take_down = move || {
        let (sender, receiver) = std::sync::mpsc::channel();
        let quiet = Arc::clone(&shared);
        running.runtime.arbiters().control().spawn(async move {
            if within(SHUTDOWN_PATIENCE, quiesce(&quiet)).await.is_none() {
                tracing::warn!("requests were still under way when the broker stopped");
            }
            // The thread below waits for this, or for the sender's end.
            let _ = sender.send(());
        });
        let _ = receiver.recv();
        let storage = shared.storage.clone();
        running.runtime.stop();
        let closed = storage.close();
        shared.end();
        drop(running.company);
        shared.state.stopped();
        ended(closed.map_err(Error::from));
    };
    let thread = std::thread::Builder::new().name("cuemq-shutdown".into()).spawn(take_down);
    thread.map(|_| ()).map_err(|e| Error::new(ErrorKind::Unknown, format!("no thread for the shutdown: {e}")))
}

/// Resolves when every admitted send has its answer and every acknowledgement is written.
async fn quiesce(shared: &Shared) {
    shared.admission.drain().await;
    for (_, group) in shared.groups.all() {
        group.post(GroupRequest::Close { why: "the broker is shutting down".into() });
        // An answer means that everything before it was handed to storage...
        let _ = group.ask(|reply| GroupRequest::Describe { reply }).await;
    }
    // ...but for acknowledgements that wait for the outcome of a retry.
    shared.storage.landed().await;
    for (_, group) in shared.groups.all() {
        let _ = group.ask(|reply| GroupRequest::Describe { reply }).await;
    }
}

async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(patience, work).await.ok()
}

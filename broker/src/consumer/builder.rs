//! Says what a consumer wants before it joins its group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::Recipient;
use cuemq_storage_api::{GroupName, Timestamp, TopicName};

use super::session::{Credit, Session, SessionSettings};
use super::{Consumer, WorkerHandle};
use crate::actors::gateway::Deliver;
use crate::actors::group::Start;
use crate::actors::root::EnsureGroup;
use crate::broker::Keeper;
use crate::domain::assignment::AssignmentStrategy;
use crate::domain::filter::TagFilter;
use crate::domain::member::{MemberId, Room};
use crate::domain::order::Order;
use crate::domain::retry::RetryPolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_SUBSCRIPTIONS;

/// Where a group begins with a queue that it never read. Afterwards it goes on from its committed offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartAt {
    /// With the oldest message there is.
    #[default]
    Earliest,
    /// With the next message that is sent.
    Latest,
    /// With the first message stored at or after this time.
    Time(Timestamp),
}

/// See [`Broker::consumer`](crate::Broker::consumer).
#[derive(Debug)]
pub struct ConsumerBuilder {
    keeper: Arc<Keeper>,
    group: String,
    member: Option<String>,
    room: Option<String>,
    subscriptions: Vec<(String, String)>,
    order: Order,
    broadcasting: bool,
    start: StartAt,
    strategy: Option<AssignmentStrategy>,
    retry: Option<RetryPolicy>,
}

/// Tells members apart that chose no name.
static NEXT_MEMBER: AtomicU64 = AtomicU64::new(1);

impl ConsumerBuilder {
    pub(crate) fn new(keeper: Arc<Keeper>, group: String) -> Self {
        Self {
            keeper,
            group,
            member: None,
            room: None,
            subscriptions: Vec::new(),
            order: Order::default(),
            broadcasting: false,
            start: StartAt::default(),
            strategy: None,
            retry: None,
        }
    }

    /// Subscribes to every message of a topic.
    #[must_use]
    pub fn subscribe(self, topic: impl Into<String>) -> Self {
        self.subscribe_tags(topic, "*")
    }

    /// Subscribes to the messages of a topic whose tag matches: `*`, or tags as in `create || pay`. Messages that no
    /// tag of any member of the group matches are done without a delivery, and counted.
    #[must_use]
    pub fn subscribe_tags(mut self, topic: impl Into<String>, tags: impl Into<String>) -> Self {
        self.subscriptions.push((topic.into(), tags.into()));
        self
    }

    /// Names this member; unique within the group. A broadcasting member goes on after a restart where it ended only
    /// under the same name.
    #[must_use]
    pub fn member(mut self, name: impl Into<String>) -> Self {
        self.member = Some(name.into());
        self
    }

    /// Says where this member stands, for groups that share queues by [`AssignmentStrategy::MachineRoom`]; the others
    /// take no notice. 1 to 255 bytes.
    #[must_use]
    pub fn room(mut self, room: impl Into<String>) -> Self {
        self.room = Some(room.into());
        self
    }

    /// Sets in which order this member gets the messages of a queue. Default: [`Order::Concurrent`].
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Delivers each queue's messages one after the other: short for [`order`](Self::order) with [`Order::Queue`], or,
    /// when `false`, with [`Order::Concurrent`].
    #[must_use]
    pub fn ordered(self, ordered: bool) -> Self {
        self.order(if ordered { Order::Queue } else { Order::Concurrent })
    }

    /// Gives every member all messages, instead of sharing the queues; each member has progress of its own.
    #[must_use]
    pub fn broadcasting(mut self, broadcasting: bool) -> Self {
        self.broadcasting = broadcasting;
        self
    }

    /// Sets where the group begins with a queue that it never read. Default: the oldest message.
    #[must_use]
    pub fn start_at(mut self, start: StartAt) -> Self {
        self.start = start;
        self
    }

    /// Sets how the group shares queues among its members, from now on and after a restart.
    #[must_use]
    pub fn assignment(mut self, strategy: AssignmentStrategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Sets when the group has failed messages delivered again, from now on and after a restart. The setting
    /// `max_redeliveries` is the upper bound.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Joins the group. Topics that do not exist are created if the settings allow it.
    ///
    /// # Errors
    /// `Invalid` names a bad name, filter or mix; `UnknownTopic`; `Exists` when the member's name is taken.
    pub async fn build(self) -> Result<Consumer> {
        if self.broadcasting && self.member.is_none() {
            let text = "a broadcasting consumer needs a name to find its progress again: call member(name)";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let number = NEXT_MEMBER.fetch_add(1, Ordering::Relaxed);
        let member = MemberId::chosen(&self.member.unwrap_or_else(|| format!("member-{number}")))?;
        let room = self.room.as_deref().map(Room::new).transpose()?;
        self.retry.iter().try_for_each(RetryPolicy::check)?;
        self.strategy.iter().try_for_each(AssignmentStrategy::check)?;
        let (name, filters) = filters_of(&self.keeper, &self.group, &self.subscriptions).await?;
        let (strategy, retry) = (self.strategy, self.retry);
        let ensure = EnsureGroup { name, broadcasting: self.broadcasting, strategy, retry, paused: None };
        let group = self.keeper.group(ensure).await?;
        let mut topics: BTreeSet<TopicName> = filters.iter().map(|(topic, _)| topic.clone()).collect();
        if !self.broadcasting {
            topics.insert(TopicName::retry_of(group.name()));
        }
        let (broadcasting, order, credit) = (self.broadcasting, self.order, Credit::CONSUMER);
        let settings = SessionSettings { broadcasting, order, credit, filters };
        let session = Session::new(member, settings);
        let start = Start::from(self.start);
        let consumer = Consumer::new(self.keeper, Arc::clone(&group), Arc::clone(&session));
        // A consumer that does not get in leaves again by being dropped.
        group.join(session, topics, room, start).await?;
        Ok(consumer)
    }

    /// Joins the group and sends every message to one of the program's own actors, up to `concurrency` at a time. The
    /// actor's answer settles the message as the result of a handler of [`Consumer::run`] does; so does its death.
    ///
    /// # Errors
    /// As [`build`](ConsumerBuilder::build).
    pub async fn deliver_to(self, recipient: Recipient<Deliver>, concurrency: usize) -> Result<WorkerHandle> {
        let consumer = self.build().await?;
        Ok(consumer.spawn(concurrency, move |received| {
            let sent = recipient.send(Deliver { message: received });
            async move {
                match sent.await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(failed)) => Err(failed),
                    Err(gone) => Err(format!("the subscribed actor did not answer: {gone}")),
                }
            }
        }))
    }
}

impl From<StartAt> for Start {
    fn from(start: StartAt) -> Self {
        match start {
            StartAt::Earliest => Self::Earliest,
            StartAt::Latest => Self::Latest,
            StartAt::Time(at) => Self::At(at),
        }
    }
}

/// The group's name and what a consumer's subscriptions come to. Topics are created if they may be, once everything
/// that can be seen from here is right.
pub(super) async fn filters_of(
    keeper: &Keeper,
    group: &str,
    subscriptions: &[(String, String)],
) -> Result<(GroupName, Vec<(TopicName, TagFilter)>)> {
    let (wanted, most) = (subscriptions.len(), MAX_SUBSCRIPTIONS);
    let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
    if wanted == 0 {
        return invalid(format!("consumer of group {group} subscribes to nothing: call subscribe(topic)"));
    }
    if wanted > most {
        return invalid(format!("{wanted} topics subscribed to, more than {most}: use several groups"));
    }
    let group = GroupName::new(group)?;
    let mut filters: Vec<(TopicName, TagFilter)> = Vec::with_capacity(wanted);
    for (topic, tags) in subscriptions {
        let (name, filter) = (TopicName::new(topic)?, TagFilter::parse(tags)?);
        if filters.iter().any(|(known, _)| *known == name) {
            return invalid(format!("topic {topic} is subscribed to twice: join the tags with ||"));
        }
        filters.push((name, filter));
    }
    keeper.shared().check_running()?;
    for (topic, _) in &filters {
        keeper.topic(topic.as_str()).await?;
    }
    Ok((group, filters))
}

//! The guardian: creates and deletes topics, creates groups, and keeps the list of both in storage.
//!
//! Its changes follow each other: the next one begins when the last one is stored. Supervised like all actors; after
//! a restart it starts whatever storage has and the registry lacks.

use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, AtomicResponse, Context, Handler, Message, Supervised, WrapFuture};
use cuemq_storage_api::{GroupName, TopicName, WriteBatch};

use super::delay::undeliverable;
use super::group::{GroupHandle, GroupRequest};
use super::queue_change::read_changes;
use super::supervisor::{Identity, fail_start};
use super::topic::{TopicHandle, readable};
use super::transaction::given_up_topic;
use crate::audit::audit_row;
use crate::domain::assignment::AssignmentStrategy;
use crate::domain::audit::AuditAction;
use crate::domain::retry::RetryPolicy;
use crate::domain::routing::QueueCount;
use crate::domain::topic_rules::TopicRules;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_GROUPS, MAX_QUEUES_PER_TOPIC, MAX_TOPICS};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::audit::AuditRow;
use crate::tables::group::{self, GroupRow};
use crate::tables::queue_change;
use crate::tables::topic::{self, TopicRow};

pub(crate) const KIND: &str = "root";

#[derive(Debug)]
pub(crate) struct RootActor {
    shared: Arc<Shared>,
    ready: Option<tokio::sync::oneshot::Sender<Result<()>>>,
}

/// Gives a topic's handle, creating the topic if it is not there.
#[derive(Debug, Message)]
#[rtype(result = "Result<Arc<TopicHandle>>")]
pub(crate) struct CreateTopic {
    pub(crate) name: TopicName,
    pub(crate) queues: u32,
    pub(crate) flush: Option<Flush>,
    pub(crate) rules: TopicRules,
    /// Whether a topic that is there already is an error.
    pub(crate) must_be_new: bool,
}

/// Forgets a topic and its messages.
#[derive(Debug, Message)]
#[rtype(result = "Result<()>")]
pub(crate) struct DeleteTopic {
    pub(crate) name: TopicName,
}

/// Gives a group's handle, creating the group with its retry and dead-letter topics if it is not there.
#[derive(Debug, Message)]
#[rtype(result = "Result<Arc<GroupHandle>>")]
pub(crate) struct EnsureGroup {
    pub(crate) name: GroupName,
    pub(crate) broadcasting: bool,
    /// How the group shares queues; `None` keeps what it has.
    pub(crate) strategy: Option<AssignmentStrategy>,
    /// How it retries; `None` keeps what it has.
    pub(crate) retry: Option<RetryPolicy>,
    /// Whether its members get nothing new; `None` keeps what is.
    pub(crate) paused: Option<bool>,
}

impl RootActor {
    /// Starts the root; `ready` hears when everything that storage has is running.
    pub(crate) fn start(shared: &Arc<Shared>, ready: tokio::sync::oneshot::Sender<Result<()>>) -> actix::Addr<Self> {
        let (for_make, identity) = (Arc::clone(shared), Identity::new(KIND, "root"));
        let make = move || Self { shared: for_make, ready: Some(ready) };
        shared.supervision.start(shared.arbiters.control(), identity, make, || {})
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Starts what storage has and the registry lacks.
    fn restore(&self) -> Result<()> {
        let engine = self.shared.storage.engine();
        let mut topics = Vec::new();
        scan_rows::<Error>(&**engine, &topic::TABLE, &[], None, usize::MAX, |key, row| {
            topics.push((topic::decode_key(key)?, TopicRow::decode(row)?));
            Ok(())
        })?;
        for (name, row) in topics {
            if self.shared.topics.get(&name).is_none() {
                self.start_topic(name, &row)?;
            }
        }
        let mut groups = Vec::new();
        scan_rows::<Error>(&**engine, &group::TABLE, &[], None, usize::MAX, |key, row| {
            groups.push((group::decode_key(key)?, GroupRow::decode(row)?));
            Ok(())
        })?;
        for (name, row) in groups {
            if self.shared.groups.get(&name).is_none() {
                self.start_group(name, &row);
            }
        }
        Ok(())
    }

    fn start_topic(&self, name: TopicName, row: &TopicRow) -> Result<Arc<TopicHandle>> {
        let flush = match row.durable_ack {
            Some(true) => Flush::Durable,
            Some(false) => Flush::Buffered,
            None => self.shared.settings.flush,
        };
        let engine = self.shared.storage.engine();
        let counts = (row.queues, readable(&**engine, &name, row.queues, row.read_queues)?);
        let changes = read_changes(&**engine, &name)?.into_iter().map(|(_, change)| change.within(counts.1)).collect();
        let handle = Arc::new(TopicHandle::new(&self.shared, name.clone(), counts, changes, flush, row.rules)?);
        self.shared.topics.insert(name.clone(), Arc::clone(&handle));
        self.shared.topic_changed(&name);
        Ok(handle)
    }

    fn start_group(&self, name: GroupName, row: &GroupRow) -> Arc<GroupHandle> {
        let handle = Arc::new(GroupHandle::start(&self.shared, name.clone(), row));
        self.shared.groups.insert(name, Arc::clone(&handle));
        handle
    }

    /// Adds the row of a topic to a batch, unless the topic is there.
    fn put_topic(
        &self,
        name: &TopicName,
        queues: QueueCount,
        flush: Option<Flush>,
        rules: TopicRules,
        batch: &mut WriteBatch,
    ) -> TopicRow {
        let durable_ack = flush.map(|flush| flush == Flush::Durable);
        let row = TopicRow { queues, read_queues: queues, durable_ack, rules, created_at: batch.stored_at() };
        if self.shared.topics.get(name).is_none() {
            batch.put(&topic::TABLE, topic::key(name), row.encode());
        }
        row
    }

    /// The row a group shall have, and whether storage has another one or none.
    fn group_row(&self, m: &EnsureGroup) -> Result<(GroupRow, bool)> {
        if let Some(retry) = &m.retry {
            retry.check()?;
        }
        if let Some(strategy) = &m.strategy {
            strategy.check()?;
        }
        let stored = self.shared.storage.engine().get(&group::TABLE, &group::key(&m.name))?;
        let stored = stored.map(|row| GroupRow::decode(&row)).transpose()?;
        let mut row = stored.clone().unwrap_or_else(|| GroupRow {
            broadcasting: m.broadcasting,
            strategy: AssignmentStrategy::default(),
            retry: RetryPolicy::default(),
            paused: false,
            created_at: self.shared.clock.now(),
        });
        row.strategy = m.strategy.clone().unwrap_or(row.strategy);
        row.retry = m.retry.clone().unwrap_or(row.retry);
        row.paused = m.paused.unwrap_or(row.paused);
        let changed = stored.as_ref() != Some(&row);
        Ok((row, changed))
    }

    /// Writes down that an operator paused a group or had it go on.
    fn audit_pause(&self, m: &EnsureGroup, batch: &mut WriteBatch) -> Result<()> {
        let Some(paused) = m.paused else { return Ok(()) };
        let action = if paused { AuditAction::Pause } else { AuditAction::Resume };
        let (group, queues, note) = (Some(m.name.clone()), Vec::new(), String::new());
        audit_row(&self.shared, batch, &AuditRow { action, group, topic: None, queues, note })
    }

    fn ensure_running(&self, name: TopicName, row: &TopicRow) -> Result<Arc<TopicHandle>> {
        match self.shared.topics.get(&name) {
            Some(handle) => Ok(handle),
            None => self.start_topic(name, row),
        }
    }
}

impl Actor for RootActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // After a restart `ready` is gone already.
        let restored = self.restore();
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let system = [undeliverable(), given_up_topic()];
        let rows = system.map(|name| {
            let row = self.put_topic(&name, QueueCount::ONE, Some(Flush::Durable), TopicRules::default(), &mut batch);
            (name, row)
        });
        let storage = self.shared.storage.clone();
        let ready = async move {
            restored?;
            if !batch.is_empty() {
                storage.write_and_wait(batch, Flush::Durable).await?;
            }
            Ok(())
        };
        ctx.wait(ready.into_actor(self).map(|stored: Result<()>, actor, _| {
            let running = stored.and_then(|()| {
                rows.into_iter().try_for_each(|(name, row)| actor.ensure_running(name, &row).map(|_| ()))
            });
            match actor.ready.take() {
                // Whoever opens the broker may have given up.
                Some(ready) => drop(ready.send(running)),
                None => {
                    if let Err(error) = running {
                        fail_start(&error);
                    }
                }
            }
        }));
    }
}

impl Supervised for RootActor {
    fn restarting(&mut self, _: &mut Context<Self>) {
        if let Err(error) = self.restore() {
            fail_start(&error);
        }
    }
}

impl Handler<CreateTopic> for RootActor {
    type Result = AtomicResponse<Self, Result<Arc<TopicHandle>>>;

    fn handle(&mut self, m: CreateTopic, _: &mut Context<Self>) -> Self::Result {
        self.shared.probe(KIND, "root", "CreateTopic");
        let existing = self.shared.topics.get(&m.name);
        let checked = check_new_topic(&m, existing.as_deref(), self.shared.topics.len());
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let row = checked.map(|queues| self.put_topic(&m.name, queues, m.flush, m.rules, &mut batch));
        let storage = self.shared.storage.clone();
        let stored = async move {
            let row = row?;
            if !batch.is_empty() {
                storage.write_and_wait(batch, Flush::Durable).await?;
            }
            Ok(row)
        };
        let started =
            move |row: Result<TopicRow>, actor: &mut Self, _: &mut Context<Self>| actor.ensure_running(m.name, &row?);
        AtomicResponse::new(Box::pin(stored.into_actor(self).map(started)))
    }
}

fn check_new_topic(m: &CreateTopic, existing: Option<&TopicHandle>, topics: usize) -> Result<QueueCount> {
    if m.queues == 0 || m.queues > MAX_QUEUES_PER_TOPIC {
        let text = format!("topic {} with {} queues: use 1 to {MAX_QUEUES_PER_TOPIC}", m.name, m.queues);
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    if existing.is_some() && m.must_be_new {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("topic {} exists already: use it, or delete it first", m.name),
        ));
    }
    if existing.is_none() && topics >= MAX_TOPICS {
        let text = format!("the broker has {topics} topics, its limit: delete some that are not needed");
        return Err(Error::new(ErrorKind::Full, text));
    }
    Ok(QueueCount::new(m.queues)?)
}

impl Handler<DeleteTopic> for RootActor {
    type Result = AtomicResponse<Self, Result<()>>;

    fn handle(&mut self, m: DeleteTopic, _: &mut Context<Self>) -> Self::Result {
        self.shared.probe(KIND, "root", "DeleteTopic");
        let (storage, now) = (self.shared.storage.clone(), self.shared.clock.now());
        let removed = self.shared.topics.remove(&m.name);
        if let Some(handle) = &removed {
            handle.close();
            self.shared.topic_changed(&m.name);
        }
        let stored = async move {
            let Some(handle) = removed else {
                return Err(Error::new(ErrorKind::UnknownTopic, format!("topic {} does not exist", m.name)));
            };
            // What was handed over before lands first; then the batch below forgets it.
            storage.landed().await;
            let mut batch = WriteBatch::new(now);
            batch.delete(&topic::TABLE, topic::key(&m.name));
            for (number, _) in read_changes(&**storage.engine(), &m.name)? {
                batch.delete(&queue_change::TABLE, queue_change::key(&m.name, number));
            }
            for queue in handle.queues() {
                let end = storage.engine().bounds(queue.key())?.end;
                batch.trim(queue.key(), end);
            }
            storage.write_and_wait(batch, Flush::Durable).await?;
            Ok(())
        };
        let deleted = |stored: Result<()>, actor: &mut Self, _: &mut Context<Self>| match stored {
            Ok(()) => Ok(()),
            Err(error) => {
                // It is still in storage: its handles are closed, so it starts anew.
                actor.restore()?;
                Err(error)
            }
        };
        AtomicResponse::new(Box::pin(stored.into_actor(self).map(deleted)))
    }
}

impl Handler<EnsureGroup> for RootActor {
    type Result = AtomicResponse<Self, Result<Arc<GroupHandle>>>;

    fn handle(&mut self, m: EnsureGroup, _: &mut Context<Self>) -> Self::Result {
        self.shared.probe(KIND, "root", "EnsureGroup");
        let now = self.shared.clock.now();
        let existing = self.shared.groups.get(&m.name);
        let full = existing.is_none() && self.shared.groups.len() >= MAX_GROUPS;
        let mut batch = WriteBatch::new(now);
        let system = [TopicName::retry_of(&m.name), TopicName::dead_letter_of(&m.name)];
        let rows = system.map(|name| {
            let row = self.put_topic(&name, QueueCount::ONE, Some(Flush::Buffered), TopicRules::default(), &mut batch);
            (name, row)
        });
        let row = self.group_row(&m).and_then(|(row, changed)| {
            if changed {
                batch.put(&group::TABLE, group::key(&m.name), row.encode());
                self.audit_pause(&m, &mut batch)?;
            }
            Ok((row, changed))
        });
        let storage = self.shared.storage.clone();
        let stored = async move {
            let row = row?;
            if full {
                let text = format!("the broker has {MAX_GROUPS} groups, its limit: use an existing one");
                return Err(Error::new(ErrorKind::Full, text));
            }
            if !batch.is_empty() {
                storage.write_and_wait(batch, Flush::Durable).await?;
            }
            Ok(row)
        };
        let started = move |stored: Result<(GroupRow, bool)>, actor: &mut Self, _: &mut Context<Self>| {
            let (row, changed) = stored?;
            for (name, topic) in rows {
                actor.ensure_running(name, &topic)?;
            }
            let Some(handle) = existing else { return Ok(actor.start_group(m.name, &row)) };
            if changed {
                handle.post(GroupRequest::Configure { strategy: row.strategy, retry: row.retry, paused: row.paused });
            }
            Ok(handle)
        };
        AtomicResponse::new(Box::pin(stored.into_actor(self).map(started)))
    }
}

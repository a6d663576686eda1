//! The transaction checker: stores half messages, carries out decisions, asks back where there is none.
//!
//! A half message is a row of a table and nothing else, so no consumer can see it. A decision is one batch: append to
//! the real queue, delete the half, remember the outcome. Both survive a restart, after which the machine is built
//! anew from the rows. Supervised like all actors.

mod handle;
mod limited;
mod messages;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{QueueId, QueueKey, Record, Timestamp, TopicName, WriteBatch};

pub(crate) use handle::TransactionHandle;
use limited::Committed;
pub(crate) use messages::{BeginRequest, Checker, Finish, TransactionCommand};

use super::alarm::{Alarm, Alarmed, set_alarm};
use super::expiry::Endings;
use super::mailbox::{Drain, Inbox, go_on};
use super::room;
use super::supervisor::fail_start;
use crate::actors::group::Answer;
use crate::domain::expiry::{end_of_life, stamp};
use crate::domain::transaction::{
    Decision, EndRefused, Ending, TransactionEffect, TransactionId, TransactionSettings, Transactions,
};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_HALF_MESSAGES, YIELD_AFTER};
use crate::message::{MessageId, Receipt};
use crate::settings::{BrokerSettings, Flush};
use crate::shared::Shared;
use crate::storage::{WriteResult, scan_rows};
use crate::tables::half_message::{self, HalfMessageRow};
use crate::tables::transaction_outcome::{self, TransactionOutcomeRow};

pub(crate) const KIND: &str = "transaction";
/// Checks and forgettings in one go.
const MAX_TICK_EFFECTS: usize = 256;

pub(crate) struct TransactionActor {
    shared: Arc<Shared>,
    /// Its own handle, through which writes and checks report back; set when it starts.
    me: Option<TransactionHandle>,
    inbox: Arc<Inbox<TransactionCommand>>,
    machine: Transactions,
    /// Who waits for the decision of a transaction to be stored.
    waiting: HashMap<TransactionId, Vec<Answer<Option<Receipt>>>>,
    /// Commits that need room in a queue of limited length and have not been begun. Bounded by the open transactions.
    limited: Vec<(TransactionId, HalfMessageRow)>,
    checkers: Vec<Weak<dyn Checker>>,
    next_checker: usize,
    alarm: Alarm,
}

impl Actor for TransactionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.me = Some(TransactionHandle::new(Arc::clone(&self.inbox), ctx.address(), self.shared.state.clone()));
        self.load(ctx);
    }
}

impl Supervised for TransactionActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        self.alarm = Alarm::default();
        self.load(ctx);
        if self.inbox.wake_after_restart() {
            ctx.notify(Drain);
        }
    }
}

impl Handler<Drain> for TransactionActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        for _ in 0..YIELD_AFTER {
            let Some(command) = self.inbox.pop() else { break };
            // They are answered by this command or by none: a panic at it must not leave them waiting.
            let askers = self.askers_of(&command);
            self.shared.probe(KIND, "checker", command.name());
            self.handle_command(command, askers);
        }
        self.commit_limited(ctx);
        self.set_alarm(ctx);
        if !self.inbox.rest() {
            go_on(self, ctx);
        }
    }
}

impl Alarmed for TransactionActor {
    fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        self.shared.probe(KIND, "checker", "Alarm");
        let mut effects = Vec::new();
        self.machine.tick(self.shared.clock.now(), MAX_TICK_EFFECTS, &mut effects);
        self.perform(effects);
        self.commit_limited(ctx);
        self.set_alarm(ctx);
    }
}

impl TransactionActor {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Arc<Inbox<TransactionCommand>>) -> Self {
        let machine = Transactions::new(settings(&shared.settings));
        let (waiting, limited, checkers) = (HashMap::new(), Vec::new(), Vec::new());
        Self { shared, me: None, inbox, machine, waiting, limited, checkers, next_checker: 0, alarm: Alarm::default() }
    }

    /// Builds the machine anew from the rows, once every write handed over before has landed.
    fn load(&mut self, ctx: &mut Context<Self>) {
        let storage = self.shared.storage.clone();
        ctx.wait(async move { storage.landed().await }.into_actor(self).map(|(), actor, ctx| {
            if let Err(error) = actor.restore() {
                fail_start(&error);
            }
            actor.set_alarm(ctx);
        }));
    }

    fn restore(&mut self) -> Result<()> {
        let mut machine = Transactions::new(settings(&self.shared.settings));
        let engine = self.shared.storage.engine();
        scan_rows::<Error>(&**engine, &half_message::TABLE, &[], None, usize::MAX, |key, row| {
            let (transaction, row) = (half_message::decode_key(key)?, HalfMessageRow::decode(row)?);
            machine.restore_half(transaction, row.group, row.checks, row.next_check_at);
            Ok(())
        })?;
        scan_rows::<Error>(&**engine, &transaction_outcome::TABLE, &[], None, usize::MAX, |key, row| {
            let (transaction, row) = (transaction_outcome::decode_key(key)?, TransactionOutcomeRow::decode(row)?);
            machine.restore_outcome(transaction, row.decision, row.at);
            Ok(())
        })?;
        // A decision that was never handed to storage is nobody's any more; the others report when they are stored.
        self.waiting.retain(|transaction, _| !machine.is_open(*transaction));
        self.limited.clear();
        self.machine = machine;
        Ok(())
    }

    /// Who waits for the outcome that a command brings.
    fn askers_of(&mut self, command: &TransactionCommand) -> Vec<Answer<Option<Receipt>>> {
        match command {
            TransactionCommand::Finished { transaction, .. } => self.waiting.remove(transaction).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn handle_command(&mut self, command: TransactionCommand, askers: Vec<Answer<Option<Receipt>>>) {
        match command {
            TransactionCommand::Begin(request) => self.begin(*request),
            TransactionCommand::NotBegun(transaction) => self.machine.abandon(transaction),
            TransactionCommand::End { transaction, decision, reply } => self.end(transaction, decision, reply),
            TransactionCommand::Finished { transaction, at, receipt } => {
                self.finished(transaction, at, receipt, askers);
            }
            TransactionCommand::Register { checker, reply } => {
                self.checkers.push(checker);
                let _ = reply.send(Ok(()));
            }
            TransactionCommand::Unregister(checker) => {
                self.checkers.retain(|known| !Weak::ptr_eq(known, &checker) && known.strong_count() > 0);
            }
        }
    }

    fn begin(&mut self, request: BeginRequest) {
        let now = self.shared.clock.now();
        let transaction = TransactionId(self.shared.take_number());
        let next_check_at = match self.machine.begin(transaction, request.group.clone(), now) {
            Ok(at) => at,
            Err(full) => {
                let text = format!("{} transactions are undecided: end some of them, then retry", full.limit);
                let _ = request.reply.send(Err(Error::new(ErrorKind::Full, text)));
                return;
            }
        };
        let row = HalfMessageRow {
            group: request.group,
            topic: request.queue.topic,
            queue: request.queue.queue,
            begun_at: now,
            checks: 0,
            next_check_at,
            ttl: request.ttl,
            record: request.record,
        };
        let mut batch = WriteBatch::new(now);
        batch.put(&half_message::TABLE, half_message::key(transaction), row.encode());
        let (me, reply, permit) = (self.me.clone(), request.reply, request.permit);
        self.shared.storage.write(batch, request.flush, move |result| {
            let begun = result.map(|_| transaction).map_err(|error| {
                report(me.as_ref(), TransactionCommand::NotBegun(transaction));
                error.get()
            });
            let _ = reply.send(begun);
            drop(permit);
        });
    }

    fn end(&mut self, transaction: TransactionId, decision: Decision, reply: Option<Answer<Option<Receipt>>>) {
        let mut effects = Vec::new();
        let ended = self.machine.end(transaction, decision, &mut effects);
        match (ended, reply) {
            (Ok(Ending::Already), Some(reply)) => drop(reply.send(Ok(None))),
            (Ok(Ending::Started | Ending::UnderWay), Some(reply)) => {
                self.waiting.entry(transaction).or_default().push(reply);
            }
            (Err(refused), Some(reply)) => drop(reply.send(Err(refusal(transaction, refused)))),
            (_, None) => {}
        }
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<TransactionEffect>) {
        for effect in effects {
            let done = match effect {
                TransactionEffect::Finish { transaction, decision } => self.finish(transaction, decision, None),
                TransactionEffect::GiveUp { transaction } => {
                    tracing::warn!(transaction = transaction.0, "nobody decided a transaction: rolled back");
                    self.finish(transaction, Decision::Rollback, Some(given_up_topic()))
                }
                TransactionEffect::Check { transaction, attempt, next_check_at, .. } => {
                    self.check(transaction, attempt, next_check_at)
                }
                TransactionEffect::Forget { transaction } => {
                    let mut batch = WriteBatch::new(self.shared.clock.now());
                    batch.delete(&transaction_outcome::TABLE, transaction_outcome::key(transaction));
                    // A row that stays for now is forgotten again after the next restart.
                    self.shared.storage.write(batch, Flush::Buffered, |_| {});
                    Ok(())
                }
            };
            if let Err(error) = done {
                fail_start(&error);
            }
        }
    }

    /// Stores a decision: the message into its queue (or, given up, into the topic for inspection), the half away,
    /// the outcome remembered.
    fn finish(&mut self, transaction: TransactionId, decision: Decision, inspect: Option<TopicName>) -> Result<()> {
        let now = self.shared.clock.now();
        let Some(row) = self.half(transaction)? else {
            // Its outcome was stored by an earlier run: the restored machine knows that.
            return Ok(());
        };
        let storage = self.shared.storage.clone();
        let passage = storage.passage();
        let (mut batch, mut endings) = (WriteBatch::new(now), Endings::default());
        let (queue, flush) = target(&self.shared, &row);
        let target = match (decision, inspect) {
            (_, Some(topic)) => Some(QueueKey::new(topic, QueueId::FIRST)),
            (Decision::Commit, None) if room::limited(&self.shared, &queue).is_some() => {
                self.limited.push((transaction, row));
                return Ok(());
            }
            (Decision::Commit, None) => Some(queue),
            (Decision::Rollback, None) => None,
        };
        if let Some(queue) = &target {
            endings.append(&self.shared, &mut batch, queue, appended_record(&self.shared, &row, now));
        }
        put_outcome(&mut batch, transaction, decision);
        let (me, shared, store_id) = (self.me.clone(), Arc::clone(&self.shared), self.shared.store_id);
        passage.write(batch, flush, move |result| {
            if result.is_ok() {
                endings.stored(&shared);
            }
            let receipt = receipt(&result, target, store_id);
            report(me.as_ref(), TransactionCommand::Finished { transaction, at: now, receipt });
        });
        Ok(())
    }

    /// Carries out commits that need room, one after the other; nothing else is done meanwhile.
    fn commit_limited(&mut self, ctx: &mut Context<Self>) {
        if self.limited.is_empty() {
            return;
        }
        let (shared, commits) = (Arc::clone(&self.shared), std::mem::take(&mut self.limited));
        let committed = async move {
            let mut done = Vec::with_capacity(commits.len());
            for (transaction, row) in commits {
                let committed = limited::commit(Arc::clone(&shared), transaction, row).await;
                done.push((transaction, shared.clock.now(), committed));
            }
            done
        };
        ctx.wait(committed.into_actor(self).map(|done, actor, ctx| {
            for (transaction, at, committed) in done {
                actor.committed(transaction, at, committed);
            }
            actor.commit_limited(ctx);
            actor.set_alarm(ctx);
        }));
    }

    fn committed(&mut self, transaction: TransactionId, at: Timestamp, committed: Committed) {
        let askers = self.waiting.remove(&transaction).unwrap_or_default();
        match committed {
            Committed::Told(receipt) => self.finished(transaction, at, receipt, askers),
            Committed::Kept(refused) => {
                let mut effects = Vec::new();
                self.machine.decided(transaction, at, &mut effects);
                for reply in askers {
                    let _ = reply.send(Err(refused.get()));
                }
                self.perform(effects);
            }
        }
    }

    fn finished(
        &mut self,
        transaction: TransactionId,
        at: Timestamp,
        receipt: Finish,
        askers: Vec<Answer<Option<Receipt>>>,
    ) {
        let mut effects = Vec::new();
        match &receipt {
            Ok(_) => self.machine.decided(transaction, at, &mut effects),
            Err(error) if error.get().is_certainly_not_applied() => self.machine.not_decided(transaction),
            // The broker has failed: the machine is built anew when it is reopened.
            Err(_) => {}
        }
        for reply in askers {
            let _ = reply.send(receipt.clone().map_err(|error| error.get()));
        }
        self.perform(effects);
    }

    /// Stores how often was asked and when next, then asks a live member of the producer group.
    fn check(&mut self, transaction: TransactionId, attempt: u32, next_check_at: Timestamp) -> Result<()> {
        let Some(mut row) = self.half(transaction)? else { return Ok(()) };
        row.checks = attempt;
        row.next_check_at = next_check_at;
        let mut batch = WriteBatch::new(self.shared.clock.now());
        batch.put(&half_message::TABLE, half_message::key(transaction), row.encode());
        self.shared.storage.write(batch, Flush::Buffered, |_| {});
        let members: Vec<_> =
            self.checkers.iter().filter_map(Weak::upgrade).filter(|checker| *checker.group() == row.group).collect();
        if members.is_empty() {
            tracing::warn!(group = %row.group, transaction = transaction.0, attempt, "no live producer can be asked");
            return Ok(());
        }
        let checker = Arc::clone(&members[self.next_checker % members.len()]);
        self.next_checker = self.next_checker.wrapping_add(1);
        if let Some(me) = self.me.clone() {
            self.shared.arbiters.delivery().spawn_fn(move || checker.check(transaction, row, me));
        }
        Ok(())
    }

    fn half(&self, transaction: TransactionId) -> Result<Option<HalfMessageRow>> {
        let row = self.shared.storage.engine().get(&half_message::TABLE, &half_message::key(transaction))?;
        Ok(row.map(|row| HalfMessageRow::decode(&row)).transpose()?)
    }

    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        let (next, clock) = (self.machine.next_wakeup(), self.shared.clock.clone());
        set_alarm(self, next, &clock, ctx);
    }
}

/// The queue of a committed message: by its sharding key, or the one that was chosen when it was begun while that is
/// still written to. One whose topic was deleted goes where an operator finds it.
fn target(shared: &Shared, row: &HalfMessageRow) -> (QueueKey, Flush) {
    match shared.topics.get(&row.topic) {
        Some(topic) => {
            let (routes, key) = (topic.routes(), row.record.attributes.sharding_key());
            let begun = routes.queue(row.queue).filter(|_| key.is_none());
            (begun.unwrap_or_else(|| routes.choose(key)).key().clone(), topic.flush())
        }
        None => (QueueKey::new(super::delay::undeliverable(), QueueId::FIRST), Flush::Durable),
    }
}

/// What is appended of a half message that becomes visible now: its time to live begins.
fn appended_record(shared: &Shared, row: &HalfMessageRow, now: Timestamp) -> Record {
    let rules = shared.topics.get(&row.topic).map(|topic| *topic.rules()).unwrap_or_default();
    let mut record = row.record.clone();
    if let Some(end) = end_of_life(now, row.ttl, rules.ttl) {
        record.attributes = stamp(&record.attributes, end);
    }
    record
}

/// Adds to the batch of a decision that the half message is gone and how it was decided.
fn put_outcome(batch: &mut WriteBatch, transaction: TransactionId, decision: Decision) {
    batch.delete(&half_message::TABLE, half_message::key(transaction));
    let outcome = TransactionOutcomeRow { decision, at: batch.stored_at() };
    batch.put(&transaction_outcome::TABLE, transaction_outcome::key(transaction), outcome.encode());
}

fn report(me: Option<&TransactionHandle>, command: TransactionCommand) {
    if let Some(me) = me {
        me.post(command);
    }
}

fn settings(broker: &BrokerSettings) -> TransactionSettings {
    TransactionSettings {
        first_check_after: std::time::Duration::from_millis(broker.transaction_check_after_ms),
        check_interval: std::time::Duration::from_millis(broker.transaction_check_interval_ms),
        max_checks: broker.transaction_max_checks,
        max_open: MAX_HALF_MESSAGES,
    }
}

fn receipt(result: &WriteResult, target: Option<QueueKey>, store_id: u64) -> Finish {
    let stored = result.as_ref().map_err(Clone::clone)?;
    Ok(target.map(|queue| Receipt {
        topic: queue.topic,
        queue: queue.queue,
        offset: Some(stored.appends[0].first),
        id: Some(MessageId::new(store_id, stored.positions[0])),
        scheduled: None,
        level: stored.level,
    }))
}

fn refusal(transaction: TransactionId, refused: EndRefused) -> Error {
    match refused {
        EndRefused::Conflict { first } => Error::new(
            ErrorKind::Conflict,
            format!("transaction {} was decided before as {first:?}: the first decision stands", transaction.0),
        ),
        EndRefused::Unknown => Error::new(
            ErrorKind::Invalid,
            format!("transaction {} is not known, or was decided more than a day ago", transaction.0),
        ),
    }
}

/// Where half messages go that nobody decided about (RocketMQ's `TRANS_CHECK_MAX_TIME_TOPIC`).
pub(crate) fn given_up_topic() -> TopicName {
    TopicName::from_stored("rmq_sys_TRANS_CHECK_MAX_TIME").expect("a legal name")
}

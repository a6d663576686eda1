//! Decides about a round and makes it one write.

use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueKey, Record, Timestamp, TopicName, WriteBatch};
use tokio::sync::oneshot;

use super::handle::Landing;
use super::rooms::Rooms;
use super::round::{Claims, Refused};
use super::{ApplicationActor, Outcome, Send, Stage, StoredRows, Submission};
use crate::actors::expiry::Endings;
use crate::actors::group::ClaimRefused;
use crate::admission::Permit;
use crate::broker::unknown_topic;
use crate::consumer::Pledged;
use crate::domain::application::Round;
use crate::domain::delay::TimerKey;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{AckLevel, MessageId, Receipt};
use crate::scheduled::ScheduledId;
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::{Passage, Stored, WriteResult};
use crate::tables::delay::{self, DelayOrigin, DelayRow};

impl ApplicationActor {
    /// Admits what still holds and writes it.
    pub(super) fn decide(&mut self) {
        let Stage::Preparing(preparing) = std::mem::replace(&mut self.stage, Stage::Writing) else { return };
        let Some(me) = self.me.clone() else { return };
        let landing = Landing { to: me, round: self.round };
        // From here to the write no topic's queues change.
        let storage = self.shared.storage.clone();
        let passage = storage.passage();
        let (submissions, mut claims, mut rooms) = preparing.into_parts();
        let (mut round, mut write) = (Round::default(), RoundWrite::new(self.shared.clock.now()));
        for (number, submission) in submissions.into_iter().enumerate() {
            match self.admit(number, &submission, (&claims, &mut rooms), &mut round) {
                // It hears that it saw what was, and there is nothing to write.
                Ok(true) if submission.only_look => submission.answer(Ok(Outcome::Done(Vec::new(), AckLevel::Memory))),
                Ok(true) => {
                    claims.carry_out(number);
                    write.add(&self.shared, submission);
                }
                Ok(false) => submission.answer(Ok(Outcome::Again)),
                Err(refused) => submission.refuse(refused),
            }
        }
        // With nobody to answer, the claims and the landing are dropped: the groups go on, and the next round begins.
        if !write.waiting.is_empty() {
            write.hand_over(&self.shared, (claims, rooms), landing, &passage);
        }
    }

    /// Whether a transaction may commit now; false when it has to run again.
    fn admit(
        &self,
        number: usize,
        submission: &Submission,
        (claims, rooms): (&Claims, &mut Rooms),
        round: &mut Round,
    ) -> std::result::Result<bool, Refused> {
        claims.check(number)?;
        let rows = StoredRows(&**self.shared.storage.engine());
        let checked = submission.check_sends(&self.shared).and_then(|()| {
            let Some(shares) = rooms.check(&self.shared, submission)? else { return Ok(false) };
            let admitted = round.admit(&rows, &submission.view, submission.only_look)?;
            let later = submission.sends.iter().filter(|send| matches!(send, Send::Later(..))).count();
            let most = self.shared.settings.max_delayed_messages;
            if admitted && !self.shared.delayed.add_within(later, most) {
                let text = format!("{most} delayed messages wait: send these when some are due");
                return Err(Error::new(ErrorKind::Full, text));
            }
            if admitted {
                rooms.take(&shares);
            }
            Ok(admitted)
        });
        checked.map_err(|error| Refused { number: usize::MAX, why: ClaimRefused::Refused(error) })
    }
}

impl Submission {
    /// A topic may have been deleted since the transaction ran.
    fn check_sends(&self, shared: &Shared) -> Result<()> {
        let topics = self.sends.iter().map(|send| match send {
            Send::Now(queue, _) => &queue.topic,
            Send::Later(topic, ..) => topic,
        });
        for topic in topics {
            if shared.topics.get(topic).is_none() {
                return Err(unknown_topic(topic));
            }
        }
        Ok(())
    }

    /// Answers a transaction that will not be written. What it pledged is in its holders' hands again.
    fn answer(self, outcome: Result<Outcome>) {
        let Self { pledges, reply, permit, .. } = self;
        drop(pledges);
        // A caller that has gone away does not need the answer.
        let _ = reply.send(outcome);
        drop(permit);
    }

    fn refuse(mut self, refused: Refused) {
        let error = match refused.why {
            ClaimRefused::Refused(error) => error,
            ClaimRefused::DoneBefore(error, done) => {
                self.pledges.swap_remove(refused.number).done_before(done);
                error
            }
        };
        self.answer(Err(error));
    }
}

/// A round's batch, and who waits for it.
struct RoundWrite {
    batch: WriteBatch,
    flush: Flush,
    /// Records in the batch.
    records: usize,
    timers: Vec<TimerKey>,
    /// Of messages whose life ends.
    endings: Endings,
    pledges: Vec<Pledged>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    sent: Vec<Sent>,
    reply: oneshot::Sender<Result<Outcome>>,
    _permit: Permit,
}

/// Where a message is in the batch.
enum Sent {
    Now { queue: QueueKey, append: usize, record: usize },
    Later(TopicName, TimerKey),
}

impl RoundWrite {
    fn new(now: Timestamp) -> Self {
        let batch = WriteBatch::new(now);
        let (timers, pledges, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Self { batch, flush: Flush::Buffered, records: 0, timers, endings: Endings::default(), pledges, waiting }
    }

    fn add(&mut self, shared: &Shared, submission: Submission) {
        let Submission { view, sends, pledges, flush, reply, permit, .. } = submission;
        if flush == Flush::Durable {
            self.flush = Flush::Durable;
        }
        for (table, key, value) in view.writes().iter() {
            match value {
                Some(value) => self.batch.put(table, key.clone(), value.clone()),
                None => self.batch.delete(table, key.clone()),
            };
        }
        let sent = sends.into_iter().map(|send| self.send(shared, send)).collect();
        self.pledges.extend(pledges);
        self.waiting.push(Waiting { sent, reply, _permit: permit });
    }

    fn send(&mut self, shared: &Shared, send: Send) -> Sent {
        match send {
            Send::Now(queue, record) => {
                let queue = queue_now(shared, queue, &record);
                self.endings.append_all(shared, &mut self.batch, &queue, vec![record]);
                self.records += 1;
                Sent::Now { queue, append: self.batch.append_operations() - 1, record: self.records - 1 }
            }
            Send::Later(topic, due, record) => {
                let timer = TimerKey::new(due, shared.take_number());
                let row = DelayRow { topic: topic.clone(), queue: None, origin: DelayOrigin::Send, record };
                self.batch.put(&delay::TABLE, delay::key(timer), row.encode());
                self.timers.push(timer);
                Sent::Later(topic, timer)
            }
        }
    }

    /// Writes, with the groups' rows. When it is applied the groups hear of it and the deliveries are settled, and
    /// nothing of that happens when it is refused; when it is as safe as it shall be, whoever waits is answered.
    fn hand_over(
        mut self,
        shared: &Arc<Shared>,
        (claims, rooms): (Claims, Rooms),
        landing: Landing,
        passage: &Passage<'_>,
    ) {
        rooms.begin_in(&mut self.batch);
        let releases = claims.finish(&mut self.batch);
        let Self { batch, flush, timers, endings, pledges, waiting, .. } = self;
        let applied = move || {
            releases.into_iter().for_each(|release| release.applied());
            pledges.into_iter().for_each(Pledged::committed);
            drop((rooms, landing));
        };
        let shared = Arc::clone(shared);
        let done = move |result: WriteResult| {
            match &result {
                Ok(_) => {
                    endings.stored(&shared);
                    if !timers.is_empty() {
                        shared.delay_handle().stored(timers);
                    }
                }
                Err(_) => shared.delayed.subtract(timers.len()),
            }
            for one in waiting {
                let outcome = match &result {
                    Ok(stored) => Ok(one.done(shared.store_id, stored)),
                    Err(error) => Err(error.get()),
                };
                let _ = one.reply.send(outcome);
            }
        };
        passage.write_in_steps(batch, flush, applied, done);
    }
}

/// Where a message goes whose transaction chose a queue when it ran: the topic's queues may have changed since.
fn queue_now(shared: &Shared, chosen: QueueKey, record: &Record) -> QueueKey {
    let Some(topic) = shared.topics.get(&chosen.topic) else { return chosen };
    let (routes, key) = (topic.routes(), record.attributes.sharding_key());
    if key.is_none() && routes.written().contains(chosen.queue) {
        return chosen;
    }
    routes.choose(key).key().clone()
}

impl Waiting {
    fn done(&self, store_id: u64, stored: &Stored) -> Outcome {
        let level = stored.level;
        let receipt = |sent: &Sent| match sent {
            Sent::Now { queue, append, record } => Receipt {
                topic: queue.topic.clone(),
                queue: queue.queue,
                offset: Some(stored.appends[*append].first),
                id: Some(MessageId::new(store_id, stored.positions[*record])),
                scheduled: None,
                level,
            },
            Sent::Later(topic, timer) => Receipt {
                topic: topic.clone(),
                queue: QueueId::FIRST,
                offset: None,
                id: None,
                scheduled: Some(ScheduledId::new(store_id, *timer)),
                level,
            },
        };
        Outcome::Done(self.sent.iter().map(receipt).collect(), level)
    }
}

//! What becomes of dead letters: sent again or thrown away, in one write with the note that it was done.
//!
//! One request after the other, so that no letter is dealt with twice: each write sees what the one before has noted.
//! Letters are read by whoever browses them; nothing of them is kept here.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use actix::{AsyncContext, Context};
use cuemq_storage_api::{Engine, QueueId, QueueKey, QueueOffset, Record, Timestamp, TopicName, WriteBatch};

use super::messages::Answer;
use super::{GroupActor, GroupRequest};
use crate::actors::expiry::Endings;
use crate::actors::room::Room;
use crate::actors::topic::TopicHandle;
use crate::audit::AuditPlace;
use crate::domain::audit::AuditAction;
use crate::domain::expiry::{end_of_life, stamp};
use crate::domain::length::Size;
use crate::domain::letters::first_open;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_LETTER_ROWS_REMOVED, MAX_WAITING_LETTER_REQUESTS};
use crate::message::{MessageId, Receipt};
use crate::settings::Flush;
use crate::storage::Passage;
use crate::storage::{Stored, scan_rows};
use crate::tables::audit::AuditRow;
use crate::tables::dead_letter::{self, DeadLetterRow, Fate};

/// What shall become of some dead letters.
#[derive(Debug)]
pub(crate) struct LetterRequest {
    pub(crate) fate: Fate,
    /// Each once; no more than one write takes.
    pub(crate) letters: Vec<LetterToHandle>,
    /// Whether a letter that nothing can be done with is an error. Otherwise it is passed over.
    pub(crate) strict: bool,
    /// The operation of which this is a part.
    pub(crate) operation: LetterOperation,
    /// Room for what is sent to queues of limited length.
    pub(crate) rooms: Vec<Room>,
    pub(crate) reply: Answer<Handled>,
}

/// What an operator does with dead letters, in one write or more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LetterOperation {
    pub(crate) place: AuditPlace,
    /// How many letters the writes before have dealt with.
    pub(crate) letters: usize,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct LetterToHandle {
    /// Its place among the dead letters.
    pub(crate) offset: QueueOffset,
    /// What is sent in its stead, if anything.
    pub(crate) send: Option<LetterToSend>,
}

/// The message that a letter becomes.
#[derive(Debug)]
pub(crate) struct LetterToSend {
    pub(crate) topic: TopicName,
    /// The queue; `None` lets the sharding key choose.
    pub(crate) queue: Option<QueueId>,
    pub(crate) record: Record,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Handled {
    /// How many letters were dealt with.
    pub(crate) letters: usize,
    /// Where the messages are that were sent, in the order of their letters.
    pub(crate) receipts: Vec<Receipt>,
}

/// The requests of one group.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// Whether one is on its way to storage.
    busy: bool,
    waiting: VecDeque<LetterRequest>,
}

/// One write and what it tells its asker.
struct Work {
    batch: WriteBatch,
    flush: Flush,
    letters: usize,
    /// Where each message goes: one append each, in this order.
    queues: Vec<QueueKey>,
    endings: Endings,
}

impl GroupActor {
    pub(super) fn handle_letters(&mut self, request: LetterRequest, ctx: &Context<Self>) {
        if self.letters.waiting.len() >= MAX_WAITING_LETTER_REQUESTS {
            let text = format!(
                "{MAX_WAITING_LETTER_REQUESTS} requests about the dead letters of group {} wait: ask again when some are \
                 answered",
                self.group
            );
            let _ = request.reply.send(Err(Error::new(ErrorKind::Full, text)));
            return;
        }
        self.letters.waiting.push_back(request);
        self.next_letters(ctx);
    }

    /// The write of a request has an outcome, or nobody will tell of it: the next one's turn.
    pub(super) fn letters_handled(&mut self, ctx: &Context<Self>) {
        self.letters.busy = false;
        self.next_letters(ctx);
    }

    fn next_letters(&mut self, ctx: &Context<Self>) {
        while !self.letters.busy
            && let Some(mut request) = self.letters.waiting.pop_front()
        {
            // Queues are chosen and written to while they stay what they are.
            let storage = self.shared.storage.clone();
            let passage = storage.passage();
            match self.letter_work(&mut request) {
                Ok(work) if work.letters == 0 => {
                    let _ = request.reply.send(Ok(Handled::default()));
                }
                Ok(work) => self.write_letters(work, &passage, request, ctx),
                Err(error) => {
                    let _ = request.reply.send(Err(error));
                }
            }
        }
    }

    fn write_letters(&mut self, work: Work, passage: &Passage<'_>, request: LetterRequest, ctx: &Context<Self>) {
        self.letters.busy = true;
        let Work { batch, flush, letters, queues, endings } = work;
        let LetterRequest { rooms, reply, .. } = request;
        let shared = Arc::clone(&self.shared);
        let (inbox, me, store_id) = (Arc::clone(&self.inbox), ctx.address(), self.shared.store_id);
        passage.write(batch, flush, move |result| {
            if result.is_ok() {
                endings.stored(&shared);
            }
            // Held until here.
            drop(rooms);
            // A group that is gone begins anew when it is back.
            let _ = inbox.push(GroupRequest::LettersHandled, &me);
            let handled = result.map(|stored| Handled { letters, receipts: receipts(queues, &stored, store_id) });
            let _ = reply.send(handled.map_err(|error| error.get()));
        });
    }

    fn letter_work(&self, request: &mut LetterRequest) -> Result<Work> {
        let now = self.shared.clock.now();
        let queue = QueueKey::new(TopicName::dead_letter_of(&self.group), QueueId::FIRST);
        let engine = &**self.shared.storage.engine();
        let bounds = engine.bounds(&queue)?;
        let mut work = Work {
            batch: WriteBatch::new(now),
            flush: Flush::Buffered,
            letters: 0,
            queues: Vec::new(),
            endings: Endings::default(),
        };
        let mut handled = BTreeSet::new();
        for letter in &request.letters {
            let key = dead_letter::key(&self.group, letter.offset);
            let fate = engine.get(&dead_letter::TABLE, &key)?;
            let checked = match fate {
                Some(row) => Err(self.done_already(letter.offset, Some(DeadLetterRow::decode(&row)?))),
                None if letter.offset < bounds.start => Err(self.done_already(letter.offset, None)),
                None if letter.offset >= bounds.end => Err(self.no_such_letter(letter.offset, &bounds)),
                // One that could not be seen yet when it was asked for: nothing stands in for it.
                None if letter.send.is_none() && request.fate != Fate::Purged => {
                    Err(self.no_such_letter(letter.offset, &bounds))
                }
                None => self.send_letter(letter.send.as_ref(), &mut request.rooms, &mut work),
            };
            match checked {
                Ok(()) => {
                    handled.insert(letter.offset);
                }
                Err(error) if request.strict => return Err(error),
                Err(error) => tracing::debug!(group = %self.group, %error, "a dead letter is passed over"),
            }
        }
        request
            .rooms
            .iter()
            .filter(|room| work.queues.contains(room.key()))
            .for_each(|room| room.begin_in(&mut work.batch));
        work.letters = handled.len();
        if !handled.is_empty() {
            let row = DeadLetterRow { fate: request.fate, at: now };
            self.note_handled(engine, &queue, bounds.start, &handled, row, &mut work.batch)?;
            self.audit_letters(request, handled.len(), &mut work.batch)?;
        }
        Ok(work)
    }

    /// Writes down what an operator does with letters, in the write that does it.
    fn audit_letters(&self, request: &LetterRequest, letters: usize, batch: &mut WriteBatch) -> Result<()> {
        let letters = request.operation.letters + letters;
        let (action, note) = match request.fate {
            Fate::ToOrigin => (AuditAction::Redrive, format!("{letters} dead letters to their topics")),
            Fate::ToGroup => (AuditAction::Redrive, format!("{letters} dead letters to the group")),
            Fate::Purged => (AuditAction::Purge, format!("{letters} dead letters")),
        };
        let (group, queues) = (Some(self.group.clone()), Vec::new());
        request.operation.place.put(&self.shared, batch, &AuditRow { action, group, topic: None, queues, note })
    }

    /// Adds the message that a letter becomes, if it becomes one.
    fn send_letter(&self, send: Option<&LetterToSend>, rooms: &mut [Room], work: &mut Work) -> Result<()> {
        let Some(LetterToSend { topic, queue, record }) = send else { return Ok(()) };
        let handle = self.shared.topics.get(topic).ok_or_else(|| {
            let text = format!("topic {topic} of the dead letter does not exist: create it, or re-drive to the group");
            Error::new(ErrorKind::UnknownTopic, text)
        })?;
        let routes = handle.routes();
        let chosen = queue.and_then(|id| routes.queue(id));
        let chosen = chosen.unwrap_or_else(|| routes.choose(record.attributes.sharding_key()));
        if handle.flush() == Flush::Durable {
            work.flush = Flush::Durable;
        }
        let record = sent_again(&handle, record, work.batch.stored_at());
        if chosen.limited().is_some() {
            let size = Size::of([&record]);
            let Some(room) = rooms.iter_mut().find(|room| room.key() == chosen.key()) else {
                let text = format!("nothing was sent: the queues of topic {topic} changed meanwhile: send it again");
                return Err(Error::new(ErrorKind::NotStored, text));
            };
            if !room.take(size) {
                // It is a dead letter and stays one.
                return Err(room.refusal(false));
            }
        }
        work.endings.append_all(&self.shared, &mut work.batch, chosen.key(), vec![record]);
        work.queues.push(chosen.key().clone());
        Ok(())
    }

    /// Adds the rows of letters that are dealt with. When no open letter is before some of them, these need no row any
    /// more: the queue begins behind them.
    fn note_handled(
        &self,
        engine: &dyn Engine,
        queue: &QueueKey,
        start: QueueOffset,
        handled: &BTreeSet<QueueOffset>,
        row: DeadLetterRow,
        batch: &mut WriteBatch,
    ) -> Result<()> {
        let (keys, mut known) = (dead_letter::keys_of_group(&self.group), BTreeSet::new());
        let (from, to, limit) = (&keys.start, Some(&*keys.end), MAX_LETTER_ROWS_REMOVED);
        scan_rows::<Error>(engine, &dead_letter::TABLE, from, to, limit, |key, _| {
            known.insert(dead_letter::decode_key(key)?.1);
            Ok(())
        })?;
        let all: BTreeSet<QueueOffset> = handled.iter().chain(&known).copied().collect();
        let open = first_open(start, &all);
        for offset in handled.range(open..) {
            batch.put(&dead_letter::TABLE, dead_letter::key(&self.group, *offset), row.encode());
        }
        for offset in known.range(..open) {
            batch.delete(&dead_letter::TABLE, dead_letter::key(&self.group, *offset));
        }
        if open > start {
            batch.trim(queue, open);
        }
        Ok(())
    }

    fn done_already(&self, offset: QueueOffset, row: Option<DeadLetterRow>) -> Error {
        let what = match row {
            Some(DeadLetterRow { fate: Fate::ToOrigin, at }) => format!("was sent to its topic again at {at}"),
            Some(DeadLetterRow { fate: Fate::ToGroup, at }) => format!("was given to its group again at {at}"),
            Some(DeadLetterRow { fate: Fate::Purged, at }) => format!("was purged at {at}"),
            None => "was dealt with before or has expired".to_owned(),
        };
        let text = format!("dead letter {offset} of group {} {what}: browse shows those that are open", self.group);
        Error::new(ErrorKind::Conflict, text)
    }

    fn no_such_letter(&self, offset: QueueOffset, bounds: &std::ops::Range<QueueOffset>) -> Error {
        let (start, end, group) = (bounds.start, bounds.end, &self.group);
        let text =
            format!("group {group} has no dead letter {offset}: there are those from {start} up to, not with, {end}");
        Error::new(ErrorKind::OutOfRange, text)
    }
}

/// What is stored of a letter that is sent to a topic: it becomes visible anew, and the topic's time to live begins.
pub(crate) fn sent_again(topic: &TopicHandle, record: &Record, now: Timestamp) -> Record {
    let mut record = record.clone();
    if let Some(end) = end_of_life(now, None, topic.rules().ttl) {
        record.attributes = stamp(&record.attributes, end);
    }
    record
}

fn receipts(queues: Vec<QueueKey>, stored: &Stored, store_id: u64) -> Vec<Receipt> {
    // One append of one record each.
    let places = stored.appends.iter().zip(&stored.positions);
    let receipt = |(queue, (append, position)): (QueueKey, (&cuemq_storage_api::Appended, &_))| Receipt {
        topic: queue.topic,
        queue: queue.queue,
        offset: Some(append.first),
        id: Some(MessageId::new(store_id, *position)),
        scheduled: None,
        level: stored.level,
    };
    queues.into_iter().zip(places).map(receipt).collect()
}

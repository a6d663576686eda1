//! The moment at which a topic's number of queues changes.
//!
//! ```text
//!  park    nobody sends: what waits is handed to storage, the queues are exchanged, their actors wait
//!          senders go on, into the inboxes of the new queues
//!  store   where each old queue ended is known now, exactly: one batch makes that and the number durable
//!  unpark  the actors go on; or, if nothing was stored, the old queues come back and what was sent meanwhile is refused
//! ```
//! So the row of the change stands in storage behind everything that was sent before it, and ahead of everything that
//! was sent under it: a kill at any moment leaves a store of before or of afterwards.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use cuemq_storage_api::{Engine, QueueId, QueueKey, Record, TopicName};
use tokio::sync::OwnedMutexGuard;

use super::handle::{Layout, gone};
use super::{TopicHandle, write_across};
use crate::actors::queue::QueueHandle;
use crate::domain::fence::QueueChange;
use crate::domain::routing::{QueueCount, rerouted};
use crate::error::{Error, ErrorKind, Result, SharedError};
use crate::shared::Shared;

const NOT_CHANGED: &str = "the change of its topic's queues could not be stored";

/// A topic whose queues' actors wait for a change to be stored. Dropped before it was kept, it takes the change back.
pub(crate) struct Parked<'a> {
    shared: &'a Arc<Shared>,
    topic: &'a TopicHandle,
    before: Arc<Layout>,
    after: Arc<Layout>,
    kept: bool,
}

impl TopicHandle {
    /// Whether its number of queues is being changed.
    pub(crate) fn is_changing(&self) -> bool {
        self.changing.load(Ordering::Acquire)
    }

    /// Begins or ends a change, as the groups are told.
    pub(crate) fn set_changing(&self, changing: bool) {
        self.changing.store(changing, Ordering::Release);
    }

    /// Exchanges the queues: from now on the first `written` are written to, and nothing more is stored until the
    /// change is kept.
    ///
    /// # Errors
    /// When a new queue's end cannot be read; nothing has changed then.
    pub(crate) fn park<'a>(&'a self, shared: &'a Arc<Shared>, written: QueueCount) -> Result<Parked<'a>> {
        let before = self.layout();
        let mut queues = before.queues.clone();
        for id in written.ids().skip(queues.len()) {
            let key = QueueKey::new(self.name().clone(), id);
            queues.push(Arc::new(QueueHandle::new(shared, key, self.flush(), self.rules(), Arc::clone(&self.parked))?));
        }
        let after = Arc::new(Layout { written, queues, changes: Arc::clone(&before.changes) });
        shared.storage.close_way(|| {
            let mut layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
            self.parked.store(true, Ordering::Release);
            if self.rules().max_length.is_some() {
                reroute(shared, self, &before, &after);
            } else {
                while let Some(request) = self.inbox.pop() {
                    write_across(shared, request.split(), |batch, done| {
                        shared.storage.write(batch, self.flush(), done)
                    });
                }
                before.queues.iter().for_each(|queue| queue.write_all());
            }
            *layout = Arc::clone(&after);
        });
        Ok(Parked { shared, topic: self, before, after, kept: false })
    }

    /// Has nobody append to the topic's queues, if these are limited in length, as long as the answer lives: who appends to
    /// such a queue waits, and what waits is what a change finds.
    pub(crate) async fn still(&self) -> Still {
        if self.rules().max_length.is_none() {
            return Still(Vec::new());
        }
        let mut locks = vec![Arc::clone(&self.spanning).lock_owned().await];
        // In the order in which everybody locks.
        for queue in self.queues() {
            if let Some(limited) = queue.limited() {
                locks.push(limited.lock().await);
            }
        }
        Still(locks)
    }

    fn exchange(&self, layout: Arc<Layout>) {
        *self.layout.write().unwrap_or_else(PoisonError::into_inner) = layout;
    }
}

/// How many of a topic's queues have to be read: not the last ones that are written to no more and of which nothing is
/// stored any more, so that no group has anything to read there, nor one that is still to come.
///
/// # Errors
/// A failed read.
pub(crate) fn readable(
    engine: &dyn Engine,
    topic: &TopicName,
    written: QueueCount,
    all: QueueCount,
) -> Result<QueueCount> {
    let mut count = all.get();
    while count > written.get() {
        let bounds = engine.bounds(&QueueKey::new(topic.clone(), QueueId::new(count - 1)?))?;
        if bounds.start < bounds.end {
            break;
        }
        count -= 1;
    }
    Ok(QueueCount::new(count)?)
}

/// See [`TopicHandle::still`].
#[derive(Debug)]
pub(crate) struct Still(#[expect(dead_code, reason = "it is held")] Vec<OwnedMutexGuard<()>>);

/// What waits for limited queues cannot be written here, because the groups would have to make room first: it goes under
/// the new number, ahead of all that is sent under it. Its queue's fence lies before it then, so the order of keys is kept.
fn reroute(shared: &Arc<Shared>, topic: &TopicHandle, before: &Layout, after: &Layout) {
    let again = |queue: QueueId, record: &Record| {
        rerouted(record.attributes.sharding_key(), queue, before.written, after.written)
    };
    let waiting: Vec<_> = before.queues.iter().map(|queue| (queue.key().queue, queue.take_all())).collect();
    for (queue, bursts) in waiting {
        for burst in bursts {
            let mut targets = burst.all().iter().map(|record| again(queue, record));
            let first = targets.next().unwrap_or(queue);
            if targets.all(|target| target == first) {
                after.queues[first.get() as usize].take_over(shared, burst);
            } else {
                burst.refuse(gone(
                    "the queues of its topic changed, and the batch goes to several of them: send it again",
                ));
            }
        }
    }
    let spans: Vec<_> = std::iter::from_fn(|| topic.inbox.pop()).collect();
    for mut span in spans {
        for (queue, record) in &mut span.records {
            queue.queue = again(queue.queue, record);
        }
        topic.append_across(shared, span);
    }
}

impl Parked<'_> {
    /// Where every queue that can be read ended: exact once what was handed to storage before has landed.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn ends(&self) -> Result<QueueChange> {
        let engine = self.shared.storage.engine();
        let ends = self.after.queues.iter().map(|queue| Ok(engine.bounds(queue.key())?.end));
        Ok(QueueChange::new(ends.collect::<Result<_>>()?))
    }

    /// How many queues are read from now on: what is written to, and what has something to be read. Known once what was
    /// handed to storage before has landed.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn readable(&self) -> Result<QueueCount> {
        let all = QueueCount::new(u32::try_from(self.after.queues.len()).unwrap_or(u32::MAX))?;
        readable(&**self.shared.storage.engine(), self.topic.name(), self.after.written, all)
    }

    /// The change is stored: with it these changes are what groups may not have passed.
    pub(crate) fn keep(mut self, readable: QueueCount, changes: Vec<QueueChange>) {
        self.kept = true;
        let (written, mut queues) = (self.after.written, self.after.queues.clone());
        queues.truncate(usize::try_from(readable.get()).unwrap_or(usize::MAX));
        let changes: Vec<_> = changes.into_iter().map(|change| change.within(readable)).collect();
        self.topic.exchange(Arc::new(Layout { written, queues, changes: changes.into() }));
        self.topic.parked.store(false, Ordering::Release);
        self.shared.storage.open_way(None);
        self.go_on();
    }

    fn go_on(&self) {
        self.after.queues.iter().for_each(|queue| queue.go_on(self.shared));
        if self.topic.inbox.sum(|_| 1) > 0 {
            self.topic.wake(self.shared);
        }
    }

    /// The queue that is one of both times is the same handle, so refusing those of afterwards refuses all.
    fn take_back(&self) {
        let mut layout = self.topic.layout.write().unwrap_or_else(PoisonError::into_inner);
        *layout = Arc::clone(&self.before);
        self.after.queues.iter().for_each(|queue| queue.refuse_waiting(NOT_CHANGED));
        while let Some(request) = self.topic.inbox.pop() {
            request.refuse(gone(NOT_CHANGED));
        }
        self.topic.parked.store(false, Ordering::Release);
        drop(layout);
        let refused = Error::new(ErrorKind::NotStored, format!("nothing was stored: {NOT_CHANGED}"));
        self.shared.storage.open_way(Some(&SharedError::new(refused)));
        self.go_on();
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.take_back();
        }
    }
}

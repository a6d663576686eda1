//! Members of one group that subscribe to different tags: who of them wants a message.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use cuemq_storage_api::{QueueKey, StoredRecord, TagHashes, TopicName};

use super::{Credit, Recalled, Session};
use crate::domain::member::MemberId;
use crate::domain::order::Order;
use crate::domain::subscriptions::{Subscriptions, union_of_hashes};
use crate::storage::QueueTail;

/// Shared by the sessions of one group: what each of them wants, so that the holder of a queue reads it for all of
/// them. Bounded by the group's members.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    guests: RwLock<Arc<[Guest]>>,
    /// Whether any two members want different messages.
    mixed: AtomicBool,
}

/// One member as the others know it.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) member: MemberId,
    pub(super) order: Order,
    pub(super) subscriptions: Subscriptions,
    /// Whether it is a pool of consumers that pop.
    pub(super) is_pool: bool,
    session: Weak<Session>,
}

impl Guest {
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.session.upgrade()
    }
}

impl Exchange {
    /// Takes a member in. From now on it hears of what its fellows hold, and what waits for somebody like it is its own.
    pub(crate) fn join(&self, session: &Arc<Session>) {
        let guest = Guest {
            member: session.member.clone(),
            order: session.order,
            subscriptions: session.subscriptions.clone(),
            is_pool: session.credit == Credit::POOL,
            session: Arc::downgrade(session),
        };
        self.change(|guests| {
            guests.retain(|known| known.member != guest.member);
            guests.push(guest);
            guests.sort_by(|a, b| a.member.cmp(&b.member));
        });
        for fellow in self.guests().iter().filter_map(Guest::session) {
            fellow.let_listen(session);
            fellow.unpark();
        }
    }

    /// Has those hear of a queue that is granted to one of them and want other messages of it.
    pub(super) fn let_listen(&self, holder: &Session, queue: &QueueKey, tail: &QueueTail) {
        let guests = self.guests();
        let others = guests.iter().filter(|guest| guest.subscriptions != holder.subscriptions);
        for fellow in others.filter_map(Guest::session).filter(|fellow| fellow.may_want(queue)) {
            tail.listen(&fellow.signal);
        }
    }

    /// Lets a member go. What its fellows had for it goes to others that want it; the answer is what nobody wants now.
    pub(crate) fn leave(&self, member: &MemberId) -> Vec<Recalled> {
        self.change(|guests| guests.retain(|known| known.member != *member));
        self.guests().iter().filter_map(Guest::session).flat_map(|fellow| fellow.recall(member)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Guest>)) {
        let mut guests = self.guests.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = guests.to_vec();
        change(&mut changed);
        let mixed = changed.windows(2).any(|pair| pair[0].subscriptions != pair[1].subscriptions);
        *guests = changed.into();
        self.mixed.store(mixed, Ordering::Release);
    }

    /// Whether the holder of a queue has to ask what others want.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed.load(Ordering::Acquire)
    }

    /// All members, in the order of their names.
    pub(super) fn guests(&self) -> Arc<[Guest]> {
        Arc::clone(&self.guests.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tags of a topic that anybody wants.
    pub(super) fn hashes(&self, topic: &TopicName) -> TagHashes {
        let guests = self.guests();
        union_of_hashes(guests.iter().filter_map(|guest| guest.subscriptions.filter(topic)))
    }
}

/// Who shall get a message that the queue's holder does not want: those that want it, less busy ones first. In order it
/// is always the same one, whoever is busy.
pub(super) fn choose<'a>(
    guests: &'a [Guest],
    topic: &TopicName,
    stored: &StoredRecord,
    load: impl Fn(&MemberId) -> usize,
) -> Option<&'a Guest> {
    let mut wanting = guests.iter().filter(|guest| guest.subscriptions.want(topic, &stored.record));
    let first = wanting.next()?;
    if first.order != Order::Concurrent {
        return Some(first);
    }
    wanting.filter(|guest| guest.order == Order::Concurrent).chain([first]).min_by_key(|guest| load(&guest.member))
}

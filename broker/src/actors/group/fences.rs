//! What a change of a topic's number of queues means to the group: its ordered members read nothing behind the change
//! before the group has consumed everything in front of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, TopicName};

use super::messages::Answer;
use super::offsets::{OffsetOwner, Offsets};
use super::{GroupActor, Joined};
use crate::actors::topic::TopicHandle;
use crate::domain::fence::{self, Fences, QueueChange};
use crate::domain::member::MemberId;
use crate::domain::order::Order;
use crate::error::Result;
use crate::shared::Shared;

/// The topics that have limits now; of broadcasting groups for each member by itself.
pub(super) type OpenFences = BTreeMap<(TopicName, Option<MemberId>), Fences>;

/// Below which offset everything is done in a topic's queues.
fn done<'a>(
    offsets: &'a Offsets,
    topic: &TopicName,
    member: Option<&MemberId>,
) -> impl Fn(QueueId) -> QueueOffset + use<'a> {
    let (topic, member) = (topic.clone(), member.cloned());
    move |queue| {
        let owner = OffsetOwner { queue: QueueKey::new(topic.clone(), queue), member: member.clone() };
        offsets.committed(&owner).unwrap_or(QueueOffset::ZERO)
    }
}

impl GroupActor {
    /// A topic's number of queues is about to change: the ordered members go no further than what can be seen now.
    /// Answers with how many of the changes before are passed; `None` when the group does not read the topic.
    pub(super) fn hold(&mut self, topic: &TopicName, reply: Answer<Option<usize>>) {
        self.review_fences(topic);
        let _ = reply.send(Ok(self.passed_changes(topic)));
    }

    fn passed_changes(&self, topic: &TopicName) -> Option<usize> {
        let handle = self.shared.topics.get(topic)?;
        let changes = &handle.layout().changes;
        let mut members = self.offsets.readers_of(topic);
        members.extend(self.sessions.values().filter(|joined| joined.topics.contains(topic)).map(|joined| {
            let session = &joined.session;
            session.broadcasting.then(|| session.member.clone())
        }));
        members.iter().map(|member| fence::passed(changes, done(&self.offsets, topic, member.as_ref()))).min()
    }

    /// Looks anew at how far the members may go in a topic, after it changed or the group's offsets were moved.
    pub(super) fn review_fences(&mut self, topic: &TopicName) {
        let mut owners: Vec<Option<MemberId>> = self
            .sessions
            .values()
            .filter(|joined| joined.topics.contains(topic))
            .map(|joined| joined.session.broadcasting.then(|| joined.session.member.clone()))
            .collect();
        owners.sort();
        owners.dedup();
        let known: Vec<_> = self.fences.keys().filter(|(known, _)| known == topic).cloned().collect();
        let before: Vec<_> = known.iter().map(|key| self.fences.remove(key)).collect();
        let Some(handle) = self.shared.topics.get(topic) else { return };
        // What is coming was looked at once: it stays until it is there.
        let coming = before.iter().flatten().find_map(|fences| fences.coming().cloned());
        let coming = handle.is_changing().then(|| coming.unwrap_or_else(|| visible(&handle)));
        for member in owners {
            let mut fences = Fences::new(Arc::clone(&handle.layout().changes), coming.clone());
            fences.advance(done(&self.offsets, topic, member.as_ref()));
            if !fences.are_open() {
                self.fences.insert((topic.clone(), member), fences);
            }
        }
        if !known.is_empty() || self.fences.keys().any(|(fenced, _)| fenced == topic) {
            self.tell_fences(topic);
        }
    }

    /// After acknowledgements: opens what was waited for.
    pub(super) fn advance_fences(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let mut moved = Vec::new();
        for ((topic, member), fences) in &mut self.fences {
            if fences.advance(done(&self.offsets, topic, member.as_ref())) {
                moved.push(topic.clone());
            }
        }
        self.fences.retain(|_, fences| !fences.are_open());
        moved.iter().for_each(|topic| self.tell_fences(topic));
    }

    fn tell_fences(&self, topic: &TopicName) {
        for joined in self.sessions.values().filter(|joined| joined.topics.contains(topic)) {
            let fences = self.fences_of(joined, topic);
            joined.session.set_fences(topic, |queue| fences.and_then(|fences| fences.limit(queue)));
        }
    }

    fn fences_of(&self, joined: &Joined, topic: &TopicName) -> Option<&Fences> {
        let session = &joined.session;
        if session.order() == Order::Concurrent {
            return None;
        }
        self.fences.get(&(topic.clone(), session.broadcasting.then(|| session.member.clone())))
    }

    /// How far a member may go in a queue that it is about to get.
    pub(super) fn fence_for(&self, joined: &Joined, queue: &QueueKey) -> Option<QueueOffset> {
        if self.fences.is_empty() {
            return None;
        }
        self.fences_of(joined, &queue.topic).and_then(|fences| fences.limit(queue.queue))
    }
}

/// The ends of what can be seen now.
fn visible(handle: &TopicHandle) -> QueueChange {
    QueueChange::new(handle.layout().queues.iter().map(|queue| queue.tail().visible()).collect())
}

/// Asks every group to hold a topic; answers with how many of its changes the last group has passed, and its name.
///
/// # Errors
/// When a group cannot answer.
pub(crate) async fn hold_groups(shared: &Shared, topic: &TopicName) -> Result<Option<(usize, String)>> {
    let mut last: Option<(usize, String)> = None;
    for (name, group) in shared.groups.all() {
        let asked = topic.clone();
        let passed = group.ask(|reply| super::GroupRequest::Hold { topic: asked, reply }).await?;
        if let Some(passed) = passed.filter(|passed| last.as_ref().is_none_or(|(least, _)| passed < least)) {
            last = Some((passed, name.to_string()));
        }
    }
    Ok(last)
}

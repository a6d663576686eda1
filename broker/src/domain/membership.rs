//! Who is in a consumer group and who holds which queue.
//!
//! ```text
//!  wanted by B while A holds it:   Revoke to A ──▶ A finishes ──▶ released ──▶ Grant to B, new lease
//!                                       └── A leaves ──────────────▶ Grant to B, new lease
//!                                       └── deadline passes ──▶ Fence A ──▶ Grant to B, new lease
//! ```
//! A queue never has two holders: it is granted only when nobody holds it. Only a member that neither releases nor
//! leaves until the deadline is cut off, and from then on what it does under its old lease is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use cuemq_storage_api::{QueueKey, Timestamp, TopicName};

use super::assignment::{AssignmentStrategy, Candidate, assign};
use super::member::{MemberId, Room};
use super::routing::QueueCount;

/// Numbers the grants of one group, rising: whoever acts under an older lease of a queue is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Lease(pub(crate) u64);

/// What is constant for the life of a group's membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MembershipSettings {
    /// How the queues of each topic are shared.
    pub(crate) strategy: AssignmentStrategy,
    /// How long a member may take to release a revoked queue.
    pub(crate) revoke_patience: Duration,
    /// Most members.
    pub(crate) max_members: usize,
    /// Most topics one member subscribes to.
    pub(crate) max_subscriptions: usize,
}

/// What has to be done after a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MembershipEffect {
    /// The member holds the queue from now on, under this lease.
    Grant { member: MemberId, queue: QueueKey, lease: Lease },
    /// The member shall take no more from the queue, finish what it has and then release.
    Revoke { member: MemberId, queue: QueueKey, lease: Lease },
    /// The member did not release in time: it no longer holds the queue, its acknowledgements are refused.
    Fence { member: MemberId, queue: QueueKey, lease: Lease },
    /// Call [`Membership::expire`] at this time; replaces an earlier deadline.
    Deadline { at: Timestamp },
}

/// Who holds a queue under which lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Holding {
    /// The holder.
    pub(crate) member: MemberId,
    /// Its lease.
    pub(crate) lease: Lease,
    /// When it is cut off, once the queue was revoked.
    pub(crate) release_until: Option<Timestamp>,
}

/// A member that cannot be taken in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JoinRefused {
    /// The group has this many members, its limit.
    GroupFull(usize),
    /// More topics than a member may subscribe to.
    TooManySubscriptions { wanted: usize, limit: usize },
}

impl fmt::Display for JoinRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GroupFull(limit) => write!(f, "the group has {limit} members already: let one leave first"),
            Self::TooManySubscriptions { wanted, limit } => {
                write!(f, "{wanted} topics subscribed to, more than {limit}: use several groups")
            }
        }
    }
}

/// The lease is not the one under which the queue is held now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StaleLease;

/// Members, their subscriptions, and who holds which queue of the subscribed topics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Membership {
    settings: MembershipSettings,
    members: BTreeMap<MemberId, BTreeSet<TopicName>>,
    /// Where those members stand that said so.
    rooms: BTreeMap<MemberId, Room>,
    topics: BTreeMap<TopicName, QueueCount>,
    /// Who shall hold which queue. Kept, so that a release costs one look-up and not a new sharing of all queues.
    target: BTreeMap<QueueKey, MemberId>,
    holdings: BTreeMap<QueueKey, Holding>,
    /// Topics that one holder has alone, whoever subscribes to them.
    reserved: BTreeMap<TopicName, MemberId>,
    last_lease: Lease,
}

impl Membership {
    /// An empty group whose first lease follows `last_lease`, the last one given out before a restart.
    #[must_use]
    pub(crate) fn new(settings: MembershipSettings, last_lease: Lease) -> Self {
        Self {
            settings,
            members: BTreeMap::new(),
            rooms: BTreeMap::new(),
            topics: BTreeMap::new(),
            target: BTreeMap::new(),
            holdings: BTreeMap::new(),
            reserved: BTreeMap::new(),
            last_lease,
        }
    }

    /// Takes a member in, or changes what it subscribes to and where it stands. A topic without known queues counts once
    /// [`set_topic`](Self::set_topic) tells them.
    ///
    /// # Errors
    /// When the group is full or the member wants too many topics; nothing has changed then.
    pub(crate) fn join(
        &mut self,
        member: MemberId,
        topics: BTreeSet<TopicName>,
        room: Option<Room>,
        now: Timestamp,
        out: &mut Vec<MembershipEffect>,
    ) -> Result<(), JoinRefused> {
        let limit = self.settings.max_subscriptions;
        if topics.len() > limit {
            return Err(JoinRefused::TooManySubscriptions { wanted: topics.len(), limit });
        }
        if self.members.len() >= self.settings.max_members && !self.members.contains_key(&member) {
            return Err(JoinRefused::GroupFull(self.settings.max_members));
        }
        match room {
            Some(room) => self.rooms.insert(member.clone(), room),
            None => self.rooms.remove(&member),
        };
        self.members.insert(member, topics);
        self.rebalance(now, out);
        Ok(())
    }

    /// Lets a member go; what it held is free at once. An unknown member changes nothing.
    pub(crate) fn leave(&mut self, member: &MemberId, now: Timestamp, out: &mut Vec<MembershipEffect>) {
        if self.members.remove(member).is_some() {
            self.rooms.remove(member);
            self.holdings.retain(|_, holding| holding.member != *member);
            self.rebalance(now, out);
        }
    }

    /// Tells how many queues a topic has, at first or after it grew.
    pub(crate) fn set_topic(
        &mut self,
        topic: TopicName,
        queues: QueueCount,
        now: Timestamp,
        out: &mut Vec<MembershipEffect>,
    ) {
        if self.topics.insert(topic, queues) != Some(queues) {
            self.rebalance(now, out);
        }
    }

    /// Tells that a topic has come, has changed or is gone, and how many queues it has now. One to which no member
    /// subscribes and which nobody has reserved is forgotten: of the topics of others a group knows nothing, so that none
    /// of its changes goes through them.
    pub(crate) fn topic_changed(
        &mut self,
        topic: &TopicName,
        queues: Option<QueueCount>,
        now: Timestamp,
        out: &mut Vec<MembershipEffect>,
    ) {
        match queues.filter(|_| self.is_about(topic)) {
            Some(queues) => self.set_topic(topic.clone(), queues, now, out),
            None => self.remove_topic(topic, now, out),
        }
    }

    fn is_about(&self, topic: &TopicName) -> bool {
        self.reserved.contains_key(topic) || self.members.values().any(|subscribed| subscribed.contains(topic))
    }

    /// Tells that a topic is gone; its holders are asked to release.
    fn remove_topic(&mut self, topic: &TopicName, now: Timestamp, out: &mut Vec<MembershipEffect>) {
        if self.topics.remove(topic).is_some() {
            self.rebalance(now, out);
        }
    }

    /// Gives all queues of a topic to one holder, which need not be a member, until it gives them back. Members that
    /// hold some are asked to release them.
    pub(crate) fn reserve(
        &mut self,
        topic: TopicName,
        queues: QueueCount,
        holder: MemberId,
        now: Timestamp,
        out: &mut Vec<MembershipEffect>,
    ) {
        self.topics.insert(topic.clone(), queues);
        self.reserved.insert(topic, holder);
        self.rebalance(now, out);
    }

    /// Gives the queues of a topic back to the members that subscribe to it; what the holder has is free at once.
    pub(crate) fn unreserve(&mut self, topic: &TopicName, now: Timestamp, out: &mut Vec<MembershipEffect>) {
        if let Some(holder) = self.reserved.remove(topic) {
            self.holdings.retain(|queue, holding| queue.topic != *topic || holding.member != holder);
            self.rebalance(now, out);
        }
    }

    /// Changes how queues are shared.
    pub(crate) fn set_strategy(
        &mut self,
        strategy: AssignmentStrategy,
        now: Timestamp,
        out: &mut Vec<MembershipEffect>,
    ) {
        if self.settings.strategy != strategy {
            self.settings.strategy = strategy;
            self.rebalance(now, out);
        }
    }

    /// Frees a queue whose holder is done with it. One that was not revoked is granted anew.
    ///
    /// # Errors
    /// When the queue is not held under this lease: the holder was fenced or has released before.
    pub(crate) fn released(
        &mut self,
        queue: &QueueKey,
        lease: Lease,
        out: &mut Vec<MembershipEffect>,
    ) -> Result<(), StaleLease> {
        self.check(queue, lease)?;
        self.holdings.remove(queue);
        self.grant_if_wanted(queue, out);
        Ok(())
    }

    /// Takes a queue from its holder at once, whoever that is, and grants it anew: what the holder does under its old
    /// lease is refused from now on. Nothing for a queue that nobody holds.
    pub(crate) fn recall(&mut self, queue: &QueueKey, out: &mut Vec<MembershipEffect>) -> Option<Holding> {
        let holding = self.holdings.remove(queue)?;
        self.grant_if_wanted(queue, out);
        Some(holding)
    }

    /// Cuts off the holders whose time to release has run out.
    pub(crate) fn expire(&mut self, now: Timestamp, out: &mut Vec<MembershipEffect>) {
        let late = |holding: &Holding| holding.release_until.is_some_and(|until| until <= now);
        let queues: Vec<QueueKey> =
            self.holdings.iter().filter(|(_, holding)| late(holding)).map(|(queue, _)| queue.clone()).collect();
        for queue in queues {
            let Some(holding) = self.holdings.remove(&queue) else { continue };
            let (member, lease) = (holding.member, holding.lease);
            out.push(MembershipEffect::Fence { member, queue: queue.clone(), lease });
            self.grant_if_wanted(&queue, out);
        }
        if let Some(at) = self.next_deadline() {
            out.push(MembershipEffect::Deadline { at });
        }
    }

    /// Whether the queue is held under this lease now; asked before an acknowledgement counts.
    ///
    /// # Errors
    /// When it is not: the caller has lost the queue.
    pub(crate) fn check(&self, queue: &QueueKey, lease: Lease) -> Result<(), StaleLease> {
        match self.holdings.get(queue) {
            Some(holding) if holding.lease == lease => Ok(()),
            _ => Err(StaleLease),
        }
    }

    /// Who holds a queue.
    #[must_use]
    pub(crate) fn holding(&self, queue: &QueueKey) -> Option<&Holding> {
        self.holdings.get(queue)
    }

    /// All queues that are held, in order, each with its holder and lease.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = (&QueueKey, &Holding)> {
        self.holdings.iter()
    }

    /// The earliest time at which [`expire`](Self::expire) has something to do.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.holdings.values().filter_map(|holding| holding.release_until).min()
    }

    /// Asks for what others shall have and grants what is free. A revocation is never taken back, even if the target
    /// changes again: its holder may be finishing already, and gets the queue back under a new lease.
    fn rebalance(&mut self, now: Timestamp, out: &mut Vec<MembershipEffect>) {
        self.target = self.share();
        let deadline = now.plus(self.settings.revoke_patience);
        let mut revoked = false;
        for (queue, holding) in &mut self.holdings {
            if holding.release_until.is_none() && self.target.get(queue) != Some(&holding.member) {
                holding.release_until = Some(deadline);
                revoked = true;
                let (member, lease) = (holding.member.clone(), holding.lease);
                out.push(MembershipEffect::Revoke { member, queue: queue.clone(), lease });
            }
        }
        let free: Vec<QueueKey> = self.target.keys().filter(|q| !self.holdings.contains_key(q)).cloned().collect();
        for queue in free {
            self.grant_if_wanted(&queue, out);
        }
        if let Some(at) = self.next_deadline().filter(|_| revoked) {
            out.push(MembershipEffect::Deadline { at });
        }
    }

    /// Gives a queue that nobody holds to the member that shall have it, if there is one.
    fn grant_if_wanted(&mut self, queue: &QueueKey, out: &mut Vec<MembershipEffect>) {
        if let Some(member) = self.target.get(queue).cloned() {
            self.last_lease.0 += 1;
            let lease = self.last_lease;
            let holding = Holding { member: member.clone(), lease, release_until: None };
            let before = self.holdings.insert(queue.clone(), holding);
            assert!(before.is_none(), "{queue} is granted while it is held");
            out.push(MembershipEffect::Grant { member, queue: queue.clone(), lease });
        }
    }

    /// Shares the queues anew: each topic by itself, among the members subscribed to it.
    fn share(&self) -> BTreeMap<QueueKey, MemberId> {
        let mut target = BTreeMap::new();
        for (topic, queues) in &self.topics {
            if let Some(holder) = self.reserved.get(topic) {
                target.extend(queues.ids().map(|id| (QueueKey::new(topic.clone(), id), holder.clone())));
                continue;
            }
            let subscribed = self.members.iter().filter(|(_, topics)| topics.contains(topic));
            let members: Vec<&MemberId> = subscribed.map(|(member, _)| member).collect();
            let queues: Vec<QueueKey> = queues.ids().map(|id| QueueKey::new(topic.clone(), id)).collect();
            let candidates: Vec<Candidate<'_>> = members
                .iter()
                .map(|member| Candidate { name: member.as_str(), room: self.rooms.get(*member).map(Room::as_str) })
                .collect();
            let shares = assign(&self.settings.strategy, &candidates, &queues);
            for (member, share) in members.into_iter().zip(shares) {
                target.extend(share.into_iter().map(|queue| (queue, member.clone())));
            }
        }
        target
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;

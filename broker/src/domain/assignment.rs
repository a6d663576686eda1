//! Which member of a consumer group gets which queues.

use std::collections::{BTreeMap, BTreeSet};

use cuemq_storage_api::{InvalidInput, QueueId, QueueKey, TopicName};

use super::member::check_name;
use super::routing::stable_hash;

/// Most queues that one strategy may name.
pub(crate) const MAX_NAMED_QUEUES: usize = 3072;
/// Most bytes of the topics, members and rooms that one strategy names, each counted once and with 3 bytes more than
/// its text: what keeps a group's row within its bound.
pub(crate) const MAX_STRATEGY_NAME_BYTES: usize = 12 << 10;

/// How the queues of a topic are shared among the members of a consumer group.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum AssignmentStrategy {
    /// Neighbouring queues stay together and shares differ by at most one (RocketMQ's `AVG`).
    #[default]
    Averaging,
    /// Queues are dealt out one by one like cards; shares differ by at most one (RocketMQ's `AVG_BY_CIRCLE`).
    Circle,
    /// Each queue goes to the member that scores highest for it. When a member comes or goes only its own queues
    /// move; shares are even on average only. Stable in itself; it does not repeat RocketMQ's `CONSISTENT_HASH`,
    /// which hashes broker names that this broker does not have.
    ConsistentHash,
    /// Each queue goes to the member named here (RocketMQ's `CONFIG`). Queues that are not named, and those whose
    /// member is not there, are shared as by averaging among all members, so that none is left unread. At most 3,072
    /// queues; see [`configured`](Self::configured).
    Configured(BTreeMap<QueueKey, String>),
    /// Each queue stands in the room named here, and goes to the members that said they are in that room (RocketMQ's
    /// `MACHINE_ROOM_NEARBY` over `AVG`). The queues of a room without a living member, and those without a room, are
    /// shared among all members, room by room. At most 3,072 queues; see [`machine_room`](Self::machine_room).
    MachineRoom(BTreeMap<QueueKey, String>),
}

impl AssignmentStrategy {
    /// [`Configured`](Self::Configured) from topic, queue number and member.
    ///
    /// # Errors
    /// Names a bad topic name or queue number. The names of members and the bounds are checked when the group is told.
    pub fn configured<T: AsRef<str>, M: Into<String>>(
        queues: impl IntoIterator<Item = (T, u32, M)>,
    ) -> Result<Self, InvalidInput> {
        named_queues(queues).map(Self::Configured)
    }

    /// [`MachineRoom`](Self::MachineRoom) from topic, queue number and room.
    ///
    /// # Errors
    /// As [`configured`](Self::configured).
    pub fn machine_room<T: AsRef<str>, R: Into<String>>(
        queues: impl IntoIterator<Item = (T, u32, R)>,
    ) -> Result<Self, InvalidInput> {
        named_queues(queues).map(Self::MachineRoom)
    }

    /// Checks the bounds: at most 3072 named queues with 12 KiB of names.
    ///
    /// # Errors
    /// Names the value and its bound.
    pub(crate) fn check(&self) -> Result<(), InvalidInput> {
        let (what, queues) = match self {
            Self::Averaging | Self::Circle | Self::ConsistentHash => return Ok(()),
            Self::Configured(queues) => ("member name", queues),
            Self::MachineRoom(queues) => ("room name", queues),
        };
        if queues.len() > MAX_NAMED_QUEUES {
            let text = format!("a strategy names {} queues: use at most {MAX_NAMED_QUEUES}", queues.len());
            return Err(InvalidInput::new(text));
        }
        let topics: BTreeSet<&str> = queues.keys().map(|queue| queue.topic.as_str()).collect();
        let names: BTreeSet<&str> = queues.values().map(String::as_str).collect();
        names.iter().try_for_each(|name| check_name(what, name))?;
        let bytes: usize = topics.iter().chain(&names).map(|name| name.len() + 3).sum();
        if bytes > MAX_STRATEGY_NAME_BYTES {
            let text = format!(
                "a strategy's names take {bytes} bytes: use at most {MAX_STRATEGY_NAME_BYTES}, by shorter or fewer names"
            );
            return Err(InvalidInput::new(text));
        }
        Ok(())
    }
}

fn named_queues<T: AsRef<str>, N: Into<String>>(
    queues: impl IntoIterator<Item = (T, u32, N)>,
) -> Result<BTreeMap<QueueKey, String>, InvalidInput> {
    let named = |(topic, queue, name): (T, u32, N)| {
        Ok((QueueKey::new(TopicName::new(topic.as_ref())?, QueueId::new(queue)?), name.into()))
    };
    queues.into_iter().map(named).collect()
}

/// A member among whom queues are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Where it stands, if it said so.
    pub(crate) room: Option<&'a str>,
}

/// Shares queues among members. The answer has one share per member, in the members' order; every queue is in
/// exactly one share, in the queues' order. Both lists must be sorted the same way on every call for equal answers.
/// Without members there are no shares.
#[must_use]
pub(crate) fn assign(
    strategy: &AssignmentStrategy,
    members: &[Candidate<'_>],
    queues: &[QueueKey],
) -> Vec<Vec<QueueKey>> {
    if members.is_empty() {
        return Vec::new();
    }
    match strategy {
        AssignmentStrategy::Averaging => averaging(members.len(), queues),
        AssignmentStrategy::Circle => circle(members.len(), queues),
        AssignmentStrategy::ConsistentHash => consistent_hash(members, queues),
        AssignmentStrategy::Configured(named) => configured(named, members, queues),
        AssignmentStrategy::MachineRoom(rooms) => machine_room(rooms, members, queues),
    }
}

fn averaging(members: usize, queues: &[QueueKey]) -> Vec<Vec<QueueKey>> {
    let (least, larger_shares) = (queues.len() / members, queues.len() % members);
    let mut rest = queues;
    (0..members)
        .map(|member| {
            let (share, tail) = rest.split_at(least + usize::from(member < larger_shares));
            rest = tail;
            share.to_vec()
        })
        .collect()
}

fn circle(members: usize, queues: &[QueueKey]) -> Vec<Vec<QueueKey>> {
    (0..members).map(|member| queues.iter().skip(member).step_by(members).cloned().collect()).collect()
}

/// Rendezvous hashing: no ring, no virtual nodes to tune, and exactly the stability that a ring is used for.
fn consistent_hash(members: &[Candidate<'_>], queues: &[QueueKey]) -> Vec<Vec<QueueKey>> {
    let mut shares = vec![Vec::new(); members.len()];
    for queue in queues {
        let highest = (0..members.len()).max_by_key(|index| {
            let member = members[*index].name;
            (score(member, queue), member)
        });
        if let Some(index) = highest {
            shares[index].push(queue.clone());
        }
    }
    shares
}

/// Who is named gets the queue; the rest is shared by averaging.
fn configured(
    named: &BTreeMap<QueueKey, String>,
    members: &[Candidate<'_>],
    queues: &[QueueKey],
) -> Vec<Vec<QueueKey>> {
    let index: BTreeMap<&str, usize> = members.iter().enumerate().map(|(index, member)| (member.name, index)).collect();
    let holder_of = |queue: &QueueKey| named.get(queue).and_then(|name| index.get(name.as_str()).copied());
    let rest: Vec<QueueKey> = queues.iter().filter(|queue| holder_of(queue).is_none()).cloned().collect();
    let mut holders: BTreeMap<&QueueKey, usize> = BTreeMap::new();
    let shares = averaging(members.len(), &rest);
    for (member, share) in shares.iter().enumerate() {
        holders.extend(share.iter().map(|queue| (queue, member)));
    }
    in_order(members.len(), queues, |queue| holder_of(queue).or_else(|| holders.get(queue).copied()))
}

/// Each room's queues go to its members by averaging; those of a room that nobody is in go to everybody so.
fn machine_room(
    rooms: &BTreeMap<QueueKey, String>,
    members: &[Candidate<'_>],
    queues: &[QueueKey],
) -> Vec<Vec<QueueKey>> {
    let everybody: Vec<usize> = (0..members.len()).collect();
    let mut members_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, member) in members.iter().enumerate() {
        member.room.into_iter().for_each(|room| members_of.entry(room).or_default().push(index));
    }
    let mut queues_of: BTreeMap<Option<&str>, Vec<QueueKey>> = BTreeMap::new();
    for queue in queues {
        queues_of.entry(rooms.get(queue).map(String::as_str)).or_default().push(queue.clone());
    }
    let mut holders: BTreeMap<QueueKey, usize> = BTreeMap::new();
    for (room, queues) in queues_of {
        let among = room.and_then(|room| members_of.get(room)).unwrap_or(&everybody);
        let shares = averaging(among.len(), &queues);
        for (member, share) in among.iter().zip(shares) {
            holders.extend(share.into_iter().map(|queue| (queue, *member)));
        }
    }
    in_order(members.len(), queues, |queue| holders.get(queue).copied())
}

/// The shares that follow from who gets each queue.
fn in_order(members: usize, queues: &[QueueKey], holder_of: impl Fn(&QueueKey) -> Option<usize>) -> Vec<Vec<QueueKey>> {
    let mut shares = vec![Vec::new(); members];
    for queue in queues {
        let holder = holder_of(queue).expect("every queue has been given to somebody");
        shares[holder].push(queue.clone());
    }
    shares
}

fn score(member: &str, queue: &QueueKey) -> u64 {
    let mut bytes = Vec::with_capacity(member.len() + queue.topic.as_str().len() + 5);
    bytes.extend_from_slice(member.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(queue.topic.as_str().as_bytes());
    bytes.extend_from_slice(&queue.queue.get().to_be_bytes());
    stable_hash(&bytes)
}

#[cfg(test)]
#[path = "assignment_tests.rs"]
mod tests;

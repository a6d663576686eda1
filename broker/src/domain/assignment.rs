//! Which member of a consumer group gets which queues.

use cuemq_storage_api::QueueKey;

use super::routing::stable_hash;

/// How the queues of a topic are shared among the members of a consumer group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
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
}

/// Shares queues among members. The answer has one share per member, in the members' order; every queue is in
/// exactly one share, in the queues' order. Both lists must be sorted the same way on every call for equal answers.
/// Without members there are no shares.
#[must_use]
pub(crate) fn assign<M: AsRef<str>>(
    strategy: AssignmentStrategy,
    members: &[M],
    queues: &[QueueKey],
) -> Vec<Vec<QueueKey>> {
    if members.is_empty() {
        return Vec::new();
    }
    match strategy {
        AssignmentStrategy::Averaging => averaging(members.len(), queues),
        AssignmentStrategy::Circle => circle(members.len(), queues),
        AssignmentStrategy::ConsistentHash => consistent_hash(members, queues),
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
fn consistent_hash<M: AsRef<str>>(members: &[M], queues: &[QueueKey]) -> Vec<Vec<QueueKey>> {
    let mut shares = vec![Vec::new(); members.len()];
    for queue in queues {
        let highest = (0..members.len()).max_by_key(|index| {
            let member = members[*index].as_ref();
            (score(member, queue), member)
        });
        if let Some(index) = highest {
            shares[index].push(queue.clone());
        }
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use cuemq_storage_api::{QueueId, TopicName};
    use proptest::prelude::*;

    use super::*;

    fn queues(n: u32) -> Vec<QueueKey> {
        let topic = TopicName::new("orders").unwrap();
        (0..n).map(|id| QueueKey::new(topic.clone(), QueueId::new(id).unwrap())).collect()
    }

    fn members(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("c{i}")).collect()
    }

    fn ids(strategy: AssignmentStrategy, member_count: usize, queue_count: u32) -> Vec<Vec<u32>> {
        assign(strategy, &members(member_count), &queues(queue_count))
            .into_iter()
            .map(|share| share.iter().map(|key| key.queue.get()).collect())
            .collect()
    }

    /// RocketMQ's own documented outputs of `AllocateMessageQueueAveragely`.
    #[test]
    fn averaging_equals_rocketmq() {
        let averaging = |m, q| ids(AssignmentStrategy::Averaging, m, q);
        let sixteen = [vec![0, 1, 2, 3, 4, 5], vec![6, 7, 8, 9, 10], vec![11, 12, 13, 14, 15]];
        assert_eq!(averaging(3, 16), sixteen);
        assert_eq!(averaging(2, 5), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(averaging(2, 4), [vec![0, 1], vec![2, 3]]);
        assert_eq!(averaging(4, 2), [vec![0], vec![1], vec![], vec![]]);
        assert_eq!(averaging(3, 10), [vec![0, 1, 2, 3], vec![4, 5, 6], vec![7, 8, 9]]);
    }

    /// RocketMQ's own documented outputs of `AllocateMessageQueueAveragelyByCircle`.
    #[test]
    fn circle_equals_rocketmq() {
        let circle = |m, q| ids(AssignmentStrategy::Circle, m, q);
        let sixteen = [vec![0, 3, 6, 9, 12, 15], vec![1, 4, 7, 10, 13], vec![2, 5, 8, 11, 14]];
        assert_eq!(circle(3, 16), sixteen);
        assert_eq!(circle(2, 5), [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!(circle(4, 2), [vec![0], vec![1], vec![], vec![]]);
    }

    /// Written down once: a change would move queues of running groups at an upgrade.
    #[test]
    fn consistent_hash_is_written_down() {
        let shares = ids(AssignmentStrategy::ConsistentHash, 3, 12);
        assert_eq!(shares, [vec![2, 8, 10], vec![0, 1, 6, 9], vec![3, 4, 5, 7, 11]]);
    }

    #[test]
    fn nobody_gets_nothing() {
        assert!(ids(AssignmentStrategy::Averaging, 0, 4).is_empty());
        assert_eq!(ids(AssignmentStrategy::ConsistentHash, 2, 0), [vec![], Vec::<u32>::new()]);
    }

    fn any_strategy() -> impl Strategy<Value = AssignmentStrategy> {
        prop_oneof![
            Just(AssignmentStrategy::Averaging),
            Just(AssignmentStrategy::Circle),
            Just(AssignmentStrategy::ConsistentHash)
        ]
    }

    proptest! {
        #[test]
        fn every_queue_once_and_fair(strategy in any_strategy(), m in 1usize..20, q in 0u32..80) {
            let shares = ids(strategy, m, q);
            prop_assert_eq!(shares.len(), m);
            let mut all: Vec<u32> = shares.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..q).collect::<Vec<_>>());
            prop_assert!(shares.iter().all(|share| share.is_sorted()));
            if strategy != AssignmentStrategy::ConsistentHash {
                let sizes: BTreeSet<usize> = shares.iter().map(Vec::len).collect();
                prop_assert!(sizes.last().unwrap() - sizes.first().unwrap() <= 1);
            }
        }

        #[test]
        fn consistent_hash_moves_only_the_queues_of_the_one_who_left(m in 2usize..12, q in 1u32..60, gone in 0usize..12) {
            let (all, queues) = (members(m), queues(q));
            let left = &all[gone % m];
            let rest: Vec<String> = all.iter().filter(|member| *member != left).cloned().collect();
            let holders = |members: &[String]| -> BTreeMap<QueueKey, String> {
                let shares = assign(AssignmentStrategy::ConsistentHash, members, &queues);
                members.iter().zip(shares).flat_map(|(m, share)| share.into_iter().map(move |q| (q, m.clone()))).collect()
            };
            let after = holders(&rest);
            for (queue, holder) in holders(&all) {
                prop_assert!(holder == *left || after[&queue] == holder);
            }
        }
    }
}

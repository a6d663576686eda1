use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn queues(n: u32) -> Vec<QueueKey> {
    let topic = TopicName::new("orders").unwrap();
    (0..n).map(|id| QueueKey::new(topic.clone(), QueueId::new(id).unwrap())).collect()
}

fn members(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("c{i}")).collect()
}

fn candidates(names: &[String]) -> Vec<Candidate<'_>> {
    names.iter().map(|name| Candidate { name, room: None }).collect()
}

fn numbers(shares: Vec<Vec<QueueKey>>) -> Vec<Vec<u32>> {
    shares.into_iter().map(|share| share.iter().map(|key| key.queue.get()).collect()).collect()
}

fn ids(strategy: AssignmentStrategy, member_count: usize, queue_count: u32) -> Vec<Vec<u32>> {
    numbers(assign(&strategy, &candidates(&members(member_count)), &queues(queue_count)))
}

/// Queue `id` belongs to the member or stands in the room of this name.
fn named(queues: &[(u32, &str)]) -> Vec<(&'static str, u32, String)> {
    queues.iter().map(|(id, name)| ("orders", *id, (*name).to_owned())).collect()
}

/// Members given as `name@room` or `name`.
fn shares(strategy: &AssignmentStrategy, members: &[&str], queue_count: u32) -> Vec<Vec<u32>> {
    let members: Vec<Candidate<'_>> = members
        .iter()
        .map(|member| match member.split_once('@') {
            Some((name, room)) => Candidate { name, room: Some(room) },
            None => Candidate { name: member, room: None },
        })
        .collect();
    numbers(assign(strategy, &members, &queues(queue_count)))
}

/// RocketMQ's `AllocateMessageQueueByConfig` gives what is configured; what it leaves unread is shared here.
#[test]
fn configured_queues_go_to_their_members_and_the_rest_is_shared() {
    let strategy = AssignmentStrategy::configured(named(&[(0, "b"), (3, "a"), (4, "gone"), (9, "a")])).unwrap();
    assert_eq!(shares(&strategy, &["a", "b"], 6), [vec![1, 2, 3], vec![0, 4, 5]]);
    assert_eq!(shares(&strategy, &["b"], 6), [vec![0, 1, 2, 3, 4, 5]], "none is left unread");
    assert_eq!(shares(&strategy, &["a", "b", "gone"], 6), [vec![1, 3], vec![0, 2], vec![4, 5]]);
}

/// RocketMQ's documented outputs of `AllocateMachineRoomNearby` over averaging.
#[test]
fn a_room_reads_its_own_queues_and_everybody_those_of_dead_rooms() {
    let rooms = named(&[(0, "eu"), (1, "eu"), (2, "eu"), (3, "us"), (4, "us"), (5, "ap"), (6, "ap")]);
    let strategy = AssignmentStrategy::machine_room(rooms).unwrap();
    let both = ["a@eu", "b@us", "c@eu"];
    assert_eq!(shares(&strategy, &both, 5), [vec![0, 1], vec![3, 4], vec![2]]);
    assert_eq!(shares(&strategy, &both, 7), [vec![0, 1, 5], vec![3, 4, 6], vec![2]], "nobody is in ap");
    assert_eq!(shares(&strategy, &both, 9), [vec![0, 1, 5, 7], vec![3, 4, 6, 8], vec![2]], "7 and 8 have no room");
    assert_eq!(shares(&strategy, &["b@us"], 7), [vec![0, 1, 2, 3, 4, 5, 6]]);
    let nowhere = ["a", "b@us"];
    assert_eq!(shares(&strategy, &nowhere, 5), [vec![0, 1], vec![2, 3, 4]], "a is in no room");
}

#[test]
fn what_a_strategy_may_not_name_is_refused() {
    let check = |queues| AssignmentStrategy::configured(queues).unwrap().check();
    let refusal = |queues: Vec<(&'static str, u32, String)>| check(queues).unwrap_err().to_string();
    let many = |n: u32| -> Vec<_> { (0..n).map(|id| ("orders", id, "m".to_owned())).collect() };
    assert!(check(many(3072)).is_ok());
    assert!(refusal(many(3073)).contains("3073 queues"));
    assert!(refusal(named(&[(0, "")])).contains("member name"));
    assert!(refusal(named(&[(0, "a\n")])).contains("printable"));
    let long = |n: u32| -> Vec<_> { (0..n).map(|id| ("orders", id, format!("{id:0255}"))).collect() };
    assert!(check(long(47)).is_ok());
    assert!(refusal(long(48)).contains("12393 bytes"));
    let rooms = AssignmentStrategy::machine_room(named(&[(0, "")])).unwrap();
    assert!(rooms.check().unwrap_err().to_string().contains("room name"));
    assert!(AssignmentStrategy::configured([("a b", 0, "m")]).is_err());
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

/// Some queues, named after members (`c`) or rooms (`r`).
fn any_names(prefix: &'static str) -> impl Strategy<Value = Vec<(&'static str, u32, String)>> {
    let queue = (0u32..80, 0usize..24).prop_map(move |(id, n)| ("orders", id, format!("{prefix}{n}")));
    prop::collection::vec(queue, 0..80)
}

fn any_strategy() -> impl Strategy<Value = AssignmentStrategy> {
    prop_oneof![
        Just(AssignmentStrategy::Averaging),
        Just(AssignmentStrategy::Circle),
        Just(AssignmentStrategy::ConsistentHash),
        any_names("c").prop_map(|named| AssignmentStrategy::configured(named).unwrap()),
        any_names("r").prop_map(|named| AssignmentStrategy::machine_room(named).unwrap()),
    ]
}

proptest! {
    #[test]
    fn every_queue_once_and_fair(
        strategy in any_strategy(),
        m in 1usize..20,
        q in 0u32..80,
        rooms in prop::collection::vec(prop::option::of(0usize..24), 20),
    ) {
        let (names, rooms) = (members(m), rooms.into_iter().map(|room| room.map(|n| format!("r{n}"))).collect::<Vec<_>>());
        let candidates: Vec<_> =
            names.iter().zip(&rooms).map(|(name, room)| Candidate { name, room: room.as_deref() }).collect();
        let shares = numbers(assign(&strategy, &candidates, &queues(q)));
        prop_assert_eq!(&numbers(assign(&strategy, &candidates, &queues(q))), &shares, "stable");
        prop_assert_eq!(shares.len(), m);
        let mut all: Vec<u32> = shares.iter().flatten().copied().collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..q).collect::<Vec<_>>());
        prop_assert!(shares.iter().all(|share| share.is_sorted()));
        if matches!(strategy, AssignmentStrategy::Averaging | AssignmentStrategy::Circle) {
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
            let shares = assign(&AssignmentStrategy::ConsistentHash, &candidates(members), &queues);
            members.iter().zip(shares).flat_map(|(m, share)| share.into_iter().map(move |q| (q, m.clone()))).collect()
        };
        let after = holders(&rest);
        for (queue, holder) in holders(&all) {
            prop_assert!(holder == *left || after[&queue] == holder);
        }
    }
}

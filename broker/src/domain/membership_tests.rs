use cuemq_storage_api::QueueId;
use proptest::prelude::*;

use super::MembershipEffect::{Deadline, Fence, Grant, Revoke};
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const START: Timestamp = Timestamp::from_millis(1_000);
const LATER: Timestamp = Timestamp::from_millis(31_000);

fn settings() -> MembershipSettings {
    MembershipSettings {
        strategy: AssignmentStrategy::Averaging,
        revoke_patience: PATIENCE,
        max_members: 8,
        max_subscriptions: 3,
    }
}

fn topic(n: usize) -> TopicName {
    TopicName::new(&format!("t{n}")).unwrap()
}

fn topics(of: &[usize]) -> BTreeSet<TopicName> {
    of.iter().map(|n| topic(*n)).collect()
}

fn queue(id: u32) -> QueueKey {
    QueueKey::new(topic(0), QueueId::new(id).unwrap())
}

fn member(n: usize) -> MemberId {
    MemberId::new(&format!("m{n}")).unwrap()
}

fn count(n: u32) -> QueueCount {
    QueueCount::new(n).unwrap()
}

fn grant(m: usize, q: u32, lease: u64) -> MembershipEffect {
    Grant { member: member(m), queue: queue(q), lease: Lease(lease) }
}

fn revoke(m: usize, q: u32, lease: u64) -> MembershipEffect {
    Revoke { member: member(m), queue: queue(q), lease: Lease(lease) }
}

fn subscribed(group: &Membership, topic: &TopicName) -> bool {
    group.members.values().any(|topics| topics.contains(topic))
}

/// A group on topic 0 with two queues, both held by member 0 under leases 1 and 2.
fn one_member_with_two_queues() -> Membership {
    let mut group = Membership::new(settings(), Lease(0));
    let mut out = Vec::new();
    group.set_topic(topic(0), count(2), START, &mut out);
    assert_eq!(out, [], "nobody is there yet");
    group.join(member(0), topics(&[0]), None, START, &mut out).unwrap();
    assert_eq!(out, [grant(0, 0, 1), grant(0, 1, 2)]);
    group
}

#[test]
fn a_queue_moves_in_two_steps() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    group.join(member(1), topics(&[0]), None, START, &mut out).unwrap();
    assert_eq!(out, [revoke(0, 1, 2), Deadline { at: LATER }]);
    assert_eq!(group.check(&queue(1), Lease(2)), Ok(()), "acknowledgements count until the release");

    out.clear();
    group.released(&queue(1), Lease(2), &mut out).unwrap();
    assert_eq!(out, [grant(1, 1, 3)]);
    assert_eq!(group.check(&queue(1), Lease(2)), Err(StaleLease));
    assert_eq!(group.released(&queue(1), Lease(2), &mut out), Err(StaleLease), "released once");
    assert_eq!(group.next_deadline(), None);
}

#[test]
fn a_holder_that_leaves_needs_no_release() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    group.join(member(1), topics(&[0]), None, START, &mut out).unwrap();
    out.clear();
    group.leave(&member(0), START, &mut out);
    assert_eq!(out, [grant(1, 0, 3), grant(1, 1, 4)]);
    out.clear();
    group.leave(&member(0), START, &mut out);
    assert_eq!(out, []);
}

#[test]
fn a_holder_that_does_not_release_is_fenced_at_the_deadline() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    group.join(member(1), topics(&[0]), None, START, &mut out).unwrap();
    out.clear();
    group.expire(Timestamp::from_millis(LATER.as_millis() - 1), &mut out);
    assert_eq!(out, [Deadline { at: LATER }], "too early: asks again");

    out.clear();
    group.expire(LATER, &mut out);
    let fence = Fence { member: member(0), queue: queue(1), lease: Lease(2) };
    assert_eq!(out, [fence, grant(1, 1, 3)]);
    assert_eq!(group.check(&queue(1), Lease(2)), Err(StaleLease));
    assert_eq!(group.check(&queue(1), Lease(3)), Ok(()));
}

#[test]
fn a_revocation_is_not_taken_back() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    group.join(member(1), topics(&[0]), None, START, &mut out).unwrap();
    out.clear();
    group.leave(&member(1), START, &mut out);
    assert_eq!(out, [], "member 0 shall keep queue 1 after all, but is finishing it");
    group.released(&queue(1), Lease(2), &mut out).unwrap();
    assert_eq!(out, [grant(0, 1, 3)]);
}

#[test]
fn topics_go_to_their_subscribers_only() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    group.join(member(1), topics(&[1]), None, START, &mut out).unwrap();
    assert_eq!(out, []);
    group.set_topic(topic(1), count(1), START, &mut out);
    let other = QueueKey::new(topic(1), QueueId::FIRST);
    assert_eq!(out, [Grant { member: member(1), queue: other.clone(), lease: Lease(3) }]);
    assert!(subscribed(&group, &topic(1)) && !subscribed(&group, &topic(2)));

    out.clear();
    group.topic_changed(&topic(1), None, START, &mut out);
    assert_eq!(out, [Revoke { member: member(1), queue: other.clone(), lease: Lease(3) }, Deadline { at: LATER }]);
    out.clear();
    group.released(&other, Lease(3), &mut out).unwrap();
    assert_eq!((out, group.holding(&other)), (vec![], None));
}

#[test]
fn the_topics_of_others_leave_nothing_behind() {
    let mut group = one_member_with_two_queues();
    let (before, mut out) = (group.clone(), Vec::new());
    for other in 1..50 {
        group.topic_changed(&topic(other), Some(count(4)), START, &mut out);
    }
    assert_eq!((&group, &out), (&before, &vec![]), "nobody here subscribes to them");

    let (reader, everything) = (QueueKey::new(topic(7), QueueId::FIRST), member(9));
    group.reserve(topic(7), count(1), everything.clone(), START, &mut out);
    assert_eq!(out, [Grant { member: everything.clone(), queue: reader, lease: Lease(3) }]);
    out.clear();
    group.topic_changed(&topic(7), Some(count(2)), START, &mut out);
    let second = QueueKey::new(topic(7), QueueId::new(1).unwrap());
    assert_eq!(out, [Grant { member: everything, queue: second, lease: Lease(4) }], "a reserved topic is followed");

    out.clear();
    group.leave(&member(0), START, &mut out);
    group.topic_changed(&topic(0), Some(count(3)), START, &mut out);
    assert!(!group.topics.contains_key(&topic(0)), "its last reader has left");
    group.set_topic(topic(0), count(3), START, &mut out);
    group.join(member(1), topics(&[0]), None, START, &mut out).unwrap();
    assert_eq!(out, [grant(1, 0, 5), grant(1, 1, 6), grant(1, 2, 7)]);
}

#[test]
fn a_topic_grows_while_it_is_consumed() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    group.topic_changed(&topic(0), Some(count(3)), START, &mut out);
    assert_eq!(out, [grant(0, 2, 3)]);
    assert_eq!(group.last_lease, Lease(3));
}

#[test]
fn a_room_keeps_its_queues_while_somebody_is_in_it() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    let rooms = AssignmentStrategy::machine_room([(topic(0).as_str(), 0, "eu"), (topic(0).as_str(), 1, "us")]).unwrap();
    group.set_strategy(rooms, START, &mut out);
    assert_eq!(out, [], "nobody is in a room: member 0 keeps both");
    group.join(member(1), topics(&[0]), Some(Room::new("eu").unwrap()), START, &mut out).unwrap();
    assert_eq!(out, [revoke(0, 0, 1), Deadline { at: LATER }]);
    out.clear();
    group.released(&queue(0), Lease(1), &mut out).unwrap();
    assert_eq!(out, [grant(1, 0, 3)]);
    out.clear();
    group.leave(&member(1), START, &mut out);
    assert_eq!(out, [grant(0, 0, 4)], "a dead room's queues are everybody's");
}

#[test]
fn a_group_is_bounded() {
    let mut group = Membership::new(settings(), Lease(7));
    let mut out = Vec::new();
    let wide = topics(&[0, 1, 2, 3]);
    let refused = JoinRefused::TooManySubscriptions { wanted: 4, limit: 3 };
    assert_eq!(group.join(member(0), wide, None, START, &mut out), Err(refused));
    for n in 0..8 {
        group.join(member(n), topics(&[0]), None, START, &mut out).unwrap();
    }
    assert_eq!(group.join(member(8), topics(&[0]), None, START, &mut out), Err(JoinRefused::GroupFull(8)));
    group.join(member(3), topics(&[1]), None, START, &mut out).unwrap();
    assert_eq!(group.members.len(), 8);
    assert_eq!(out, []);
}

#[derive(Clone, Debug)]
enum Step {
    Join(usize, Vec<usize>),
    Leave(usize),
    SetTopic(usize, u32),
    RemoveTopic(usize),
    SetStrategy(AssignmentStrategy),
    Release(usize),
    Wait(u64),
}

/// A strategy that names one queue of each topic.
fn named<E: fmt::Debug>(
    queue: u32,
    name: &str,
    of: impl Fn([(String, u32, String); 3]) -> Result<AssignmentStrategy, E>,
) -> AssignmentStrategy {
    of([0, 1, 2].map(|t| (topic(t).to_string(), queue, name.to_owned()))).unwrap()
}

fn any_step() -> impl Strategy<Value = Step> {
    let strategy = prop_oneof![
        Just(AssignmentStrategy::Averaging),
        Just(AssignmentStrategy::Circle),
        Just(AssignmentStrategy::ConsistentHash),
        (0u32..4, 0usize..6).prop_map(|(queue, m)| named(queue, &format!("m{m}"), AssignmentStrategy::configured)),
        (0u32..4, 0usize..3).prop_map(|(queue, r)| named(queue, &format!("r{r}"), AssignmentStrategy::machine_room)),
    ];
    prop_oneof![
        4 => (0usize..6, prop::collection::vec(0usize..3, 0..3)).prop_map(|(m, t)| Step::Join(m, t)),
        2 => (0usize..6).prop_map(Step::Leave),
        3 => (0usize..3, 1u32..9).prop_map(|(t, n)| Step::SetTopic(t, n)),
        1 => (0usize..3).prop_map(Step::RemoveTopic),
        1 => strategy.prop_map(Step::SetStrategy),
        6 => (0usize..64).prop_map(Step::Release),
        2 => (0u64..40).prop_map(Step::Wait),
    ]
}

/// What the members themselves believe to hold, as they learn it from effects.
#[derive(Default)]
struct World {
    now: Timestamp,
    held: BTreeMap<QueueKey, (MemberId, Lease)>,
    asked: BTreeMap<QueueKey, Lease>,
    last_lease: Lease,
}

impl World {
    fn perform(&mut self, group: &Membership, out: &mut Vec<MembershipEffect>) {
        for effect in out.drain(..) {
            match effect {
                Grant { member, queue, lease } => {
                    assert!(lease > self.last_lease, "leases rise");
                    self.last_lease = lease;
                    let before = self.held.insert(queue.clone(), (member, lease));
                    assert_eq!(before, None, "{queue} has two holders");
                }
                Revoke { member, queue, lease } => {
                    assert_eq!(self.held.get(&queue), Some(&(member, lease)), "only the holder is asked");
                    assert_eq!(self.asked.insert(queue, lease), None, "asked once");
                }
                Fence { member, queue, lease } => {
                    assert_eq!(self.held.remove(&queue), Some((member, lease)));
                    assert_eq!(self.asked.remove(&queue), Some(lease), "only who was asked is cut off");
                    assert_eq!(group.check(&queue, lease), Err(StaleLease));
                }
                Deadline { at } => assert!(group.next_deadline().is_none_or(|next| next >= at)),
            }
        }
        let known: BTreeMap<_, _> =
            group.holdings.iter().map(|(queue, h)| (queue.clone(), (h.member.clone(), h.lease))).collect();
        assert_eq!(known, self.held, "group and members agree");
    }

    fn take(&mut self, group: &mut Membership, step: Step) {
        let (now, mut out) = (self.now, Vec::new());
        match step {
            Step::Join(m, t) => {
                let room = (m % 4 < 3).then(|| Room::new(&format!("r{}", m % 4)).unwrap());
                group.join(member(m), topics(&t), room, now, &mut out).unwrap();
            }
            Step::Leave(m) => {
                self.held.retain(|_, (holder, _)| *holder != member(m));
                self.asked.retain(|queue, _| self.held.contains_key(queue));
                group.leave(&member(m), now, &mut out);
            }
            Step::SetTopic(t, n) => group.set_topic(topic(t), count(n), now, &mut out),
            Step::RemoveTopic(t) => group.topic_changed(&topic(t), None, now, &mut out),
            Step::SetStrategy(strategy) => group.set_strategy(strategy, now, &mut out),
            Step::Release(n) => {
                if let Some((queue, lease)) = self.asked.iter().nth(n).map(|(q, l)| (q.clone(), *l)) {
                    self.asked.remove(&queue);
                    self.held.remove(&queue);
                    group.released(&queue, lease, &mut out).unwrap();
                }
            }
            Step::Wait(seconds) => {
                self.now = now.plus(Duration::from_secs(seconds));
                group.expire(self.now, &mut out);
                assert!(group.next_deadline().is_none_or(|at| at > self.now));
            }
        }
        self.perform(group, &mut out);
    }
}

proptest! {
    #[test]
    fn never_two_holders_and_in_the_end_the_target(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut group = Membership::new(settings(), Lease(0));
        let mut world = World { now: START, ..World::default() };
        for step in steps {
            world.take(&mut group, step);
        }
        let mut releases = 0;
        while !world.asked.is_empty() {
            world.take(&mut group, Step::Release(0));
            releases += 1;
            prop_assert!(releases <= 1000, "revocations must come to an end");
        }
        prop_assert_eq!(group.next_deadline(), None);
        for (topic, queues) in &group.topics {
            for queue in queues.ids().map(|id| QueueKey::new(topic.clone(), id)) {
                let holder = group.holding(&queue).map(|holding| &group.members[&holding.member]);
                prop_assert_eq!(holder.is_some(), subscribed(&group, topic));
                prop_assert!(holder.is_none_or(|subscribed| subscribed.contains(topic)));
            }
        }
        let target = group.share();
        let held: BTreeMap<_, _> = group.holdings.iter().map(|(q, h)| (q.clone(), h.member.clone())).collect();
        prop_assert_eq!(held, target);
    }
}

#[test]
fn a_recalled_queue_is_granted_anew_under_a_new_lease() {
    let mut group = one_member_with_two_queues();
    let mut out = Vec::new();
    let before = group.recall(&queue(0), &mut out).unwrap();
    assert_eq!((before.member, before.lease), (member(0), Lease(1)));
    assert_eq!(out, [grant(0, 0, 3)]);
    assert_eq!(group.check(&queue(0), Lease(1)), Err(StaleLease));

    // One that is being handed over goes to the one who shall have it.
    out.clear();
    group.join(member(1), topics(&[0]), None, START, &mut out).unwrap();
    out.clear();
    assert_eq!(group.recall(&queue(1), &mut out).unwrap().lease, Lease(2));
    assert_eq!(out, [grant(1, 1, 4)]);
    assert_eq!(group.next_deadline(), None);

    out.clear();
    assert_eq!(group.recall(&queue(7), &mut out), None);
    assert_eq!(out, []);
}

#[test]
fn a_reserved_topic_belongs_to_its_holder_alone_until_it_is_given_back() {
    let mut group = one_member_with_two_queues();
    let (holder, mut out) = (MemberId::new("%holder").unwrap(), Vec::new());
    let granted = |q, lease| Grant { member: MemberId::new("%holder").unwrap(), queue: queue(q), lease: Lease(lease) };
    group.reserve(topic(0), count(2), holder.clone(), START, &mut out);
    assert_eq!(out, [revoke(0, 0, 1), revoke(0, 1, 2), Deadline { at: LATER }], "holders finish what they have");
    out.clear();
    group.released(&queue(1), Lease(2), &mut out).unwrap();
    assert_eq!(out, [granted(1, 3)]);

    out.clear();
    group.join(member(1), topics(&[0, 1]), None, START, &mut out).unwrap();
    group.leave(&member(0), START, &mut out);
    assert_eq!(out, [granted(0, 4)], "members come and go without getting any of it");
    out.clear();
    group.set_topic(topic(0), count(3), START, &mut out);
    assert_eq!(out, [granted(2, 5)], "a new queue is the holder's too");

    out.clear();
    group.unreserve(&topic(0), START, &mut out);
    assert_eq!(out, [grant(1, 0, 6), grant(1, 1, 7), grant(1, 2, 8)], "free at once");
    out.clear();
    group.unreserve(&topic(0), START, &mut out);
    assert_eq!(out, []);

    // In a group without members.
    let mut empty = Membership::new(settings(), Lease(0));
    empty.reserve(topic(0), count(1), holder, START, &mut out);
    assert_eq!(out, [granted(0, 1)]);
    out.clear();
    empty.unreserve(&topic(0), START, &mut out);
    assert_eq!(out, []);
    assert_eq!(empty.holding(&queue(0)), None);
}

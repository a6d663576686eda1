use cuemq_storage_api::{QueueId, TopicName};
use proptest::prelude::*;

use super::PopAnswer::{Ack, Nack, Reject};
use super::*;

/// Where the deliveries of this opening begin.
pub(super) const FIRST: u64 = 1000;

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

pub(super) fn queue(id: u32) -> QueueKey {
    QueueKey::new(TopicName::new("orders").unwrap(), QueueId::new(id).unwrap())
}

pub(super) fn flight(offset: u64) -> Flight {
    Flight {
        queue: queue(0),
        offset: QueueOffset::new(offset),
        pool: PoolId(1),
        lease: Lease(1),
        bytes: 10,
        redeliveries: 0,
    }
}

fn pops() -> Pops {
    Pops::new(PopSettings { max_in_flight: 4, max_remembered: 100 }, FIRST)
}

/// Gives messages out from this offset on.
pub(super) fn run(
    pops: &mut Pops,
    of: u32,
    offset: u64,
    count: usize,
    until: i64,
) -> Result<Vec<PopReceipt>, TooManyInFlight> {
    let (place, messages) = ((&queue(of), QueueOffset::new(offset)), std::iter::repeat_n((10, 0), count));
    let mark = pops.give(place, (PoolId(1), Lease(1)), at(until), messages)?;
    Ok((0..count).map(|index| pops.sealer.receipt(queue(of), mark.plus(index))).collect())
}

fn given(pops: &mut Pops, offset: u64, until: i64) -> PopReceipt {
    run(pops, 0, offset, 1, until).unwrap().remove(0)
}

/// Acknowledges one message: what is done now.
pub(super) fn ack(pops: &mut Pops, receipt: &PopReceipt, now: Timestamp) -> Result<Option<Landed>, PopRefused> {
    let (mut landed, mut refused) = pops.ack_all(&ReceiptRun::collect(std::iter::once(receipt)), now);
    assert!(landed.len() + refused.len() <= 1);
    refused.pop().map_or_else(|| Ok(landed.pop()), |(_, refused)| Err(refused))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Out,
    Settling(PopAnswer),
    NotStored(PopAnswer),
    Settled(PopAnswer),
    Overdue,
    Expiring,
    Expired,
    Renewed,
    TakenBack,
    Interrupted,
}

/// A machine with one delivery in a state, and that delivery's receipt; looked at at 5 s.
fn in_state(state: Stage) -> (Pops, PopReceipt) {
    let mut pops = pops();
    let late = matches!(state, Stage::Overdue | Stage::Expiring | Stage::Expired);
    let receipt = given(&mut pops, 7, if late { 5 } else { 10 });
    match state {
        Stage::Out | Stage::Overdue => {}
        Stage::Settling(answer) | Stage::NotStored(answer) | Stage::Settled(answer) => {
            let Begun::Started(id, begun) = pops.begin(&receipt, answer, at(1)).unwrap() else { panic!("it is new") };
            assert_eq!(begun, flight(7));
            match state {
                Stage::Settled(_) => assert_eq!(pops.ended(id), Some(flight(7))),
                Stage::NotStored(_) => pops.not_ended(id, at(2)),
                _ => {}
            }
        }
        Stage::Expiring | Stage::Expired => {
            let expired = pops.expire(at(5), 9);
            assert_eq!(expired.iter().map(|(_, flight)| flight.offset.get()).collect::<Vec<_>>(), [7]);
            if state == Stage::Expired {
                assert_eq!(pops.ended(expired[0].0), Some(flight(7)));
            }
        }
        Stage::Renewed => drop(pops.renew(&receipt, at(20), at(1)).unwrap()),
        Stage::TakenBack => assert_eq!(pops.take_back(receipt.mark), Some(flight(7))),
        Stage::Interrupted => assert_eq!(pops.interrupt(None), [flight(7)]),
    }
    (pops, receipt)
}

#[test]
fn the_first_answer_stands() {
    use Stage::{Expired, Expiring, Interrupted, NotStored, Out, Overdue, Renewed, Settled, Settling, TakenBack};
    let conflict = |first| Err(PopRefused::Conflict { first });
    let late = Err(PopRefused::Expired { at: at(5) });
    let gone = Err(PopRefused::Interrupted);
    let (new, same) = (Ok("new"), Ok("same"));
    // What an ack, a nack, a reject and a renewal are answered.
    for (state, expected) in [
        (Out, [new, new, new, new]),
        (Settling(Nack), [conflict(Nack), Ok("under way"), conflict(Nack), conflict(Nack)]),
        (Settling(Reject), [conflict(Reject), conflict(Reject), Ok("under way"), conflict(Reject)]),
        (NotStored(Nack), [new, new, new, new]),
        (Settled(Ack), [same, conflict(Ack), conflict(Ack), conflict(Ack)]),
        (Settled(Nack), [conflict(Nack), same, conflict(Nack), conflict(Nack)]),
        (Settled(Reject), [conflict(Reject), conflict(Reject), same, conflict(Reject)]),
        (Overdue, [late; 4]),
        (Expiring, [late; 4]),
        (Expired, [late; 4]),
        (Renewed, [Err(PopRefused::Renewed); 4]),
        (TakenBack, [gone; 4]),
        (Interrupted, [gone; 4]),
    ] {
        for (answer, expected) in [Some(Ack), Some(Nack), Some(Reject), None].into_iter().zip(expected) {
            let (mut pops, receipt) = in_state(state);
            let got = match answer {
                Some(Ack) => ack(&mut pops, &receipt, at(5)).map(|done| if done.is_some() { "new" } else { "same" }),
                Some(answer) => pops.begin(&receipt, answer, at(5)).map(|begun| match begun {
                    Begun::Started(..) => "new",
                    Begun::UnderWay(_) => "under way",
                    Begun::Already => "same",
                }),
                None => pops.renew(&receipt, at(20), at(5)).map(|_| "new"),
            };
            assert_eq!(got, expected, "{state:?}, {answer:?}");
        }
    }
}

#[test]
fn a_renewal_moves_the_deadline() {
    let mut pops = pops();
    let first = given(&mut pops, 1, 10);
    let second = pops.renew(&first, at(30), at(9)).unwrap();
    assert_ne!(first, second);
    assert_eq!((pops.expire(at(29), 9), pops.next_deadline(), pops.in_flight()), (vec![], Some(at(30)), 1));
    let shorter = pops.renew(&second, at(12), at(9)).unwrap();
    assert_eq!(pops.next_deadline(), Some(at(12)), "a renewal may also shorten");
    assert_eq!(ack(&mut pops, &second, at(10)), Err(PopRefused::Renewed));
    assert_eq!(ack(&mut pops, &shorter, at(11)), Ok(Some(flight(1).into())));
    assert_eq!((pops.next_deadline(), pops.in_flight()), (None, 0));
}

#[test]
fn what_expires_is_failed_once_and_tried_again_when_that_is_not_stored() {
    let mut pops = pops();
    for offset in 0..3 {
        given(&mut pops, offset, 10);
    }
    assert_eq!(pops.expire(Timestamp::from_millis(9_999), 9), [], "not a millisecond early");
    let some = pops.expire(at(10), 2);
    assert_eq!((some.len(), pops.next_deadline()), (2, Some(at(10))), "the rest comes at once");
    assert_eq!(pops.expire(at(10), 2).len(), 1);
    assert_eq!((pops.expire(at(99), 9), pops.next_deadline(), pops.room()), (vec![], None, 1));
    pops.not_ended(some[0].0, at(100));
    assert_eq!(pops.next_deadline(), Some(at(100)));
    assert_eq!(pops.expire(at(100), 9), [some[0].clone()]);
    assert!(pops.ended(some[0].0).is_some() && pops.ended(some[0].0).is_none(), "it ends once");
    assert_eq!(pops.room(), 2);
}

#[test]
fn bounds_hold() {
    let mut pops = Pops::new(PopSettings { max_in_flight: 2, max_remembered: 2 }, FIRST);
    let receipts = [given(&mut pops, 0, 10), given(&mut pops, 1, 10)];
    assert_eq!(run(&mut pops, 0, 2, 1, 10), Err(TooManyInFlight { limit: 2 }));
    for receipt in &receipts {
        ack(&mut pops, receipt, at(1)).unwrap();
    }
    let third = given(&mut pops, 2, 10);
    assert_eq!(ack(&mut pops, &receipts[0], at(1)), Ok(None), "remembered");
    ack(&mut pops, &third, at(1)).unwrap();
    assert_eq!(ack(&mut pops, &receipts[0], at(1)), Err(PopRefused::Forgotten), "the oldest is forgotten first");
    assert_eq!(ack(&mut pops, &receipts[1], at(1)), Ok(None));
}

#[test]
fn nobody_makes_a_receipt_up() {
    let mut pops = pops();
    let good = given(&mut pops, 7, 10);
    let other = given(&mut pops, 8, 10);
    let forge = |change: &dyn Fn(&mut PopReceipt)| {
        let mut receipt = good.clone();
        change(&mut receipt);
        receipt
    };
    for (forged, expected) in [
        (forge(&|r| r.seal ^= 1), PopRefused::Forged),
        (forge(&|r| r.mark.offset = QueueOffset::new(8)), PopRefused::Forged),
        (forge(&|r| r.queue = queue(1)), PopRefused::Forged),
        (forge(&|r| r.mark.delivery = other.mark.delivery), PopRefused::Forged),
        (forge(&|r| r.mark.delivery = FIRST + 2), PopRefused::Forged),
        (forge(&|r| r.mark.delivery = u64::MAX), PopRefused::Forged),
        (forge(&|r| r.mark.delivery = FIRST - 1), PopRefused::Earlier),
    ] {
        assert_eq!(ack(&mut pops, &forged, at(1)), Err(expected), "{forged:?}");
    }
    let mut elsewhere = Pops::new(PopSettings { max_in_flight: 4, max_remembered: 100 }, FIRST);
    given(&mut elsewhere, 7, 10);
    assert_eq!(ack(&mut elsewhere, &good, at(1)), Err(PopRefused::Forged), "another group has another secret");
    assert_eq!(ack(&mut pops, &good, at(1)), Ok(Some(flight(7).into())));
}

#[test]
fn one_queue_is_interrupted_alone() {
    let mut pops = pops();
    let (here, there) = (given(&mut pops, 1, 10), run(&mut pops, 1, 1, 1, 10).unwrap().remove(0));
    assert_eq!(pops.offsets_of(&queue(1)).collect::<Vec<_>>(), [QueueOffset::new(1)]);
    assert_eq!(pops.interrupt(Some(&queue(1))).len(), 1);
    assert_eq!(ack(&mut pops, &there, at(1)), Err(PopRefused::Interrupted));
    assert_eq!(ack(&mut pops, &here, at(1)), Ok(Some(flight(1).into())));
    assert_eq!(pops.offsets_of(&queue(1)).count(), 0);
}

/// What one message in flight and one remembered ending may cost; the guide says so.
#[test]
fn a_message_in_flight_is_small() {
    assert!(size_of::<(DeliveryId, Parcel)>() <= 160, "{}", size_of::<(DeliveryId, Parcel)>());
    assert!(size_of::<Item>() <= 12, "{}", size_of::<Item>());
    assert_eq!(size_of::<(Timestamp, DeliveryId)>(), 16);
}

pub(super) fn offsets(pops: &Pops, of: u32) -> Vec<u64> {
    let mut offsets: Vec<u64> = pops.offsets_of(&queue(of)).map(QueueOffset::get).collect();
    offsets.sort_unstable();
    offsets
}

#[derive(Clone, Debug)]
enum Step {
    Give(usize, i64),
    Ack(usize),
    Begin(usize, bool),
    Stored(usize, bool),
    Renew(usize, i64),
    TakeBack(usize),
    Wait(i64),
    Expire,
    Interrupt,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1usize..4, 1i64..20).prop_map(|(count, for_s)| Step::Give(count, for_s)),
        6 => (0usize..30).prop_map(Step::Ack),
        6 => (0usize..30, any::<bool>()).prop_map(|(n, nack)| Step::Begin(n, nack)),
        6 => (0usize..6, any::<bool>()).prop_map(|(n, stored)| Step::Stored(n, stored)),
        3 => (0usize..30, 1i64..20).prop_map(|(n, for_s)| Step::Renew(n, for_s)),
        1 => (0usize..30).prop_map(Step::TakeBack),
        3 => (0i64..8).prop_map(Step::Wait),
        6 => Just(Step::Expire),
        1 => Just(Step::Interrupt),
    ]
}

/// One delivery as a naive model keeps it: all of them, for ever, in a list.
#[derive(Clone, Debug)]
struct Known {
    receipt: PopReceipt,
    offset: u64,
    until: i64,
    state: Life,
    /// When it ended, as a rank among all ends.
    ended: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Out,
    Answering(PopAnswer),
    Expiring,
    Answered(PopAnswer),
    Renewed,
    Expired,
    Withdrawn,
}

const REMEMBERED: usize = 6;

fn remembers(pops: &Pops, known: &Known) -> bool {
    pops.parcel_of(DeliveryId(known.receipt.mark.delivery)).is_some()
}

#[derive(Default)]
struct Model {
    known: Vec<Known>,
    ends: usize,
    /// How many deliveries there were at the last interruption.
    interrupted: usize,
    /// What waits for its time again after a failed write: offset of the list to second.
    again: Vec<(usize, i64)>,
    /// What is being stored, in the order of beginning.
    storing: Vec<(usize, DeliveryId)>,
}

impl Model {
    fn end(&mut self, n: usize, life: Life) {
        self.known[n].state = life;
        self.known[n].ended = Some(self.ends);
        self.ends += 1;
    }

    fn in_flight(&self) -> usize {
        self.known.iter().filter(|known| known.ended.is_none()).count()
    }

    /// Why a delivery takes no new answer at this second; `None` when it does.
    fn refused(&self, pops: &Pops, n: usize, now: i64) -> Option<PopRefused> {
        let known = &self.known[n];
        if !remembers(pops, known) {
            return Some(if n < self.interrupted { PopRefused::Interrupted } else { PopRefused::Forgotten });
        }
        match known.state {
            Life::Out if known.until > now => None,
            Life::Out | Life::Expiring | Life::Expired => Some(PopRefused::Expired { at: at(known.until) }),
            Life::Answering(first) | Life::Answered(first) => Some(PopRefused::Conflict { first }),
            Life::Renewed => Some(PopRefused::Renewed),
            Life::Withdrawn => Some(PopRefused::Interrupted),
        }
    }

    /// What is out is known, and as many endings as may be; parcels of one message are forgotten in the order of their ends.
    fn assert_remembered(&self, pops: &Pops, most: usize) {
        for (n, known) in self.known.iter().enumerate() {
            let remembered = remembers(pops, known);
            match known.ended {
                None => assert!(remembered, "{known:?}"),
                // In which order those are forgotten is nobody's business: whoever is told so is told the same.
                Some(_) if known.state == Life::Withdrawn && n < self.interrupted => {}
                Some(rank) if most == 1 => assert_eq!(remembered, rank + REMEMBERED >= self.ends, "{known:?}"),
                Some(_) => assert!(remembered || self.ends > REMEMBERED, "{known:?}"),
            }
        }
    }

    /// What is due at this second.
    fn due(&self, now: i64) -> Vec<usize> {
        let again = |n: usize| self.again.iter().rev().find(|(known, _)| *known == n).map(|(_, second)| *second);
        let due = |(n, known): &(usize, &Known)| known.state == Life::Out && again(*n).unwrap_or(known.until) <= now;
        self.known.iter().enumerate().filter(due).map(|(n, _)| n).collect()
    }
}

proptest! {
    #[test]
    fn equals_a_list_of_everything(most in 1usize..4, steps in prop::collection::vec(any_step(), 0..120)) {
        let mut pops = Pops::new(PopSettings { max_in_flight: 5, max_remembered: REMEMBERED }, FIRST);
        let (mut model, mut now) = (Model::default(), 0);
        for step in steps {
            // Among the deliveries there were, counted from the latest.
            let pick = |back: usize| model.known.len().checked_sub(1 + back);
            match step {
                Step::Give(count, for_s) => {
                    let (offset, count) = (model.known.len() as u64, count.min(most));
                    let given = run(&mut pops, 0, offset, count, now + for_s);
                    prop_assert_eq!(given.is_ok(), model.in_flight() + count <= 5);
                    for (receipt, offset) in given.into_iter().flatten().zip(offset..) {
                        model.known.push(Known { receipt, offset, until: now + for_s, state: Life::Out, ended: None });
                    }
                }
                Step::Ack(back) => {
                    let Some(n) = pick(back) else { continue };
                    let expected = model.refused(&pops, n, now);
                    let acked = ack(&mut pops, &model.known[n].receipt, at(now));
                    match expected {
                        None => {
                            prop_assert_eq!(acked, Ok(Some(flight(model.known[n].offset).into())));
                            model.end(n, Life::Answered(Ack));
                        }
                        Some(PopRefused::Conflict { first: Ack }) => prop_assert_eq!(acked, Ok(None)),
                        Some(refused) => prop_assert_eq!(acked, Err(refused)),
                    }
                }
                Step::Begin(back, nack) => {
                    let Some(n) = pick(back) else { continue };
                    let answer = if nack { Nack } else { Reject };
                    let expected = model.refused(&pops, n, now);
                    let begun = pops.begin(&model.known[n].receipt, answer, at(now));
                    match (expected, begun) {
                        (None, Ok(Begun::Started(id, begun))) => {
                            prop_assert_eq!(begun.offset.get(), model.known[n].offset);
                            model.known[n].state = Life::Answering(answer);
                            model.storing.push((n, id));
                        }
                        (Some(PopRefused::Conflict { first }), Ok(begun)) if first == answer => {
                            let under_way = matches!(model.known[n].state, Life::Answering(_));
                            prop_assert_eq!(matches!(begun, Begun::UnderWay(_)), under_way);
                        }
                        (refused, begun) => prop_assert_eq!(begun, Err(refused.expect("it is refused"))),
                    }
                }
                Step::Stored(which, stored) => {
                    if which >= model.storing.len() {
                        continue;
                    }
                    let (n, id) = model.storing.remove(which);
                    if stored {
                        prop_assert_eq!(pops.ended(id), Some(flight(model.known[n].offset)));
                        let life = match model.known[n].state {
                            Life::Answering(answer) => Life::Answered(answer),
                            _ => Life::Expired,
                        };
                        model.end(n, life);
                    } else {
                        pops.not_ended(id, at(now + 1));
                        model.known[n].state = Life::Out;
                        model.again.push((n, model.known[n].until.max(now + 1)));
                    }
                }
                Step::Renew(back, for_s) => {
                    let Some(n) = pick(back) else { continue };
                    let expected = model.refused(&pops, n, now);
                    let renewed = pops.renew(&model.known[n].receipt, at(now + for_s), at(now));
                    match expected {
                        None => {
                            let receipt = renewed.expect("it is out");
                            model.end(n, Life::Renewed);
                            let known = Known { receipt, until: now + for_s, state: Life::Out, ended: None, ..model.known[n].clone() };
                            model.known.push(known);
                        }
                        Some(refused) => prop_assert_eq!(renewed, Err(refused)),
                    }
                }
                Step::TakeBack(back) => {
                    let Some(n) = pick(back) else { continue };
                    let taken = pops.take_back(model.known[n].receipt.mark);
                    prop_assert_eq!(taken.is_some(), model.known[n].state == Life::Out);
                    if taken.is_some() {
                        model.end(n, Life::Withdrawn);
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Expire => {
                    let expected = model.due(now);
                    let mut expired = pops.expire(at(now), 100);
                    expired.sort_by_key(|(id, _)| *id);
                    let offsets: Vec<u64> = expired.iter().map(|(_, flight)| flight.offset.get()).collect();
                    prop_assert_eq!(offsets, expected.iter().map(|n| model.known[*n].offset).collect::<Vec<_>>());
                    for (n, (id, _)) in expected.into_iter().zip(expired) {
                        model.known[n].state = Life::Expiring;
                        model.storing.push((n, id));
                    }
                    prop_assert!(pops.next_deadline().is_none_or(|next| next > at(now)));
                }
                Step::Interrupt => {
                    let mut lost: Vec<u64> = pops.interrupt(None).iter().map(|flight| flight.offset.get()).collect();
                    lost.sort_unstable();
                    let open: Vec<usize> = (0..model.known.len()).filter(|n| model.known[*n].ended.is_none()).collect();
                    let mut expected: Vec<u64> = open.iter().map(|n| model.known[*n].offset).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(lost, expected);
                    model.interrupted = model.known.len();
                    open.into_iter().for_each(|n| model.end(n, Life::Withdrawn));
                    model.storing.clear();
                }
            }
            prop_assert_eq!(pops.in_flight(), model.in_flight());
            prop_assert!(pops.remembered <= REMEMBERED);
            prop_assert_eq!(pops.remembered, pops.parcels.values().map(Parcel::ended).sum::<usize>());
            model.assert_remembered(&pops, most);
            let mut out: Vec<u64> = model.known.iter().filter(|k| k.ended.is_none()).map(|k| k.offset).collect();
            out.sort_unstable();
            prop_assert!(out.iter().all(|offset| pops.is_in_flight(&queue(0), QueueOffset::new(*offset))));
            prop_assert_eq!(offsets(&pops, 0), out);
            let due = model.known.iter().any(|known| known.state == Life::Out);
            prop_assert!(!due || pops.next_deadline().is_some(), "nothing in flight is without a deadline");
        }
    }
}

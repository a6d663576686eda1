use super::PopAnswer::Nack;
use super::tests::{FIRST, ack, at, flight, offsets, queue, run};
use super::*;

#[test]
fn neighbours_are_done_together() {
    let mut pops = Pops::new(PopSettings { max_in_flight: 20, max_remembered: 100 }, FIRST);
    let first = run(&mut pops, 0, 0, 4, 10).unwrap();
    let other = run(&mut pops, 1, 4, 2, 10).unwrap();
    let second = run(&mut pops, 0, 4, 3, 10).unwrap();
    assert_eq!((offsets(&pops, 0), offsets(&pops, 1)), ((0..7).collect(), vec![4, 5]));
    let mut receipts: Vec<PopReceipt> = first[1..].iter().chain(&second[..2]).chain(&other).cloned().collect();
    receipts.push(first[2].clone());
    receipts.push(PopReceipt { seal: 0, ..second[2].clone() });
    let (landed, refused) = pops.ack_all(&ReceiptRun::collect(receipts.iter()), at(1));
    let runs: Vec<_> = landed.iter().map(|run| (run.queue.queue.get(), run.offsets.clone(), run.messages)).collect();
    let span = |start, end| QueueOffset::new(start)..QueueOffset::new(end);
    assert_eq!(runs, [(0, span(1, 6), 5), (1, span(4, 6), 2)]);
    assert_eq!(landed.iter().map(|run| run.bytes).collect::<Vec<_>>(), [50, 20]);
    assert_eq!(refused, [(8, PopRefused::Forged)]);
    assert_eq!((offsets(&pops, 0), offsets(&pops, 1), pops.in_flight()), (vec![0, 6], vec![], 2));
    let is_out = |offset| pops.is_in_flight(&queue(0), QueueOffset::new(offset));
    assert_eq!((0..8).filter(|offset| is_out(*offset)).collect::<Vec<_>>(), [0, 6]);
}

#[test]
fn what_was_given_out_together_can_part() {
    let mut pops = Pops::new(PopSettings { max_in_flight: 20, max_remembered: 4 }, FIRST);
    let receipts = run(&mut pops, 0, 0, 9, 10).unwrap();
    let Begun::Started(third, _) = pops.begin(&receipts[3], Nack, at(1)).unwrap() else { panic!("it is new") };
    pops.not_ended(third, at(20));
    assert_eq!((offsets(&pops, 0), pops.next_deadline()), ((0..9).collect(), Some(at(10))));
    let renewed = pops.renew(&receipts[5], at(30), at(2)).unwrap();
    assert_eq!(pops.renew(&receipts[5], at(30), at(2)), Err(PopRefused::Renewed));
    assert_eq!(offsets(&pops, 0), (0..9).collect::<Vec<_>>());
    let expired: Vec<u64> = pops.expire(at(10), 99).iter().map(|(_, flight)| flight.offset.get()).collect();
    assert_eq!(expired, [0, 1, 2, 4, 6, 7, 8], "one waits for another try, one has more time");
    assert_eq!(pops.next_deadline(), Some(at(20)));
    // The bound is kept though every ending is of messages of which some are in flight.
    for receipt in [&receipts[0], &receipts[1]] {
        assert_eq!(ack(&mut pops, receipt, at(10)), Err(PopRefused::Expired { at: at(10) }));
    }
    let ids: Vec<DeliveryId> = [0, 1, 2, 6, 7].map(|n| DeliveryId(FIRST + n)).to_vec();
    for id in &ids {
        assert!(pops.ended(*id).is_some());
    }
    assert!(pops.remembered <= 4 && pops.in_flight() == 4, "{pops:?}");
    assert_eq!(offsets(&pops, 0), [3, 4, 5, 8]);
    assert_eq!(ack(&mut pops, &renewed, at(20)), Ok(Some(flight(5).into())));
    assert_eq!(ack(&mut pops, &receipts[3], at(9)), Ok(Some(flight(3).into())), "as it was not stored");
    assert_eq!(pops.interrupt(None).len(), 2);
    assert_eq!((offsets(&pops, 0), pops.places.len(), pops.mixed.len()), (vec![], 0, 0));
}

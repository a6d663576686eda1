//! The one answer that all sends of a burst share: told once by whoever wrote it, read by each sender by its number.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use cuemq_storage_api::QueueKey;

use crate::error::{Error, Result, SharedError};
use crate::message::{MessageId, Receipt};
use crate::storage::Stored;

/// Shared by the burst and everybody who waits for it.
#[derive(Debug, Default)]
struct Outcome {
    told: OnceLock<Told>,
    /// One for each ticket that was polled in vain, so no more than the burst has requests.
    wakers: Mutex<Vec<Waker>>,
}

#[derive(Debug)]
struct Told {
    result: std::result::Result<Placed, SharedError>,
    /// Numbers of the requests that were lost alone, rising; the records behind them moved up.
    lost: Vec<u32>,
}

/// Where the records of one burst are.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) queue: QueueKey,
    pub(super) store_id: u64,
    pub(super) stored: Arc<Stored>,
    /// Which append operation of the write it was.
    pub(super) append: usize,
    /// Where its positions begin among those of the write.
    pub(super) first_position: usize,
}

/// Owes an answer; dropped without one, it tells everybody that nobody knows the outcome.
#[derive(Debug)]
pub(super) struct Answering {
    outcome: Arc<Outcome>,
    lost: Vec<u32>,
}

/// One sender's claim to its part of an answer.
#[derive(Debug)]
pub(crate) struct Ticket {
    outcome: Arc<Outcome>,
    /// The number of its request within the burst.
    number: u32,
    /// Its place among the wakers.
    waker: Option<usize>,
}

impl Answering {
    pub(super) fn new() -> Self {
        Self { outcome: Arc::default(), lost: Vec::new() }
    }

    pub(super) fn ticket(&self, number: u32) -> Ticket {
        Ticket { outcome: Arc::clone(&self.outcome), number, waker: None }
    }

    /// The record of this request is gone, alone of its burst.
    pub(super) fn lose(&mut self, number: u32) {
        self.lost.push(number);
    }

    /// How many requests are gone.
    pub(super) fn losses(&self) -> usize {
        self.lost.len()
    }

    pub(super) fn tell(mut self, result: std::result::Result<Placed, SharedError>) {
        self.tell_once(result);
    }

    fn tell_once(&mut self, result: std::result::Result<Placed, SharedError>) {
        let told = Told { result, lost: std::mem::take(&mut self.lost) };
        if self.outcome.told.set(told).is_ok() {
            // A ticket that finds no answer puts its waker in under this lock, so none is missed.
            let wakers = std::mem::take(&mut *self.outcome.wakers.lock().unwrap_or_else(PoisonError::into_inner));
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.outcome.told.get().is_none() {
            self.tell_once(Err(SharedError::new(Error::lost("the send"))));
        }
    }
}

impl Outcome {
    fn poll(&self, waker: &mut Option<usize>, cx: &Context<'_>) -> Poll<&Told> {
        if let Some(told) = self.told.get() {
            return Poll::Ready(told);
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = self.told.get() {
            return Poll::Ready(told);
        }
        match waker.and_then(|at| wakers.get_mut(at)) {
            Some(known) => known.clone_from(cx.waker()),
            None => {
                *waker = Some(wakers.len());
                wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Ticket {
    /// A claim that was refused at once.
    pub(crate) fn refused(error: Error) -> Self {
        let answering = Answering::new();
        let ticket = answering.ticket(0);
        answering.tell(Err(SharedError::new(error)));
        ticket
    }

    /// The receipt of a single message.
    pub(crate) fn poll_receipt(&mut self, cx: &Context<'_>) -> Poll<Result<Receipt>> {
        let (outcome, number) = (&self.outcome, self.number);
        outcome.poll(&mut self.waker, cx).map(|told| {
            let before = told.lost.partition_point(|lost| *lost < number);
            if told.lost.get(before) == Some(&number) {
                return Err(Error::lost("the send"));
            }
            let placed = told.result.as_ref().map_err(SharedError::get)?;
            Ok(placed.receipt(number as usize - before))
        })
    }

    /// The receipts of a batch that is a burst of its own.
    pub(crate) fn poll_receipts(&mut self, cx: &Context<'_>) -> Poll<Result<Vec<Receipt>>> {
        self.outcome.poll(&mut self.waker, cx).map(|told| {
            let placed = told.result.as_ref().map_err(SharedError::get)?;
            let count = placed.stored.appends[placed.append].count as usize;
            Ok((0..count).map(|index| placed.receipt(index)).collect())
        })
    }
}

impl Placed {
    fn receipt(&self, index: usize) -> Receipt {
        Receipt {
            topic: self.queue.topic.clone(),
            queue: self.queue.queue,
            offset: Some(self.stored.appends[self.append].first.plus(index as u64)),
            id: Some(MessageId::new(self.store_id, self.stored.positions[self.first_position + index])),
            scheduled: None,
            level: self.stored.level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    use cuemq_storage_api::{Appended, LogPosition, QueueId, QueueOffset, TopicName};
    use futures_util::FutureExt;

    use crate::error::ErrorKind;
    use crate::message::AckLevel;

    fn placed(count: u32) -> Placed {
        let appends =
            vec![Appended { first: QueueOffset::new(5), count: 9 }, Appended { first: QueueOffset::new(14), count }];
        let positions = (0..9 + u64::from(count)).map(|n| LogPosition::new(n * 100)).collect();
        let stored = Arc::new(Stored { appends, positions, level: AckLevel::Buffered });
        let queue = QueueKey::new(TopicName::new("orders").unwrap(), QueueId::FIRST);
        Placed { queue, store_id: 1, stored, append: 1, first_position: 9 }
    }

    fn offset(ticket: &mut Ticket) -> Result<u64> {
        let receipt = poll_fn(|cx| ticket.poll_receipt(cx)).now_or_never().expect("it is told")?;
        assert_eq!(receipt.id.unwrap().position().get(), (receipt.offset.unwrap().get() - 5) * 100);
        Ok(receipt.offset.unwrap().get())
    }

    #[test]
    fn each_ticket_finds_its_own_record() {
        let answering = Answering::new();
        let mut tickets: Vec<_> = (0..3).map(|number| answering.ticket(number)).collect();
        let mut batch = answering.ticket(0);
        assert!(poll_fn(|cx| tickets[1].poll_receipt(cx)).now_or_never().is_none());
        answering.tell(Ok(placed(3)));
        let offsets: Vec<u64> = tickets.iter_mut().map(|ticket| offset(ticket).unwrap()).collect();
        assert_eq!(offsets, [14, 15, 16]);
        let receipts = poll_fn(|cx| batch.poll_receipts(cx)).now_or_never().unwrap().unwrap();
        assert_eq!(receipts.iter().map(|receipt| receipt.offset.unwrap().get()).collect::<Vec<_>>(), [14, 15, 16]);
    }

    #[test]
    fn a_lost_request_is_lost_alone() {
        let mut answering = Answering::new();
        let mut tickets: Vec<_> = (0..5).map(|number| answering.ticket(number)).collect();
        answering.lose(1);
        answering.lose(2);
        answering.tell(Ok(placed(3)));
        let offsets: Vec<_> = tickets.iter_mut().map(|ticket| offset(ticket).map_err(|error| error.kind())).collect();
        assert_eq!(offsets, [Ok(14), Err(ErrorKind::Unknown), Err(ErrorKind::Unknown), Ok(15), Ok(16)]);
    }

    #[test]
    fn an_answer_that_is_dropped_is_unknown() {
        let answering = Answering::new();
        let mut ticket = answering.ticket(0);
        drop(answering);
        assert_eq!(offset(&mut ticket).unwrap_err().kind(), ErrorKind::Unknown);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_and_leaves_one_waker() {
        let answering = Answering::new();
        let (mut ticket, outcome) = (answering.ticket(0), Arc::clone(&answering.outcome));
        for _ in 0..3 {
            assert!(poll_fn(|cx| ticket.poll_receipt(cx)).now_or_never().is_none());
        }
        assert_eq!(outcome.wakers.lock().unwrap().len(), 1);
        let waiting = tokio::spawn(poll_fn(move |cx| ticket.poll_receipt(cx)));
        tokio::task::yield_now().await;
        answering.tell(Ok(placed(1)));
        assert_eq!(waiting.await.unwrap().unwrap().offset, Some(QueueOffset::new(14)));
    }
}

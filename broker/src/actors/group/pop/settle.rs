//! What becomes of popped messages: done, failed, or given more time.

use std::collections::BTreeSet;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{FetchLimit, FetchRequest, QueueKey, StoredRecord, TagHashes};
use tokio::sync::oneshot;

use super::super::offsets::OffsetOwner;
use super::super::{Answer, Failure, GroupActor};
use super::messages::{Refusals, Renewed};
use crate::consumer::Received;
use crate::domain::failure::FailureCause;
use crate::domain::flight::{Begun, DeliveryId, Flight, PopAnswer, PopRefused};
use crate::domain::pop_receipt::{PopReceipt, ReceiptRun};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_REMEMBERED_SETTLEMENTS, REDELIVERY_PAUSE};

impl GroupActor {
    /// Messages are done. One that was done before is so again; the answer comes when all of it is stored.
    pub(super) fn ack_popped(
        &mut self,
        receipts: &[ReceiptRun],
        refused: Refusals,
        reply: Answer<()>,
        ctx: &mut Context<Self>,
    ) {
        let (landed, refused_receipts) = self.popping.flights.ack_all(receipts, self.shared.clock.now());
        self.landed(&landed);
        // Which queues wait for their write: those of receipts that are good.
        let (mut refusals, mut queues, mut before) = (Vec::new(), BTreeSet::new(), 0);
        for run in receipts {
            let of_run = refused_receipts.iter().filter(|(place, _)| (before..before + run.len()).contains(place));
            let sealer = self.popping.flights.sealer();
            let refused = of_run.filter_map(|(place, refused)| {
                Some((*place, self.refusal(&run.receipt(place - before, sealer)?, *refused)))
            });
            let known = refusals.len();
            refusals.extend(refused);
            if refusals.len() - known < run.len() {
                queues.insert(run.queue().clone());
            }
            before += run.len();
        }
        // Whoever asked may have gone away.
        let _ = refused.send(refusals);
        self.answer_when_written(queues, reply, ctx);
    }

    /// A transaction wants to acknowledge a message: until its outcome is known the message stays in flight.
    pub(in crate::actors::group) fn begin_popped(&mut self, receipt: &PopReceipt) -> Result<DeliveryId> {
        match self.popping.flights.begin(receipt, PopAnswer::Ack, self.shared.clock.now()) {
            // Two transactions that are decided together may have the same message; only one of them gets it.
            Ok(Begun::Started(id, _) | Begun::UnderWay(id)) => Ok(id),
            Ok(Begun::Already) => {
                let text =
                    format!("receipt {receipt:?} was acknowledged before: nothing is left to do with its message");
                Err(Error::new(ErrorKind::Stale, text))
            }
            Err(refused) => Err(self.refusal(receipt, refused)),
        }
    }

    /// The outcome of that is known: the message is done, or its time runs on.
    pub(in crate::actors::group) fn end_popped(&mut self, id: DeliveryId, stored: bool) {
        if !stored {
            self.popping.flights.not_ended(id, self.shared.clock.now());
        } else if let Some(flight) = self.popping.flights.ended(id) {
            self.tell_landed(&[flight.into()]);
        }
    }

    /// Answers once what was acknowledged of all these queues is stored: some may wait for another write of theirs.
    fn answer_when_written(&mut self, queues: BTreeSet<QueueKey>, reply: Answer<()>, ctx: &mut Context<Self>) {
        let mut owners: Vec<OffsetOwner> =
            queues.into_iter().map(|queue| OffsetOwner { queue, member: None }).collect();
        let Some(last) = owners.pop() else {
            let _ = reply.send(Ok(()));
            return;
        };
        owners.retain(|owner| self.offsets.is_held(owner));
        if owners.is_empty() {
            return self.offsets.answer_when_written(&last, Some(reply));
        }
        owners.push(last);
        let mut written = Vec::with_capacity(owners.len());
        for owner in &owners {
            let (sender, receiver) = oneshot::channel();
            self.offsets.answer_when_written(owner, Some(sender));
            written.push(receiver);
        }
        let all = async move {
            for one in written {
                one.await.unwrap_or_else(|_| Err(Error::lost("the acknowledgement")))?;
            }
            Ok(())
        };
        ctx.spawn(all.into_actor(self).map(|result, _, _| drop(reply.send(result))));
    }

    pub(super) fn renew_popped(&mut self, receipt: &PopReceipt, invisible: Duration) -> Result<Renewed> {
        let now = self.shared.clock.now();
        let until = now.plus(invisible);
        let renewed = self.popping.flights.renew(receipt, until, now);
        renewed.map(|receipt| (receipt, until)).map_err(|refused| self.refusal(receipt, refused))
    }

    /// A message was not consumed, says whoever popped it.
    pub(super) fn fail_popped(
        &mut self,
        receipt: &PopReceipt,
        cause: FailureCause,
        reply: Answer<()>,
        ctx: &mut Context<Self>,
    ) {
        let answer = if matches!(cause, FailureCause::Rejected { .. }) { PopAnswer::Reject } else { PopAnswer::Nack };
        match self.popping.flights.begin(receipt, answer, self.shared.clock.now()) {
            Ok(Begun::Started(id, flight)) => {
                self.popping.answers.entry(id).or_default().push(reply);
                self.fail_flight(id, &flight, cause, ctx);
            }
            Ok(Begun::UnderWay(id)) => self.popping.answers.entry(id).or_default().push(reply),
            Ok(Begun::Already) => {
                let _ = reply.send(Ok(()));
            }
            Err(refused) => {
                let _ = reply.send(Err(self.refusal(receipt, refused)));
            }
        }
    }

    /// Nobody has settled a message within its invisible time: it comes again at once, as one that has failed.
    pub(super) fn fail_expired(&mut self, id: DeliveryId, flight: &Flight, ctx: &mut Context<Self>) {
        tracing::debug!(group = %self.group, queue = %flight.queue, offset = %flight.offset, "an invisible time is over");
        let error = Some("nobody settled it within its invisible time".to_owned());
        self.fail_flight(id, flight, FailureCause::Retry { delay: Some(Duration::ZERO), error }, ctx);
    }

    /// Stores the copy of a message and that it is done, then ends its delivery.
    fn fail_flight(&mut self, id: DeliveryId, flight: &Flight, cause: FailureCause, ctx: &mut Context<Self>) {
        let owner = OffsetOwner { queue: flight.queue.clone(), member: None };
        if self.offsets.is_done(&owner, flight.offset) {
            return self.flight_skipped(id, flight);
        }
        let stored = match self.fetch_again(flight) {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                tracing::warn!(group = %self.group, queue = %flight.queue, offset = %flight.offset,
                    "a message expired from its queue before it could come again");
                return self.flight_failed(id, Ok(()));
            }
            Err(error) => return self.flight_failed(id, Err(error)),
        };
        let received = Received::new(flight.queue.clone(), stored.clone(), self.shared.store_id, flight.redeliveries);
        let (sender, receiver) = oneshot::channel();
        let failure = Failure {
            // The message is the group's while it is in flight, whoever holds its queue.
            holder: None,
            queue: flight.queue.clone(),
            stored,
            origin_id: received.origin_id(),
            failures: received.attempts().saturating_add(1),
            cause,
            reply: sender,
        };
        self.fail(failure, ctx);
        ctx.spawn(receiver.into_actor(self).map(move |result, actor: &mut Self, ctx| {
            actor.flight_failed(id, result.unwrap_or_else(|_| Err(Error::lost("the retry"))));
            actor.write_offsets();
            actor.set_deadline(ctx);
        }));
    }

    /// An operator had the group skip a message that was in flight: nothing is stored for it, and whoever asked for
    /// that hears so.
    fn flight_skipped(&mut self, id: DeliveryId, flight: &Flight) {
        if let Some(flight) = self.popping.flights.abandon(id) {
            self.landed(&[flight.into()]);
        }
        for reply in self.popping.answers.remove(&id).unwrap_or_default() {
            let text = format!(
                "message {} of queue {} was skipped by its group: it does not come again, and is no dead letter",
                flight.offset, flight.queue
            );
            let _ = reply.send(Err(Error::new(ErrorKind::Stale, text)));
        }
    }

    fn flight_failed(&mut self, id: DeliveryId, result: Result<()>) {
        let answers = self.popping.answers.remove(&id).unwrap_or_default();
        match result {
            Ok(()) => {
                if let Some(flight) = self.popping.flights.ended(id) {
                    self.landed(&[flight.into()]);
                }
                answers.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
            }
            Err(error) => {
                self.popping.flights.not_ended(id, self.shared.clock.now().plus(REDELIVERY_PAUSE));
                tracing::warn!(group = %self.group, %error, "a failed message could not be put away; it stays in flight");
                for reply in answers {
                    let _ = reply.send(Err(Error::new(error.kind(), error.to_string())));
                }
            }
        }
    }

    /// The record of a message in flight; `None` when its queue has it no more.
    pub(super) fn fetch_again(&self, flight: &Flight) -> Result<Option<StoredRecord>> {
        let engine = self.shared.storage.engine();
        if flight.offset < engine.bounds(&flight.queue)?.start {
            return Ok(None);
        }
        let limit = FetchLimit { max_messages: 1, max_bytes: 1 };
        let until = Some(flight.offset.plus(1));
        let request = FetchRequest { queue: &flight.queue, from: flight.offset, until, limit, tags: &TagHashes::All };
        let stored = engine.fetch(request)?.records.into_iter().find(|stored| stored.offset == flight.offset);
        Ok(stored.map(|stored| match self.offsets.failed_in_place.of_message(&flight.queue, flight.offset) {
            Some(failures) => failures.marked(stored),
            None => stored,
        }))
    }

    fn refusal(&self, receipt: &PopReceipt, refused: PopRefused) -> Error {
        let (kind, why) = match refused {
            PopRefused::Forged => (
                ErrorKind::Invalid,
                format!(
                    "was never given out by group {}: pass a receipt on unchanged, and to its own group",
                    self.group
                ),
            ),
            PopRefused::Earlier => (
                ErrorKind::Stale,
                "was given out before the broker was opened: its message comes again, unless it was settled".to_owned(),
            ),
            PopRefused::Forgotten => (
                ErrorKind::Stale,
                format!(
                    "is too old: more than {MAX_REMEMBERED_SETTLEMENTS} deliveries of its group have ended since its own"
                ),
            ),
            PopRefused::Renewed => {
                (ErrorKind::Stale, "was renewed: use the receipt that the renewal returned".to_owned())
            }
            PopRefused::Expired { at } => (
                ErrorKind::Stale,
                format!("expired at {at}: its message comes again; renew in time, or pop with a longer invisible time"),
            ),
            PopRefused::Interrupted => (
                ErrorKind::Stale,
                "ended when its group was interrupted or reset: its message comes again, unless that is behind it"
                    .to_owned(),
            ),
            PopRefused::Conflict { first } => {
                let first = match first {
                    PopAnswer::Ack => "acknowledged",
                    PopAnswer::Nack => "given back to come again",
                    PopAnswer::Reject => "rejected",
                };
                (ErrorKind::Conflict, format!("was answered before: its message was {first}, and that stands"))
            }
        };
        Error::new(kind, format!("receipt {receipt:?} {why}"))
    }
}

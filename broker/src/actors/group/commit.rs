//! What transactions acknowledge: the group checks it and hands its rows over, and the committer writes them with
//! everything else of the transaction.
//!
//! From its answer until the write is applied or given up the group handles nothing else and holds those rows back: one
//! of its own that got in between would take back what the transaction acknowledges, or be taken back by it.

use std::collections::BTreeSet;
use std::ops::Range;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{GroupName, QueueKey, QueueOffset, WriteBatch};
use tokio::sync::oneshot;

use super::offsets::{Change, OffsetOwner, Offsets};
use super::{GroupActor, KIND};
use crate::actors::application::PrepareReply;
use crate::domain::flight::DeliveryId;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::pop_receipt::PopReceipt;
use crate::domain::progress::Progress;
use crate::error::{Error, ErrorKind, Result};

/// What a transaction wants of a group.
#[derive(Clone, Debug)]
pub(crate) enum Claim {
    /// Messages that a member has in its hands are done.
    Delivered { member: MemberId, queue: QueueKey, lease: Lease, ranges: Vec<Range<QueueOffset>> },
    /// A popped message is done.
    Popped { receipt: PopReceipt },
    /// Consumption goes on elsewhere, if it stands where whoever asks thinks it does.
    Position { queue: QueueKey, from: Option<QueueOffset>, to: QueueOffset },
}

/// Why a claim is not good.
#[derive(Debug)]
pub(crate) enum ClaimRefused {
    /// These messages of it were done before.
    DoneBefore(Error, Vec<Range<QueueOffset>>),
    /// Anything else.
    Refused(Error),
}

/// A group's answer: its word on each claim, and its rows, until they are applied or dropped.
#[derive(Debug)]
pub(crate) struct Prepared {
    group: GroupName,
    /// For each claim which row it changes and how.
    claims: Vec<Result<(usize, Checked)>>,
    rows: Vec<HeldRow>,
    /// Popped messages whose claims were carried out.
    popped: BTreeSet<DeliveryId>,
    release: oneshot::Sender<Carried>,
}

/// A claim that is good as far as the group's actor can tell.
#[derive(Debug)]
enum Checked {
    /// These messages are done. A popped one is in flight under this number, and stays so until the outcome is known.
    Done(Vec<Range<QueueOffset>>, Option<DeliveryId>),
    Position {
        from: Option<QueueOffset>,
        to: QueueOffset,
    },
}

/// What was carried out and stored.
#[derive(Debug, Default)]
struct Carried {
    changes: Vec<Change>,
    popped: BTreeSet<DeliveryId>,
}

/// How far the group, or a member of a broadcasting group, is in one queue.
#[derive(Clone, Debug)]
struct HeldRow {
    owner: OffsetOwner,
    progress: Progress,
    /// Whether the group has read the queue at all.
    known: bool,
    /// How many messages of the queue nobody wanted.
    unwanted: u64,
    /// What the claims that were carried out have changed.
    changes: Vec<Change>,
}

/// Tells a group that its rows are stored; dropped, that they are not.
#[derive(Debug)]
pub(crate) struct Release {
    carried: Carried,
    release: oneshot::Sender<Carried>,
}

impl Release {
    pub(crate) fn applied(self) {
        // A group that is restarted reads them from storage.
        let _ = self.release.send(self.carried);
    }
}

impl GroupActor {
    pub(super) fn prepare(&mut self, claims: Vec<Claim>, reply: PrepareReply, ctx: &mut Context<Self>) {
        let held = |claim: &Claim| self.check_claim(claim).is_ok_and(|owner| self.offsets.is_held(&owner));
        if claims.iter().any(held) {
            // Whether a failed message of the queue is done is not known yet.
            self.commit = Some((claims, reply));
            return;
        }
        // What changed before goes before.
        self.write_offsets();
        let mut rows: Vec<HeldRow> = Vec::new();
        let mut place = |owner: OffsetOwner, offsets: &Offsets| {
            rows.iter().position(|row| row.owner == owner).unwrap_or_else(|| {
                let (progress, unwanted) = offsets.known(&owner);
                let known = progress.is_some();
                let progress = progress.unwrap_or_default();
                rows.push(HeldRow { owner, progress, known, unwanted, changes: Vec::new() });
                rows.len() - 1
            })
        };
        let mut in_flight = BTreeSet::new();
        let mut answers = Vec::with_capacity(claims.len());
        for claim in claims {
            let checked = self.check_claim(&claim).and_then(|owner| {
                let checked = match claim {
                    Claim::Popped { receipt } => {
                        let id = self.begin_popped(&receipt)?;
                        in_flight.insert(id);
                        Checked::Done(vec![receipt.offset()..receipt.offset().plus(1)], Some(id))
                    }
                    Claim::Delivered { ranges, .. } => Checked::Done(ranges, None),
                    Claim::Position { from, to, .. } => Checked::Position { from, to },
                };
                Ok((place(owner, &self.offsets), checked))
            });
            answers.push(checked);
        }
        let (release, released) = oneshot::channel();
        if !rows.is_empty() {
            self.operating = true;
            let holds: Vec<_> = rows.iter().map(|row| self.offsets.hold(row.owner.clone())).collect();
            ctx.wait(released.into_actor(self).map(move |carried, actor: &mut Self, ctx| {
                actor.concluded(&holds, &in_flight, carried.unwrap_or_default(), ctx);
            }));
        }
        let (group, popped) = (self.group.clone(), BTreeSet::new());
        reply.send(Ok(Prepared { group, claims: answers, rows, popped, release }));
    }

    /// Prepares what had to wait for the outcome of a failure.
    pub(super) fn prepare_waiting(&mut self, ctx: &mut Context<Self>) {
        if let Some((claims, reply)) = self.commit.take() {
            self.prepare(claims, reply, ctx);
        }
    }

    /// What was carried out is stored; or there is nothing, because it is not.
    fn concluded(
        &mut self,
        holds: &[u64],
        in_flight: &BTreeSet<DeliveryId>,
        carried: Carried,
        ctx: &mut Context<Self>,
    ) {
        self.operating = false;
        // They were put off behind a failure before the transaction, and now it is their turn.
        self.repeat_failures(ctx);
        self.shared.probe(KIND, &self.name, "Concluded");
        self.offsets.conclude(holds, carried.changes);
        in_flight.iter().for_each(|id| self.end_popped(*id, carried.popped.contains(id)));
        self.next_withdrawal(ctx);
        self.set_deadline(ctx);
    }

    fn check_claim(&self, claim: &Claim) -> Result<OffsetOwner> {
        match claim {
            Claim::Delivered { member, queue, lease, .. } => {
                self.check_lease(member, queue, *lease)?;
                Ok(OffsetOwner { queue: queue.clone(), member: self.owner(member) })
            }
            // Whether its receipt is good is looked at when nothing of its queue is on its way.
            Claim::Popped { receipt } => Ok(OffsetOwner { queue: receipt.queue().clone(), member: None }),
            Claim::Position { queue, .. } => {
                if let Some(holding) = self.membership.holding(queue) {
                    let text = format!("member {} reads queue {queue}: let it leave before a commit", holding.member);
                    return Err(Error::new(ErrorKind::Conflict, text));
                }
                Ok(OffsetOwner { queue: queue.clone(), member: None })
            }
        }
    }
}

impl Prepared {
    /// Whether a claim is good, with those carried out so far.
    pub(crate) fn check(&self, claim: usize) -> std::result::Result<(), ClaimRefused> {
        let (row, claim) = match &self.claims[claim] {
            Ok((row, claim)) => (&self.rows[*row], claim),
            Err(error) => return Err(ClaimRefused::Refused(Error::new(error.kind(), error.to_string()))),
        };
        match claim {
            Checked::Done(ranges, _) => row.check(ranges),
            Checked::Position { from, .. } => {
                let queue = &row.owner.queue;
                let now = row.known.then(|| row.progress.committed());
                if now == *from {
                    return Ok(());
                }
                let place = |at: &Option<QueueOffset>| at.map_or_else(|| "nowhere".to_owned(), |at| at.to_string());
                let text = format!(
                    "queue {queue} stands at {}, not at {}: somebody else moves its offsets; assign it again",
                    place(&now),
                    place(from)
                );
                Err(ClaimRefused::Refused(Error::new(ErrorKind::Conflict, text)))
            }
        }
    }

    /// Carries out a claim that was found good.
    pub(crate) fn carry_out(&mut self, claim: usize) {
        let Ok((row, claim)) = &self.claims[claim] else { return };
        let row = &mut self.rows[*row];
        match claim {
            Checked::Done(ranges, in_flight) => {
                ranges.iter().for_each(|range| row.done(range));
                self.popped.extend(in_flight);
            }
            Checked::Position { to, .. } => {
                row.progress.reset(*to);
                row.changes.push(Change::Reset(row.owner.clone(), *to));
            }
        }
        row.known = true;
    }

    /// Adds the changed rows to a batch; what to tell the group once it is applied.
    pub(crate) fn finish(self, batch: &mut WriteBatch) -> Release {
        let mut changes = Vec::new();
        for row in self.rows.into_iter().filter(|row| !row.changes.is_empty()) {
            Offsets::put_of(&self.group, &row.owner, &row.progress, row.unwanted, batch);
            changes.extend(row.changes);
        }
        Release { carried: Carried { changes, popped: self.popped }, release: self.release }
    }
}

impl HeldRow {
    /// Whether these messages can be declared done.
    fn check(&self, ranges: &[Range<QueueOffset>]) -> std::result::Result<(), ClaimRefused> {
        let queue = &self.owner.queue;
        if let Some(beyond) = ranges.iter().find(|range| !self.progress.accepts(range)) {
            let text = format!("offset {} of queue {queue} was never delivered", beyond.start);
            return Err(ClaimRefused::Refused(Error::new(ErrorKind::OutOfRange, text)));
        }
        let offsets = ranges.iter().flat_map(|range| range.start.get()..range.end.get()).map(QueueOffset::new);
        let done: Vec<_> =
            offsets.filter(|offset| self.progress.is_acked(*offset)).map(|done| done..done.plus(1)).collect();
        let Some(first) = done.first() else { return Ok(()) };
        let text = format!(
            "the message at offset {} of queue {queue} was acknowledged before: nothing is left to do with it",
            first.start
        );
        Err(ClaimRefused::DoneBefore(Error::new(ErrorKind::Stale, text), done))
    }

    /// Declares messages done that were found good.
    fn done(&mut self, range: &Range<QueueOffset>) {
        // Checked before.
        let _ = self.progress.ack_range(range.clone());
        self.changes.push(Change::Done(self.owner.clone(), range.clone()));
    }
}

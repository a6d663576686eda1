//! What transactions acknowledge: the group checks it and hands its rows over, and the committer writes them with
//! everything else of the transaction.
//!
//! From its answer until the write is applied or given up the group handles nothing else and holds those rows back: one
//! of its own that got in between would take back what the transaction acknowledges, or be taken back by it.

use std::ops::Range;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{GroupName, QueueKey, QueueOffset, WriteBatch};
use tokio::sync::oneshot;

use super::offsets::{Change, OffsetOwner, Offsets};
use super::{GroupActor, KIND};
use crate::actors::application::PrepareReply;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::progress::Progress;
use crate::error::{Error, ErrorKind, Result};

/// What a transaction wants of a group.
#[derive(Clone, Debug)]
pub(crate) enum Claim {
    /// Messages that a member has in its hands are done.
    Delivered { member: MemberId, queue: QueueKey, lease: Lease, ranges: Vec<Range<QueueOffset>> },
    /// Consumption goes on elsewhere, if it stands where whoever asks thinks it does.
    Position { queue: QueueKey, from: Option<QueueOffset>, to: QueueOffset },
}

/// Why a claim is not good.
#[derive(Debug)]
pub(crate) enum ClaimRefused {
    /// The message was done before.
    DoneBefore(Error),
    /// Anything else.
    Refused(Error),
}

/// A group's answer: its word on each claim, and its rows, until they are applied or dropped.
#[derive(Debug)]
pub(crate) struct Prepared {
    group: GroupName,
    /// For each claim which row it changes and how.
    claims: Vec<Result<(usize, Claim)>>,
    rows: Vec<HeldRow>,
    release: oneshot::Sender<Vec<Change>>,
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
    changes: Vec<Change>,
    release: oneshot::Sender<Vec<Change>>,
}

impl Release {
    pub(crate) fn applied(self) {
        // A group that is restarted reads them from storage.
        let _ = self.release.send(self.changes);
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
        let claims: Vec<_> = claims
            .into_iter()
            .map(|claim| self.check_claim(&claim).map(|owner| (place(owner, &self.offsets), claim)))
            .collect();
        let (release, released) = oneshot::channel();
        if !rows.is_empty() {
            self.operating = true;
            let holds: Vec<_> = rows.iter().map(|row| self.offsets.hold(row.owner.clone())).collect();
            ctx.wait(released.into_actor(self).map(move |changes, actor: &mut Self, ctx| {
                actor.concluded(&holds, changes.unwrap_or_default(), ctx);
            }));
        }
        reply.send(Ok(Prepared { group: self.group.clone(), claims, rows, release }));
    }

    /// Prepares what had to wait for the outcome of a failure.
    pub(super) fn prepare_waiting(&mut self, ctx: &mut Context<Self>) {
        if let Some((claims, reply)) = self.commit.take() {
            self.prepare(claims, reply, ctx);
        }
    }

    /// The changes are stored; or there are none, because they are not.
    fn concluded(&mut self, holds: &[u64], changes: Vec<Change>, ctx: &mut Context<Self>) {
        self.operating = false;
        // They were put off behind a failure before the transaction, and now it is their turn.
        self.repeat_failures(ctx);
        self.shared.probe(KIND, &self.name, "Concluded");
        self.offsets.conclude(holds, changes);
        self.next_withdrawal(ctx);
    }

    fn check_claim(&self, claim: &Claim) -> Result<OffsetOwner> {
        match claim {
            Claim::Delivered { member, queue, lease, .. } => {
                self.check_lease(member, queue, *lease)?;
                Ok(OffsetOwner { queue: queue.clone(), member: self.owner(member) })
            }
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
            Claim::Delivered { queue, ranges, .. } => {
                for range in ranges {
                    if row.progress.clone().ack_range(range.clone()).is_err() {
                        let text = format!("offset {} of queue {queue} was never delivered", range.start);
                        return Err(ClaimRefused::Refused(Error::new(ErrorKind::OutOfRange, text)));
                    }
                    let mut offset = range.start;
                    while offset < range.end {
                        if row.progress.is_acked(offset) {
                            let text =
                                format!("the message at offset {offset} of queue {queue} was acknowledged before");
                            return Err(ClaimRefused::DoneBefore(Error::new(ErrorKind::Stale, text)));
                        }
                        offset = offset.plus(1);
                    }
                }
                Ok(())
            }
            Claim::Position { queue, from, .. } => {
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
            Claim::Delivered { ranges, .. } => {
                for range in ranges {
                    // Checked before.
                    let _ = row.progress.ack_range(range.clone());
                    row.changes.push(Change::Done(row.owner.clone(), range.clone()));
                }
            }
            Claim::Position { to, .. } => {
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
        Release { changes, release: self.release }
    }
}

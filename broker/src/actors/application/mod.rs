//! The committer: one transaction over messages, acknowledgements and the application's tables after the other.
//!
//! A transaction runs on its caller's thread against the latest rows and comes here with what it saw and what it wants.
//! Those that wait make a *round*, which is one write. First each group whose acknowledgements it has is asked: it
//! checks them, and handles nothing else until the write is applied, so that no row of its own gets in between. Then
//! each transaction is held to what it saw, over the stored rows and the writes of those before it in the round; one
//! whose sight has changed runs again. The next round begins when the write of this one is applied, and does not wait
//! for it to become durable. Supervised like all actors; it keeps nothing that is not in a round.

mod handle;
mod messages;
mod rooms;
mod round;
mod rows;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Supervised, WrapFuture};

pub(crate) use handle::{ApplicationHandle, PrepareReply};
pub(crate) use messages::{ApplicationCommand, Outcome, Send, Submission};
pub(crate) use rows::StoredRows;

use super::mailbox::{Drain, Inbox, go_on};
use crate::limits::{MAX_ROUND_BYTES, MAX_ROUND_OPERATIONS, MAX_ROUND_TRANSACTIONS};
use crate::shared::Shared;
use rooms::{Demands, Rooms};
use round::Preparing;

pub(crate) const KIND: &str = "application";

pub(crate) struct ApplicationActor {
    shared: Arc<Shared>,
    /// Its own handle, through which groups and writes report back; set when it starts.
    me: Option<ApplicationHandle>,
    inbox: Arc<Inbox<ApplicationCommand>>,
    /// Bounded by the permits that they hold.
    waiting: VecDeque<Submission>,
    stage: Stage,
    /// The number of the last round; notices of earlier ones come too late.
    round: u64,
}

/// How far the round at hand is.
enum Stage {
    /// There is none.
    Idle,
    /// Room is being found in queues of limited length.
    FindingRoom(Vec<Submission>),
    /// Groups have been asked.
    Preparing(Preparing),
    /// Its write is on its way.
    Writing,
}

impl Actor for ApplicationActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.me = Some(ApplicationHandle::new(Arc::clone(&self.inbox), ctx.address(), self.shared.state.clone()));
    }
}

impl Supervised for ApplicationActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        // What was not handed to storage begins anew; dropping the answers of the groups lets them go on.
        let submissions = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Preparing(preparing) => preparing.into_submissions(),
            Stage::FindingRoom(submissions) => submissions,
            Stage::Idle | Stage::Writing => Vec::new(),
        };
        submissions.into_iter().rev().for_each(|one| self.waiting.push_front(one));
        // What was handed over has to land first: the next round reads what it wrote.
        let storage = self.shared.storage.clone();
        ctx.wait(async move { storage.landed().await }.into_actor(self).map(|(), actor: &mut Self, ctx| {
            actor.begin_round(ctx);
            if actor.inbox.wake_after_restart() {
                ctx.notify(Drain);
            }
        }));
    }
}

impl Handler<Drain> for ApplicationActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        for _ in 0..MAX_ROUND_TRANSACTIONS {
            let Some(command) = self.inbox.pop() else { break };
            self.shared.probe(KIND, "committer", command.name());
            self.handle_command(command);
        }
        self.begin_round(ctx);
        if !self.inbox.rest() {
            go_on(self, ctx);
        }
    }
}

impl ApplicationActor {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Arc<Inbox<ApplicationCommand>>) -> Self {
        Self { shared, me: None, inbox, waiting: VecDeque::new(), stage: Stage::Idle, round: 0 }
    }

    fn handle_command(&mut self, command: ApplicationCommand) {
        match command {
            ApplicationCommand::Submit(submission) => self.waiting.push_back(*submission),
            ApplicationCommand::Prepared { round, part, answer } => self.prepared(round, part, answer),
            ApplicationCommand::Landed { round } if round == self.round => self.stage = Stage::Idle,
            ApplicationCommand::Landed { .. } => {}
        }
    }

    /// Begins the next round, if there is something to do and nothing under way.
    fn begin_round(&mut self, ctx: &mut Context<Self>) {
        if self.waiting.is_empty() || !matches!(self.stage, Stage::Idle) {
            return;
        }
        self.round += 1;
        let (submissions, demands) = self.take_round();
        if demands.is_empty() {
            return self.prepare_round(submissions, Rooms::default());
        }
        self.stage = Stage::FindingRoom(submissions);
        let (round, found) = (self.round, demands.find(Arc::clone(&self.shared)));
        ctx.wait(found.into_actor(self).map(move |rooms, actor: &mut Self, _| {
            if let Stage::FindingRoom(submissions) = &mut actor.stage
                && actor.round == round
            {
                let submissions = std::mem::take(submissions);
                actor.prepare_round(submissions, rooms);
            }
        }));
    }

    /// Asks the groups whose acknowledgements a round has.
    fn prepare_round(&mut self, submissions: Vec<Submission>, rooms: Rooms) {
        let Some(me) = self.me.clone() else { return };
        let (preparing, requests) = Preparing::new(submissions, rooms);
        self.stage = Stage::Preparing(preparing);
        if requests.is_empty() {
            return self.decide();
        }
        for (part, (group, claims)) in requests.into_iter().enumerate() {
            group.prepare(claims, PrepareReply::new(me.clone(), self.round, part));
        }
    }

    /// Those that waited longest, as many as make one write and as limited queues can hold; with what they send to such.
    fn take_round(&mut self) -> (Vec<Submission>, Demands) {
        let (mut operations, mut bytes, mut count, mut demands) = (0, 0, 0, Demands::default());
        for submission in self.waiting.iter().take(MAX_ROUND_TRANSACTIONS) {
            operations += submission.operations;
            bytes += submission.bytes;
            let is_full = operations > MAX_ROUND_OPERATIONS || bytes > MAX_ROUND_BYTES;
            if count > 0 && is_full {
                break;
            }
            // One that fits into no queue comes first once, and is refused.
            if !demands.add(&self.shared, submission) && count > 0 {
                break;
            }
            count += 1;
        }
        (self.waiting.drain(..count).collect(), demands)
    }
}

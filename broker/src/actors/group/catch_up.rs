//! What a group makes good after a panic of its actor.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::{AsyncContext, Context};
use cuemq_storage_api::{QueueKey, TopicName};

use super::offsets::OffsetOwner;
use super::{GroupActor, GroupRequest};
use crate::consumer::session::Session;
use crate::domain::member::MemberId;
use crate::error::Result;
use crate::tables::group::{self, GroupRow};

impl GroupActor {
    /// Makes good what was lost with a request that panicked and that nobody repeats: a departure, a release, a
    /// grant, an acknowledgement, a change of the settings, the news of a topic or of the broker's end.
    pub(super) fn catch_up(&mut self, ctx: &mut Context<Self>) -> Result<()> {
        if let Some(row) = self.shared.storage.engine().get(&group::TABLE, &group::key(&self.group))? {
            let row = GroupRow::decode(&row)?;
            self.configure(row.strategy, row.retry, row.paused, ctx);
        }
        let mut again: Vec<GroupRequest> = self.popping.abandoned().into_iter().map(GroupRequest::Pop).collect();
        let sessions: Vec<Arc<Session>> = self.sessions.values().map(|joined| Arc::clone(&joined.session)).collect();
        for session in sessions {
            if let Err(ended) = self.shared.check_running() {
                session.close(&ended.to_string());
            }
            if session.is_closed() {
                again.push(GroupRequest::Leave { session });
                continue;
            }
            self.withdraw_what_is_kept(&session, ctx);
            for (queue, lease, done) in session.holdings() {
                if self.check_lease(&session.member, &queue, lease).is_ok() {
                    let owner = OffsetOwner { queue, member: self.owner(&session.member) };
                    self.offsets.catch_up(&self.shared, &owner, &done)?;
                }
            }
        }
        let held = |member: &MemberId, queue: &QueueKey, lease| {
            self.sessions.get(member).is_some_and(|joined| joined.session.holds(queue, lease))
        };
        let holdings = self.membership.holdings();
        let lost = holdings.filter(|(queue, holding)| !held(&holding.member, queue, holding.lease));
        again.extend(lost.map(|(queue, held)| GroupRequest::Released { queue: queue.clone(), lease: held.lease }));
        // Behind the acknowledgements that came before a departure or a release and may have been late.
        for request in again {
            let _ = self.inbox.push(request, &ctx.address());
        }
        let topics: BTreeSet<TopicName> = self.sessions.values().flat_map(|joined| joined.topics.clone()).collect();
        topics.iter().for_each(|topic| self.topic_changed(topic, ctx));
        Ok(())
    }
}

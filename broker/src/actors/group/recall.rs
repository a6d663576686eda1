//! What becomes of the messages that a member had of others' queues when it leaves.

use actix::{AsyncContext, Context};

use super::offsets::OffsetOwner;
use super::{GroupActor, GroupRequest};
use crate::consumer::session::Recalled;
use crate::domain::member::MemberId;

impl GroupActor {
    /// Has the others take back what they had for a member that leaves. What nobody wants any more is done.
    pub(super) fn recall_from(&mut self, member: &MemberId, ctx: &Context<Self>) {
        for Recalled { key, lease, unwanted, free } in self.exchange.leave(member) {
            // A holder that was cut off meanwhile has nothing to say about the queue any more.
            if self.membership.check(&key, lease).is_err() {
                continue;
            }
            if free {
                let _ = self.inbox.push(GroupRequest::Released { queue: key.clone(), lease }, &ctx.address());
            }
            let owner = OffsetOwner { queue: key, member: None };
            if let Err(error) = self.offsets.pass_over(&self.shared, &owner, unwanted) {
                tracing::error!(group = %self.group, queue = %owner.queue, %error, "what nobody wants stays open");
            }
        }
    }
}

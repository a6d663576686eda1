//! What a group looks like now.

use super::{GroupActor, GroupDescription, Joined, MemberDescription};
use crate::error::Result;

impl GroupActor {
    pub(super) fn describe(&self) -> Result<GroupDescription> {
        let describe = |joined: &Joined| MemberDescription {
            member: joined.session.member.to_string(),
            queues: joined.session.queues(),
        };
        let mut members: Vec<_> = self.sessions.values().map(describe).collect();
        members.sort_by(|a, b| a.member.cmp(&b.member));
        let (queues, in_flight) = (self.offsets.lags(&self.shared)?, self.popping.in_flight());
        let (paused, expired) = (self.paused, self.withdrawals.dropped);
        Ok(GroupDescription { members, queues, paused, in_flight, expired })
    }
}

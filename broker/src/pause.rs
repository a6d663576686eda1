//! Pausing the consumption of a group.

use cuemq_storage_api::GroupName;

use crate::actors::group::GroupRequest;
use crate::actors::root::EnsureGroup;
use crate::broker::Broker;
use crate::error::Result;

impl Broker {
    /// Has the members of a group get nothing new until [`resume_group`](Broker::resume_group), also after a restart.
    /// Once this resolves nothing is handed out any more; what is out can be settled, and what fails is kept for later.
    ///
    /// # Errors
    /// `UnknownGroup`; `NotStored` or `Unknown` when the write failed.
    pub async fn pause_group(&self, group: &str) -> Result<()> {
        self.set_paused(group, true).await
    }

    /// Has the members of a group go on where they were paused.
    ///
    /// # Errors
    /// As [`pause_group`](Broker::pause_group).
    pub async fn resume_group(&self, group: &str) -> Result<()> {
        self.set_paused(group, false).await
    }

    async fn set_paused(&self, group: &str, paused: bool) -> Result<()> {
        self.group_handle(group)?;
        let name = GroupName::new(group)?;
        let ensure = EnsureGroup { name, broadcasting: false, strategy: None, retry: None, paused: Some(paused) };
        let handle = self.keeper().group(ensure).await?;
        // Behind the change in the group's inbox: every member knows of it then.
        handle.ask(|reply| GroupRequest::Describe { reply }).await.map(|_| ())
    }
}

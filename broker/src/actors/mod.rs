//! The actors: each receives typed messages, asks a pure machine, and performs what it decides.
//!
//! ```text
//! root ─┬─ topic ──── queue, queue, ...      one per topic and queue
//!       ├─ group, group, ...                 one per consumer group
//!       ├─ delay scheduler
//!       ├─ transaction checker
//!       └─ application                       commits transactions over messages and the application's tables
//! ```

mod alarm;
pub(crate) mod application;
pub(crate) mod delay;
pub(crate) mod expiry;
pub(crate) mod gateway;
pub(crate) mod group;
mod lingering;
pub(crate) mod mailbox;
pub(crate) mod queue;
pub(crate) mod queue_change;
pub(crate) mod room;
pub(crate) mod root;
pub(crate) mod supervisor;
pub(crate) mod topic;
pub(crate) mod transaction;

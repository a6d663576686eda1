//! The rules of the broker as plain machines: no await, no lock, no log, no clock, no storage.
//!
//! A machine is told what happened and at which time; it answers with values or with effects that somebody else
//! performs. So every rule is tested without a runtime, by comparing values.

pub(crate) mod application;
pub(crate) mod assignment;
pub(crate) mod audit;
pub(crate) mod delay;
pub(crate) mod diverted_copy;
pub(crate) mod expiry;
pub(crate) mod failed_copy;
pub(crate) mod failure;
pub(crate) mod fence;
pub(crate) mod filter;
pub(crate) mod flight;
pub(crate) mod in_place;
pub(crate) mod key_order;
pub(crate) mod length;
pub(crate) mod letters;
pub(crate) mod member;
pub(crate) mod membership;
pub(crate) mod offset_plan;
pub(crate) mod order;
pub(crate) mod pace;
mod parcel;
pub(crate) mod parking;
pub(crate) mod pop;
pub(crate) mod pop_receipt;
pub(crate) mod progress;
pub(crate) mod recurrence;
pub(crate) mod restart;
pub(crate) mod retry;
pub(crate) mod routing;
pub(crate) mod slew;
pub(crate) mod subscriptions;
pub(crate) mod topic_rules;
pub(crate) mod transaction;

//! The durable tables: one file per table says what a row means, byte by byte. No rule and no I/O is here.

pub(crate) mod application;
pub(crate) mod audit;
mod codec;
pub(crate) mod consumer_offset;
pub(crate) mod counter;
pub(crate) mod dead_letter;
pub(crate) mod delay;
pub(crate) mod expiry;
pub(crate) mod group;
pub(crate) mod half_message;
pub(crate) mod in_place;
mod keys;
mod place;
pub(crate) mod queue_change;
pub(crate) mod recurrence;
pub(crate) mod topic;
pub(crate) mod transaction_outcome;
pub(crate) mod withdrawn;

pub(crate) use codec::DecodeError;

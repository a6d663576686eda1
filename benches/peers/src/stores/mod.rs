//! One file per contender.

pub(crate) mod broker;
pub(crate) mod commit_log;
pub(crate) mod mmap;
pub(crate) mod rows;
pub(crate) mod sqlite;
pub(crate) mod tree;
pub(crate) mod walrus;

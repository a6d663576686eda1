//! Records on their way to the program, and what it takes to settle them.

use std::sync::Arc;

use cuemq_storage_api::{QueueKey, StoredRecord};

use super::Session;
use crate::domain::membership::Lease;

/// Records of one queue given out, in its order.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) key: QueueKey,
    pub(crate) lease: Lease,
    pub(crate) records: Records,
    pub(crate) redeliveries: u32,
    /// Who holds the queue, if it is another member.
    pub(crate) holder: Option<Arc<Session>>,
}

/// One record or several: a single one needs no list of its own.
#[derive(Debug)]
pub(crate) enum Records {
    One(StoredRecord),
    Many(Vec<StoredRecord>),
}

/// What it takes to settle records that were given out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) key: &'a QueueKey,
    pub(crate) lease: Lease,
    pub(crate) records: usize,
    pub(crate) bytes: usize,
    /// Who holds the queue, if it is another member.
    pub(crate) holder: Option<&'a Arc<Session>>,
}

impl Records {
    pub(crate) fn as_slice(&self) -> &[StoredRecord] {
        match self {
            Self::One(stored) => std::slice::from_ref(stored),
            Self::Many(stored) => stored,
        }
    }

    pub(crate) fn into_vec(self) -> Vec<StoredRecord> {
        match self {
            Self::One(stored) => vec![stored],
            Self::Many(stored) => stored,
        }
    }
}

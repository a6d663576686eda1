//! How much each target measures.

use crate::profile::Profile;

const MIB: u64 = 1 << 20;

/// How much each target measures in one profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scale {
    /// Pairs of limit and path per row; the issue asks for at least five.
    pub pairs: usize,
    /// Body sizes in bytes.
    pub body_bytes: Vec<usize>,
    /// Bytes of log in one pass of raw appends: beyond any window that an engine prepares ahead.
    pub append_bytes: u64,
    /// Messages per batch of theirs; the target speaks of 64, others show the curve.
    pub append_batches: Vec<usize>,
    /// Body bytes in one pass through the actors.
    pub send_bytes: u64,
    /// Messages in one pass of the latency targets.
    pub latency_messages: u64,
    /// Messages that each durable writer sends in one pass; a lone writer sends more.
    pub durable_rounds: u64,
    /// Messages per sync of the bare log beside them.
    pub bare_messages: Vec<usize>,
    /// Whether writers go on, too, until they have used up whatever the log has ready.
    pub sustained: bool,
    /// Body bytes of a store that is read.
    pub read_bytes: u64,
    /// Body bytes in one pass of the LSM engine and its bare counterpart.
    pub lsm_bytes: u64,
    /// Messages per batch of theirs.
    pub lsm_batches: Vec<usize>,
    /// Messages in a store that is opened again.
    pub opened_messages: u64,
    /// Messages in a store that is opened after it was not closed: each opening needs a copy of its own.
    pub dirty_messages: u64,
    /// Numbers of queues.
    pub queues: Vec<u32>,
    /// Messages in one pass over those queues.
    pub queue_messages: u64,
    /// Such passes before the first that counts: as many as it takes to fill the memory that entries may take, because
    /// what memory takes up at first is no rate that lasts.
    pub queue_warm_passes: usize,
    /// Numbers of consumer groups.
    pub groups: Vec<usize>,
    /// Messages that lie in a queue while more are appended.
    pub backlogs: Vec<u64>,
    /// Idle topics whose memory is measured, and half as many idle groups.
    pub topics: u32,
    /// Messages in flight by pop whose memory is measured.
    pub popped: u64,
    /// Rounds of SYNC and PING.
    pub limit_rounds: usize,
    /// Whether a process is killed with SIGKILL and its store opened.
    pub kills: bool,
    /// Whether what is missing is built, such as an example whose size is measured.
    pub builds: bool,
}

impl Scale {
    /// The scale of a profile.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        match profile.name {
            "tiny" => Self::tiny(),
            "full" => Self::full(),
            _ => Self::quick(),
        }
    }

    fn quick() -> Self {
        Self {
            pairs: 5,
            body_bytes: vec![256, 1024],
            append_bytes: 128 * MIB,
            append_batches: vec![64],
            send_bytes: 24 * MIB,
            latency_messages: 2_000,
            durable_rounds: 24,
            bare_messages: vec![1, 128, 512, 1024],
            sustained: false,
            read_bytes: 48 * MIB,
            lsm_bytes: 8 * MIB,
            lsm_batches: vec![64],
            opened_messages: 1_000_000,
            dirty_messages: 1_000_000,
            queues: vec![1, 10_000],
            queue_messages: 256_000,
            queue_warm_passes: 9,
            groups: vec![1, 100],
            backlogs: vec![10_000, 1_000_000],
            topics: 400,
            popped: 20_000,
            limit_rounds: 100,
            kills: false,
            builds: true,
        }
    }

    fn full() -> Self {
        Self {
            pairs: 9,
            append_bytes: 512 * MIB,
            append_batches: vec![1, 64, 256],
            send_bytes: 256 * MIB,
            latency_messages: 20_000,
            durable_rounds: 300,
            // A lone writer's; those of 64 writers; those of 256 and of 1,024 in two parties and in one; 1,024 are as many
            // as of 16 with batches of 64.
            bare_messages: vec![1, 64, 128, 256, 512, 1024],
            sustained: true,
            lsm_bytes: 128 * MIB,
            lsm_batches: vec![1, 64, 256],
            opened_messages: 10_000_000,
            dirty_messages: 2_500_000,
            queues: vec![1, 100, 10_000, 100_000],
            queue_messages: 3_200_000,
            queue_warm_passes: 1,
            groups: vec![1, 100, 1000],
            backlogs: vec![10_000, 100_000, 1_000_000, 10_000_000],
            topics: 6_000,
            popped: 60_000,
            limit_rounds: 500,
            kills: true,
            ..Self::quick()
        }
    }

    fn tiny() -> Self {
        Self {
            pairs: 1,
            body_bytes: vec![256],
            append_bytes: MIB,
            append_batches: vec![1, 64, 256],
            send_bytes: MIB / 4,
            latency_messages: 50,
            durable_rounds: 3,
            bare_messages: vec![1, 64],
            sustained: true,
            read_bytes: MIB,
            lsm_bytes: MIB / 4,
            lsm_batches: vec![64],
            opened_messages: 2_000,
            dirty_messages: 500,
            queues: vec![1, 100],
            queue_messages: 6_400,
            queue_warm_passes: 1,
            groups: vec![1, 3],
            backlogs: vec![1_000],
            topics: 50,
            popped: 100,
            limit_rounds: 20,
            kills: true,
            builds: false,
        }
    }

    /// Messages of a size whose bodies have so many bytes, in whole batches.
    #[must_use]
    pub fn messages(bytes: u64, body_bytes: usize, batch: usize) -> u64 {
        (bytes / body_bytes as u64).next_multiple_of(batch as u64)
    }
}

//! LIMIT: one thread that encodes records in place into warm memory. No lock, no clock, no system call.

use std::hint::black_box;

use bytes::Bytes;

use crate::stopwatch::Stopwatch;
use crate::workload::{BODIES, Bodies};

/// As large as the commit log's own record header.
const HEADER_BYTES: usize = 64;
/// RocketMQ's consume-queue entry: position, size, tag hash.
pub(super) const ENTRY_BYTES: usize = 20;
/// Larger than the caches of most cores, as a log is.
const LOG_BYTES: usize = 64 << 20;
/// Passes whose median counts.
const PASSES: usize = 3;

/// Bodies, and the warm memory that they are encoded into.
#[derive(Debug)]
pub struct Encoder {
    bodies: Vec<Bytes>,
    record_bytes: usize,
    log: Vec<u8>,
    entries: Vec<u8>,
}

impl Encoder {
    /// Makes bodies of this size and writes all of the memory once, so that no page is touched for the first time
    /// while it is measured.
    #[must_use]
    pub fn new(body_bytes: usize) -> Self {
        let bodies = Bodies::new(body_bytes);
        let record_bytes = record_bytes(body_bytes);
        let records = LOG_BYTES / record_bytes;
        let mut encoder = Self {
            bodies: (0..BODIES).map(|number| bodies.body(number)).collect(),
            record_bytes,
            log: vec![1u8; records * record_bytes],
            entries: vec![1u8; records * ENTRY_BYTES],
        };
        encoder.pass();
        encoder
    }

    /// Bytes of each body.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.bodies[0].len()
    }

    /// LIMIT: messages per second that one thread encodes, each with header, body, a CRC-32C over both, and an entry
    /// that points to it; the median of a few passes over the memory.
    pub fn rate(&mut self) -> f64 {
        let mut rates = [0.0; PASSES];
        rates.fill_with(|| self.pass());
        rates.sort_unstable_by(f64::total_cmp);
        rates[PASSES / 2]
    }

    fn pass(&mut self) -> f64 {
        let watch = Stopwatch::start();
        let places = self.log.chunks_exact_mut(self.record_bytes).zip(self.entries.chunks_exact_mut(ENTRY_BYTES));
        for ((place, body), number) in places.zip(self.bodies.iter().cycle()).zip(0u64..) {
            let (record, entry) = place;
            encode(record, entry, body, number);
        }
        black_box((&mut self.log, &mut self.entries));
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand records")]
        let records = (self.entries.len() / ENTRY_BYTES) as f64;
        records / watch.elapsed().as_secs_f64()
    }
}

/// Bytes that a message takes in a log.
pub(super) fn record_bytes(body_bytes: usize) -> usize {
    (HEADER_BYTES + body_bytes).next_multiple_of(8)
}

/// Whether a record is this message.
pub(super) fn is_whole(record: &[u8], body: &[u8], number: u64) -> bool {
    let crc = crc32c::crc32c(&record[4..HEADER_BYTES + body.len()]);
    record[..4] == crc.to_le_bytes()
        && record[20..28] == number.to_le_bytes()
        && record[HEADER_BYTES..HEADER_BYTES + body.len()] == *body
}

pub(super) fn encode(record: &mut [u8], entry: &mut [u8], body: &[u8], number: u64) {
    let position = number * record.len() as u64;
    record[4..12].copy_from_slice(&(body.len() as u64).to_le_bytes());
    record[12..20].copy_from_slice(&position.to_le_bytes());
    record[20..28].copy_from_slice(&number.to_le_bytes());
    record[28..HEADER_BYTES].fill(0);
    record[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
    let crc = crc32c::crc32c(&record[4..HEADER_BYTES + body.len()]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    entry[..8].copy_from_slice(&position.to_be_bytes());
    entry[8..12].copy_from_slice(&crc.to_be_bytes());
    entry[12..].copy_from_slice(&0i64.to_be_bytes());
}

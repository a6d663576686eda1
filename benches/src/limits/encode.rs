//! LIMIT: one thread that encodes records in place into warm memory. No lock, no clock, no system call.

use std::hint::black_box;

use crate::stopwatch::Stopwatch;
use crate::workload::{BODIES, Bodies};

/// As large as the commit log's own record header.
const HEADER_BYTES: usize = 64;
/// RocketMQ's consume-queue entry: position, size, tag hash.
const ENTRY_BYTES: usize = 20;
/// Larger than the caches of most cores, as a log is.
const LOG_BYTES: usize = 64 << 20;
/// The first pass warms the memory, of the others the median counts.
const PASSES: usize = 8;

/// Messages per second that one thread can encode: header, body, a CRC-32C over both, and an entry that points to it.
#[must_use]
pub fn encode_rate(body_bytes: usize) -> f64 {
    let bodies = Bodies::new(body_bytes);
    let bodies: Vec<_> = (0..BODIES).map(|number| bodies.body(number)).collect();
    let record_bytes = (HEADER_BYTES + body_bytes).next_multiple_of(8);
    let records = LOG_BYTES / record_bytes;
    // Written once, so that no page is touched for the first time while it is measured.
    let mut log = vec![1u8; records * record_bytes];
    let mut entries = vec![1u8; records * ENTRY_BYTES];
    let mut rates = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        let watch = Stopwatch::start();
        let places = log.chunks_exact_mut(record_bytes).zip(entries.chunks_exact_mut(ENTRY_BYTES));
        for ((place, body), number) in places.zip(bodies.iter().cycle()).zip(0u64..) {
            let (record, entry) = place;
            encode(record, entry, body, number);
        }
        black_box((&mut log, &mut entries));
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand records")]
        rates.push(records as f64 / watch.elapsed().as_secs_f64());
    }
    rates.remove(0);
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn encode(record: &mut [u8], entry: &mut [u8], body: &[u8], number: u64) {
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

//! Every key and value that the engine writes, in prose; one file per kind does the encoding.
//!
//! Keys sort as bytes, so their numbers are big endian; values are little endian. Every value begins with a CRC-32C
//! over its key and the rest of itself, so that a value that was damaged, or is found under another key, is noticed.
//!
//! ```text
//! space  key                                            value behind the CRC
//! log    position u64                                   version u8 | queue number u32 | queue offset u64 |
//!                                                       stored at i64 | born at i64 | attributes length u16 |
//!                                                       attributes | body
//! cq     queue number u32 | queue offset u64            position u64 | payload bytes u32 | tag hash i64 |
//!                                                       stored at i64 | flags u8 (1: the record has keys)
//! key    hash of topic#key u64 | inverted position u64  stored at i64
//! meta   0 u8                                           version u8 | batches u64 | next position u64 |
//!                                                       last stored at i64 | payload bytes kept u64
//! meta   1 u8 | queue number u32                        min u64 | queue id u32 | topic
//! meta   2 u8 | length u8 | table name | row key        row value
//! ```
//!
//! Positions count records from 0 over the whole engine and are dense, and so are queue numbers. A position's bits are
//! inverted in the key index so that a forward scan meets the newest record first. The hash is FNV-1a of the topic,
//! a `#` (which no topic contains) and the key; every hit is checked against the record itself.

pub(crate) mod checksum;
pub(crate) mod consume_queue;
pub(crate) mod key_index;
pub(crate) mod log;
pub(crate) mod queue;
pub(crate) mod state;
pub(crate) mod table;

/// First byte of the state row's key in `meta`.
const STATE: u8 = 0;
/// First byte of a queue's key in `meta`.
const QUEUE: u8 = 1;
/// First byte of a table row's key in `meta`.
const TABLE: u8 = 2;

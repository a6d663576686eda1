//! Hard caps shared by every engine. A broker's own limits may be lower, never higher.

/// Longest topic or group name that a user may choose, in bytes (RocketMQ's `TOPIC_MAX_LENGTH`).
pub const MAX_NAME_BYTES: usize = 127;
/// Longest name an engine stores: a group name behind the `%RETRY%` prefix.
pub const MAX_STORED_NAME_BYTES: usize = MAX_NAME_BYTES + 7;
/// Highest queue id within a topic.
pub const MAX_QUEUE_ID: u32 = 999_999;
/// Log positions and queue offsets stay below 2^53, so that they survive JSON and signed wire fields.
pub const MAX_POSITION: u64 = (1 << 53) - 1;
/// Largest body of one record, in bytes.
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// Largest encoded attributes (tag, keys, sharding key, properties) of one record, in bytes: 32 KiB of a producer's own
/// (RocketMQ's `i16` length) and 2 KiB for what the broker adds to retries and dead letters.
pub const MAX_ATTRIBUTES_BYTES: usize = 34 << 10;
/// Longest single key, tag or sharding key, in bytes.
pub const MAX_KEY_BYTES: usize = 1 << 10;
/// Most operations in one batch; a run of appends counts each record.
pub const MAX_BATCH_OPERATIONS: usize = 1 << 16;
/// Most payload bytes (bodies, attributes, table keys and values) in one batch.
pub const MAX_BATCH_BYTES: usize = 128 << 20;
/// Longest name of an ordered table, in bytes.
pub const MAX_TABLE_NAME_BYTES: usize = 63;
/// Longest key in an ordered table, in bytes.
pub const MAX_TABLE_KEY_BYTES: usize = 4 << 10;
/// Largest value in an ordered table, in bytes: a whole record fits.
pub const MAX_TABLE_VALUE_BYTES: usize = MAX_BODY_BYTES + MAX_ATTRIBUTES_BYTES + (4 << 10);
/// Most records that one fetch or key query returns, whatever its limit asks for.
pub const MAX_FETCH_MESSAGES: usize = 65_536;
/// Most rows that one table scan returns, whatever its limit asks for.
pub const MAX_SCAN_ROWS: usize = 65_536;

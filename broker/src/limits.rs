//! Every bound of the broker in one place. Engines have their own hard caps in `cuemq_storage_api::limits`.

use std::time::Duration;

/// Most single messages that wait as one burst, with one answer for all of them.
pub const MAX_BURST_RECORDS: usize = 256;
/// Most payload bytes of single messages that wait as one burst.
pub const MAX_BURST_BYTES: usize = 1 << 20;
/// Records after which a queue actor writes what it has taken, while more waits.
pub const WRITE_RECORDS: usize = 256;
/// Payload bytes after which a queue actor writes what it has taken, while more waits.
pub const WRITE_BYTES: usize = 256 << 10;
/// Most requests that one queue actor takes before its neighbours have their turn.
pub const MAX_DRAIN_REQUESTS: usize = 4096;
/// Most records that one queue actor takes before its neighbours have their turn; also the most of one merged write of a lane.
pub const MAX_DRAIN_RECORDS: usize = 8192;
/// Most payload bytes that one queue actor takes before its neighbours have their turn; also of one merged write of a lane.
pub const MAX_DRAIN_BYTES: usize = 4 << 20;
/// Most bytes of a message's tag, keys, sharding key and properties together (RocketMQ's `i16` length). Engines allow
/// a little more, for what the broker adds to retries and dead letters.
pub const MAX_PROPERTIES_BYTES: usize = 32 << 10;
/// Most bytes of the text of an error that a redelivery or dead letter carries; a longer one is cut.
pub const MAX_ERROR_BYTES: usize = 1 << 10;
/// Longest batch a producer may send at once, in messages.
pub const MAX_BATCH_MESSAGES: usize = 16_384;
/// Most queues of one topic.
pub const MAX_QUEUES_PER_TOPIC: u32 = 1024;
/// Most changes of a topic's number of queues that are remembered, because messages from before them are stored.
pub const MAX_QUEUE_CHANGES: usize = 16;
/// Most topics of one broker.
pub const MAX_TOPICS: usize = 10_000;
/// Most consumer groups of one broker.
pub const MAX_GROUPS: usize = 10_000;
/// Most members of one consumer group.
pub const MAX_MEMBERS: usize = 1024;
/// Most topics that one member subscribes to.
pub const MAX_SUBSCRIPTIONS: usize = 64;
/// Most messages that one consumer holds unacknowledged (promises 2.3: credit limit).
pub const MAX_UNACKED_MESSAGES: usize = 1000;
/// Most payload bytes that one consumer keeps ready or unacknowledged.
pub const MAX_UNACKED_BYTES: usize = 16 << 20;
/// Payload bytes of one queue that may be held back behind others of their sharding keys before no more is fetched.
pub const MAX_HELD_BACK_BYTES: usize = 16 << 20;
/// Most messages that one group has in flight through its pop consumers.
pub const MAX_POPPED_MESSAGES: usize = 65_536;
/// Deliveries to pop consumers whose end one group remembers, to tell a repeated answer from an opposite one.
pub const MAX_REMEMBERED_SETTLEMENTS: usize = 65_536;
/// Most pops of one group that wait for messages.
pub const MAX_PARKED_POPS: usize = 10_000;
/// Most messages that one pop brings.
pub const MAX_POP_MESSAGES: usize = 1024;
/// Most messages whose invisible time is over that a group takes up before its neighbours have their turn.
pub const MAX_EXPIRED_POPS: usize = 1024;
/// Shortest invisible time of a popped message.
pub const SHORTEST_INVISIBLE_TIME: Duration = Duration::from_secs(1);
/// Longest invisible time of a popped message (RocketMQ's).
pub const LONGEST_INVISIBLE_TIME: Duration = Duration::from_secs(12 * 3600);
/// Invisible time of a popped message unless its consumer says otherwise (RocketMQ's).
pub const DEFAULT_INVISIBLE_TIME: Duration = Duration::from_secs(60);
/// Records that one fetch of a consumer asks for.
pub const FETCH_MESSAGES: usize = 256;
/// Payload bytes that one fetch of a consumer asks for.
pub const FETCH_BYTES: usize = 4 << 20;
/// Most acknowledgements that a group actor takes into one write.
pub const MAX_ACK_DRAIN: usize = 8192;
/// Most dead letters that are dealt with in one write.
pub const MAX_LETTER_BATCH: usize = 256;
/// Payload bytes of dead letters after which one write has enough of them.
pub const MAX_LETTER_BATCH_BYTES: usize = 4 << 20;
/// Most requests about a group's dead letters that wait for the one before.
pub const MAX_WAITING_LETTER_REQUESTS: usize = 64;
/// Most rows about dead letters that one write removes.
pub const MAX_LETTER_ROWS_REMOVED: usize = 4096;
/// Most dead letters that one page of browsing shows.
pub const MAX_LETTERS_PER_PAGE: usize = 1000;
/// Most dead letters that one page of browsing looks at; a page that ends there says where to go on.
pub const MAX_LETTERS_EXAMINED: usize = 65_536;
/// Most delayed messages that fire in one write.
pub const MAX_FIRE_MESSAGES: usize = 256;
/// Most payload bytes of delayed messages that fire in one write.
pub const MAX_FIRE_BYTES: usize = 4 << 20;
/// Most messages between the oldest that waits and the end of a queue whose bytes are limited: so many sizes, 8 bytes
/// each, are kept for each of its groups.
pub const MAX_MEASURED_MESSAGES: u64 = 1 << 20;
/// Most ended messages that groups are told of at once.
pub const MAX_EXPIRED_MESSAGES: usize = 256;
/// Most rows of withdrawn messages that one write of a group's progress removes once it has passed them.
pub const MAX_PASSED_ROWS_REMOVED: usize = 1024;
/// Delayed messages that may wait in one broker unless its settings say otherwise.
pub const MAX_DELAYED_MESSAGES: usize = 10_000_000;
/// Rows of delayed messages that are counted in one step after an opening, before others have their turn.
pub const COUNT_STEP_ROWS: usize = 4096;
/// Most recurring messages of one broker.
pub const MAX_RECURRENCES: usize = 10_000;
/// Most bytes of a cron pattern or of the name of a time zone.
pub const MAX_PATTERN_BYTES: usize = 256;
/// Most half messages waiting in one broker (promises 4.2).
pub const MAX_HALF_MESSAGES: usize = 10_000;
/// Most write jobs waiting for the lane of an engine that may stall.
pub const MAX_LANE_JOBS: usize = 65_536;
/// Slots of an actor's own mailbox; requests with payload wait in a bounded inbox beside it.
pub const MAILBOX_SLOTS: usize = 1024;
/// Messages an actor handles before it lets its neighbours run.
pub const YIELD_AFTER: usize = 32;
/// How long a shutdown waits for requests under way.
pub const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a message that was dropped unacknowledged comes again (RocketMQ's suspended queue: 1 s).
pub const REDELIVERY_PAUSE: Duration = Duration::from_secs(1);
/// How long a member may keep a queue that was given to another before it is taken away.
pub const REVOKE_PATIENCE: Duration = Duration::from_secs(30);
/// How often the engine's maintenance runs; with it the watermark of what is durable is rewritten (promises 2.3).
pub const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long buffered writes may lie unsynced (promises 2.1).
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// Most messages of one page of a query.
pub const MAX_QUERY_MESSAGES: usize = 1000;
/// Payload bytes after which a page of a query ends, full or not.
pub const MAX_QUERY_BYTES: usize = 8 << 20;
/// Most entries that a page of a query for tags looks at, over all queues of the topic together.
pub const MAX_QUERY_SCANNED: u64 = 32_768;
/// Entries that it looks at in each queue in any case, so that every page gets on.
pub const MIN_QUERY_SCANNED_OF_QUEUE: u64 = 64;
/// Most messages of one key that a page of a query looks at; those of one millisecond beyond it are not shown.
pub const MAX_QUERY_CANDIDATES: usize = 32_768;
/// Most rows of the audit log; the oldest go.
pub const MAX_AUDIT_ROWS: usize = 4096;
/// Longest note of an operator that is kept, in bytes.
pub const MAX_NOTE_BYTES: usize = 1024;
/// Most messages that one write of a diversion moves.
pub const MAX_DIVERT_MESSAGES: usize = 1024;
/// Payload bytes after which a write of a diversion ends.
pub const MAX_DIVERT_BYTES: usize = 4 << 20;
/// How often a transaction runs again because what it had read was changed by others, before it gives up.
pub const MAX_TRANSACTION_ATTEMPTS: u32 = 64;
/// How often a transaction runs beside all others; after that those which had to run again go one at a time.
pub const MAX_TRANSACTION_RUNS_AT_ONCE: u32 = 4;
/// How long a transaction that has to run again waits for the one before it. It goes on without its turn then, so that
/// work which itself waits for another transaction cannot stand still.
pub const MAX_TRANSACTION_TURN: Duration = Duration::from_secs(1);
/// Most reads, writes, messages and acknowledgements of one transaction together; each row of a scan counts.
pub const MAX_TRANSACTION_OPERATIONS: usize = 16_384;
/// Most bytes of the rows that one transaction reads and writes, and of the messages that it sends.
pub const MAX_TRANSACTION_BYTES: usize = 16 << 20;
/// Longest name of an application's table, in bytes.
pub const MAX_APPLICATION_TABLE_BYTES: usize = 40;
/// Longest key of a row of an application's table, in bytes.
pub const MAX_APPLICATION_KEY_BYTES: usize = 1 << 10;
/// Largest value of a row of an application's table, in bytes.
pub const MAX_APPLICATION_VALUE_BYTES: usize = 1 << 20;
/// Most transactions that are committed by one write.
pub const MAX_ROUND_TRANSACTIONS: usize = 256;
/// Operations of transactions after which one write has enough of them.
pub const MAX_ROUND_OPERATIONS: usize = 16_384;
/// Bytes of transactions after which one write has enough of them.
pub const MAX_ROUND_BYTES: usize = 16 << 20;

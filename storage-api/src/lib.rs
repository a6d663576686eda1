//! The storage contract of CueMQ.
//!
//! # Offsets, positions, marks
//!
//! ```text
//!  queue orders/0            trimmed or expired │ can be fetched          │ not yet written
//!  offsets               0 .. 1 .. 2 .. 3 .. 4  │  5    6    7    8    9  │ 10
//!                                               ▲ min                     ▲ end      bounds = [min, end)
//!
//!  one engine, one sequence of batches:   ──[b1]──[b2]──[b3]──[b4]──[b5]──▶
//!                                                  ▲ durable         ▲ applied
//!  after a crash some prefix of the batches is there: at least up to `durable`, never with a hole, never half a batch
//! ```
//!
//! * A **queue offset** counts the messages of one queue, dense from 0, never reused.
//! * A **log position** names one record in the whole broker; it rises in write order and survives a restart.
//! * A **mark** says how far the sequence of batches has come. *Applied* means ordered and readable; *durable* means
//!   it survives a power cut, which only a successful [`Engine::sync`] brings about.
//!
//! # The laws in one place
//!
//! 1. One write verb: a [`WriteBatch`] of appends, puts, deletes and trims lands whole or not at all.
//! 2. What `apply` returned is seen by every later read, from any thread.
//! 3. A crash keeps a prefix of the batches that contains everything durable.
//! 4. An error says whether the write surely did not happen ([`Outcome::NotStored`]) or may have ([`Outcome::Unknown`]).
//! 5. After a failed write or sync the engine accepts no write until it is reopened; reads go on.
//! 6. Stored times never fall, so time can be searched by halving.
//!
//! # Writing a third engine
//!
//! 1. Implement [`Engine`] for your type; open it with your own `open(settings)`, which takes an exclusive lock.
//! 2. Keep one writer lock. Under it: `batch.check()`, give offsets and positions, make the bytes one atomic unit of
//!    your medium, then publish the new ends so that readers see the whole batch at once.
//! 3. In your tests implement [`conformance::Fixture`] (open, reopen, crash) and expand
//!    [`conformance_suite!`](crate::conformance_suite), which makes one test per case, and run
//!    [`conformance::model`] against [`MemoryEngine`], the executable specification.
//! 4. Wrap it in [`FaultEngine`] to see the broker meet its failures.

pub mod batch;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod engine;
pub mod error;
pub mod fault;
pub mod limits;
pub mod memory;
pub mod record;
pub mod types;

pub use batch::{Appended, Applied, WriteBatch, WriteOperation};
pub use engine::{
    Capabilities, Engine, Fetch, FetchLimit, FetchRequest, KeyQuery, Maintenance, Retention, Row, TagHashes,
};
pub use error::{ErrorKind, InvalidInput, Outcome, Result, StorageError};
pub use fault::FaultEngine;
pub use memory::{MemoryEngine, MemoryStore};
pub use record::{Attribute, Attributes, AttributesBuilder, LocatedRecord, Record, StoredRecord, tag_hash};
pub use types::{GroupName, LogPosition, Mark, QueueId, QueueKey, QueueOffset, Table, Timestamp, TopicName};

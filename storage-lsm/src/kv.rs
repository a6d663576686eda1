//! The seam under the engine: an ordered store of a few named spaces with atomic batches.
//!
//! Everything above it (key layout, offsets, retention, recovery) knows nothing of fjall, so an engine over another
//! ordered store implements these three traits and reuses the rest whole.

use std::error::Error as StdError;
use std::fmt::Debug;

use bytes::Bytes;
use cuemq_storage_api::ErrorKind;

/// One of the few ordered spaces; what lies in each is told in [`crate::keys`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    /// Records by log position.
    Log,
    /// One small row per record, by queue and offset.
    ConsumeQueue,
    /// Where the records with a key are, newest first.
    KeyIndex,
    /// The engine's state, the queue registry and the ordered tables.
    Meta,
}

impl Space {
    /// Every space, in the order of its number.
    pub(crate) const ALL: [Self; 4] = [Self::Log, Self::ConsumeQueue, Self::KeyIndex, Self::Meta];

    /// The name under which a store keeps it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::ConsumeQueue => "cq",
            Self::KeyIndex => "key",
            Self::Meta => "meta",
        }
    }

    /// Its place in [`Space::ALL`].
    pub(crate) const fn number(self) -> usize {
        self as usize
    }
}

/// Why a store could not do what it was asked.
#[derive(Debug)]
pub(crate) struct KvError {
    /// `Poisoned` says that the store refused before it wrote anything; any other kind of a write leaves it open.
    pub(crate) kind: ErrorKind,
    pub(crate) source: Box<dyn StdError + Send + Sync>,
}

pub(crate) type KvResult<T> = Result<T, KvError>;

/// A key and its value.
pub(crate) type KvRow = (Bytes, Bytes);

/// An ordered store. Any thread may use it; batches are committed one at a time.
pub(crate) trait OrderedKv: Debug + Send + Sync + 'static {
    /// Collects the changes of one batch.
    type Batch: KvBatch;
    /// What a reader sees: the store at one moment, whole batches only. None may be left when the store is closed.
    type View: KvView;

    /// An empty batch with room for about `changes` of them.
    fn batch(&self, changes: usize) -> Self::Batch;

    /// Lands a batch whole or not at all. When it returns, every later view sees the batch, and it survives the death
    /// of the process (not of the machine).
    fn commit(&self, batch: Self::Batch) -> KvResult<()>;

    /// The store as it is now.
    fn view(&self) -> Self::View;

    /// Makes every batch committed before the call survive a power cut.
    fn sync(&self) -> KvResult<()>;

    /// Does what makes the next opening fast and lets go of everything. Dropping does only the latter.
    fn close(self);
}

/// The changes of one batch. Of several changes of one key the last one counts.
pub(crate) trait KvBatch {
    /// Sets a row. Key and value may be slices of one buffer, which lives as long as the store keeps them in memory.
    fn put(&mut self, space: Space, key: Bytes, value: Bytes);

    /// Removes a row; one that is not there is no error.
    fn delete(&mut self, space: Space, key: Bytes);
}

/// The store at one moment. A clone sees the same moment.
pub(crate) trait KvView: Clone + Send + Sync + 'static {
    /// A row's value.
    fn get(&self, space: Space, key: &[u8]) -> KvResult<Option<Bytes>>;

    /// Rows with keys in `[from, to)` in byte order; without `to`, to the last row.
    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = KvResult<KvRow>>;

    /// The last row with a key in `[from, to)`.
    fn last(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> KvResult<Option<KvRow>>;
}

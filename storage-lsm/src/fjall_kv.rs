//! The ordered store over fjall 3.1.13, and what its source says that a caller must know.
//!
//! * **Moments.** A commit with `PersistMode::Buffer` writes the journal's 8 KiB buffer to the operating system before
//!   it returns, so what is committed survives SIGKILL. [`OrderedKv::sync`] is one `fdatasync` of the newest journal
//!   for everything committed before; older journals were synced when they were sealed, tables when they were
//!   written. fjall itself syncs while it holds its one journal lock, so that commits wait; therefore the file is synced
//!   here through a handle of our own (see [`crate::journals`]) and commits go on beside. Sealing a journal and
//!   flushing a memtable still sync under that lock, in the background. Group commit is made above (the broker's sync
//!   thread), never by a sync per batch here.
//! * **Stalls.** Back-pressure is a sleep inside the commit: 100 ms at a time while a space has four sealed memtables
//!   or more, 10 ms at a time from thirty runs in level 0 on. Commits of half a second have been seen. Only a thread
//!   that serves nobody else may write.
//! * **Atomic reads.** `Keyspace::get` and `range` read whatever is in the memtable, half a batch too. Only a snapshot
//!   ends between two batches, so a [`KvView`] is one.
//! * **One key twice in a batch.** All changes of a batch have one sequence number, and the memtable replaces an entry
//!   of the same key and number: the last change counts, also when the journal is replayed.
//! * **Memory.** With the feature `bytes_1` keys and values are handed in and out as `Bytes` without a copy. A memtable
//!   keeps the slices it was given, so the buffers behind them must not mix spaces: a small row would pin the bodies
//!   beside it for as long as its own, slow memtable lives.
//! * **Journals.** One per database, sealed when a memtable is flushed and more than 64 MB are in it, deleted when
//!   every space in it has been flushed. `journal_bytes` bounds how many there are. A new journal is 64 MiB long and
//!   sparse: it takes room only as it fills.
//! * **Opening.** Replay looks up the keyspace of each row in a tree of its own and asks the file for its position:
//!   3 to 4 microseconds a row, also for rows that are in tables by now. So a crash costs up to some seconds at the next
//!   opening, and closing flushes what is in memory and empties the journal.
//! * **Failure.** Any error of a journal write or of a background thread poisons the database until it is reopened.
//!   A failed open may panic (measured: 8 % of single flipped bits in a journal), which is caught here and becomes
//!   `Corrupt`; the panic's text still goes to the process's panic hook. A panic over a damaged tree would come while
//!   the database holds a lock that its destructor needs, and abort the process: so trees are opened once by themselves
//!   before. A cut journal is *not* reported by fjall: the watermark file is what notices (see [`crate::watermark`]).
//! * **Not used.** FIFO compaction (panics on keys that are not monotonic), `clear` (loses against compactions),
//!   separation of large values (3 to 5 times slower scans below 4 KiB), a keyspace per queue (64 MiB of memtable and a
//!   journal held back by each).

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use cuemq_storage_api::ErrorKind;
use fjall::config::FilterPolicy;
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot,
};
use lsm_tree::SequenceNumberCounter;

use crate::journals::Journals;
use crate::kv::{KvBatch, KvError, KvResult, KvRow, KvView, OrderedKv, Space};
use crate::settings::LsmSettings;

/// The spaces that hold small rows get a memtable this much smaller than that of the records.
const SMALL_MEMTABLE_SHARE: u64 = 4;
const SPACES: usize = Space::ALL.len();
/// Where fjall keeps a folder per tree, and the file in it that fjall reads first.
const TREES: &str = "keyspaces";
const TREE_MARKER: &str = "current";

/// Bytes in journals from which on closing turns them into tables: reading fewer again takes less time than that.
const WORTH_FLUSHING_BYTES: u64 = 2 << 20;
/// How long closing waits for the tables, look by look; when it is over the journals stay and are read again.
const FLUSH_LOOKS: u32 = 10_000;
const FLUSH_LOOK_EVERY: Duration = Duration::from_millis(1);

/// An open fjall database with one keyspace per space. Dropping it syncs, stops its threads and releases its lock.
pub(crate) struct FjallKv {
    spaces: Arc<[Keyspace; SPACES]>,
    database: Database,
    journals: Journals,
    /// Bytes of rows in the journals, those of earlier sessions included.
    journaled: AtomicU64,
}

impl fmt::Debug for FjallKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallKv").finish_non_exhaustive()
    }
}

impl FjallKv {
    /// Opens the database in a directory, or creates it unless it must be there.
    pub(crate) fn open(directory: &Path, settings: &LsmSettings, must_exist: bool) -> KvResult<Self> {
        let trees = guarded(|| check_trees(directory))?;
        if must_exist && trees <= SPACES {
            let source = format!("{trees} trees are left of {}: restore a copy", SPACES + 1);
            return Err(KvError { kind: ErrorKind::Corrupt, source: source.into() });
        }
        guarded(|| Self::open_unguarded(directory, settings))
    }

    fn open_unguarded(directory: &Path, settings: &LsmSettings) -> fjall::Result<Self> {
        let journals = Journals::new(directory);
        let earlier = journals.numbers()?;
        let database = Database::builder(directory)
            .cache_size(settings.cache_bytes)
            .max_journaling_size(settings.journal_bytes)
            .worker_threads(settings.worker_threads)
            .manual_journal_persist(true)
            .open()?;
        let open = |space: Space| database.keyspace(space.name(), || options(space, settings));
        let [log, cq, key, meta] = Space::ALL;
        let spaces = Arc::new([open(log)?, open(cq)?, open(key)?, open(meta)?]);
        // Opening has cut them to what is in use.
        let journaled = AtomicU64::new(journals.bytes(&earlier));
        Ok(Self { spaces, database, journals, journaled })
    }

    /// Turns what is in memory into tables; says whether all of it is there now.
    fn flush(&self) -> fjall::Result<bool> {
        for space in self.spaces.iter() {
            space.rotate_memtable()?;
        }
        let in_tables = || {
            let mut spaces = self.spaces.iter();
            spaces.all(|space| space.tree.sealed_memtable_count() == 0 && space.tree.active_memtable().is_empty())
        };
        let (_open, nothing) = mpsc::channel::<()>();
        for _ in 0..FLUSH_LOOKS {
            if in_tables() {
                return Ok(true);
            }
            // Fails when a background thread has failed, and then nothing more will come.
            self.database.persist(PersistMode::Buffer)?;
            // fjall tells nobody when it is done.
            let _ = nothing.recv_timeout(FLUSH_LOOK_EVERY);
        }
        Ok(false)
    }
}

fn options(space: Space, settings: &LsmSettings) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default().manual_journal_persist(true);
    let small = settings.memtable_bytes / SMALL_MEMTABLE_SHARE;
    match space {
        // Whoever asks for a position knows from the queue's row that it is there: filters would not help.
        Space::Log => options.max_memtable_size(settings.memtable_bytes).expect_point_read_hits(true),
        // Only ever scanned.
        Space::ConsumeQueue | Space::KeyIndex => {
            options.max_memtable_size(small).filter_policy(FilterPolicy::disabled())
        }
        Space::Meta => options.max_memtable_size(small),
    }
}

/// Opens every tree once by itself. A tree whose manifest is damaged may panic, and if it did so within the opening of
/// the database, the database's destructor would panic too and end the process. Says how many there are: one per space
/// and fjall's own; one that is lost would be made anew, empty.
fn check_trees(directory: &Path) -> fjall::Result<usize> {
    let folders = match fs::read_dir(directory.join(TREES)) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut trees = 0;
    for folder in folders {
        let tree = folder?.path();
        // Without this file a tree was never finished, and fjall discards it.
        if tree.join(TREE_MARKER).try_exists()? {
            lsm_tree::Config::new(tree, SequenceNumberCounter::default(), SequenceNumberCounter::default()).open()?;
            trees += 1;
        }
    }
    Ok(trees)
}

/// Turns a panic into the error that it should have been.
fn guarded<T>(open: impl FnOnce() -> fjall::Result<T>) -> KvResult<T> {
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(open_error),
        Err(panic) => {
            Err(KvError { kind: ErrorKind::Corrupt, source: format!("fjall panicked: {}", text_of(&*panic)).into() })
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}

/// While a database is opened, whatever is not the operating system's refusal is damage.
fn open_error(error: fjall::Error) -> KvError {
    let kind = match &error {
        fjall::Error::Io(_) | fjall::Error::Storage(fjall::LsmError::Io(_)) => ErrorKind::Io,
        fjall::Error::Locked => ErrorKind::Locked,
        fjall::Error::InvalidVersion(_) | fjall::Error::Storage(fjall::LsmError::InvalidVersion(_)) => {
            ErrorKind::Version
        }
        _ => ErrorKind::Corrupt,
    };
    KvError { kind, source: error.into() }
}

fn use_error(error: impl Into<fjall::Error>) -> KvError {
    let error = error.into();
    let kind = match &error {
        fjall::Error::Poisoned => ErrorKind::Poisoned,
        fjall::Error::Io(_) | fjall::Error::Storage(fjall::LsmError::Io(_)) => ErrorKind::Io,
        _ => ErrorKind::Corrupt,
    };
    KvError { kind, source: error.into() }
}

impl OrderedKv for FjallKv {
    type Batch = FjallBatch;
    type View = FjallView;

    fn batch(&self, changes: usize) -> FjallBatch {
        let batch = OwnedWriteBatch::with_capacity(self.database.clone(), changes);
        FjallBatch { spaces: Arc::clone(&self.spaces), batch: batch.durability(Some(PersistMode::Buffer)), bytes: 0 }
    }

    fn commit(&self, batch: FjallBatch) -> KvResult<()> {
        self.journaled.fetch_add(batch.bytes, Ordering::Relaxed);
        batch.batch.commit().map_err(use_error)
    }

    fn view(&self) -> FjallView {
        FjallView { spaces: Arc::clone(&self.spaces), snapshot: self.database.snapshot() }
    }

    fn sync(&self) -> KvResult<()> {
        // Fails when a background thread has failed; what is committed has left the process already.
        self.database.persist(PersistMode::Buffer).map_err(use_error)?;
        self.journals.sync().map_err(|error| use_error(fjall::Error::Io(error)))
    }

    fn close(self) {
        let worth_it = self.journaled.load(Ordering::Relaxed) >= WORTH_FLUSHING_BYTES;
        let flushed = match worth_it.then(|| self.flush()) {
            Some(Ok(flushed)) => flushed,
            Some(Err(error)) => {
                // Nothing is lost: the journals were synced before.
                tracing::warn!(%error, "closing could not flush; the next opening reads the journals again");
                false
            }
            None => false,
        };
        let Self { spaces, database, journals, .. } = self;
        drop((spaces, database));
        if flushed && let Err(error) = journals.empty_newest() {
            tracing::warn!(%error, "closing could not empty the journal; the next opening reads it again");
        }
    }
}

/// A fjall batch that is in the operating system's hands when it has been committed.
pub(crate) struct FjallBatch {
    spaces: Arc<[Keyspace; SPACES]>,
    batch: OwnedWriteBatch,
    bytes: u64,
}

impl KvBatch for FjallBatch {
    fn put(&mut self, space: Space, key: Bytes, value: Bytes) {
        self.bytes += (key.len() + value.len()) as u64;
        self.batch.insert(&self.spaces[space.number()], key, value);
    }

    fn delete(&mut self, space: Space, key: Bytes) {
        self.bytes += key.len() as u64;
        self.batch.remove(&self.spaces[space.number()], key);
    }
}

/// A fjall snapshot.
#[derive(Clone)]
pub(crate) struct FjallView {
    spaces: Arc<[Keyspace; SPACES]>,
    snapshot: Snapshot,
}

impl FjallView {
    fn iterate(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> fjall::Iter {
        let keyspace = &self.spaces[space.number()];
        match to {
            Some(to) if from < to => self.snapshot.range(keyspace, from..to),
            Some(_) => self.snapshot.range(keyspace, from..from),
            None => self.snapshot.range(keyspace, from..),
        }
    }
}

impl KvView for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> KvResult<Option<Bytes>> {
        let value = self.snapshot.get(&self.spaces[space.number()], key).map_err(use_error)?;
        Ok(value.map(Bytes::from))
    }

    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = KvResult<KvRow>> {
        self.iterate(space, from, to).map(row)
    }

    fn last(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> KvResult<Option<KvRow>> {
        self.iterate(space, from, to).next_back().map(row).transpose()
    }
}

fn row(guard: fjall::Guard) -> KvResult<KvRow> {
    let (key, value) = guard.into_inner().map_err(use_error)?;
    Ok((key.into(), value.into()))
}

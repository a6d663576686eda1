//! SQLite with a write-ahead log, and a table that is a queue.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cuemq_benches::place::Place;
use cuemq_benches::workload::Bodies;
use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::Result;
use crate::load::{Appended, Load};
use crate::store::{Flush, Page, Store, Writers};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS queue (number INTEGER PRIMARY KEY, body BLOB NOT NULL)";
const BEGIN: &str = "BEGIN IMMEDIATE";
const COMMIT: &str = "COMMIT";
const INSERT: &str = "INSERT INTO queue (number, body) VALUES (?1, ?2)";
const SELECT: &str = "SELECT number, body FROM queue WHERE number >= ?1 ORDER BY number LIMIT ?2";
/// Pages kept in memory, as a negative number of KiB; the default is 2 MiB.
const CACHE_KIB: i64 = -(64 << 10);
/// Bytes of the database that are read through a map.
const MAP_BYTES: i64 = 256 << 20;

pub(crate) struct SqliteStore {
    connection: Connection,
    folder: TempDir,
    flush: Flush,
}

impl SqliteStore {
    pub(crate) fn open(place: &Place, flush: Flush) -> Result<Self> {
        Self::open_in(place.folder()?, flush)
    }

    fn open_in(folder: TempDir, flush: Flush) -> Result<Self> {
        let connection = connect(&folder.path().join("queue.db"), flush)?;
        connection.execute(TABLE, [])?;
        Ok(Self { connection, folder, flush })
    }

    /// One transaction per batch; a single statement is one by itself.
    fn append_batch(&self, load: &Load<'_>, first: u64) -> Result<()> {
        if load.batch == 1 {
            return insert(&self.connection, load.bodies, first);
        }
        self.connection.prepare_cached(BEGIN)?.execute([])?;
        for message in (first..).take(load.batch) {
            insert(&self.connection, load.bodies, message)?;
        }
        self.connection.prepare_cached(COMMIT)?.execute([])?;
        Ok(())
    }
}

fn connect(file: &Path, flush: Flush) -> Result<Connection> {
    let connection = Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = match flush {
        Flush::Buffered => "OFF",
        Flush::Durable => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "mmap_size", MAP_BYTES)?;
    Ok(connection)
}

fn insert(connection: &Connection, bodies: &Bodies, message: u64) -> Result<()> {
    let body = bodies.body(message);
    connection.prepare_cached(INSERT)?.execute(params![i64::try_from(message)?, &body[..]])?;
    Ok(())
}

impl Store for SqliteStore {
    fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
        load.run(|first| self.append_batch(load, first))
    }

    fn fetch(&mut self, from: u64, messages: usize) -> Result<Box<dyn Page>> {
        let mut page = Selected { bytes: Vec::new(), rows: Vec::with_capacity(messages) };
        let mut select = self.connection.prepare_cached(SELECT)?;
        let mut rows = select.query(params![i64::try_from(from)?, i64::try_from(messages)?])?;
        while let Some(row) = rows.next()? {
            page.bytes.extend_from_slice(row.get_ref(1)?.as_blob()?);
            page.rows.push((u64::try_from(row.get::<_, i64>(0)?)?, page.bytes.len()));
        }
        Ok(Box::new(page))
    }

    /// One connection that the writers share: with one each they would wait for each other in naps.
    fn group_commit(&mut self, writers: &Writers<'_>) -> Result<Option<Appended>> {
        let shared = Mutex::new(&mut self.connection);
        let write = |message| {
            let connection = shared.lock().unwrap_or_else(PoisonError::into_inner);
            insert(&connection, writers.bodies, message)
        };
        writers.on_threads(write).map(Some)
    }

    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
        let Self { connection, folder, flush } = *self;
        connection.close().map_err(|(_, error)| error)?;
        Ok(Box::new(Self::open_in(folder, flush)?))
    }
}

/// Rows copied out of the database: all bodies in one buffer.
struct Selected {
    bytes: Vec<u8>,
    /// Number and where the body ends.
    rows: Vec<(u64, usize)>,
}

impl Page for Selected {
    fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut start = 0;
        for &(number, end) in &self.rows {
            see(number, &self.bytes[start..end])?;
            start = end;
        }
        Ok(())
    }
}

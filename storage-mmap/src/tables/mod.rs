//! The ordered tables: what changed lately is in memory, everything else in the checkpoint's file.
//!
//! ```text
//!  young    changes since the last checkpoint was begun     in memory, and in the log
//!  frozen   changes that the checkpoint under way takes in  in memory, and in the log
//!  base     all rows as the last checkpoint has them        on disk; in memory only where each block begins
//! ```
//! A row is what the youngest of the three says of it. A checkpoint merges frozen changes and base into a new file, which
//! is the base from then on: so the memory for rows is bounded by how often checkpoints are made, not by the rows.

mod base;
mod merge;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_SCAN_ROWS;
use cuemq_storage_api::{Row, Table};

pub(crate) use base::Base;
use merge::Merge;

use crate::commit_log::format::{len_u8, len_u32};
use crate::replace::Replacement;

/// What a row in memory takes besides its bytes: its place in the tree. An estimate.
const ROW_COST: usize = 110;
/// Stands where the next row's key length would, behind the last row of a table.
pub(crate) const NO_MORE_ROWS: u32 = u32::MAX;

/// Rows of one table that changed; without a value, removed.
type Rows = BTreeMap<Bytes, Option<Bytes>>;
/// Changed rows of all tables.
type Changes = BTreeMap<Table, Rows>;

static NO_ROWS: Rows = Rows::new();

/// All tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    young: Changes,
    /// What `young` takes, by estimate.
    young_bytes: usize,
    frozen: Option<Arc<Changes>>,
    base: Arc<Base>,
}

/// All rows at one moment, for a checkpoint.
#[derive(Debug)]
pub(crate) struct Snapshot {
    changes: Arc<Changes>,
    base: Arc<Base>,
}

/// A change of one row; without a value, its removal.
#[derive(Debug)]
pub(crate) struct RowChange {
    pub(crate) table: Table,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

/// Room for the bytes of rows that change, in blocks. The bytes are the tables' own: a caller's may be a slice of a whole
/// segment, which the row would keep mapped.
///
/// A piece of memory for each key and value costs more, above all when a checkpoint gives back some hundred thousand of
/// them: the C library then puts them in order before it gives out the next large one, and whoever writes waits for 100
/// to 200 ms.
#[derive(Debug, Default)]
pub(crate) struct RowRoom(BytesMut);

impl RowRoom {
    /// A slice that somebody keeps keeps a block.
    const BLOCK_BYTES: usize = 16 << 10;

    /// A row that is written.
    pub(crate) fn put(&mut self, table: &Table, key: &[u8], value: &[u8]) -> RowChange {
        let value = Some(self.keep(value));
        RowChange { table: table.clone(), key: self.keep(key), value }
    }

    /// A row that is removed.
    pub(crate) fn delete(&mut self, table: &Table, key: &[u8]) -> RowChange {
        RowChange { table: table.clone(), key: self.keep(key), value: None }
    }

    fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > Self::BLOCK_BYTES / 4 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(Self::BLOCK_BYTES);
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

impl Tables {
    /// Tables that are as a checkpoint has them.
    pub(crate) fn new(base: Base) -> Self {
        Self { base: Arc::new(base), ..Self::default() }
    }

    pub(crate) fn change(&mut self, RowChange { table, key, value }: RowChange) {
        let bytes = key.len() + value.as_ref().map_or(0, Bytes::len);
        let must_be_hidden = value.is_some() || self.frozen.is_some() || self.base.has(&table);
        let rows = self.young.entry(table).or_default();
        let before = rows.len();
        if must_be_hidden {
            rows.insert(key, value);
            // The bytes of the row before stay where they are until the next checkpoint, with those around them.
            self.young_bytes += bytes + (rows.len() - before) * ROW_COST;
        } else if rows.remove(&key).is_some() {
            self.young_bytes = self.young_bytes.saturating_sub(ROW_COST);
        }
    }

    /// What the changes since the last checkpoint was begun take in memory, by estimate.
    pub(crate) fn young_bytes(&self) -> usize {
        self.young_bytes
    }

    pub(crate) fn get(&self, table: &Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        for changes in self.changes() {
            if let Some(value) = changes.get(table).and_then(|rows| rows.get(key)) {
                // Not a slice, which would keep the whole block.
                return Ok(value.as_deref().map(Bytes::copy_from_slice));
            }
        }
        self.base.get(table, key)
    }

    pub(crate) fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> io::Result<Vec<Row>> {
        if to.is_some_and(|to| from >= to) {
            return Ok(Vec::new());
        }
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.get(table)).unwrap_or(&NO_ROWS);
        let young = self.young.get(table).unwrap_or(&NO_ROWS);
        let rows = Merge::new(young, frozen, self.base.rows(table, from), from);
        let within = |row: &io::Result<Row>| row.as_ref().map_or(true, |(key, _)| to.is_none_or(|to| key < to));
        rows.take_while(within).take(limit.min(MAX_SCAN_ROWS)).collect()
    }

    fn changes(&self) -> impl Iterator<Item = &Changes> {
        std::iter::once(&self.young).chain(self.frozen.as_deref())
    }

    /// All rows of this moment. Later changes are kept apart until [`rebase`](Self::rebase).
    pub(crate) fn freeze(&mut self) -> Snapshot {
        self.thaw();
        let changes = Arc::new(std::mem::take(&mut self.young));
        self.young_bytes = 0;
        self.frozen = Some(Arc::clone(&changes));
        Snapshot { changes, base: Arc::clone(&self.base) }
    }

    /// Takes back what a checkpoint that failed was to take in.
    fn thaw(&mut self) {
        let Some(frozen) = self.frozen.take() else { return };
        for (table, rows) in frozen.iter() {
            for (key, value) in rows {
                let changed = self.young.get(table).is_some_and(|young| young.contains_key(key));
                if !changed {
                    self.change(RowChange { table: table.clone(), key: key.clone(), value: value.clone() });
                }
            }
        }
    }

    /// The snapshot of the last [`freeze`](Self::freeze) is on disk.
    pub(crate) fn rebase(&mut self, base: Base) {
        self.base = Arc::new(base);
        self.frozen = None;
    }
}

impl Snapshot {
    /// Writes all rows, and says where they are; [`Base::read`] is the other direction.
    pub(crate) fn write(&self, out: &mut Replacement) -> io::Result<Base> {
        let mut tables: Vec<&Table> = self.changes.keys().chain(self.base.tables()).collect();
        tables.sort_unstable();
        tables.dedup();
        let mut base = Base::of(out.file());
        out.write(&len_u32(tables.len()).to_le_bytes())?;
        for table in tables {
            out.write(&[len_u8(table.as_str().len())])?;
            out.write(table.as_str().as_bytes())?;
            let changes = self.changes.get(table).unwrap_or(&NO_ROWS);
            for row in Merge::new(changes, &NO_ROWS, self.base.rows(table, &[]), &[]) {
                let (key, value) = row?;
                let start = out.len();
                out.write(&len_u32(key.len()).to_le_bytes())?;
                out.write(&key)?;
                out.write(&len_u32(value.len()).to_le_bytes())?;
                out.write(&value)?;
                base.add(table, &key, start..out.len());
            }
            out.write(&NO_MORE_ROWS.to_le_bytes())?;
        }
        Ok(base)
    }
}

#[cfg(test)]
mod tests;

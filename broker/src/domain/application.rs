//! Transactions over the application's own tables: what one has read and wants to write, and whether what it read
//! still holds when its turn to commit has come.
//!
//! A transaction runs against the latest rows without any lock and notes what it sees. The commits follow each other:
//! one whose reads would give the same again has run as if nobody else had run since, so the order of the commits is
//! a serial order of the transactions. Scans note the whole range that they looked through: a row that appears in it
//! is a change like any other.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use cuemq_storage_api::Table;

/// Key and value.
pub(crate) type Row = (Bytes, Bytes);

/// Rows that a scan reads at a time.
const PAGE_ROWS: usize = 256;

/// Rows of ordered tables, wherever they are.
pub(crate) trait Rows {
    /// Why a row cannot be read.
    type Error;

    /// One row.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>, Self::Error>;

    /// At most `limit` rows with keys in `[from, to)`, or without `to` up to the last one, in the order of their keys.
    ///
    /// # Errors
    /// When they cannot be read.
    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, Self::Error>;
}

/// The last word on each row that was written; `None` for one that was deleted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct WriteSet {
    tables: BTreeMap<Table, BTreeMap<Bytes, Option<Bytes>>>,
}

impl WriteSet {
    /// Writes a row, or deletes it.
    pub(crate) fn set(&mut self, table: &Table, key: Bytes, value: Option<Bytes>) {
        match self.tables.get_mut(table) {
            Some(rows) => drop(rows.insert(key, value)),
            None => drop(self.tables.insert(table.clone(), BTreeMap::from([(key, value)]))),
        }
    }

    /// What was written to a row, if anything was.
    pub(crate) fn written(&self, table: &Table, key: &[u8]) -> Option<&Option<Bytes>> {
        self.tables.get(table)?.get(key)
    }

    /// Everything that was written, in the order of tables and keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Table, &Bytes, &Option<Bytes>)> {
        self.tables.iter().flat_map(|(table, rows)| rows.iter().map(move |(key, value)| (table, key, value)))
    }

    /// Whether nothing was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Writes over this what the other one wrote.
    fn absorb(&mut self, other: &Self) {
        for (table, key, value) in other.iter() {
            self.set(table, key.clone(), value.clone());
        }
    }

    fn within(&self, table: &Table, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = (&Bytes, &Option<Bytes>)> {
        let backwards = to.is_some_and(|to| to < from);
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.tables.get(table).filter(|_| !backwards);
        rows.into_iter().flat_map(move |rows| rows.range::<[u8], _>((Bound::Included(from), to)))
    }
}

/// What a scan looked through.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Scanned {
    table: Table,
    from: Bytes,
    /// Where it stopped; `None` when it came to the end of the table.
    to: Option<Bytes>,
    /// Every row of the range.
    rows: Vec<Row>,
}

/// Everything that a transaction has seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ReadSet {
    rows: WriteSet,
    scans: Vec<Scanned>,
}

impl ReadSet {
    /// Whether nothing was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.scans.is_empty()
    }

    /// Whether every read would give the same again.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub(crate) fn holds<R: Rows>(&self, rows: &R) -> Result<bool, R::Error> {
        for (table, key, seen) in self.rows.iter() {
            if rows.get(table, key)? != *seen {
                return Ok(false);
            }
        }
        for scan in &self.scans {
            // One more than was seen, to find one that is new.
            if rows.scan(&scan.table, &scan.from, scan.to.as_deref(), scan.rows.len() + 1)? != scan.rows {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a transaction sees and does: the latest rows, and over them its own writes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct View {
    reads: ReadSet,
    writes: WriteSet,
}

impl View {
    /// One row. Read twice it is the same twice.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn get<R: Rows>(&mut self, rows: &R, table: &Table, key: &[u8]) -> Result<Option<Bytes>, R::Error> {
        if let Some(own) = self.writes.written(table, key) {
            return Ok(own.clone());
        }
        if let Some(seen) = self.reads.rows.written(table, key) {
            return Ok(seen.clone());
        }
        let value = rows.get(table, key)?;
        self.reads.rows.set(table, Bytes::copy_from_slice(key), value.clone());
        Ok(value)
    }

    /// At most `limit` rows of `[from, to)`, and how many were looked at on the way.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn scan<R: Rows>(
        &mut self,
        rows: &R,
        table: &Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<Row>, usize), R::Error> {
        let merged = merge(rows, &self.writes, table, from, to, limit)?;
        let looked_at = merged.seen.len();
        let from = Bytes::copy_from_slice(from);
        self.reads.scans.push(Scanned { table: table.clone(), from, to: merged.end, rows: merged.seen });
        Ok((merged.rows, looked_at))
    }

    /// Writes a row, or deletes it.
    pub(crate) fn set(&mut self, table: &Table, key: Bytes, value: Option<Bytes>) {
        self.writes.set(table, key, value);
    }

    /// What it has seen.
    pub(crate) fn reads(&self) -> &ReadSet {
        &self.reads
    }

    /// What it wants to write.
    pub(crate) fn writes(&self) -> &WriteSet {
        &self.writes
    }
}

/// Transactions that commit together, as one write, each as if after the one before it.
#[derive(Debug, Default)]
pub(crate) struct Round {
    written: WriteSet,
}

impl Round {
    /// Whether what a transaction saw holds over the stored rows and the writes of those admitted before. If so, it
    /// is one of them from now on, unless `only_look`.
    ///
    /// # Errors
    /// When a row cannot be read; the transaction is not admitted then.
    pub(crate) fn admit<R: Rows>(&mut self, rows: &R, view: &View, only_look: bool) -> Result<bool, R::Error> {
        let holds = view.reads.holds(&Over { rows, writes: &self.written })?;
        if holds && !only_look {
            self.written.absorb(&view.writes);
        }
        Ok(holds)
    }
}

/// Rows with writes over them.
struct Over<'a, R> {
    rows: &'a R,
    writes: &'a WriteSet,
}

impl<R: Rows> Rows for Over<'_, R> {
    type Error = R::Error;

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>, R::Error> {
        match self.writes.written(table, key) {
            Some(own) => Ok(own.clone()),
            None => self.rows.get(table, key),
        }
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, R::Error> {
        Ok(merge(self.rows, self.writes, table, from, to, limit)?.rows)
    }
}

struct Merged {
    rows: Vec<Row>,
    /// Rows below the writes, whether they are written over or not.
    seen: Vec<Row>,
    /// Up to where `seen` is everything.
    end: Option<Bytes>,
}

/// Reads a range page by page and lays writes over it, until there are `limit` rows.
fn merge<R: Rows>(
    rows: &R,
    writes: &WriteSet,
    table: &Table,
    from: &[u8],
    to: Option<&[u8]>,
    limit: usize,
) -> Result<Merged, R::Error> {
    let mut own = writes.within(table, from, to).peekable();
    let mut merged = Merged { rows: Vec::new(), seen: Vec::new(), end: to.map(Bytes::copy_from_slice) };
    let mut next = Bytes::copy_from_slice(from);
    // One page is enough for most.
    let page = PAGE_ROWS.min(limit.saturating_add(1));
    while merged.rows.len() < limit {
        let read = rows.scan(table, &next, to, page)?;
        let last_page = read.len() < page;
        for (key, value) in read {
            next = behind(&key);
            while let Some((own_key, own_value)) = own.next_if(|(own_key, _)| **own_key < key) {
                merged.rows.extend(own_value.clone().map(|value| (own_key.clone(), value)));
            }
            match own.next_if(|(own_key, _)| **own_key == key) {
                Some((_, own_value)) => merged.rows.extend(own_value.clone().map(|value| (key.clone(), value))),
                None => merged.rows.push((key.clone(), value.clone())),
            }
            merged.seen.push((key, value));
        }
        if last_page {
            merged.rows.extend(own.filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
            break;
        }
    }
    if merged.rows.len() >= limit {
        merged.rows.truncate(limit);
        let end = merged.rows.last().map_or_else(|| Bytes::copy_from_slice(from), |(key, _)| behind(key));
        merged.seen.retain(|(key, _)| *key < end);
        merged.end = Some(end);
    }
    Ok(merged)
}

/// The lowest key above one.
fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
#[path = "application_tests.rs"]
mod tests;

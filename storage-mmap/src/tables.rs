//! The ordered tables: in memory, with every change in the log and all rows in the checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;

use bytes::Bytes;
use cuemq_storage_api::limits::MAX_SCAN_ROWS;
use cuemq_storage_api::{Row, Table};

use crate::commit_log::format::{len_u8, len_u32};
use crate::cursor::Cursor;
use crate::replace::Replacement;

/// All tables. Cloning one copies no row's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables(BTreeMap<Table, BTreeMap<Bytes, Bytes>>);

/// A change of one row; without a value, its removal. The bytes are the table's own: a caller's may be a slice of a
/// whole segment, which the row would keep mapped.
#[derive(Debug)]
pub(crate) struct RowChange {
    pub(crate) table: Table,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

impl RowChange {
    pub(crate) fn put(table: &Table, key: &[u8], value: &[u8]) -> Self {
        let value = Some(Bytes::copy_from_slice(value));
        Self { table: table.clone(), key: Bytes::copy_from_slice(key), value }
    }

    pub(crate) fn delete(table: &Table, key: &[u8]) -> Self {
        Self { table: table.clone(), key: Bytes::copy_from_slice(key), value: None }
    }
}

impl Tables {
    pub(crate) fn change(&mut self, change: RowChange) {
        match change.value {
            Some(value) => {
                self.0.entry(change.table).or_default().insert(change.key, value);
            }
            None => {
                if let Some(rows) = self.0.get_mut(&change.table) {
                    rows.remove(&change.key);
                }
            }
        }
    }

    pub(crate) fn get(&self, table: &Table, key: &[u8]) -> Option<Bytes> {
        self.0.get(table)?.get(key).cloned()
    }

    pub(crate) fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Vec<Row> {
        let Some(rows) = self.0.get(table).filter(|_| to.is_none_or(|to| from < to)) else {
            return Vec::new();
        };
        let range = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        let rows = rows.range::<[u8], _>(range).take(limit.min(MAX_SCAN_ROWS));
        rows.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Writes all rows; [`Tables::read`] is the other direction.
    pub(crate) fn write(&self, out: &mut Replacement) -> io::Result<()> {
        out.write(&len_u32(self.0.len()).to_le_bytes())?;
        for (table, rows) in &self.0 {
            out.write(&[len_u8(table.as_str().len())])?;
            out.write(table.as_str().as_bytes())?;
            out.write(&(rows.len() as u64).to_le_bytes())?;
            for (key, value) in rows {
                out.write(&len_u32(key.len()).to_le_bytes())?;
                out.write(key)?;
                out.write(&len_u32(value.len()).to_le_bytes())?;
                out.write(value)?;
            }
        }
        Ok(())
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let mut tables = BTreeMap::new();
        for _ in 0..cursor.u32()? {
            let table = Table::new(cursor.name()?).ok()?;
            let mut rows = BTreeMap::new();
            for _ in 0..cursor.u64()? {
                let key = Bytes::copy_from_slice(cursor.long()?);
                rows.insert(key, Bytes::copy_from_slice(cursor.long()?));
            }
            tables.insert(table, rows);
        }
        Some(Self(tables))
    }
}

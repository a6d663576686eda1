//! The stored rows, as transactions see them.

use bytes::Bytes;
use cuemq_storage_api::{Engine, StorageError, Table};

use crate::domain::application::{Row, Rows};

/// Reads straight from the engine: what is applied.
pub(crate) struct StoredRows<'a>(pub(crate) &'a dyn Engine);

impl Rows for StoredRows<'_> {
    type Error = StorageError;

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.0.get(table, key)
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, StorageError> {
        self.0.scan(table, from, to, limit)
    }
}

//! Reads a whole range of a table, page by page.

use cuemq_storage_api::{Engine, Result, Table};

/// Rows read at a time: bounds the memory of a long scan.
const PAGE_ROWS: usize = 1024;

/// Calls `visit` with every row of `[from, to)` in key order, at most `limit` of them; returns how many there were.
pub(crate) fn scan_rows<E>(
    engine: &dyn Engine,
    table: &Table,
    from: &[u8],
    to: Option<&[u8]>,
    limit: usize,
    mut visit: impl FnMut(&[u8], &bytes::Bytes) -> std::result::Result<(), E>,
) -> std::result::Result<usize, E>
where
    E: From<cuemq_storage_api::StorageError>,
{
    let mut next = from.to_vec();
    let mut count = 0;
    while count < limit {
        let page = PAGE_ROWS.min(limit - count);
        let rows: Result<_> = engine.scan(table, &next, to, page);
        let rows = rows?;
        for (key, value) in &rows {
            visit(key, value)?;
        }
        count += rows.len();
        match rows.last() {
            Some((last, _)) if rows.len() == page => {
                next.clear();
                next.extend_from_slice(last);
                next.push(0);
            }
            _ => break,
        }
    }
    Ok(count)
}

//! Rows of one table from three sources, in key order; of one row the youngest source counts.

use std::collections::btree_map::Range;
use std::io;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use cuemq_storage_api::Row;

use super::Rows;
use super::base::RunRows;

pub(super) struct Merge<'a> {
    young: Peekable<Range<'a, Bytes, Option<Bytes>>>,
    frozen: Peekable<Range<'a, Bytes, Option<Bytes>>>,
    base: Peekable<RunRows<'a>>,
}

impl<'a> Merge<'a> {
    /// Rows from a key on; those of `base` begin there already.
    pub(super) fn new(young: &'a Rows, frozen: &'a Rows, base: RunRows<'a>, from: &[u8]) -> Self {
        let range = |rows: &'a Rows| rows.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).peekable();
        Self { young: range(young), frozen: range(frozen), base: base.peekable() }
    }

    /// The smallest key that any source has next.
    fn next_key(&mut self) -> Option<Bytes> {
        let base = match self.base.peek() {
            Some(Ok((key, _))) => Some(key),
            _ => None,
        };
        let young = self.young.peek().map(|(key, _)| *key);
        let frozen = self.frozen.peek().map(|(key, _)| *key);
        [base, young, frozen].into_iter().flatten().min().cloned()
    }
}

impl Iterator for Merge<'_> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<io::Result<Row>> {
        loop {
            if let Some(failed) = self.base.next_if(Result::is_err) {
                return Some(failed);
            }
            let key = self.next_key()?;
            let base = self.base.next_if(|row| row.as_ref().is_ok_and(|(next, _)| *next == key));
            let base = base.and_then(Result::ok).map(|(_, value)| value);
            let frozen = self.frozen.next_if(|(next, _)| **next == key).map(|(_, value)| value.clone());
            let young = self.young.next_if(|(next, _)| **next == key).map(|(_, value)| value.clone());
            if let Some(value) = young.or(frozen).unwrap_or(base) {
                return Some(Ok((key, value)));
            }
        }
    }
}

//! Rows as the last checkpoint has them: in its file, read a block at a time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use cuemq_storage_api::{Row, Table};

use super::NO_MORE_ROWS;
use crate::files::LayerFile;
use crate::reading::{Reading, damaged};

/// A block ends with the row that makes it this large.
const BLOCK_BYTES: u64 = 4096;

/// All rows of a checkpoint. The file stays open when a later one replaces it.
#[derive(Debug, Default)]
pub(crate) struct Base {
    file: Option<Arc<dyn LayerFile>>,
    runs: BTreeMap<Table, Run>,
}

/// The rows of one table, in key order, one behind the other.
#[derive(Debug, Default)]
struct Run {
    blocks: Vec<Block>,
    /// The first keys of all blocks, one behind the other: one allocation for all of them.
    keys: Vec<u8>,
    end: u64,
}

#[derive(Debug)]
struct Block {
    /// Where its first key is in `keys`.
    first: Range<usize>,
    start: u64,
}

impl Run {
    /// The block in which a key is, if it is there: the last one that begins with it or before it.
    fn block_of(&self, key: &[u8]) -> usize {
        self.blocks.partition_point(|block| self.keys[block.first.clone()] <= *key).saturating_sub(1)
    }
}

impl Base {
    /// No rows yet, of a file that is being written or read.
    pub(super) fn of(file: Arc<dyn LayerFile>) -> Self {
        Self { file: Some(file), runs: BTreeMap::new() }
    }

    /// Notes the next row of a table.
    pub(super) fn add(&mut self, table: &Table, key: &[u8], at: Range<u64>) {
        if !self.runs.contains_key(table) {
            self.runs.insert(table.clone(), Run::default());
        }
        let Some(run) = self.runs.get_mut(table) else { return };
        if run.blocks.last().is_none_or(|block| at.start - block.start >= BLOCK_BYTES) {
            let first = run.keys.len()..run.keys.len() + key.len();
            run.keys.extend_from_slice(key);
            run.blocks.push(Block { first, start: at.start });
        }
        run.end = at.end;
    }

    /// Finds where the rows are that a snapshot wrote.
    pub(crate) fn read(file: &Arc<dyn LayerFile>, reading: &mut Reading<'_>) -> io::Result<Self> {
        let mut base = Self::of(Arc::clone(file));
        for _ in 0..reading.u32()? {
            let table = Table::new(&reading.name()?).map_err(|_| damaged())?;
            loop {
                let start = reading.position();
                let len = reading.u32()?;
                if len == NO_MORE_ROWS {
                    break;
                }
                let key = reading.bytes(u64::from(len))?.to_vec();
                let value = reading.u32()?;
                reading.skip(u64::from(value))?;
                base.add(&table, &key, start..reading.position());
            }
        }
        Ok(base)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.runs.keys()
    }

    /// Whether there are rows of a table.
    pub(super) fn has(&self, table: &Table) -> bool {
        self.runs.contains_key(table)
    }

    pub(super) fn get(&self, table: &Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self.rows(table, key).next().transpose()? {
            // Not a slice, which would keep the whole block.
            Some((found, value)) if found == key => Ok(Some(Bytes::copy_from_slice(&value))),
            _ => Ok(None),
        }
    }

    /// The rows of a table from a key on.
    pub(super) fn rows(&self, table: &Table, from: &[u8]) -> RunRows<'_> {
        let run = self.file.as_ref().and_then(|file| self.runs.get(table).map(|run| (&**file, run)));
        let next = run.map_or(0, |(_, run)| run.block_of(from));
        RunRows { run, next, block: Bytes::new(), from: from.to_vec() }
    }
}

/// See [`Base::rows`].
#[derive(Debug)]
pub(super) struct RunRows<'a> {
    run: Option<(&'a dyn LayerFile, &'a Run)>,
    /// The block to be read next.
    next: usize,
    /// What is left of the one that was read.
    block: Bytes,
    /// Rows before this key are passed over.
    from: Vec<u8>,
}

impl RunRows<'_> {
    /// Reads the next block; `false` behind the last one.
    fn read(&mut self) -> io::Result<bool> {
        let Some((file, run)) = self.run else { return Ok(false) };
        let Some(block) = run.blocks.get(self.next) else { return Ok(false) };
        let end = run.blocks.get(self.next + 1).map_or(run.end, |next| next.start);
        let mut bytes = vec![0; usize::try_from(end - block.start).map_err(|_| damaged())?];
        file.read_at(block.start, &mut bytes)?;
        self.block = bytes.into();
        self.next += 1;
        Ok(true)
    }

    fn part(&mut self) -> io::Result<Bytes> {
        let len = self.block.try_get_u32_le().ok().and_then(|len| usize::try_from(len).ok());
        match len {
            Some(len) if len <= self.block.len() => Ok(self.block.split_to(len)),
            _ => Err(damaged()),
        }
    }

    fn row(&mut self) -> io::Result<Option<Row>> {
        loop {
            if self.block.is_empty() && !self.read()? {
                return Ok(None);
            }
            let row = (self.part()?, self.part()?);
            if row.0 >= self.from {
                return Ok(Some(row));
            }
        }
    }
}

impl Iterator for RunRows<'_> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<io::Result<Row>> {
        let row = self.row().transpose();
        if matches!(row, Some(Err(_))) {
            // Behind an error there is nothing that can be trusted.
            (self.run, self.block) = (None, Bytes::new());
        }
        row
    }
}

//! Messages that were withdrawn so far ahead of the group, and behind so many gaps, that its progress has no room for
//! them: each has a row in storage until the group comes to it. In memory is only from where on there are such rows.

use std::collections::BTreeMap;

use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{Engine, GroupName, QueueOffset, WriteBatch};

use super::offsets::OffsetOwner;
use crate::error::{Error, Result};
use crate::limits::MAX_PASSED_ROWS_REMOVED;
use crate::storage::scan_rows;
use crate::tables::withdrawn as table;

/// For each owner that has rows, an offset below which there are none. Bounded by the group's queues and members.
#[derive(Debug, Default)]
pub(super) struct WithdrawnAhead(BTreeMap<OffsetOwner, QueueOffset>);

impl WithdrawnAhead {
    /// Finds out anew whose rows storage has, with one short read for each.
    pub(super) fn reload(&mut self, engine: &dyn Engine, group: &GroupName) -> Result<()> {
        self.0.clear();
        let keys = table::keys_of_group(group);
        let mut from = keys.start;
        while let Some((key, _)) = engine.scan(&table::TABLE, &from, Some(&keys.end), 1)?.pop() {
            let (_, queue, member, offset) = table::decode_key(&key)?;
            from = table::key(group, &queue, member.as_ref(), QueueOffset::new(MAX_POSITION));
            self.0.insert(OffsetOwner { queue, member }, offset);
        }
        Ok(())
    }

    /// Whether a message was withdrawn, though the group's progress does not say so.
    pub(super) fn has(
        &self,
        engine: &dyn Engine,
        group: &GroupName,
        owner: &OffsetOwner,
        offset: QueueOffset,
    ) -> Result<bool> {
        if self.0.get(owner).is_none_or(|first| offset < *first) {
            return Ok(false);
        }
        let key = table::key(group, &owner.queue, owner.member.as_ref(), offset);
        Ok(engine.get(&table::TABLE, &key)?.is_some())
    }

    /// A message's row is stored.
    pub(super) fn add(&mut self, owner: &OffsetOwner, offset: QueueOffset) {
        let first = self.0.entry(owner.clone()).or_insert(offset);
        *first = offset.min(*first);
    }

    /// Adds to a batch that the rows of what is committed by now go, those of a long jump some at a time. Should the batch
    /// be refused they stay until the group is read anew, where nobody looks at them.
    pub(super) fn delete_passed(
        &mut self,
        engine: &dyn Engine,
        group: &GroupName,
        committed: impl Fn(&OffsetOwner) -> Option<QueueOffset>,
        batch: &mut WriteBatch,
    ) -> Result<()> {
        let mut empty = Vec::new();
        for (owner, first) in &mut self.0 {
            let Some(committed) = committed(owner).filter(|committed| *committed > *first) else { continue };
            let key = |offset| table::key(group, &owner.queue, owner.member.as_ref(), offset);
            let (from, to) = (key(*first), key(committed));
            scan_rows::<Error>(engine, &table::TABLE, &from, Some(&to), MAX_PASSED_ROWS_REMOVED, |key, _| {
                batch.delete(&table::TABLE, key.to_vec());
                *first = table::decode_key(key)?.3.plus(1);
                Ok(())
            })?;
            let rest = engine.scan(&table::TABLE, &key(*first), Some(&key(QueueOffset::new(MAX_POSITION))), 1)?;
            match rest.first() {
                Some((key, _)) => *first = table::decode_key(key)?.3,
                None => empty.push(owner.clone()),
            }
        }
        self.0.retain(|owner, _| !empty.contains(owner));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::{MemoryEngine, QueueId, QueueKey, Timestamp, TopicName};

    use super::*;

    fn owner(queue: u32) -> OffsetOwner {
        let topic = TopicName::new("orders").unwrap();
        OffsetOwner { queue: QueueKey::new(topic, QueueId::new(queue).unwrap()), member: None }
    }

    fn with_rows(engine: &MemoryEngine, group: &GroupName, rows: impl Iterator<Item = (u32, u64)>) {
        let mut batch = WriteBatch::new(Timestamp::from_millis(1));
        for (queue, offset) in rows {
            let key = table::key(group, &owner(queue).queue, None, QueueOffset::new(offset));
            batch.put(&table::TABLE, key, table::row());
        }
        engine.apply(batch).unwrap();
    }

    fn rows_of(engine: &MemoryEngine, group: &GroupName) -> usize {
        let keys = table::keys_of_group(group);
        engine.scan(&table::TABLE, &keys.start, Some(&keys.end), usize::MAX).unwrap().len()
    }

    #[test]
    fn rows_are_found_again_and_go_once_they_are_passed() {
        let (engine, group) = (MemoryEngine::new(), GroupName::new("g").unwrap());
        let many = MAX_PASSED_ROWS_REMOVED as u64 + 10;
        with_rows(&engine, &group, (0..many).map(|n| (0, 10 + n)).chain([(1, 5), (2, 7), (2, 9)]));
        with_rows(&engine, &GroupName::new("g2").unwrap(), std::iter::once((0, 1)));
        let mut ahead = WithdrawnAhead::default();
        ahead.reload(&engine, &group).unwrap();
        let at = QueueOffset::new;
        assert_eq!(ahead.0, BTreeMap::from([(owner(0), at(10)), (owner(1), at(5)), (owner(2), at(7))]));
        let has =
            |ahead: &WithdrawnAhead, queue, offset| ahead.has(&engine, &group, &owner(queue), at(offset)).unwrap();
        assert!(has(&ahead, 0, 10) && has(&ahead, 2, 9) && !has(&ahead, 2, 8) && !has(&ahead, 3, 9));

        let committed = |of: &OffsetOwner| match of.queue.queue.get() {
            0 => Some(at(100_000)),
            1 => Some(at(5)),
            _ => Some(at(8)),
        };
        let pass = |ahead: &mut WithdrawnAhead| {
            let mut batch = WriteBatch::new(Timestamp::from_millis(2));
            ahead.delete_passed(&engine, &group, committed, &mut batch).unwrap();
            engine.apply(batch).unwrap();
        };
        pass(&mut ahead);
        assert_eq!(rows_of(&engine, &group), 10 + 1 + 1, "one write removes only so many");
        assert!(has(&ahead, 1, 5), "not passed yet");
        assert!(!has(&ahead, 2, 7) && has(&ahead, 2, 9));
        pass(&mut ahead);
        assert_eq!(ahead.0, BTreeMap::from([(owner(1), at(5)), (owner(2), at(9))]));
        assert_eq!(rows_of(&engine, &group), 2);
        ahead.add(&owner(2), at(8));
        ahead.add(&owner(4), at(8));
        assert_eq!(ahead.0, BTreeMap::from([(owner(1), at(5)), (owner(2), at(8)), (owner(4), at(8))]));
    }
}

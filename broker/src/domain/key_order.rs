//! Which of a queue's messages may go out next, when those of one sharding key follow each other.
//!
//! ```text
//!  read:     a1  b1  a2  -  a3  b2
//!  may go:   a1  b1      -               a2 and a3 are held back behind a1, b2 behind b1; no key, nothing to wait for
//!  a1 done:          a2                  a3 is held back behind a2
//! ```
//! A key stays with its message until that is done, however often it fails and is given out again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::QueueOffset;

/// The messages of one queue that were read and are not out yet, and the keys that are taken.
#[derive(Debug)]
pub(crate) struct KeyOrder<T> {
    /// What may go out: no two of one key.
    free: VecDeque<Entry<T>>,
    /// The keys that have a message free or out, each with what is held back behind it.
    taken: HashMap<Arc<str>, VecDeque<Entry<T>>>,
    /// The keys of what is out.
    out: BTreeMap<QueueOffset, Arc<str>>,
    /// What waits, free or held back.
    waiting: usize,
    waiting_bytes: usize,
}

#[derive(Debug)]
struct Entry<T> {
    offset: QueueOffset,
    key: Option<Arc<str>>,
    bytes: usize,
    item: T,
}

impl<T> Default for KeyOrder<T> {
    fn default() -> Self {
        let (free, taken, out) = (VecDeque::new(), HashMap::new(), BTreeMap::new());
        Self { free, taken, out, waiting: 0, waiting_bytes: 0 }
    }
}

impl<T> KeyOrder<T> {
    /// Takes up the next message of the queue.
    pub(crate) fn push(&mut self, offset: QueueOffset, key: Option<&str>, bytes: usize, item: T) {
        self.waiting += 1;
        self.waiting_bytes += bytes;
        let Some(key) = key else { return self.free.push_back(Entry { offset, key: None, bytes, item }) };
        if let Some((key, _)) = self.taken.get_key_value(key) {
            let key = Arc::clone(key);
            let behind = self.taken.entry(Arc::clone(&key)).or_default();
            behind.push_back(Entry { offset, key: Some(key), bytes, item });
            return;
        }
        let key: Arc<str> = key.into();
        self.taken.insert(Arc::clone(&key), VecDeque::new());
        self.free.push_back(Entry { offset, key: Some(key), bytes, item });
    }

    /// Takes what has been free for longest. Its key is its own until it is [`done`](Self::done).
    pub(crate) fn take(&mut self) -> Option<T> {
        let Entry { offset, key, item, bytes } = self.free.pop_front()?;
        self.waiting -= 1;
        self.waiting_bytes -= bytes;
        if let Some(key) = key {
            self.out.insert(offset, key);
        }
        Some(item)
    }

    /// Messages that were out are done: the next ones of their keys are free.
    pub(crate) fn done(&mut self, range: Range<QueueOffset>) {
        while let Some((offset, key)) = self.out.range(range.clone()).next().map(|(at, key)| (*at, Arc::clone(key))) {
            self.out.remove(&offset);
            self.pass_on(&key);
        }
    }

    /// Drops what lies below `to` and is not out; what is out keeps its key.
    pub(crate) fn pass_over(&mut self, to: QueueOffset) {
        for behind in self.taken.values_mut() {
            while let Some(bytes) = behind.front().filter(|entry| entry.offset < to).map(|entry| entry.bytes) {
                behind.pop_front();
                self.waiting -= 1;
                self.waiting_bytes -= bytes;
            }
        }
        let (stays, dropped): (VecDeque<_>, VecDeque<_>) = self.free.drain(..).partition(|entry| entry.offset >= to);
        self.free = stays;
        for entry in dropped {
            self.waiting -= 1;
            self.waiting_bytes -= entry.bytes;
            if let Some(key) = entry.key {
                self.pass_on(&key);
            }
        }
    }

    /// Drops what does not stay and is not out; what is out keeps its key.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        for behind in self.taken.values_mut() {
            behind.retain(|entry| {
                let stays = stays(&entry.item);
                if !stays {
                    self.waiting -= 1;
                    self.waiting_bytes -= entry.bytes;
                }
                stays
            });
        }
        let (stay, dropped): (VecDeque<_>, VecDeque<_>) = self.free.drain(..).partition(|entry| stays(&entry.item));
        self.free = stay;
        for entry in dropped {
            self.waiting -= 1;
            self.waiting_bytes -= entry.bytes;
            if let Some(key) = entry.key {
                self.pass_on(&key);
            }
        }
    }

    /// Everything that is not out, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.free.iter().chain(self.taken.values().flatten()).map(|entry| &entry.item)
    }

    /// The message that had a key is gone: the next one is free.
    fn pass_on(&mut self, key: &Arc<str>) {
        match self.taken.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.free.push_back(next),
            None => drop(self.taken.remove(key)),
        }
    }

    /// How many messages are not out yet.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// Their payload.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Everything that is not out.
    pub(crate) fn into_items(self) -> impl Iterator<Item = T> {
        self.free.into_iter().chain(self.taken.into_values().flatten()).map(|entry| entry.item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(offset: u64) -> QueueOffset {
        QueueOffset::new(offset)
    }

    /// Messages named by key and number; `-` has no key.
    fn queue(names: &[&'static str]) -> KeyOrder<&'static str> {
        let mut order = KeyOrder::default();
        for (offset, name) in (0..).zip(names) {
            let key = Some(&name[..1]).filter(|key| *key != "-");
            order.push(at(offset), key, 10, *name);
        }
        order
    }

    fn take_all<T>(order: &mut KeyOrder<T>) -> Vec<T> {
        std::iter::from_fn(|| order.take()).collect()
    }

    #[test]
    fn a_key_waits_for_itself_alone() {
        let mut order = queue(&["a1", "b1", "a2", "-1", "a3", "b2", "-2"]);
        assert_eq!((order.len(), order.bytes()), (7, 70));
        assert_eq!(take_all(&mut order), ["a1", "b1", "-1", "-2"]);
        assert_eq!((order.len(), order.bytes()), (3, 30));
        order.done(at(3)..at(4));
        assert_eq!(order.take(), None, "one without a key frees nothing");
        order.done(at(0)..at(1));
        assert_eq!(take_all(&mut order), ["a2"]);
        order.done(at(0)..at(1));
        assert_eq!(order.take(), None, "done twice is done once");
        order.done(at(1)..at(3));
        assert_eq!(take_all(&mut order), ["b2", "a3"], "in the order in which they became free");
        order.done(at(0)..at(9));
        assert_eq!(
            (order.taken.len(), order.out.len(), order.len(), order.bytes()),
            (0, 0, 0, 0),
            "nothing is left behind"
        );
    }

    #[test]
    fn what_comes_later_waits_too() {
        let mut order = queue(&["a1", "a2"]);
        assert_eq!(take_all(&mut order), ["a1"]);
        order.push(at(2), Some("a"), 1, "a3");
        order.push(at(3), Some("b"), 1, "b1");
        assert_eq!((order.len(), order.bytes()), (3, 12));
        assert_eq!(take_all(&mut order), ["b1"]);
        order.done(at(0)..at(1));
        assert_eq!(take_all(&mut order), ["a2"]);
        order.done(at(1)..at(2));
        assert_eq!(take_all(&mut order), ["a3"]);
        order.done(at(2)..at(3));
        order.push(at(4), Some("a"), 1, "a4");
        assert_eq!(take_all(&mut order), ["a4"], "a key is free again when nothing of it is left");
    }

    #[test]
    fn passing_over_frees_what_comes_behind() {
        let mut order = queue(&["a1", "a2", "b1", "b2", "-1", "a3", "b3", "c1"]);
        assert_eq!(order.take(), Some("a1"));
        order.pass_over(at(5));
        assert_eq!(order.len(), 3, "a3 waits for a1, which is out; b3 and c1 are free");
        assert_eq!(take_all(&mut order), ["c1", "b3"]);
        order.done(at(0)..at(1));
        assert_eq!(take_all(&mut order), ["a3"]);
        order.pass_over(at(99));
        order.done(at(5)..at(8));
        assert_eq!((order.taken.len(), order.out.len(), order.len(), order.bytes()), (0, 0, 0, 0));
    }

    #[test]
    fn what_is_not_out_can_be_taken_away() {
        let mut order = queue(&["a1", "a2", "b1", "-1"]);
        assert_eq!(order.take(), Some("a1"));
        let mut rest: Vec<_> = order.into_items().collect();
        rest.sort_unstable();
        assert_eq!(rest, ["-1", "a2", "b1"]);
    }

    #[test]
    fn what_does_not_stay_frees_what_comes_behind() {
        let mut order = queue(&["a1", "a2", "b1", "b2", "-1", "a3", "b3", "c1"]);
        assert_eq!(order.take(), Some("a1"));
        order.retain(|name| !["a2", "b1", "b2", "c1"].contains(name));
        let mut left: Vec<_> = order.iter().copied().collect();
        left.sort_unstable();
        assert_eq!((left, order.len()), (vec!["-1", "a3", "b3"], 3));
        assert_eq!(take_all(&mut order), ["-1", "b3"]);
        order.done(at(0)..at(9));
        assert_eq!(take_all(&mut order), ["a3"]);
        order.done(at(0)..at(9));
        assert_eq!((order.taken.len(), order.out.len(), order.len(), order.bytes()), (0, 0, 0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Take,
        Done(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..5).prop_map(Step::Push),
            3 => Just(Step::Take),
            3 => (0usize..8).prop_map(Step::Done),
        ]
    }

    proptest! {
        /// Each message comes out once; of one key in order, one at a time; and nothing waits that has nothing before it.
        #[test]
        fn keys_are_fifo_and_do_not_wait_for_each_other(steps in prop::collection::vec(any_step(), 0..200)) {
            let (mut order, mut pushed, mut out, mut done) = (KeyOrder::default(), 0, Vec::new(), 0);
            let mut waiting: BTreeMap<u8, VecDeque<u64>> = BTreeMap::new();
            let end = [Step::Take, Step::Done(0)].into_iter().cycle().take(1000);
            for step in steps.into_iter().chain(end) {
                match step {
                    Step::Push(key) => {
                        let text = key.to_string();
                        order.push(at(pushed), Some(text.as_str()).filter(|_| key > 0), 1, (key, pushed));
                        waiting.entry(key).or_default().push_back(pushed);
                        pushed += 1;
                    }
                    Step::Take => {
                        let is_out = |key: u8| out.iter().any(|(other, _)| *other == key);
                        match order.take() {
                            Some((key, number)) => {
                                prop_assert!(key == 0 || !is_out(key), "key {} is out twice", key);
                                prop_assert_eq!(waiting.get_mut(&key).and_then(VecDeque::pop_front), Some(number));
                                out.push((key, number));
                            }
                            None => {
                                let starved = waiting.iter().find(|(key, w)| !w.is_empty() && (**key == 0 || !is_out(**key)));
                                prop_assert!(starved.is_none(), "{:?} could go", starved);
                            }
                        }
                    }
                    Step::Done(which) if !out.is_empty() => {
                        let (_, number) = out.remove(which % out.len());
                        order.done(at(number)..at(number + 1));
                        done += 1;
                    }
                    Step::Done(_) => {}
                }
            }
            prop_assert_eq!(done, pushed, "everything came out");
            prop_assert_eq!((order.taken.len(), order.out.len(), order.len(), order.bytes()), (0, 0, 0, 0));
        }
    }
}

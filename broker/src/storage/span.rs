//! Writes that reach several queues: what they bring is shown in all of them at one moment.
//!
//! ```text
//!  begin ──▶ apply ──▶ placed ──▶ acknowledged, and nothing before it in any of its queues is open ──▶ shown
//! ```
//! From `begin` on no queue of a span is shown beyond the span's first record, whoever appends behind it, until the
//! span itself is. Then all of its queues move while a curtain is drawn: a reader that asks meanwhile how far it may
//! read waits, so that whoever has seen one part finds every other. That is some stores to memory long.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tail::QueueTail;

/// One per broker.
#[derive(Debug, Default)]
pub(super) struct Curtain {
    drawn: AtomicBool,
    spans: Mutex<Spans>,
}

/// Spans that are open. Bounded by what is in flight.
#[derive(Debug, Default)]
struct Spans {
    next: u64,
    /// Those that may be shown as soon as nothing before them is open: how far each of their queues reaches.
    acknowledged: HashMap<u64, Vec<Reach>>,
}

/// How far a queue may be shown once a span is.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) tail: Arc<QueueTail>,
    pub(super) end: u64,
}

/// What of one queue belongs to spans that are not shown.
#[derive(Debug, Default)]
pub(super) struct OpenSpans {
    /// First offset and number; before it is placed a span stands before all that are.
    open: BTreeSet<(Option<u64>, u64)>,
    /// How far the queue is acknowledged, by spans and by others.
    pub(super) reached: u64,
}

impl OpenSpans {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The first one, if it is placed.
    fn front(&self) -> Option<u64> {
        self.open.first().and_then(|(first, number)| first.map(|_| *number))
    }

    /// How far the queue may be shown; `None` while that is not known.
    pub(super) fn limit(&self) -> Option<u64> {
        match self.open.first() {
            None => Some(self.reached),
            Some((Some(first), _)) => Some(self.reached.min(*first)),
            Some((None, _)) => None,
        }
    }
}

impl Curtain {
    fn lock(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when no span is being shown.
    pub(super) fn wait(&self) {
        if self.drawn.load(Ordering::Acquire) {
            drop(self.lock());
        }
    }

    /// Opens a span over these queues, each named once. Its batch is applied afterwards.
    pub(super) fn begin(self: &Arc<Self>, tails: Vec<Arc<QueueTail>>) -> Span {
        let mut spans = self.lock();
        spans.next += 1;
        let number = spans.next;
        for tail in &tails {
            tail.with_spans(|open| open.open.insert((None, number)));
        }
        Span { curtain: Arc::clone(self), number, tails, firsts: Vec::new(), ended: false }
    }

    /// Shows every acknowledged span that these queues no longer hold back.
    fn show(&self, spans: &mut Spans, numbers: impl IntoIterator<Item = u64>) {
        let mut numbers: VecDeque<u64> = numbers.into_iter().collect();
        while let Some(number) = numbers.pop_front() {
            let free = |reach: &Reach| front(&reach.tail) == Some(number);
            if !spans.acknowledged.get(&number).is_some_and(|reaches| reaches.iter().all(free)) {
                continue;
            }
            let reaches = spans.acknowledged.remove(&number).unwrap_or_default();
            self.drawn.store(true, Ordering::Release);
            for reach in &reaches {
                reach.tail.with_spans(|open| {
                    open.open.pop_first();
                    open.reached = open.reached.max(reach.end);
                });
            }
            self.drawn.store(false, Ordering::Release);
            for reach in reaches {
                reach.tail.wake();
                numbers.extend(front(&reach.tail));
            }
        }
    }
}

/// A batch that reaches several queues, on its way. Dropped before it is acknowledged, it holds nothing back any more.
#[derive(Debug)]
pub(super) struct Span {
    curtain: Arc<Curtain>,
    number: u64,
    tails: Vec<Arc<QueueTail>>,
    /// The first offset in each queue, once it is applied.
    firsts: Vec<u64>,
    ended: bool,
}

impl Span {
    /// Its queues, each once.
    pub(super) fn tails(&self) -> &[Arc<QueueTail>] {
        &self.tails
    }

    /// The batch is applied: where it begins in each queue, in the order of the queues.
    pub(super) fn placed(&mut self, firsts: Vec<u64>) {
        let mut spans = self.curtain.lock();
        for (tail, first) in self.tails.iter().zip(&firsts) {
            tail.with_spans(|open| {
                open.open.remove(&(None, self.number));
                open.open.insert((Some(*first), self.number));
            });
        }
        // Others may have waited to know.
        let fronts: Vec<u64> = self.tails.iter().filter_map(|tail| front(tail)).collect();
        self.firsts = firsts;
        self.curtain.show(&mut spans, fronts);
    }

    /// The batch is acknowledged: how far it reaches in each queue, in the order of the queues.
    pub(super) fn acknowledged(mut self, ends: Vec<u64>) {
        let tails = std::mem::take(&mut self.tails);
        let reaches = tails.into_iter().zip(ends).map(|(tail, end)| Reach { tail, end }).collect();
        let mut spans = self.curtain.lock();
        self.ended = true;
        spans.acknowledged.insert(self.number, reaches);
        self.curtain.show(&mut spans, [self.number]);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut spans = self.curtain.lock();
        let firsts = self.firsts.iter().copied().map(Some).chain(std::iter::repeat(None));
        for (tail, first) in self.tails.iter().zip(firsts) {
            tail.with_spans(|open| open.open.remove(&(first, self.number)));
        }
        let fronts: Vec<u64> = self.tails.iter().filter_map(|tail| front(tail)).collect();
        self.curtain.show(&mut spans, fronts);
    }
}

/// The span that comes first in a queue, if it is placed.
fn front(tail: &QueueTail) -> Option<u64> {
    tail.with_spans(|open| open.front())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use cuemq_storage_api::QueueOffset;

    use super::*;

    fn tails(count: usize) -> (Arc<Curtain>, Vec<Arc<QueueTail>>) {
        let curtain = Arc::new(Curtain::default());
        let tails = (0..count).map(|_| Arc::new(QueueTail::new(QueueOffset::ZERO, Arc::clone(&curtain)))).collect();
        (curtain, tails)
    }

    fn visible(tails: &[Arc<QueueTail>]) -> Vec<u64> {
        tails.iter().map(|tail| tail.visible().get()).collect()
    }

    #[test]
    fn what_comes_behind_a_span_waits_for_it() {
        let (curtain, tails) = tails(2);
        let mut span = curtain.begin(tails.clone());
        tails[0].advance(QueueOffset::new(1));
        assert_eq!(visible(&tails), [0, 0], "nobody knows yet where it begins");
        span.placed(vec![1, 0]);
        assert_eq!(visible(&tails), [1, 0], "up to where it begins");
        tails[0].advance(QueueOffset::new(3));
        assert_eq!(visible(&tails), [1, 0]);
        span.acknowledged(vec![2, 1]);
        assert_eq!(visible(&tails), [3, 1]);
        tails[1].advance(QueueOffset::new(2));
        assert_eq!(visible(&tails), [3, 2], "nothing is held back any more");
    }

    #[test]
    fn a_span_that_is_given_up_holds_nothing_back() {
        let (curtain, tails) = tails(2);
        for placed in [false, true] {
            let before = visible(&tails)[0];
            let mut span = curtain.begin(tails.clone());
            if placed {
                span.placed(vec![before, 0]);
            }
            tails[0].advance(QueueOffset::new(before + 1));
            assert_eq!(visible(&tails), [before, 0]);
            drop(span);
            assert_eq!(visible(&tails), [before + 1, 0]);
        }
    }

    #[test]
    fn spans_are_shown_whole_in_the_order_of_their_queues() {
        let (curtain, tails) = tails(3);
        let pair = |a: usize, b: usize| vec![Arc::clone(&tails[a]), Arc::clone(&tails[b])];
        let (mut first, mut second) = (curtain.begin(pair(0, 1)), curtain.begin(pair(1, 2)));
        second.placed(vec![1, 0]);
        second.acknowledged(vec![2, 1]);
        assert_eq!(visible(&tails), [0, 0, 0], "the first one may come before it");
        first.placed(vec![0, 0]);
        assert_eq!(visible(&tails), [0, 0, 0], "it does");
        first.acknowledged(vec![1, 1]);
        assert_eq!(visible(&tails), [1, 2, 1]);
    }

    #[test]
    fn whoever_sees_one_part_finds_the_other() {
        const ROUNDS: u64 = 20_000;
        let (curtain, tails) = tails(2);
        let start = Barrier::new(3);
        std::thread::scope(|scope| {
            for (here, there) in [(0, 1), (1, 0)] {
                let (tails, start) = (&tails, &start);
                scope.spawn(move || {
                    start.wait();
                    loop {
                        let seen = tails[here].visible();
                        assert!(tails[there].visible() >= seen, "a part of a span was shown alone");
                        if seen.get() == ROUNDS {
                            return;
                        }
                    }
                });
            }
            start.wait();
            for round in 0..ROUNDS {
                let mut span = curtain.begin(tails.clone());
                span.placed(vec![round, round]);
                span.acknowledged(vec![round + 1, round + 1]);
            }
        });
    }
}

//! How far a queue may be read, and who wants to know when that changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use cuemq_storage_api::{Engine, QueueKey, QueueOffset, Result};
use tokio::sync::Notify;

use super::span::{Curtain, OpenSpans, Span};

/// Wakes one consumer. A wake that comes while nobody waits is kept, so none is lost.
#[derive(Debug, Default)]
pub(crate) struct Signal(Notify);

impl Signal {
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }

    pub(crate) async fn wait(&self) {
        self.0.notified().await;
    }
}

/// The end of what consumers may see of one queue (promise P5): durable records in a durable topic, applied ones in
/// a buffered one.
#[derive(Debug)]
pub(crate) struct QueueTail {
    visible: AtomicU64,
    /// Whether spans are open in this queue.
    spanned: AtomicBool,
    spans: Mutex<OpenSpans>,
    curtain: Arc<Curtain>,
    listened: AtomicBool,
    listeners: Mutex<Vec<Weak<Signal>>>,
}

impl QueueTail {
    pub(super) fn new(visible: QueueOffset, curtain: Arc<Curtain>) -> Self {
        Self {
            visible: AtomicU64::new(visible.get()),
            spanned: AtomicBool::new(false),
            spans: Mutex::default(),
            curtain,
            listened: AtomicBool::new(false),
            listeners: Mutex::default(),
        }
    }

    /// How far it may be read. Whoever has seen a part of a batch that reaches several queues finds the others, too.
    pub(crate) fn visible(&self) -> QueueOffset {
        self.curtain.wait();
        QueueOffset::new(self.visible.load(Ordering::Acquire))
    }

    /// Shows everything below `end`, or as much of it as does not lie behind an open span, and wakes whoever listens.
    /// Never moves backwards.
    pub(crate) fn advance(&self, end: QueueOffset) {
        // A span that opens after this look is applied after what ends here, and so lies behind it.
        if self.spanned.load(Ordering::Acquire) {
            self.with_spans(|open| open.reached = open.reached.max(end.get()));
        } else {
            self.visible.fetch_max(end.get(), Ordering::AcqRel);
        }
        self.wake();
    }

    /// Changes the open spans and shows what they let.
    pub(super) fn with_spans<R>(&self, change: impl FnOnce(&mut OpenSpans) -> R) -> R {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut spans);
        if let Some(limit) = spans.limit() {
            self.visible.fetch_max(limit, Ordering::AcqRel);
        }
        self.spanned.store(!spans.is_empty(), Ordering::Release);
        changed
    }

    /// Wakes whoever listens.
    pub(super) fn wake(&self) {
        if self.listened.load(Ordering::Acquire) {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.retain(|listener| listener.upgrade().inspect(|signal| signal.wake()).is_some());
            self.listened.store(!listeners.is_empty(), Ordering::Release);
        }
    }

    /// Wakes `signal` at every advance until it is dropped.
    pub(crate) fn listen(&self, signal: &Arc<Signal>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let known = listeners.iter().any(|l| std::ptr::eq(l.as_ptr(), Arc::as_ptr(signal)));
        if !known {
            listeners.push(Arc::downgrade(signal));
        }
        self.listened.store(true, Ordering::Release);
        drop(listeners);
        signal.wake();
    }
}

/// All tails of one broker.
#[derive(Debug, Default)]
pub(super) struct Tails {
    by_queue: RwLock<HashMap<QueueKey, Arc<QueueTail>>>,
    curtain: Arc<Curtain>,
}

impl Tails {
    /// Opens a span if there are several queues; each may be named more than once.
    pub(super) fn span(&self, tails: &[Arc<QueueTail>]) -> Option<Span> {
        let first = tails.first()?;
        if tails.iter().all(|tail| Arc::ptr_eq(tail, first)) {
            return None;
        }
        let mut each: Vec<Arc<QueueTail>> = tails.to_vec();
        each.sort_by_key(|tail| Arc::as_ptr(tail).addr());
        each.dedup_by(|one, other| Arc::ptr_eq(one, other));
        Some(self.curtain.begin(each))
    }

    pub(super) fn get(&self, queue: &QueueKey, engine: &dyn Engine) -> Result<Arc<QueueTail>> {
        if let Some(tail) = self.by_queue.read().unwrap_or_else(PoisonError::into_inner).get(queue) {
            return Ok(Arc::clone(tail));
        }
        let mut tails = self.by_queue.write().unwrap_or_else(PoisonError::into_inner);
        // Under the write lock no other first write to this queue can be between its apply and its advance: what
        // the engine shows now was there when the broker opened.
        if let Some(tail) = tails.get(queue) {
            return Ok(Arc::clone(tail));
        }
        let tail = Arc::new(QueueTail::new(engine.bounds(queue)?.end, Arc::clone(&self.curtain)));
        tails.insert(queue.clone(), Arc::clone(&tail));
        Ok(tail)
    }
}

//! How far a queue may be read, and who wants to know when that changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use cuemq_storage_api::{Engine, QueueKey, QueueOffset, Result};
use tokio::sync::Notify;

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
    listened: AtomicBool,
    listeners: Mutex<Vec<Weak<Signal>>>,
}

impl QueueTail {
    fn new(visible: QueueOffset) -> Self {
        Self { visible: AtomicU64::new(visible.get()), listened: AtomicBool::new(false), listeners: Mutex::default() }
    }

    pub(crate) fn visible(&self) -> QueueOffset {
        QueueOffset::new(self.visible.load(Ordering::Acquire))
    }

    /// Shows everything below `end` and wakes whoever listens. Never moves backwards.
    pub(crate) fn advance(&self, end: QueueOffset) {
        self.visible.fetch_max(end.get(), Ordering::AcqRel);
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
}

impl Tails {
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
        let tail = Arc::new(QueueTail::new(engine.bounds(queue)?.end));
        tails.insert(queue.clone(), Arc::clone(&tail));
        Ok(tail)
    }
}

//! What readers see: the queues, and which state of the tables goes with them.
//!
//! A batch that changes tables *and* queues becomes visible in two steps: its rows when the store commits it, its queue
//! ends when they are published. In between, readers of tables get a view from before the commit. They never wait for
//! the second step: a store's commit may sleep for long once its rows are there, and actors read tables.

use std::ops::{Deref, DerefMut};

use crate::registry::Registry;

/// The queues with the state of the tables that goes with them.
#[derive(Debug)]
pub(crate) struct Published<V> {
    registry: Registry,
    before: Option<V>,
}

impl<V> Published<V> {
    /// Queues that go with the newest state of the tables.
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, before: None }
    }

    /// Makes `view`, taken now, the state of the tables until [`show`](Self::show).
    pub(crate) fn hide(&mut self, view: V) {
        self.before = Some(view);
    }

    /// Makes the newest state of the tables the one that goes with the queues.
    pub(crate) fn show(&mut self) {
        self.before = None;
    }

    /// The state of the tables that goes with the queues, when it is not the newest one.
    pub(crate) fn before(&self) -> Option<&V> {
        self.before.as_ref()
    }
}

impl<V> Deref for Published<V> {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl<V> DerefMut for Published<V> {
    fn deref_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }
}

//! Which ring partitions a node may speak for. How it gets there is in `rebuild`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::layout::Slice;

/// What this node may speak for.
#[derive(Debug)]
pub(crate) struct Standing {
    inner: Mutex<(bool, BTreeSet<Slice>)>,
    /// A source had something: this directory may have had it too, once.
    found: AtomicBool,
}

impl Standing {
    pub(crate) fn new(whole: bool) -> Self {
        Self { inner: Mutex::new((whole, BTreeSet::new())), found: AtomicBool::new(false) }
    }

    /// Whether this node lacks nothing of any ring.
    pub(crate) fn is_whole(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether a source had something.
    pub(crate) fn found_data(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    /// A source had something.
    pub(crate) fn note_data(&self) {
        self.found.store(true, Ordering::Relaxed);
    }

    /// Whether the ring partition lacks nothing here.
    pub(crate) fn serves(&self, slice: Slice) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 || inner.1.contains(&slice)
    }

    /// This node lacks nothing of any ring from now on.
    pub(crate) fn set_whole(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).0 = true;
    }

    /// The ring partition lacks nothing here from now on.
    pub(crate) fn serve(&self, slice: Slice) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.insert(slice);
    }
}

//! What a node may speak for: ring partitions, and single keys of them that it could not get. How it gets
//! there is in `rebuild`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::{Place, Slice};
use crate::limits;

#[derive(Debug, Default)]
struct Spoken {
    whole: bool,
    slices: BTreeSet<Slice>,
    /// Keys of which a source has something that this node cannot take.
    lacking: BTreeSet<Place>,
}

/// What this node may speak for.
#[derive(Debug)]
pub(crate) struct Standing {
    inner: Mutex<Spoken>,
    /// A source had something: this directory may have had it too, once.
    found: AtomicBool,
}

impl Standing {
    pub(crate) fn new(whole: bool) -> Self {
        let inner = Mutex::new(Spoken { whole, ..Spoken::default() });
        Self { inner, found: AtomicBool::new(false) }
    }

    fn spoken(&self) -> MutexGuard<'_, Spoken> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this node lacks nothing of any ring, but for single keys.
    pub(crate) fn is_whole(&self) -> bool {
        self.spoken().whole
    }

    /// Whether a source had something.
    pub(crate) fn found_data(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    /// A source had something.
    pub(crate) fn note_data(&self) {
        self.found.store(true, Ordering::Relaxed);
    }

    /// Whether the ring partition lacks nothing here, but for single keys.
    pub(crate) fn serves(&self, slice: Slice) -> bool {
        let spoken = self.spoken();
        spoken.whole || spoken.slices.contains(&slice)
    }

    /// Whether this node has all that it should have of a key.
    pub(crate) fn knows(&self, place: &Place) -> bool {
        let spoken = self.spoken();
        (spoken.whole || spoken.slices.contains(&place.slice)) && !spoken.lacking.contains(place)
    }

    /// Whether the ring partition lacks nothing here, single keys included.
    pub(crate) fn knows_all_of(&self, slice: Slice) -> bool {
        let spoken = self.spoken();
        let lacks = spoken.lacking.iter().any(|place| place.slice == slice);
        (spoken.whole || spoken.slices.contains(&slice)) && !lacks
    }

    /// This node cannot take what a source has of a key: whether that is new, or none if there are too many
    /// such keys.
    pub(crate) fn lack(&self, place: &Place) -> Option<bool> {
        let lacking = &mut self.spoken().lacking;
        let new = !lacking.contains(place);
        if new && lacking.len() >= limits::LACKING {
            return None;
        }
        lacking.insert(place.clone());
        Some(new)
    }

    /// How many keys this node lacks.
    pub(crate) fn lacking(&self) -> usize {
        self.spoken().lacking.len()
    }

    /// This node lacks nothing of any ring from now on, but for single keys.
    pub(crate) fn set_whole(&self) {
        self.spoken().whole = true;
    }

    /// The ring partition lacks nothing here from now on, but for single keys.
    pub(crate) fn serve(&self, slice: Slice) {
        self.spoken().slices.insert(slice);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::{NamespaceId, RingId, RingPartition};

    use super::*;

    fn place(partition: u32, key: usize) -> Place {
        let slice = Slice { ring: RingId(1), partition: RingPartition(partition) };
        Place { slice, namespace: NamespaceId(1), key: Bytes::from(key.to_string()) }
    }

    #[test]
    fn a_key_that_is_lacking_is_not_spoken_for_and_they_are_bounded() {
        let standing = Standing::new(false);
        let (some, other) = (place(1, 0), place(2, 0));
        standing.serve(some.slice);
        assert!(standing.knows(&some) && !standing.knows(&other));
        assert!((0..limits::LACKING).all(|key| standing.lack(&place(1, key)) == Some(true)));
        assert_eq!((standing.lack(&other), standing.lack(&some)), (None, Some(false)), "as many as may be");
        standing.set_whole();
        assert!(!standing.knows(&some) && standing.knows(&place(1, limits::LACKING)));
        assert!(standing.serves(some.slice) && !standing.knows_all_of(some.slice));
        assert!(standing.knows(&other) && standing.knows_all_of(other.slice));
    }
}

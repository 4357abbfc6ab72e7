//! The indexes of all Raft groups.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, RwLock},
};

use super::index::GroupIndex;
use crate::locks::{lock, read, write};

/// The index of a group, shared by its handles and the writer.
pub(crate) type SharedIndex = Arc<Mutex<GroupIndex>>;

#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: RwLock<BTreeMap<u32, SharedIndex>>,
}

impl Groups {
    pub(crate) fn new(groups: BTreeMap<u32, GroupIndex>) -> Groups {
        let groups = groups.into_iter().map(|(id, index)| (id, Arc::new(Mutex::new(index)))).collect();
        Groups { groups: RwLock::new(groups) }
    }

    /// The index of a group; made when it is first asked for.
    pub(crate) fn of(&self, group: u32) -> SharedIndex {
        if let Some(found) = self.known(group) {
            return found;
        }
        write(&self.groups).entry(group).or_default().clone()
    }

    pub(crate) fn known(&self, group: u32) -> Option<SharedIndex> {
        read(&self.groups).get(&group).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(u32, SharedIndex)> {
        read(&self.groups).iter().map(|(id, index)| (*id, index.clone())).collect()
    }

    /// Bytes of memory of the indexes, and of the payloads kept beside them.
    pub(crate) fn memory_bytes(&self) -> (usize, usize) {
        let sizes = self.all().into_iter().map(|(_, index)| {
            let index = lock(&index);
            (index.memory_bytes(), index.cached_bytes())
        });
        sizes.fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }
}

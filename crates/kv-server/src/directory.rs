//! Namespaces by name and by id. Each version of the catalogue is indexed once, so that finding the namespace
//! of a request, or that there is none, costs one look-up however many there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kv_types::catalogue::Catalogue;
use kv_types::{Namespace, NamespaceId};

/// One version of the catalogue, indexed.
#[derive(Debug, Default)]
pub(crate) struct Names {
    catalogue: Arc<Catalogue>,
    by_name: HashMap<String, Arc<Namespace>>,
    by_id: HashMap<NamespaceId, Arc<Namespace>>,
}

impl Names {
    fn of(catalogue: &Arc<Catalogue>) -> Self {
        let all: Vec<_> = catalogue.namespaces.values().cloned().map(Arc::new).collect();
        let by_name = all.iter().map(|one| (one.name.as_str().to_owned(), Arc::clone(one))).collect();
        let by_id = all.iter().map(|one| (one.id, Arc::clone(one))).collect();
        Self { catalogue: Arc::clone(catalogue), by_name, by_id }
    }

    /// The version.
    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The namespace of that name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Namespace>> {
        self.by_name.get(name).map(Arc::clone)
    }

    /// The namespace of that id.
    pub(crate) fn of_id(&self, id: NamespaceId) -> Option<Arc<Namespace>> {
        self.by_id.get(&id).map(Arc::clone)
    }
}

/// The newest version that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Directory(Mutex<Arc<Names>>);

impl Directory {
    /// The index of this version; built when the version is another than last time.
    pub(crate) fn names(&self, catalogue: &Arc<Catalogue>) -> Arc<Names> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&names.catalogue, catalogue) {
            *names = Arc::new(Names::of(catalogue));
        }
        Arc::clone(&names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{GroupId, Guarantee, NamespaceName, Placement};

    fn catalogue(names: &[&str]) -> Arc<Catalogue> {
        let mut catalogue = Catalogue::default();
        for (id, name) in (1..).zip(names) {
            let namespace = Namespace {
                id: NamespaceId(id),
                name: NamespaceName::new(*name).unwrap(),
                settings_version: 1,
                deletion: None,
                guarantee: Guarantee::Linearizable,
                placement: Placement::Strong { group: GroupId::FIRST_DATA },
            };
            catalogue.namespaces.insert(namespace.id, namespace);
        }
        Arc::new(catalogue)
    }

    #[test]
    fn names_follow_the_catalogue_and_are_indexed_once_a_version() {
        let directory = Directory::default();
        let first = catalogue(&["bank"]);
        let names = directory.names(&first);
        assert_eq!(names.get("bank").map(|namespace| namespace.id), Some(NamespaceId(1)));
        assert_eq!(names.of_id(NamespaceId(1)), names.get("bank"));
        assert!(names.get("cart").is_none() && names.of_id(NamespaceId(2)).is_none());
        assert!(Arc::ptr_eq(&names, &directory.names(&first)), "built again for the same version");
        let second = catalogue(&["bank", "cart"]);
        assert_eq!(directory.names(&second).get("cart").map(|n| n.id), Some(NamespaceId(2)));
    }
}

//! What each namespace has of a group's sessions, and so whose session is forgotten when there is no room:
//! the one unused longest of the namespace that has most. So none pushes out the sessions of another that has
//! less. A function of the sessions that there are, in whatever order they came.

use std::collections::{BTreeMap, BTreeSet};

use kv_types::{ClientId, NamespaceId};

/// When a session was used: log time, then the entry's index, which decides while log time stands still.
pub(crate) type Use = (u64, u64);

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scarce {
    /// Sessions.
    Sessions,
    /// Their bytes.
    Bytes,
}

/// Sessions and their bytes, of one namespace.
#[derive(Debug, Clone, Default)]
struct Share {
    sessions: u64,
    bytes: u64,
    /// Those that may be forgotten: the one unused longest comes first.
    by_use: BTreeSet<(Use, ClientId)>,
}

/// The shares of all namespaces with a session.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    by_namespace: BTreeMap<NamespaceId, Share>,
    by_sessions: BTreeSet<(u64, NamespaceId)>,
    by_bytes: BTreeSet<(u64, NamespaceId)>,
    bytes: u64,
}

impl Shares {
    /// Bytes of all sessions.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn change(&mut self, namespace: NamespaceId, change: impl FnOnce(&mut Share)) {
        let share = self.by_namespace.entry(namespace).or_default();
        let (sessions, bytes) = (share.sessions, share.bytes);
        change(share);
        self.bytes = self.bytes - bytes + share.bytes;
        self.by_sessions.remove(&(sessions, namespace));
        self.by_bytes.remove(&(bytes, namespace));
        if share.sessions > 0 {
            self.by_sessions.insert((share.sessions, namespace));
            self.by_bytes.insert((share.bytes, namespace));
        } else {
            assert!(share.bytes == 0 && share.by_use.is_empty(), "without sessions there is nothing of them");
            self.by_namespace.remove(&namespace);
        }
    }

    /// A session is there. It may be forgotten if it was `used` before.
    pub(crate) fn add(
        &mut self,
        (namespace, client): (NamespaceId, ClientId),
        bytes: u64,
        used: Option<Use>,
    ) {
        self.change(namespace, |share| {
            share.sessions += 1;
            share.bytes += bytes;
            share.by_use.extend(used.map(|used| (used, client)));
        });
    }

    /// From now on a session may be forgotten.
    pub(crate) fn may_go(&mut self, (namespace, client): (NamespaceId, ClientId), used: Use) {
        self.change(namespace, |share| {
            share.by_use.insert((used, client));
        });
    }

    /// A session that was added with so many bytes is gone.
    pub(crate) fn take(&mut self, (namespace, client): (NamespaceId, ClientId), bytes: u64, used: Use) {
        self.change(namespace, |share| {
            share.sessions -= 1;
            share.bytes -= bytes;
            share.by_use.remove(&(used, client));
        });
    }

    /// The session to forget for one more session or result, which takes `more` of what is scarce, beside
    /// those of `place`: of the namespace that has most then. Where none of its may be forgotten, of the
    /// next.
    pub(crate) fn to_forget(
        &self,
        scarce: Scarce,
        place: (NamespaceId, ClientId),
        more: u64,
    ) -> Option<(NamespaceId, ClientId)> {
        let own = self.by_namespace.get(&place.0);
        let order = match scarce {
            Scarce::Sessions => &self.by_sessions,
            Scarce::Bytes => &self.by_bytes,
        };
        let own = own.map(|own| match scarce {
            Scarce::Sessions => own.sessions.saturating_add(more),
            Scarce::Bytes => own.bytes.saturating_add(more),
        });
        let others = order.iter().rev().filter(|(_, namespace)| *namespace != place.0);
        // Of two that have as much the own namespace comes first.
        let larger = others.clone().take_while(|(has, _)| own.is_none_or(|own| *has > own));
        let others_after = others.skip_while(|(has, _)| own.is_none_or(|own| *has > own));
        let namespaces = larger.map(|(_, namespace)| *namespace);
        let mut namespaces = namespaces.chain(own.map(|_| place.0)).chain(others_after.map(|(_, of)| *of));
        namespaces.find_map(|namespace| {
            let share = self.by_namespace.get(&namespace)?;
            let mut unused = share.by_use.iter().map(|(_, client)| (namespace, *client));
            unused.find(|other| *other != place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(namespace: u64, client: u128) -> (NamespaceId, ClientId) {
        (NamespaceId(namespace), ClientId(client))
    }

    #[test]
    fn it_is_of_the_namespace_that_has_most_and_of_its_own_when_equal() {
        let mut shares = Shares::default();
        for client in 1..=3 {
            shares.add(place(1, client), 10, Some((client as u64, 0)));
        }
        shares.add(place(2, 9), 100, Some((0, 0)));
        assert_eq!(shares.to_forget(Scarce::Sessions, place(2, 10), 1), Some(place(1, 1)));
        assert_eq!(shares.to_forget(Scarce::Bytes, place(1, 4), 10), Some(place(2, 9)));
        // With the newcomer both have as much.
        shares.add(place(2, 8), 1, Some((0, 1)));
        assert_eq!(shares.to_forget(Scarce::Sessions, place(2, 10), 1), Some(place(2, 9)));
        // Never its own, and nothing that may not go.
        assert_eq!(shares.to_forget(Scarce::Sessions, place(1, 1), 1), Some(place(1, 2)));
        shares.add(place(3, 1), 1_000, None);
        assert_eq!(shares.to_forget(Scarce::Bytes, place(1, 1), 1), Some(place(2, 9)));
        shares.may_go(place(3, 1), (5, 5));
        assert_eq!(shares.to_forget(Scarce::Bytes, place(1, 1), 1), Some(place(3, 1)));
        shares.take(place(3, 1), 1_000, (5, 5));
        assert_eq!((shares.bytes(), shares.by_namespace.len()), (131, 2));
        assert_eq!(Shares::default().to_forget(Scarce::Bytes, place(1, 1), 1), None);
    }

    proptest! {
        /// What is forgotten does not depend on the order in which sessions came, as after a restart.
        #[test]
        fn the_order_of_arrival_does_not_matter(
            sessions in proptest::collection::btree_map((1_u64..5, 1_u128..9), (1_u64..50, 1_u64..9, any::<bool>()), 1..30),
        ) {
            let (mut one, mut two) = (Shares::default(), Shares::default());
            let add = |shares: &mut Shares, (at, (bytes, used, goes)): (&(u64, u128), &(u64, u64, bool))| {
                shares.add(place(at.0, at.1), *bytes, goes.then_some((*used, 0)));
            };
            sessions.iter().for_each(|session| add(&mut one, session));
            // It had others before.
            two.add(place(2, 99), 7, Some((0, 0)));
            sessions.iter().rev().for_each(|session| add(&mut two, session));
            two.take(place(2, 99), 7, (0, 0));
            prop_assert_eq!(one.bytes(), sessions.values().map(|(bytes, ..)| bytes).sum::<u64>());
            for scarce in [Scarce::Sessions, Scarce::Bytes] {
                let own = place(1, 1);
                let forgotten = one.to_forget(scarce, own, 1);
                prop_assert_eq!(forgotten, two.to_forget(scarce, own, 1));
                let may_go = |(at, (_, _, goes)): (&(u64, u128), &(u64, u64, bool))| *goes && place(at.0, at.1) != own;
                prop_assert_eq!(forgotten.is_some(), sessions.iter().any(may_go));
            }
        }
    }
}

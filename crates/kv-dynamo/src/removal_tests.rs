//! A deleted namespace here: its rows go in steps, what is counted of them follows, and nothing else goes.

use super::*;

fn other_place(key: &str) -> Place {
    Place { namespace: NamespaceId(8), ..place(key) }
}

impl World {
    /// Namespaces 7 and 8 are there; then 7 is deleted.
    pub(super) fn catalogued(&self, deleted: bool) {
        let namespace = |id: u64| kv_types::Namespace {
            id: NamespaceId(id),
            name: kv_types::NamespaceName::new(format!("n{id}")).unwrap(),
            settings_version: 1,
            deletion: None,
            guarantee: kv_types::Guarantee::Eventual,
            placement: kv_types::Placement::Available {
                ring: RingId(1),
                replication: kv_types::Replication { n: 3, r: 2, w: 2, sloppy: true },
            },
        };
        let there = (7..=8).filter(|id| !deleted || *id != 7).map(|id| (NamespaceId(id), namespace(id)));
        let namespaces = there.collect();
        self.catalogue.send_replace(Arc::new(Catalogue {
            next_namespace: 9,
            namespaces,
            ..Catalogue::default()
        }));
    }
}

#[tokio::test]
async fn a_deleted_namespace_goes_in_steps_and_the_counts_follow() {
    let world = World::new(61);
    world.catalogued(false);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let slice = place("k").slice;
    let keys = 3 * limits::REMOVED_AT_ONCE.0 + 5;
    let mut seq = 0;
    let mut write = |value: &str, supersedes| {
        seq += 1;
        order(seq, value, supersedes)
    };
    for key in 0..keys {
        let place = place(&format!("k{key}"));
        replica.mint(&place, Role::Primary, &write("a", Supersedes::Observed), soon()).await.unwrap();
        if key % 3 == 0 {
            replica.mint(&place, Role::Primary, &write("b", Supersedes::Nothing), soon()).await.unwrap();
        }
    }
    let target = NodeId(4);
    for key in 0..keys {
        let state = world_state(9, 10_000 + key as u64, "h");
        replica.store_hint(&place(&format!("h{key}")), target, state, true, soon()).await.unwrap();
    }
    let other = other_place("k1");
    replica.mint(&other, Role::Primary, &write("c", Supersedes::Observed), soon()).await.unwrap();
    replica.mint(&other, Role::Primary, &write("d", Supersedes::Nothing), soon()).await.unwrap();
    replica.store_hint(&other, target, world_state(9, 1, "h"), true, soon()).await.unwrap();
    assert_eq!(replica.keys_with_siblings(), keys.div_ceil(3) as u64 + 1);
    assert_eq!(replica.hints_pending()[&target], keys as u64 + 1);
    world.catalogued(true);

    // What comes now is refused, a resend as one whose fate is open.
    let mut late = write("late", Supersedes::Observed);
    let refused = replica.mint(&place("late"), Role::Primary, &late, soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, kv_types::Applied::No));
    late.mutation.attempt = 2;
    let refused = replica.mint(&place("late"), Role::Primary, &late, soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, kv_types::Applied::Unknown));
    let state = world_state(9, 77_777, "late");
    assert_eq!(reason(replica.apply(&place("late"), &state, false, soon()).await), Reason::NamespaceUnknown);
    let hint = replica.store_hint(&place("late"), target, state, true, soon()).await;
    assert_eq!(reason(hint), Reason::NamespaceUnknown);

    replica.let_pass(slice);
    let (mut steps, mut after) = (0, None);
    while let Some(last) = replica.remove_records(slice, (1, 7), after.as_ref(), soon()).await.unwrap().last {
        steps += 1;
        assert!(steps < 10 && after.is_none_or(|before| before < last));
        after = Some(last);
    }
    assert_eq!(steps, 4, "a few at a time");
    let listed = replica.remove_listed(List::Conflicts, slice, (1, 7), None, soon());
    assert_eq!(listed.await.unwrap().last, None);
    assert_eq!(replica.keys_with_siblings(), 1);
    // In the middle of the hints the power goes: what is left is found again.
    assert!(replica.remove_hints(target, slice, (1, 7), None, soon()).await.unwrap().last.is_some());
    let left = replica.hints_pending()[&target];
    assert_eq!(left, (keys + 1 - limits::REMOVED_AT_ONCE.0) as u64);
    storage.checkpoint().await.unwrap();
    world.cut(&storage);
    let (storage, replica) = world.open(false, 1 << 20).await;
    assert_eq!(replica.hints_pending()[&target], left);
    while replica.remove_hints(target, slice, (1, 7), None, soon()).await.unwrap().last.is_some() {}
    assert_eq!(replica.remove_records(slice, (1, 7), None, soon()).await.unwrap().last, None);
    assert_eq!(replica.hints_pending()[&target], 1);
    assert_eq!(replica.keys_with_siblings(), 1);
    let tables = [RECORDS, CONFLICTS, crate::layout::HINTS];
    let mut found = Vec::new();
    for table in tables {
        found.push(rows_in(&storage, table).await);
    }
    assert_eq!(found, [1, 1, 1], "all that is of the other namespace");
    // Which is as it was, dots included.
    assert_eq!(values(&replica.read(&other, soon()).await.unwrap()).len(), 2);
    let clock = replica.clock(slice).0;
    let minted: Vec<(u64, u64)> =
        clock.dots().ranges().iter().map(|range| (range.first, range.last)).collect();
    assert_eq!(minted, [(1, (keys + keys.div_ceil(3) + 2) as u64)]);
    world.cut(&storage);
}

/// The list of records that are ahead, and that of those with siblings, outlived their records, as after the
/// loss of a tier.
#[tokio::test]
async fn what_lists_have_of_a_deleted_namespace_goes_with_it() {
    let world = World::new(64);
    world.catalogued(false);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let slice = place("").slice;
    let listed = limits::REMOVED_AT_ONCE.0 + 5;
    let mut batch = Batch::new();
    for table in [AHEAD, CONFLICTS] {
        (0..listed).for_each(|n| batch.push_put(table, place(&format!("gone{n}")).record_key(), []));
        batch.push_put(table, other_place("stays").record_key(), []);
    }
    let position = storage.commit(batch).unwrap();
    storage.durable(position).await.unwrap();
    drop(replica);
    world.cut(&storage);
    let (storage, replica) = world.open(false, 1 << 20).await;
    assert_eq!(replica.records_ahead(), listed as u64 + 1);
    world.catalogued(true);
    replica.let_pass(slice);
    // Who strips meets them, and leaves them to the removal.
    let mut stripped = None;
    loop {
        stripped = replica.strip(stripped.as_ref(), soon()).await.unwrap();
        if stripped.is_none() {
            break;
        }
    }
    for list in [List::Conflicts, List::Ahead] {
        let (mut steps, mut after) = (0, None);
        while let Some(last) =
            replica.remove_listed(list, slice, (1, 7), after.as_ref(), soon()).await.unwrap().last
        {
            (steps, after) = (steps + 1, Some(last));
        }
        assert_eq!(steps, 2, "a few at a time");
    }
    assert_eq!(replica.keys_with_siblings(), 1);
    assert_eq!((replica.records_ahead(), rows_in(&storage, AHEAD).await), (0, 0), "the other was stripped");
    assert_eq!(rows_in(&storage, CONFLICTS).await, 1);
}

/// A namespace that this node has not heard of yet is not one that was deleted.
#[tokio::test]
async fn a_namespace_that_is_not_known_yet_is_taken() {
    let world = World::new(62);
    world.catalogued(true);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let newer = Place { namespace: NamespaceId(9), ..place("k") };
    replica.apply(&newer, &world_state(9, 1, "v"), false, soon()).await.unwrap();
    assert_eq!(replica.remove_records(newer.slice, (1, 7), None, soon()).await.unwrap().last, None);
    assert_eq!(values(&replica.read(&newer, soon()).await.unwrap()), ["v"]);
    world.cut(&storage);
}

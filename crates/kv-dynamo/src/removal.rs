//! Removes what this node has of deleted namespaces, as soon as it knows of the deletion, and again after a
//! start: records, the lists of records, and hints. No one is asked, because ids of namespaces are
//! never used again. It goes in small steps at a bounded rate, and an error is a pause.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_types::catalogue::{Catalogue, runs_beyond};
use kv_types::{Failure, NodeId, Placement, Reason, RingPartition};
use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::node::{Node, stopped};
use crate::replica::{List, Removed};

/// The ids that hold nothing here: see [`Catalogue::deleted`].
fn deleted(catalogue: &Catalogue) -> Vec<(u64, u64)> {
    catalogue.deleted(|placement| matches!(placement, Placement::Available { .. }))
}

/// Removes until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let mut known = node.catalogue.clone();
    let mut done = Vec::new();
    loop {
        let catalogue = Arc::clone(&known.borrow_and_update());
        let all = deleted(&catalogue);
        let new = runs_beyond(all.iter().copied(), &done);
        let removed = async {
            match new.is_empty() {
                true => Ok(0),
                false => remove(&node, &catalogue, &new).await,
            }
        };
        let again = async {
            match removed.await {
                Ok(bytes) => {
                    if bytes > 0 {
                        tracing::info!(bytes, "what was stored of deleted namespaces was removed");
                    }
                    done = all;
                    // Without a sender there will be no change: the node is about to stop.
                    if known.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Err(failure) => {
                    tracing::warn!(%failure, "what is left of deleted namespaces is removed later");
                    sleep(limits::REMOVAL_PAUSE).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = again => {}
        }
    }
}

/// Removes everything of these runs of ids from all ring partitions; the bytes that there were.
async fn remove(node: &Node, catalogue: &Catalogue, runs: &[(u64, u64)]) -> Result<u64, Failure> {
    let mut pace = Pace { begun: Instant::now(), bytes: 0 };
    for ring in catalogue.rings.values() {
        for (partition, _) in (0_u32..).zip(&ring.assignment) {
            let slice = Slice { ring: ring.id, partition: RingPartition(partition) };
            // From here on every operation on it knows of the deletion.
            node.replica.let_pass(slice);
            for run in runs {
                remove_from(node, slice, *run, &mut pace).await?;
            }
        }
    }
    Ok(pace.bytes)
}

async fn remove_from(node: &Node, slice: Slice, run: (u64, u64), pace: &mut Pace) -> Result<(), Failure> {
    remove_all(node, What::Records, slice, run, pace).await?;
    for list in [List::Conflicts, List::Ahead] {
        remove_all(node, What::Listed(list), slice, run, pace).await?;
    }
    let targets: BTreeSet<NodeId> = node.replica.hints_pending().into_keys().collect();
    for target in targets {
        remove_all(node, What::Hints(target), slice, run, pace).await?;
    }
    Ok(())
}

/// What a step removes.
#[derive(Clone, Copy)]
enum What {
    Records,
    /// Without a record.
    Listed(List),
    Hints(NodeId),
}

/// Takes steps until one finds nothing; each begins behind the last key of the one before. A refusal for want
/// of room is a pause.
async fn remove_all(
    node: &Node,
    what: What,
    slice: Slice,
    run: (u64, u64),
    pace: &mut Pace,
) -> Result<(), Failure> {
    let replica = &node.replica;
    let mut after: Option<Bytes> = None;
    loop {
        let (began, behind) = (Instant::now(), after.as_ref());
        let deadline = began + limits::BACKGROUND_READ;
        let step = match what {
            What::Records => replica.remove_records(slice, run, behind, deadline).await,
            What::Listed(list) => replica.remove_listed(list, slice, run, behind, deadline).await,
            What::Hints(target) => replica.remove_hints(target, slice, run, behind, deadline).await,
        };
        let Removed { bytes, last } = match step {
            Err(failure) if failure.reason == Reason::Overloaded => {
                sleep(limits::REMOVAL_PAUSE).await;
                continue;
            }
            step => step?,
        };
        if last.is_none() {
            // Others on this worker have their turn.
            tokio::task::yield_now().await;
            return Ok(());
        }
        after = last;
        pace.rest(began.elapsed(), bytes).await;
    }
}

/// Keeps to [`limits::REMOVED_PER_SECOND`], and rests.
struct Pace {
    begun: Instant,
    bytes: u64,
}

impl Pace {
    /// After a step that took so long and removed so much.
    async fn rest(&mut self, took: Duration, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_millis(self.bytes.saturating_mul(1_000) / limits::REMOVED_PER_SECOND);
        let rest = took.saturating_mul(limits::REMOVAL_REST);
        sleep(due.saturating_sub(self.begun.elapsed()).max(rest)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::pin::pin;

    use kv_env::Env;
    use kv_peer::{PeerConfig, Peers};
    use kv_storage::disk::MemDisk;
    use kv_storage::tier::MemTiers;
    use kv_storage::{Batch, Drive, Storage, StorageOptions};
    use kv_types::catalogue::Ring;
    use kv_types::{ClientId, ClusterId, Epoch, Mutation, NamespaceId, RequestId, RingId};
    use tokio::sync::{Semaphore, watch};

    use super::*;
    use crate::layout::{AHEAD, Place};
    use crate::node::AvailableConfig;
    use crate::replica::{Order, Replica, Role, Supersedes};
    use crate::standing::Standing;

    const ME: NodeId = NodeId(1);
    const TARGET: NodeId = NodeId(2);
    const GOES: NamespaceId = NamespaceId(1);
    const STAYS: NamespaceId = NamespaceId(2);
    const PARTITIONS: u32 = 2;
    /// Keys of the namespace that goes, in each ring partition: three steps.
    const KEYS: usize = 3 * limits::REMOVED_AT_ONCE.0;
    /// Hints for some of them, in the first ring partition: one step.
    const HINTS: usize = 5;

    /// A node whose storage works when it is told to.
    struct World {
        disk: MemDisk,
        storage: Storage,
        catalogue: watch::Sender<Arc<Catalogue>>,
        node: Arc<Node>,
    }

    fn catalogue(next_namespace: u64) -> Arc<Catalogue> {
        let assignment = vec![vec![ME]; PARTITIONS as usize];
        let ring = Ring { id: RingId(1), n: 1, assignment, epoch: Epoch(1) };
        let rings = BTreeMap::from([(ring.id, ring)]);
        Arc::new(Catalogue { epoch: Epoch(next_namespace), rings, next_namespace, ..Catalogue::default() })
    }

    fn slice(partition: u32) -> Slice {
        Slice { ring: RingId(1), partition: RingPartition(partition) }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3_600)
    }

    /// Lets the storage work until something is done.
    async fn driven<T>(storage: &Storage, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::task::yield_now() => drop(storage.pump()),
            }
        }
    }

    impl World {
        /// With the namespace that goes, another one, and nothing in memory.
        async fn filled() -> Self {
            let options = StorageOptions {
                drive: Drive::Manual,
                max_record_bytes: 1 << 20,
                // What is in memory goes to the tier with the next step of storage. Until then what is done
                // in bulk has no room, which is one step of a removal each time.
                drain_start_bytes: 1,
                bulk_memtable_bytes: 1,
                ..StorageOptions::memory("/data")
            };
            let disk = MemDisk::new(1);
            let opened = Storage::open(options, Arc::new(disk.clone()), Arc::new(MemTiers::new()));
            let (storage, _) = opened.unwrap();
            // A row of a list that has outlived its record.
            let key = Place { slice: slice(0), namespace: GOES, key: "listed".into() }.record_key();
            let listed = storage.commit(Batch::new().put(AHEAD, key, [])).unwrap();
            driven(&storage, storage.durable(listed)).await.unwrap();
            let env = Env::real();
            let sender = watch::Sender::new(catalogue(1));
            let replica = Replica::open(storage.clone(), env.clone(), sender.subscribe(), false, 1 << 20);
            let replica = driven(&storage, replica).await.unwrap();
            driven(&storage, replica.set_whole(false)).await.unwrap();
            let node = Arc::new(Node {
                me: ME,
                config: AvailableConfig::new(ME, false),
                replica,
                peers: Peers::new(PeerConfig::new(ClusterId(1), ME), env),
                catalogue: sender.subscribe(),
                standing: Standing::new(true),
                aside: crate::aside::Aside::default(),
                room: Arc::new(Semaphore::new(1)),
                repairs: Arc::new(Semaphore::new(1)),
                answers: Arc::new(Semaphore::new(1)),
                hint_heard: std::sync::Mutex::default(),
                stop: watch::Sender::new(false),
            });
            let world = Self { disk, storage, catalogue: sender, node };
            for partition in 0..PARTITIONS {
                for key in 0..KEYS {
                    world.write(partition, GOES, key, partition == 0 && key < HINTS).await;
                }
            }
            world.write(0, STAYS, 0, false).await;
            world
        }

        async fn write(&self, partition: u32, namespace: NamespaceId, key: usize, hinted: bool) {
            let place = Place { slice: slice(partition), namespace, key: format!("k{key}").into() };
            let request_id = RequestId { client_id: ClientId(namespace.0.into()), seq: key as u64 };
            let issued_at_ms = Env::real().clock.wall_ms();
            let mutation = Mutation { request_id, issued_at_ms, lowest_unacked: 0, attempt: 1 };
            let value = Some(Bytes::from_static(b"v"));
            let order = Order { mutation, body: 1, value, supersedes: Supersedes::Observed };
            let replica = &self.node.replica;
            let written = replica.mint(&place, Role::Primary, &order, soon());
            let minted = driven(&self.storage, written).await.unwrap();
            if hinted {
                let hint = replica.store_hint(&place, TARGET, minted.state, true, soon());
                driven(&self.storage, hint).await.unwrap();
            }
            self.drain();
        }

        fn drain(&self) {
            while self.storage.pump() {}
            assert_eq!(self.storage.stats().memtable_bytes, 0);
        }

        fn delete(&self) {
            self.catalogue.send_replace(catalogue(2));
        }

        fn left(&self) -> usize {
            self.node.replica.rows_of(GOES).unwrap()
        }

        fn refusals(&self) -> u64 {
            self.storage.stats().refusals
        }

        fn only_the_other_is_left(&self) {
            assert_eq!((self.left(), self.node.replica.rows_of(STAYS).unwrap()), (0, 1));
            assert!(self.node.replica.hints_pending().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_without_room_goes_on_behind_what_it_removed() {
        let world = World::filled().await;
        world.delete();
        let known = world.node.catalogue();
        let mut removal = pin!(remove(&world.node, &known, &[(GOES.0, GOES.0)]));
        let (mut refusals, mut left) = (world.refusals(), Vec::new());
        let given_up = soon();
        let bytes = loop {
            assert!(Instant::now() < given_up);
            tokio::select! {
                biased;
                removed = &mut removal => break removed.unwrap(),
                () = sleep(limits::REMOVAL_PAUSE / 4) => {}
            }
            // It waits for room, and finds some the next time.
            if world.refusals() > refusals {
                refusals = world.refusals();
                left.push(world.left());
                world.drain();
            }
        };
        let step = limits::REMOVED_AT_ONCE.0;
        let listed = HINTS + 1;
        let first = [5 * step + listed, 4 * step + listed, 3 * step + listed];
        let between = [&first[..], &[3 * step + HINTS, 3 * step, 2 * step, step]].concat();
        assert_eq!(left, between, "a refusal before each step but the first");
        assert!(bytes > 0);
        world.only_the_other_is_left();
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_that_fails_is_tried_again_until_nothing_is_left() {
        let world = World::filled().await;
        let (whole, refusals) = (world.left(), world.refusals());
        let removal = tokio::spawn(run(Arc::clone(&world.node)));
        // A disk without room refuses every write, once storage has asked it again.
        world.disk.set_capacity(Some(world.disk.used()));
        let (asked, given_up) = (world.disk.said_short(), soon());
        while world.disk.said_short() == asked {
            assert!(Instant::now() < given_up);
            sleep(limits::REMOVAL_PAUSE / 4).await;
            world.storage.pump();
        }
        world.delete();
        while world.refusals() < refusals + 3 {
            assert!(Instant::now() < given_up && !removal.is_finished());
            sleep(limits::REMOVAL_PAUSE / 4).await;
        }
        assert_eq!(world.left(), whole);
        world.disk.set_capacity(None);
        while world.left() > 0 {
            assert!(Instant::now() < given_up);
            sleep(limits::REMOVAL_PAUSE).await;
            while world.storage.pump() {}
        }
        world.only_the_other_is_left();
        assert!(!removal.is_finished(), "it waits for the next deletion");
        world.node.stop.send_replace(true);
        removal.await.unwrap();
    }
}

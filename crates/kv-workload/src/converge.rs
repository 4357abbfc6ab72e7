//! When the replicas of namespaces are equal: one look at all of them as a value, and the wait until a look
//! finds no difference. Real processes and the simulation ask the same way; nothing here knows which it is.
//!
//! What the looks found goes into the history ([`DIGESTS`]), so that a later judge of it need not believe
//! the harness.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use futures_util::future::join_all;
use kv_check::Json;
use kv_check::judge::DIGESTS;
use kv_client::{Client, Digest, NodeStatus};
use kv_types::{NodeId, ReplicaCount};
use serde_json::json;
use tokio::time::Instant;

use crate::{Driving, Recorder};

/// A namespace whose replicas are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// Its name.
    pub ns: String,
    /// Replicas of each ring partition; of a strong namespace, members that keep its group.
    pub n: u8,
}

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until all replicas are equal; once more if every key had to be read.
    pub converges_within: Duration,
    /// Only digests must have differed for so long before hints are said to be at their end: longer than a
    /// write goes on after its client has gone, for its coordinator may note a hint until then.
    pub hints_end: Duration,
    /// Until every key was read once.
    pub reads_within: Duration,
    /// From one look to the next.
    pub poll: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            converges_within: Duration::from_secs(30),
            hints_end: Duration::from_secs(5),
            reads_within: Duration::from_secs(30),
            poll: Duration::from_millis(50),
        }
    }
}

/// Who is asked, by whom, and where it is written down.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Where the nodes are reached.
    pub addresses: &'a BTreeMap<NodeId, String>,
    /// A client for each of them.
    pub clients: &'a BTreeMap<NodeId, Client>,
    /// The history. A namespace of which an operation is open is not compared.
    pub recorder: &'a Recorder,
    /// The loads whose keys are read where hints are not enough.
    pub driven: &'a [Driving],
}

/// What else is so while replicas become equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meanwhile {
    /// Strong namespaces rest too, so every node must have applied as much of each Raft group.
    pub strong_rests: bool,
    /// A node died before: a hint that it had not noted is lost, and a read finds that before the nodes do.
    /// Every key is read once when hints are at their end. Otherwise they owe it without.
    pub may_read: bool,
}

/// What became of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Convergence {
    /// When all replicas were equal and no node held hints; none if that never came.
    pub at: Option<Instant>,
    /// What was in the way when it was looked at last, if it never came.
    pub unequal: Option<String>,
    /// Where hints left ring partitions that differ.
    pub reads: Option<Needed>,
}

/// Reads that were needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// When the reading of every key began.
    pub at: Instant,
    /// The keys of each ring partition that differed, as far as clients used them.
    pub partitions: Vec<Vec<String>>,
}

/// What keeps replicas from being equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Nothing: they are.
    None,
    /// Something is under way, in words.
    Waiting(String),
    /// Nothing is, and still ring partitions differ.
    Digests {
        /// Which.
        partitions: BTreeSet<u32>,
        /// One of them, in words.
        why: String,
    },
}

/// What every node says of one namespace. Not of one moment: nodes are asked beside each other, so only of a
/// namespace that rests do equal digests mean equal replicas.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    copies: usize,
    nodes: BTreeMap<NodeId, Result<Digest, String>>,
}

impl Look {
    /// Asks every node.
    pub async fn at(
        clients: &BTreeMap<NodeId, Client>,
        addresses: &BTreeMap<NodeId, String>,
        copies: &Copies,
    ) -> Self {
        let ask = |(node, address): (&NodeId, &String)| {
            let (node, address, client) = (*node, address.clone(), clients.get(node));
            async move {
                let said = match client {
                    Some(client) => {
                        client.admin().digest(&address, &copies.ns).await.map_err(|error| error.to_string())
                    }
                    None => Err("it is not asked".to_owned()),
                };
                (node, said)
            }
        };
        let nodes = join_all(addresses.iter().map(ask)).await.into_iter().collect();
        Self { copies: usize::from(copies.n), nodes }
    }

    /// What keeps the replicas from being equal.
    pub fn difference(&self) -> Difference {
        use Difference::Waiting;
        for (node, said) in &self.nodes {
            match said {
                Err(why) => return Waiting(format!("{node} does not say: {why}")),
                Ok(digest) if digest.hints_pending > 0 => {
                    return Waiting(format!("{node} holds {} hints", digest.hints_pending));
                }
                Ok(_) => {}
            }
        }
        let said = |(node, said): (&NodeId, &Result<Digest, String>)| {
            Some((*node, said.as_ref().ok()?.applied_index))
        };
        let mut applied = self.nodes.iter().filter_map(said);
        if let Some((first, index)) = applied.next()
            && let Some((node, here)) = applied.find(|(_, here)| *here != index)
        {
            let in_words = |index: Option<u64>| index.map_or("nothing".to_owned(), |index| index.to_string());
            return Waiting(format!("{first} applied {}, {node} {}", in_words(index), in_words(here)));
        }
        let replicas = self.replicas();
        if replicas.is_empty() {
            return Waiting("nothing is kept".into());
        }
        if replicas.values().any(|digests| digests.len() != self.copies) {
            return Waiting("not all replicas say what they keep".into());
        }
        let mut different = replicas.iter().filter(|(_, digests)| !equal(digests));
        let partitions: BTreeSet<u32> = different.clone().map(|(partition, _)| *partition).collect();
        let Some((partition, digests)) = different.next() else { return Difference::None };
        let said = in_words(digests);
        let why = match self.newest() {
            Some(applied) => format!("replicas that applied {applied} differ: {said}"),
            None => format!("{} ring partitions differ, such as {partition}: {said}", partitions.len()),
        };
        Difference::Digests { partitions, why }
    }

    /// The value of an event [`DIGESTS`]: one entry for each node. They are equal if and only if every node
    /// says what it keeps, no node holds hints, and each ring partition has all its replicas with one digest.
    /// A node that says nothing, or has applied less of a Raft group than another, is one that did not tell:
    /// what only it can be blamed for is not named.
    ///
    /// Nodes keep different ring partitions, so a node's entry is a hash over all of them in their order; for
    /// one that it does not keep, it takes the digest of the first node that does. A ring partition whose
    /// replicas differ thus tells apart the first that keeps it and the other. What differs is named beside
    /// the nodes, for people.
    pub fn value(&self) -> Json {
        let replicas = self.replicas();
        let newest = self.newest();
        let mut value = serde_json::Map::new();
        for (node, said) in &self.nodes {
            let told = said.as_ref().ok().filter(|digest| digest.applied_index == newest);
            let entry = told.map(|digest| {
                let mut hasher = DefaultHasher::new();
                for (partition, digests) in &replicas {
                    let seen = digests.get(node).or_else(|| digests.values().next());
                    (partition, seen).hash(&mut hasher);
                }
                let hints = match digest.hints_pending {
                    0 => String::new(),
                    hints => format!(" and {hints} hints"),
                };
                format!("{:016x}{hints}", hasher.finish())
            });
            value.insert(node.to_string(), json!(entry));
        }
        let silent = value.values().filter(|entry| entry.is_null()).count();
        // Where every node holds as many, their entries are equal.
        let holders = self.nodes.values().flatten().filter(|digest| digest.hints_pending > 0).count();
        if holders > 0 {
            value.insert("hints".into(), json!(format!("held by {holders} nodes")));
        }
        if replicas.is_empty() && silent < self.copies {
            value.insert("ring partitions".into(), json!("nothing is kept"));
        }
        for (partition, digests) in &replicas {
            let too_many = digests.len() > self.copies;
            let too_few = digests.len() + silent < self.copies;
            if too_many || too_few || !equal(digests) {
                let said = in_words(digests);
                value.insert(format!("ring partition {partition}"), json!(said));
            }
        }
        Json::Object(value)
    }

    /// How far the group of a strong namespace is applied where it is applied furthest.
    fn newest(&self) -> Option<u64> {
        self.nodes.values().flatten().filter_map(|digest| digest.applied_index).max()
    }

    /// The digests of those that have applied most, by ring partition.
    fn replicas(&self) -> BTreeMap<u32, BTreeMap<NodeId, u64>> {
        let newest = self.newest();
        let mut replicas: BTreeMap<u32, BTreeMap<NodeId, u64>> = BTreeMap::new();
        for (node, said) in &self.nodes {
            let told = said.iter().filter(|digest| digest.applied_index == newest);
            for partition in told.flat_map(|digest| &digest.partitions) {
                replicas.entry(partition.partition).or_default().insert(*node, partition.digest);
            }
        }
        replicas
    }
}

fn equal(digests: &BTreeMap<NodeId, u64>) -> bool {
    let first = digests.values().next();
    digests.values().all(|digest| Some(digest) == first)
}

fn in_words(digests: &BTreeMap<NodeId, u64>) -> String {
    let said: Vec<String> = digests.iter().map(|(node, digest)| format!("{node} {digest:016x}")).collect();
    said.join(", ")
}

/// Looks at the namespaces again and again until all replicas have equal digests and no node holds hints.
/// The look that found that is recorded, or the last one where it never came.
pub async fn converge(
    asked: Asked<'_>,
    namespaces: &[Copies],
    meanwhile: Meanwhile,
    patience: Patience,
) -> BTreeMap<String, Convergence> {
    let mut all: BTreeMap<String, Convergence> =
        namespaces.iter().map(|copies| (copies.ns.clone(), Convergence::default())).collect();
    let mut only_digests_since: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut give_up = Instant::now() + patience.converges_within;
    loop {
        // Decided before the round, so that there is a last look at everything.
        let mut last = Instant::now() >= give_up;
        let busy = busy(asked, meanwhile.strong_rests).await;
        for copies in namespaces {
            let ns = copies.ns.as_str();
            let Some(convergence) = all.get_mut(ns).filter(|convergence| convergence.at.is_none()) else {
                continue;
            };
            let open = asked.recorder.open(ns);
            let look = Look::at(asked.clients, asked.addresses, copies).await;
            let difference = match (look.difference(), &busy) {
                (Difference::Digests { .. } | Difference::None, _) if open > 0 => {
                    Difference::Waiting(format!("{open} operations are open"))
                }
                (Difference::Digests { .. } | Difference::None, Some(why)) => {
                    Difference::Waiting(why.clone())
                }
                (difference, _) => difference,
            };
            match difference {
                Difference::None => {
                    convergence.at = Some(Instant::now());
                    convergence.unequal = None;
                }
                Difference::Waiting(why) => {
                    only_digests_since.remove(ns);
                    convergence.unequal = Some(why);
                }
                Difference::Digests { partitions, why } => {
                    let since = *only_digests_since.entry(ns).or_insert_with(Instant::now);
                    convergence.unequal = Some(why);
                    // Reads repair available namespaces alone.
                    let reads = meanwhile.may_read
                        && look.newest().is_none()
                        && convergence.reads.is_none()
                        && since.elapsed() > patience.hints_end;
                    if reads {
                        let (partitions, unplaced) = keys_of(asked, ns, &partitions, patience).await;
                        convergence.reads = Some(Needed { at: Instant::now(), partitions });
                        let unread = read_once(asked, ns, patience).await;
                        let why = |key| format!("{key} cannot be read from all its replicas");
                        convergence.unequal = unplaced.or(unread.map(why)).or(convergence.unequal.take());
                        give_up = Instant::now() + patience.converges_within;
                        last = false;
                        continue;
                    }
                }
            }
            if convergence.at.is_some() || last {
                asked.recorder.nemesis_in(ns, DIGESTS, look.value());
            }
        }
        if last || all.values().all(|convergence| convergence.at.is_some()) {
            return all;
        }
        tokio::time::sleep(patience.poll).await;
    }
}

/// Why it is too early to compare anything: some node rebuilds, or has not applied what another has.
async fn busy(asked: Asked<'_>, strong_rests: bool) -> Option<String> {
    let ask = |(node, address): (&NodeId, &String)| {
        let (node, address, client) = (*node, address.clone(), asked.clients.get(node));
        async move {
            let status = match client {
                Some(client) => client.admin().status(&address).await.ok(),
                None => None,
            };
            (node, status)
        }
    };
    let said = join_all(asked.addresses.iter().map(ask)).await;
    why_busy(&said, strong_rests)
}

fn why_busy(said: &[(NodeId, Option<NodeStatus>)], strong_rests: bool) -> Option<String> {
    let mut applied: BTreeMap<u32, (NodeId, u64)> = BTreeMap::new();
    for (node, status) in said {
        let Some(status) = status else { return Some(format!("{node} does not tell its status")) };
        if status.rebuilding_partitions > 0 {
            return Some(format!("{node} rebuilds {} ring partitions", status.rebuilding_partitions));
        }
        for group in status.groups.iter().filter(|_| strong_rests) {
            let (first, index) = *applied.entry(group.group).or_insert((*node, group.applied_index));
            if index != group.applied_index {
                let here = group.applied_index;
                return Some(format!("group {}: {first} applied {index}, {node} {here}", group.group));
            }
        }
    }
    None
}

/// The keys that clients used in each of these ring partitions; and one of which no node says where it lives.
async fn keys_of(
    asked: Asked<'_>,
    ns: &str,
    partitions: &BTreeSet<u32>,
    patience: Patience,
) -> (Vec<Vec<String>>, Option<String>) {
    let mut keys: BTreeMap<u32, Vec<String>> = partitions.iter().map(|id| (*id, Vec::new())).collect();
    let give_up = Instant::now() + patience.reads_within;
    for driving in asked.driven.iter().filter(|driving| driving.load().ns == ns) {
        for key in driving.keys().used() {
            for client in asked.clients.values().cycle() {
                if let Ok(owners) = client.admin().ring_owners(ns, &key).await {
                    keys.entry(owners.partition).and_modify(|keys| keys.push(key));
                    break;
                }
                if Instant::now() > give_up {
                    return (keys.into_values().collect(), Some(format!("no node says where {key} lives")));
                }
                tokio::time::sleep(patience.poll).await;
            }
        }
    }
    (keys.into_values().collect(), None)
}

/// Reads every key of a namespace once from all its replicas, by whichever node answers. Returns one that
/// could not be read.
async fn read_once(asked: Asked<'_>, ns: &str, patience: Patience) -> Option<String> {
    let give_up = Instant::now() + patience.reads_within;
    for driving in asked.driven.iter().filter(|driving| driving.load().ns == ns) {
        for key in driving.keys().used() {
            for client in asked.clients.values().cycle() {
                if client.available(ns).reading(ReplicaCount::All).get(&key).await.is_ok() {
                    break;
                }
                if Instant::now() > give_up {
                    return Some(key);
                }
                tokio::time::sleep(patience.poll).await;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::history::arrange;
    use kv_check::judge::{Expectation, NamespacePlan, Plan, Ruling, Workload};
    use kv_check::{Event, EventType, Process};
    use kv_client::{GroupStatus, PartitionDigest};
    use proptest::prelude::*;

    type Kept<'a> = &'a [(u32, u64)];

    fn says(hints: u64, kept: Kept<'_>) -> Result<Digest, String> {
        let partition = |(partition, digest): &(u32, u64)| PartitionDigest {
            partition: *partition,
            digest: *digest,
            keys: 1,
        };
        Ok(Digest {
            partitions: kept.iter().map(partition).collect(),
            hints_pending: hints,
            ..Digest::default()
        })
    }

    fn look(copies: usize, nodes: &[Result<Digest, String>]) -> Look {
        Look { copies, nodes: (1..).map(NodeId).zip(nodes.iter().cloned()).collect() }
    }

    /// What the judge says of an event with this value.
    fn ruling(value: &Json) -> Ruling {
        let recorder = Recorder::default();
        recorder.nemesis_in("t", DIGESTS, value.clone());
        let plan =
            NamespacePlan { strong: false, workload: Workload::Siblings, expect: Expectation::default() };
        let plan = Plan { namespaces: BTreeMap::from([("t".to_owned(), plan)]), ..Plan::default() };
        // Of a namespace that answered nothing, nothing is known.
        let answered = [EventType::Invoke, EventType::Ok].map(|kind| {
            let mut event = Event::new(0, Process::Client(0), kind, "read".into(), json!([]));
            (event.ns, event.key) = (Some("t".into()), Some("k".into()));
            event
        });
        let history = arrange(answered.into_iter().chain(recorder.history()).collect());
        let judgement = kv_check::judge(&history, &plan).unwrap();
        let found =
            judgement.properties.into_iter().find(|property| property.name == "replicas equal in the end");
        found.unwrap().ruling
    }

    #[test]
    fn nodes_that_keep_different_ring_partitions_are_compared_where_they_share_them() {
        let alike =
            look(2, &[says(0, &[(0, 7), (1, 8)]), says(0, &[(1, 8), (2, 9)]), says(0, &[(0, 7), (2, 9)])]);
        assert_eq!(alike.difference(), Difference::None);
        assert_eq!(ruling(&alike.value()), Ruling::Valid, "{}", alike.value());
        let other =
            look(2, &[says(0, &[(0, 7), (1, 8)]), says(0, &[(1, 8), (2, 9)]), says(0, &[(0, 7), (2, 5)])]);
        let Difference::Digests { partitions, why } = other.difference() else { panic!("{other:?}") };
        assert_eq!(partitions, BTreeSet::from([2]));
        assert_eq!(why, "1 ring partitions differ, such as 2: n2 0000000000000009, n3 0000000000000005");
        assert_eq!(ruling(&other.value()), Ruling::Invalid);
        assert_eq!(other.value()["ring partition 2"], "n2 0000000000000009, n3 0000000000000005");
    }

    #[test]
    fn silence_hints_and_missing_replicas_are_no_equality() {
        let kept: Kept<'_> = &[(0, 7)];
        for (nodes, words, known) in [
            (vec![says(0, kept), Err("gone".into())], "n2 does not say: gone", Ruling::Unknown),
            (
                vec![says(0, kept), says(0, kept), Err("gone".into())],
                "n3 does not say: gone",
                Ruling::Unknown,
            ),
            (vec![says(3, kept), says(0, kept)], "n1 holds 3 hints", Ruling::Invalid),
            (vec![says(3, kept), says(3, kept)], "n1 holds 3 hints", Ruling::Invalid),
            (vec![says(0, kept), says(0, &[])], "not all replicas", Ruling::Invalid),
            (vec![says(0, &[]), says(0, &[])], "nothing is kept", Ruling::Invalid),
        ] {
            let look = look(2, &nodes);
            let Difference::Waiting(why) = look.difference() else { panic!("{look:?}") };
            assert!(why.contains(words), "{why}");
            assert_eq!(ruling(&look.value()), known, "{words}: {}", look.value());
        }
    }

    #[test]
    fn strong_replicas_are_compared_at_one_point_of_the_log() {
        let at = |applied, digest| {
            says(0, &[(0, digest)]).map(|said| Digest { applied_index: Some(applied), ..said })
        };
        let alike = look(3, &[at(5, 7), at(5, 7), at(5, 7)]);
        assert_eq!((alike.difference(), ruling(&alike.value())), (Difference::None, Ruling::Valid));
        let diverged = look(3, &[at(5, 7), at(5, 8), at(5, 7)]);
        let Difference::Digests { partitions, .. } = diverged.difference() else { panic!("{diverged:?}") };
        assert_eq!(partitions, BTreeSet::from([0]));
        assert_eq!(ruling(&diverged.value()), Ruling::Invalid);
        // Who is behind cannot be compared; those that are not are.
        let behind = look(3, &[at(5, 7), at(4, 6), at(5, 7)]);
        assert_eq!(behind.difference(), Difference::Waiting("n1 applied 5, n2 4".into()));
        assert_eq!((ruling(&behind.value()), &behind.value()["n2"]), (Ruling::Unknown, &Json::Null));
        let both = look(3, &[at(5, 7), at(4, 6), at(5, 8)]);
        assert_eq!(ruling(&both.value()), Ruling::Invalid);
    }

    #[test]
    fn raft_groups_are_compared_only_while_they_rest() {
        let node = |number, applied_index, rebuilding_partitions| {
            let groups = vec![GroupStatus { group: 1, applied_index, ..GroupStatus::default() }];
            (NodeId(number), Some(NodeStatus { groups, rebuilding_partitions, ..NodeStatus::default() }))
        };
        let apart = [node(1, 5, 0), node(2, 6, 0)];
        assert_eq!(why_busy(&apart, false), None);
        assert_eq!(why_busy(&apart, true).unwrap(), "group 1: n1 applied 5, n2 6");
        assert_eq!(why_busy(&[node(1, 5, 0), node(2, 5, 0)], true), None);
        assert_eq!(why_busy(&[node(1, 5, 2)], false).unwrap(), "n1 rebuilds 2 ring partitions");
        assert_eq!(why_busy(&[(NodeId(3), None)], false).unwrap(), "n3 does not tell its status");
    }

    proptest! {
        /// The folded entries say exactly what the comparison of ring partition by ring partition says.
        #[test]
        fn entries_are_equal_if_and_only_if_nothing_differs(
            digests in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.05).prop_map(u64::from), 3), 1..6),
            hints in prop_oneof![
                prop::collection::vec(prop::bool::weighted(0.1).prop_map(u64::from), 5),
                (0..3_u64).prop_map(|held| vec![held; 5]),
            ],
            silent in prop::collection::vec(prop::bool::weighted(0.1), 5),
        ) {
            let mut kept = vec![Vec::new(); 5];
            for (partition, replicas) in (0_u32..).zip(&digests) {
                for (at, digest) in replicas.iter().enumerate() {
                    kept[(partition as usize + at) % 5].push((partition, *digest));
                }
            }
            let nodes: Vec<_> = (0..5)
                .map(|at| if silent[at] { Err("gone".into()) } else { says(hints[at], &kept[at]) })
                .collect();
            let look = look(3, &nodes);
            let ruling = ruling(&look.value());
            prop_assert_eq!(look.difference() == Difference::None, ruling == Ruling::Valid, "{}", look.value());
            // Where only silence is in the way, nothing is known; else silence hides no difference.
            let told_alike = (0..).zip(&digests).all(|(partition, replicas)| {
                let told: Vec<u64> = (0..).zip(replicas)
                    .filter(|(at, _)| !silent[(partition + at) % 5])
                    .map(|(_, digest)| *digest)
                    .collect();
                told.windows(2).all(|pair| pair[0] == pair[1])
            });
            let no_hints = (0..5).all(|at| silent[at] || hints[at] == 0);
            if silent.contains(&true) && told_alike && no_hints {
                prop_assert_eq!(ruling, Ruling::Unknown, "{}", look.value());
            } else if !told_alike {
                prop_assert_eq!(ruling, Ruling::Invalid, "{}", look.value());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_and_leaves_what_was_in_the_way() {
        let recorder = Recorder::default();
        let addresses =
            BTreeMap::from([(NodeId(1), "127.0.0.1:1".to_owned()), (NodeId(2), "127.0.0.1:1".to_owned())]);
        let clients = BTreeMap::new();
        let asked = Asked { addresses: &addresses, clients: &clients, recorder: &recorder, driven: &[] };
        let namespaces = [Copies { ns: "cart".into(), n: 2 }];
        let begun = Instant::now();
        let found = converge(asked, &namespaces, Meanwhile::default(), Patience::default()).await;
        assert!(begun.elapsed() >= Patience::default().converges_within);
        assert_eq!(found["cart"].at, None);
        assert_eq!(found["cart"].unequal.as_deref(), Some("n1 does not say: it is not asked"));
        let history = recorder.history();
        let [event] = history.as_slice() else { panic!("{history:?}") };
        assert_eq!((event.f.name(), event.ns.as_deref()), (DIGESTS, Some("cart")));
        assert_eq!(event.value, json!({"n1": null, "n2": null}));
    }
}

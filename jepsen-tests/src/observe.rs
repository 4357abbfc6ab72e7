//! What the nodes say of themselves while a run goes on: who leads, how many hints wait. It aims faults and
//! counts elections; no promise is judged by it. And what the machine does meanwhile: a disk or a scheduler
//! that stands still for a second makes nodes silent that did nothing wrong, so a promise about time that is
//! broken then is *unknown*.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use kv_client::{Client, ClientOptions, GroupRole, NodeStatus};
use kv_types::{GroupId, NodeId};
use kv_workload::Recorder;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often every node is asked.
const EVERY: Duration = Duration::from_millis(250);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// For how long after it began a machine that stood still makes nodes late: the usual deadline of an
/// operation, nanoseconds.
const LATE_AFTER_NS: u64 = 1_000_000_000;
/// How often the machine is tried.
const TRIED_EVERY: Duration = Duration::from_millis(200);
/// Bytes that are written and synced each time: a page.
const PAGE: [u8; 4096] = [7; 4096];

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Who led the strong namespaces, from when on, with the term.
    pub leaders: Vec<(u64, NodeId, u64)>,
    /// Terms that had a leader.
    pub terms: BTreeSet<u64>,
    /// The term of the strong namespaces as each node said it: by node, where it changed.
    pub node_terms: BTreeMap<NodeId, Vec<(u64, f64)>>,
    /// Hints that wait anywhere, by moment.
    pub hints: Vec<(u64, f64)>,
    /// Who holds the most of them now.
    pub hint_holder: Option<NodeId>,
    /// What the machine took to sync a page of the harness's own, milliseconds by moment, its own lateness
    /// included.
    pub machine: Vec<(u64, f64)>,
}

impl Seen {
    /// Elections after the first.
    pub fn elections(&self) -> u64 {
        (self.terms.len() as u64).saturating_sub(1)
    }

    /// The longest the machine stood still between two moments, milliseconds.
    pub fn slowest(&self, from: u64, to: u64) -> f64 {
        let within = self.machine.iter().filter(|(at, _)| (from..=to).contains(at));
        within.map(|(_, ms)| *ms).fold(0.0, f64::max)
    }

    /// When the machine stood still for longer than so many milliseconds: from when something was due, to a
    /// second after it was begun, for what nodes were asked meanwhile is late as well.
    pub fn stalls(&self, longer_than_ms: f64) -> Vec<(u64, u64)> {
        let stalls = self.machine.iter().filter(|(_, ms)| *ms > longer_than_ms);
        stalls
            .map(|(at, ms)| (at.saturating_sub((ms * 1e6) as u64), at.saturating_add(LATE_AFTER_NS)))
            .collect()
    }

    /// Takes what the nodes said at a moment. Of several that call themselves leader, the one of the highest
    /// term leads: one that was cut off goes on doing so.
    fn note(&mut self, at: u64, said: &BTreeMap<NodeId, NodeStatus>) {
        let group = |status: &NodeStatus| {
            let mut groups = status.groups.iter();
            groups
                .find(|group| group.group == GroupId::FIRST_DATA.0 && group.role() == GroupRole::Leader)
                .map(|group| group.term)
        };
        for (node, status) in said {
            let group = status.groups.iter().find(|group| group.group == GroupId::FIRST_DATA.0);
            let Some(term) = group.map(|group| group.term as f64) else { continue };
            let terms = self.node_terms.entry(*node).or_default();
            if terms.last().is_none_or(|(_, before)| *before != term) {
                terms.push((at, term));
            }
        }
        let leading = said.iter().filter_map(|(node, status)| Some((group(status)?, *node))).max();
        if let Some((term, node)) = leading {
            self.terms.insert(term);
            let newer = self
                .leaders
                .last()
                .is_none_or(|(_, before, old)| term >= *old && (*before, *old) != (node, term));
            if newer {
                self.leaders.push((at, node, term));
            }
        }
        let hints: u64 = said.values().map(|status| status.hints_pending).sum();
        self.hints.push((at, hints as f64));
        let most = said.iter().max_by_key(|(_, status)| status.hints_pending);
        self.hint_holder = most.filter(|(_, status)| status.hints_pending > 0).map(|(node, _)| *node);
    }
}

/// Asks all nodes again and again. Dropping it ends that.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    tasks: [JoinHandle<()>; 2],
}

impl Observer {
    /// Begins to ask the nodes at these addresses, and to try the disk that this folder is on.
    pub fn start(nodes: &BTreeMap<NodeId, String>, recorder: &Arc<Recorder>, folder: &Path) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let asking = tokio::spawn(watch(nodes.clone(), Arc::clone(recorder), Arc::clone(&seen)));
        let trying =
            tokio::spawn(try_machine(folder.join(".machine"), Arc::clone(recorder), Arc::clone(&seen)));
        Self { seen, tasks: [asking, trying] }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Who leads and who holds hints, as far as known.
    pub fn now(&self) -> (Option<NodeId>, Option<NodeId>) {
        let seen = lock(&self.seen);
        (seen.leaders.last().map(|(_, node, _)| *node), seen.hint_holder)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn watch(nodes: BTreeMap<NodeId, String>, recorder: Arc<Recorder>, seen: Arc<Mutex<Seen>>) {
    let client = |address: &String| {
        let options = ClientOptions { attempts: 1, read_timeout: PATIENCE, ..ClientOptions::pinned(address) };
        Client::connect(options).ok()
    };
    let clients: Vec<_> =
        nodes.iter().filter_map(|(node, address)| Some((*node, address.clone(), client(address)?))).collect();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = clients.iter().map(|(node, address, client)| async move {
            let status = tokio::time::timeout(PATIENCE, client.admin().status(address)).await.ok()?.ok()?;
            Some((*node, status))
        });
        let said: BTreeMap<_, _> = join_all(asked).await.into_iter().flatten().collect();
        if !said.is_empty() {
            lock(&seen).note(recorder.now(), &said);
        }
    }
}

async fn try_machine(file: PathBuf, recorder: Arc<Recorder>, seen: Arc<Mutex<Seen>>) {
    let mut due = Instant::now();
    loop {
        tokio::time::sleep_until(due).await;
        let at = recorder.now();
        let synced = async {
            let mut file = tokio::fs::File::create(&file).await?;
            file.write_all(&PAGE).await?;
            file.sync_data().await
        };
        let done: std::io::Result<()> = synced.await;
        if done.is_ok() {
            // From when it was due: lateness of the scheduler counts too.
            let ms = due.elapsed().as_secs_f64() * 1e3;
            lock(&seen).machine.push((at, ms));
        }
        due = Instant::now() + TRIED_EVERY;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stands_still_makes_a_second_late() {
        let ms = 1_000_000;
        let machine = vec![(2_000 * ms, 250.0), (5_000 * ms, 400.0)];
        let seen = Seen { machine, ..Seen::default() };
        assert_eq!(seen.stalls(250.0), [(4_600 * ms, 6_000 * ms)]);
    }

    use kv_client::GroupStatus;

    fn says(role: GroupRole, term: u64, hints: u64) -> NodeStatus {
        let group =
            GroupStatus { group: GroupId::FIRST_DATA.0, role: role.into(), term, ..GroupStatus::default() };
        NodeStatus { groups: vec![group], hints_pending: hints, ..NodeStatus::default() }
    }

    #[test]
    fn the_leader_of_the_highest_term_leads_and_a_stale_one_is_passed_over() {
        let mut seen = Seen::default();
        seen.note(
            1,
            &BTreeMap::from([
                (NodeId(1), says(GroupRole::Leader, 4, 0)),
                (NodeId(2), says(GroupRole::Follower, 4, 3)),
            ]),
        );
        seen.note(
            2,
            &BTreeMap::from([
                (NodeId(1), says(GroupRole::Leader, 4, 0)),
                (NodeId(3), says(GroupRole::Leader, 5, 7)),
            ]),
        );
        seen.note(3, &BTreeMap::from([(NodeId(1), says(GroupRole::Leader, 4, 0))]));
        seen.note(4, &BTreeMap::from([(NodeId(3), says(GroupRole::Leader, 5, 0))]));
        assert_eq!(seen.leaders, [(1, NodeId(1), 4), (2, NodeId(3), 5)]);
        assert_eq!((seen.elections(), seen.hint_holder), (1, None));
        assert_eq!(seen.node_terms[&NodeId(1)], [(1, 4.0)], "who is cut off stays behind");
        assert_eq!(seen.node_terms[&NodeId(3)], [(2, 5.0)]);
        assert_eq!(seen.hints.iter().map(|(_, hints)| *hints).collect::<Vec<_>>(), [3.0, 7.0, 0.0, 0.0]);
    }

    #[test]
    fn the_slowest_moment_is_looked_for_where_it_matters() {
        let seen = Seen { machine: vec![(1, 900.0), (5, 3.0), (6, 4.0)], ..Seen::default() };
        assert_eq!((seen.slowest(0, 10), seen.slowest(5, 10), seen.slowest(7, 9)), (900.0, 4.0, 0.0));
    }
}

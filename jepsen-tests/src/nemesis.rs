//! The thin driver of a schedule: it does what is planned, keeps the proof of each fault, and writes
//! everything down. A fault whose proof did not come back does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use kv_client::{Client, ClientOptions};
use kv_lab::process::{Kept, written_length};
use kv_lab::{Faults, Installed, Lab, LabError, NodeName, Proof};
use kv_types::NodeId;
use kv_workload::Recorder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::flood::Flood;
use crate::observe::Observer;
use crate::plan::{Hit, Planned, Roles, Schedule, Step, merged};
use crate::scenario::FaultKind;

/// How long a node whose disk fails may take to stop.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a node that is to lose its power may take until it holds something that it can lose.
const UNSYNCED_WITHIN: Duration = Duration::from_secs(2);
/// By how much its syncs are slower meanwhile: less than any leader needs to be called silent.
const SYNC_DELAY_MS: u64 = 30;
/// How often its disk is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How long a question about a key's owners may take.
const OWNERS_WITHIN: Duration = Duration::from_millis(500);
/// Where the damage of a flipped bit begins: the first bytes of a log are its head, and the store says so
/// differently.
const AFTER_HEAD: u64 = 4096;

/// A fault that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// What was planned.
    pub fault: Planned,
    /// Whom it hit.
    pub nodes: Vec<NodeName>,
    /// In words.
    pub words: String,
    /// Who was on which side, for a partition.
    pub sides: BTreeMap<String, String>,
    /// When it was begun to be put in force, nanoseconds.
    #[serde(default)]
    pub begun: u64,
    /// The first moment at which it was certainly in force.
    pub from: u64,
    /// The last moment at which it was certainly in force: taking it back began.
    #[serde(default)]
    pub until: u64,
    /// The first moment at which it was certainly no more.
    pub to: u64,
    /// Whether its proof came back.
    pub proven: bool,
}

/// What did not pass and who did not run, from a moment on.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Since when, nanoseconds.
    pub at: u64,
    /// The links.
    pub links: Faults,
    /// Nodes that are dead or paused.
    pub down: BTreeSet<NodeId>,
}

/// A fault that is in force.
#[derive(Debug)]
struct Active {
    hit: Hit,
    begun: u64,
    from: u64,
    proven: bool,
    /// Packets lost at random before it began, where somebody counts.
    lost_before: Option<u64>,
    /// What shows that the fault was felt, as it stood before it began, by node.
    felt_before: BTreeMap<NodeId, u64>,
}

/// Plays a schedule.
pub struct Nemesis<'a> {
    lab: &'a Lab,
    recorder: Arc<Recorder>,
    observer: &'a Observer,
    schedule: Schedule,
    /// Roles of an earlier run that is replayed.
    recorded: BTreeMap<u64, Roles>,
    /// A namespace and key for the role of the coordinator.
    hot: Box<dyn Fn() -> Option<(String, String)> + Send + Sync + 'a>,
    log: std::fs::File,
    active: BTreeMap<usize, Active>,
    /// Floods that are under way, by the numbers of their faults.
    floods: BTreeMap<u64, Flood>,
    paused: BTreeSet<NodeId>,
    /// Faults that are over.
    pub done: Vec<Done>,
    /// Every state of the network and the nodes, in order.
    pub states: Vec<State>,
    /// What the store did that it may not do, in words: a node that ended by itself, or does not start again.
    pub broken: Vec<String>,
    /// Nodes that ended by themselves and are known to have.
    ended: BTreeSet<NodeId>,
}

impl std::fmt::Debug for Nemesis<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nemesis").field("schedule", &self.schedule).finish_non_exhaustive()
    }
}

/// One line of `faults.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum LogLine {
    /// The first line: what was planned.
    Plan {
        /// The name of the scenario.
        scenario: String,
        /// The seed of the run.
        seed: u64,
        /// The schedule.
        schedule: Schedule,
    },
    /// A fault begins or ends.
    Step {
        /// Nanoseconds since the beginning of the history.
        time: u64,
        /// Its number.
        fault: u64,
        /// Its kind.
        kind: String,
        /// It begins, else it ends.
        begins: bool,
        /// What was known of the cluster when its target was looked for.
        roles: Roles,
        /// Whom it hits.
        what: String,
        /// Whether the proof came back.
        proven: bool,
        /// The proof.
        proof: Value,
    },
}

impl<'a> Nemesis<'a> {
    /// Writes the plan to the log.
    pub fn new(
        lab: &'a Lab,
        recorder: &Arc<Recorder>,
        observer: &'a Observer,
        (scenario, seed): (&str, u64),
        schedule: Schedule,
        recorded: BTreeMap<u64, Roles>,
        hot: impl Fn() -> Option<(String, String)> + Send + Sync + 'a,
        log: &Path,
    ) -> std::io::Result<Self> {
        let mut nemesis = Self {
            lab,
            recorder: Arc::clone(recorder),
            observer,
            schedule: schedule.clone(),
            recorded,
            hot: Box::new(hot),
            log: std::fs::File::create(log)?,
            active: BTreeMap::new(),
            floods: BTreeMap::new(),
            paused: BTreeSet::new(),
            done: Vec::new(),
            states: vec![State::default()],
            broken: Vec::new(),
            ended: BTreeSet::new(),
        };
        nemesis.write(&LogLine::Plan { scenario: scenario.to_owned(), seed, schedule })?;
        Ok(nemesis)
    }

    /// Plays the whole schedule, then heals whatever is left. Returns when the last fault was over,
    /// nanoseconds.
    pub async fn play(&mut self, say: &dyn Fn(&str)) -> Result<u64, LabError> {
        let begun = Instant::now();
        for step in self.schedule.steps() {
            tokio::time::sleep_until(begun + Duration::from_millis(step.at_ms)).await;
            self.look_for_the_dead().await;
            let Some(fault) = self.schedule.faults.get(step.fault).cloned() else { continue };
            if step.begins {
                self.begin(step, fault, say).await?;
            } else {
                self.end(step, fault).await?;
            }
            self.note_state().await;
        }
        self.heal_all(say).await
    }

    async fn begin(&mut self, step: Step, fault: Planned, say: &dyn Fn(&str)) -> Result<(), LabError> {
        let roles = match self.recorded.get(&fault.id) {
            Some(roles) => *roles,
            None => self.roles().await,
        };
        let hit = fault.hit(&self.lab.nodes(), &roles);
        say(&format!("{} {}", fault.kind.name(), hit.words));
        let lost_before = self.lost().await?;
        let mut felt_before = BTreeMap::new();
        if felt_by(fault.kind).is_some() {
            for node in &hit.nodes {
                // Without an answer nothing is shown, and the fault will not count.
                let status = self.control(*node, &json!({"do": "status"})).await.unwrap_or_default();
                felt_before.extend(felt(fault.kind, &status).map(|count| (*node, count)));
            }
        }
        let begun = self.recorder.now();
        let active = Active { hit: hit.clone(), begun, from: begun, proven: false, lost_before, felt_before };
        self.active.insert(step.fault, active);
        let (proven, proof) = match fault.kind.of_links() {
            true => self.install(Some(step.fault), fault.kind).await?,
            false => self.strike(&fault, &hit.nodes).await,
        };
        let now = self.recorder.now();
        if let Some(active) = self.active.get_mut(&step.fault) {
            active.proven = proven;
            if !fault.kind.of_links() {
                active.from = now;
            }
        }
        self.recorder.nemesis(fault.kind.name(), json!({"begins": hit.words, "proven": proven}));
        self.note(now, &fault, true, roles, hit.words, proven, proof)
    }

    async fn end(&mut self, step: Step, fault: Planned) -> Result<(), LabError> {
        let Some(active) = self.active.remove(&step.fault) else { return Ok(()) };
        let until = self.recorder.now();
        let (mut proven, mut proof) = match fault.kind.of_links() {
            true => {
                let (_, proof) = self.install(None, fault.kind).await?;
                (active.proven, proof)
            }
            false => self.lift(&fault, &active).await,
        };
        if let (FaultKind::Loss { .. }, Some(before), Some(after)) =
            (fault.kind, active.lost_before, self.lost().await?)
        {
            // Loss is left to chance, so no probe shows it; the filter counts what it dropped.
            proven = after > before;
            proof = json!({"packets_lost": after.saturating_sub(before), "installed": proof});
        }
        let to = self.recorder.now();
        let words = active.hit.words.clone();
        // Who judges the history alone has to know when who was cut off from whom.
        let sides = &active.hit.sides;
        self.recorder.nemesis(
            fault.kind.name(),
            json!({"ends": words, "proven": proven, "from": active.from, "until": until, "sides": sides}),
        );
        self.note(to, &fault, false, Roles::default(), words.clone(), proven, proof)?;
        let nodes = active.hit.nodes.iter().copied().map(NodeName).collect();
        let (begun, from, sides) = (active.begun, active.from, active.hit.sides);
        self.done.push(Done { fault, nodes, words, sides, begun, from, until, to, proven });
        Ok(())
    }

    /// Puts the sum of all faults of links in force. The proof of one that changes nothing is that the links
    /// still behave.
    async fn install(&mut self, at: Option<usize>, kind: FaultKind) -> Result<(bool, Value), LabError> {
        let sum = merged(self.active.values().map(|active| &active.hit.links));
        let mut installed = self.lab.install(sum).await?;
        if installed.links == 0 {
            installed = Installed { since: installed.since, ..self.lab.verify().await? };
        }
        let proven = installed.is_proven() || matches!(kind, FaultKind::Loss { .. });
        if let (Some(since), Some(active)) = (installed.since, at.and_then(|at| self.active.get_mut(&at))) {
            active.from = self.recorder.at(since);
        }
        Ok((proven, serde_json::to_value(installed).unwrap_or_default()))
    }

    /// Whether another fault holds this node down.
    fn held(&self, node: NodeId) -> bool {
        self.active.iter().any(|(at, active)| {
            let kind = self.schedule.faults.get(*at).map(|fault| fault.kind);
            active.hit.nodes.contains(&node) && kind.is_some_and(FaultKind::ends_nodes)
        })
    }

    async fn strike(&mut self, fault: &Planned, nodes: &[NodeId]) -> (bool, Value) {
        if fault.kind == FaultKind::LossyKill {
            // All at once: a cluster of which some nodes are dead already writes little that could be lost.
            return losses(join_all(nodes.iter().map(|node| self.lose_power(*node))).await);
        }
        if let FaultKind::Flood { clients, bytes, mode } = fault.kind {
            let at: Vec<_> = nodes.iter().map(|node| (*node, self.lab.client_address(*node))).collect();
            return match Flood::begin(&at, clients, bytes, mode, fault.dice) {
                Ok(flood) => {
                    self.floods.insert(fault.id, flood);
                    (true, json!({"clients": clients as usize * at.len()}))
                }
                Err(error) => (false, json!({"error": error.to_string()})),
            };
        }
        let mut proofs = Vec::new();
        for node in nodes {
            proofs.push(
                self.strike_one(fault, *node)
                    .await
                    .unwrap_or_else(|error| (false, json!({"error": error.to_string()}))),
            );
        }
        let proven = !proofs.is_empty() && proofs.iter().all(|(proven, _)| *proven);
        (proven, proofs.into_iter().map(|(_, proof)| proof).collect())
    }

    async fn strike_one(&mut self, fault: &Planned, node: NodeId) -> Result<(bool, Value), LabError> {
        match fault.kind {
            FaultKind::Kill | FaultKind::RestartEmpty => Ok(shown(&self.lab.kill(node).await?)),
            FaultKind::Pause => {
                let proof = self.lab.pause(node).await?;
                self.paused.insert(node);
                Ok(shown(&proof))
            }
            FaultKind::BitFlip => self.flip(fault, node, Kept::Log).await,
            FaultKind::JournalFlip => self.flip(fault, node, Kept::Journals).await,
            FaultKind::FailSync => {
                let answer = self.control(node, &json!({"do": "fail_sync", "after": 0})).await?;
                // The proof is its end: it must not go on after a sync that failed.
                let give_up = Instant::now() + ENDS_WITHIN;
                while self.lab.running().await.contains_key(&node) && Instant::now() < give_up {
                    tokio::time::sleep(POLL).await;
                }
                let ended = !self.lab.running().await.contains_key(&node);
                if !ended {
                    self.broken.push(format!("{node} goes on although a sync of its disk failed"));
                }
                Ok((ended, json!({"told": answer, "ended": ended})))
            }
            kind => self.strike_environment(kind, node).await,
        }
    }

    /// Kills a node and flips a bit in the longest of its files of a kind.
    async fn flip(&mut self, fault: &Planned, node: NodeId, kept: Kept) -> Result<(bool, Value), LabError> {
        let (killed, _) = shown(&self.lab.kill(node).await?);
        let files = kept.files(&self.lab.data_dir(node)).unwrap_or_default();
        let longest = files.iter().filter_map(|file| Some((written_length(file).ok()?, file))).max();
        let Some((length, file)) = longest.filter(|(length, _)| *length > 0) else {
            return Ok((false, json!({"error": "there is nothing to damage"})));
        };
        let mut dice = fastrand::Rng::with_seed(fault.dice);
        let (from, to) = match kept {
            // The end of a journal is cut as torn, and the log brings it again.
            Kept::Journals => (length / 8, length / 2),
            _ => (AFTER_HEAD.min(length - 1), length),
        };
        let (offset, bit) = (dice.u64(from..to.max(from + 1)), dice.u8(0..8));
        let (flipped, proof) = shown(&self.lab.flip_bit(node, file, offset, bit).await?);
        Ok((killed && flipped, proof))
    }

    /// Breaks the disk, the tier or the clock of a node that is told so.
    async fn strike_environment(&self, kind: FaultKind, node: NodeId) -> Result<(bool, Value), LabError> {
        match kind {
            FaultKind::DiskFull { bytes } | FaultKind::DiskNearlyFull { bytes } => {
                let answer = self.control(node, &json!({"do": "capacity", "free": bytes})).await?;
                Ok((answer.pointer("/disk/capacity_bytes").is_some_and(Value::is_number), answer))
            }
            FaultKind::DiskHang => {
                let answer = self.control(node, &json!({"do": "hang", "on": true})).await?;
                Ok((answer.pointer("/disk/hangs") == Some(&json!(true)), answer))
            }
            FaultKind::DiskSlow { ms } => {
                let answer = self.control(node, &json!({"do": "sync_delay_ms", "ms": ms})).await?;
                Ok((answer.pointer("/disk/sync_delay_ms") == Some(&json!(ms)), answer))
            }
            FaultKind::TierStall => {
                let answer = self.control(node, &json!({"do": "tier", "stalled": true})).await?;
                Ok((answer.pointer("/tier/stalled") == Some(&json!(true)), answer))
            }
            FaultKind::TierSlow { ms } => {
                let answer = self.control(node, &json!({"do": "tier", "delay_ms": ms})).await?;
                Ok((answer.pointer("/tier/delay_ms") == Some(&json!(ms)), answer))
            }
            FaultKind::ClockJump { by_ms } => {
                let answer = self.control(node, &json!({"do": "clock", "offset_ms": by_ms})).await?;
                Ok((near(answer.pointer("/clock/offset_ms"), by_ms), answer))
            }
            FaultKind::ClockDrift { rate } => {
                let answer = self.control(node, &json!({"do": "clock", "rate": rate})).await?;
                Ok((answer.pointer("/clock/rate").and_then(Value::as_f64) == Some(rate), answer))
            }
            // Of links, of processes, or struck together.
            _ => Ok((false, Value::Null)),
        }
    }

    /// Kills a node while its disk holds bytes that were not synced, if that comes within its time: a kill
    /// that took nothing shows nothing about forgotten syncs. Syncs are made slow for that, so that bytes
    /// wait long enough to be met.
    async fn lose_power(&self, node: NodeId) -> PowerLoss {
        let give_up = Instant::now() + UNSYNCED_WITHIN;
        let slow = json!({"do": "sync_delay_ms", "ms": SYNC_DELAY_MS});
        let mut before = self.control(node, &slow).await;
        while let Ok(status) = &before
            && unsynced(status) == 0
            && Instant::now() < give_up
        {
            tokio::time::sleep(LOOK).await;
            before = self.control(node, &json!({"do": "status"})).await;
        }
        let killed = self
            .lab
            .kill(node)
            .await
            .map_or_else(|error| (false, json!({"error": error.to_string()})), |proof| shown(&proof));
        PowerLoss { before: before.unwrap_or_else(|error| json!({"error": error.to_string()})), killed }
    }

    /// Takes a fault of nodes back. Its proof is that of its beginning, unless only the end can show it.
    async fn lift(&mut self, fault: &Planned, active: &Active) -> (bool, Value) {
        let nodes: Vec<NodeId> = active.hit.nodes.iter().copied().filter(|node| !self.held(*node)).collect();
        let mut proven = active.proven;
        let mut proofs = Vec::new();
        match fault.kind {
            FaultKind::Pause => {
                for node in nodes {
                    self.paused.remove(&node);
                    proofs.push(told(self.lab.resume(node).await));
                }
            }
            FaultKind::Flood { .. } => {
                if let Some(flood) = self.floods.remove(&fault.id) {
                    let flooded = flood.end().await;
                    proven = proven && flooded.overflowed();
                    proofs.push(flooded.figures());
                }
            }
            kind => match healing(kind) {
                Some(healing) => {
                    for node in nodes {
                        let before = active.felt_before.get(&node).copied();
                        let (felt, proof) = self.heal(kind, node, &healing, before).await;
                        proven = proven && felt;
                        proofs.push(proof);
                    }
                }
                None => proofs = self.start_all(kind, &nodes).await,
            },
        }
        (proven, Value::Array(proofs))
    }

    /// Tells a node that a fault of its disk, its tier or its clock is over. Whether the node has felt it,
    /// and what shows that.
    async fn heal(
        &mut self,
        kind: FaultKind,
        node: NodeId,
        healing: &Value,
        before: Option<u64>,
    ) -> (bool, Value) {
        match self.control(node, healing).await {
            Ok(answer) => {
                let shown = felt_by(kind).is_none() || felt_since(before, felt(kind, &answer));
                (shown, answer)
            }
            // A node that stopped is started on a disk that is not full. Why it stopped was not recorded, so
            // that shows nothing of the disk.
            Err(_) if kind.ends_nodes() => (false, self.start(node, false).await),
            Err(error) => (felt_by(kind).is_none(), json!({"error": error.to_string()})),
        }
    }

    /// Starts the nodes that a fault of this kind ended.
    async fn start_all(&mut self, kind: FaultKind, nodes: &[NodeId]) -> Vec<Value> {
        let (empty, refuses) =
            (kind == FaultKind::RestartEmpty, matches!(kind, FaultKind::BitFlip | FaultKind::JournalFlip));
        for node in nodes {
            self.ended.remove(node);
        }
        let started = join_all(nodes.iter().map(|node| start(self.lab, *node, empty, refuses))).await;
        let mut proofs = Vec::new();
        for outcome in started {
            match outcome {
                Ok(proof) => proofs.push(proof),
                Err(why) => {
                    proofs.push(json!({"error": why}));
                    self.broken.push(why);
                }
            }
        }
        proofs
    }

    async fn start(&mut self, node: NodeId, empty: bool) -> Value {
        self.ended.remove(&node);
        match start(self.lab, node, empty, false).await {
            Ok(proof) => proof,
            Err(why) => {
                self.broken.push(why.clone());
                json!({"error": why})
            }
        }
    }

    /// Ends every fault and starts everybody; returns when that was done.
    async fn heal_all(&mut self, say: &dyn Fn(&str)) -> Result<u64, LabError> {
        say("healing everything");
        self.look_for_the_dead().await;
        let left: Vec<usize> = self.active.keys().copied().collect();
        for at in left {
            if let Some(fault) = self.schedule.faults.get(at).cloned() {
                self.end(Step { at_ms: fault.to_ms, fault: at, begins: false }, fault).await?;
            }
        }
        let installed = self.lab.heal().await?;
        for node in std::mem::take(&mut self.paused) {
            let _ = self.lab.resume(node).await; // one that was killed meanwhile is started below
        }
        let running = self.lab.running().await;
        for node in self.lab.nodes().into_iter().filter(|node| !running.contains_key(node)) {
            self.start(node, false).await;
        }
        self.note_state().await;
        let since = installed.since.map_or_else(|| self.recorder.now(), |since| self.recorder.at(since));
        let last = self.done.iter().map(|done| done.to).max().unwrap_or(since);
        self.recorder.nemesis(kv_check::judge::HEALED, Value::Null);
        Ok(since.max(last))
    }

    /// Notes nodes that ended although no fault explains it. To be called from time to time.
    pub async fn look_for_the_dead(&mut self) {
        let running = self.lab.running().await;
        for node in self.lab.nodes() {
            let explained = self.held(node) || self.ended.contains(&node);
            if !running.contains_key(&node) && !explained {
                self.ended.insert(node);
                let at = self.recorder.now() / 1_000_000;
                self.broken.push(format!("{node} ended by itself (seen at {at} ms); see nodes/{node}.log"));
            }
        }
    }

    async fn note_state(&mut self) {
        let running = self.lab.running().await;
        let down = self
            .lab
            .nodes()
            .into_iter()
            .filter(|node| !running.contains_key(node) || self.paused.contains(node));
        let (links, _) = self.lab.faults().await;
        self.states.push(State { at: self.recorder.now(), links, down: down.collect() });
    }

    async fn roles(&self) -> Roles {
        let (leader, hint_holder) = self.observer.now();
        let coordinator = match (self.hot)() {
            Some((ns, key)) => self.primary(&ns, &key).await,
            None => None,
        };
        Roles {
            leader: leader.map(NodeName),
            coordinator: coordinator.map(NodeName),
            hint_holder: hint_holder.map(NodeName),
        }
    }

    async fn primary(&self, ns: &str, key: &str) -> Option<NodeId> {
        let client = Client::connect(ClientOptions::new(self.lab.endpoints())).ok()?;
        let owners =
            tokio::time::timeout(OWNERS_WITHIN, client.admin().ring_owners(ns, key)).await.ok()?.ok()?;
        owners.primaries.first().copied().map(NodeId)
    }

    /// Packets lost at random so far, where packets are counted.
    async fn lost(&self) -> Result<Option<u64>, LabError> {
        Ok(self.lab.counters().await?.map(|counters| counters.lost_packets))
    }

    async fn control(&self, node: NodeId, line: &Value) -> Result<Value, LabError> {
        let answer = self.lab.control(node, &line.to_string()).await?;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        match answer.get("ok") == Some(&json!(true)) {
            true => Ok(answer),
            false => Err(LabError::Usage(format!("{node} does not take {line}: {answer}"))),
        }
    }

    fn note(
        &mut self,
        time: u64,
        fault: &Planned,
        begins: bool,
        roles: Roles,
        what: String,
        proven: bool,
        proof: Value,
    ) -> Result<(), LabError> {
        let kind = fault.kind.name().to_owned();
        let line = LogLine::Step { time, fault: fault.id, kind, begins, roles, what, proven, proof };
        self.write(&line)
            .map_err(|source| LabError::System { what: "cannot write faults.jsonl".into(), source })
    }

    fn write(&mut self, line: &LogLine) -> std::io::Result<()> {
        let text = serde_json::to_string(line).map_err(std::io::Error::other)?;
        writeln!(self.log, "{text}")
    }
}

/// What tells a node that a fault of its disk, its tier or its clock is over; none for other faults.
fn healing(kind: FaultKind) -> Option<Value> {
    match kind {
        FaultKind::DiskFull { .. } | FaultKind::DiskNearlyFull { .. } => {
            Some(json!({"do": "capacity", "bytes": null}))
        }
        FaultKind::DiskHang => Some(json!({"do": "hang", "on": false})),
        FaultKind::DiskSlow { .. } => Some(json!({"do": "sync_delay_ms", "ms": 0})),
        FaultKind::TierStall => Some(json!({"do": "tier", "stalled": false})),
        FaultKind::TierSlow { .. } => Some(json!({"do": "tier", "delay_ms": 0})),
        FaultKind::ClockJump { .. } | FaultKind::ClockDrift { .. } => {
            Some(json!({"do": "clock", "offset_ms": 0, "rate": 1.0}))
        }
        _ => None,
    }
}

/// What a node counts that shows that it felt this fault; none where its beginning proves it.
fn felt_by(kind: FaultKind) -> Option<&'static str> {
    match kind {
        FaultKind::DiskFull { .. } => Some("/disk/refused_writes"),
        FaultKind::DiskNearlyFull { .. } => Some("/disk/said_short"),
        FaultKind::DiskHang => Some("/disk/held_calls"),
        FaultKind::DiskSlow { .. } => Some("/disk/syncs"),
        FaultKind::TierStall | FaultKind::TierSlow { .. } => Some("/tier/delayed_calls"),
        _ => None,
    }
}

/// Starts a node; one that refuses a damaged disk gets an empty one, as its operator would do.
async fn start(lab: &Lab, node: NodeId, empty: bool, may_refuse: bool) -> Result<Value, String> {
    let again = |error: LabError| format!("{node} does not start again: {error}");
    if empty {
        return lab.restart_empty(node).await.map(|proofs| json!(proofs)).map_err(again);
    }
    match lab.restart(node).await {
        Ok(proof) => Ok(json!(proof)),
        Err(LabError::NodeEnded { tail, .. }) if may_refuse => {
            let replaced = lab.restart_empty(node).await.map_err(again)?;
            Ok(json!({"refused": tail, "replaced": replaced}))
        }
        Err(error) => Err(again(error)),
    }
}

/// A node that lost its power.
#[derive(Debug)]
struct PowerLoss {
    /// What its disk said just before.
    before: Value,
    /// Whether it was killed, and what shows it.
    killed: (bool, Value),
}

/// What several power losses prove: that each node was killed with a disk that forgets, and that something
/// was forgotten.
fn losses(all: Vec<PowerLoss>) -> (bool, Value) {
    let forgets = |loss: &PowerLoss| loss.before.pointer("/disk/lose_unsynced") == Some(&json!(true));
    let struck = all.iter().all(|loss| loss.killed.0 && forgets(loss));
    let lost: u64 = all.iter().map(|loss| unsynced(&loss.before)).sum();
    let proofs: Vec<Value> =
        all.into_iter().map(|loss| json!({"before": loss.before, "killed": loss.killed.1})).collect();
    (struck && lost > 0, json!({"unsynced_bytes": lost, "nodes": proofs}))
}

/// Bytes that a disk holds and has not synced; none when it does not say.
fn unsynced(status: &Value) -> u64 {
    status.pointer("/disk/unsynced_bytes").and_then(Value::as_u64).unwrap_or(0)
}

/// How often a node has felt a fault of this kind so far, if it says.
fn felt(kind: FaultKind, status: &Value) -> Option<u64> {
    status.pointer(felt_by(kind)?).and_then(Value::as_u64)
}

/// Whether a fault was felt meanwhile. A count that is missing proves nothing; one that is smaller is of
/// another process.
fn felt_since(before: Option<u64>, after: Option<u64>) -> bool {
    matches!((before, after), (Some(before), Some(after)) if after > before)
}

fn shown(proof: &Proof) -> (bool, Value) {
    (proof.is_proven(), serde_json::to_value(proof).unwrap_or_default())
}

fn told(outcome: Result<Proof, LabError>) -> Value {
    match outcome {
        Ok(proof) => shown(&proof).1,
        Err(error) => json!({"error": error.to_string()}),
    }
}

/// Whether a clock is as far off as it was told, give or take the time that this took.
fn near(offset: Option<&Value>, wanted: i64) -> bool {
    offset.and_then(Value::as_i64).is_some_and(|offset| (offset - wanted).abs() < 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(killed: bool, forgets: bool, unsynced: Option<u64>) -> PowerLoss {
        let mut before = json!({"disk": {"lose_unsynced": forgets}});
        if let Some(unsynced) = unsynced {
            before["disk"]["unsynced_bytes"] = json!(unsynced);
        }
        PowerLoss { before, killed: (killed, Value::Null) }
    }

    #[test]
    fn a_power_loss_counts_only_when_something_was_lost() {
        assert!(losses(vec![loss(true, true, Some(512))]).0);
        assert!(losses(vec![loss(true, true, Some(512)), loss(true, true, Some(0))]).0);
        for nothing in [
            vec![],
            vec![loss(true, true, Some(0))],
            vec![loss(true, true, None)],
            vec![loss(false, true, Some(512))],
            vec![loss(true, false, Some(512))],
            vec![loss(true, true, Some(512)), loss(false, true, Some(0))],
        ] {
            assert!(!losses(nothing).0);
        }
    }

    #[test]
    fn a_fault_of_a_disk_or_a_tier_counts_only_when_it_was_felt() {
        assert!(felt_since(Some(0), Some(1)));
        for (before, after) in
            [(Some(0), Some(0)), (Some(3), Some(3)), (Some(3), Some(1)), (None, Some(1)), (Some(0), None)]
        {
            assert!(!felt_since(before, after), "{before:?} {after:?}");
        }
        let full = FaultKind::DiskFull { bytes: 0 };
        assert_eq!(felt(full, &json!({"disk": {"refused_writes": 4}})), Some(4));
        assert_eq!(felt(full, &json!({"disk": {}})), None);
        assert_eq!(felt(FaultKind::TierStall, &json!({"tier": {"delayed_calls": 2}})), Some(2));
        assert_eq!(felt(FaultKind::Kill, &json!({"disk": {"refused_writes": 4}})), None);
    }
}

//! The demo: five real nodes, two namespaces, one network partition, and the difference between the two sides
//! of CAP shown as it happens and verified from what clients saw. It is a test as much as a show: a broken
//! promise is an error.

pub mod by_hand;
mod judge;
mod narrate;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kv_client::{Client, ClientOptions};
use kv_types::{GroupId, NamespaceName, NamespaceSpec, NodeId, Replication, counted};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::facts::whole;
use crate::words::duration;
use judge::{BANK, CART, Marks};
use kv_lab::{Lab, LabError, LabOptions, interrupted};
use kv_workload::converge::{Copies, Difference, Look};
use kv_workload::{AvailableClient, Covers, Phase, Recorder, Sample, StrongClient, open_loop};
use narrate::Narrator;

pub use judge::{AvailableReceipt, Receipt, StrongReceipt};

/// The minority of the cut, and the majority.
const GROUPS: [&[NodeId]; 2] = [&[NodeId(1), NodeId(2)], &[NodeId(3), NodeId(4), NodeId(5)]];
/// Operations a second that the client at each node sends to the strong namespace.
const BANK_RATE: u32 = 12;
/// The same for the available one.
const CART_RATE: u32 = 20;
/// Keys of the strong namespace: few, so that they are contended.
const BANK_KEYS: u64 = 4;
/// Keys of the available namespace.
const CART_KEYS: u64 = 12;
/// Deadline of an operation on the strong namespace.
const BANK_DEADLINE: Duration = Duration::from_secs(1);
/// Load before the cut.
const BEFORE: Duration = Duration::from_millis(2_500);
/// Load on the strong namespace after the healing.
const AFTER: Duration = Duration::from_millis(2_500);
/// Replicas of every ring partition of the available namespace.
const COPIES: u8 = 3;
/// How often convergence is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long anything may take that has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(25);
/// What was tried when a client cannot be made.
const NO_CLIENT: &str = "cannot make a client";
/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;
/// A row of the table is shown when its operations are over: their second, and their deadline.
const ROW_AFTER: Duration = Duration::from_millis(2_100);

/// How to run the demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where receipt, history and report go; the lab's folder is `lab` in it.
    pub out: PathBuf,
    /// First port.
    pub port_base: u16,
    /// Seed of the load.
    pub seed: u64,
    /// The server program; otherwise it is looked for.
    pub kvd: Option<PathBuf>,
    /// How long the network stays cut.
    pub cut: Duration,
}

impl DemoOptions {
    /// As `cargo xtask demo` runs it.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            out: out.into(),
            port_base: by_hand::PORT_BASE,
            seed: 42,
            kvd: None,
            cut: Duration::from_secs(11),
        }
    }
}

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    /// In numbers.
    pub receipt: Receipt,
    /// Promises that were broken; none is what is expected.
    pub broken: Vec<String>,
}

/// Runs the demo and prints it. Whatever happens, no process is left.
pub async fn run(mut options: DemoOptions) -> Result<Outcome, LabError> {
    // Paths are printed whole: they are used elsewhere.
    let out =
        std::path::absolute(&options.out).map_err(LabError::system("cannot find the current directory"))?;
    options.out.clone_from(&out);
    let made = Made::create(&out)?;
    let outcome = tokio::select! {
        biased;
        signal = interrupted() => Err(LabError::Interrupted(signal)),
        outcome = Stage::play(options) => outcome,
    };
    if outcome.is_err() {
        made.remove_empty();
    }
    outcome
}

/// The folders that a run made for itself, from the outermost.
struct Made(Vec<PathBuf>);

impl Made {
    fn create(out: &Path) -> Result<Self, LabError> {
        let mut new: Vec<PathBuf> =
            out.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
        new.reverse();
        fs::create_dir_all(out).map_err(LabError::system(format!("cannot create {}", out.display())))?;
        Ok(Self(new.into_iter().chain([out.join("lab")]).collect()))
    }

    /// A run that failed leaves what says why, and no folder with nothing in it.
    fn remove_empty(&self) {
        for folder in self.0.iter().rev() {
            // One that holds something stays, and so does all above it.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Everything on stage. Dropping it ends the load and kills the nodes.
struct Stage {
    options: DemoOptions,
    narrator: Narrator,
    lab: Lab,
    client: Client,
    recorder: Arc<Recorder>,
    bank_load: JoinSet<u64>,
    cart_load: JoinSet<u64>,
    /// Operations that were not begun because too many were open.
    shed: u64,
    bank: watch::Sender<Phase>,
    cart: watch::Sender<Phase>,
}

impl Stage {
    async fn play(options: DemoOptions) -> Result<Outcome, LabError> {
        let narrator = Narrator::new();
        let begun = Instant::now();
        narrator.waiting("five nodes are starting ...");
        let lab = LabOptions {
            port_base: options.port_base,
            kvd: options.kvd.clone(),
            ..LabOptions::new(options.out.join("lab"))
        };
        let lab = Lab::start(lab).await?;
        let line = format!("kvctl lab up{}", by_hand::ports(options.port_base));
        narrator.step(1, &format!("five nodes up in {:.1} s", begun.elapsed().as_secs_f64()), &line);
        let client =
            Client::connect(ClientOptions::new(lab.endpoints())).map_err(LabError::store(NO_CLIENT))?;
        let mut stage = Self {
            options,
            narrator,
            lab,
            client,
            recorder: Arc::default(),
            bank_load: JoinSet::new(),
            cart_load: JoinSet::new(),
            shed: 0,
            bank: watch::Sender::new(Phase::ReadWrite),
            cart: watch::Sender::new(Phase::ReadWrite),
        };
        stage.create_namespaces().await?;
        stage.start_load().await?;
        stage.move_leader().await?;
        tokio::time::sleep(BEFORE).await;
        let (cut, decided, links) = stage.cut().await?;
        let (healed, converged) = stage.heal().await?;
        let settled = stage.read_everything().await?;
        let marks = Marks { cut, decided, healed, converged, settled };
        stage.lab.stop().await;
        let _ = fs::remove_dir_all(stage.options.out.join("lab/data")); // only logs are worth keeping
        stage.verdict(&marks, links)
    }

    async fn create_namespaces(&self) -> Result<(), LabError> {
        let name = |name: &str| {
            NamespaceName::new(name).map_err(|failure| LabError::store("a name")(failure.into()))
        };
        let replication = Replication { n: 3, r: 2, w: 2, sloppy: true };
        for spec in [NamespaceSpec::strong(name(BANK)?), NamespaceSpec::available(name(CART)?, replication)] {
            self.client
                .admin()
                .create_namespace(spec)
                .await
                .map_err(LabError::store("cannot create a namespace"))?;
        }
        self.lab
            .every_node("both namespaces everywhere", |topology| {
                [BANK, CART].iter().all(|name| topology.namespaces.contains_key(*name))
            })
            .await?;
        self.lab.serving().await?; // a node that rebuilds takes part in the ring only now
        let line = "kvctl ns create bank --mode strong; kvctl ns create cart --mode available";
        self.narrator.step(2, "bank is strong, cart is available (3 copies)", line);
        Ok(())
    }

    /// A client at every node for each namespace, at a fixed rate whatever is answered.
    async fn start_load(&mut self) -> Result<(), LabError> {
        let nodes = self.lab.nodes();
        let per_node = u32::try_from(nodes.len()).unwrap_or(1);
        for (at, node) in (0..).zip(nodes) {
            let address = self.lab.client_address(node);
            let bank = StrongClient::new(self.recorder.clone(), BANK, node, &address, BANK_DEADLINE);
            let bank = Arc::new(bank.map_err(LabError::store(NO_CLIENT))?);
            let cart = AvailableClient::new(self.recorder.clone(), CART, node, &address);
            let cart = Arc::new(cart.map_err(LabError::store(NO_CLIENT))?);
            let mut dice = fastrand::Rng::with_seed(self.options.seed ^ (node.0 << 32));
            let mut cart_dice = dice.fork();

            let every = Duration::from_secs(1) / BANK_RATE;
            let clients = self.bank.subscribe();
            self.bank_load.spawn(open_loop(
                move || every,
                every * at / per_node,
                clients,
                move |intended| {
                    let (bank, key, what) =
                        (bank.clone(), format!("acc/{}", dice.u64(1..=BANK_KEYS)), dice.u8(0..10));
                    async move {
                        match what {
                            0..4 => bank.read(intended, &key).await,
                            4..8 => bank.write(intended, &key).await,
                            _ => bank.cas(intended, &key).await,
                        };
                    }
                },
            ));

            let every = Duration::from_secs(1) / CART_RATE;
            let clients = self.cart.subscribe();
            self.cart_load.spawn(open_loop(
                move || every,
                every * at / per_node,
                clients,
                move |intended| {
                    let cart = cart.clone();
                    let (key, what) = (format!("user:{}", cart_dice.u64(1..=CART_KEYS)), cart_dice.u8(0..20));
                    async move {
                        match what {
                            0..7 => cart.read(intended, &key).await,
                            7..19 => cart.write(intended, &key, Covers::WhatIsKnown).await,
                            _ => cart.write(intended, &key, Covers::Nothing).await,
                        };
                    }
                },
            ));
        }
        let words = format!("clients at every node: {BANK_RATE}/s to bank, {CART_RATE}/s to cart");
        let first = self.lab.endpoints().into_iter().next().unwrap_or_default();
        self.narrator.step(3, &words, &format!("kvctl -e {first} put -n bank alice 100"));
        self.until("answers from both namespaces at every node", || {
            let (samples, _) = self.recorder.samples_since(0);
            let answered =
                samples.into_iter().filter(Sample::answered).map(|sample| (sample.ns, sample.node));
            answered.collect::<BTreeSet<_>>().len() == 2 * self.lab.nodes().len()
        })
        .await
    }

    /// The strong namespace is to be led from the side that will be cut off: the harder case.
    async fn move_leader(&self) -> Result<(), LabError> {
        let [minority, _] = GROUPS;
        let admin = self.client.admin();
        let deadline = Instant::now() + PATIENCE;
        let mut first = None;
        loop {
            let leader = admin
                .topology()
                .await
                .ok()
                .and_then(|topology| topology.leaders.get(&GroupId::FIRST_DATA)?.node);
            first = first.or(leader);
            match leader {
                Some(leader) if minority.contains(&leader) => {
                    let same = |known: Option<NodeId>| known.is_some_and(|known| minority.contains(&known));
                    self.lab
                        .every_node("one leader known everywhere", |topology| {
                            same(topology.leaders.get(&GroupId::FIRST_DATA).and_then(|leader| leader.node))
                        })
                        .await?;
                    let moved = match first {
                        Some(first) if first != leader => {
                            format!("bank's leader moves from {first} to {leader}")
                        }
                        _ => format!("bank's leader is {leader}, in the coming minority"),
                    };
                    self.narrator.note_of(&moved, &format!("kvctl cluster transfer-leader {leader}"));
                    return Ok(());
                }
                Some(_) => {
                    let to = minority.first().copied().unwrap_or_default();
                    let _ = admin.transfer_leader(GroupId::FIRST_DATA, to).await; // looked at again above
                }
                None => {}
            }
            if Instant::now() > deadline {
                return Err(too_slow("moving bank's leadership into the minority"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Cuts, tells second by second what is answered, and decides to heal. Returns the two moments, and how
    /// many links were cut and seen cut.
    async fn cut(&self) -> Result<(u64, u64, (usize, usize)), LabError> {
        let groups = GROUPS.map(<[NodeId]>::to_vec);
        self.narrator.step(
            4,
            "network partition  n1,n2 | n3,n4,n5",
            "kvctl fault partition n1,n2 / n3,n4,n5",
        );
        let (_, mut position) = self.recorder.samples_since(0);
        let installed = self.lab.partition(&groups).await?;
        let begun = installed.since.unwrap_or_else(Instant::now);
        let cut = self.recorder.at(begun);
        let names = groups.iter().map(|group| group.iter().map(NodeId::to_string).collect::<Vec<_>>());
        self.recorder.nemesis("partition", json!(names.collect::<Vec<_>>()));
        self.narrator.note(&format!(
            "cut {}; {} of {} blocked",
            counted(installed.links, "directed link", "directed links"),
            installed.as_expected,
            counted(installed.probes, "probe", "probes")
        ));
        self.narrator.table_head(&groups);
        let mut pending = Vec::new();
        let seconds = self.options.cut.as_secs();
        for second in 0..seconds.saturating_sub(1) {
            let row_at = (begun + Duration::from_secs(second) + ROW_AFTER).min(begun + self.options.cut);
            self.narrator
                .waiting(&format!("the network is cut ... {}/{seconds} s", begun.elapsed().as_secs()));
            tokio::time::sleep_until(row_at).await;
            let (more, now_at) = self.recorder.samples_since(position);
            position = now_at;
            pending.extend(more);
            let from = cut + second * 1_000_000_000;
            let row = pending.iter().filter(|sample| (from..from + 1_000_000_000).contains(&sample.intended));
            let row: Vec<_> = row.cloned().collect();
            self.narrator.table_row(second, &row, &groups);
        }
        self.narrator.note("both sides of cart wrote the same keys");
        tokio::time::sleep_until(begun + self.options.cut).await;
        let decided = self.recorder.now();
        let held = self.lab.verify().await?;
        Ok((cut, decided, (installed.links, installed.as_expected.min(held.as_expected))))
    }

    /// Heals, and waits until the strong namespace serves everywhere and the available one has converged.
    /// Returns when the links were open, and when the replicas were equal. No client uses the available
    /// namespace from before the healing on: reads repair what they find, and would hide that hints do not
    /// come home.
    async fn heal(&mut self) -> Result<(u64, Option<u64>), LabError> {
        self.narrator.waiting("healing ...");
        self.cart.send_replace(Phase::Stop);
        self.shed += ended(&mut self.cart_load).await;
        let begun = Instant::now();
        let (installed, converged) = tokio::join!(self.lab.heal(), self.convergence());
        let healed = installed?.since.unwrap_or(begun);
        self.recorder.nemesis("heal", json!(null));
        let healed_at = self.recorder.at(healed);
        let converged_at = converged.map(|moment| self.recorder.at(moment));
        tokio::time::sleep_until(healed + AFTER).await;
        let served = |sample: &Sample| {
            let [minority, _] = GROUPS;
            sample.ns == BANK
                && minority.contains(&sample.node)
                && sample.answered()
                && sample.intended > healed_at
        };
        self.until("bank at the healed nodes", || self.recorder.samples_since(0).0.iter().any(served))
            .await?;
        self.bank.send_replace(Phase::Stop);
        self.shed += ended(&mut self.bank_load).await;
        let words = match converged_at {
            Some(moment) => {
                let after = duration(whole(moment.saturating_sub(healed_at)));
                format!("healed; cart's replicas equal after {after}")
            }
            None => "healed; cart's replicas did not become equal".into(),
        };
        self.narrator.step(5, &words, "kvctl fault heal");
        if self.shed > 0 {
            let were = counted(self.shed, "operation was", "operations were");
            self.narrator.note(&format!("{were} not begun: too many were open"));
        }
        Ok((healed_at, converged_at))
    }

    /// The moment when all replicas of every ring partition had equal digests and no node held hints.
    async fn convergence(&self) -> Option<Instant> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.replicas_are_equal().await {
                return Some(Instant::now());
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    async fn replicas_are_equal(&self) -> bool {
        let nodes = self.lab.nodes();
        let addresses = nodes.iter().map(|node| (*node, self.lab.client_address(*node))).collect();
        let clients = nodes.iter().map(|node| (*node, self.client.clone())).collect();
        let copies = Copies { ns: CART.to_owned(), n: COPIES };
        Look::at(&clients, &addresses, &copies).await.difference() == Difference::None
    }

    /// Reads every key through every node, the available ones from all replicas. Returns when it began.
    async fn read_everything(&self) -> Result<u64, LabError> {
        self.narrator.waiting("reading everything at every node ...");
        // A whole millisecond, so that `kvctl check --settled-ms` can name it.
        let settled = self.recorder.now().next_multiple_of(MILLISECOND);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let deadline = Instant::now() + PATIENCE;
        for node in self.lab.nodes() {
            let address = self.lab.client_address(node);
            let bank = StrongClient::new(self.recorder.clone(), BANK, node, &address, BANK_DEADLINE)
                .map_err(LabError::store(NO_CLIENT))?;
            let cart = AvailableClient::new(self.recorder.clone(), CART, node, &address)
                .map_err(LabError::store(NO_CLIENT))?
                .reading_all();
            for key in 1..=BANK_KEYS {
                while !bank.read(Instant::now(), &format!("acc/{key}")).await.is_ok() {
                    self.patient(deadline, "the final reads of bank").await?;
                }
            }
            for key in 1..=CART_KEYS {
                while !cart.read(Instant::now(), &format!("user:{key}")).await.is_ok() {
                    self.patient(deadline, "the final reads of cart").await?;
                }
            }
        }
        Ok(settled)
    }

    fn verdict(&self, marks: &Marks, links: (usize, usize)) -> Result<Outcome, LabError> {
        let out = &self.options.out;
        self.narrator.waiting("verifying ...");
        let history = self.recorder.history();
        let file = fs::File::create(out.join("history.jsonl"))
            .map_err(LabError::system("cannot write history.jsonl"))?;
        kv_check::history::write(std::io::BufWriter::new(file), &history)
            .map_err(LabError::system("cannot write history.jsonl"))?;
        let begun = Instant::now();
        let groups = GROUPS.map(<[NodeId]>::to_vec);
        let (links_cut, links_seen_cut) = links;
        let run = judge::Run { seed: self.options.seed, links_cut, links_seen_cut, shed: self.shed };
        let judged = judge::judge(&history, marks, &groups, run)
            .map_err(|malformed| LabError::Usage(format!("the history cannot be judged: {malformed}")))?;
        let checked_in = begun.elapsed();
        let receipt = serde_json::to_string_pretty(&judged.receipt).unwrap_or_default() + "\n";
        write(&out.join("receipt.json"), &receipt)?;
        let (samples, _) = self.recorder.samples_since(0);
        let report = report::report(&judged, &history, &samples, marks, &groups, self.options.port_base)
            .map_err(|malformed| LabError::Usage(format!("the history cannot be judged: {malformed}")))?;
        crate::write(&report, out)?;
        let history = out.join("history.jsonl");
        let check = format!("kvctl check {} --settled-ms {}", history.display(), marks.settled / MILLISECOND);
        self.narrator.step(6, "receipt", &check);
        self.narrator.receipt(&judged.receipt, &judged.broken, checked_in, out);
        self.narrator.try_next(self.options.port_base);
        Ok(Outcome { receipt: judged.receipt, broken: judged.broken })
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            self.patient(deadline, what).await?;
        }
        Ok(())
    }

    /// A pause before looking again; an error when that has been long enough.
    async fn patient(&self, deadline: Instant, what: &str) -> Result<(), LabError> {
        if Instant::now() > deadline {
            return Err(too_slow(what));
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }
}

/// Waits for clients that were told to stop; returns how many operations they did not begin.
async fn ended(load: &mut JoinSet<u64>) -> u64 {
    let mut shed = 0;
    while let Some(ended) = load.join_next().await {
        shed += ended.unwrap_or(0);
    }
    shed
}

fn too_slow(what: &str) -> LabError {
    LabError::TooSlow {
        what: what.into(),
        seconds: PATIENCE.as_secs(),
        hint: "; the nodes' logs are in the lab's folder".into(),
    }
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(LabError::system(format!("cannot write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_demo_that_cannot_begin_leaves_no_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let options = || {
            let mut options = DemoOptions::new(target.join("demo"));
            options.kvd = Some(dir.path().join("no-such-program"));
            // Nothing is bound: the program is looked for first.
            options.port_base = 65_000;
            options
        };
        assert!(run(options()).await.is_err());
        assert!(!target.exists(), "it was made for this");
        fs::create_dir_all(target.join("demo")).unwrap();
        fs::write(target.join("demo/receipt.json"), "{}").unwrap();
        assert!(run(options()).await.is_err());
        assert!(target.join("demo/receipt.json").exists(), "what was there before stays");
    }
}

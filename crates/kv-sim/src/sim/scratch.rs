//! Namespaces that are made and written to before the faults, and deleted while they strike: in the end no
//! node serves them, and none has anything of them, also one that was away, dead or behind when they went.
//! Others are deleted with a grace and taken back meanwhile: in the end every node has all of them. One more
//! is altered: in the end every node knows the same settings.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_client::{Client, Error, WriteContext};
use kv_env::Entropy;
use kv_types::limits::{MAX_DELETION_GRACE, MIN_DELETION_GRACE};
use kv_types::{
    Failure, NamespaceId, NamespaceName, NamespaceSpec, NodeId, Placement, Reason, Replication, majority,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, nodes};
use super::trace::{Trace, now};

/// Keys that are written to each.
const KEYS: usize = 12;
/// The deletion begins so long after the loads, at most: before the faults, or while they strike.
const LATEST: Duration = Duration::from_secs(12);
/// How long a deletion may take behind the end of the loads: then nothing is in its way.
const DELETED: Duration = Duration::from_secs(30);
/// A grace that ends while the faults strike.
const SHORT_GRACE: Duration = Duration::from_millis(2_000);
/// How long it may take until nothing is left then.
const GONE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);

/// The value of every key.
const VALUE: &str = "scratch";

/// A namespace: its name, whether it is strong, and its id.
type Made = (NamespaceName, bool, NamespaceId);

/// What an available one waits for, R and W, one after the other.
const ALTERED: [(u8, u8); 3] = [(1, 3), (3, 1), (1, 2)];

/// Two of each mode, and one that is altered. The first deletion with a grace needs every member, which few
/// of the faults allow: one more goes before them.
#[derive(Debug, Clone)]
pub struct Scratch {
    gone: NamespaceId,
    going: Vec<Made>,
    /// Deleted, and taken back.
    kept: Vec<Made>,
    altered: NamespaceName,
}

/// What was done to those that stay, as far as that is certain.
#[derive(Debug, Default)]
pub struct Stayed {
    /// Taken back, and whether no attempt of the deletion may come behind.
    back: Vec<(Made, bool)>,
    /// R and W of the one that is altered.
    settings: Option<(u8, u8)>,
}

/// When one is deleted for a while.
struct While {
    before: Duration,
    grace: Duration,
    between: Duration,
}

impl While {
    /// For long, and taken back soon; or for a short time, and taken back when that is over or nearly so.
    fn of(dice: &Entropy) -> Self {
        let latest = u64::try_from(LATEST.as_millis()).unwrap_or(u64::MAX);
        let before = Duration::from_millis(dice.below(latest / 2));
        let (grace, between) = if dice.below(2) == 0 {
            (MAX_DELETION_GRACE, dice.below(latest / 4))
        } else {
            (SHORT_GRACE, dice.below(2_000) + 1_500)
        };
        Self { before, grace, between: Duration::from_millis(between) }
    }
}

/// Asks one node after the other until one has done it.
async fn at_some_node<T>(
    handles: &BTreeMap<NodeId, Client>,
    give_up: Instant,
    what: &str,
    ask: impl AsyncFn(&Client) -> Result<T, Error>,
) -> Result<T, String> {
    let mut asked = handles.values().cycle();
    loop {
        let client = asked.next().ok_or("there are no nodes")?;
        match ask(client).await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > give_up => return Err(format!("{what}: {error}")),
            Err(_) => sleep(POLL).await,
        }
    }
}

async fn put(client: &Client, name: &NamespaceName, strong: bool, key: &str) -> Result<(), Error> {
    match strong {
        true => client.strong(name.as_str()).put(key, VALUE).await.map(|_| ()),
        false => {
            let handle = client.available(name.as_str());
            handle.put(key, VALUE, WriteContext::Blind).await.map(|_| ())
        }
    }
}

async fn has(client: &Client, name: &NamespaceName, strong: bool, key: &str) -> Result<bool, Error> {
    match strong {
        true => {
            let read = client.strong(name.as_str()).get(key).await?;
            Ok(read.value.is_some_and(|found| found.value == VALUE))
        }
        false => {
            let read = client.available(name.as_str()).get(key).await?;
            Ok(read.value.values.iter().any(|sibling| sibling.value == VALUE))
        }
    }
}

/// Deletes it with a grace. Where an attempt did it whose answer was lost, the next one finds it deleted.
/// Whether no attempt may come later still.
async fn schedule(
    handles: &BTreeMap<NodeId, Client>,
    name: &NamespaceName,
    grace: Duration,
    give_up: Instant,
) -> Result<bool, String> {
    let mut asked = handles.values().cycle();
    let mut certain = true;
    loop {
        let client = asked.next().ok_or("there are no nodes")?;
        match client.admin().schedule_deletion(name, Some(grace)).await {
            Ok(_) => return Ok(certain),
            Err(error) if matches!(error.reason(), Reason::DeletionPending | Reason::NamespaceUnknown) => {
                return Ok(certain);
            }
            Err(error) if Instant::now() > give_up => {
                return Err(format!("{name} is not deleted with a grace: {error}"));
            }
            Err(error) => {
                certain &= !error.is_unknown();
                sleep(POLL).await;
            }
        }
    }
}

/// Takes it back: whether it was there still. Where an attempt did it whose answer was lost, the next one
/// finds that it is not deleted.
async fn undelete(
    handles: &BTreeMap<NodeId, Client>,
    name: &NamespaceName,
    give_up: Instant,
) -> Result<bool, String> {
    let mut asked = handles.values().cycle();
    loop {
        let client = asked.next().ok_or("there are no nodes")?;
        match client.admin().undelete_namespace(name).await {
            Ok(_) => return Ok(true),
            Err(error) if error.reason() == Reason::NamespaceExists => return Ok(true),
            Err(error) if error.reason() == Reason::NamespaceUnknown => return Ok(false),
            Err(error) if Instant::now() > give_up => {
                return Err(format!("{name} is not taken back: {error}"));
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// Alters what it waits for. Whether no attempt may come later still.
async fn alter(
    handles: &BTreeMap<NodeId, Client>,
    name: &NamespaceName,
    (r, w): (u8, u8),
    give_up: Instant,
) -> Result<bool, String> {
    let mut asked = handles.values().cycle();
    let mut certain = true;
    loop {
        let client = asked.next().ok_or("there are no nodes")?;
        match client.admin().alter_namespace(name, Some(r), Some(w)).await {
            Ok(_) => return Ok(certain),
            Err(error) if Instant::now() > give_up => return Err(format!("{name} is not altered: {error}")),
            Err(error) => {
                certain &= !error.is_unknown();
                sleep(POLL).await;
            }
        }
    }
}

/// A grace is measured by the clocks of a majority, and those may have jumped since then: beyond it, or, with
/// what they were ahead at first, for half of it.
fn clocks_were_wrong(cluster: &Cluster, grace: Duration, since: Duration) -> bool {
    let strayed = cluster.machines().filter(|machine| machine.clock.has_strayed(grace / 4, since)).count();
    let all = u8::try_from(nodes().count()).unwrap_or(u8::MAX);
    strayed >= usize::from(majority(all))
}

/// Deletes it, once. Where an attempt did it whose answer was lost, the next one finds nothing.
async fn delete(
    handles: &BTreeMap<NodeId, Client>,
    name: &NamespaceName,
    give_up: Instant,
) -> Result<(), String> {
    let mut asked = handles.values().cycle();
    loop {
        let client = asked.next().ok_or("there are no nodes")?;
        match client.admin().delete_namespace(name).await {
            Ok(_) => return Ok(()),
            Err(error) if error.reason() == Reason::NamespaceUnknown => return Ok(()),
            Err(error) if Instant::now() > give_up => return Err(format!("{name} is not deleted: {error}")),
            Err(_) => sleep(POLL).await,
        }
    }
}

impl Scratch {
    /// Makes them, writes to them, and deletes the first one.
    pub async fn make(handles: &BTreeMap<NodeId, Client>, give_up: Instant) -> Result<Self, String> {
        let named = |name: &str| NamespaceName::new(name).map_err(|failure: Failure| failure.to_string());
        let usual = Replication { n: 3, r: 2, w: 2, sloppy: true };
        let specs = [
            NamespaceSpec::strong(named("scratch-first")?),
            NamespaceSpec::strong(named("scratch-strong")?),
            NamespaceSpec::available(named("scratch-available")?, usual),
            NamespaceSpec::strong(named("scratch-kept-strong")?),
            NamespaceSpec::available(named("scratch-kept-available")?, usual),
            NamespaceSpec::available(named("scratch-altered")?, usual),
        ];
        let mut made = Vec::new();
        for spec in specs {
            let (name, strong) = (spec.name.clone(), spec.replication.is_none());
            let what = format!("{name} is not made");
            let done = at_some_node(handles, give_up, &what, async |client| {
                match client.admin().create_namespace(spec.clone()).await {
                    // By an attempt whose answer was lost.
                    Err(error) if error.reason() == Reason::NamespaceExists => {
                        let known = client.admin().list_namespaces().await?;
                        let mut known = known.into_iter().map(|info| info.namespace);
                        known.find(|known| known.name == spec.name).map(|known| known.id).ok_or(error)
                    }
                    done => done.map(|answer| answer.value.namespace.id),
                }
            });
            made.push((name, strong, done.await?));
        }
        for (name, strong, _) in &made {
            for key in 0..KEYS {
                let what = format!("{name} is not written to");
                let key = format!("key-{key}");
                at_some_node(handles, give_up, &what, async |client| put(client, name, *strong, &key).await)
                    .await?;
            }
        }
        let (first, _, gone) = made.remove(0);
        schedule(handles, &first, MIN_DELETION_GRACE, give_up).await?;
        let mut kept = made.split_off(2);
        let (altered, ..) = kept.pop().ok_or("nothing was made")?;
        Ok(Self { gone, going: made, kept, altered })
    }

    /// Deletes the others at moments that the seed decides, for good or for a while, and alters one.
    pub async fn go(
        self,
        handles: BTreeMap<NodeId, Client>,
        cluster: Cluster,
        dice: Entropy,
        trace: Trace,
    ) -> Result<Stayed, String> {
        let whiles: Vec<_> = self.kept.iter().map(|_| While::of(&dice)).collect();
        let latest = u64::try_from(LATEST.as_millis()).unwrap_or(u64::MAX);
        let pauses = ALTERED.map(|_| Duration::from_millis(dice.below(latest / 3)));
        let (gone, back, settings) = tokio::join!(
            self.delete_for_good(&handles, &dice, &trace),
            self.delete_for_a_while(&handles, &cluster, &whiles, &trace),
            self.alter_often(&handles, pauses, &trace),
        );
        gone.and(Ok(Stayed { back: back?, settings: settings? }))
    }

    /// Those that were taken back.
    async fn delete_for_a_while(
        &self,
        handles: &BTreeMap<NodeId, Client>,
        cluster: &Cluster,
        whiles: &[While],
        trace: &Trace,
    ) -> Result<Vec<(Made, bool)>, String> {
        let mut back = Vec::new();
        for (made, While { before, grace, between }) in self.kept.iter().zip(whiles) {
            let name = &made.0;
            sleep(*before).await;
            let give_up = Instant::now() + LATEST + DELETED;
            let (begun, since) = (Instant::now(), now());
            let certain = schedule(handles, name, *grace, give_up).await?;
            trace.line("clients", format_args!("{name} is deleted for {grace:?}"));
            sleep(*between).await;
            if undelete(handles, name, give_up + LATEST).await? {
                trace.line("clients", format_args!("{name} is taken back"));
                // One that comes later may be over before it is noticed.
                if certain || *grace > SHORT_GRACE {
                    back.push((made.clone(), certain));
                }
            } else if begun.elapsed() < *grace / 2 && !clocks_were_wrong(cluster, *grace, since) {
                return Err(format!("{name} is gone after {:?} of {grace:?}", begun.elapsed()));
            }
        }
        Ok(back)
    }

    /// What one waits for in the end, where no attempt is open.
    async fn alter_often(
        &self,
        handles: &BTreeMap<NodeId, Client>,
        pauses: [Duration; ALTERED.len()],
        trace: &Trace,
    ) -> Result<Option<(u8, u8)>, String> {
        let (mut certain, mut last) = (true, None);
        for (settings, pause) in ALTERED.into_iter().zip(pauses) {
            sleep(pause).await;
            certain &= alter(handles, &self.altered, settings, Instant::now() + LATEST + DELETED).await?;
            trace.line("clients", format_args!("{} has {settings:?}", self.altered));
            last = Some(settings);
        }
        Ok(last.filter(|_| certain))
    }

    /// While every node is written to.
    async fn delete_for_good(
        &self,
        handles: &BTreeMap<NodeId, Client>,
        dice: &Entropy,
        trace: &Trace,
    ) -> Result<(), String> {
        let latest = u64::try_from(LATEST.as_millis()).unwrap_or(u64::MAX);
        for (name, strong, _) in &self.going {
            sleep(Duration::from_millis(dice.below(latest / 2))).await;
            let give_up = Instant::now() + LATEST + DELETED;
            let has_grace = dice.below(2) == 0;
            let deletion = async {
                if has_grace {
                    schedule(handles, name, MAX_DELETION_GRACE, give_up).await?;
                }
                delete(handles, name, give_up).await
            };
            let writes = async {
                for number in 0_u64.. {
                    for client in handles.values() {
                        // Its fate is not of interest: it goes with the rest, or is refused.
                        let _ = put(client, name, *strong, &format!("late-{number}")).await;
                        sleep(POLL / 5).await;
                    }
                }
            };
            tokio::select! {
                biased;
                deleted = deletion => deleted?,
                () = writes => {}
            }
            trace.line("clients", format_args!("{name} is deleted"));
        }
        Ok(())
    }

    /// What a healed cluster owes and did not do: every node refuses a late write by name, and has nothing of
    /// what was deleted.
    pub async fn demand(
        &self,
        going: JoinHandle<Result<Stayed, String>>,
        handles: &BTreeMap<NodeId, Client>,
        cluster: &Cluster,
    ) -> Vec<String> {
        let mut broken = Vec::new();
        match going.await {
            Ok(Ok(Stayed { back, settings })) => {
                for ((name, strong, _), certain) in back {
                    broken.extend(self.kept_by_all(&name, strong, certain, handles).await.err());
                }
                broken.extend(self.known_by_all(settings, handles).await.err());
                broken.extend(self.kept_by_all(&self.altered, false, true, handles).await.err());
            }
            Ok(Err(why)) => broken.push(why),
            Err(error) => broken.push(format!("the deletions ended: {error}")),
        }
        let give_up = Instant::now() + GONE;
        for (name, strong, _) in &self.going {
            for (node, client) in handles {
                loop {
                    let refused = put(client, name, *strong, "later").await;
                    match refused {
                        Err(error) if error.reason() == Reason::NamespaceUnknown => break,
                        Ok(()) => {
                            broken.push(format!("{node} took a write to {name}, which is deleted"));
                            break;
                        }
                        Err(error) if Instant::now() > give_up => {
                            broken.push(format!("{node} does not refuse {name} within {GONE:?}: {error}"));
                            break;
                        }
                        Err(_) => sleep(POLL).await,
                    }
                }
            }
        }
        let ids = self.going.iter().map(|(_, _, id)| *id).chain([self.gone]);
        for (id, machine) in ids.flat_map(|id| cluster.machines().map(move |machine| (id, machine))) {
            loop {
                let left = machine.rows_of(id);
                if left == Ok(0) {
                    break;
                }
                if Instant::now() > give_up {
                    broken.push(format!("{} has {left:?} rows of {id}, which is deleted", machine.node));
                    break;
                }
                sleep(POLL).await;
            }
        }
        broken
    }

    /// Every node knows the same settings of the one that was altered.
    async fn known_by_all(
        &self,
        settings: Option<(u8, u8)>,
        handles: &BTreeMap<NodeId, Client>,
    ) -> Result<(), String> {
        let give_up = Instant::now() + GONE;
        loop {
            let mut known = Vec::new();
            for client in handles.values() {
                let namespaces = client.admin().list_namespaces().await.unwrap_or_default();
                let altered = namespaces.into_iter().find(|info| info.namespace.name == self.altered);
                known.push(altered.and_then(|info| match info.namespace.placement {
                    Placement::Available { replication, .. } => Some((replication.r, replication.w)),
                    Placement::Strong { .. } => None,
                }));
            }
            let first = known.first().copied().flatten();
            if first.is_some()
                && known.iter().all(|counts| *counts == first)
                && settings.is_none_or(|settings| Some(settings) == first)
            {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(format!("the nodes have {known:?} for {}; {settings:?} is right", self.altered));
            }
            sleep(POLL).await;
        }
    }

    /// Every node serves all that was written to a namespace which was taken back.
    async fn kept_by_all(
        &self,
        name: &NamespaceName,
        strong: bool,
        certain: bool,
        handles: &BTreeMap<NodeId, Client>,
    ) -> Result<(), String> {
        let give_up = Instant::now() + GONE;
        for (node, client) in handles {
            for key in (0..KEYS).map(|key| format!("key-{key}")) {
                loop {
                    let why = match has(client, name, strong, &key).await {
                        Ok(true) => break,
                        Ok(false) => format!("{node} lacks {key} of {name}, which was taken back"),
                        Err(error) => {
                            // A late attempt of the deletion came behind.
                            if !certain && error.reason() == Reason::DeletionPending {
                                undelete(handles, name, give_up).await?;
                            }
                            format!("{node} does not serve {name}, which was taken back: {error}")
                        }
                    };
                    if Instant::now() > give_up {
                        return Err(why);
                    }
                    sleep(POLL).await;
                }
            }
        }
        Ok(())
    }
}

//! Namespaces that are made and written to before the faults, and deleted while they strike: in the end no
//! node serves them, and none has anything of them, also one that was away, dead or behind when they went.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_client::{Client, Error, WriteContext};
use kv_env::Entropy;
use kv_types::{Failure, NamespaceId, NamespaceName, NamespaceSpec, NodeId, Reason, Replication};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use super::trace::Trace;

/// Keys that are written to each.
const KEYS: usize = 12;
/// The deletion begins so long after the loads, at most: before the faults, or while they strike.
const LATEST: Duration = Duration::from_secs(12);
/// How long a deletion may take behind the end of the loads: then nothing is in its way.
const DELETED: Duration = Duration::from_secs(30);
/// How long it may take until nothing is left then.
const GONE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);

/// One of each mode. The first deletion of a cluster needs every member, which few of the faults allow: one
/// more goes before them.
#[derive(Debug, Clone)]
pub struct Scratch {
    gone: NamespaceId,
    going: Vec<(NamespaceName, bool, NamespaceId)>,
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
        true => client.strong(name.as_str()).put(key, "scratch").await.map(|_| ()),
        false => {
            let handle = client.available(name.as_str());
            handle.put(key, "scratch", WriteContext::Blind).await.map(|_| ())
        }
    }
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
        delete(handles, &first, give_up).await?;
        Ok(Self { gone, going: made })
    }

    /// Deletes the others at moments that the seed decides, while every node is written to.
    pub async fn go(
        self,
        handles: BTreeMap<NodeId, Client>,
        dice: Entropy,
        trace: Trace,
    ) -> Result<(), String> {
        let latest = u64::try_from(LATEST.as_millis()).unwrap_or(u64::MAX);
        for (name, strong, _) in &self.going {
            sleep(Duration::from_millis(dice.below(latest / 2))).await;
            let deletion = delete(&handles, name, Instant::now() + LATEST + DELETED);
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
        going: JoinHandle<Result<(), String>>,
        handles: &BTreeMap<NodeId, Client>,
        cluster: &Cluster,
    ) -> Vec<String> {
        let mut broken = Vec::new();
        match going.await {
            Ok(Ok(())) => {}
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
}

//! Kill, and look whether anything acknowledged is gone. The ledger writes unique values to both modes and keeps only what
//! was acknowledged; whatever is done to the nodes in between, all of it must be there afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kv_client::{Client, ClientOptions, WriteContext};
use kv_types::{NamespaceName, NamespaceSpec, NodeId, ReplicaCount, Replication};
use tokio::time::Instant;

use crate::LabError;
use crate::cluster::Lab;

/// The strong namespace of a ledger.
pub const STRONG: &str = "ledger-strong";
/// The available namespace of a ledger.
pub const AVAILABLE: &str = "ledger-available";
/// The folder in a node's data directory that holds the lower tier, sled: losing it must lose nothing.
pub const TIER_FOLDER: &str = "tier";
/// Writes in flight.
const CONCURRENCY: usize = 16;
/// Values are long enough that small segments of the log fill and go while a test runs.
const FILLER_BYTES: usize = 8 << 10;
/// How long an acknowledged write may take to be read again: elections, and replicas that rebuild.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries of a read.
const AGAIN: Duration = Duration::from_millis(50);

/// Everything that was acknowledged, by namespace and key.
#[derive(Debug)]
pub struct Ledger {
    client: Client,
    written: AtomicU64,
    acknowledged: Mutex<BTreeMap<(&'static str, String), String>>,
    /// Writes without an acknowledgement, by namespace and reason.
    refused: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

/// An acknowledged write that is not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Where it was written.
    pub namespace: &'static str,
    /// Its key.
    pub key: String,
    /// What was acknowledged.
    pub written: String,
    /// What is there, or why nothing could be read.
    pub found: String,
}

impl Ledger {
    /// An empty ledger, and its two namespaces; those of an earlier one in the same lab are taken over.
    pub async fn open(lab: &Lab) -> Result<Self, LabError> {
        let store = LabError::store("cannot open the ledger");
        let client = Client::connect(ClientOptions::new(lab.endpoints())).map_err(&store)?;
        let name = |name: &str| NamespaceName::new(name).map_err(|failure| store(failure.into()));
        let n = u8::try_from(lab.nodes().len().min(3)).unwrap_or(3);
        let quorum = n / 2 + 1;
        let replication = Replication { n, r: quorum, w: quorum, sloppy: true };
        let specs =
            [NamespaceSpec::strong(name(STRONG)?), NamespaceSpec::available(name(AVAILABLE)?, replication)];
        for spec in specs {
            client.admin().create_namespace(spec).await.map_err(&store)?;
        }
        lab.every_node("both namespaces of the ledger everywhere", |topology| {
            [STRONG, AVAILABLE].iter().all(|name| topology.namespaces.contains_key(*name))
        })
        .await?;
        lab.serving().await?;
        Ok(Self {
            client,
            written: AtomicU64::new(0),
            acknowledged: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// Writes `count` unique values under unique keys to each namespace; notes those that are acknowledged, forgives the
    /// others. Returns how many of the `2 * count` were acknowledged.
    pub async fn write(&self, count: u64) -> u64 {
        let writes = (0..count).flat_map(|_| [STRONG, AVAILABLE]).map(|namespace| self.write_one(namespace));
        stream::iter(writes)
            .buffer_unordered(CONCURRENCY)
            .filter(|done| std::future::ready(*done))
            .count()
            .await as u64
    }

    /// Writes until the event has happened; for kills under load. Writes that are open then are waited for, so that none
    /// is acknowledged unseen.
    pub async fn write_during<T>(&self, event: impl Future<Output = T>) -> T {
        let over = AtomicBool::new(false);
        let writing = async {
            while !over.load(Ordering::Relaxed) {
                self.write(CONCURRENCY as u64).await;
            }
        };
        let event = async {
            let value = event.await;
            over.store(true, Ordering::Relaxed);
            value
        };
        futures_util::future::join(event, writing).await.0
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        lock(&self.acknowledged).len()
    }

    /// Why writes were not acknowledged, how often, by namespace.
    pub fn refused(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        lock(&self.refused).clone()
    }

    /// Reads everything that was acknowledged, the available ones from all replicas; returns what is missing.
    pub async fn missing(&self) -> Vec<Missing> {
        let acknowledged = lock(&self.acknowledged).clone();
        let reads = acknowledged.into_iter().map(|((namespace, key), written)| async move {
            let found = self.read(namespace, &key, &written).await;
            found.err().map(|found| Missing { namespace, key, written, found })
        });
        stream::iter(reads).buffer_unordered(CONCURRENCY).filter_map(std::future::ready).collect().await
    }

    async fn write_one(&self, namespace: &'static str) -> bool {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let (key, value) = (format!("key-{number}"), format!("value-{number}-{:0>1$}", "", FILLER_BYTES));
        let written = match namespace {
            STRONG => self.client.strong(namespace).put(&key, value.clone()).await.map(|_| ()),
            _ => self
                .client
                .available(namespace)
                .put(&key, value.clone(), WriteContext::Blind)
                .await
                .map(|_| ()),
        };
        match &written {
            Ok(()) => {
                lock(&self.acknowledged).insert((namespace, key), value);
            }
            Err(error) => {
                *lock(&self.refused).entry((namespace, error.reason().code_name())).or_default() += 1
            }
        }
        written.is_ok()
    }

    /// Reads until the value is there. Absence from a strong namespace is final; an available one may still be waiting
    /// for hints, and a node that rebuilds refuses.
    async fn read(&self, namespace: &str, key: &str, written: &str) -> Result<(), String> {
        let deadline = Instant::now() + READ_WITHIN;
        loop {
            let (is_final, found) = match namespace {
                STRONG => match self.client.strong(namespace).get(key).await {
                    Ok(answer) => {
                        let values = answer.value.into_iter().map(|found| found.value).collect::<Vec<_>>();
                        (true, Ok(values))
                    }
                    Err(error) => (false, Err(error.to_string())),
                },
                _ => match self.client.available(namespace).reading(ReplicaCount::All).get(key).await {
                    Ok(answer) => {
                        (false, Ok(answer.value.values.into_iter().map(|sibling| sibling.value).collect()))
                    }
                    Err(error) => (false, Err(error.to_string())),
                },
            };
            if found.as_ref().is_ok_and(|values| values.iter().any(|value| value == written)) {
                return Ok(());
            }
            if is_final || Instant::now() > deadline {
                return Err(found.map_or_else(|error| error, |values| format!("{} other values", values.len())));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Kills every node at the same moment, as far as one process can.
pub async fn kill_all(lab: &Lab) -> Result<(), LabError> {
    for killed in futures_util::future::join_all(lab.nodes().into_iter().map(|node| lab.kill(node))).await {
        killed?;
    }
    Ok(())
}

/// Starts every node again and waits until the cluster serves.
pub async fn restart_all(lab: &Lab) -> Result<(), LabError> {
    futures_util::future::try_join_all(lab.nodes().into_iter().map(|node| lab.restart(node))).await?;
    lab.serving().await
}

/// Deletes the lower tier of a node that does not run, as if its files had been lost. Says whether there was one.
pub fn lose_tier(lab: &Lab, node: NodeId) -> Result<bool, LabError> {
    let folder = lab.data_dir(node).join(TIER_FOLDER);
    match std::fs::remove_dir_all(&folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LabError::system(format!("cannot remove {}", folder.display()))(error)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

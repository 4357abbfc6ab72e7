//! Kill, and look whether anything acknowledged is gone. The ledger writes unique values to both modes,
//! overwrites some of them, and keeps only what was acknowledged; whatever is done to the nodes in between,
//! all of it must be there afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kv_client::{Client, ClientOptions, Error, Expect, Swap, WriteContext};
use kv_types::{NamespaceName, NamespaceSpec, NodeId, ReplicaCount, Replication, counted};
use tokio::time::Instant;

use crate::LabError;
use crate::cluster::Lab;
use crate::process::TIER_FOLDER;

/// The strong namespace of a ledger.
pub const STRONG: &str = "ledger-strong";
/// The available namespace of a ledger.
pub const AVAILABLE: &str = "ledger-available";
/// Writes in flight.
const CONCURRENCY: usize = 16;
/// Values are long enough that small segments of the log fill and go while a test runs.
const FILLER_BYTES: usize = 8 << 10;
/// How long an acknowledged write may take to be read again: elections, and replicas that rebuild.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries of a read.
const AGAIN: Duration = Duration::from_millis(50);

/// Every so many keys one is overwritten: a store that loses the last of several writes must not pass.
const OVERWRITTEN: u64 = 4;

/// Everything that was acknowledged, by namespace and key.
#[derive(Debug)]
pub struct Ledger {
    client: Client,
    written: AtomicU64,
    kept: Mutex<BTreeMap<(&'static str, String), Kept>>,
    /// Swaps that were refused although their revision had been acknowledged and no other client writes the
    /// key.
    refuted: Mutex<Vec<Missing>>,
    /// Writes without an acknowledgement, by namespace and reason.
    refused: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

/// What must be there under one key.
#[derive(Debug, Clone, Default)]
struct Kept {
    /// Acknowledged, and not superseded by anything acknowledged.
    acknowledged: Vec<String>,
    /// A later write of unknown outcome, which may have superseded them.
    possible: Option<String>,
}

impl Kept {
    fn is_among(&self, values: &[impl AsRef<[u8]>]) -> bool {
        let there = |value: &String| values.iter().any(|found| found.as_ref() == value.as_bytes());
        self.acknowledged.iter().all(there) || self.possible.iter().any(there)
    }
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
            kept: Mutex::default(),
            refuted: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// Writes `count` unique keys of each namespace, some of them several times; notes what is acknowledged,
    /// forgives the rest. Returns for how many of the `2 * count` keys everything was acknowledged.
    pub async fn write(&self, count: u64) -> u64 {
        let writes = (0..count).flat_map(|_| [STRONG, AVAILABLE]).map(|namespace| self.write_one(namespace));
        stream::iter(writes)
            .buffer_unordered(CONCURRENCY)
            .filter(|done| std::future::ready(*done))
            .count()
            .await as u64
    }

    /// Writes until the event has happened; for kills under load. Writes that are open then are waited for,
    /// so that none is acknowledged unseen.
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

    /// Of how many keys a write was acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        lock(&self.kept).len()
    }

    /// Why writes were not acknowledged, how often, by namespace.
    pub fn refused(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        lock(&self.refused).clone()
    }

    /// Reads everything that was acknowledged, the available ones from all replicas; returns what is missing,
    /// and what was found missing while writing.
    pub async fn missing(&self) -> Vec<Missing> {
        let kept = lock(&self.kept).clone();
        let reads = kept.into_iter().map(|((namespace, key), kept)| async move {
            let found = self.read(namespace, &key, &kept).await;
            let written = kept.acknowledged.iter().map(|value| label(value)).collect::<Vec<_>>().join(", ");
            found.err().map(|found| Missing { namespace, key, written, found })
        });
        let mut missing: Vec<_> =
            stream::iter(reads).buffer_unordered(CONCURRENCY).filter_map(std::future::ready).collect().await;
        missing.extend(lock(&self.refuted).iter().cloned());
        missing
    }

    async fn write_one(&self, namespace: &'static str) -> bool {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let key = format!("key-{number}");
        // Numbers alternate between the namespaces, so the pairs are counted.
        let overwrite = (number / 2).is_multiple_of(OVERWRITTEN);
        let written = match namespace {
            STRONG => self.write_strong(&key, number, overwrite).await,
            _ => self.write_available(&key, number, overwrite).await,
        };
        if let Err(error) = &written {
            *lock(&self.refused).entry((namespace, error.reason().code_name())).or_default() += 1;
        }
        written.is_ok()
    }

    /// Puts; to overwrite, puts again and swaps.
    async fn write_strong(&self, key: &str, number: u64, overwrite: bool) -> Result<(), Error> {
        let handle = self.client.strong(STRONG);
        let [first, second, third] = ["first", "second", "third"].map(|which| value(number, which));
        let put = handle.put(key, first.clone()).await;
        self.note(STRONG, key, vec![first], put.as_ref().err());
        put?;
        if !overwrite {
            return Ok(());
        }
        let put = handle.put(key, second.clone()).await;
        let written = format!("{} of a put", label(&second));
        self.note(STRONG, key, vec![second], put.as_ref().err());
        let revision = put?.value;
        let swap = handle.compare_and_set(key, Expect::Revision(revision), third.clone()).await;
        if let Ok(Swap::Mismatch(found)) = swap.as_ref().map(|answer| &answer.value) {
            let found =
                found.as_ref().map_or("nothing".into(), |found| format!("revision {}", found.revision.0));
            let written = format!("{written}, revision {}", revision.0);
            lock(&self.refuted).push(Missing { namespace: STRONG, key: key.to_owned(), written, found });
            return Ok(());
        }
        self.note(STRONG, key, vec![third], swap.as_ref().err());
        swap.map(|_| ())
    }

    /// Puts; to overwrite, reads and puts with the context of what was read. A first value that was not read
    /// stays.
    async fn write_available(&self, key: &str, number: u64, overwrite: bool) -> Result<(), Error> {
        let handle = self.client.available(AVAILABLE);
        let [first, second] = ["first", "second"].map(|which| value(number, which));
        let put = handle.put(key, first.clone(), WriteContext::Blind).await;
        self.note(AVAILABLE, key, vec![first.clone()], put.as_ref().err());
        put?;
        if !overwrite {
            return Ok(());
        }
        let read = handle.get(key).await?.value;
        let was_read = read.values.iter().any(|sibling| sibling.value == first.as_bytes());
        let put = handle.put(key, second.clone(), WriteContext::Causal(read.context)).await;
        let left = if was_read { vec![second] } else { vec![first, second] };
        self.note(AVAILABLE, key, left, put.as_ref().err());
        put.map(|_| ())
    }

    /// Notes what a write leaves under its key, its own value last, and what became of it.
    fn note(&self, namespace: &'static str, key: &str, mut left: Vec<String>, error: Option<&Error>) {
        let mut kept = lock(&self.kept);
        let place = (namespace, key.to_owned());
        match error {
            None => {
                kept.insert(place, Kept { acknowledged: left, possible: None });
            }
            // A first write of unknown outcome promises nothing.
            Some(error) if error.is_unknown() => {
                if let Some(kept) = kept.get_mut(&place) {
                    kept.possible = left.pop();
                }
            }
            Some(_) => {}
        }
    }

    /// Reads until the value is there. Absence from a strong namespace is final; an available one may still
    /// be waiting for hints, and a node that rebuilds refuses.
    async fn read(&self, namespace: &str, key: &str, kept: &Kept) -> Result<(), String> {
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
            if found.as_ref().is_ok_and(|values| kept.is_among(values)) {
                return Ok(());
            }
            if is_final || Instant::now() > deadline {
                return Err(found.map_or_else(|error| error, |values| labels(&values)));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// A value that no other write has.
fn value(number: u64, which: &str) -> String {
    format!("value-{number}-{which}-{:0>1$}", "", FILLER_BYTES)
}

/// A value without its filler.
fn label(value: &str) -> String {
    value.trim_end_matches('0').to_owned()
}

/// What is under a key, without the fillers.
fn labels(values: &[impl AsRef<[u8]>]) -> String {
    let labels: Vec<_> = values.iter().map(|value| label(&String::from_utf8_lossy(value.as_ref()))).collect();
    format!("{}: {}", counted(values.len(), "value", "values"), labels.join(", "))
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

/// Deletes the lower tier of a node that does not run, as if its files had been lost. Says whether there was
/// one.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_last_must_be_there_unless_an_unknown_write_is() {
        let kept = |acknowledged: &[&str], possible: Option<&str>| Kept {
            acknowledged: acknowledged.iter().map(|value| (*value).to_owned()).collect(),
            possible: possible.map(str::to_owned),
        };
        assert!(kept(&["b"], None).is_among(&["b"]));
        assert!(!kept(&["b"], None).is_among(&["a"]), "the overwrite is lost");
        assert!(!kept(&["a", "b"], None).is_among(&["b"]), "a sibling is lost");
        assert!(kept(&["b"], Some("c")).is_among(&["c"]));
        assert!(!kept(&["b"], Some("c")).is_among(&["a"]));
        assert!(!kept(&["b"], Some("c")).is_among(&[] as &[&str]));
        assert_eq!(label(&value(10, "first")), "value-10-first-");
    }
}

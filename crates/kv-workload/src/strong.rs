//! A client of a strong namespace: single operations, and those that need several steps and count as one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_check::operation::MISMATCH;
use kv_check::{EventType, Function, Json};
use kv_client::{Client, ClientOptions, Error, Expect, Revision, Strong, Swap, Versioned};
use kv_env::Env;
use kv_types::{NodeId, Receipt};
use serde_json::json;
use tokio::time::Instant;

use crate::recorder::{Call, Ending, Recorder};
use crate::{CONTENDED, filled, lock, text};

/// What separates the elements of a list in its value.
const SEPARATOR: char = ',';

/// A client of a strong namespace at one node.
#[derive(Debug)]
pub struct StrongClient {
    recorder: Arc<Recorder>,
    handle: Strong,
    ns: String,
    node: NodeId,
    /// The revision of each key that this client saw last.
    seen: Mutex<BTreeMap<String, u64>>,
    /// Longest time that an operation of several steps goes on trying.
    deadline: Duration,
    /// Bytes of the values of single keys, at least.
    value_bytes: usize,
}

/// A revision and its receipt, or how it ended otherwise.
type Swapped = Result<(Revision, Receipt), Ending>;

impl StrongClient {
    /// Pinned to the node at this address. Nothing is tried twice: the history shows what this node does.
    pub fn new(
        recorder: Arc<Recorder>,
        ns: &str,
        node: NodeId,
        address: &str,
        deadline: Duration,
    ) -> Result<Self, Error> {
        Self::new_in(recorder, ns, node, address, deadline, Env::real())
    }

    /// The same with another clock, randomness and network, as inside a simulation.
    pub fn new_in(
        recorder: Arc<Recorder>,
        ns: &str,
        node: NodeId,
        address: &str,
        deadline: Duration,
        env: Env,
    ) -> Result<Self, Error> {
        let options = ClientOptions {
            attempts: 1,
            read_timeout: deadline,
            write_timeout: deadline,
            ..ClientOptions::pinned(address)
        };
        Self::with_options(recorder, ns, node, options, env)
    }

    /// With options of the caller's, such as the library's own retries, which count as one operation.
    pub fn with_options(
        recorder: Arc<Recorder>,
        ns: &str,
        node: NodeId,
        options: ClientOptions,
        env: Env,
    ) -> Result<Self, Error> {
        let deadline = options.write_timeout;
        let handle = Client::connect_in(options, env)?.strong(ns);
        Ok(Self {
            recorder,
            handle,
            ns: ns.to_owned(),
            node,
            seen: Mutex::default(),
            deadline,
            value_bytes: 0,
        })
    }

    /// The same client, which fills the values of single keys up to so many bytes.
    pub fn with_values_of(mut self, bytes: usize) -> Self {
        self.value_bytes = bytes;
        self
    }

    /// Reads.
    pub async fn read(&self, intended: Instant, key: &str) -> Ending {
        let call = self.call(Function::Read, key, Json::Null);
        let operation = async {
            match self.handle.get(key).await {
                Ok(answer) => {
                    let revision = answer.value.as_ref().map(|found| found.revision.0);
                    self.saw(key, revision.unwrap_or(0));
                    let value = answer.value.map_or(Json::Null, |found| text(&found.value));
                    Ending::ok(value, revision, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Read, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Writes a fresh value.
    pub async fn write(&self, intended: Instant, key: &str) -> Ending {
        let value = self.recorder.fresh_value(self.node);
        let call = self.call(Function::Write, key, json!(value));
        let operation = async {
            match self.handle.put(key, filled(&value, self.value_bytes)).await {
                Ok(answer) => {
                    self.saw(key, answer.value.0);
                    Ending::ok(json!(value), Some(answer.value.0), answer.receipt)
                }
                Err(error) => Ending::error(&Function::Write, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Writes a fresh value if the key is as this client saw it last.
    pub async fn cas(&self, intended: Instant, key: &str) -> Ending {
        let value = self.recorder.fresh_value(self.node);
        let revision = lock(&self.seen).get(key).copied().unwrap_or(0);
        let expect = if revision == 0 { Expect::Absent } else { Expect::Revision(Revision(revision)) };
        let call = Call { expect_revision: Some(revision), ..self.call(Function::Cas, key, json!(value)) };
        let operation = async {
            let stored = filled(&value, self.value_bytes);
            match self.handle.compare_and_set(key, expect, stored).await {
                Ok(answer) => match answer.value {
                    Swap::Swapped(revision) => {
                        self.saw(key, revision.0);
                        Ending::ok(json!(value), Some(revision.0), answer.receipt)
                    }
                    Swap::Mismatch(found) => {
                        let revision = found.as_ref().map(|found| found.revision.0);
                        self.saw(key, revision.unwrap_or(0));
                        Ending {
                            kind: EventType::Fail,
                            err: Some(MISMATCH.into()),
                            observed: Some(found.iter().map(|found| text(&found.value)).collect()),
                            ..Ending::ok(json!(value), revision, answer.receipt)
                        }
                    }
                },
                Err(error) => Ending::error(&Function::Cas, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Deletes.
    pub async fn delete(&self, intended: Instant, key: &str) -> Ending {
        let call = self.call(Function::Delete, key, Json::Null);
        let operation = async {
            match self.handle.delete(key).await {
                Ok(answer) => {
                    self.saw(key, 0);
                    let revision = answer.value.existed.then_some(answer.value.revision.0);
                    Ending::ok(Json::Null, revision, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Delete, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Adds a fresh element to the set under this key.
    pub async fn add(&self, intended: Instant, key: &str) -> Ending {
        let element = self.recorder.fresh_value(self.node);
        self.extend(intended, key, "add", element).await
    }

    /// Appends a fresh element to the list under this key.
    pub async fn append(&self, intended: Instant, key: &str) -> Ending {
        let element = self.recorder.fresh_value(self.node);
        self.extend(intended, key, "append", element).await
    }

    async fn extend(&self, intended: Instant, key: &str, f: &str, element: String) -> Ending {
        let value = json!(element);
        self.change(intended, key, f, value, |before| match before {
            Some(before) => Some(format!("{before}{SEPARATOR}{element}")),
            None => Some(element.clone()),
        })
        .await
    }

    /// Adds to the counter under this key.
    pub async fn count(&self, intended: Instant, key: &str, delta: i64) -> Ending {
        self.change(intended, key, "add", json!(delta), |before| {
            let before = before.map_or(Some(0), |text| text.parse::<i64>().ok())?;
            Some((before + delta).to_string())
        })
        .await
    }

    /// Reads the set or list under this key: its elements, or `null` when it is absent.
    pub async fn read_list(&self, intended: Instant, key: &str) -> Ending {
        self.read_as(intended, key, |found| {
            Json::Array(found.split(SEPARATOR).map(|element| json!(element)).collect())
        })
        .await
    }

    /// Reads the counter under this key: `null` when it is absent.
    pub async fn read_count(&self, intended: Instant, key: &str) -> Ending {
        // What is no number is recorded as it is: the checkers say what they think of it.
        self.read_as(intended, key, |found| {
            found.parse::<i64>().map_or_else(|_| json!(found), |count| json!(count))
        })
        .await
    }

    async fn read_as(&self, intended: Instant, key: &str, shape: impl Fn(&str) -> Json) -> Ending {
        let call = self.call(Function::Read, key, Json::Null);
        let operation = async {
            match self.handle.get(key).await {
                Ok(answer) => {
                    let revision = answer.value.as_ref().map(|found| found.revision.0);
                    let found =
                        answer.value.as_ref().map(|found| shape(&String::from_utf8_lossy(&found.value)));
                    Ending::ok(found.unwrap_or(Json::Null), revision, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Read, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Reads, changes and swaps until a swap succeeds: one operation. A change that has no result gives up.
    async fn change(
        &self,
        intended: Instant,
        key: &str,
        f: &str,
        value: Json,
        change: impl Fn(Option<&str>) -> Option<String>,
    ) -> Ending {
        let f = Function::from(f);
        let call = self.call(f.clone(), key, value.clone());
        let operation = async {
            match self.swap_until_done(key, &f, change).await {
                Ok((revision, receipt)) => Ending::ok(value, Some(revision.0), receipt),
                Err(ending) => ending,
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    async fn swap_until_done(
        &self,
        key: &str,
        f: &Function,
        change: impl Fn(Option<&str>) -> Option<String>,
    ) -> Swapped {
        // Until a swap was sent nothing can have been applied, and a mismatch was not applied either: only
        // the last swap decides how the whole ends.
        let give_up = Instant::now() + self.deadline;
        let read = self.handle.get(key).await;
        let mut found = read.map_err(|error| Ending::refused(&error))?.value;
        while Instant::now() < give_up {
            let before = found.as_ref().map(|found| String::from_utf8_lossy(&found.value).into_owned());
            let after = change(before.as_deref()).ok_or_else(|| Ending::gave_up("UNREADABLE"))?;
            let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Revision(found.revision));
            let swap = self.handle.compare_and_set(key, expect, after).await;
            match swap.map_err(|error: Error| Ending::error(f, &error))? {
                kv_client::Answer { value: Swap::Swapped(revision), receipt, .. } => {
                    return Ok((revision, receipt));
                }
                kv_client::Answer { value: Swap::Mismatch(now), .. } => found = now as Option<Versioned>,
            }
        }
        Err(Ending::gave_up(CONTENDED))
    }

    fn call(&self, f: Function, key: &str, value: Json) -> Call {
        let (ns, key) = (self.ns.clone(), key.to_owned());
        Call {
            ns,
            node: self.node,
            f,
            key,
            value,
            expect_revision: None,
            observed: None,
            covers_unseen: false,
        }
    }

    fn saw(&self, key: &str, revision: u64) {
        lock(&self.seen).insert(key.to_owned(), revision);
    }
}

//! A client of an available namespace: it remembers, as a careful program would, which values the context of
//! each key covers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kv_check::{EventType, Function, Json};
use kv_client::{Available, CausalContext, Client, ClientOptions, Error, Presence, WriteContext};
use kv_env::Env;
use kv_types::NodeId;
use serde_json::json;
use tokio::time::Instant;

use crate::recorder::{Call, Ending, Recorder};
use crate::{NO_KNOWLEDGE, filled, lock, text};

/// What a mutation of an available namespace supersedes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covers {
    /// Nothing: a write beside whatever there is.
    Nothing,
    /// What this client knows of the key; nothing if it knows nothing.
    WhatIsKnown,
    /// What the store has of the key where the mutation arrives.
    WhatIsThere,
}

/// What a client of an available namespace knows of a key: a context, and the values that it covers.
#[derive(Debug, Clone)]
struct Known {
    context: CausalContext,
    values: Vec<Json>,
}

/// A client of an available namespace at one node.
#[derive(Debug)]
pub struct AvailableClient {
    recorder: Arc<Recorder>,
    handle: Available,
    ns: String,
    node: NodeId,
    known: Mutex<BTreeMap<String, Known>>,
    /// Bytes of the values, at least.
    value_bytes: usize,
}

impl AvailableClient {
    /// Pinned to the node at this address.
    pub fn new(recorder: Arc<Recorder>, ns: &str, node: NodeId, address: &str) -> Result<Self, Error> {
        Self::with_options(recorder, ns, node, ClientOptions::pinned(address), Env::real())
    }

    /// With options of the caller's, and another clock, randomness and network, as inside a simulation.
    pub fn with_options(
        recorder: Arc<Recorder>,
        ns: &str,
        node: NodeId,
        options: ClientOptions,
        env: Env,
    ) -> Result<Self, Error> {
        let handle = Client::connect_in(options, env)?.available(ns);
        Ok(Self { recorder, handle, ns: ns.to_owned(), node, known: Mutex::default(), value_bytes: 0 })
    }

    /// The same client, which fills values up to so many bytes.
    pub fn with_values_of(mut self, bytes: usize) -> Self {
        self.value_bytes = bytes;
        self
    }

    /// The same client, whose reads ask every replica.
    pub fn reading_all(mut self) -> Self {
        self.handle = self.handle.reading(kv_types::ReplicaCount::All);
        self
    }

    /// Reads.
    pub async fn read(&self, intended: Instant, key: &str) -> Ending {
        let call = self.call(Function::Read, key, Json::Null, None);
        let operation = async {
            match self.handle.get(key).await {
                Ok(answer) if answer.value.presence == Presence::NoKnowledge => Ending {
                    kind: EventType::Fail,
                    err: Some(NO_KNOWLEDGE.into()),
                    ..Ending::ok(Json::Null, None, answer.receipt)
                },
                Ok(answer) => {
                    let values: Vec<Json> =
                        answer.value.values.iter().map(|sibling| text(&sibling.value)).collect();
                    let known = Known { context: answer.value.context, values: values.clone() };
                    lock(&self.known).insert(key.to_owned(), known);
                    Ending::ok(Json::Array(values), None, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Read, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Writes a fresh value that supersedes what it says. One beside others leaves what this client knows of
    /// the key as it was, and after one that supersedes what is there the client knows no longer what its
    /// context covers.
    pub async fn write(&self, intended: Instant, key: &str, covers: Covers) -> Ending {
        let value = self.recorder.fresh_value(self.node);
        let known = lock(&self.known).get(key).filter(|_| covers == Covers::WhatIsKnown).cloned();
        let observed = known.as_ref().map(|known| known.values.clone());
        let context = match (covers, known) {
            (Covers::WhatIsThere, _) => WriteContext::Observed,
            (_, Some(known)) => WriteContext::Causal(known.context),
            (_, None) => WriteContext::Blind,
        };
        let call = self.call(Function::Write, key, json!(value), observed.clone());
        let call = Call { covers_unseen: covers == Covers::WhatIsThere, ..call };
        let operation = async {
            match self.handle.put(key, filled(&value, self.value_bytes), context).await {
                Ok(answer) => {
                    let values = observed.into_iter().flatten().chain([json!(value)]).collect();
                    if covers == Covers::WhatIsKnown {
                        lock(&self.known).insert(key.to_owned(), Known { context: answer.value, values });
                    }
                    Ending::ok(json!(value), None, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Write, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Deletes what it says; reads where that is nothing.
    pub async fn delete(&self, intended: Instant, key: &str, covers: Covers) -> Ending {
        let known = lock(&self.known).get(key).filter(|known| !known.values.is_empty()).cloned();
        let known = match (covers, known) {
            (Covers::WhatIsThere, _) => None,
            (Covers::WhatIsKnown, Some(known)) => Some(known),
            (Covers::WhatIsKnown, None) | (Covers::Nothing, _) => return self.read(intended, key).await,
        };
        let observed = known.as_ref().map(|known| known.values.clone());
        let context = known
            .as_ref()
            .map_or(WriteContext::Observed, |known| WriteContext::Causal(known.context.clone()));
        let call = self.call(Function::Delete, key, Json::Null, observed);
        let call = Call { covers_unseen: known.is_none(), ..call };
        let operation = async {
            match self.handle.delete(key, context).await {
                Ok(answer) => {
                    if let Some(Known { values, .. }) = known {
                        let known = Known { context: answer.value.context, values };
                        lock(&self.known).insert(key.to_owned(), known);
                    }
                    Ending::ok(Json::Null, None, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Delete, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    fn call(&self, f: Function, key: &str, value: Json, observed: Option<Vec<Json>>) -> Call {
        let (ns, key) = (self.ns.clone(), key.to_owned());
        Call { ns, node: self.node, f, key, value, expect_revision: None, observed, covers_unseen: false }
    }
}

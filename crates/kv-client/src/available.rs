//! An available namespace: concurrent values side by side, and writes that say what they supersede.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::{client_id_from_bytes, v1};
use kv_types::call::Presence;
use kv_types::limits::MAX_CONTEXT_BYTES;
use kv_types::{Failure, Incarnation, Reason, ReplicaCount, RequestId, Value, WriteId};
use tokio::time::Instant;

use crate::attempts::{Attempts, Route};
use crate::outcome::{Answer, Error, malformed};
use crate::policy::Effect;
use crate::rpc::Rpc;
use crate::strong::checked;

/// What a read or write saw, opaque: hand it back to supersede exactly that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CausalContext(pub Bytes);

/// What a write supersedes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteContext {
    /// Exactly what an earlier read saw.
    Causal(CausalContext),
    /// Whatever the coordinating replica has now, so that two plain puts after each other do not conflict. Of
    /// a delete: what a read sees now.
    Observed,
    /// Nothing: the value becomes a sibling.
    Blind,
}

/// One of several concurrent values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The bytes.
    pub value: Bytes,
    /// The replica incarnation that minted the value's dot.
    pub incarnation: Incarnation,
    /// The dot's counter.
    pub counter: u64,
    /// When it was written, by a node's hybrid clock, milliseconds since 1970.
    pub written_at_ms: u64,
    /// The request that wrote it.
    pub request_id: RequestId,
}

/// The answer to a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Siblings {
    /// Whether there is anything.
    pub presence: Presence,
    /// Every concurrent value.
    pub values: Vec<Sibling>,
    /// What this read saw, also of an absent key.
    pub context: CausalContext,
}

/// The answer to a delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Covers this delete and what it superseded.
    pub context: CausalContext,
    /// Whether there was a value, as far as the read of a delete of what is observed saw, by the R of the
    /// handle; `None` where nothing was read: the caller said what is covered, or it was sent before.
    pub saw_value: Option<bool>,
}

/// Handle of an available namespace.
#[derive(Clone)]
pub struct Available {
    attempts: Arc<Attempts>,
    namespace: String,
    read_replicas: Option<ReplicaCount>,
    write_replicas: Option<ReplicaCount>,
    strict: bool,
    resend: Option<WriteId>,
}

impl Available {
    pub(crate) fn new(attempts: Arc<Attempts>, namespace: String) -> Self {
        Self { attempts, namespace, read_replicas: None, write_replicas: None, strict: false, resend: None }
    }

    /// A handle whose reads wait for so many replicas instead of the namespace's R.
    pub fn reading(mut self, replicas: ReplicaCount) -> Self {
        self.read_replicas = Some(replicas);
        self
    }

    /// A handle whose writes wait for so many replicas instead of the namespace's W.
    pub fn writing(mut self, replicas: ReplicaCount) -> Self {
        self.write_replicas = Some(replicas);
        self
    }

    /// A handle for which only primaries count.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// A handle whose writes are one that was sent before, under this id: it counts once, wherever it
    /// arrived. The operation, its key and its value must be the same. A put of what is observed supersedes
    /// nothing when it is sent again and no node that is asked has a trace of it; a delete is *unknown* then.
    pub fn resending(mut self, id: WriteId) -> Self {
        self.resend = Some(id);
        self
    }

    /// Reads a key.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Answer<Siblings>, Error> {
        let begun = Instant::now();
        let reply = self.read(&checked(key)?, self.attempts.read_deadline()).await?;
        let presence = Presence::try_from(reply.presence()).map_err(|_| malformed("presence").of_read())?;
        let values = reply.siblings.into_iter().map(sibling).collect::<Result<_, _>>();
        let values = values.map_err(|_| malformed("sibling").of_read())?;
        Answer::new(
            Siblings { presence, values, context: CausalContext(reply.context) },
            reply.receipt.as_ref(),
            begun,
        )
    }

    async fn read(&self, key: &Bytes, deadline: Instant) -> Result<v1::GetResponse, Error> {
        let route = Route::Replica(&self.namespace, key);
        let request = v1::GetRequest {
            namespace: self.namespace.clone(),
            key: key.clone(),
            read_replicas: self.read_replicas.map(Into::into),
            strict: self.strict,
            ..Default::default()
        };
        self.attempts.run(request, Effect::None, route, deadline).await
    }

    /// Writes a key; the answer's context covers this write and what it superseded.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        context: WriteContext,
    ) -> Result<Answer<CausalContext>, Error> {
        let begun = Instant::now();
        let (key, value) = (checked(key)?, Value::new(value)?.into_bytes());
        let context = Some(wire_context(context)?);
        let reply = self
            .write(&key, self.attempts.write_deadline(), |mutation| v1::PutRequest {
                namespace: self.namespace.clone(),
                key: key.clone(),
                value,
                mutation,
                context,
                write_replicas: self.write_replicas.map(Into::into),
                strict: self.strict,
                ..Default::default()
            })
            .await?;
        Answer::new(CausalContext(reply.context), reply.receipt.as_ref(), begun)
    }

    /// Deletes what the context covers; concurrent values stay.
    ///
    /// What is observed is what a read sees now, by the R of this handle: the delete is sent with the context
    /// of that read, so that it means the same however often it is sent. A read that fails, or meets no node
    /// that knows the key (`QUORUM_NOT_MET`), ends it, and nothing was applied.
    pub async fn delete(
        &self,
        key: impl AsRef<[u8]>,
        context: WriteContext,
    ) -> Result<Answer<Removed>, Error> {
        let begun = Instant::now();
        let (key, deadline) = (checked(key)?, self.attempts.write_deadline());
        let (context, saw_value) = match context {
            // What the first attempt of another process saw is not known here. A node that has a trace of it
            // says so.
            WriteContext::Observed if self.resend.is_none() => {
                let (context, saw_value) = self.seen(&key, deadline).await?;
                (context, Some(saw_value))
            }
            context => (context, None),
        };
        let context = Some(wire_context(context)?);
        let reply = self
            .write(&key, deadline, |mutation| v1::DeleteRequest {
                namespace: self.namespace.clone(),
                key: key.clone(),
                mutation,
                context,
                write_replicas: self.write_replicas.map(Into::into),
                strict: self.strict,
                ..Default::default()
            })
            .await?;
        let removed = Removed { context: CausalContext(reply.context), saw_value };
        Answer::new(removed, reply.receipt.as_ref(), begun)
    }

    /// What a delete is to supersede, all that a read sees, and whether that is a value.
    async fn seen(&self, key: &Bytes, deadline: Instant) -> Result<(WriteContext, bool), Error> {
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        let reply = self.read(key, self.attempts.read_deadline().min(half)).await?;
        match Presence::try_from(reply.presence()) {
            // More than a write may say is left to the node that takes the first attempt: it says what it
            // has.
            Ok(presence @ (Presence::Found | Presence::Absent)) => {
                let context = match reply.context.len() > MAX_CONTEXT_BYTES {
                    true => WriteContext::Observed,
                    false => WriteContext::Causal(CausalContext(reply.context)),
                };
                Ok((context, presence == Presence::Found))
            }
            Ok(Presence::NoKnowledge) => {
                let message =
                    "no node that keeps the key was reached, so it is not known what there is to delete";
                Err(Failure::new(Reason::QuorumNotMet, message).into())
            }
            Err(_) => Err(malformed("presence").of_read().into()),
        }
    }

    async fn write<Q: Rpc>(
        &self,
        key: &[u8],
        deadline: Instant,
        build: impl FnOnce(Option<v1::Mutation>) -> Q,
    ) -> Result<Q::Reply, Error> {
        let route = Route::Replica(&self.namespace, key);
        if let Some(id) = self.resend {
            return self.attempts.resend(id, route, deadline, build).await;
        }
        let ticket = self.attempts.available_ticket()?;
        let (mutation, id) = self.attempts.mutation(&ticket);
        let result = self.attempts.run(build(Some(mutation)), Effect::Once, route, deadline).await;
        result.map_err(|error| error.of_write(id))
    }
}

impl fmt::Debug for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Available({})", self.namespace)
    }
}

fn sibling(message: v1::Sibling) -> Result<Sibling, Failure> {
    Ok(Sibling {
        request_id: RequestId { client_id: client_id_from_bytes(&message.client_id)?, seq: message.seq },
        value: message.value,
        incarnation: Incarnation(message.incarnation),
        counter: message.counter,
        written_at_ms: message.written_at_ms,
    })
}

fn wire_context(context: WriteContext) -> Result<v1::WriteContext, Failure> {
    use v1::write_context::Context;
    let context = match context {
        WriteContext::Causal(CausalContext(bytes)) if bytes.len() > MAX_CONTEXT_BYTES => {
            let message =
                format!("a causal context has at most {MAX_CONTEXT_BYTES} bytes; this has {}", bytes.len());
            return Err(Failure::new(Reason::BadContext, message));
        }
        WriteContext::Causal(CausalContext(bytes)) => Context::Causal(bytes),
        WriteContext::Observed => Context::Observed(true),
        WriteContext::Blind => Context::Blind(true),
    };
    Ok(v1::WriteContext { context: Some(context) })
}

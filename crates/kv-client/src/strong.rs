//! A strong namespace: one value per key, a dense revision, compare-and-set.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::v1;
use kv_types::{Failure, Key, Reason, Value, WriteId};
use tokio::time::Instant;

use crate::attempts::{Attempts, Route};
use crate::outcome::{Answer, Error, malformed};
use crate::policy::Effect;
use crate::rpc::Rpc;
use crate::session::SessionSlot;

/// A point in the order of a strong namespace's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A value and the revision of the write that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes.
    pub value: Bytes,
    /// Its revision.
    pub revision: Revision,
}

/// What a delete found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Whether there was a value.
    pub existed: bool,
    /// The revision of this delete; when nothing existed, the namespace's present one.
    pub revision: Revision,
}

/// The condition of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key has no value.
    Absent,
    /// The key's value has this revision.
    Revision(Revision),
}

/// The answer to a compare-and-set. A mismatch is a definite answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The value was written, at this revision.
    Swapped(Revision),
    /// Nothing was written; this is what was there, `None` when the key was absent.
    Mismatch(Option<Versioned>),
}

/// Handle of a strong namespace. Clones and other handles of the same client share its session.
#[derive(Clone)]
pub struct Strong {
    attempts: Arc<Attempts>,
    session: Arc<SessionSlot>,
    namespace: String,
    resend: Option<WriteId>,
}

impl Strong {
    pub(crate) fn new(attempts: Arc<Attempts>, namespace: String) -> Self {
        let session = attempts.session(&namespace);
        Self { attempts, session, namespace, resend: None }
    }

    /// A handle whose writes are one that was sent before, under this id: it is applied once, and its answer
    /// is that of the first time. The operation, its key and its value must be the same. The servers keep
    /// that answer until the session of the first time has gone on; then the resend is refused as
    /// `REQUEST_EXPIRED`, which leaves it unknown.
    pub fn resending(mut self, id: WriteId) -> Self {
        self.resend = Some(id);
        self
    }

    /// Reads a key.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Answer<Option<Versioned>>, Error> {
        let begun = Instant::now();
        let request =
            v1::GetRequest { namespace: self.namespace.clone(), key: checked(key)?, ..Default::default() };
        let route = Route::Leader(&self.namespace);
        let reply = self.attempts.run(request, Effect::None, route, self.attempts.read_deadline()).await?;
        let found = match reply.presence() {
            v1::Presence::Found => Some(Versioned { value: reply.value, revision: Revision(reply.revision) }),
            v1::Presence::Absent => None,
            v1::Presence::NoKnowledge | v1::Presence::Unspecified => {
                return Err(malformed("presence").of_read().into());
            }
        };
        Answer::new(found, reply.receipt.as_ref(), begun)
    }

    /// Writes a key.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
    ) -> Result<Answer<Revision>, Error> {
        let begun = Instant::now();
        let (key, value) = (checked(key)?, Value::new(value)?.into_bytes());
        let reply = self
            .write(|namespace, mutation| v1::PutRequest {
                namespace,
                key,
                value,
                mutation,
                ..Default::default()
            })
            .await?;
        Answer::new(Revision(reply.revision), reply.receipt.as_ref(), begun)
    }

    /// Deletes a key.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Answer<Deleted>, Error> {
        let begun = Instant::now();
        let key = checked(key)?;
        let reply = self
            .write(|namespace, mutation| v1::DeleteRequest { namespace, key, mutation, ..Default::default() })
            .await?;
        let deleted = Deleted { existed: reply.existed, revision: Revision(reply.revision) };
        Answer::new(deleted, reply.receipt.as_ref(), begun)
    }

    /// Writes a key if it is as expected.
    pub async fn compare_and_set(
        &self,
        key: impl AsRef<[u8]>,
        expect: Expect,
        value: impl Into<Bytes>,
    ) -> Result<Answer<Swap>, Error> {
        let begun = Instant::now();
        let (key, value) = (checked(key)?, Value::new(value)?.into_bytes());
        let expected_revision = match expect {
            Expect::Absent | Expect::Revision(Revision(0)) => 0,
            Expect::Revision(Revision(revision)) => revision,
        };
        let reply = self
            .write(|namespace, mutation| v1::CompareAndSetRequest {
                namespace,
                key,
                expected_revision,
                value,
                mutation,
                ..Default::default()
            })
            .await?;
        let revision = Revision(reply.revision);
        let swap = match (reply.swapped, reply.revision) {
            (true, _) => Swap::Swapped(revision),
            (false, 0) => Swap::Mismatch(None),
            (false, _) => Swap::Mismatch(Some(Versioned { value: reply.found, revision })),
        };
        Answer::new(swap, reply.receipt.as_ref(), begun)
    }

    async fn write<Q: Rpc>(
        &self,
        build: impl FnOnce(String, Option<v1::Mutation>) -> Q,
    ) -> Result<Q::Reply, Error> {
        let route = Route::Leader(&self.namespace);
        let deadline = self.attempts.write_deadline();
        if let Some(id) = self.resend {
            let build = |mutation| build(self.namespace.clone(), mutation);
            return self.attempts.resend(id, route, deadline, build).await;
        }
        let ticket = self.session.begin(&self.attempts.env.entropy, deadline).await?;
        let (mutation, id) = self.attempts.mutation(&ticket);
        let request = build(self.namespace.clone(), Some(mutation));
        let result = self.attempts.run(request, Effect::Once, route, deadline).await;
        match &result {
            Ok(_) => ticket.answered(),
            Err(error) if error.reason() == Reason::SessionExpired => ticket.expired(),
            Err(_) => drop(ticket),
        }
        result.map_err(|error| error.of_write(id))
    }
}

impl fmt::Debug for Strong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Strong({})", self.namespace)
    }
}

/// The bytes of a key within its bounds.
pub(crate) fn checked(key: impl AsRef<[u8]>) -> Result<Bytes, Failure> {
    Key::new(Bytes::copy_from_slice(key.as_ref())).map(|key| key.as_bytes().clone())
}

//! Calls and answers on the wire: the messages of the public service, and those in which one node passes a
//! call on to another.

use bytes::Bytes;
use kv_types::call::{CompareAndSet, Delete, Get, Presence, Put, Quorum, Read};
use kv_types::causal::{Dot, Hlc, Sibling};
use kv_types::{
    Answer, Call, Failure, Incarnation, Key, Mutation, Namespace, Outcome, Reason, Receipt, ReplicaCount,
    RequestId, Value, WriteContext,
};
use prost::Message;

use crate::{client_id_bytes, client_id_from_bytes, peer, v1};

/// A message of the public service that asks something of a namespace.
pub trait DataRequest: Message + Sized + 'static {
    /// The message that answers it.
    type Response: Message + TryFrom<Answer, Error = Failure>;

    /// The name of the namespace, and what is asked of it. The failure names the first part that is outside
    /// its bounds, and the request as far as it has a valid identity.
    fn read(self) -> Result<(String, Call), Failure>;
}

fn quorum(replicas: Option<&v1::ReplicaCount>, strict: bool) -> Result<Quorum, Failure> {
    Ok(Quorum { replicas: replicas.map(ReplicaCount::try_from).transpose()?, strict })
}

/// A context that says nothing is none.
fn context(message: Option<v1::WriteContext>) -> Option<WriteContext> {
    use v1::write_context::Context;
    match message?.context? {
        Context::Causal(bytes) => Some(WriteContext::Causal(bytes)),
        Context::Observed(true) => Some(WriteContext::Observed),
        Context::Blind(true) => Some(WriteContext::Blind),
        Context::Observed(false) | Context::Blind(false) => None,
    }
}

impl DataRequest for v1::GetRequest {
    type Response = v1::GetResponse;

    fn read(self) -> Result<(String, Call), Failure> {
        let key = Key::new(self.key)?;
        let quorum = quorum(self.read_replicas.as_ref(), self.strict)?;
        Ok((self.namespace, Call::Get(Get { key, quorum })))
    }
}

impl DataRequest for v1::PutRequest {
    type Response = v1::PutResponse;

    fn read(self) -> Result<(String, Call), Failure> {
        let mutation = v1::Mutation::read(self.mutation.as_ref())?;
        let call = || {
            let (key, value) = (Key::new(self.key)?, Value::new(self.value)?);
            let quorum = quorum(self.write_replicas.as_ref(), self.strict)?;
            Ok(Call::Put(Put { key, value, mutation, context: context(self.context), quorum }))
        };
        Ok((self.namespace, call().map_err(|failure: Failure| failure.of_request(mutation.request_id))?))
    }
}

impl DataRequest for v1::DeleteRequest {
    type Response = v1::DeleteResponse;

    fn read(self) -> Result<(String, Call), Failure> {
        let mutation = v1::Mutation::read(self.mutation.as_ref())?;
        let call = || {
            let key = Key::new(self.key)?;
            let quorum = quorum(self.write_replicas.as_ref(), self.strict)?;
            Ok(Call::Delete(Delete { key, mutation, context: context(self.context), quorum }))
        };
        Ok((self.namespace, call().map_err(|failure: Failure| failure.of_request(mutation.request_id))?))
    }
}

impl DataRequest for v1::CompareAndSetRequest {
    type Response = v1::CompareAndSetResponse;

    fn read(self) -> Result<(String, Call), Failure> {
        let mutation = v1::Mutation::read(self.mutation.as_ref())?;
        let expected_revision = self.expected_revision;
        let call = || {
            let (key, value) = (Key::new(self.key)?, Value::new(self.value)?);
            Ok(Call::CompareAndSet(CompareAndSet { key, expected_revision, value, mutation }))
        };
        Ok((self.namespace, call().map_err(|failure: Failure| failure.of_request(mutation.request_id))?))
    }
}

fn other_answer() -> Failure {
    Failure::new(Reason::Internal, "the answer does not belong to what was asked")
}

impl From<Presence> for v1::Presence {
    fn from(presence: Presence) -> Self {
        match presence {
            Presence::Found => Self::Found,
            Presence::Absent => Self::Absent,
            Presence::NoKnowledge => Self::NoKnowledge,
        }
    }
}

impl TryFrom<v1::Presence> for Presence {
    type Error = Failure;

    fn try_from(message: v1::Presence) -> Result<Self, Failure> {
        match message {
            v1::Presence::Unspecified => {
                Err(Failure::new(Reason::InvalidRequest, "the message has no valid presence"))
            }
            v1::Presence::Found => Ok(Self::Found),
            v1::Presence::Absent => Ok(Self::Absent),
            v1::Presence::NoKnowledge => Ok(Self::NoKnowledge),
        }
    }
}

fn sibling_out((dot, sibling): (Dot, Sibling)) -> v1::Sibling {
    v1::Sibling {
        value: sibling.value,
        incarnation: dot.incarnation.0,
        counter: dot.counter,
        written_at_ms: sibling.stamp.wall_ms(),
        client_id: client_id_bytes(sibling.request.client_id),
        seq: sibling.request.seq,
    }
}

fn sibling_in(message: v1::Sibling) -> Result<(Dot, Sibling), Failure> {
    let dot = Dot { incarnation: Incarnation(message.incarnation), counter: message.counter };
    let request = RequestId { client_id: client_id_from_bytes(&message.client_id)?, seq: message.seq };
    Ok((dot, Sibling { stamp: Hlc::at(message.written_at_ms), request, value: message.value }))
}

impl TryFrom<Answer> for v1::GetResponse {
    type Error = Failure;

    fn try_from(answer: Answer) -> Result<Self, Failure> {
        let Outcome::Read(read) = answer.outcome else { return Err(other_answer()) };
        Ok(Self {
            presence: v1::Presence::from(read.presence).into(),
            value: read.value,
            revision: read.revision,
            siblings: read.siblings.into_iter().map(sibling_out).collect(),
            context: read.context,
            receipt: Some((&answer.receipt).into()),
        })
    }
}

impl TryFrom<Answer> for v1::PutResponse {
    type Error = Failure;

    fn try_from(answer: Answer) -> Result<Self, Failure> {
        let Outcome::Put { revision, context } = answer.outcome else { return Err(other_answer()) };
        Ok(Self { revision, context, receipt: Some((&answer.receipt).into()) })
    }
}

impl TryFrom<Answer> for v1::DeleteResponse {
    type Error = Failure;

    fn try_from(answer: Answer) -> Result<Self, Failure> {
        let Outcome::Deleted { existed, revision, context } = answer.outcome else {
            return Err(other_answer());
        };
        Ok(Self { existed, revision, context, receipt: Some((&answer.receipt).into()) })
    }
}

impl TryFrom<Answer> for v1::CompareAndSetResponse {
    type Error = Failure;

    fn try_from(answer: Answer) -> Result<Self, Failure> {
        let Outcome::Compared { swapped, revision, found } = answer.outcome else {
            return Err(other_answer());
        };
        Ok(Self { swapped, revision, found, receipt: Some((&answer.receipt).into()) })
    }
}

// ---- between nodes

impl peer::Forward {
    /// Passes a call on. The namespace is named by its id in the frame; here are the settings by which it was
    /// read.
    pub fn call(namespace: &Namespace, call: &Call) -> Self {
        use peer::forward::Request;
        let request = match call.clone() {
            Call::Get(get) => Request::Get(get.into()),
            Call::Put(put) => Request::Put(put.into()),
            Call::Delete(delete) => Request::Delete(delete.into()),
            Call::CompareAndSet(swap) => Request::CompareAndSet(swap.into()),
        };
        Self { request: Some(request), settings_version: namespace.settings_version }
    }
}

impl From<WriteContext> for v1::WriteContext {
    fn from(context: WriteContext) -> Self {
        use v1::write_context::Context;
        Self {
            context: Some(match context {
                WriteContext::Causal(bytes) => Context::Causal(bytes),
                WriteContext::Observed => Context::Observed(true),
                WriteContext::Blind => Context::Blind(true),
            }),
        }
    }
}

fn bytes_of(key: &Key) -> Bytes {
    key.as_bytes().clone()
}

fn message_of(mutation: Mutation) -> Option<v1::Mutation> {
    Some(mutation.into())
}

impl From<Get> for v1::GetRequest {
    fn from(get: Get) -> Self {
        Self {
            key: bytes_of(&get.key),
            read_replicas: get.quorum.replicas.map(Into::into),
            strict: get.quorum.strict,
            ..Self::default()
        }
    }
}

impl From<Put> for v1::PutRequest {
    fn from(put: Put) -> Self {
        Self {
            key: bytes_of(&put.key),
            value: put.value.into_bytes(),
            mutation: message_of(put.mutation),
            context: put.context.map(Into::into),
            write_replicas: put.quorum.replicas.map(Into::into),
            strict: put.quorum.strict,
            ..Self::default()
        }
    }
}

impl From<Delete> for v1::DeleteRequest {
    fn from(delete: Delete) -> Self {
        Self {
            key: bytes_of(&delete.key),
            mutation: message_of(delete.mutation),
            context: delete.context.map(Into::into),
            write_replicas: delete.quorum.replicas.map(Into::into),
            strict: delete.quorum.strict,
            ..Self::default()
        }
    }
}

impl From<CompareAndSet> for v1::CompareAndSetRequest {
    fn from(swap: CompareAndSet) -> Self {
        Self {
            key: bytes_of(&swap.key),
            expected_revision: swap.expected_revision,
            value: swap.value.into_bytes(),
            mutation: message_of(swap.mutation),
            ..Self::default()
        }
    }
}

impl TryFrom<Answer> for peer::ForwardReply {
    type Error = Failure;

    fn try_from(answer: Answer) -> Result<Self, Failure> {
        use peer::forward_reply::Response;
        let response = match answer.outcome {
            Outcome::Read(_) => Response::Get(answer.try_into()?),
            Outcome::Put { .. } => Response::Put(answer.try_into()?),
            Outcome::Deleted { .. } => Response::Delete(answer.try_into()?),
            Outcome::Compared { .. } => Response::CompareAndSet(answer.try_into()?),
        };
        Ok(Self { response: Some(response) })
    }
}

fn receipt(message: Option<&v1::Receipt>) -> Result<Receipt, Failure> {
    let message =
        message.ok_or_else(|| Failure::new(Reason::Internal, "an answer came without a receipt"))?;
    Receipt::try_from(message)
}

impl TryFrom<peer::forward_reply::Response> for Answer {
    type Error = Failure;

    /// What another node answered. An answer that cannot be read says nothing about what it answers.
    fn try_from(message: peer::forward_reply::Response) -> Result<Self, Failure> {
        use peer::forward_reply::Response;
        let read = || -> Result<Self, Failure> {
            Ok(match message {
                Response::Get(get) => {
                    let presence = Presence::try_from(get.presence())?;
                    let receipt = receipt(get.receipt.as_ref())?;
                    let siblings: Result<_, _> = get.siblings.into_iter().map(sibling_in).collect();
                    let (value, revision, context) = (get.value, get.revision, get.context);
                    let read = Read { presence, value, revision, siblings: siblings?, context };
                    Self { outcome: Outcome::Read(read), receipt }
                }
                Response::Put(put) => Self {
                    receipt: receipt(put.receipt.as_ref())?,
                    outcome: Outcome::Put { revision: put.revision, context: put.context },
                },
                Response::Delete(delete) => Self {
                    receipt: receipt(delete.receipt.as_ref())?,
                    outcome: Outcome::Deleted {
                        existed: delete.existed,
                        revision: delete.revision,
                        context: delete.context,
                    },
                },
                Response::CompareAndSet(swap) => Self {
                    receipt: receipt(swap.receipt.as_ref())?,
                    outcome: Outcome::Compared {
                        swapped: swap.swapped,
                        revision: swap.revision,
                        found: swap.found,
                    },
                },
                Response::CreateNamespace(_)
                | Response::DeleteNamespace(_)
                | Response::ScheduleDeletion(_)
                | Response::UndeleteNamespace(_)
                | Response::AlterNamespace(_)
                | Response::TransferLeader(_) => return Err(other_answer()),
            })
        };
        read().map_err(|failure| Failure::new(Reason::Internal, failure.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
    use kv_types::{
        ClientId, Epoch, Evidence, GroupId, Guarantee, NamespaceId, NamespaceName, NodeId, Placement,
        ReadPath, StrongEvidence,
    };

    fn mutation() -> Mutation {
        let request_id = RequestId { client_id: ClientId(9), seq: 4 };
        Mutation { request_id, issued_at_ms: 5, lowest_unacked: 2, attempt: 3 }
    }

    fn calls() -> Vec<Call> {
        let key = Key::new("k").unwrap();
        let value = Value::new("v").unwrap();
        let quorums = [None, Some(ReplicaCount::Number(2)), Some(ReplicaCount::Quorum)];
        let contexts = [
            None,
            Some(WriteContext::Observed),
            Some(WriteContext::Blind),
            Some(WriteContext::Causal("c".into())),
        ];
        let mut calls = vec![Call::CompareAndSet(CompareAndSet {
            key: key.clone(),
            expected_revision: 7,
            value: value.clone(),
            mutation: mutation(),
        })];
        for (replicas, strict) in quorums.into_iter().zip([true, false, true]) {
            let quorum = Quorum { replicas, strict };
            calls.push(Call::Get(Get { key: key.clone(), quorum }));
            for context in contexts.clone() {
                let (key, value, mutation) = (key.clone(), value.clone(), mutation());
                calls.push(Call::Delete(Delete {
                    key: key.clone(),
                    mutation,
                    context: context.clone(),
                    quorum,
                }));
                calls.push(Call::Put(Put { key, value, mutation, context, quorum }));
            }
        }
        calls
    }

    /// A call that is passed on is the same call, under the id and the settings of its namespace.
    #[test]
    fn calls_survive_being_passed_on() {
        use peer::forward::Request as Forwarded;
        let namespace = Namespace {
            id: NamespaceId(3),
            name: NamespaceName::new("bank").unwrap(),
            settings_version: 6,
            deletion: None,
            guarantee: Guarantee::Linearizable,
            placement: Placement::Strong { group: GroupId::FIRST_DATA },
        };
        for call in calls() {
            let message = peer::Forward::call(&namespace, &call);
            assert_eq!(message.settings_version, 6);
            let read = match message.request.unwrap() {
                Forwarded::Get(get) => get.read(),
                Forwarded::Put(put) => put.read(),
                Forwarded::Delete(delete) => delete.read(),
                Forwarded::CompareAndSet(swap) => swap.read(),
                other => panic!("{other:?}"),
            };
            assert_eq!(read, Ok((String::new(), call)));
        }
    }

    #[test]
    fn answers_survive_being_passed_on() {
        let receipt = Receipt {
            promised: Guarantee::Linearizable,
            epoch: Epoch(3),
            served_by: NodeId(2),
            attempts: 1,
            deduplicated: true,
            degraded: Vec::new(),
            evidence: Evidence::Strong(StrongEvidence {
                group: GroupId::FIRST_DATA,
                term: 1,
                index: 2,
                namespace_revision: 3,
                path: ReadPath::Log,
                applied_lag: 4,
            }),
        };
        let dot = Dot { incarnation: Incarnation(4), counter: 5 };
        let sibling = Sibling { stamp: Hlc::at(6), request: mutation().request_id, value: "s".into() };
        let read = |presence, siblings| Read {
            presence,
            value: "v".into(),
            revision: 1,
            siblings,
            context: "c".into(),
        };
        let outcomes = [
            Outcome::Read(read(Presence::Found, vec![(dot, sibling)])),
            Outcome::Read(read(Presence::Absent, Vec::new())),
            Outcome::Read(read(Presence::NoKnowledge, Vec::new())),
            Outcome::Put { revision: 1, context: "c".into() },
            Outcome::Deleted { existed: true, revision: 1, context: "c".into() },
            Outcome::Compared { swapped: true, revision: 1, found: "f".into() },
        ];
        for outcome in outcomes {
            let answer = Answer { outcome, receipt: receipt.clone() };
            let message = peer::ForwardReply::try_from(answer.clone()).unwrap();
            assert_eq!(Answer::try_from(message.response.unwrap()), Ok(answer));
        }
        let without = peer::forward_reply::Response::Put(v1::PutResponse::default());
        assert_eq!(Answer::try_from(without).unwrap_err().reason, Reason::Internal);
        let answer = Answer { outcome: Outcome::Put { revision: 1, context: "c".into() }, receipt };
        assert_eq!(v1::GetResponse::try_from(answer).unwrap_err().reason, Reason::Internal);
    }

    #[test]
    fn each_part_outside_its_bounds_has_a_name() {
        type Change = fn(&mut v1::PutRequest);
        let table: [(Change, Option<Reason>); 6] = [
            (|_| {}, None),
            (|r| r.key = Bytes::new(), Some(Reason::EmptyKey)),
            (|r| r.key = vec![0; MAX_KEY_BYTES + 1].into(), Some(Reason::LimitKey)),
            (|r| r.value = vec![0; MAX_VALUE_BYTES + 1].into(), Some(Reason::LimitValue)),
            (|r| r.mutation = None, Some(Reason::RequestIdInvalid)),
            (|r| r.write_replicas = Some(v1::ReplicaCount { count: None }), Some(Reason::InvalidRequest)),
        ];
        for (row, (change, reason)) in table.into_iter().enumerate() {
            let mut request =
                v1::PutRequest { key: "k".into(), mutation: message_of(mutation()), ..Default::default() };
            change(&mut request);
            let refused = request.read().err();
            let named = refused.as_ref().and_then(|failure| failure.request_id);
            assert_eq!(
                named.is_some(),
                !matches!(reason, None | Some(Reason::RequestIdInvalid)),
                "row {row}"
            );
            assert_eq!(refused.map(|failure| failure.reason), reason, "row {row}");
        }
        // What says nothing is nothing.
        let unsaid = v1::PutRequest {
            key: "k".into(),
            mutation: message_of(mutation()),
            context: Some(v1::WriteContext { context: Some(v1::write_context::Context::Blind(false)) }),
            ..Default::default()
        };
        assert!(matches!(unsaid.read(), Ok((_, Call::Put(Put { context: None, .. })))));
    }
}

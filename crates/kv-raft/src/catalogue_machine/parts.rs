//! How the parts of the catalogue are written that stand in its commands and in its row alike.

use bytes::BufMut;
use kv_types::catalogue::Member;
use kv_types::causal::ContextKey;
use kv_types::{ClientId, Deletion, Guarantee, NamespaceName, NodeId, Replication, RequestId};

use crate::codec::{self, CodecError, Reader, Write};

pub(super) fn put_request_id(out: &mut Vec<u8>, id: RequestId) {
    out.put_u128(id.client_id.0);
    out.put_u64(id.seq);
}

pub(super) fn request_id(reader: &mut Reader) -> Result<RequestId, CodecError> {
    Ok(RequestId { client_id: ClientId(reader.u128()?), seq: reader.u64()? })
}

pub(super) fn name(reader: &mut Reader) -> Result<NamespaceName, CodecError> {
    let text = reader.text()?;
    NamespaceName::new(text).map_err(|failure| reader.invalid(failure))
}

pub(super) fn put_members<'a>(out: &mut Vec<u8>, members: impl ExactSizeIterator<Item = &'a Member>) {
    out.put_u32(codec::length(members.len()));
    for member in members {
        out.put_u64(member.id.0);
        for text in [&member.client_address, &member.peer_address, &member.zone] {
            out.put_block(text.as_bytes());
        }
    }
}

pub(super) fn members(reader: &mut Reader) -> Result<Vec<Member>, CodecError> {
    reader.list(|reader| {
        Ok(Member {
            id: NodeId(reader.u64()?),
            client_address: reader.text()?,
            peer_address: reader.text()?,
            zone: reader.text()?,
        })
    })
}

pub(super) fn put_replication(out: &mut Vec<u8>, replication: Replication) {
    let Replication { n, r, w, sloppy } = replication;
    out.put_slice(&[n, r, w]);
    out.put_flag(sloppy);
}

pub(super) fn replication(reader: &mut Reader) -> Result<Replication, CodecError> {
    Ok(Replication { n: reader.u8()?, r: reader.u8()?, w: reader.u8()?, sloppy: reader.flag()? })
}

pub(super) fn put_deletion(out: &mut Vec<u8>, deletion: Deletion) {
    out.put_u64(deletion.due_ms);
    out.put_u64(deletion.grace_ms);
}

pub(super) fn deletion(reader: &mut Reader) -> Result<Deletion, CodecError> {
    Ok(Deletion { due_ms: reader.u64()?, grace_ms: reader.u64()? })
}

const GUARANTEES: [Guarantee; 6] = [
    Guarantee::Linearizable,
    Guarantee::BoundedStaleness,
    Guarantee::ReadYourWrites,
    Guarantee::MonotonicReads,
    Guarantee::Eventual,
    Guarantee::StrictQuorum,
];

pub(super) fn guarantee_number(guarantee: Guarantee) -> u8 {
    GUARANTEES.iter().zip(0..).find(|(known, _)| **known == guarantee).map_or(u8::MAX, |(_, number)| number)
}

pub(super) fn guarantee(reader: &mut Reader) -> Result<Guarantee, CodecError> {
    let number = reader.u8()?;
    GUARANTEES.get(usize::from(number)).copied().ok_or_else(|| reader.unknown("guarantee", number))
}

pub(super) fn context_key(reader: &mut Reader) -> Result<ContextKey, CodecError> {
    let mut secret = [0; 32];
    for half in secret.chunks_exact_mut(16) {
        half.copy_from_slice(&reader.u128()?.to_be_bytes());
    }
    Ok(ContextKey::new(secret))
}

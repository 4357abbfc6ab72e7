//! The encodings of states, node clocks and context tokens, on disk and on the wire. Written by hand,
//! versioned by their first byte, canonical (one value, one encoding). Foreign bytes are an error and never a
//! panic; counts are believed only as far as the bytes that follow could hold them.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Context, Dot, Hlc, NodeClock, Record, Sibling, State, Write};
use crate::catalogue::token;
use crate::limits::{MAX_CONTEXT_BYTES, MAX_VALUE_BYTES};
use crate::{ClientId, Failure, Incarnation, NamespaceId, Reason, RequestId};

const STATE_VERSION: u8 = 1;
const CLOCK_VERSION: u8 = 1;
const TOKEN_VERSION: u8 = 1;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no {what}: {why}")]
pub struct CodecError {
    /// What was expected.
    pub what: &'static str,
    /// What is wrong.
    pub why: &'static str,
}

impl State {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let values: usize = self.record.siblings.values().map(|sibling| sibling.value.len() + 48).sum();
        let mut out = BytesMut::with_capacity(64 + values + self.writes.len() * 48);
        out.put_u8(STATE_VERSION);
        put_context(&mut out, &self.record.context);
        put_varint(&mut out, self.record.siblings.len() as u64);
        for (dot, sibling) in &self.record.siblings {
            put_dot(&mut out, *dot);
            out.put_u64(sibling.stamp.0);
            put_request(&mut out, sibling.request);
            put_varint(&mut out, sibling.value.len() as u64);
            out.put_slice(&sibling.value);
        }
        put_varint(&mut out, self.writes.len() as u64);
        for (dot, write) in &self.writes {
            put_dot(&mut out, *dot);
            put_request(&mut out, write.request);
            put_varint(&mut out, write.issued_at_ms);
            out.put_u32(write.body);
        }
        out.freeze()
    }

    /// Reads what [`State::encode`] wrote. Values share the memory of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut read = Reader { bytes, what: "state of a key" };
        read.version(STATE_VERSION)?;
        let context = read.context()?;
        let mut siblings = BTreeMap::new();
        for _ in 0..read.count(8 + 1 + 8 + 16 + 1 + 1)? {
            let dot = read.dot()?;
            let stamp = Hlc(read.u64()?);
            let request = read.request()?;
            let length = usize::try_from(read.varint()?).unwrap_or(usize::MAX);
            read.check(length <= MAX_VALUE_BYTES, "a value is too long")?;
            let value = read.take(length)?;
            read.check(siblings.last_key_value().is_none_or(|(last, _)| *last < dot), "values out of order")?;
            read.check(context.covers(dot), "the context does not cover a value")?;
            siblings.insert(dot, Sibling { stamp, request, value });
        }
        let mut writes = BTreeMap::new();
        for _ in 0..read.count(8 + 1 + 16 + 1 + 1 + 4)? {
            let dot = read.dot()?;
            let request = read.request()?;
            let write = Write { request, issued_at_ms: read.varint()?, body: read.u32()? };
            read.check(writes.last_key_value().is_none_or(|(last, _)| *last < dot), "writes out of order")?;
            writes.insert(dot, write);
        }
        read.end()?;
        Ok(Self { record: Record { siblings, context }, writes })
    }
}

impl NodeClock {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(CLOCK_VERSION);
        put_varint(&mut out, self.ranges().count() as u64);
        for (incarnation, first, last) in self.ranges() {
            out.put_u64(incarnation.0);
            put_varint(&mut out, first);
            put_varint(&mut out, last - first);
        }
        out.freeze()
    }

    /// Reads what [`NodeClock::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut read = Reader { bytes, what: "node clock" };
        read.version(CLOCK_VERSION)?;
        let mut clock = Self::new();
        let mut previous = None;
        for _ in 0..read.count(8 + 1 + 1)? {
            let incarnation = Incarnation(read.u64()?);
            let first = read.varint()?;
            let last = first.checked_add(read.varint()?);
            let last = last.ok_or(CodecError { what: read.what, why: "a range has no end" })?;
            let apart = previous.is_none_or(|(i, l): (Incarnation, u64)| {
                i < incarnation || (i == incarnation && l < first - first.min(1))
            });
            read.check(first > 0 && apart, "ranges out of order")?;
            clock.add_range(incarnation, first, last);
            previous = Some((incarnation, last));
        }
        read.end()?;
        Ok(clock)
    }
}

/// The opaque context that a client holds between a read and a write: bound to its key, with a checksum.
pub fn encode_context_token(namespace: NamespaceId, key: &[u8], context: &Context) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(TOKEN_VERSION);
    out.put_u64(namespace.0);
    out.put_u64(token(namespace, key));
    put_context(&mut out, context);
    out.put_u32(crc32c::crc32c(&out));
    out.freeze()
}

/// Reads what [`encode_context_token`] wrote: `BAD_CONTEXT` if it is malformed or too long, `FOREIGN_CONTEXT`
/// if it belongs to another key.
pub fn decode_context_token(namespace: NamespaceId, key: &[u8], bytes: &Bytes) -> Result<Context, Failure> {
    if bytes.len() > MAX_CONTEXT_BYTES {
        let message =
            format!("the causal context has {} bytes; at most {MAX_CONTEXT_BYTES} are allowed", bytes.len());
        return Err(Failure::new(Reason::BadContext, message).with("limit_bytes", MAX_CONTEXT_BYTES));
    }
    let (of_namespace, of_key, context) =
        read_token(bytes).map_err(|error| Failure::new(Reason::BadContext, error.to_string()))?;
    if of_namespace != namespace || of_key != token(namespace, key) {
        let other = if of_namespace == namespace { "key" } else { "namespace" };
        return Err(Failure::new(
            Reason::ForeignContext,
            format!("the causal context belongs to another {other}"),
        ));
    }
    Ok(context)
}

fn read_token(bytes: &Bytes) -> Result<(NamespaceId, u64, Context), CodecError> {
    let mut read = Reader { bytes: bytes.clone(), what: "causal context" };
    let body = bytes.len().checked_sub(4).ok_or(CodecError { what: read.what, why: "it is cut short" })?;
    read.bytes = bytes.slice(..body);
    let mut sum = Reader { bytes: bytes.slice(body..), what: read.what };
    read.check(sum.u32()? == crc32c::crc32c(&read.bytes), "its checksum does not fit")?;
    read.version(TOKEN_VERSION)?;
    let parts = (NamespaceId(read.u64()?), read.u64()?, read.context()?);
    read.end()?;
    Ok(parts)
}

fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn put_dot(out: &mut BytesMut, dot: Dot) {
    out.put_u64(dot.incarnation.0);
    put_varint(out, dot.counter);
}

fn put_request(out: &mut BytesMut, request: RequestId) {
    out.put_u128(request.client_id.0);
    put_varint(out, request.seq);
}

/// By incarnation: how far the vector goes, then the cloud's counters as distances from the one before.
fn put_context(out: &mut BytesMut, context: &Context) {
    if context.cloud().is_empty() {
        // As below, and the usual one.
        put_varint(out, context.vector().len() as u64);
        for (incarnation, counter) in context.vector() {
            out.put_u64(incarnation.0);
            put_varint(out, *counter);
            put_varint(out, 0);
        }
        return;
    }
    let mut parts: BTreeMap<Incarnation, (u64, Vec<u64>)> = BTreeMap::new();
    for (incarnation, counter) in context.vector() {
        parts.entry(*incarnation).or_default().0 = *counter;
    }
    for dot in context.cloud() {
        parts.entry(dot.incarnation).or_default().1.push(dot.counter);
    }
    put_varint(out, parts.len() as u64);
    for (incarnation, (base, cloud)) in parts {
        out.put_u64(incarnation.0);
        put_varint(out, base);
        put_varint(out, cloud.len() as u64);
        let mut last = base;
        for counter in cloud {
            put_varint(out, counter.saturating_sub(last));
            last = counter;
        }
    }
}

struct Reader {
    bytes: Bytes,
    what: &'static str,
}

impl Reader {
    fn check(&self, holds: bool, why: &'static str) -> Result<(), CodecError> {
        if holds { Ok(()) } else { Err(CodecError { what: self.what, why }) }
    }

    fn take(&mut self, length: usize) -> Result<Bytes, CodecError> {
        self.check(length <= self.bytes.len(), "it is cut short")?;
        Ok(self.bytes.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        // Not split off: that would count a reference for each number.
        let short = CodecError { what: self.what, why: "it is cut short" };
        let taken = *self.bytes.first_chunk().ok_or(short)?;
        self.bytes.advance(N);
        Ok(taken)
    }

    fn version(&mut self, known: u8) -> Result<(), CodecError> {
        let [version] = self.array()?;
        self.check(version == known, "its version is unknown")
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_be_bytes)
    }

    fn varint(&mut self) -> Result<u64, CodecError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let low = u64::from(byte & 0x7f);
            self.check(low << shift >> shift == low, "a number is too large")?;
            number |= low << shift;
            if byte < 0x80 {
                self.check(byte != 0 || shift == 0, "a number is written too long")?;
                return Ok(number);
            }
        }
        self.check(false, "a number is too large").map(|()| 0)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize) -> Result<u64, CodecError> {
        let count = self.varint()?;
        self.check(count <= (self.bytes.len() / least) as u64, "it is cut short")?;
        Ok(count)
    }

    fn dot(&mut self) -> Result<Dot, CodecError> {
        let dot = Dot { incarnation: Incarnation(self.u64()?), counter: self.varint()? };
        self.check(dot.counter > 0, "a dot without number")?;
        Ok(dot)
    }

    fn request(&mut self) -> Result<RequestId, CodecError> {
        Ok(RequestId { client_id: ClientId(self.array().map(u128::from_be_bytes)?), seq: self.varint()? })
    }

    fn context(&mut self) -> Result<Context, CodecError> {
        let mut context = Context::new();
        let mut previous = None;
        for _ in 0..self.count(8 + 1 + 1)? {
            let incarnation = Incarnation(self.u64()?);
            self.check(previous.is_none_or(|last| last < incarnation), "incarnations out of order")?;
            previous = Some(incarnation);
            let mut last = self.varint()?;
            let singles = self.count(1)?;
            self.check(last > 0 || singles > 0, "an incarnation without dots")?;
            if last > 0 {
                context.claim_through(Dot { incarnation, counter: last });
            }
            for at in 0..singles {
                let step = self.varint()?;
                // The first must leave a gap to the vector, or it would belong to it.
                self.check(step > u64::from(at == 0), "a cloud that is not one")?;
                last = last
                    .checked_add(step)
                    .ok_or(CodecError { what: self.what, why: "a number is too large" })?;
                context.insert(Dot { incarnation, counter: last });
            }
        }
        Ok(context)
    }

    fn end(&self) -> Result<(), CodecError> {
        self.check(self.bytes.is_empty(), "something follows it")
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::states;
    use super::*;
    use proptest::prelude::*;

    const NS: NamespaceId = NamespaceId(5);

    proptest! {
        #[test]
        fn states_survive(state in states()) {
            prop_assert_eq!(State::decode(state.encode()), Ok(state));
        }

        #[test]
        fn clocks_survive(dots in proptest::collection::vec((1u64..4, 1u64..40), 0..30)) {
            let mut clock = NodeClock::new();
            dots.iter().for_each(|(i, c)| clock.add(Dot { incarnation: Incarnation(*i), counter: *c }));
            prop_assert_eq!(NodeClock::decode(clock.encode()), Ok(clock));
        }

        #[test]
        fn tokens_survive_and_know_their_key(state in states(), flip in 0usize..400) {
            let bytes = encode_context_token(NS, b"k", &state.record.context);
            prop_assert_eq!(decode_context_token(NS, b"k", &bytes), Ok(state.record.context));
            let reason = |ns, key: &[u8], bytes: &Bytes| decode_context_token(ns, key, bytes).map_err(|f| f.reason);
            prop_assert_eq!(reason(NS, b"l", &bytes), Err(Reason::ForeignContext));
            prop_assert_eq!(reason(NamespaceId(6), b"k", &bytes), Err(Reason::ForeignContext));
            let mut broken = bytes.to_vec();
            let at = flip % broken.len();
            broken[at] ^= 1 << (flip % 8);
            prop_assert_eq!(reason(NS, b"k", &broken.into()), Err(Reason::BadContext));
        }

        #[test]
        fn foreign_bytes_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let versioned = Bytes::from([&[1u8][..], &bytes].concat());
            for input in [bytes, versioned] {
                if let Ok(state) = State::decode(input.clone()) {
                    prop_assert_eq!(state.encode(), input.clone(), "one value, one encoding");
                }
                if let Ok(clock) = NodeClock::decode(input.clone()) {
                    prop_assert_eq!(clock.encode(), input.clone());
                }
                let _ = decode_context_token(NS, b"k", &input);
            }
        }

        #[test]
        fn damaged_states_never_panic(state in states(), at in 0usize..2000, byte in any::<u8>(), cut in 0usize..2000) {
            let mut bytes = state.encode().to_vec();
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len - cut % len);
            if let Ok(read) = State::decode(bytes.clone().into()) {
                prop_assert_eq!(read.encode(), Bytes::from(bytes));
            }
        }
    }

    #[test]
    fn counts_are_not_believed() {
        // A state that claims 2^60 values and ends there.
        let mut out = BytesMut::from(&[STATE_VERSION, 0][..]);
        put_varint(&mut out, 1 << 60);
        assert!(State::decode(out.freeze()).is_err());
    }

    #[test]
    fn long_tokens_are_refused_at_the_bound() {
        let reason =
            |length: usize| decode_context_token(NS, b"k", &vec![0; length].into()).map_err(|f| f.message);
        assert!(reason(MAX_CONTEXT_BYTES).unwrap_err().contains("checksum"));
        assert!(reason(MAX_CONTEXT_BYTES + 1).unwrap_err().contains("at most"));
    }

    #[test]
    fn a_cloud_of_a_minority_stays_small() {
        // A fallback coordinated every other of 10,000 writes: a cloud of 5,000 dots fits into a token.
        let context: Context =
            (1..=5_000).map(|n| Dot { incarnation: Incarnation(1), counter: 2 * n + 1 }).collect();
        assert!(encode_context_token(NS, b"k", &context).len() < MAX_CONTEXT_BYTES / 8);
    }
}

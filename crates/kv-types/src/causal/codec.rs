//! The encodings of states, node clocks and context tokens, on disk and on the wire. Written by hand,
//! versioned by their first byte, canonical (one value, one encoding). Foreign bytes are an error and never a
//! panic; counts are believed only as far as the bytes that follow could hold them.
//!
//! Versions that no release wrote are refused by name: 1 of all three (contexts as a vector with a cloud),
//! and 2 of tokens (a checksum in place of a keyed hash).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::keys::{MAC_BYTES, are_equal};
use super::{
    Context, ContextKeys, Dot, DotRange, DotSet, Hlc, NodeClock, Record, Seen, Sibling, State, Write,
};
use crate::catalogue::token;
use crate::limits::{
    MAX_CLOCK_RANGES, MAX_CONTEXT_BYTES, MAX_CONTEXT_RANGES, MAX_PEER_MESSAGE_BYTES, MAX_VALUE_BYTES,
};
use crate::{ClientId, Failure, Incarnation, NamespaceId, Reason, RequestId};

/// Of states and node clocks.
const VERSION: u8 = 2;
/// Of tokens.
const TOKEN_VERSION: u8 = 3;
/// The shortest dot.
const DOT_BYTES: usize = 8 + 1;
/// The shortest request.
const REQUEST_BYTES: usize = 16 + 1;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no {what}: {why}")]
pub struct CodecError {
    /// What was expected.
    pub what: &'static str,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Fewer bytes than they claim to be.
    #[error("it is cut short")]
    CutShort,
    /// Bytes follow the end.
    #[error("something follows it")]
    Trailing,
    /// From before a release.
    #[error("it is of version {0}, which this version of Quorate does not read")]
    OldVersion(u8),
    /// From a later version, or no version at all.
    #[error("its version is unknown")]
    UnknownVersion,
    /// More than a whole state may have.
    #[error("it has more than {MAX_PEER_MESSAGE_BYTES} bytes")]
    TooLong,
    /// A value above [`MAX_VALUE_BYTES`].
    #[error("a value has more than {MAX_VALUE_BYTES} bytes")]
    ValueTooLong,
    /// A set of dots with more gaps than it may have.
    #[error("its dots have more than {0} ranges")]
    TooManyRanges(usize),
    /// A number above 64 bits.
    #[error("a number is too large")]
    NumberTooLarge,
    /// The keyed hash is another.
    #[error("it was changed, or not made by this cluster")]
    Mac,
    /// What could be written in another way, or out of order.
    #[error("{0}")]
    NotCanonical(&'static str),
}

impl State {
    /// Its bytes. What is to be read again is encoded by [`State::encode_readable`].
    pub fn encode(&self) -> Bytes {
        self.encode_beside(&written_context(&self.record))
    }

    /// Its bytes, of which it is known that [`State::decode`] reads them: for what is stored, and must be
    /// read back.
    ///
    /// Errors: those of [`State::decode`] about its bounds.
    pub fn encode_readable(&self) -> Result<Bytes, CodecError> {
        let error = |why| CodecError { what: "state of a key", why };
        let written = written_context(&self.record);
        if written.ranges().len() > MAX_CONTEXT_RANGES {
            return Err(error(Why::TooManyRanges(MAX_CONTEXT_RANGES)));
        }
        if self.record.siblings.values().any(|sibling| sibling.value.len() > MAX_VALUE_BYTES) {
            return Err(error(Why::ValueTooLong));
        }
        let bytes = self.encode_beside(&written);
        if bytes.len() > MAX_PEER_MESSAGE_BYTES { Err(error(Why::TooLong)) } else { Ok(bytes) }
    }

    /// Ranges of its context that do not stand beside its values: what [`MAX_CONTEXT_RANGES`] bounds.
    pub fn ranges(&self) -> usize {
        written_context(&self.record).ranges().len()
    }

    fn encode_beside(&self, written: &DotSet) -> Bytes {
        let values: usize = self.record.siblings.values().map(|sibling| sibling.value.len() + 64).sum();
        let ranges = written.ranges().len() * 12;
        let mut out = BytesMut::with_capacity(16 + ranges + values + self.writes.len() * 40);
        out.put_u8(VERSION);
        put_dots(&mut out, written);
        put_varint(&mut out, self.record.siblings.len() as u64);
        for (dot, sibling) in &self.record.siblings {
            put_dot(&mut out, *dot);
            out.put_u64(sibling.stamp.0);
            put_request(&mut out, sibling.request);
            let write = self.writes.get(dot);
            out.put_u8(u8::from(write.is_some()));
            write.into_iter().for_each(|write| put_rest_of_write(&mut out, write));
            put_varint(&mut out, sibling.value.len() as u64);
            out.put_slice(&sibling.value);
        }
        let superseded = || self.writes.iter().filter(|(dot, _)| !self.record.siblings.contains_key(dot));
        put_writes(&mut out, superseded().count(), superseded());
        out.freeze()
    }

    /// Reads what [`State::encode`] wrote. Values share the memory of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut read = Reader { bytes, what: "state of a key" };
        read.check(read.bytes.len() <= MAX_PEER_MESSAGE_BYTES, Why::TooLong)?;
        read.version(VERSION)?;
        let written = read.dots(MAX_CONTEXT_RANGES)?;
        let mut state = Self::default();
        for _ in 0..read.count(DOT_BYTES + 8 + REQUEST_BYTES + 1 + 1)? {
            let (dot, stamp, request) = (read.dot()?, Hlc(read.u64()?), read.request()?);
            match read.array()? {
                [0] => {}
                [1] => drop(state.writes.insert(dot, read.rest_of_write(request)?)),
                _ => return Err(read.not_canonical("a flag that is none")),
            }
            let length = usize::try_from(read.varint()?).unwrap_or(usize::MAX);
            read.check(length <= MAX_VALUE_BYTES, Why::ValueTooLong)?;
            let sibling = Sibling { stamp, request, value: read.take(length)? };
            let last = state.record.siblings.last_key_value();
            read.check(last.is_none_or(|(last, _)| *last < dot), Why::NotCanonical("values out of order"))?;
            state.record.siblings.insert(dot, sibling);
        }
        state.record.context = written.clone();
        state.record.siblings.keys().for_each(|dot| state.record.context.insert(*dot));
        let same = written_context(&state.record) == written;
        read.check(same, Why::NotCanonical("the context names the values' dots again"))?;
        let superseded = read.writes()?;
        let live = superseded.keys().any(|dot| state.record.siblings.contains_key(dot));
        read.check(!live, Why::NotCanonical("a value's write stands apart from it"))?;
        state.writes.extend(superseded);
        read.end()?;
        Ok(state)
    }
}

/// The context without the ranges that consist of the values' dots alone: those stand beside the values.
/// Stripped, that is usually nothing.
fn written_context(record: &Record) -> DotSet {
    let of_values = |range: &DotRange| {
        let dot = |counter| Dot { incarnation: range.incarnation, counter };
        let dots = range.last - range.first;
        dots < record.siblings.len() as u64
            && record.siblings.range(dot(range.first)..=dot(range.last)).count() as u64 == dots + 1
    };
    let mut out = DotSet::new();
    let ranges = record.context.ranges().iter().filter(|range| !of_values(range));
    ranges.for_each(|range| out.insert_range(*range));
    out
}

impl NodeClock {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + 12 * self.dots().ranges().len());
        out.put_u8(VERSION);
        put_dots(&mut out, self.dots());
        out.freeze()
    }

    /// Reads what [`NodeClock::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut read = Reader { bytes, what: "node clock" };
        read.version(VERSION)?;
        let dots = read.dots(MAX_CLOCK_RANGES)?;
        read.end()?;
        Ok(Self::of(dots))
    }
}

/// The opaque context that a client holds between a read and a write: bound to its key, and authenticated
/// under the newest key of the cluster. At most [`MAX_CONTEXT_BYTES`] long: where more would be needed it
/// claims less, but always the dots of the values that the client was shown. A write with less of a context
/// may leave a sibling; it never takes one away that its client has not seen.
pub fn encode_context_token(keys: &ContextKeys, namespace: NamespaceId, key: &[u8], seen: &Seen) -> Bytes {
    let mut writes = BytesMut::new();
    put_writes(&mut writes, seen.writes.len(), seen.writes.iter());
    let encode = |context: &Context| {
        let mut out = BytesMut::with_capacity(80 + 12 * context.ranges().len() + writes.len());
        out.put_u8(TOKEN_VERSION);
        out.put_u32(keys.newest());
        out.put_u64(namespace.0);
        out.put_u64(token(namespace, key));
        put_dots(&mut out, context);
        out.put_slice(&writes);
        let mac = keys.mac(keys.newest(), &out, key).unwrap_or_default();
        out.put_slice(&mac);
        out.freeze()
    };
    let whole = encode(&seen.context);
    if whole.len() <= MAX_CONTEXT_BYTES {
        return whole;
    }
    let shown: Context = seen.writes.keys().copied().filter(|dot| seen.context.covers(*dot)).collect();
    // What is left for ranges, at the most bytes that one can take.
    let room = MAX_CONTEXT_BYTES.saturating_sub(encode(&shown).len() + 8) / RANGE_BYTES_MAX;
    let mut largest: Vec<&DotRange> = seen.context.ranges().iter().collect();
    largest.sort_unstable_by_key(|range| (Reverse(range.last - range.first), **range));
    let mut context = shown;
    largest.into_iter().take(room).for_each(|range| context.insert_range(*range));
    encode(&context)
}

/// Reads what [`encode_context_token`] wrote under one of these keys: `BAD_CONTEXT` if it is malformed, too
/// long or forged, `FOREIGN_CONTEXT` if it belongs to another key or cluster.
pub fn decode_context_token(
    keys: &ContextKeys,
    namespace: NamespaceId,
    key: &[u8],
    bytes: &Bytes,
) -> Result<Seen, Failure> {
    if bytes.len() > MAX_CONTEXT_BYTES {
        let message =
            format!("the causal context has {} bytes; at most {MAX_CONTEXT_BYTES} are allowed", bytes.len());
        return Err(Failure::new(Reason::BadContext, message).with("limit_bytes", MAX_CONTEXT_BYTES));
    }
    let bad = |error: CodecError| Failure::new(Reason::BadContext, error.to_string());
    let mut read = Reader { bytes: bytes.clone(), what: "causal context" };
    let Origin { key_id, of_namespace, of_key } = read.origin().map_err(bad)?;
    let foreign = |of: &str| {
        let message = format!("the causal context belongs to another {of}");
        Err(Failure::new(Reason::ForeignContext, message))
    };
    let body = bytes.slice(..bytes.len().saturating_sub(MAC_BYTES));
    let Some(mac) = keys.mac(key_id, &body, key) else {
        return foreign("cluster, or is too old");
    };
    if of_namespace != namespace {
        return foreign("namespace");
    }
    if of_key != token(namespace, key) {
        return foreign("key");
    }
    read.seen(&mac).map_err(bad)
}

/// Where a token comes from, as it says itself.
struct Origin {
    key_id: u32,
    of_namespace: NamespaceId,
    of_key: u64,
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

/// What a write is beside its request.
fn put_rest_of_write(out: &mut BytesMut, write: &Write) {
    put_varint(out, write.issued_at_ms);
    out.put_u32(write.body);
}

fn put_writes<'a>(out: &mut BytesMut, count: usize, writes: impl Iterator<Item = (&'a Dot, &'a Write)>) {
    put_varint(out, count as u64);
    for (dot, write) in writes {
        put_dot(out, *dot);
        put_request(out, write.request);
        put_rest_of_write(out, write);
    }
}

/// The most bytes that one more range can take: an incarnation, its count, and two numbers.
const RANGE_BYTES_MAX: usize = 8 + 3 + 10 + 10;

/// Incarnations, each with its ranges: the counters left out before one, and those in it beyond the first.
fn put_dots(out: &mut BytesMut, dots: &DotSet) {
    let incarnations = || dots.ranges().chunk_by(|a, b| a.incarnation == b.incarnation);
    put_varint(out, incarnations().count() as u64);
    for ranges in incarnations() {
        ranges.first().into_iter().for_each(|range| out.put_u64(range.incarnation.0));
        put_varint(out, ranges.len() as u64);
        let mut least = 1;
        for range in ranges {
            put_varint(out, range.first.saturating_sub(least));
            put_varint(out, range.last - range.first);
            least = range.last.saturating_add(2);
        }
    }
}

struct Reader {
    bytes: Bytes,
    what: &'static str,
}

impl Reader {
    fn check(&self, holds: bool, why: Why) -> Result<(), CodecError> {
        if holds { Ok(()) } else { Err(CodecError { what: self.what, why }) }
    }

    fn take(&mut self, length: usize) -> Result<Bytes, CodecError> {
        self.check(length <= self.bytes.len(), Why::CutShort)?;
        Ok(self.bytes.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        // Not split off: that would count a reference for each number.
        let short = CodecError { what: self.what, why: Why::CutShort };
        let taken = *self.bytes.first_chunk().ok_or(short)?;
        self.bytes.advance(N);
        Ok(taken)
    }

    fn not_canonical(&self, why: &'static str) -> CodecError {
        CodecError { what: self.what, why: Why::NotCanonical(why) }
    }

    fn version(&mut self, newest: u8) -> Result<(), CodecError> {
        let [version] = self.array()?;
        self.check(version == 0 || version >= newest, Why::OldVersion(version))?;
        self.check(version == newest, Why::UnknownVersion)
    }

    /// The head of a token.
    fn origin(&mut self) -> Result<Origin, CodecError> {
        self.version(TOKEN_VERSION)?;
        let (key_id, of_namespace, of_key) = (self.u32()?, NamespaceId(self.u64()?), self.u64()?);
        Ok(Origin { key_id, of_namespace, of_key })
    }

    /// What follows the head of a token, if that ends with this keyed hash.
    fn seen(&mut self, mac: &[u8; MAC_BYTES]) -> Result<Seen, CodecError> {
        let body = self.bytes.len().checked_sub(MAC_BYTES);
        let body = body.ok_or(CodecError { what: self.what, why: Why::CutShort })?;
        let mut tail = Self { bytes: self.bytes.split_off(body), what: self.what };
        self.check(are_equal(&tail.array()?, mac), Why::Mac)?;
        let seen = Seen { context: self.dots(MAX_CONTEXT_RANGES)?, writes: self.writes()? };
        self.end()?;
        Ok(seen)
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
            self.check(low << shift >> shift == low, Why::NumberTooLarge)?;
            number |= low << shift;
            if byte < 0x80 {
                let shortest = byte != 0 || shift == 0;
                self.check(shortest, Why::NotCanonical("a number is written too long"))?;
                return Ok(number);
            }
        }
        self.check(false, Why::NumberTooLarge).map(|()| 0)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize) -> Result<u64, CodecError> {
        let count = self.varint()?;
        self.check(count <= (self.bytes.len() / least) as u64, Why::CutShort)?;
        Ok(count)
    }

    fn dot(&mut self) -> Result<Dot, CodecError> {
        let dot = Dot { incarnation: Incarnation(self.u64()?), counter: self.varint()? };
        self.check(dot.counter > 0, Why::NotCanonical("a dot without number"))?;
        Ok(dot)
    }

    fn request(&mut self) -> Result<RequestId, CodecError> {
        Ok(RequestId { client_id: ClientId(self.array().map(u128::from_be_bytes)?), seq: self.varint()? })
    }

    fn rest_of_write(&mut self, request: RequestId) -> Result<Write, CodecError> {
        Ok(Write { request, issued_at_ms: self.varint()?, body: self.u32()? })
    }

    fn writes(&mut self) -> Result<BTreeMap<Dot, Write>, CodecError> {
        let mut writes = BTreeMap::new();
        for _ in 0..self.count(DOT_BYTES + REQUEST_BYTES + 1 + 4)? {
            let (dot, request) = (self.dot()?, self.request()?);
            let ordered = writes.last_key_value().is_none_or(|(last, _)| *last < dot);
            self.check(ordered, Why::NotCanonical("writes out of order"))?;
            writes.insert(dot, self.rest_of_write(request)?);
        }
        Ok(writes)
    }

    /// A set of dots of at most so many ranges.
    fn dots(&mut self, most: usize) -> Result<DotSet, CodecError> {
        let mut dots = DotSet::new();
        let mut previous = None;
        for _ in 0..self.count(8 + 1 + 1 + 1)? {
            let incarnation = Incarnation(self.u64()?);
            let ordered = previous.is_none_or(|last| last < incarnation);
            self.check(ordered, Why::NotCanonical("incarnations out of order"))?;
            previous = Some(incarnation);
            let ranges = self.count(1 + 1)?;
            self.check(ranges > 0, Why::NotCanonical("an incarnation without dots"))?;
            let mut least = Some(1u64);
            for _ in 0..ranges {
                self.check(dots.ranges().len() < most, Why::TooManyRanges(most))?;
                let (skipped, more) = (self.varint()?, self.varint()?);
                let first = least.and_then(|least| least.checked_add(skipped));
                let last = first.and_then(|first| first.checked_add(more));
                let (Some(first), Some(last)) = (first, last) else {
                    return Err(CodecError { what: self.what, why: Why::NumberTooLarge });
                };
                dots.insert_range(DotRange { incarnation, first, last });
                least = last.checked_add(2);
            }
        }
        Ok(dots)
    }

    fn end(&self) -> Result<(), CodecError> {
        self.check(self.bytes.is_empty(), Why::Trailing)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::ContextKey;
    use super::super::record::tests::states;
    use super::*;
    use proptest::prelude::*;

    const NS: NamespaceId = NamespaceId(5);

    fn keys() -> ContextKeys {
        ContextKeys::new([ContextKey::new([7; 32])])
    }

    fn token_of(seen: &Seen) -> Bytes {
        encode_context_token(&keys(), NS, b"k", seen)
    }

    fn read_token(bytes: &Bytes) -> Result<Seen, Failure> {
        decode_context_token(&keys(), NS, b"k", bytes)
    }

    /// A token of these bytes, which need not make sense, with the right hash.
    fn signed(mut body: Vec<u8>) -> Bytes {
        let mac = keys().mac(keys().newest(), &body, b"k").unwrap();
        body.extend(mac);
        body.into()
    }

    fn unsigned(token: &Bytes) -> Vec<u8> {
        token[..token.len() - MAC_BYTES].to_vec()
    }

    /// As many ranges as asked for, of counters that take three bytes.
    fn gaps(ranges: u64) -> DotSet {
        (0..ranges).map(|n| Dot { incarnation: Incarnation(1), counter: 20_000 + 2 * n }).collect()
    }

    fn clock(dots: &[(u64, u64)]) -> NodeClock {
        NodeClock::of(dots.iter().map(|(i, c)| Dot { incarnation: Incarnation(*i), counter: *c }).collect())
    }

    proptest! {
        #[test]
        fn states_survive(state in states(), dots in proptest::collection::vec((1u64..4, 1u64..20), 0..30)) {
            prop_assert_eq!(State::decode(state.encode()), Ok(state.clone()));
            let mut other = state.clone();
            other.record.fill(&clock(&dots));
            prop_assert_eq!(State::decode(other.encode()), Ok(other.clone()));
            other.record.strip(&clock(&dots));
            prop_assert_eq!(State::decode(other.encode()), Ok(other));
        }

        #[test]
        fn clocks_survive(dots in proptest::collection::vec((1u64..4, 1u64..40), 0..30), sealed in 0u64..5) {
            let mut clock = clock(&dots);
            clock.seal(Incarnation(sealed), u64::MAX - sealed % 3);
            prop_assert_eq!(NodeClock::decode(clock.encode()), Ok(clock));
        }

        #[test]
        fn tokens_survive_and_know_their_key(state in states(), flip in 0usize..400) {
            let bytes = token_of(&state.seen());
            prop_assert_eq!(read_token(&bytes), Ok(state.seen()));
            let reason = |ns, key: &[u8], bytes: &Bytes| decode_context_token(&keys(), ns, key, bytes).map_err(|f| f.reason);
            prop_assert_eq!(reason(NS, b"l", &bytes), Err(Reason::ForeignContext));
            prop_assert_eq!(reason(NamespaceId(6), b"k", &bytes), Err(Reason::ForeignContext));
            let mut broken = bytes.to_vec();
            let at = flip % broken.len();
            broken[at] ^= 1 << (flip % 8);
            // What says where it comes from may have been changed into another place.
            let head = 1..1 + 4 + 8 + 8;
            let expected = if head.contains(&at) { Reason::ForeignContext } else { Reason::BadContext };
            prop_assert_eq!(reason(NS, b"k", &broken.into()), Err(expected));
        }

        #[test]
        fn foreign_bytes_are_errors(bytes in proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..200)) {
            let bytes = Bytes::from(bytes);
            let versioned = Bytes::from([&[VERSION][..], &bytes].concat());
            for input in [bytes, versioned] {
                if let Ok(state) = State::decode(input.clone()) {
                    prop_assert_eq!(state.encode(), input.clone(), "one value, one encoding");
                }
                if let Ok(clock) = NodeClock::decode(input.clone()) {
                    prop_assert_eq!(clock.encode(), input.clone());
                }
                let _ = read_token(&input);
                let _ = read_token(&signed(input.to_vec()));
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

        #[test]
        fn damaged_clocks_and_tokens_never_panic(state in states(), at in 0usize..2000, byte in any::<u8>()) {
            let clock = NodeClock::of(state.record.context.clone());
            let mut bytes = clock.encode().to_vec();
            let len = bytes.len();
            bytes[at % len] = byte;
            if let Ok(read) = NodeClock::decode(bytes.clone().into()) {
                prop_assert_eq!(read.encode(), Bytes::from(bytes));
            }
            // With a hash that fits, so that what it covers is looked at.
            let mut bytes = unsigned(&token_of(&state.seen()));
            let len = bytes.len();
            bytes[at % len] = byte;
            let bytes = signed(bytes);
            if let Ok(seen) = read_token(&bytes) {
                prop_assert_eq!(token_of(&seen), bytes);
            }
        }
    }

    #[test]
    fn older_and_newer_versions_are_refused_with_words() {
        let versioned = |bytes: Bytes, version: u8| Bytes::from([&[version], &bytes[1..]].concat());
        for (version, why) in [(1, Why::OldVersion(1)), (0, Why::UnknownVersion), (3, Why::UnknownVersion)] {
            let state = versioned(State::default().encode(), version);
            assert_eq!(State::decode(state).unwrap_err().why, why);
            let clock = versioned(NodeClock::new().encode(), version);
            assert_eq!(NodeClock::decode(clock).unwrap_err().why, why);
        }
        let token = |version: u8| {
            let body = versioned(unsigned(&token_of(&Seen::default())).into(), version);
            read_token(&signed(body.to_vec()))
        };
        for (version, why) in [(1, Why::OldVersion(1)), (2, Why::OldVersion(2)), (4, Why::UnknownVersion)] {
            let failure = token(version).unwrap_err();
            assert_eq!(failure.reason, Reason::BadContext);
            assert!(failure.message.contains(&why.to_string()), "{}", failure.message);
        }
        assert_eq!(token(TOKEN_VERSION), Ok(Seen::default()));
    }

    /// A client that knows the format can write any dots into a context, and cannot sign it.
    #[test]
    fn a_context_that_was_made_up_is_refused() {
        let forged = Dot { incarnation: Incarnation(9), counter: 1 << 40 };
        let seen = Seen { context: Context::from_iter([forged]), ..Seen::default() };
        let reason = |token: Bytes| read_token(&token).unwrap_err().reason;
        let of = |keys: &ContextKeys| encode_context_token(keys, NS, b"k", &seen);
        let (others, before) = (ContextKeys::new([ContextKey::new([8; 32])]), ContextKeys::default());
        assert_eq!(reason(of(&others)), Reason::ForeignContext, "of another cluster");
        assert_eq!(reason(of(&before)), Reason::ForeignContext, "from before there were keys");
        // With the id of the right key, which everybody sees.
        let mut claims = of(&others).to_vec();
        claims[1..5].copy_from_slice(&keys().newest().to_be_bytes());
        assert_eq!(reason(claims.into()), Reason::BadContext);
        // A real one for another key, whose name was changed.
        let mut moved = encode_context_token(&keys(), NS, b"l", &seen).to_vec();
        moved[13..21].copy_from_slice(&token(NS, b"k").to_be_bytes());
        assert_eq!(reason(moved.into()), Reason::BadContext);
        // The key before the newest is still believed.
        let both = ContextKeys::new(keys().iter().chain(others.iter()).cloned());
        assert_eq!(decode_context_token(&both, NS, b"k", &token_of(&seen)), Ok(seen.clone()));
        assert_eq!(decode_context_token(&both, NS, b"k", &of(&others)), Ok(seen));
    }

    #[test]
    fn a_stored_record_has_its_values_dot_once() {
        let mut state = State::default();
        let request = RequestId { client_id: ClientId(1), seq: 1 };
        let sibling = Sibling { stamp: Hlc(1), request, value: Bytes::from_static(b"v") };
        let write = Write { request, issued_at_ms: 1, body: 1 };
        let dot = Dot { incarnation: Incarnation(1), counter: 9 };
        state.update(&Seen::default(), dot, write, Some(sibling));
        let one_value = DOT_BYTES + 8 + REQUEST_BYTES + 1 + 1 + 4 + 1 + 1;
        assert_eq!(state.encode().len(), 1 + 1 + 1 + one_value + 1);
    }

    #[test]
    fn counts_are_not_believed() {
        // A state that claims 2^60 values and ends there.
        let mut out = BytesMut::from(&[VERSION, 0][..]);
        put_varint(&mut out, 1 << 60);
        assert_eq!(State::decode(out.freeze()).unwrap_err().why, Why::CutShort);
    }

    #[test]
    fn gaps_are_bounded() {
        let clock = |ranges: usize| NodeClock::of(gaps(ranges as u64));
        let at = clock(MAX_CLOCK_RANGES);
        assert_eq!(NodeClock::decode(at.encode()).as_ref(), Ok(&at));
        let why = NodeClock::decode(clock(MAX_CLOCK_RANGES + 1).encode()).unwrap_err().why;
        assert_eq!(why, Why::TooManyRanges(MAX_CLOCK_RANGES));
        let last = Dot { incarnation: Incarnation(1), counter: 20_000 };
        let next = |counter| Dot { counter, ..last };
        assert!(at.has_room_for(last) && at.has_room_for(next(20_001)) && !at.has_room_for(next(5)));
        assert!(clock(MAX_CLOCK_RANGES - 1).has_room_for(next(5)));

        let mut state = State::default();
        state.record.context = gaps(MAX_CONTEXT_RANGES as u64);
        assert_eq!(State::decode(state.encode()).as_ref(), Ok(&state));
        state.record.context = gaps(MAX_CONTEXT_RANGES as u64 + 1);
        assert_eq!(State::decode(state.encode()).unwrap_err().why, Why::TooManyRanges(MAX_CONTEXT_RANGES));
    }

    #[test]
    fn what_is_stored_is_what_can_be_read_back() {
        let mut state = State::default();
        state.record.context = gaps(MAX_CONTEXT_RANGES as u64);
        // Dots of values are not counted.
        let request = RequestId { client_id: ClientId(1), seq: 1 };
        let value = Bytes::from(vec![7; MAX_VALUE_BYTES]);
        let sibling = |value: &Bytes| Sibling { stamp: Hlc(1), request, value: value.clone() };
        let dot = |counter: u64| Dot { incarnation: Incarnation(2), counter: 2 * counter };
        let with = |state: &State, counter, value: &Bytes| {
            let mut more = state.clone();
            more.record.update(&DotSet::new(), dot(counter), Some(sibling(value)));
            more
        };
        let mut at = (1..=22).fold(state, |state, counter| with(&state, counter, &value));
        assert_eq!((at.ranges(), at.encode_readable()), (MAX_CONTEXT_RANGES, Ok(at.encode())));
        assert_eq!(State::decode(at.encode()).as_ref(), Ok(&at));
        let refused = |state: &State, expected: Why| {
            assert_eq!(state.encode_readable().unwrap_err().why, expected);
            assert_eq!(State::decode(state.encode()).unwrap_err().why, expected);
        };
        refused(&with(&at, 23, &vec![7; MAX_VALUE_BYTES + 1].into()), Why::ValueTooLong);
        refused(&(23..=24).fold(at.clone(), |state, counter| with(&state, counter, &value)), Why::TooLong);
        at.record.context.insert(dot(99));
        refused(&at, Why::TooManyRanges(MAX_CONTEXT_RANGES));
    }

    #[test]
    fn bytes_are_bounded() {
        let why = |bytes: usize| State::decode(vec![0; bytes].into()).unwrap_err().why;
        assert_eq!(why(MAX_PEER_MESSAGE_BYTES), Why::UnknownVersion);
        assert_eq!(why(MAX_PEER_MESSAGE_BYTES + 1), Why::TooLong);
        let mut out = BytesMut::from(&[VERSION, 0, 1][..]);
        put_dot(&mut out, Dot { incarnation: Incarnation(1), counter: 1 });
        out.put_u64(0);
        put_request(&mut out, RequestId { client_id: ClientId(1), seq: 1 });
        out.put_u8(0);
        put_varint(&mut out, MAX_VALUE_BYTES as u64 + 1);
        assert_eq!(State::decode(out.freeze()).unwrap_err().why, Why::ValueTooLong);
    }

    #[test]
    fn long_tokens_are_refused_at_the_bound() {
        let reason = |length: usize| read_token(&vec![0; length].into()).map_err(|f| f.message);
        assert!(reason(MAX_CONTEXT_BYTES).unwrap_err().contains("version is unknown"));
        assert!(reason(MAX_CONTEXT_BYTES + 1).unwrap_err().contains("at most"));
    }

    #[test]
    fn a_token_at_its_bound_claims_less_but_all_that_was_shown() {
        let shown = Dot { incarnation: Incarnation(1), counter: 20_002 };
        let request = RequestId { client_id: ClientId(1), seq: 1 };
        let writes = BTreeMap::from([(shown, Write { issued_at_ms: 1, request, body: 1 })]);
        let mut context = gaps(MAX_CONTEXT_RANGES as u64);
        context.insert_range(DotRange { incarnation: Incarnation(2), first: 1, last: 1_000 });
        let seen = Seen { context, writes };
        let bytes = token_of(&seen);
        assert!(bytes.len() <= MAX_CONTEXT_BYTES, "{}", bytes.len());
        let read = read_token(&bytes).unwrap();
        assert!(read.context.covers(shown) && seen.context.contains_all(&read.context));
        assert!(read.context.covers(Dot { incarnation: Incarnation(2), counter: 999 }), "large ranges first");
        assert_eq!(read.writes, seen.writes);
    }

    #[test]
    fn contexts_stay_small() {
        // Five replicas, a hundred incarnations, and a fallback that took every other of 10,000 writes.
        const HEAD: usize = 1 + 4 + 8 + 8;
        let replicas: DotSet = DotSet::new();
        let with = |mut dots: DotSet, incarnations: u64, last: u64| {
            (1..=incarnations)
                .for_each(|i| dots.insert_range(DotRange { incarnation: Incarnation(i), first: 1, last }));
            dots
        };
        let bytes = |context| token_of(&Seen { context, ..Seen::default() }).len();
        assert_eq!(bytes(with(replicas.clone(), 5, 100_000)), HEAD + 1 + 5 * 13 + 1 + MAC_BYTES);
        assert_eq!(bytes(with(replicas, 100, 100_000)), HEAD + 1 + 100 * 13 + 1 + MAC_BYTES);
        assert!(bytes(gaps(5_000)) < MAX_CONTEXT_BYTES / 6);
    }
}

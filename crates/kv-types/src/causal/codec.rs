//! The encodings of states, node clocks and context tokens, on disk and on the wire. Written by hand,
//! versioned by their first byte, canonical (one value, one encoding). Foreign bytes are an error and never a
//! panic; counts are believed only as far as the bytes that follow could hold them.
//!
//! Version 1 of all three (contexts as a vector with a cloud) is refused by name: no release wrote it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Context, Dot, DotRange, DotSet, Hlc, NodeClock, Record, Seen, Sibling, State, Write};
use crate::catalogue::token;
use crate::limits::{
    MAX_CLOCK_RANGES, MAX_CONTEXT_BYTES, MAX_CONTEXT_RANGES, MAX_PEER_MESSAGE_BYTES, MAX_VALUE_BYTES,
};
use crate::{ClientId, Failure, Incarnation, NamespaceId, Reason, RequestId};

/// States, node clocks and tokens have changed together so far.
const VERSION: u8 = 2;
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
    /// From before contexts were ranges.
    #[error("it is of version 1, which this version of Quorate does not read")]
    VersionOne,
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
    /// The checksum is another.
    #[error("its checksum does not fit")]
    Checksum,
    /// What could be written in another way, or out of order.
    #[error("{0}")]
    NotCanonical(&'static str),
}

impl State {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let values: usize = self.record.siblings.values().map(|sibling| sibling.value.len() + 64).sum();
        let ranges = self.record.context.ranges().len() * 12;
        let mut out = BytesMut::with_capacity(16 + ranges + values + self.writes.len() * 40);
        out.put_u8(VERSION);
        put_dots(&mut out, &written_context(&self.record));
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
        read.version()?;
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
        read.version()?;
        let dots = read.dots(MAX_CLOCK_RANGES)?;
        read.end()?;
        Ok(Self::of(dots))
    }
}

/// The opaque context that a client holds between a read and a write: bound to its key, with a checksum. At
/// most [`MAX_CONTEXT_BYTES`] long: where more would be needed it claims less, but always the dots of the
/// values that the client was shown. A write with less of a context may leave a sibling; it never takes one
/// away that its client has not seen.
pub fn encode_context_token(namespace: NamespaceId, key: &[u8], seen: &Seen) -> Bytes {
    let mut writes = BytesMut::new();
    put_writes(&mut writes, seen.writes.len(), seen.writes.iter());
    let encode = |context: &Context| {
        let mut out = BytesMut::with_capacity(64 + writes.len());
        out.put_u8(VERSION);
        out.put_u64(namespace.0);
        out.put_u64(token(namespace, key));
        put_dots(&mut out, context);
        out.put_slice(&writes);
        out.put_u32(crc32c::crc32c(&out));
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

/// Reads what [`encode_context_token`] wrote: `BAD_CONTEXT` if it is malformed or too long, `FOREIGN_CONTEXT`
/// if it belongs to another key.
pub fn decode_context_token(namespace: NamespaceId, key: &[u8], bytes: &Bytes) -> Result<Seen, Failure> {
    if bytes.len() > MAX_CONTEXT_BYTES {
        let message =
            format!("the causal context has {} bytes; at most {MAX_CONTEXT_BYTES} are allowed", bytes.len());
        return Err(Failure::new(Reason::BadContext, message).with("limit_bytes", MAX_CONTEXT_BYTES));
    }
    let (of_namespace, of_key, seen) =
        read_token(bytes).map_err(|error| Failure::new(Reason::BadContext, error.to_string()))?;
    if of_namespace != namespace || of_key != token(namespace, key) {
        let other = if of_namespace == namespace { "key" } else { "namespace" };
        return Err(Failure::new(
            Reason::ForeignContext,
            format!("the causal context belongs to another {other}"),
        ));
    }
    Ok(seen)
}

fn read_token(bytes: &Bytes) -> Result<(NamespaceId, u64, Seen), CodecError> {
    let mut read = Reader { bytes: bytes.clone(), what: "causal context" };
    let body = bytes.len().checked_sub(4).ok_or(CodecError { what: read.what, why: Why::CutShort })?;
    read.bytes = bytes.slice(..body);
    let mut sum = Reader { bytes: bytes.slice(body..), what: read.what };
    read.check(sum.u32()? == crc32c::crc32c(&read.bytes), Why::Checksum)?;
    read.version()?;
    let (of_namespace, of_key) = (NamespaceId(read.u64()?), read.u64()?);
    let seen = Seen { context: read.dots(MAX_CONTEXT_RANGES)?, writes: read.writes()? };
    read.end()?;
    Ok((of_namespace, of_key, seen))
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

    fn version(&mut self) -> Result<(), CodecError> {
        let [version] = self.array()?;
        self.check(version != 1, Why::VersionOne)?;
        self.check(version == VERSION, Why::UnknownVersion)
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
    use super::super::record::tests::states;
    use super::*;
    use proptest::prelude::*;

    const NS: NamespaceId = NamespaceId(5);

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
            let bytes = encode_context_token(NS, b"k", &state.seen());
            prop_assert_eq!(decode_context_token(NS, b"k", &bytes), Ok(state.seen()));
            let reason = |ns, key: &[u8], bytes: &Bytes| decode_context_token(ns, key, bytes).map_err(|f| f.reason);
            prop_assert_eq!(reason(NS, b"l", &bytes), Err(Reason::ForeignContext));
            prop_assert_eq!(reason(NamespaceId(6), b"k", &bytes), Err(Reason::ForeignContext));
            let mut broken = bytes.to_vec();
            let at = flip % broken.len();
            broken[at] ^= 1 << (flip % 8);
            prop_assert_eq!(reason(NS, b"k", &broken.into()), Err(Reason::BadContext));
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

        #[test]
        fn damaged_clocks_and_tokens_never_panic(state in states(), at in 0usize..2000, byte in any::<u8>()) {
            let clock = NodeClock::of(state.record.context.clone());
            let mut bytes = clock.encode().to_vec();
            let len = bytes.len();
            bytes[at % len] = byte;
            if let Ok(read) = NodeClock::decode(bytes.clone().into()) {
                prop_assert_eq!(read.encode(), Bytes::from(bytes));
            }
            // With a checksum that fits, so that what follows it is looked at.
            let mut bytes = encode_context_token(NS, b"k", &state.seen()).to_vec();
            bytes.truncate(bytes.len() - 4);
            let len = bytes.len();
            bytes[at % len] = byte;
            let sum = crc32c::crc32c(&bytes);
            bytes.extend(sum.to_be_bytes());
            if let Ok(seen) = decode_context_token(NS, b"k", &bytes.clone().into()) {
                prop_assert_eq!(encode_context_token(NS, b"k", &seen), Bytes::from(bytes));
            }
        }
    }

    #[test]
    fn older_and_newer_versions_are_refused_with_words() {
        let token_of = |version: u8| {
            let mut bytes = encode_context_token(NS, b"k", &Seen::default()).to_vec();
            bytes.truncate(bytes.len() - 4);
            bytes[0] = version;
            let sum = crc32c::crc32c(&bytes);
            bytes.extend(sum.to_be_bytes());
            Bytes::from(bytes)
        };
        for (version, why) in [(1, Why::VersionOne), (0, Why::UnknownVersion), (3, Why::UnknownVersion)] {
            let versioned = |bytes: Bytes| Bytes::from([&[version], &bytes[1..]].concat());
            assert_eq!(State::decode(versioned(State::default().encode())).unwrap_err().why, why);
            assert_eq!(NodeClock::decode(versioned(NodeClock::new().encode())).unwrap_err().why, why);
            let failure = decode_context_token(NS, b"k", &token_of(version)).unwrap_err();
            assert_eq!(failure.reason, Reason::BadContext);
            assert!(failure.message.contains(&why.to_string()), "{}", failure.message);
        }
        assert_eq!(decode_context_token(NS, b"k", &token_of(VERSION)), Ok(Seen::default()));
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
        let reason =
            |length: usize| decode_context_token(NS, b"k", &vec![0; length].into()).map_err(|f| f.message);
        assert!(reason(MAX_CONTEXT_BYTES).unwrap_err().contains("checksum"));
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
        let bytes = encode_context_token(NS, b"k", &seen);
        assert!(bytes.len() <= MAX_CONTEXT_BYTES, "{}", bytes.len());
        let read = decode_context_token(NS, b"k", &bytes).unwrap();
        assert!(read.context.covers(shown) && seen.context.contains_all(&read.context));
        assert!(read.context.covers(Dot { incarnation: Incarnation(2), counter: 999 }), "large ranges first");
        assert_eq!(read.writes, seen.writes);
    }

    #[test]
    fn contexts_stay_small() {
        // Five replicas, a hundred incarnations, and a fallback that took every other of 10,000 writes.
        let replicas: DotSet = DotSet::new();
        let with = |mut dots: DotSet, incarnations: u64, last: u64| {
            (1..=incarnations)
                .for_each(|i| dots.insert_range(DotRange { incarnation: Incarnation(i), first: 1, last }));
            dots
        };
        let bytes = |context| encode_context_token(NS, b"k", &Seen { context, ..Seen::default() }).len();
        assert_eq!(bytes(with(replicas.clone(), 5, 100_000)), 1 + 8 + 8 + 1 + 5 * 13 + 1 + 4);
        assert_eq!(bytes(with(replicas, 100, 100_000)), 1 + 8 + 8 + 1 + 100 * 13 + 1 + 4);
        assert!(bytes(gaps(5_000)) < MAX_CONTEXT_BYTES / 6);
    }
}

//! Where the rows of this crate are: tables 48 to 55 of kv-storage, without 50 and 51 (where requests were
//! once), and a few entries of small state. Every
//! key begins with ring and ring partition (hints: with their target), so that a ring partition moves or goes
//! as one range. Numbers and layouts are part of the format on disk.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_storage::TableId;
use kv_types::catalogue::token;
use kv_types::causal::{CodecError, Dot, NodeClock, State};
use kv_types::{Incarnation, NamespaceId, NodeId, RingId, RingPartition};

/// ring, ring partition, namespace, key: the state of a key.
pub const RECORDS: TableId = TableId::new(48);
/// ring, ring partition: [`ClockRow`].
pub(crate) const CLOCKS: TableId = TableId::new(49);
/// target, ring, ring partition, namespace, key, number: what the target has still to get.
pub(crate) const HINTS: TableId = TableId::new(52);
/// As `RECORDS`, without value: the keys that have siblings.
pub(crate) const CONFLICTS: TableId = TableId::new(53);
/// As `RECORDS`, without value: the records that claim what the node clock does not have.
pub(crate) const AHEAD: TableId = TableId::new(54);
/// A journal with a stream for each ring partition: which dots are of which key, in the order in which they
/// came to this node. The ids are counted from 1.
pub(crate) const DOT_LOG: TableId = TableId::new(55);

/// Small state: this directory's incarnation.
pub(crate) const INCARNATION: &[u8] = b"dynamo/incarnation";
/// Small state: the incarnation that lacks nothing, and since when.
pub(crate) const WHOLE: &[u8] = b"dynamo/whole";

/// A ring partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slice {
    pub(crate) ring: RingId,
    pub(crate) partition: RingPartition,
}

/// A key with where it lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) slice: Slice,
    pub(crate) namespace: NamespaceId,
    pub(crate) key: Bytes,
}

impl Slice {
    pub(crate) fn prefix(self) -> BytesMut {
        let mut out = BytesMut::with_capacity(64);
        out.put_u32(self.ring.0);
        out.put_u32(self.partition.0);
        out
    }

    pub(crate) fn clock_key(self) -> BytesMut {
        self.prefix()
    }

    pub(crate) fn namespace_prefix(self, namespace: NamespaceId) -> BytesMut {
        let mut out = self.prefix();
        out.put_u64(namespace.0);
        out
    }

    /// What all hints for a target and of this ring partition begin with.
    pub(crate) fn hints_prefix(self, target: NodeId) -> BytesMut {
        let mut out = BytesMut::with_capacity(64);
        out.put_u64(target.0);
        out.put_slice(&self.prefix());
        out
    }

    pub(crate) fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            ring: RingId(bytes.try_get_u32().ok()?),
            partition: RingPartition(bytes.try_get_u32().ok()?),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slice, namespace, key } = self;
        write!(f, "{}/{}/{namespace}/{}", slice.ring, slice.partition.0, key.escape_ascii())
    }
}

impl Place {
    pub(crate) fn record_key(&self) -> BytesMut {
        let mut out = self.slice.namespace_prefix(self.namespace);
        out.put_slice(&self.key);
        out
    }

    /// The reverse of [`Self::record_key`].
    pub(crate) fn of_record_key(mut bytes: &[u8]) -> Option<Self> {
        let slice = Slice::read(&mut bytes)?;
        let namespace = NamespaceId(bytes.try_get_u64().ok()?);
        Some(Self { slice, namespace, key: Bytes::copy_from_slice(bytes) })
    }

    pub(crate) fn hint_prefix(&self, target: NodeId) -> BytesMut {
        let mut out = BytesMut::with_capacity(64 + self.key.len());
        out.put_u64(target.0);
        out.put_slice(&self.slice.prefix());
        out.put_u64(self.namespace.0);
        out.put_u16(u16::try_from(self.key.len()).unwrap_or(u16::MAX));
        out.put_slice(&self.key);
        out
    }

    pub(crate) fn hint_key(&self, target: NodeId, number: u32) -> BytesMut {
        let mut out = self.hint_prefix(target);
        out.put_u32(number);
        out
    }

    /// The reverse of [`Self::hint_key`].
    pub(crate) fn of_hint_key(mut bytes: &[u8]) -> Option<(NodeId, Self, u32)> {
        let target = NodeId(bytes.try_get_u64().ok()?);
        let slice = Slice::read(&mut bytes)?;
        let namespace = NamespaceId(bytes.try_get_u64().ok()?);
        let length = usize::from(bytes.try_get_u16().ok()?);
        let key = Bytes::copy_from_slice(bytes.get(..length)?);
        let number = bytes.get(length..)?.try_get_u32().ok()?;
        Some((target, Self { slice, namespace, key }, number))
    }
}

/// Where the rows of some namespaces are that begin with ring, ring partition and namespace: from (inclusive)
/// to (exclusive).
pub(crate) fn rows_of(slice: Slice, (first, last): (u64, u64)) -> (BytesMut, BytesMut) {
    let end = NamespaceId(last.saturating_add(1));
    (slice.namespace_prefix(NamespaceId(first)), slice.namespace_prefix(end))
}

/// As [`rows_of`], of the hints for a target.
pub(crate) fn hints_of(target: NodeId, slice: Slice, run: (u64, u64)) -> (BytesMut, BytesMut) {
    let (from, to) = rows_of(slice, run);
    let of_target = |rest: BytesMut| {
        let mut key = BytesMut::with_capacity(32);
        key.put_u64(target.0);
        key.put_slice(&rest);
        key
    };
    (of_target(from), of_target(to))
}

/// The prefix that all hints for the same target and key have.
pub(crate) fn prefix_of_hint_key(key: &Bytes) -> Option<Bytes> {
    Some(key.slice(..key.len().checked_sub(size_of::<u32>())?))
}

/// The smallest key after this one.
pub(crate) fn key_after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// The key after every key with this prefix.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// Version 1, of both, was without this byte. No release wrote it.
const VERSION: u8 = 2;
/// Of [`ClockRow`]. Before it the row began with a count, whose first byte was 0.
const CLOCK_VERSION: u8 = 3;

/// A row of the hint table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hint {
    /// It counted towards W: it is data, and never dropped.
    pub(crate) counted: bool,
    /// A primary's note that the target lacks these writes; the record itself is read when it is sent.
    pub(crate) note: bool,
    pub(crate) state: State,
}

impl Hint {
    /// Its bytes, if they can be read back.
    pub(crate) fn encode(&self) -> Result<Bytes, CodecError> {
        let state = self.state.encode_readable()?;
        let mut out = BytesMut::with_capacity(2 + state.len());
        out.put_u8(VERSION);
        out.put_u8(u8::from(self.counted) | u8::from(self.note) << 1);
        out.put_slice(&state);
        Ok(out.freeze())
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        let (version, flags) = (bytes.try_get_u8().ok()?, bytes.try_get_u8().ok()?);
        if version != VERSION {
            return None;
        }
        let state = State::decode(bytes).ok()?;
        Some(Self { counted: flags & 1 != 0, note: flags & 2 != 0, state })
    }

    /// Gathers another hint for the same target and key.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.counted |= other.counted;
        self.note &= other.note;
        self.state.merge(&other.state);
    }
}

/// A hint to deliver, as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) row: Bytes,
    pub(crate) place: Place,
    pub(crate) value: Bytes,
}

/// The node clock of a ring partition, as it was when the dot log was so long. What the log got since is
/// added to it when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ClockRow {
    /// The last entry of the dot log whose dots the clock has.
    pub(crate) entry: u64,
    /// Requests that were issued before this may have been forgotten.
    pub(crate) forgotten_ms: u64,
    pub(crate) clock: NodeClock,
}

impl ClockRow {
    pub(crate) fn encode(&self) -> BytesMut {
        let clock = self.clock.encode();
        let mut out = BytesMut::with_capacity(17 + clock.len());
        out.put_u8(CLOCK_VERSION);
        out.put_u64(self.entry);
        out.put_u64(self.forgotten_ms);
        out.put_slice(&clock);
        out
    }

    /// Errors: what is wrong with it.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, &'static str> {
        let version = bytes.try_get_u8().map_err(|_| "a node clock is empty")?;
        if version != CLOCK_VERSION {
            return Err(
                "the node clocks are of another version of the store: start the one that wrote this data directory, or an empty directory",
            );
        }
        let short = |_| "a node clock is too short";
        let (entry, forgotten_ms) =
            (bytes.try_get_u64().map_err(short)?, bytes.try_get_u64().map_err(short)?);
        let clock = NodeClock::decode(bytes).map_err(|_| "a node clock cannot be read")?;
        Ok(Self { entry, forgotten_ms, clock })
    }
}

/// What is known of a request that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) issued_at_ms: u64,
    pub(crate) body: u32,
    /// Hash of namespace and key.
    pub(crate) token: u64,
    /// Usually one.
    pub(crate) dots: Vec<Dot>,
}

impl Taken {
    /// Whether the request was one of this key.
    pub(crate) fn is_of(&self, place: &Place) -> bool {
        self.token == token(place.namespace, &place.key)
    }

    /// Adds the dots that another replica knows of the same request for the same key; whether there were any.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        let before = self.dots.len();
        if self.token == other.token {
            let new: Vec<Dot> = other.dots.iter().filter(|dot| !self.dots.contains(dot)).copied().collect();
            self.dots.extend(new);
        }
        self.dots.len() > before
    }

    pub(crate) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(21 + 16 * self.dots.len());
        out.put_u8(VERSION);
        out.put_u64(self.issued_at_ms);
        out.put_u32(self.body);
        out.put_u64(self.token);
        for dot in &self.dots {
            out.put_u64(dot.incarnation.0);
            out.put_u64(dot.counter);
        }
        out
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (issued_at_ms, body) = (bytes.try_get_u64().ok()?, bytes.try_get_u32().ok()?);
        let token = bytes.try_get_u64().ok()?;
        let mut dots = Vec::new();
        while bytes.has_remaining() {
            let incarnation = Incarnation(bytes.try_get_u64().ok()?);
            dots.push(Dot { incarnation, counter: bytes.try_get_u64().ok()? });
        }
        Some(Self { issued_at_ms, body, token, dots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive() {
        let slice = Slice { ring: RingId(1), partition: RingPartition(255) };
        let place = Place { slice, namespace: NamespaceId(3), key: Bytes::from_static(b"k\0\xff") };
        assert_eq!(Place::of_record_key(&place.record_key()), Some(place.clone()));
        assert_eq!(Place::of_hint_key(&place.hint_key(NodeId(4), 7)), Some((NodeId(4), place.clone(), 7)));
        assert_eq!(Place::of_hint_key(b"short"), None);
        let hint = place.hint_key(NodeId(4), 7).freeze();
        assert_eq!(prefix_of_hint_key(&hint), Some(place.hint_prefix(NodeId(4)).freeze()));
        assert_eq!(prefix_of_hint_key(&Bytes::from_static(b"1")), None);
    }

    #[test]
    fn rows_survive() {
        let taken = Taken {
            issued_at_ms: 1,
            body: 2,
            token: 3,
            dots: vec![Dot { incarnation: Incarnation(4), counter: 5 }],
        };
        assert_eq!(Taken::decode(taken.encode().freeze()), Some(taken.clone()));
        assert_eq!(Taken::decode(taken.encode().freeze().slice(..30)), None);
        for (counted, note) in [(false, false), (true, false), (false, true)] {
            let hint = Hint { counted, note, state: State::default() };
            assert_eq!(Hint::decode(hint.encode().unwrap()), Some(hint));
        }
        assert_eq!(Hint::decode(Bytes::new()), None);
        let mut clock = NodeClock::new();
        (1..9).for_each(|counter| clock.add(Dot { incarnation: Incarnation(4), counter }));
        let row = ClockRow { entry: 7, forgotten_ms: 8, clock };
        let bytes = row.encode().freeze();
        assert_eq!(ClockRow::decode(bytes.clone()), Ok(row));
        for cut in 0..bytes.len() {
            assert!(ClockRow::decode(bytes.slice(..cut)).is_err(), "{cut}");
        }
        let before = [&9u64.to_be_bytes()[..], &NodeClock::new().encode()].concat();
        assert!(ClockRow::decode(before.into()).unwrap_err().contains("another version"));
    }

    #[test]
    fn a_prefix_ends() {
        assert_eq!(prefix_end(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(prefix_end(&[1, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255]), None);
    }
}

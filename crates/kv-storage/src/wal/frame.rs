//! The bytes of the log: frames, and the records in them.
//!
//! A frame is what one `fdatasync` made durable, so a valid frame proves that everything before it was
//! durable:
//!
//! ```text
//! magic u32 | payload length u32 | CRC32C u32 | kind u8, version u8, 0 u16 |
//! durable u64 | number u64 | payload | 0..7 zeros
//! ```
//!
//! The checksum covers segment id and offset (a frame is valid in one place only), the header and the
//! payload. `durable` is the offset up to which this segment was durable when the frame was written. Frames
//! start at multiples of eight. The payload of a batch is a sequence of records: `type u8 | length u32 |
//! body`. A Raft entry has a checksum of its own in its body, because it is also read alone.

use bytes::Bytes;

use crate::codec::{Cursor, put_bytes};

const MAGIC: u32 = 0x5157_4631;
/// Version of frames and of the batches in them: the first had no journals.
const VERSION: u8 = 2;
pub(crate) const HEADER: usize = 32;
const ALIGN: usize = 8;
/// Bytes before the body of a record.
pub(crate) const RECORD_HEAD: usize = 5;
/// Bytes of a Raft entry before its payload.
pub(crate) const ENTRY_HEAD: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first frame of a segment: all small state.
    Head = 1,
    /// Records.
    Batch = 2,
}

/// A frame as found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: Kind,
    pub(crate) durable: u64,
    pub(crate) number: u64,
    pub(crate) payload: &'a [u8],
    /// Where the payload starts in the segment.
    pub(crate) payload_at: usize,
    /// Where the next frame starts.
    pub(crate) end: usize,
}

/// What is found at an offset of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Frame(Frame<'a>),
    /// A checksum that holds over a format that this release does not know.
    Unknown(String),
    Nothing,
}

pub(crate) fn aligned(n: usize) -> usize {
    n.div_ceil(ALIGN) * ALIGN
}

fn checksum(segment: u64, offset: u64, header: &[u8], payload: &[u8]) -> u32 {
    let mut salt = [0; 16];
    let (a, b) = salt.split_at_mut(8);
    a.copy_from_slice(&segment.to_le_bytes());
    b.copy_from_slice(&offset.to_le_bytes());
    let head = header.get(..8).unwrap_or_default();
    let rest = header.get(12..HEADER).unwrap_or_default();
    [&salt, head, rest, payload].iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part))
}

/// Starts a frame in an empty buffer; the payload is appended by the caller.
pub(crate) fn begin(buf: &mut Vec<u8>) {
    buf.clear();
    buf.resize(HEADER, 0);
}

/// Completes the frame in `buf` for its place in the log.
pub(crate) fn seal(buf: &mut Vec<u8>, kind: Kind, segment: u64, offset: u64, number: u64) {
    let len = buf.len() - HEADER;
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(&MAGIC.to_le_bytes());
    header.extend_from_slice(&(len as u32).to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&[kind as u8, VERSION, 0, 0]);
    header.extend_from_slice(&offset.to_le_bytes());
    header.extend_from_slice(&number.to_le_bytes());
    let sum = checksum(segment, offset, &header, buf.get(HEADER..).unwrap_or_default());
    if let Some(target) = header.get_mut(8..12) {
        target.copy_from_slice(&sum.to_le_bytes());
    }
    if let Some(target) = buf.get_mut(..HEADER) {
        target.copy_from_slice(&header);
    }
    buf.resize(aligned(buf.len()), 0);
}

/// Reads what is at `offset` of a segment, of which `bytes` are all.
pub(crate) fn read(segment: u64, bytes: &[u8], offset: usize) -> Found<'_> {
    read_from(segment, bytes, 0, offset)
}

/// Reads what is at `offset` of a segment, of which `bytes` are those from `base` on.
pub(crate) fn read_from(segment: u64, bytes: &[u8], base: usize, offset: usize) -> Found<'_> {
    let parse = || -> Option<Found<'_>> {
        let place = offset.checked_sub(base)?;
        let header = bytes.get(place..place.checked_add(HEADER)?)?;
        let mut c = Cursor::new(header);
        if c.u32()? != MAGIC {
            return None;
        }
        let (len, sum) = (c.u32()? as usize, c.u32()?);
        let (kind, version, _, durable, number) = (c.u8()?, c.u8()?, c.u16()?, c.u64()?, c.u64()?);
        let payload_at = offset + HEADER;
        let end = payload_at.checked_add(len)?;
        let payload = bytes.get(payload_at - base..end - base)?;
        if checksum(segment, offset as u64, header, payload) != sum {
            return None;
        }
        let kind = match kind {
            1 => Kind::Head,
            2 => Kind::Batch,
            other => return Some(Found::Unknown(format!("frame kind {other}"))),
        };
        if version != VERSION {
            return Some(Found::Unknown(format!("frame version {version}")));
        }
        Some(Found::Frame(Frame { kind, durable, number, payload, payload_at, end: aligned(end) }))
    };
    parse().unwrap_or(Found::Nothing)
}

/// The first valid frame at or after `from`, if any.
pub(crate) fn find(segment: u64, bytes: &[u8], from: usize) -> Option<usize> {
    (aligned(from)..bytes.len())
        .step_by(ALIGN)
        .find(|at| !matches!(read(segment, bytes, *at), Found::Nothing))
}

const ENTRY: u8 = 1;
const COPIED_ENTRY: u8 = 2;
const TRUNCATE: u8 = 3;
const SMALL_PUT: u8 = 4;
const SMALL_DELETE: u8 = 5;
const DATA: u8 = 6;

/// A record as found in a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A Raft entry; `copied` ones were moved from an older segment and change nothing else.
    Entry { copied: bool, entry: EntryHead, payload_at: usize, payload: &'a [u8] },
    /// Raft entries above `after` (all, if `None`) are gone.
    Truncate { group: u32, after: Option<u64> },
    /// Small state.
    Small { key: &'a [u8], value: Option<&'a [u8]> },
    /// An encoded batch.
    Data(&'a [u8]),
}

/// The bytes before the payload of a Raft entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHead {
    pub(crate) group: u32,
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) index: u64,
}

impl EntryHead {
    /// The head, with a checksum over itself (with zeros in its place) and the payload.
    fn encode(&self, sum: u32) -> [u8; ENTRY_HEAD] {
        // The first two fields as one number: the same bytes as one after the other.
        let first = u64::from(sum) << 32 | u64::from(self.group);
        let words = [first, self.term, self.node, self.index];
        let mut out = [0; ENTRY_HEAD];
        for (to, from) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        out
    }

    /// Splits the body of an entry; `None` if it is not whole.
    pub(crate) fn decode(body: &[u8]) -> Option<(EntryHead, &[u8])> {
        let (bytes, payload) = body.split_at_checked(ENTRY_HEAD)?;
        let mut c = Cursor::new(bytes);
        let (group, sum) = (c.u32()?, c.u32()?);
        let head = EntryHead { group, term: c.u64()?, node: c.u64()?, index: c.u64()? };
        let expected = crc32c::crc32c_append(crc32c::crc32c(&head.encode(0)), payload);
        (expected == sum).then_some((head, payload))
    }
}

#[inline]
fn record(buf: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    buf.push(kind);
    buf.extend_from_slice(&(len as u32).to_le_bytes());
    for part in parts {
        buf.extend_from_slice(part);
    }
}

pub(crate) fn put_entry(buf: &mut Vec<u8>, copied: bool, head: EntryHead, payload: &[u8]) {
    record(buf, if copied { COPIED_ENTRY } else { ENTRY }, &[&head.encode(0), payload]);
    // The checksum in one pass over the body, which now lies in one piece.
    let at = buf.len() - payload.len() - ENTRY_HEAD;
    let sum = crc32c::crc32c(buf.get(at..).unwrap_or_default());
    if let Some(target) = buf.get_mut(at + 4..at + 8) {
        target.copy_from_slice(&sum.to_le_bytes());
    }
}

pub(crate) fn put_truncate(buf: &mut Vec<u8>, group: u32, after: Option<u64>) {
    let keeps = u8::from(after.is_some());
    record(buf, TRUNCATE, &[&group.to_le_bytes(), &[keeps], &after.unwrap_or(0).to_le_bytes()]);
}

pub(crate) fn put_small(buf: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    match value {
        Some(value) => record(buf, SMALL_PUT, &[&(key.len() as u32).to_le_bytes(), key, value]),
        None => record(buf, SMALL_DELETE, &[key]),
    }
}

/// `encoded` has room for the sequence number in its first eight bytes.
pub(crate) fn put_data(buf: &mut Vec<u8>, seq: u64, encoded: &Bytes) {
    record(buf, DATA, &[&seq.to_le_bytes(), encoded.get(crate::batch::BATCH_HEAD..).unwrap_or_default()]);
}

/// The records of a frame's payload; `None` where one cannot be understood.
pub(crate) fn records(frame: &Frame<'_>) -> Option<Vec<RecordAt>> {
    let mut c = Cursor::new(frame.payload);
    let mut out = Vec::new();
    while !c.is_empty() {
        let (kind, len) = (c.u8()?, c.u32()? as usize);
        let at = c.position();
        c.take(len)?;
        out.push(RecordAt { kind, at, len });
    }
    Some(out)
}

/// Where a record is in a payload.
pub(crate) struct RecordAt {
    kind: u8,
    at: usize,
    len: usize,
}

impl RecordAt {
    pub(crate) fn decode<'a>(&self, frame: &Frame<'a>) -> Option<Record<'a>> {
        let body = frame.payload.get(self.at..self.at.checked_add(self.len)?)?;
        let mut c = Cursor::new(body);
        Some(match self.kind {
            ENTRY | COPIED_ENTRY => {
                let (entry, payload) = EntryHead::decode(body)?;
                Record::Entry {
                    copied: self.kind == COPIED_ENTRY,
                    entry,
                    payload_at: frame.payload_at + self.at,
                    payload,
                }
            }
            TRUNCATE => {
                let (group, keeps, after) = (c.u32()?, c.u8()?, c.u64()?);
                Record::Truncate { group, after: (keeps != 0).then_some(after) }
            }
            SMALL_PUT => {
                let key = c.bytes()?;
                Record::Small { key, value: Some(body.get(c.position()..)?) }
            }
            SMALL_DELETE => Record::Small { key: body, value: None },
            DATA => Record::Data(body),
            _ => return None,
        })
    }
}

/// The content of the first frame of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// The segment before and where it ended; 0, 0 in the very first.
    pub(crate) previous: u64,
    pub(crate) previous_end: u64,
    /// The last data batch of the log before this segment.
    pub(crate) last_seq: u64,
    pub(crate) small: Vec<(Bytes, Bytes)>,
}

const HEAD_VERSION: u16 = 1;

impl Head {
    pub(crate) fn encode<'a>(
        buf: &mut Vec<u8>,
        (previous, previous_end): (u64, u64),
        last_seq: u64,
        small: impl ExactSizeIterator<Item = (&'a Bytes, &'a Bytes)>,
    ) {
        buf.extend_from_slice(&HEAD_VERSION.to_le_bytes());
        buf.extend_from_slice(&previous.to_le_bytes());
        buf.extend_from_slice(&previous_end.to_le_bytes());
        buf.extend_from_slice(&last_seq.to_le_bytes());
        buf.extend_from_slice(&(small.len() as u32).to_le_bytes());
        for (key, value) in small {
            put_bytes(buf, key);
            put_bytes(buf, value);
        }
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Head> {
        let mut c = Cursor::new(payload);
        if c.u16()? != HEAD_VERSION {
            return None;
        }
        let (previous, previous_end, last_seq, n) = (c.u64()?, c.u64()?, c.u64()?, c.u32()?);
        let mut small = Vec::new();
        for _ in 0..n {
            small.push((Bytes::copy_from_slice(c.bytes()?), Bytes::copy_from_slice(c.bytes()?)));
        }
        c.is_empty().then_some(Head { previous, previous_end, last_seq, small })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame_of(payload: &[u8], segment: u64, offset: u64) -> Vec<u8> {
        let mut buf = Vec::new();
        begin(&mut buf);
        buf.extend_from_slice(payload);
        seal(&mut buf, Kind::Batch, segment, offset, 9);
        buf
    }

    #[test]
    fn a_frame_is_valid_only_where_it_was_written() {
        let mut bytes = vec![0; 64];
        bytes.extend(frame_of(b"hello", 7, 64));
        let Found::Frame(f) = read(7, &bytes, 64) else { panic!("no frame") };
        assert_eq!((f.payload, f.durable, f.number, f.end), (&b"hello"[..], 64, 9, 64 + 40));
        assert_eq!(read(8, &bytes, 64), Found::Nothing, "another segment");
        assert_eq!(read(7, &bytes[8..], 56), Found::Nothing, "another offset");
        assert_eq!(find(7, &bytes, 0), Some(64));
    }

    #[test]
    fn another_format_is_not_taken_for_damage() {
        for version in [1, 3] {
            let mut bytes = frame_of(b"x", 1, 0);
            bytes[13] = version;
            let sum = checksum(1, 0, &bytes[..HEADER], b"x");
            bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(read(1, &bytes, 0), Found::Unknown(format!("frame version {version}")));
        }
    }

    proptest! {
        #[test]
        fn an_entry_reads_back_alone_and_any_flipped_bit_is_found(
            group: u32, term: u64, node: u64, index: u64,
            payload in proptest::collection::vec(any::<u8>(), 0..1_000), byte in 0..10_000usize, bit in 0..8u32,
        ) {
            let head = EntryHead { group, term, node, index };
            let mut buf = vec![7; 3];
            put_entry(&mut buf, false, head, &payload);
            let body = &mut buf[3 + RECORD_HEAD..];
            prop_assert_eq!(EntryHead::decode(body), Some((head, &payload[..])));
            // As the format says: the checksum over the head with zeros in its place, then the payload.
            let mut plain = Vec::new();
            plain.extend(group.to_le_bytes());
            plain.extend([0; 4]);
            plain.extend([term, node, index].iter().flat_map(|n| n.to_le_bytes()));
            plain.extend(&payload);
            let sum = crc32c::crc32c(&plain);
            plain[4..8].copy_from_slice(&sum.to_le_bytes());
            prop_assert_eq!(&*body, &plain[..]);
            let at = byte % body.len();
            body[at] ^= 1 << bit;
            prop_assert_eq!(EntryHead::decode(body), None);
        }

        #[test]
        fn any_flipped_bit_is_found(payload in proptest::collection::vec(any::<u8>(), 0..200), byte in 0..10_000usize, bit in 0..8u32) {
            let mut bytes = frame_of(&payload, 3, 0);
            let at = byte % (HEADER + payload.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(read(3, &bytes, 0), Found::Nothing);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = find(1, &bytes, 0);
            let _ = Head::decode(&bytes);
            let _ = EntryHead::decode(&bytes);
            let frame = Frame { kind: Kind::Batch, durable: 0, number: 0, payload: &bytes, payload_at: 0, end: 0 };
            for at in records(&frame).unwrap_or_default() {
                let _ = at.decode(&frame);
            }
            let _ = crate::batch::decode(&Bytes::from(bytes));
        }
    }
}

//! The bytes of a journal file: runs, and the blocks in them.
//!
//! A run is what one drain step appended with one `fdatasync`. Its header and directory are read when a
//! journal is opened; its blocks are read, and checked, when their entries are read.
//!
//! ```text
//! magic u32 | CRC32C u32 | kind u8, version u8, 0 u16 | directory length u32 | payload length u32 |
//! table u32 | number u64 | 0 u64 | directory | payload | 0..7 zeros
//! ```
//!
//! The checksum covers file number, offset, the header behind it and the directory: a run is valid in one
//! place only. Each block of the payload has a checksum of its own in the directory. Runs start at multiples
//! of eight; numbers have no gaps. The first run of a file (kind *head*) records the position of every stream
//! when the file was made, and has no payload.

use bytes::Bytes;

use crate::{codec::Cursor, disk::DiskFile};

const MAGIC: u32 = 0x4c4e_4a51;
/// Version of this encoding: the first could not forget a stream, the second not say what is lost.
const VERSION: u8 = 3;
/// Bytes before the directory.
pub(super) const HEADER: usize = 40;
const ALIGN: u64 = 8;
/// Longest directory that is believed, bytes: far above what a run with the most blocks needs.
const MAX_DIRECTORY_BYTES: usize = 16 << 20;
/// Bytes of an entry before its content.
pub(super) const ENTRY_HEAD: usize = 12;

/// What a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first run of a file: where the streams stood.
    Head = 1,
    /// Blocks and trims.
    Run = 2,
}

/// A block of consecutive entries of one stream, as the directory of a run describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockEntry {
    pub(super) stream: Bytes,
    /// The entry before the first, so that a lost block shows as a gap.
    pub(super) before: Option<u64>,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) count: u32,
    /// In the payload.
    pub(super) offset: u32,
    pub(super) bytes: u32,
    pub(super) crc: u32,
    /// Written again from an older file; the stream may have gone on in between.
    pub(super) copied: bool,
}

/// One line of a run's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Block(BlockEntry),
    /// Entries below `below` are given up.
    Trim {
        stream: Bytes,
        below: u64,
    },
    /// In a head: where a stream stood.
    Stood {
        stream: Bytes,
        floor: u64,
        last: Option<u64>,
    },
    /// A stream is removed, with its end.
    Forget {
        stream: Bytes,
    },
    /// In a head: a range of ids was lost to damage, both inclusive.
    Lost {
        stream: Bytes,
        first: u64,
        last: u64,
    },
}

/// A run as found in a file; its payload was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunHead {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) lines: Vec<Line>,
    /// Where the payload starts in the file.
    pub(super) payload_at: u64,
    /// Where the next run starts.
    pub(super) end: u64,
}

/// What is found at an offset of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Run(RunHead),
    /// A checksum that holds over a format that this release does not know.
    Unknown(String),
    Nothing,
}

pub(super) fn aligned(n: u64) -> u64 {
    n.div_ceil(ALIGN) * ALIGN
}

fn put_stream(out: &mut Vec<u8>, stream: &[u8]) {
    out.extend_from_slice(&(stream.len() as u16).to_le_bytes());
    out.extend_from_slice(stream);
}

fn put_option(out: &mut Vec<u8>, id: Option<u64>) {
    out.push(u8::from(id.is_some()));
    out.extend_from_slice(&id.unwrap_or(0).to_le_bytes());
}

const BLOCK: u8 = 1;
const TRIM: u8 = 2;
const STOOD: u8 = 3;
const FORGET: u8 = 4;
const LOST: u8 = 5;

fn put_line(out: &mut Vec<u8>, line: &Line) {
    match line {
        Line::Block(b) => {
            out.push(BLOCK);
            put_stream(out, &b.stream);
            put_option(out, b.before);
            out.extend_from_slice(&b.first.to_le_bytes());
            out.extend_from_slice(&b.last.to_le_bytes());
            for n in [b.count, b.offset, b.bytes, b.crc] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.push(u8::from(b.copied));
        }
        Line::Trim { stream, below } => {
            out.push(TRIM);
            put_stream(out, stream);
            out.extend_from_slice(&below.to_le_bytes());
        }
        Line::Stood { stream, floor, last } => {
            out.push(STOOD);
            put_stream(out, stream);
            out.extend_from_slice(&floor.to_le_bytes());
            put_option(out, *last);
        }
        Line::Forget { stream } => {
            out.push(FORGET);
            put_stream(out, stream);
        }
        Line::Lost { stream, first, last } => {
            out.push(LOST);
            put_stream(out, stream);
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&last.to_le_bytes());
        }
    }
}

fn stream(c: &mut Cursor<'_>) -> Option<Bytes> {
    let n = c.u16()?;
    c.take(n.into()).map(Bytes::copy_from_slice)
}

fn flag(c: &mut Cursor<'_>) -> Option<bool> {
    match c.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn option(c: &mut Cursor<'_>) -> Option<Option<u64>> {
    let (some, id) = (flag(c)?, c.u64()?);
    Some(some.then_some(id))
}

fn line(c: &mut Cursor<'_>) -> Option<Line> {
    Some(match c.u8()? {
        BLOCK => Line::Block(BlockEntry {
            stream: stream(c)?,
            before: option(c)?,
            first: c.u64()?,
            last: c.u64()?,
            count: c.u32()?,
            offset: c.u32()?,
            bytes: c.u32()?,
            crc: c.u32()?,
            copied: flag(c)?,
        }),
        TRIM => Line::Trim { stream: stream(c)?, below: c.u64()? },
        STOOD => Line::Stood { stream: stream(c)?, floor: c.u64()?, last: option(c)? },
        FORGET => Line::Forget { stream: stream(c)? },
        LOST => Line::Lost { stream: stream(c)?, first: c.u64()?, last: c.u64()? },
        _ => return None,
    })
}

/// Every line, if all of them are whole, in bounds and in order.
fn lines(directory: &[u8], payload: usize) -> Option<Vec<Line>> {
    let mut c = Cursor::new(directory);
    let mut out = Vec::new();
    while !c.is_empty() {
        let line = line(&mut c)?;
        if let Line::Block(b) = &line {
            let end = (b.offset as usize).checked_add(b.bytes as usize)?;
            let ordered = b.first <= b.last && b.before.is_none_or(|before| before < b.first);
            let counted = b.count > 0 && u64::from(b.count) - 1 <= b.last - b.first;
            if end > payload || !ordered || !counted {
                return None;
            }
        }
        out.push(line);
    }
    Some(out)
}

fn checksum(file: u64, offset: u64, rest_of_header: &[u8], directory: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&file.to_le_bytes());
    [offset.to_le_bytes().as_slice(), rest_of_header, directory]
        .iter()
        .fold(sum, |sum, part| crc32c::crc32c_append(sum, part))
}

/// The bytes of a run for its place in a file, with the padding behind it.
pub(super) fn encode(
    kind: Kind,
    table: u16,
    number: u64,
    (file, offset): (u64, u64),
    lines: &[Line],
    payload: &[u8],
) -> Vec<u8> {
    let mut directory = Vec::new();
    for line in lines {
        put_line(&mut directory, line);
    }
    let mut rest = vec![kind as u8, VERSION, 0, 0];
    rest.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    rest.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    rest.extend_from_slice(&u32::from(table).to_le_bytes());
    rest.extend_from_slice(&number.to_le_bytes());
    rest.extend_from_slice(&[0; 8]);
    let mut out = Vec::with_capacity(HEADER + directory.len() + payload.len() + 8);
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&checksum(file, offset, &rest, &directory).to_le_bytes());
    out.extend_from_slice(&rest);
    assert_eq!(out.len(), HEADER, "the header of a run has a fixed length");
    out.extend_from_slice(&directory);
    out.extend_from_slice(payload);
    out.resize(aligned(out.len() as u64) as usize, 0);
    out
}

/// Reads the header and the directory of the run at an offset.
pub(super) fn read(file: &dyn DiskFile, table: u16, number: u64, offset: u64) -> std::io::Result<Found> {
    let mut header = [0; HEADER];
    if file.read_at(&mut header, offset)? < HEADER {
        return Ok(Found::Nothing);
    }
    let (head, rest) = header.split_at(8);
    let mut c = Cursor::new(head);
    if c.u32() != Some(MAGIC) {
        return Ok(Found::Nothing);
    }
    let sum = c.u32();
    let mut c = Cursor::new(rest);
    let (kind, version, _) = (c.u8(), c.u8(), c.u16());
    let (Some(directory), Some(payload), Some(owner), Some(run)) = (c.u32(), c.u32(), c.u32(), c.u64())
    else {
        return Ok(Found::Nothing);
    };
    let (directory_bytes, payload_bytes) = (directory as usize, payload as usize);
    let payload_at = offset + HEADER as u64 + u64::from(directory);
    let end = aligned(payload_at + u64::from(payload));
    if directory_bytes > MAX_DIRECTORY_BYTES || payload_at + u64::from(payload) > file.len()? {
        return Ok(Found::Nothing);
    }
    let mut directory = vec![0; directory_bytes];
    if file.read_at(&mut directory, offset + HEADER as u64)? < directory_bytes
        || sum != Some(checksum(number, offset, rest, &directory))
    {
        return Ok(Found::Nothing);
    }
    if version != Some(VERSION) {
        return Ok(Found::Unknown(format!("journal format version {}", version.unwrap_or(0))));
    }
    if owner != u32::from(table) {
        return Ok(Found::Unknown(format!("a run of table {owner} in the journal of table {table}")));
    }
    let kind = match kind {
        Some(1) => Kind::Head,
        Some(2) => Kind::Run,
        other => return Ok(Found::Unknown(format!("journal run of kind {}", other.unwrap_or(0)))),
    };
    // The checksum holds, so this is what was written: lines that make no sense are a format of another
    // release.
    let Some(lines) = lines(&directory, payload_bytes) else {
        return Ok(Found::Unknown("a journal directory of another format".into()));
    };
    Ok(Found::Run(RunHead { kind, number: run, lines, payload_at, end }))
}

/// The first run at or after `from`, if any.
pub(super) fn find(file: &dyn DiskFile, table: u16, number: u64, from: u64) -> std::io::Result<Option<u64>> {
    const CHUNK: u64 = 1 << 20;
    let (len, mut at) = (file.len()?, aligned(from));
    let (mut chunk, zeros) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    while at < len {
        let n = file.read_at(&mut chunk, at)?;
        let there = chunk.get(..n).unwrap_or_default();
        // Most of it is room that was made ahead; comparing it whole is far faster than looking at each
        // place.
        if zeros.starts_with(there) {
            at += CHUNK;
            continue;
        }
        let places = there.chunks(ALIGN as usize);
        for (place, _) in
            (at..).step_by(ALIGN as usize).zip(places).filter(|(_, b)| b.starts_with(&MAGIC.to_le_bytes()))
        {
            if read(file, table, number, place)? != Found::Nothing {
                return Ok(Some(place));
            }
        }
        at += CHUNK;
    }
    Ok(None)
}

/// Adds an entry to the payload of a block.
pub(super) fn put_entry(out: &mut Vec<u8>, id: u64, content: &[u8]) {
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
}

/// The entries of a block whose checksum holds; `None` if they are not what the directory says.
pub(super) fn entries(block: &Bytes, first: u64, last: u64, count: u32) -> Option<Vec<(u64, Bytes)>> {
    let mut c = Cursor::new(block);
    let mut out: Vec<(u64, Bytes)> = Vec::with_capacity(count.min(4096) as usize);
    while !c.is_empty() {
        let (id, n) = (c.u64()?, c.u32()? as usize);
        let at = c.position();
        c.take(n)?;
        if out.last().is_some_and(|(before, _)| *before >= id) {
            return None;
        }
        out.push((id, block.slice(at..at + n)));
    }
    let ends = (out.first().map(|(id, _)| *id), out.last().map(|(id, _)| *id));
    (ends == (Some(first), Some(last)) && out.len() == count as usize).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, MemDisk};

    fn found(bytes: &[u8]) -> Found {
        let file = MemDisk::new(1).open("/f".as_ref(), true).unwrap();
        file.write_at(bytes, 0).unwrap();
        read(&*file, 7, 3, 0).unwrap()
    }

    /// A run whose header byte at `at` is another, with a checksum that holds.
    fn altered(at: usize, value: u8) -> Found {
        let mut bytes = encode(Kind::Run, 7, 1, (3, 0), &[], &[]);
        bytes[at] = value;
        let sum = checksum(3, 0, &bytes[8..HEADER], &[]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        found(&bytes)
    }

    #[test]
    fn another_version_kind_or_table_is_named_and_not_believed() {
        assert!(matches!(altered(9, VERSION), Found::Run(_)));
        assert_eq!(altered(9, VERSION + 1), Found::Unknown("journal format version 4".into()));
        assert_eq!(altered(9, VERSION - 1), Found::Unknown("journal format version 2".into()));
        assert_eq!(altered(9, 0), Found::Unknown("journal format version 0".into()));
        assert_eq!(altered(8, 9), Found::Unknown("journal run of kind 9".into()));
        assert_eq!(altered(20, 8), Found::Unknown("a run of table 8 in the journal of table 7".into()));
    }

    #[test]
    fn damage_anywhere_in_header_or_directory_is_no_run() {
        let stream = Bytes::from_static(b"s");
        let lines = [
            Line::Stood { stream: stream.clone(), floor: 3, last: None },
            Line::Trim { stream: stream.clone(), below: 4 },
            Line::Forget { stream: stream.clone() },
            Line::Block(BlockEntry {
                stream,
                before: Some(4),
                first: 5,
                last: 9,
                count: 2,
                offset: 0,
                bytes: 8,
                crc: 1,
                copied: true,
            }),
        ];
        let bytes = encode(Kind::Run, 7, 1, (3, 0), &lines, &[0; 8]);
        let Found::Run(run) = found(&bytes) else { panic!("the run is not read back") };
        assert_eq!((run.lines.as_slice(), run.end), (lines.as_slice(), bytes.len() as u64));
        let covered = run.payload_at as usize;
        for at in 0..covered {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(found(&bytes), Found::Nothing, "byte {at}");
        }
        for len in 0..bytes.len() - 7 {
            assert_eq!(found(&bytes[..len]), Found::Nothing, "cut at {len}");
        }
    }
}

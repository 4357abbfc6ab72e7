//! Where the entries of a journal are: per stream its floor, its end and its blocks, and per file the bytes
//! that are still wanted. A value: it is told what a run says and touches no disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use bytes::Bytes;

use super::format::{BlockEntry, Line};

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRef {
    pub(super) before: Option<u64>,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) count: u32,
    pub(super) file: u64,
    /// In the file.
    pub(super) offset: u64,
    pub(super) bytes: u32,
    pub(super) crc: u32,
}

/// One stream of a journal.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    /// Entries below are given up.
    pub(super) floor: u64,
    /// The highest id that was ever appended.
    pub(super) last: Option<u64>,
    /// By their first id.
    blocks: BTreeMap<u64, BlockRef>,
    /// Ranges that were lost to damage, by their first id.
    gaps: BTreeMap<u64, u64>,
}

impl Stream {
    /// The first block that has an entry at or above `from`.
    pub(super) fn block_at(&self, from: u64) -> Option<BlockRef> {
        let before = self.blocks.range(..=from).next_back().map(|(_, b)| *b).filter(|b| b.last >= from);
        before.or_else(|| self.blocks.range(from..).next().map(|(_, b)| *b))
    }

    /// The first lost range that has an id in the range.
    pub(super) fn gap_in(&self, range: RangeInclusive<u64>) -> Option<(u64, u64)> {
        let before =
            self.gaps.range(..*range.start()).next_back().filter(|(_, last)| **last >= *range.start());
        let (first, last) = before.or_else(|| self.gaps.range(range).next())?;
        Some((*first, *last))
    }

    /// A block that is written again has all there is in this range: what of it was lost is here again.
    fn has_again(&mut self, range: RangeInclusive<u64>) {
        while let Some((first, last)) = self.gap_in(range.clone()) {
            self.gaps.remove(&first);
            if let Some(before) = range.start().checked_sub(1).filter(|before| *before >= first) {
                self.gaps.insert(first, before);
            }
            if let Some(next) = range.end().checked_add(1).filter(|next| *next <= last) {
                self.gaps.insert(next, last);
            }
        }
    }

    /// Blocks that share ids with a range. Blocks do not overlap each other.
    pub(super) fn blocks_with(&self, range: RangeInclusive<u64>) -> Vec<BlockRef> {
        let upwards = self.blocks.range(..=*range.end()).rev().map(|(_, block)| *block);
        upwards.take_while(|block| block.last >= *range.start()).collect()
    }

    /// Those of them that are not the very same range.
    fn overlapped(&self, range: RangeInclusive<u64>) -> Vec<BlockRef> {
        let same = (*range.start(), *range.end());
        self.blocks_with(range).into_iter().filter(|block| (block.first, block.last) != same).collect()
    }

    /// Whether ids of the range are neither trimmed, nor still to come, nor in any block: what the stream had
    /// there is gone.
    pub(super) fn lacks(&self, range: &RangeInclusive<u64>) -> bool {
        let is_past = *range.start() >= self.floor && self.last.is_some_and(|last| last >= *range.end());
        is_past && self.block_at(*range.start()).is_none_or(|block| block.first > *range.end())
    }
}

/// The state of a journal's files and streams.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) streams: BTreeMap<Bytes, Stream>,
    /// Bytes of blocks that are still wanted, by file. Every file has a line.
    live: BTreeMap<u64, u64>,
}

/// How a run contradicts the runs before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contradiction(pub(super) String);

impl Index {
    /// A new file, the newest.
    pub(super) fn add_file(&mut self, file: u64) {
        let old = self.live.insert(file, 0);
        assert!(old.is_none(), "journal file {file} is added once");
    }

    /// The oldest file and its wanted bytes.
    pub(super) fn oldest(&self) -> Option<(u64, u64)> {
        self.live.first_key_value().map(|(file, live)| (*file, *live))
    }

    /// How many files there are.
    pub(super) fn files(&self) -> usize {
        self.live.len()
    }

    /// Wanted bytes of all files.
    pub(super) fn wanted(&self) -> u64 {
        self.live.values().sum()
    }

    /// Removes a file that has no wanted blocks.
    pub(super) fn remove_file(&mut self, file: u64) {
        let live = self.live.remove(&file);
        assert_eq!(live, Some(0), "a journal file is removed when nothing in it is wanted");
    }

    /// Wanted blocks of a file with their streams, in order.
    pub(super) fn blocks_in(&self, file: u64) -> Vec<(Bytes, BlockRef)> {
        let blocks = self.streams.iter().flat_map(|(name, s)| s.blocks.values().map(move |b| (name, b)));
        blocks.filter(|(_, b)| b.file == file).map(|(name, b)| (name.clone(), *b)).collect()
    }

    /// The content of the head of the next file: the position of every stream, and what of it is lost.
    pub(super) fn head(&self) -> Vec<Line> {
        let stood =
            |(name, s): (&Bytes, &Stream)| Line::Stood { stream: name.clone(), floor: s.floor, last: s.last };
        let lost = self.lost().into_iter().map(|(stream, first, last)| Line::Lost { stream, first, last });
        self.streams.iter().map(stood).chain(lost).collect()
    }

    /// Bytes of the wanted blocks of a stream, for the caller of `trim`.
    pub(super) fn bytes_of(&self, stream: &[u8]) -> u64 {
        self.streams.get(stream).map_or(0, |s| s.blocks.values().map(|b| u64::from(b.bytes)).sum())
    }

    /// Applies the lines of a run; its payload starts at `payload_at` of `file`. `first_file`: what its head
    /// says of ids that no file has is no loss, they were in files that are gone.
    pub(super) fn take(
        &mut self,
        file: u64,
        payload_at: u64,
        lines: &[Line],
        first_file: bool,
    ) -> Result<(), Contradiction> {
        for line in lines {
            match line {
                Line::Block(block) => self.block(file, payload_at, block)?,
                Line::Trim { stream, below } => self.trim(stream, *below),
                Line::Forget { stream } => {
                    let gone = self.streams.remove(stream).unwrap_or_default();
                    gone.blocks.values().for_each(|block| self.forget(block));
                }
                Line::Stood { stream, floor, last } => {
                    let own = self.streams.entry(stream.clone()).or_default();
                    if let Some(last) = *last
                        && own.last.is_none_or(|known| known < last)
                    {
                        if !first_file {
                            own.gaps.insert(own.last.map_or(0, |known| known + 1), last);
                        }
                        own.last = Some(last);
                    }
                    self.trim(stream, *floor);
                }
                Line::Lost { stream, first, last } => {
                    let own = self.streams.entry(stream.clone()).or_default();
                    // Where the damaged block is still there, reading it says so.
                    if *last >= own.floor && first <= last && !own.blocks.contains_key(first) {
                        own.gaps.insert(*first, *last);
                    }
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, file: u64, payload_at: u64, entry: &BlockEntry) -> Result<(), Contradiction> {
        let stream = self.streams.entry(entry.stream.clone()).or_default();
        if !entry.copied {
            if stream.last.is_some_and(|last| last >= entry.first) {
                let why =
                    format!("a block from id {} on, where the stream has {:?}", entry.first, stream.last);
                return Err(Contradiction(why));
            }
            if entry.before > stream.last {
                let first = stream.last.map_or(0, |last| last + 1);
                stream.gaps.insert(first, entry.before.unwrap_or(first));
            }
        } else {
            // A part of a damaged block, which at a start is not known to be damaged.
            for old in stream.overlapped(entry.first..=entry.last) {
                self.lose(&entry.stream, &old);
            }
            let stream = self.streams.entry(entry.stream.clone()).or_default();
            let from = entry.before.map_or(0, |before| before.saturating_add(1));
            stream.has_again(from.min(entry.first)..=entry.last);
        }
        let stream = self.streams.entry(entry.stream.clone()).or_default();
        stream.last = stream.last.max(Some(entry.last));
        if entry.last < stream.floor {
            return Ok(());
        }
        let block = BlockRef {
            before: entry.before,
            first: entry.first,
            last: entry.last,
            count: entry.count,
            file,
            offset: payload_at + u64::from(entry.offset),
            bytes: entry.bytes,
            crc: entry.crc,
        };
        if let Some(old) = stream.blocks.insert(block.first, block) {
            self.forget(&old);
        }
        *self.live.entry(file).or_default() += u64::from(block.bytes);
        Ok(())
    }

    fn forget(&mut self, block: &BlockRef) {
        let live = self.live.entry(block.file).or_default();
        assert!(*live >= u64::from(block.bytes), "the account of journal file {} is short", block.file);
        *live -= u64::from(block.bytes);
    }

    fn trim(&mut self, name: &Bytes, below: u64) {
        let stream = self.streams.entry(name.clone()).or_default();
        stream.floor = stream.floor.max(below);
        let floor = stream.floor;
        let mut gone = Vec::new();
        while let Some(first) = stream.blocks.first_entry().filter(|b| b.get().last < floor) {
            gone.push(first.remove());
        }
        stream.gaps.retain(|_, last| *last >= floor);
        for block in gone {
            self.forget(&block);
        }
    }

    /// A block whose bytes are damaged: its range is reported as lost, until it is filled in or trimmed.
    pub(super) fn lose(&mut self, name: &Bytes, block: &BlockRef) {
        let Some(stream) = self.streams.get_mut(name) else { return };
        if stream.blocks.get(&block.first) != Some(block) {
            return;
        }
        stream.blocks.remove(&block.first);
        stream.gaps.insert(block.first, block.last);
        self.forget(block);
    }

    /// The ranges that are lost, by stream.
    pub(super) fn lost(&self) -> Vec<(Bytes, u64, u64)> {
        let gaps = self.streams.iter().flat_map(|(name, s)| s.gaps.iter().map(move |gap| (name, gap)));
        gaps.map(|(name, (first, last))| (name.clone(), *first, *last)).collect()
    }

    /// Streams with a block in a file, each with the id behind the last of those.
    pub(super) fn ends_in(&self, file: u64) -> BTreeSet<(Bytes, u64)> {
        let ends = self.streams.iter().filter_map(|(name, s)| {
            let last = s.blocks.values().filter(|b| b.file == file).map(|b| b.last).max()?;
            Some((name.clone(), last.saturating_add(1)))
        });
        ends.collect()
    }
}

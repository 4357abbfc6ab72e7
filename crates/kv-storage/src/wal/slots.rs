//! Where the entries of a group stand inside their segments: eight bytes each, in pieces that a purge gives
//! back.

use std::collections::VecDeque;

/// Entries in a piece.
const PIECE: usize = 1024;

/// Where an entry is in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Slot {
    /// Of the entry's head; the payload follows it. Without meaning until the entry is written.
    pub(crate) offset: u32,
    /// Of the payload.
    pub(crate) bytes: u32,
}

/// The slots of successive entries. A deque of pieces: one long buffer would be doubled and copied as it
/// grows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots {
    /// All full but the last.
    pieces: VecDeque<Vec<Slot>>,
    /// Slots at the front of the first piece that were dropped.
    dropped: usize,
    len: usize,
}

impl Slots {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn split(&self, place: usize) -> Option<(usize, usize)> {
        let at = self.dropped + place;
        (place < self.len).then_some((at / PIECE, at % PIECE))
    }

    pub(crate) fn get(&self, place: usize) -> Option<Slot> {
        let (piece, at) = self.split(place)?;
        self.pieces.get(piece)?.get(at).copied()
    }

    pub(crate) fn set(&mut self, place: usize, slot: Slot) {
        if let Some((piece, at)) = self.split(place)
            && let Some(found) = self.pieces.get_mut(piece).and_then(|piece| piece.get_mut(at))
        {
            *found = slot;
        }
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        match self.pieces.back_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(slot),
            _ => self.pieces.push_back(vec![slot]),
        }
        self.len += 1;
    }

    /// Keeps the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if len == 0 {
            *self = Slots::default();
            return;
        }
        let end = self.dropped + len;
        self.pieces.truncate(end.div_ceil(PIECE));
        if let Some(last) = self.pieces.back_mut() {
            last.truncate((end - 1) % PIECE + 1);
        }
        self.len = len;
    }

    /// Drops the first `n`.
    pub(crate) fn drop_front(&mut self, n: usize) {
        if n >= self.len {
            *self = Slots::default();
            return;
        }
        self.dropped += n;
        self.len -= n;
        while self.dropped >= PIECE {
            self.pieces.pop_front();
            self.dropped -= PIECE;
        }
    }

    /// Bytes of memory, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        let slots: usize = self.pieces.iter().map(Vec::capacity).sum();
        slots * size_of::<Slot>() + self.pieces.capacity() * size_of::<Vec<Slot>>()
    }
}

//! How a snapshot file travels from a leader to a follower, decided without clock, disk or socket: what the
//! sender does next ([`Sending`]), what the receiver takes ([`Receiving`]), and how much of the log is kept
//! meanwhile ([`purge_target`]). The acts are in `snapshot_out` and `snapshot_in`.
//!
//! The receiver names the offset that it wants; the sender sends one chunk at a time from there and looks at
//! the answer before the next. So a lost, repeated, reordered or corrupted chunk costs one exchange, and a
//! restart of either side costs what was not synced. Time runs out only while nothing moves: there is no
//! bound on the whole.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use kv_proto::peer;
use kv_types::NodeId;

use crate::codec;
use crate::config::Vote;
use crate::limits::{
    CHUNK_MAX_BYTES, CHUNK_MIN_BYTES, NO_ROOM_PAUSE, NO_ROOM_PAUSE_MAX, SNAPSHOT_IDLE, STEP_PAUSE,
    STEP_PAUSE_MAX, WORKING_POLL,
};

/// Which file travels. Two files are the same only if all of this is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    /// The node that the file comes from.
    pub(crate) node: NodeId,
    /// The number of the file on that node.
    pub(crate) snapshot: u64,
    /// Bytes of the file.
    pub(crate) length: u64,
    /// CRC32C of the whole file.
    pub(crate) checksum: u32,
}

impl FileIdentity {
    /// For the note beside the part.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = codec::versioned(codec::VERSION, 28);
        out.put_u64(self.node.0);
        out.put_u64(self.snapshot);
        out.put_u64(self.length);
        out.put_u32(self.checksum);
        out.into()
    }
}

/// Why a step was not taken, by name, for counters and messages.
pub(crate) use kv_proto::peer::SnapshotRefusal as Refusal;

/// Names as in the protocol, in lower case.
pub(crate) fn refusal_name(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unspecified => "unspecified",
        Refusal::Invalid => "invalid",
        Refusal::WrongChecksum => "wrong_checksum",
        Refusal::WrongOffset => "wrong_offset",
        Refusal::BeyondLength => "beyond_length",
        Refusal::UnknownTransfer => "unknown_transfer",
        Refusal::AnotherUnderWay => "another_under_way",
        Refusal::TooMany => "too_many",
        Refusal::TooLarge => "too_large",
        Refusal::NoRoom => "no_room",
        Refusal::Incomplete => "incomplete",
        Refusal::Damaged => "damaged",
    }
}

// ---- the sender

/// What the sender does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Announce the file.
    Begin,
    /// Send these bytes.
    Chunk {
        /// The transfer that the receiver named.
        transfer: u64,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        bytes: usize,
    },
    /// Ask for the installation, or how it goes.
    End {
        /// The transfer that the receiver named.
        transfer: u64,
    },
}

/// The answer to a step, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Bytes are wanted from here on.
    Wanted {
        /// Names the transfer.
        transfer: u64,
        /// The first byte wanted.
        offset: u64,
    },
    /// The file is being checked or installed.
    Working {
        /// Grows while there is progress.
        progress: u64,
    },
    /// The receiver has what the snapshot holds.
    Installed(Vote),
    /// A newer leader is known there.
    HigherVote(Vote),
    /// The step was not taken.
    Refused {
        /// The reason.
        refusal: Refusal,
        /// The first byte wanted.
        offset: u64,
    },
    /// No answer, though it may have arrived.
    NoAnswer,
    /// The step did not leave this node.
    NotSent,
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The receiver has the snapshot; its vote.
    Installed(Vote),
    /// This node does not lead any more.
    HigherVote(Vote),
    /// There was no progress for [`SNAPSHOT_IDLE`].
    Idle,
    /// The receiver will not take this file.
    Refused(Refusal),
}

/// Times that a file may be found damaged by the receiver before the transfer is given up.
const DAMAGED_AT_MOST: u32 = 1;
/// Times that the receiver may have no room before the transfer is given up. The first may be over soon: the
/// part of another snapshot is thrown away. Each time the transfer begins again from the first byte.
const NO_ROOM_AT_MOST: u32 = 1;

/// How long the sender pauses after its receiver had no room `times` times in a row (1 for the first).
pub(crate) fn no_room_pause(times: u32) -> Duration {
    NO_ROOM_PAUSE.saturating_mul(1 << times.saturating_sub(1).min(8)).min(NO_ROOM_PAUSE_MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Beginning,
    Giving { transfer: u64, offset: u64 },
    Ending { transfer: u64 },
}

/// The sender's side of one transfer. Times are since any fixed moment.
#[derive(Debug, Clone)]
pub(crate) struct Sending {
    length: u64,
    bytes_per_second: u64,
    largest: usize,
    /// Bytes of the next chunk at most; halved when one is not answered in time.
    chunk: usize,
    stage: Stage,
    /// Nothing is sent before.
    not_before: Duration,
    /// When there was progress last.
    moved: Duration,
    /// The last progress that the receiver reported.
    progress: Option<u64>,
    /// Steps without success since the last one with.
    failures: u32,
    damaged: u32,
    no_room: u32,
}

impl Sending {
    /// A transfer of `length` bytes, in chunks of at most `chunk` and `bytes_per_second` (0: as fast as it
    /// goes).
    pub(crate) fn new(length: u64, chunk: usize, bytes_per_second: u64, now: Duration) -> Self {
        let largest = chunk.clamp(1, CHUNK_MAX_BYTES);
        Self {
            length,
            bytes_per_second,
            largest,
            chunk: largest,
            stage: Stage::Beginning,
            not_before: now,
            moved: now,
            progress: None,
            failures: 0,
            damaged: 0,
            no_room: 0,
        }
    }

    /// The next step, and the time before which it must not be sent.
    pub(crate) fn next(&self) -> (Step, Duration) {
        let step = match self.stage {
            Stage::Beginning => Step::Begin,
            Stage::Giving { transfer, offset } => {
                let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
                Step::Chunk { transfer, offset, bytes: self.chunk.min(left) }
            }
            Stage::Ending { transfer } => Step::End { transfer },
        };
        (step, self.not_before)
    }

    /// Bytes that the receiver has.
    pub(crate) fn received(&self) -> u64 {
        match self.stage {
            Stage::Beginning => 0,
            Stage::Giving { offset, .. } => offset,
            Stage::Ending { .. } => self.length,
        }
    }

    /// When the transfer is given up if there is no progress before.
    pub(crate) fn gives_up(&self) -> Duration {
        self.moved + SNAPSHOT_IDLE
    }

    /// Takes the answer to the step that was begun at `begun`; says when the transfer is over.
    pub(crate) fn heard(&mut self, heard: Heard, begun: Duration, now: Duration) -> Option<Ended> {
        match heard {
            Heard::Installed(vote) => return Some(Ended::Installed(vote)),
            Heard::HigherVote(vote) => return Some(Ended::HigherVote(vote)),
            Heard::Wanted { offset, .. } if offset > self.length => {
                return Some(Ended::Refused(Refusal::Invalid));
            }
            Heard::Wanted { transfer, offset } => self.wanted(transfer, offset, begun, now),
            Heard::Working { progress } => {
                if self.progress != Some(progress) {
                    self.moved = now;
                    self.progress = Some(progress);
                }
                self.failures = 0;
                self.not_before = now + WORKING_POLL;
            }
            Heard::Refused { refusal, offset } => {
                if let Some(ended) = self.refused(refusal, offset) {
                    return Some(ended);
                }
                match refusal {
                    Refusal::NoRoom => self.not_before = now + no_room_pause(self.no_room),
                    _ => self.pause(now),
                }
            }
            Heard::NoAnswer => {
                // Perhaps the link does not carry so much in the time of one call.
                self.chunk = (self.chunk / 2).max(CHUNK_MIN_BYTES.min(self.largest));
                self.pause(now);
            }
            Heard::NotSent => self.pause(now),
        }
        (now >= self.gives_up()).then_some(Ended::Idle)
    }

    fn wanted(&mut self, transfer: u64, offset: u64, begun: Duration, now: Duration) {
        let sent = match self.stage {
            Stage::Giving { offset: from, .. } => offset.saturating_sub(from),
            Stage::Beginning | Stage::Ending { .. } => 0,
        };
        let answered_begin = self.stage == Stage::Beginning;
        self.stage = match offset == self.length {
            true => Stage::Ending { transfer },
            false => Stage::Giving { transfer, offset },
        };
        if sent > 0 {
            self.moved = now;
            self.chunk = self.chunk.saturating_mul(2).min(self.largest);
        }
        if sent > 0 || answered_begin {
            self.failures = 0;
            let worth = match self.bytes_per_second {
                0 => Duration::ZERO,
                rate => Duration::from_nanos(sent.saturating_mul(1_000_000_000) / rate),
            };
            self.not_before = now.max(begun + worth);
        } else {
            self.pause(now);
        }
    }

    fn refused(&mut self, refusal: Refusal, offset: u64) -> Option<Ended> {
        match (refusal, self.stage) {
            (
                Refusal::WrongChecksum | Refusal::WrongOffset | Refusal::BeyondLength,
                Stage::Giving { transfer, .. },
            ) if offset <= self.length => {
                self.stage = match offset == self.length {
                    true => Stage::Ending { transfer },
                    false => Stage::Giving { transfer, offset },
                };
            }
            (Refusal::Incomplete, Stage::Ending { transfer }) if offset < self.length => {
                self.stage = Stage::Giving { transfer, offset };
            }
            (Refusal::UnknownTransfer | Refusal::AnotherUnderWay | Refusal::TooMany, _) => {
                self.stage = Stage::Beginning;
            }
            (Refusal::NoRoom, _) if self.no_room < NO_ROOM_AT_MOST => {
                self.no_room += 1;
                self.stage = Stage::Beginning;
            }
            (Refusal::Damaged, _) if self.damaged < DAMAGED_AT_MOST => {
                self.damaged += 1;
                self.stage = Stage::Beginning;
            }
            _ => return Some(Ended::Refused(refusal)),
        }
        None
    }

    fn pause(&mut self, now: Duration) {
        let pause = STEP_PAUSE.saturating_mul(1 << self.failures.min(8)).min(STEP_PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + pause;
    }
}

// ---- the receiver

/// What to do with an announced file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It is the file that is being received: continue.
    Continue,
    /// Drop the transfer under way and begin this one.
    Replace,
    /// Refuse it for now.
    Refuse(Refusal),
}

/// How far a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    /// Bytes are missing.
    Bytes,
    /// All bytes are there, and the file is checked and installed.
    Working,
}

/// The receiver's side of one transfer.
#[derive(Debug, Clone)]
pub(crate) struct Receiving {
    pub(crate) transfer: u64,
    pub(crate) vote: Vote,
    pub(crate) identity: FileIdentity,
    /// All bytes before this one were received.
    offset: u64,
    pub(crate) taking: Taking,
}

impl Receiving {
    /// A transfer that goes on from `offset`.
    pub(crate) fn new(transfer: u64, vote: Vote, identity: FileIdentity, offset: u64) -> Self {
        Self { transfer, vote, identity, offset, taking: Taking::Bytes }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Judges an announcement, made by a leader with this vote.
    pub(crate) fn announced(&self, vote: &Vote, identity: &FileIdentity) -> Opening {
        match self.taking {
            _ if *vote == self.vote && *identity == self.identity => Opening::Continue,
            // What is being installed cannot be stopped, and is soon over.
            Taking::Working => Opening::Refuse(Refusal::AnotherUnderWay),
            Taking::Bytes if *vote < self.vote => Opening::Refuse(Refusal::AnotherUnderWay),
            Taking::Bytes => Opening::Replace,
        }
    }

    /// Judges a chunk. Nothing of one that is refused may be written.
    pub(crate) fn chunk(&self, chunk: &peer::SnapshotChunk) -> Result<(), Refusal> {
        if chunk.transfer != self.transfer {
            return Err(Refusal::UnknownTransfer);
        }
        if self.taking == Taking::Working {
            return Err(Refusal::AnotherUnderWay);
        }
        if chunk.data.is_empty() || chunk.data.len() > CHUNK_MAX_BYTES {
            return Err(Refusal::Invalid);
        }
        if chunk.offset != self.offset {
            return Err(Refusal::WrongOffset);
        }
        let beyond =
            chunk.offset.checked_add(chunk.data.len() as u64).is_none_or(|end| end > self.identity.length);
        if beyond {
            return Err(Refusal::BeyondLength);
        }
        let ignored = kv_types::mutant!(ChunkChecksumIgnored);
        if crc32c::crc32c(&chunk.data) != chunk.checksum && !ignored {
            return Err(Refusal::WrongChecksum);
        }
        Ok(())
    }

    /// A chunk was written.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.offset += bytes as u64;
    }

    /// Judges the end. Whether the work is to be begun; false when it is under way.
    pub(crate) fn end(&mut self, transfer: u64) -> Result<bool, Refusal> {
        if transfer != self.transfer {
            return Err(Refusal::UnknownTransfer);
        }
        if self.offset != self.identity.length {
            return Err(Refusal::Incomplete);
        }
        Ok(std::mem::replace(&mut self.taking, Taking::Working) == Taking::Bytes)
    }
}

// ---- the log meanwhile

/// A follower that will need entries: those from `needs` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    /// Index of the first entry that the follower will need.
    pub(crate) needs: u64,
    /// A snapshot is on its way to it; else it catches up with entries.
    pub(crate) in_transit: bool,
    /// When it last made progress, or a transfer began or ended.
    pub(crate) moved: Duration,
}

impl Hold {
    /// Looks at a follower whose snapshot has arrived: it has matched the log below `matched`, which ends
    /// before `end`. None when it needs no hold any more: it is near enough, or has made no progress for
    /// [`SNAPSHOT_IDLE`].
    pub(crate) fn followed(self, matched: u64, end: u64, near: u64, now: Duration) -> Option<Self> {
        if self.in_transit {
            return Some(self);
        }
        let moved = if matched > self.needs { now } else { self.moved };
        let needs = matched.max(self.needs);
        let idle = now.saturating_sub(moved) >= SNAPSHOT_IDLE;
        let caught_up = end.saturating_sub(needs) <= near;
        (!idle && !caught_up).then_some(Self { needs, moved, ..self })
    }
}

/// How far the log may be purged (exclusive): as far as wanted, but not beyond what followers will need after
/// a snapshot, unless the log has used up the share that is kept for them.
pub(crate) fn purge_target(
    wanted: u64,
    holds: impl Iterator<Item = Hold>,
    log_bytes: u64,
    bound: u64,
) -> u64 {
    if log_bytes >= bound {
        return wanted;
    }
    holds.map(|hold| hold.needs).fold(wanted, u64::min)
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;

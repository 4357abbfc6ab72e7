//! Every bound of this crate, in one place.

use std::time::Duration;

/// First table that callers may use; the ones below belong to storage.
pub const FIRST_USER_TABLE: u16 = 16;
/// Longest key of a table or of the small state, bytes.
pub const MAX_KEY_BYTES: usize = 16 << 10;
/// All small state together, bytes: every segment repeats it.
pub const MAX_SMALL_STATE_BYTES: usize = 1 << 20;
/// Largest share of a segment that small state may take (one in so many).
pub const SMALL_STATE_SEGMENT_SHARE: usize = 4;
/// Smallest segment.
pub const MIN_SEGMENT_BYTES: usize = 16 << 10;
/// Largest segment; offsets inside a segment are 32 bits in the indexes.
pub const MAX_SEGMENT_BYTES: usize = 1 << 30;
/// Segments that the log must be able to hold at least.
pub const MIN_SEGMENTS: usize = 4;
/// Largest block of a snapshot file.
pub const MAX_SNAPSHOT_BLOCK: usize = 4 << 20;
/// Bytes of a snapshot file between two syncs: no sync of it takes long, and the log's wait for the disk is
/// short.
pub const SNAPSHOT_SYNC_BYTES: u64 = 4 << 20;
/// Longest header of a snapshot file.
pub const MAX_SNAPSHOT_HEADER: usize = 1 << 20;
/// Longest snapshot file that is received from another node.
pub const MAX_SNAPSHOT_BYTES: u64 = 1 << 40;
/// Longest identity of a file that is received.
pub const MAX_PART_IDENTITY: usize = 256;
/// Bytes of a received file that are synced together at most.
pub const PART_SYNC_BYTES: u64 = 8 << 20;
/// Bytes of a file that are read at once to compare its checksum.
pub const PART_READ_BYTES: usize = 1 << 20;
/// Longest note beside a received file: its head, and a record for each synced piece of the longest file.
pub const MAX_PART_NOTE: u64 = (MAX_SNAPSHOT_BYTES / PART_SYNC_BYTES + 1) * 16 + 1024;
/// Live Raft bytes of the oldest segment that are copied forward to let it go.
pub const MAX_COPY_FORWARD_BYTES: usize = 1 << 20;
/// Share of `max_log_bytes` (one in so many) above it that only Raft records may use. Of it, the first half
/// is for appends that were asked for with [`crate::RaftLog::room_for`]; the second half takes what was on
/// its way between the question and the append, votes, purge points, truncations and copies of laggards, so
/// that an append whose question was answered with yes is not refused.
pub const RAFT_RESERVE_SHARE: u64 = 4;
/// How long an idle background thread sleeps before it looks again.
pub const IDLE_WAIT: Duration = Duration::from_millis(200);
/// How long the writer waits for the segment being prepared: a disk that cannot take a segment of zeros in
/// this time is as good as failed, and the node stops instead of hanging.
pub const PREPARE_WAIT: Duration = Duration::from_secs(30);
/// Threads that read the lower tier.
pub const READERS: usize = 5;
/// Those of them that may read for clients at once: one is left for the apply of committed entries.
pub const READERS_FOR_CLIENTS: usize = READERS - 1;
/// Reads that may wait for them, and the bytes of their keys; beyond it a read is refused.
pub const READ_QUEUE: usize = 4096;
/// Bytes of keys that may wait.
pub const READ_QUEUE_BYTES: usize = 8 << 20;
/// Reads for the apply of committed entries that may wait besides: more than there are groups.
pub const READ_QUEUE_APPLY: usize = 1024;
/// Keys of one read.
pub const MAX_READ_KEYS: usize = 4096;
/// Bytes of rows that one read takes from the tier; a single row may be larger.
pub const MAX_READ_BYTES: usize = 64 << 20;
/// How often a scan reads anew because later batches were drained under it, before it holds the tier still.
pub const SCAN_TRIES: usize = 3;
/// Rows that a scan takes from the tier at a time.
pub const TIER_CHUNK_ROWS: usize = 256;
/// Memory of the index of a Raft entry, bytes, where a term and a segment have many entries. Its payload is
/// not counted.
pub const INDEX_ENTRY_BYTES: usize = 16;
/// Largest reserve of a file system (one in so many of its bytes), whatever `disk_reserve_bytes` says: a
/// small disk is usable.
pub const DISK_RESERVE_SHARE: u64 = 8;
/// How often what is in memory is still written to the file system, at most: into the tier's journal or one
/// of ours, and into its tables.
pub const OWED_COPIES: u64 = 2;
/// Largest row that is kept in memory because it is read, bytes.
pub const MAX_CACHED_ROW_BYTES: usize = 16 << 10;
/// What such a row costs beside its key and value, bytes: its buffer, and its place among those of twice as
/// many.
pub const CACHED_ROW_OVERHEAD: usize = 256;
/// Rows that left lately whose keys are remembered, as a part of those that have room.
pub const CACHE_REMEMBERS: f64 = 0.1;
/// Parts of the cache with a lock of their own.
pub const CACHE_SHARDS: usize = 8;
/// Bits of the filter of keys for each: one in a hundred keys that are not there is claimed to be.
pub const FILTER_BITS_PER_KEY: usize = 10;
/// Smallest part of that filter, bytes.
pub const FILTER_LEAST_BYTES: usize = 1 << 10;
/// How long the reading of the keys from before a start rests after a step, at most.
pub const LEARN_REST: Duration = Duration::from_secs(1);
/// How often the folder of snapshots is read when a file vanishes meanwhile.
pub const LIST_ROUNDS: usize = 8;
/// How long the drain must have waited for room before a snapshot ends without what it waits for.
pub const NO_ROOM_FOR_LONG: Duration = Duration::from_secs(2);
/// How long an answer about the free space of the disk is used.
pub const SPACE_LOOK: Duration = Duration::from_millis(100);
/// What an entry in the cache of a Raft group costs beside its payload, bytes, about.
pub const CACHED_ENTRY_BYTES: usize = 64;
/// Bytes of other records between two entries of a group that are read with them: a second read would cost
/// more.
pub const READ_GAP_BYTES: usize = 4 << 10;
/// Bytes of the log that are read at a time for entries of a group.
pub const READ_STRETCH_BYTES: usize = 1 << 20;
/// How far apart the places are at which a replay of data batches may start, bytes of the log.
pub const REPLAY_MARK_BYTES: u64 = 1 << 20;
/// How long a stop waits for the threads of the engine to end: as long as a slow disk may take for what is
/// under way. After it the stop returns without them, and what waits for the log is refused, as after a kill.
pub const THREADS_STOP_WAIT: Duration = Duration::from_secs(10);
/// How long a stop waits for the lower tier to close. After it the tier is left open, as by a kill.
pub const TIER_CLOSE_WAIT: Duration = Duration::from_secs(10);
/// How often a stop that may not await looks whether that has happened.
pub const STOP_LOOK: Duration = Duration::from_millis(1);
/// Bytes of keys and values that it takes at a time; one row may be larger.
pub const TIER_CHUNK_BYTES: usize = 1 << 20;
/// How long a batch or a checkpoint of the lower tier may take. Beyond it the tier counts as failed: the node
/// stops instead of filling its memtable and its log.
pub const TIER_WAIT: Duration = Duration::from_secs(30);
/// Copies that are taken at the same time: each may keep `copy_tail_bytes` of writes in memory.
pub const MAX_COPIES: usize = 4;
/// Writes that wait to be taken by one copy, bytes: the default of `copy_tail_bytes`.
pub const COPY_TAIL_BYTES: usize = 32 << 20;
/// Pieces of the tail of a copy that may follow each other while it is long: the base goes on, or the copy is
/// given up, and it always ends.
pub const COPY_TAIL_TURNS: u32 = 7;
/// What one row that waits for a copy costs beside its key and value, bytes.
pub const COPY_ROW_BYTES: usize = 96;
/// How long what writes to the tier directly waits for the drain between two of its steps, when the drain is
/// due.
pub const DRAIN_TURN: Duration = Duration::from_millis(100);
/// Longest name of a record, bytes.
pub const MAX_RECORD_NAME: usize = 64;
/// Longest record, bytes. Records are in the small state.
pub const MAX_RECORD_BYTES: usize = 64;
/// Zeros written at a time when a segment is prepared.
pub const ZERO_CHUNK: usize = 1 << 20;
/// How far the zeros of the next segment keep ahead of the writer in its own: done when three quarters are
/// written.
pub const ZERO_LEAD: (u64, u64) = (4, 3);
/// How long zeros wait for the writer to rest before they look again.
pub const ZERO_PAUSE: Duration = Duration::from_millis(2);
/// Folders of lost tiers that are kept for a post-mortem; older ones are removed.
pub const KEEP_LOST_TIERS: usize = 2;

const _: () = assert!(MIN_SEGMENT_BYTES.is_power_of_two() && MAX_SEGMENT_BYTES <= u32::MAX as usize);

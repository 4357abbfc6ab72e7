//! Bounds that only this crate knows.

use std::time::Duration;

use kv_types::limits::{MAX_KEY_BYTES, MAX_SESSIONS, MAX_VALUE_BYTES, SESSION_IDLE, SESSION_WINDOW};

/// Entries in one append.
pub(crate) const APPEND_ENTRIES: u64 = 1_024;
/// Bytes of entries in one append; a single entry may be larger (a value is at most 1 MiB).
pub(crate) const APPEND_BYTES: usize = 2 << 20;
/// The smallest budget of appends on a slow link.
pub(crate) const APPEND_BYTES_MIN: usize = 32 << 10;
/// How long an append may take before appends become smaller.
pub(crate) const APPEND_TARGET: Duration = Duration::from_millis(500);
/// An append on whose link nothing moves for so long is given up: far above an fsync stall, so that a
/// slow disk is not mistaken for a lost peer.
pub(crate) const APPEND_IDLE: Duration = Duration::from_secs(1);
/// However slowly it moves, an append is given up after so long. The largest entry needs a link of some
/// 20 kB/s.
pub(crate) const APPEND_AT_MOST: Duration = Duration::from_secs(60);
/// A transfer of a snapshot is given up when nothing of it has moved for so long; there is no bound on
/// the whole.
pub(crate) const SNAPSHOT_IDLE: Duration = Duration::from_secs(30);
/// Deadline of one step of a transfer: far above an fsync stall, and enough for the smallest chunk on a
/// bad link.
pub(crate) const SNAPSHOT_CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Largest piece of a snapshot in one message.
pub(crate) const CHUNK_MAX_BYTES: usize = 1 << 20;
/// Pieces are not made smaller than this when calls run out of time.
pub(crate) const CHUNK_MIN_BYTES: usize = 16 << 10;
/// Pause after a step of a transfer that failed; doubled with each that fails in a row.
pub(crate) const STEP_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
pub(crate) const STEP_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the sender asks how an installation goes.
pub(crate) const WORKING_POLL: Duration = Duration::from_millis(200);
/// Snapshots that a node receives at a time, over all groups.
pub(crate) const INCOMING_AT_ONCE: usize = 2;
/// A part of a snapshot that is not sent any further is thrown away after so long, and so long the sender
/// keeps the file.
pub(crate) const PART_KEPT: Duration = Duration::from_secs(600);
/// Longest encoded membership that a peer may announce.
pub(crate) const MEMBERSHIP_BYTES: usize = 16 << 10;
/// Share of the log's bound up to which the log keeps what followers need after a snapshot in transit.
pub(crate) const HELD_LOG_SHARE: (u64, u64) = (3, 4);
/// Complete snapshot files kept per group; a reader of a removed one keeps it open. At most one more is kept
/// for a follower that has received a part of it, and one is being written.
pub(crate) const SNAPSHOTS_KEPT: usize = 1;
/// A snapshot is due after so much of a group's log, or after half the state's size if that is more.
pub(crate) const SNAPSHOT_LOG_BYTES: u64 = 256 << 20;
/// Removed bytes that are worth a snapshot: what it gives back is at least what it costs to write.
pub(crate) const SNAPSHOT_FREED_BYTES: u64 = 64 << 20;
/// Snapshots are written at this rate, so that the log's syncs do not wait for theirs.
pub(crate) const SNAPSHOT_BYTES_PER_SECOND: u64 = 64 << 20;
/// What no longer counts is removed at this rate.
pub(crate) const REMOVED_BYTES_PER_SECOND: u64 = 16 << 20;
/// What may be written of a snapshot at once after a rest.
pub(crate) const SNAPSHOT_BURST_BYTES: u64 = 2 << 20;
/// Rows of a copy that are taken at once, bytes.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// What an entry costs in the log beside its content, about.
pub(crate) const LOG_ENTRY_BYTES: u64 = 48;
/// Parts of a namespace that a digest reads under the applied lock at most.
pub(crate) const DIGEST_PARTS_AT_CLOSE: usize = 16;
/// How long entries may wait for the end of a digest; a disk that takes longer gives none.
pub(crate) const DIGEST_CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How often a digest reads what was written to meanwhile before it tries to close.
pub(crate) const DIGEST_PASSES: usize = 4;
/// What the history of a namespace may count for, bytes. A part of the state machine: the floor follows
/// from it, and every member must get the same.
pub(crate) const HISTORY_BYTES: u64 = 256 << 20;
/// What an entry counts for beside its bytes: at least what it costs on the disk when it is alone in its
/// run and its block.
pub(crate) const HISTORY_ENTRY_BYTES: u64 = 128;
/// The floor rises by about one in so many of the bound.
pub(crate) const HISTORY_MARK_SHARE: u64 = 64;
/// A value of more bytes is not in the entry that brings it, only in the one that replaces it.
pub(crate) const HISTORY_WHOLE_VALUE_BYTES: usize = 4 << 10;
/// Entries that a digest reads under the applied lock at most.
pub(crate) const DIGEST_ENTRIES_AT_CLOSE: u64 = 1_024;
/// Bytes of entries that a snapshot takes, or an installation writes, at once.
pub(crate) const HISTORY_PAGE_BYTES: usize = 4 << 20;
/// Ranges of entries that are missing from the histories of a group, as far as they are remembered.
pub(crate) const HOLES: usize = 1_024;
/// How often a node looks whether entries of histories are missing, and the longest pause when no other
/// member has them: it doubles.
pub(crate) const MEND_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(64));
/// How long a snapshot waits for entries that are missing and may be put back.
pub(crate) const MEND_WAIT: Duration = Duration::from_secs(60);
/// Deadline of one question for missing entries.
pub(crate) const MEND_DEADLINE: Duration = Duration::from_secs(5);
/// Entries that are taken from another member to put some of them back, bytes: what stands between two
/// marks, and the entry that made the second one, with room to spare.
pub(crate) const MEND_BYTES: usize = 32 << 20;
const _: () = assert!(MEND_BYTES as u64 >= 4 * (HISTORY_BYTES / HISTORY_MARK_SHARE));
/// Tombstones that one step removes: more than it makes.
pub(crate) const TOMBSTONES_AT_ONCE: usize = 2 * STEP_ENTRIES;
/// Bytes of rows in one block of a snapshot.
pub(crate) const SNAPSHOT_BLOCK_BYTES: usize = 1 << 20;
/// Rows taken from a copy, or read from a table, at once.
pub(crate) const ROWS_AT_ONCE: usize = 1_024;
/// Shares of a group's rows for which it is known when they were last written, by a hash of the key.
pub(crate) const RECENT_SLOTS: u64 = 1 << 16;
/// How often a read takes rows that are written to while it waits for the disk, before it is refused.
pub(crate) const READ_ATTEMPTS: usize = 8;
/// Bytes of state changes that are applied at once; clients of one step are answered together.
pub(crate) const STEP_BYTES: usize = 1 << 20;
/// Entries that are applied at once.
pub(crate) const STEP_ENTRIES: usize = 256;
/// Idle sessions that one command forgets on the way.
pub(crate) const SESSIONS_FORGOTTEN_AT_ONCE: usize = 8;
/// Bytes that a session counts for besides its results, in memory and as a row.
pub(crate) const SESSION_BYTES: u64 = 192;
/// Bytes that one kept result counts for: no less than it takes in memory, or encoded.
pub(crate) const SESSION_RESULT_BYTES: u64 = 64;
/// Bytes of all sessions of a group; beyond it the one unused longest is forgotten.
pub(crate) const SESSIONS_BYTES: u64 = 64 << 20;
/// Sessions of a group whose opening was issued later than the latest clock of a leader; beyond it none
/// more is opened.
pub(crate) const MAX_SESSIONS_AHEAD: usize = MAX_SESSIONS / 8;
/// How much later than the latest clock of a leader an opening may claim to have been issued.
pub(crate) const MAX_SESSION_AHEAD: Duration = Duration::from_secs(60);
/// How far one command may move log time.
pub(crate) const LOG_TIME_STEP: Duration = Duration::from_secs(60);
/// How often the log of a group is looked at: snapshots, purges, members that are missing.
pub(crate) const STEWARD_TICK: Duration = Duration::from_millis(100);
/// A member that learns counts as caught up when it lacks fewer entries than twice this.
pub(crate) const LEARNER_LAG_ENTRIES: u64 = 100_000;
/// How long a snapshot that is written waits until openraft has heard of everything that is in it.
pub(crate) const TOLD_WAIT: Duration = Duration::from_secs(60);
/// How long an installation waits before it looks again whether the disk has room, and the sender of a
/// snapshot after its receiver first had none.
pub(crate) const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause of a sender whose receiver has no room: it doubles with each transfer that ends so.
pub(crate) const NO_ROOM_PAUSE_MAX: Duration = Duration::from_secs(8);
/// Least pause between snapshots that are taken because the log is large.
pub(crate) const SNAPSHOT_PAUSE: Duration = Duration::from_secs(10);
/// Deadline of what a steward proposes or asks.
pub(crate) const STEWARD_DEADLINE: Duration = Duration::from_secs(2);
/// How long a deletion can be undone at least since its leader saw it, unless a shorter grace was asked for:
/// also one that was due while the catalogue had no leader.
pub(crate) const UNDO_LEAST: Duration = Duration::from_secs(60);
/// How often the leader of the catalogue asks the other voters for the time, while a deletion is due later.
pub(crate) const TIME_EVERY: Duration = Duration::from_secs(1);
/// How often a node asks the other voters whether they could acknowledge entries.
pub(crate) const ABILITY_EVERY: Duration = Duration::from_secs(1);
/// Deadline of one question of a node with a fresh directory; it asks again.
pub(crate) const SURVEY_DEADLINE: Duration = Duration::from_millis(500);
/// Changes and deletions of namespaces that the catalogue remembers, to answer those who resend a request:
/// many more than a client's deadline holds, and few enough for one row.
pub(crate) const CHANGES_KEPT: usize = 256;
/// By how much the clocks of clients may differ that make and delete the same namespace: a resend that is not
/// remembered is refused if it was issued until so long after what is forgotten.
pub(crate) const FORGOTTEN_AROUND: Duration = Duration::from_secs(600);
/// Sessions of dropped namespaces that one command removes.
pub(crate) const SESSIONS_DROPPED_AT_ONCE: usize = 1_024;
/// The removal of their rows rests so many times as long as it worked, so that it leaves the processors to
/// others: where these are busy its steps take longer, and so do its rests.
pub(crate) const REMOVAL_REST: u32 = 4;
/// Pause after rows of dropped namespaces could not be removed, before it is tried again.
pub(crate) const REMOVAL_PAUSE: Duration = Duration::from_secs(1);
/// Default of [`crate::config::RaftConfig::backlog_entries`]: a few times what keeps a quorum busy
/// (throughput is flat from 256 in flight on), and so little that the last one in waits for a fraction of a
/// second.
pub(crate) const BACKLOG_ENTRIES: u64 = 4_096;
/// Default of [`crate::config::RaftConfig::backlog_bytes`]. Half of it, what one namespace may use, holds
/// several of the largest values.
pub(crate) const BACKLOG_BYTES: u64 = 32 << 20;
/// Default of [`crate::config::RaftConfig::pipeline_entries`]: as many as keep a quorum busy.
pub(crate) const PIPELINE_ENTRIES: u64 = 128;
/// Default of [`crate::config::RaftConfig::pipeline_bytes`].
pub(crate) const PIPELINE_BYTES: u64 = 2 << 20;
/// Entries that a namespace may have with Raft besides the pipeline's: what a calm one asks for.
pub(crate) const CALM_ENTRIES: u64 = 4;
/// Their bytes.
pub(crate) const CALM_BYTES: u64 = 64 << 10;
/// And no more than one in so many of what the pipeline holds.
pub(crate) const CALM_SHARE: u64 = 32;
/// Default of [`crate::config::RaftConfig::apply_lag_entries`]: some seconds of applying, so that the applier
/// of a follower that catches up never waits for its leader.
pub(crate) const APPLY_LAG_ENTRIES: u64 = 32_768;
/// [`crate::config::RaftConfig::backlog_entries`] is at most this.
pub(crate) const MAX_BACKLOG_ENTRIES: u64 = 1 << 17;
/// [`crate::config::RaftConfig::apply_lag_entries`] is at most this.
pub(crate) const MAX_APPLY_LAG_ENTRIES: u64 = 1 << 18;
/// What is proposed and not applied is, for each group, at most one part in so many of the log's bound.
pub(crate) const BACKLOG_LOG_SHARE: u64 = 16;
/// What a proposal costs beside its bytes: its responder, its places in queues and indexes.
pub(crate) const PROPOSAL_OVERHEAD_BYTES: u64 = 512;
/// The part of the log's bound, one in so many, above which snapshots are taken early and the log below
/// them is not kept. Derived, so that no setting makes trimming start only when writes are refused.
pub(crate) const LOG_WANTED_SHARE: u64 = 2;
/// A term of a peer may be so far above the known one: no cluster holds as many elections, and to use up
/// all terms takes as many messages again.
pub(crate) const TERM_LEAP: u64 = 1 << 32;
/// Largest command in an entry: the largest key and value, and what names them.
pub(crate) const MAX_COMMAND_BYTES: usize = MAX_VALUE_BYTES + MAX_KEY_BYTES + (4 << 10);
/// No log has as many entries; arithmetic on an index does not overflow below it.
pub(crate) const MAX_INDEX: u64 = 1 << 62;
/// Pause after the leadership was moved on request, before it is moved again.
pub(crate) const TRANSFER_PAUSE: Duration = Duration::from_secs(5);
/// A log that owes answers and gave none for so long hangs: a leader gives up then. Far above the slowest
/// healthy fsync; one of 1.5 s costs no election.
pub(crate) const DISK_SILENCE: Duration = Duration::from_secs(3);
/// How often a leader whose disk hangs tries to hand its leadership over.
pub(crate) const GIVE_UP_EVERY: Duration = Duration::from_secs(1);
/// When a leader may come back to a follower whose log is full or that has much to apply, as told to it.
pub(crate) const FULL_LOG_RETRY_MS: u32 = 500;
/// How long a read may wait for a quorum when the last one is older than the lease.
pub(crate) const DOUBTFUL_READ_WAIT: Duration = Duration::from_millis(25);
/// When a refused request may come back: about what is left of an election.
pub(crate) const RETRY_AFTER_MS: u32 = 100;

/// A full window leaves room for other sessions, and none is forgotten as idle before its issue time has
/// come.
const _: () = assert!(SESSION_BYTES + SESSION_WINDOW * SESSION_RESULT_BYTES <= SESSIONS_BYTES / 512);
const _: () = assert!(MAX_SESSIONS as u64 * (SESSION_BYTES + SESSION_RESULT_BYTES) <= SESSIONS_BYTES);
const _: () = assert!(MAX_SESSION_AHEAD.as_secs() < SESSION_IDLE.as_secs());
/// The accounts of two groups take half of what the log keeps for Raft's records above its bound; what
/// entries cost beside their bytes fits in the other half.
const _: () = assert!(2 * kv_storage::limits::RAFT_RESERVE_SHARE * 2 <= BACKLOG_LOG_SHARE);

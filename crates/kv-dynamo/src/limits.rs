//! The bounds of this crate, each tested at the bound or chosen here with its reason.

use std::time::Duration;

use kv_types::limits::{
    MAX_CLOCK_RANGES, MAX_CLOCK_SKEW, MAX_CONTEXT_RANGES, MAX_KEY_BYTES, MAX_REPLICAS, MAX_VALUE_BYTES,
    REQUEST_WINDOW,
};

/// How long a replica may be silent before another stands in for it: several round trips and a slow fsync.
pub const PATIENCE: Duration = Duration::from_millis(120);
/// How long an entry node waits for the replica that coordinates on its behalf: it has its own [`PATIENCE`]
/// with others.
pub const FORWARD_PATIENCE: Duration = Duration::from_millis(250);
/// How often waits look at liveness.
pub const LOOK_AROUND: Duration = Duration::from_millis(20);
/// Writes and reads that a node coordinates at once, those that only settle included.
pub const COORDINATED: usize = 8_192;
/// Bytes of the answers of replicas to reads that a node coordinates and that wait for more of them.
pub const ANSWER_BYTES: usize = 128 << 20;
/// An answer of at most so many bytes is not counted: [`COORDINATED`] bounds those.
pub const SMALL_ANSWER_BYTES: usize = 1 << 10;
const _: () = assert!(ANSWER_BYTES >= MAX_REPLICAS as usize * BATCH_BYTES);
/// How long nodes have to answer where a key is explained.
pub const EXPLAIN: Duration = Duration::from_millis(500);
/// Fallbacks that are asked there, the first ones.
pub const EXPLAINED_FALLBACKS: usize = 8;
/// Read repairs under way.
pub const REPAIRS: usize = 64;
/// Bytes of hints that a node holds; beyond it the node refuses to be a fallback.
pub const HINT_BYTES: u64 = 1 << 30;
/// Writes that one hint row gathers before the next row of the same key begins: rewriting a row costs its
/// length.
pub const HINT_ROW_WRITES: usize = 128;
/// Hints read from storage at a time, per target.
pub const HINT_PAGE: usize = 256;
/// Hints under way, per target.
pub const HINTS_IN_FLIGHT: usize = 64;
/// Bytes of hints under way, per target; one that is larger goes alone.
pub const HINT_BYTES_IN_FLIGHT: usize = 4 << 20;
/// Hints that are read and wait for room among those bytes, per target.
pub const HINTS_READ: usize = 8;
/// How long one message of the background may take, or may find its link at rest.
pub const BACKGROUND_CALL: Duration = Duration::from_millis(1_000);
/// How long a message of the background may take on a link that moves: the largest record on a link of a few
/// dozen kB a second.
pub const BACKGROUND_AT_MOST: Duration = Duration::from_secs(60);
/// First and longest pause after a failed round of the background.
pub const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1_000));
/// Hints of one target that are remembered as refused for what is in them.
pub const SET_ASIDE: usize = 1024;
/// How long such a hint waits after its first try, and at most: twice as long after each.
pub const SET_ASIDE_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How much time lies at least between two lines of the log about refusals of one target.
pub const REFUSAL_TOLD: Duration = Duration::from_secs(60);
/// Records that a rebuild leaves out because this node cannot take them; with more of them it does not end.
pub const LACKING: usize = 1024;
/// How long a request is known after it was issued: twice the window, so that nodes whose clocks differ do
/// not forget what another still has to prove.
pub const REQUEST_KEPT: Duration = Duration::from_secs(2 * REQUEST_WINDOW.as_secs());
/// How long a request is known after it was issued where a dot log is more than half as long as it may be:
/// as long as any node takes a resend of it, by its clock, and as what is minted then may take to get here.
pub const REQUEST_KEPT_CROWDED: Duration = Duration::from_millis(
    (REQUEST_WINDOW.as_millis() + 2 * MAX_CLOCK_SKEW.as_millis() + BACKGROUND_AT_MOST.as_millis()) as u64,
);
const _: () = assert!(REQUEST_KEPT_CROWDED.as_millis() < REQUEST_KEPT.as_millis());
/// How often records that were ahead of the node clock are stripped again, how many are looked at in one
/// step, and the pause between steps.
pub const STRIP: (Duration, usize, Duration) = (Duration::from_secs(1), 64, Duration::from_millis(5));
/// The longest pause while none of them can be stripped.
pub const STRIP_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a ring partition's clock stays behind before the other primaries are asked for the records of
/// what is missing, by their dot logs.
pub const CATCH_UP_BY_LOG: Duration = Duration::from_secs(3);
/// How long that waits while hints arrive, for this ring partition or others: they come in the order of
/// their keys.
pub const HINTS_FIRST: Duration = Duration::from_secs(60);
/// Ring partitions for which logs are asked in one round.
pub const ASKED_BY_LOG: usize = 32;
/// How often it is looked for ring partitions whose clock stays behind, how long that lasts before the other
/// primaries are asked for all of it, and how long it takes at most before they are asked again.
pub const CATCH_UP: (Duration, Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(15), Duration::from_secs(600));
/// How often node clocks are compared with those of the other primaries.
pub const COMPARE: Duration = Duration::from_secs(10);
/// How often it is looked for nodes that are back: with those they are compared at once.
pub const COMPARE_LOOK: Duration = Duration::from_secs(1);
/// Clocks in one question, and bytes of those that differ in one answer; a single one may be longer.
pub const COMPARED: usize = 4_096;
/// As [`COMPARED`] says.
pub const COMPARED_BYTES: usize = 1 << 20;
/// Records, or hints, of deleted namespaces that are removed in one step, and their bytes: few, for a write
/// to the ring partition waits for it.
pub const REMOVED_AT_ONCE: (usize, usize) = (64, 256 << 10);
/// Bytes of them that are removed in a second.
pub const REMOVED_PER_SECOND: u64 = 16 << 20;
/// The removal rests so many times as long as it worked, so that it leaves the processors to others: where
/// these are busy its steps take longer, and so do its rests.
pub const REMOVAL_REST: u32 = 4;
/// Pause before what could not be removed is tried again.
pub const REMOVAL_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the concurrent values of one key that a client write may make. A merge may exceed it, by as much
/// as every replica could take on its own: that must fit into [`BATCH_BYTES`], or replicas could never become
/// equal again. A fallback that coordinates writes as much in one batch: a copy for each replica.
pub const RECORD_BYTES: usize = kv_types::limits::MAX_SIBLINGS_BYTES;
/// Bytes that kv-storage has to take in one batch (`StorageOptions::max_record_bytes`).
pub const BATCH_BYTES: usize = 16 << 20;
/// Room in a batch for what stands beside the values of one copy: keys, contexts, writes, dot log, clock.
const BESIDE_VALUES: usize = 256 << 10;
const _: () = assert!(MAX_REPLICAS as usize * (RECORD_BYTES + BESIDE_VALUES) <= BATCH_BYTES);
const _: () = assert!(MAX_VALUE_BYTES + MAX_KEY_BYTES <= RECORD_BYTES);
/// Ranges of dots that a stored record claims beside those of its values. It leaves this node filled: with
/// the node clock, with that of a source that it is being pulled from, and with those of sources that were
/// pulled but for some keys. The node that gets it must be able to read all of them.
pub const ROW_RANGES: usize = MAX_CLOCK_RANGES;
const _: () = assert!(ROW_RANGES + 3 * MAX_CLOCK_RANGES <= MAX_CONTEXT_RANGES);
/// Bytes of a page when a ring partition is pulled.
pub const PULL_PAGE_BYTES: u32 = 1 << 20;
/// Bytes of the first page of a pull, and the smallest. The next is twice as large when it came quickly.
pub const PULL_PAGE_LEAST: u32 = 64 << 10;
/// How quickly a page comes that may be followed by a larger one, and how long one may take at first. Twice
/// as long after it was late, but [`BACKGROUND_AT_MOST`].
pub const PULL_TIME: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Pulls of one ring partition that were given up and are remembered, each of which has what no later one
/// has: as many as there may be other sources.
pub const GIVEN_UP: usize = MAX_REPLICAS as usize;
/// How often it is looked for entries of dot logs that can go.
pub const TRIM: Duration = Duration::from_secs(5);
/// Entries of the dot log of one ring partition, and requests that they name; beyond it the oldest are given
/// up, with their requests. In memory a request takes about 130 bytes.
pub const LOG_ENTRIES: u64 = 1 << 17;
/// Bytes of the dot logs of a node; beyond it the oldest entries of each are given up.
pub const LOG_BYTES: u64 = 256 << 20;
/// So many entries after the clock was written down it is written again, with a write.
pub const LOG_CLOCK_EVERY: u64 = 256;
/// What an entry counts for beside its content: where entries are few, each has a block of its own in the
/// journal, with a line in its directory and one in the index in memory.
pub const LOG_ENTRY_BYTES: u64 = 192;
/// Moments of a dot log that are remembered, and ranges of what is new in one.
pub const LOG_MARKS: usize = 16;
/// As [`LOG_MARKS`] says.
pub const LOG_MARK_RANGES: usize = 1_024;
/// Dots that one question about missing writes names as ranges, and dots of which one answer tells, nearly.
pub const LOG_DOTS: usize = 2_048;
/// Records that are read together for such an answer.
pub const LOG_KEYS: usize = 8;
const _: () = assert!(LOG_KEYS * (RECORD_BYTES + BESIDE_VALUES) <= kv_storage::limits::MAX_READ_BYTES);
/// Ring partitions pulled at once.
pub const PULLS: usize = 8;
/// Rows read at a time where all rows of a ring partition are looked at.
pub const SCAN_ROWS: usize = 512;
/// Bytes of keys and values read at a time there.
pub const SCAN_BYTES: usize = 1 << 20;
/// Rows that one read by key asks for.
pub const READ_KEYS: usize = 256;
const _: () = assert!(READ_KEYS <= kv_storage::limits::MAX_READ_KEYS);
/// How often an operation may find that it needs further rows: the record, the requests of its values, and
/// those of values that others merged meanwhile.
pub const READ_ROUNDS: usize = 16;
/// How long one read of the background, or of a node that starts, may take.
pub const BACKGROUND_READ: Duration = Duration::from_secs(10);

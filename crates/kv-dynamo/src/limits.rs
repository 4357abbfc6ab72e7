//! The bounds of this crate, each tested at the bound or chosen here with its reason.

use std::time::Duration;

use kv_types::limits::REQUEST_WINDOW;

/// How long a replica may be silent before another stands in for it: several round trips and a slow fsync.
pub const PATIENCE: Duration = Duration::from_millis(120);
/// How long an entry node waits for the replica that coordinates on its behalf: it has its own [`PATIENCE`] with others.
pub const FORWARD_PATIENCE: Duration = Duration::from_millis(250);
/// How often waits look at liveness.
pub const LOOK_AROUND: Duration = Duration::from_millis(20);
/// Writes and reads that a node coordinates at once, those that only settle included.
pub const COORDINATED: usize = 8_192;
/// Read repairs under way.
pub const REPAIRS: usize = 64;
/// Bytes of hints that a node holds; beyond it the node refuses to be a fallback.
pub const HINT_BYTES: u64 = 1 << 30;
/// Writes that one hint row gathers before the next row of the same key begins: rewriting a row costs its length.
pub const HINT_ROW_WRITES: usize = 128;
/// Hints read from storage at a time, per target.
pub const HINT_PAGE: usize = 256;
/// Hints under way, per target.
pub const HINTS_IN_FLIGHT: usize = 64;
/// How long one message of the background may take.
pub const BACKGROUND_CALL: Duration = Duration::from_millis(1_000);
/// First and longest pause after a failed round of the background.
pub const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1_000));
/// Entries of the request table of one ring partition; beyond it new writes are refused.
pub const REQUESTS: u64 = 1 << 17;
/// How long an entry of the request table stays after its request was issued: twice the window, so that nodes whose
/// clocks differ do not forget what another still has to prove.
pub const REQUEST_KEPT: Duration = Duration::from_secs(2 * REQUEST_WINDOW.as_secs());
/// How often expired entries are looked for, and how many go at a time.
pub const SWEEP: (Duration, usize) = (Duration::from_secs(1), 512);
/// Bytes of one record (a key with all its siblings) that a client write may make; a merge may exceed it.
pub const RECORD_BYTES: usize = 8 << 20;
/// Bytes of a page when a ring partition is pulled.
pub const PULL_PAGE_BYTES: u32 = 1 << 20;
/// Ring partitions pulled at once.
pub const PULLS: usize = 8;
/// Rows read at a time where all rows of a ring partition are looked at.
pub const SCAN_ROWS: usize = 512;

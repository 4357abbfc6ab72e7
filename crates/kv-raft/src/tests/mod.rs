//! Tests of what only this crate can see: openraft's conformance suite on our storage, and the rules of the
//! state machine.

mod bench;
mod conformance;
mod drops;
mod gated;
mod history;
mod installs;
mod peers;
mod pressure;
mod sessions;
mod transfers;
mod writes;

use std::sync::Arc;

use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_storage::{Storage, StorageOptions};

/// A storage in memory.
fn memory(seed: u64) -> Storage {
    let options = StorageOptions { max_record_bytes: 1 << 20, ..StorageOptions::memory("/memory") };
    Storage::open(options, Arc::new(MemDisk::new(seed)), Arc::new(MemTiers::new())).unwrap().0
}

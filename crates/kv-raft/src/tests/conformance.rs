//! openraft's own suite for log stores and state machines, on both worlds of kv-storage.

use std::sync::atomic::{AtomicU64, Ordering};

use kv_storage::{Storage, StorageOptions};
use kv_types::GroupId;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::config::TypeConfig;
use crate::disk_watch::DiskWatch;
use crate::kv_machine::KvMachine;
use crate::log_store::LogStore;
use crate::machine::Machine;

async fn stores(storage: &Storage) -> (LogStore, Machine) {
    let machine =
        Machine::open(storage.clone(), GroupId(1), KvMachine::new(Default::default())).await.unwrap();
    (LogStore::new(storage.raft(GroupId(1)), DiskWatch::default()), machine)
}

/// Keeps a storage and its directory as long as a test runs.
struct Guard(Storage, #[expect(dead_code, reason = "removed when dropped")] Option<tempfile::TempDir>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.halt();
    }
}

struct RealDir;

impl StoreBuilder<TypeConfig, LogStore, Machine, Guard> for RealDir {
    async fn build(&self) -> Result<(Guard, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = StorageOptions {
            segment_bytes: 4 << 20,
            max_record_bytes: 1 << 20,
            ..StorageOptions::new(dir.path())
        };
        let (storage, _) = Storage::open_dir(options, kv_storage::tier::TierKind::default()).unwrap();
        let (log, machine) = stores(&storage).await;
        Ok((Guard(storage, Some(dir)), log, machine))
    }
}

#[derive(Default)]
struct Memory(AtomicU64);

impl StoreBuilder<TypeConfig, LogStore, Machine, Guard> for Memory {
    async fn build(&self) -> Result<(Guard, LogStore, Machine), StorageError<TypeConfig>> {
        let storage = super::memory(self.0.fetch_add(1, Ordering::Relaxed));
        let (log, machine) = stores(&storage).await;
        Ok((Guard(storage, None), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_directory_conforms() {
    Suite::test_all(RealDir).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    Suite::test_all(Memory::default()).await.unwrap();
}

//! What each kind of tier must do by itself, and what becomes of one that is damaged, torn, in use or fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test"
)]

mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kv_storage::{
    Batch, Storage, StorageError, StorageOptions,
    tier::{MemTiers, Tier, TierError, TierFolders, TierKind, TierMark, TierSource},
};
use world::T;

fn key(n: u32) -> Bytes {
    Bytes::from([&[0, 16], format!("{n:06}").as_bytes()].concat())
}

fn mark(batch: u64) -> TierMark {
    TierMark { id: 9, drained: batch * 10, batch }
}

/// Batch number `batch`: a row of its own, and one row that every batch writes.
/// Every third value is so large that fjall keeps it apart from its key.
fn apply(tier: &dyn Tier, batch: u64, bytes: usize) {
    let bytes = if batch.is_multiple_of(3) { bytes.max(8_000) } else { bytes };
    let value = Bytes::from(vec![batch as u8; bytes]);
    let rows = [(key(0), Some(value.clone())), (key(batch as u32), Some(value))];
    tier.apply(&rows, mark(batch)).unwrap();
}

fn open(kind: TierKind, dir: &Path) -> Arc<dyn Tier> {
    for _ in 0..500 {
        match TierFolders::new(kind).open(dir) {
            Err(TierError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.unwrap(),
        }
    }
    panic!("the tier stays locked");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What tells a folder that changed from one at rest.
fn state(dir: &Path) -> Vec<(PathBuf, Option<(u64, std::time::SystemTime)>)> {
    let of = |path: &Path| path.metadata().ok().map(|m| (m.len(), m.modified().unwrap()));
    files(dir).into_iter().map(|path| (path.clone(), of(&path))).collect()
}

/// The folder as a power cut would leave it at best: a copy taken while it is open, of one moment.
fn copy(from: &Path) -> tempfile::TempDir {
    for _ in 0..1000 {
        let before = state(from);
        let to = tempfile::tempdir().unwrap();
        let mut whole = true;
        for (path, _) in &before {
            let target = to.path().join(path.strip_prefix(from).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            whole &= fs::copy(path, target).is_ok();
        }
        if whole && state(from) == before {
            return to;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the folder never rests");
}

/// The tier has exactly the batches up to its mark; gives the mark's number.
fn whole(tier: &dyn Tier) -> u64 {
    let found = tier.mark().unwrap().unwrap_or_default();
    let rows = tier.scan(&[0, 16], None, 100_000, usize::MAX).unwrap().rows;
    let expected: Vec<Bytes> = (0..=found.batch as u32).map(key).collect();
    if found.batch > 0 {
        assert_eq!(rows.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(found, mark(found.batch));
        assert_eq!(rows[0].1[0], found.batch as u8, "the row of all batches is that of the last one");
    } else {
        assert_eq!(rows, []);
    }
    found.batch
}

#[test]
fn scans_end_at_their_bounds_on_every_tier() {
    let dir = tempfile::tempdir().unwrap();
    let (fjall, sled) = (dir.path().join("fjall"), dir.path().join("sled"));
    let tiers = [
        MemTiers::new().open("/data".as_ref()).unwrap(),
        open(TierKind::Fjall, &fjall),
        open(TierKind::Sled, &sled),
    ];
    for tier in tiers {
        let rows: Vec<_> = (0..50).map(|n| (key(n), Some(Bytes::from(vec![1; 92])))).collect();
        tier.apply(&rows, mark(1)).unwrap();
        tier.checkpoint().unwrap();
        // Deleted rows count for nothing.
        tier.apply(&[(key(3), None), (key(4), None)], mark(2)).unwrap();
        let part = |from: u32, to: Option<u32>, rows, bytes| {
            let chunk = tier.scan(&key(from), to.map(key).as_deref(), rows, bytes).unwrap();
            (chunk.rows.len(), chunk.more)
        };
        assert_eq!(part(0, None, 100, 1 << 20), (48, false), "{tier:?}");
        assert_eq!(part(0, None, 48, 1 << 20), (48, false), "{tier:?}");
        assert_eq!(part(0, None, 47, 1 << 20), (47, true), "{tier:?}");
        assert_eq!(part(0, None, 100, 1000), (10, true), "{tier:?}");
        assert_eq!(part(0, None, 100, 999), (9, true), "{tier:?}");
        assert_eq!(part(0, None, 100, 1), (1, true), "{tier:?}");
        assert_eq!(part(10, Some(20), 100, 1000), (10, false), "{tier:?}");
        assert_eq!(part(20, Some(10), 100, 1000), (0, false), "{tier:?}");
        // The mark is not among the rows, wherever a scan starts.
        let all = tier.scan(&[], None, 100, usize::MAX).unwrap().rows;
        assert_eq!((all.len(), &all[0].0), (48, &key(0)), "{tier:?}");
    }
}

#[test]
fn a_copy_of_the_folder_is_the_state_of_a_whole_batch() {
    for kind in TierKind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let tier = open(kind, dir.path());
        let mut batch = 0;
        for round in 0..4 {
            for _ in 0..20 {
                batch += 1;
                apply(&*tier, batch, 2_000);
            }
            let checkpointed = batch;
            tier.checkpoint().unwrap();
            for _ in 0..round * 7 {
                batch += 1;
                apply(&*tier, batch, 2_000);
            }
            let copy = copy(dir.path());
            let found = whole(&*open(kind, copy.path()));
            assert!(found >= checkpointed && found <= batch, "{kind}: {checkpointed}, {found}, {batch}");
        }
    }
}

#[test]
fn journals_of_fjall_are_not_needed_and_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(TierKind::Fjall, dir.path());
    for batch in 1..=30 {
        apply(&*tier, batch, 2_000);
    }
    tier.checkpoint().unwrap();
    for batch in 31..=40 {
        apply(&*tier, batch, 2_000);
    }
    type Damage = fn(&Path);
    let damages: [Damage; 4] = [
        |journal| fs::remove_file(journal).unwrap(),
        |journal| fs::write(journal, b"").unwrap(),
        |journal| fs::write(journal, vec![0xa5; 100_000]).unwrap(),
        |journal| {
            // A batch of which the middle never reached the disk.
            let mut bytes = fs::read(journal).unwrap();
            bytes[5_000..9_000].fill(0);
            fs::write(journal, bytes).unwrap();
        },
    ];
    for damage in damages {
        let copy = copy(dir.path());
        let journals: Vec<_> =
            files(copy.path()).into_iter().filter(|f| f.extension().is_some_and(|e| e == "jnl")).collect();
        assert!(!journals.is_empty());
        journals.iter().for_each(|journal| damage(journal));
        let tier = open(TierKind::Fjall, copy.path());
        assert_eq!(whole(&*tier), 30);
        // What is written afterwards wins over what was there, also after the next start.
        for batch in 31..=33 {
            apply(&*tier, batch, 100);
        }
        assert_eq!(whole(&*tier), 33);
        tier.checkpoint().unwrap();
        drop(tier);
        assert_eq!(whole(&*open(TierKind::Fjall, copy.path())), 33);
    }
}

#[test]
fn a_tier_is_open_once() {
    for kind in TierKind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let tier = open(kind, dir.path());
        apply(&*tier, 1, 100);
        let again = TierFolders::new(kind).open(dir.path());
        assert!(matches!(&again, Err(TierError::InUse(_))), "{again:?}");
        apply(&*tier, 2, 100);
        tier.checkpoint().unwrap();
        drop(tier);
        assert_eq!(whole(&*open(kind, dir.path())), 2);
    }
}

/// All rows, or what kept us from reading them.
fn read_all(kind: TierKind, dir: &Path) -> Result<Vec<(Bytes, Bytes)>, TierError> {
    let tier = TierFolders::new(kind).open(dir)?;
    tier.mark()?;
    Ok(tier.scan(&[0, 16], None, 100_000, usize::MAX)?.rows)
}

#[test]
fn a_flipped_bit_in_a_file_of_fjall_is_damage_and_never_another_row() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(TierKind::Fjall, dir.path());
    for batch in 1..=60 {
        apply(&*tier, batch, 1_000);
    }
    tier.checkpoint().unwrap();
    drop(tier);
    let expected = read_all(TierKind::Fjall, dir.path()).unwrap();
    assert_eq!(expected.len(), 61);
    for folder in ["1/tables", "1/blobs"] {
        let first = |dir: &Path| -> PathBuf {
            let mut found = files(dir);
            found.retain(|f| f.parent().unwrap().ends_with(folder) && f.metadata().unwrap().len() > 0);
            found.swap_remove(0)
        };
        let (mut damaged, mut unharmed) = (0, 0);
        for part in 0..60 {
            let copy = copy(dir.path());
            let file = first(copy.path());
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes.len() * part / 60;
            bytes[at] ^= 4;
            fs::write(file, bytes).unwrap();
            match read_all(TierKind::Fjall, copy.path()) {
                Ok(rows) => {
                    assert_eq!(rows, expected, "{folder}, byte {at}");
                    unharmed += 1;
                }
                Err(TierError::Damaged(_)) => damaged += 1,
                Err(other) => panic!("{folder}, byte {at}: {other}"),
            }
        }
        assert!(damaged >= 50, "{folder}: {damaged} damaged, {unharmed} in bytes that no read needs");
    }
}

#[test]
fn a_damaged_tier_is_named_set_aside_and_rebuilt() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        for kind in TierKind::ALL {
            let dir = tempfile::tempdir().unwrap();
            let options = StorageOptions {
                segment_bytes: 4 << 20,
                max_log_bytes: 64 << 20,
                ..StorageOptions::small(dir.path())
            };
            let (s, _) = Storage::open_dir(options.clone(), kind).unwrap();
            for n in 0..50 {
                let position = s
                    .commit(Batch::new().put(
                        T,
                        format!("{n:03}"),
                        vec![n; if n % 3 == 0 { 8_000 } else { 2_000 }],
                    ))
                    .unwrap();
                s.durable(position).await.unwrap();
            }
            s.checkpoint().await.unwrap();
            s.shutdown().await;
            drop(s);
            for file in files(&dir.path().join("tier")) {
                let mut bytes = fs::read(&file).unwrap();
                // Rows, wherever the library keeps them.
                for at in (64..bytes.len()).step_by(97) {
                    if bytes[at] != 0 && bytes[at - 1] == bytes[at] {
                        bytes[at] ^= 0x10;
                    }
                }
                fs::write(&file, bytes).unwrap();
            }
            let (mut s, mut recovery) = Storage::open_dir(options.clone(), kind).unwrap();
            if recovery.tier_error.is_none() {
                // It opened: then a read finds the damage, and the engine stops by that name.
                let e = s.scan(T, b"", None, 100).unwrap_err();
                assert!(matches!(&e, StorageError::Tier(TierError::Damaged(_))), "{kind}: {e}");
                assert_eq!(s.check(), Err(e));
                s.shutdown().await;
                (s, recovery) = Storage::open_dir(options.clone(), kind).unwrap();
            }
            assert!(recovery.tier_rebuilt && recovery.tier_error.is_some(), "{kind}: {recovery:?}");
            assert_eq!(s.scan(T, b"", None, 100).unwrap().len(), 50, "{kind}");
            s.shutdown().await;
            assert!(dir.path().join("tier.lost-1").exists(), "{kind}");
        }
    });
}

#[test]
fn a_worker_of_fjall_that_failed_is_an_error_and_not_a_wait_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(TierKind::Fjall, dir.path());
    apply(&*tier, 1, 100);
    // No table can be written any more.
    let tables = dir.path().join("tier/keyspaces/1/tables");
    fs::rename(&tables, tables.with_extension("gone")).unwrap();
    fs::write(&tables, b"").unwrap();
    let e = tier.checkpoint().unwrap_err();
    assert_eq!(e, TierError::Io("an earlier write of the tier failed".into()));
    let big = Bytes::from(vec![1; 1 << 20]);
    let e = tier.apply(&[(key(1), Some(big))], mark(2)).unwrap_err();
    assert!(matches!(e, TierError::Io(_)), "{e}");
    assert!(tier.get(&key(1)).is_ok(), "readers go on");
}

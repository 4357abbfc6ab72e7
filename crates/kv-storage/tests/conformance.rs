//! What every pair of disk and tier must do: one suite, run on the machine's files with each kind of tier
//! and on the disk in memory that loses and tears what was not synced.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test"
)]

mod world;

use std::{collections::VecDeque, task::Poll, time::Duration};

use bytes::Bytes;
use kv_storage::{
    Batch, BlockKind, CopyRow, Drive, Identity, RaftEntry, RaftLog, RaftLogId, Storage, StorageError, limits,
    tier::TierKind,
};
use kv_types::{ClusterId, GroupId, NodeId};
use tokio::sync::oneshot;
use world::{Mem, Real, T, U, World, run, until};

/// Each case on all worlds, on the torn one with several seeds.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod fjall { $( #[test] fn $name() { super::$name(&mut super::Real::new(super::TierKind::Fjall)); } )* }
        mod sled { $( #[test] fn $name() { super::$name(&mut super::Real::new(super::TierKind::Sled)); } )* }
        mod torn { $( #[test] fn $name() { for seed in 0..6 { super::$name(&mut super::Mem::new(seed)); } } )* }
    };
}

suite! {
    rows_and_scans, what_is_acknowledged_survives_a_power_cut, batches_are_atomic_and_survive, unawaited_commits_vanish_only_as_a_suffix, small_state,
    derived_rows, drain_checkpoint_and_segment_drop, tier_deleted_with_the_whole_log, tier_deleted_with_a_cut_log,
    raft_log, a_vote_is_durable_when_it_is_saved, raft_truncate_append_crash, raft_purge_beyond_the_end, laggards_are_copied_forward, log_full_names_who,
    foreign_directory, a_state_is_loaded_beside_another_and_switched, snapshot_files, the_newest_snapshot_that_can_be_read_is_kept, damaged_snapshot_files_are_refused, snapshots_are_synced_in_pieces, damage_in_the_middle_is_refused,
    a_missing_segment_is_refused,
}

async fn put(s: &Storage, key: &str, value: &str) {
    let position = s.commit(Batch::new().put(T, key, value)).unwrap();
    s.durable(position).await.unwrap();
}

fn get(s: &Storage, key: &str) -> Option<Bytes> {
    s.get(T, key.as_bytes()).unwrap().map(|row| row.value)
}

fn keys(s: &Storage, limit: usize) -> Vec<String> {
    let rows = s.scan(T, b"", None, limit).unwrap();
    rows.into_iter().map(|(k, _)| String::from_utf8(k.to_vec()).unwrap()).collect()
}

fn rows_and_scans(w: &mut dyn World) {
    run(async {
        let (s, recovery) = w.open();
        assert!(recovery.fresh && !recovery.tier_lost);
        for n in 0..50 {
            put(&s, &format!("k{n:02}"), "old").await;
        }
        s.checkpoint().await.unwrap();
        assert_eq!(s.stats().memtable_bytes, 0);
        // Above the tier: a newer value, a tombstone, a key of another table.
        put(&s, "k01", "new").await;
        let batch = Batch::new().delete(T, "k02").put(U, "k03", "other");
        let position = s.commit(batch).unwrap();
        assert_eq!(s.get(U, b"k03").unwrap().unwrap().position, position);
        assert_eq!(
            (get(&s, "k01").unwrap(), get(&s, "k02"), get(&s, "k49").unwrap()),
            ("new".into(), None, "old".into())
        );
        assert_eq!(keys(&s, 3), ["k00", "k01", "k03"]);
        assert_eq!(keys(&s, 1000).len(), 49);
        let part = s.scan(T, b"k10", Some(b"k12"), 10).unwrap();
        assert_eq!(part.len(), 2);
        assert_eq!(s.scan(T, b"k12", Some(b"k10"), 10).unwrap(), []);
        assert_eq!(s.scan(U, b"", None, 10).unwrap().len(), 1);
        s.checkpoint().await.unwrap();
        assert_eq!(keys(&s, 1000).len(), 49);
        s.shutdown().await;
        assert_eq!(s.commit(Batch::new().put(T, "x", "")), Err(StorageError::Closed));
        drop(s);
        let (s, recovery) = w.open();
        assert!(!recovery.fresh);
        assert_eq!((get(&s, "k01").unwrap(), get(&s, "k02")), ("new".into(), None));
    });
}

fn what_is_acknowledged_survives_a_power_cut(w: &mut dyn World) {
    run(async {
        for n in 1..20_u64 {
            let (s, _) = w.open();
            assert_eq!(keys(&s, 100).len() as u64, n - 1, "rows");
            let log = s.raft(GroupId(1));
            assert_eq!(ids(&log), (1..n).map(|index| (1, index)).collect::<Vec<_>>(), "entries");
            append_durably(&log, vec![entry(1, n, 10)]).await;
            put(&s, &format!("{n:02}"), "v").await;
            w.crash(s);
        }
    });
}

fn batches_are_atomic_and_survive(w: &mut dyn World) {
    run(async {
        let (mut s, _) = w.open();
        for round in 0..4 {
            for n in 0..20 {
                let value = format!("{round}-{n}");
                let batch = Batch::new().put(T, "a", &value).put(U, "b", &value).small_put("c", &value);
                let position = s.commit(batch).unwrap();
                s.durable(position).await.unwrap();
            }
            // One more that no one waits for: wholly there or not at all.
            s.commit(Batch::new().put(T, "a", "x").put(U, "b", "x").small_put("c", "x")).unwrap();
            w.crash(s);
            s = w.open().0;
            let a = get(&s, "a").unwrap();
            assert!(a == format!("{round}-19") || a == "x", "{a:?}");
            assert_eq!(s.get(U, b"b").unwrap().unwrap().value, a);
            assert_eq!(s.small_get(b"c").unwrap(), a);
        }
    });
}

fn unawaited_commits_vanish_only_as_a_suffix(w: &mut dyn World) {
    run(async {
        let (mut s, _) = w.open();
        let mut n = 0;
        for round in 0..5 {
            let mut awaited = n;
            for burst in 0..30 {
                n += 1;
                let batch = Batch::new().put(T, format!("{n:06}"), vec![round; 700]);
                let position = if burst % 3 == 0 { s.commit_bulk(batch) } else { s.commit(batch) }.unwrap();
                if burst == 15 {
                    s.durable(position).await.unwrap();
                    awaited = n;
                }
            }
            w.crash(s);
            s = w.open().0;
            let found = keys(&s, 10_000);
            let expected: Vec<String> = (1..=found.len()).map(|n| format!("{n:06}")).collect();
            assert_eq!(found, expected, "a prefix, without holes");
            assert!(found.len() >= awaited, "{} of {awaited} acknowledged", found.len());
            n = found.len();
        }
    });
}

fn small_state(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        let p = s
            .commit(Batch::new().small_put("dots/1", "7").small_put("dots/2", "8").small_put("x", "y"))
            .unwrap();
        assert_eq!(s.small_get(b"dots/1").unwrap(), "7", "visible at once");
        s.durable(p).await.unwrap();
        let p = s.commit(Batch::new().small_delete("x")).unwrap();
        s.durable(p).await.unwrap();
        // Enough to fill several segments, and to drop the one that held it.
        for n in 0..60 {
            let p = s.commit(Batch::new().put(T, format!("{}", n % 7), vec![1; 20_000])).unwrap();
            s.durable(p).await.unwrap();
        }
        s.checkpoint().await.unwrap();
        w.crash(s);
        let (s, _) = w.open();
        let found = s.small_scan(b"dots/");
        assert_eq!(found, [("dots/1".into(), "7".into()), ("dots/2".into(), "8".into())]);
        assert_eq!(s.small_get(b"x"), None);
        let e = s.commit(Batch::new().small_put("big", vec![0; 60_000])).unwrap_err();
        assert!(matches!(e, StorageError::TooLarge { .. }), "{e}");
    });
}

fn derived_rows(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        s.apply(Batch::new().put(T, "applied", "1").put(T, "row", "1")).await.unwrap();
        assert_eq!(s.get(T, b"row").unwrap().unwrap().position, kv_storage::Position::DURABLE);
        s.checkpoint().await.unwrap();
        for n in 2..200 {
            s.apply(Batch::new().put(T, "applied", n.to_string()).put(T, "row", n.to_string()))
                .await
                .unwrap();
        }
        assert!(s.apply(Batch::new().small_put("a", "b")).await.is_err());
        w.crash(s);
        let (s, _) = w.open();
        let applied = get(&s, "applied").expect("checkpointed");
        assert_eq!(get(&s, "row").unwrap(), applied, "a whole batch or none of it");
    });
}

async fn fill(s: &Storage, from: usize, to: usize) {
    for n in from..to {
        loop {
            match s.commit(Batch::new().put(T, format!("{n:05}"), vec![n as u8; 10_000])) {
                Ok(p) => break s.durable(p).await.unwrap(),
                Err(e) => assert!(e.is_refusal(), "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn drain_checkpoint_and_segment_drop(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        fill(&s, 0, 150).await; // 1.5 MB in segments of 256 KiB
        s.checkpoint().await.unwrap();
        until("segments are dropped", || s.stats().segments == 1).await;
        until("files are removed", || w.files().len() <= 2).await;
        fill(&s, 150, 160).await;
        w.crash(s);
        let (s, recovery) = w.open();
        assert!(!recovery.tier_lost && !recovery.tier_rebuilt, "{recovery:?}");
        assert_eq!(keys(&s, 1000).len(), 160);
        assert_eq!(get(&s, "00007").unwrap(), vec![7; 10_000]);
        // Another round on top of the recovered one.
        fill(&s, 160, 200).await;
        s.checkpoint().await.unwrap();
        w.crash(s);
        assert_eq!(keys(&w.open().0, 1000).len(), 200);
    });
}

fn tier_deleted_with_the_whole_log(w: &mut dyn World) {
    w.options().checkpoint_log_bytes = u64::MAX;
    w.options().checkpoint_interval = Duration::from_secs(3600);
    run(async {
        let (s, _) = w.open();
        fill(&s, 0, 10).await;
        s.checkpoint().await.unwrap(); // everything fits the first segment, which therefore stays
        w.crash(s);
        w.delete_tier();
        let (s, recovery) = w.open();
        assert!(recovery.tier_rebuilt && !recovery.tier_lost, "{recovery:?}");
        assert_eq!(recovery.replayed, 10);
        assert_eq!(keys(&s, 100).len(), 10);
        s.checkpoint().await.unwrap();
        w.crash(s);
        let (s, recovery) = w.open();
        assert_eq!((recovery.tier_error, recovery.replayed), (None, 0));
        assert_eq!(keys(&s, 100).len(), 10);
    });
}

fn tier_deleted_with_a_cut_log(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        fill(&s, 0, 100).await;
        s.checkpoint().await.unwrap();
        until("segments are dropped", || s.stats().segments == 1).await;
        fill(&s, 100, 105).await;
        w.crash(s);
        w.delete_tier();
        let (s, recovery) = w.open();
        assert!(recovery.tier_lost && !recovery.tier_rebuilt, "{recovery:?}");
        assert_eq!(keys(&s, 1000).len() as u64, recovery.replayed, "what the log still has");
        assert!(get(&s, "00104").is_some());
        // Still lost after another crash, until the layers above say that they rebuilt it.
        s.checkpoint().await.unwrap();
        w.crash(s);
        let (s, recovery) = w.open();
        assert!(recovery.tier_lost && recovery.tier_error.is_none(), "{recovery:?}");
        s.acknowledge_tier_lost().await.unwrap();
        w.crash(s);
        assert!(!w.open().1.tier_lost);
    });
}

fn entry(term: u64, index: u64, bytes: usize) -> RaftEntry {
    let payload = Bytes::from(vec![(term * 31 + index) as u8; bytes]);
    RaftEntry { id: RaftLogId { term, node: 1, index }, payload }
}

fn append(log: &RaftLog, entries: Vec<RaftEntry>) -> oneshot::Receiver<std::io::Result<()>> {
    let (send, receive) = oneshot::channel();
    log.append(entries, Box::new(move |r| drop(send.send(r)))).unwrap();
    receive
}

async fn append_durably(log: &RaftLog, entries: Vec<RaftEntry>) {
    append(log, entries).await.unwrap().unwrap();
}

fn ids(log: &RaftLog) -> Vec<(u64, u64)> {
    log.read(.., usize::MAX).unwrap().iter().map(|e| (e.id.term, e.id.index)).collect()
}

fn a_vote_is_durable_when_it_is_saved(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        s.raft(GroupId(1)).save_vote(Bytes::from_static(b"vote 1")).await.unwrap();
        // Nothing after it: no later write may be what carried it to the disk.
        w.crash(s);
        let (s, _) = w.open();
        assert_eq!(s.raft(GroupId(1)).vote().unwrap(), "vote 1");
        s.shutdown().await;
    });
}

fn raft_log(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        let (a, b) = (s.raft(GroupId(1)), s.raft(GroupId(2)));
        assert_eq!((a.bounds(), a.vote()), (Default::default(), None));
        a.save_vote(Bytes::from_static(b"vote 1")).await.unwrap();
        // More than the cache of 64 KiB, so that reads come from the disk, too.
        let durable = append(&a, (0..40).map(|n| entry(1, n, 5_000)).collect());
        assert_eq!(ids(&a).len(), 40, "readable at once");
        durable.await.unwrap().unwrap();
        append_durably(&b, vec![entry(7, 1, 10), entry(7, 2, 10)]).await;
        let all = a.read(.., usize::MAX).unwrap();
        assert!(all.iter().enumerate().all(|(n, e)| *e == entry(1, n as u64, 5_000)));
        assert_eq!(a.read(3..9, 11_000).unwrap().len(), 2, "bounded");
        assert_eq!(a.read(3..9, 1).unwrap().len(), 1, "at least one");
        assert_eq!(a.read(3..=9, usize::MAX).unwrap().len(), 7);
        assert_eq!(a.read(50..60, 1).unwrap(), []);
        assert_eq!(a.id_of(5).unwrap().index, 5);
        assert!(a.append(vec![entry(1, 50, 1)], Box::new(|_| ())).is_err(), "a gap");
        a.save_committed(Some(Bytes::from_static(b"c")));
        a.purge(RaftLogId { term: 1, node: 1, index: 9 }).unwrap();
        append_durably(&a, vec![entry(2, 40, 10)]).await;
        append_durably(&a, vec![]).await;
        w.crash(s);
        let (s, _) = w.open();
        let (a, b) = (s.raft(GroupId(1)), s.raft(GroupId(2)));
        assert_eq!(s.raft_groups(), [GroupId(1), GroupId(2)]);
        assert_eq!(a.vote().unwrap(), "vote 1");
        assert_eq!(a.committed().unwrap(), "c", "rode with the append after it");
        let bounds = a.bounds();
        assert_eq!((bounds.purged.unwrap().index, bounds.last.unwrap().index), (9, 40));
        assert_eq!(ids(&a).len(), 31);
        assert_eq!(a.read(39.., usize::MAX).unwrap(), [entry(1, 39, 5_000), entry(2, 40, 10)]);
        assert_eq!(ids(&b), [(7, 1), (7, 2)]);
        b.destroy().await.unwrap();
        w.crash(s);
        let (s, _) = w.open();
        assert_eq!(s.raft_groups(), [GroupId(1)]);
        assert_eq!(s.raft(GroupId(2)).bounds(), Default::default());
    });
}

fn raft_truncate_append_crash(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        let log = s.raft(GroupId(1));
        append_durably(&log, (1..=10).map(|n| entry(1, n, 100)).collect()).await;
        log.truncate_after(Some(4)).unwrap();
        append_durably(&log, vec![entry(2, 5, 100)]).await;
        assert_eq!(log.bounds().last.unwrap().index, 5);
        w.crash(s);
        let (s, _) = w.open();
        let log = s.raft(GroupId(1));
        assert_eq!(ids(&log), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5)], "6 to 10 stay dead");
        log.truncate_after(None).unwrap();
        append_durably(&log, vec![entry(3, 1, 10)]).await;
        w.crash(s);
        assert_eq!(ids(&w.open().0.raft(GroupId(1))), [(3, 1)]);
    });
}

fn raft_purge_beyond_the_end(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        let log = s.raft(GroupId(1));
        append_durably(&log, (0..10).map(|n| entry(1, n, 100)).collect()).await;
        let beyond = RaftLogId { term: 4, node: 2, index: 500 };
        log.purge(beyond).unwrap();
        assert_eq!((log.bounds().last, log.bounds().purged), (Some(beyond), Some(beyond)));
        append_durably(&log, vec![entry(4, 501, 1)]).await;
        w.crash(s);
        let (s, _) = w.open();
        let log = s.raft(GroupId(1));
        assert_eq!((log.bounds().purged, ids(&log)), (Some(beyond), vec![(4, 501)]));
    });
}

fn laggards_are_copied_forward(w: &mut dyn World) {
    w.options().max_log_bytes = 2 << 20;
    run(async {
        let (s, _) = w.open();
        let idle = s.raft(GroupId(9));
        append_durably(&idle, (0..5).map(|n| entry(1, n, 1_000)).collect()).await;
        fill(&s, 0, 400).await; // 4 MB through a log of 2 MiB
        until("the first segment goes", || !w.files().iter().any(|f| f.ends_with("0000000000000001.seg")))
            .await;
        assert_eq!(ids(&idle).len(), 5);
        idle.truncate_after(Some(3)).unwrap();
        append_durably(&idle, vec![entry(2, 4, 10)]).await;
        w.crash(s);
        let (s, _) = w.open();
        let found = s.raft(GroupId(9)).read(.., usize::MAX).unwrap();
        let mut expected: Vec<_> = (0..4).map(|n| entry(1, n, 1_000)).collect();
        expected.push(entry(2, 4, 10));
        assert_eq!(found, expected);
        assert_eq!(keys(&s, 1000).len(), 400);
    });
}

fn log_full_names_who(w: &mut dyn World) {
    w.options().max_log_bytes = 1 << 20;
    run(async {
        let (s, _) = w.open();
        let log = s.raft(GroupId(3));
        let mut index = 0;
        let e = loop {
            append_durably(&log, vec![entry(1, index, 20_000)]).await;
            index += 1;
            if let Err(e) = s.log_pressure() {
                break e;
            }
        };
        until("the holder is known", || s.log_pressure().unwrap_err().to_string().contains("group 3")).await;
        assert!(e.is_refusal());
        let refused = s.commit(Batch::new().put(T, "k", "v")).unwrap_err();
        assert!(matches!(refused, StorageError::LogFull { .. }), "{refused}");
        assert_eq!(get(&s, "k"), None, "nothing happened");
        // Raft itself has a reserve, and then an end.
        let mut refused = false;
        for _ in 0..40 {
            refused |= log.append(vec![entry(1, index, 20_000)], Box::new(|_| ())).is_err();
            index += u64::from(!refused);
        }
        assert!(refused);
        log.purge(RaftLogId { term: 1, node: 1, index: index - 1 }).unwrap();
        until("there is room again", || s.log_pressure().is_ok()).await;
        put(&s, "k", "v").await;
    });
}

fn foreign_directory(w: &mut dyn World) {
    let (mine, yours) = (
        Identity { cluster: ClusterId(7), node: NodeId(1) },
        Identity { cluster: ClusterId(7), node: NodeId(2) },
    );
    w.options().identity = Some(mine);
    let (s, recovery) = w.open();
    assert_eq!(recovery.identity, Some(mine));
    assert!(s.set_identity(yours).is_err());
    w.crash(s);
    w.options().identity = Some(yours);
    let e = w.try_open().unwrap_err();
    assert!(matches!(&e, StorageError::ForeignDataDir { .. }), "{e}");
    w.options().identity = None;
    assert_eq!(w.open().1.identity, Some(mine));
}

/// Loads rows `from..to` under a prefix.
async fn load(s: &Storage, prefix: &str, rows: std::ops::Range<usize>) {
    let row = |n| (T, Bytes::from(format!("{prefix}{n:04}")), Some(Bytes::from(vec![n as u8; 500])));
    let mut rows: VecDeque<CopyRow> = rows.map(row).collect();
    while !rows.is_empty() {
        s.load(&mut rows).unwrap();
        s.let_drain().await;
    }
}

fn loaded(s: &Storage, prefix: &str) -> usize {
    let found = s.scan(T, prefix.as_bytes(), Some(format!("{prefix}~").as_bytes()), 10_000).unwrap();
    assert!(found.iter().all(|(key, _)| key.starts_with(prefix.as_bytes())));
    found.len()
}

fn a_state_is_loaded_beside_another_and_switched(w: &mut dyn World) {
    run(async {
        let (s, _) = w.open();
        fill(&s, 0, 20).await;
        s.apply(Batch::new().put(T, "new/0000", "in use")).await.unwrap();
        let mut in_use = VecDeque::from([(T, Bytes::from_static(b"new/0000"), None)]);
        assert!(matches!(s.load(&mut in_use), Err(StorageError::Invalid(_))));
        s.checkpoint().await.unwrap();
        // Writes of others go on, and are drained in between.
        let others = tokio::spawn({
            let s = s.clone();
            async move { fill(&s, 20, 40).await }
        });
        load(&s, "a/", 0..300).await;
        others.await.unwrap();
        w.crash(s);
        let (s, recovery) = w.open();
        assert!(!recovery.tier_lost, "{recovery:?}");
        assert_eq!(s.record(b"which").unwrap(), None);
        assert!(loaded(&s, "a/") <= 300, "some of it, none of it, in any case nothing that counts");
        assert_eq!(keys(&s, 40).iter().filter(|key| key.len() == 5).count(), 40);
        load(&s, "b/", 0..300).await;
        s.finish_load().await.unwrap();
        s.put_record(b"which", b"b").await.unwrap();
        w.crash(s);
        let (s, _) = w.open();
        assert_eq!(s.record(b"which").unwrap().unwrap(), "b");
        assert_eq!(loaded(&s, "b/"), 300, "durable before the record");
        // What does not count is removed step by step, across a crash.
        let mut from = Some(Bytes::from_static(b"a/"));
        let mut steps = 0;
        while let Some(next) = from.take() {
            from = s.remove(T, &next, b"a0").unwrap().next;
            steps += 1;
        }
        assert_eq!((loaded(&s, "a/"), loaded(&s, "b/")), (0, 300));
        assert!(steps <= 3, "{steps}");
        s.finish_load().await.unwrap();
        w.crash(s);
        let (s, _) = w.open();
        assert_eq!((loaded(&s, "a/"), loaded(&s, "b/")), (0, 300));
        assert!(s.put_record(b"", b"").await.is_err());
        assert!(s.put_record(&[1; limits::MAX_RECORD_NAME], &[1; limits::MAX_RECORD_BYTES]).await.is_ok());
        assert!(s.put_record(&[1; limits::MAX_RECORD_NAME + 1], b"").await.is_err());
        assert!(s.put_record(b"x", &[1; limits::MAX_RECORD_BYTES + 1]).await.is_err());
    });
}

fn snapshot_files(w: &mut dyn World) {
    let (s, _) = w.open();
    let group = GroupId(1);
    let snaps = s.snapshots(group);
    assert_eq!(snaps.list().unwrap(), []);
    for id in [5, 3, 9] {
        let mut writer = snaps.create().unwrap();
        for n in 0..id {
            let kind = if n < 4 { BlockKind::Base } else { BlockKind::Tail };
            writer.write(kind, &vec![n as u8; 3_000]).unwrap();
        }
        let info = writer.finish(id, b"header").unwrap();
        assert_eq!(Some(&info), snaps.list().unwrap().iter().find(|i| i.id == id));
    }
    let mut unfinished = snaps.create().unwrap();
    unfinished.write(BlockKind::Base, b"half").unwrap();
    assert!(unfinished.write(BlockKind::Base, &vec![0; limits::MAX_SNAPSHOT_BLOCK + 1]).is_err());
    std::mem::forget(unfinished);
    w.crash(s);
    let (s, _) = w.open();
    let snaps = s.snapshots(group);
    assert_eq!(snaps.list().unwrap().iter().map(|i| i.id).collect::<Vec<_>>(), [3, 5, 9]);
    let mut reader = snaps.open(9).unwrap();
    assert_eq!(reader.header(), "header");
    let mut blocks = 0;
    while let Some((kind, block)) = reader.next_block().unwrap() {
        assert_eq!((kind == BlockKind::Tail, block), (blocks >= 4, Bytes::from(vec![blocks; 3_000])));
        blocks += 1;
    }
    assert_eq!(blocks, 9);
    // A finished file does not change: the same state again is dropped.
    let mut again = snaps.create().unwrap();
    again.write(BlockKind::Base, b"other").unwrap();
    assert_eq!(again.finish(9, b"header").unwrap(), snaps.open(9).unwrap().info().clone());
    snaps.verify(5).unwrap();
    let path = w.files()[0].parent().unwrap().parent().unwrap().join("snapshots/1/0000000000000005.snap");
    w.flip(&path, 5_000, 4);
    assert!(matches!(snaps.verify(5), Err(StorageError::CorruptFile { .. })));
    let mut removed = snaps.open(3).unwrap();
    snaps.keep_newest(1).unwrap();
    assert_eq!(snaps.list().unwrap().len(), 1);
    assert!(removed.next_block().unwrap().is_some(), "a reader keeps it");
    assert!(s.snapshots(GroupId(2)).list().unwrap().is_empty());
}

/// What is older than a damaged file may be all that a node has.
fn the_newest_snapshot_that_can_be_read_is_kept(w: &mut dyn World) {
    let (s, _) = w.open();
    let snaps = s.snapshots(GroupId(1));
    let mut ends = Vec::new();
    for id in [3, 5, 9] {
        let mut writer = snaps.create().unwrap();
        writer.write(BlockKind::Base, &[1; 700]).unwrap();
        ends.push(writer.finish(id, b"header").unwrap().bytes - 1);
    }
    let folder = w.files()[0].parent().unwrap().parent().unwrap().join("snapshots/1");
    w.flip(&folder.join("0000000000000009.snap"), ends[2], 1);
    snaps.keep_newest(1).unwrap();
    assert_eq!(snaps.list().unwrap().iter().map(|info| info.id).collect::<Vec<_>>(), [5]);
    w.flip(&folder.join("0000000000000005.snap"), ends[1], 1);
    snaps.keep_newest(1).unwrap();
    w.flip(&folder.join("0000000000000005.snap"), ends[1], 1);
    assert_eq!(snaps.list().unwrap().len(), 1, "nothing is removed where none can be read");
}

fn damaged_snapshot_files_are_refused(w: &mut dyn World) {
    let (s, _) = w.open();
    let snaps = s.snapshots(GroupId(1));
    let mut writer = snaps.create().unwrap();
    for n in 0..3 {
        writer.write(BlockKind::Base, &vec![n; 700]).unwrap();
    }
    let info = writer.finish(7, b"a header").unwrap();
    let path = w.files()[0].parent().unwrap().parent().unwrap().join("snapshots/1/0000000000000007.snap");
    // Every byte counts, those of both ends, of the header and of each block.
    for at in 0..info.bytes {
        w.flip(&path, at, 1 << (at % 8));
        let e = snaps.verify(7).unwrap_err();
        assert!(matches!(e, StorageError::CorruptFile { .. }), "{at}: {e}");
        w.flip(&path, at, 1 << (at % 8));
    }
    snaps.verify(7).unwrap();
    // Of an older and of a newer format: refused with words, and left out.
    for (mask, version) in [(3, 1), (1, 3)] {
        w.flip(&path, 4, mask);
        let e = snaps.open(7).unwrap_err();
        assert!(e.to_string().contains(&format!("format {version}, and this release reads format 2")), "{e}");
        assert_eq!(snaps.list().unwrap(), []);
        w.flip(&path, 4, mask);
    }
}

fn snapshots_are_synced_in_pieces(w: &mut dyn World) {
    let (s, _) = w.open();
    let snaps = s.snapshots(GroupId(1));
    let mut writer = snaps.create().unwrap();
    let before = w.syncs();
    let block = vec![7; limits::MAX_SNAPSHOT_BLOCK / 2];
    for _ in 0..8 {
        writer.write(BlockKind::Base, &block).unwrap();
    }
    let expected = 8 * block.len() as u64 / limits::SNAPSHOT_SYNC_BYTES;
    if let (Some(before), Some(after)) = (before, w.syncs()) {
        assert!(after - before >= expected - 1, "{} syncs", after - before);
    }
    writer.finish(1, b"").unwrap();
    snaps.verify(1).unwrap();
}

fn damage_in_the_middle_is_refused(w: &mut dyn World) {
    let s = run(async {
        let (s, _) = w.open();
        for n in 0..10 {
            put(&s, &format!("{n}"), "value").await;
        }
        s
    });
    w.crash(s);
    let path = w.files()[0].clone();
    let at = 600; // in the payload of one of the first batches; some 1.2 KB are used
    w.flip(&path, at, 1);
    let e = w.try_open().unwrap_err();
    let StorageError::CorruptLog { segment: 1, offset, .. } = &e else { panic!("{e}") };
    assert!(*offset <= 600 && e.to_string().contains("Do not delete anything"), "{e}");
    w.flip(&path, at, 1);
    assert_eq!(keys(&w.open().0, 100).len(), 10, "nothing was changed by the refusal");
}

fn a_missing_segment_is_refused(w: &mut dyn World) {
    w.options().checkpoint_log_bytes = u64::MAX;
    w.options().checkpoint_interval = Duration::from_secs(3600);
    let s = run(async {
        let (s, _) = w.open();
        fill(&s, 0, 100).await;
        s
    });
    w.crash(s);
    let files = w.files();
    assert!(files.len() >= 4);
    w.remove(&files[1]);
    let e = w.try_open().unwrap_err();
    assert!(matches!(e, StorageError::CorruptLog { segment: 2, .. }), "{e}");
    w.remove(&files[0]);
    let e = w.try_open().unwrap_err();
    assert!(matches!(e, StorageError::CorruptLog { segment: 2, .. }), "{e}");
}

/// A flood of commits takes whatever room there is; a step of apply finds its room all the same.
#[test]
fn apply_finds_room_within_one_step_of_the_drain() {
    run(async {
        let mut w = Mem::new(1);
        let o = w.options();
        o.drive = Drive::Manual;
        (o.segment_bytes, o.max_log_bytes, o.max_record_bytes) = (4 << 20, 256 << 20, 1 << 20);
        (o.data_queue_bytes, o.data_bytes_per_write) = (16 << 20, 16 << 20);
        (o.memtable_bytes, o.apply_reserve_bytes, o.bulk_memtable_bytes) = (8 << 20, 2 << 20, 4 << 20);
        (o.drain_start_bytes, o.drain_batch_bytes) = (0, 3 << 20);
        let (s, _) = w.open();
        let (mut written, mut refused) = (0, 0);
        let mut flood = |s: &Storage| loop {
            written += 1;
            match s.commit(Batch::new().put(T, format!("{written:06}"), vec![0; 4_000])) {
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e, StorageError::Overloaded { what: "the memtable" });
                    break refused += 1;
                }
            }
        };
        for step in 0..60 {
            flood(&s);
            let applied = s.apply(Batch::new().put(U, format!("{step}"), vec![0; 1 << 20]));
            let mut applied = std::pin::pin!(applied);
            let mut once = async || std::future::poll_fn(|cx| Poll::Ready(applied.as_mut().poll(cx))).await;
            if once().await.is_pending() {
                // One tier batch; and the first to ask takes the room.
                let drains = s.stats().drains;
                while s.stats().drains == drains {
                    assert!(s.pump(), "step {step}: nothing can be drained");
                }
                assert_eq!(s.stats().drains, drains + 1);
                flood(&s);
                match once().await {
                    Poll::Ready(applied) => applied.unwrap(),
                    Poll::Pending => panic!("step {step} of apply found no room after a step of the drain"),
                }
            }
        }
        assert!(refused >= 60);
    });
}

//! Receiving a snapshot file in pieces: what comes out is the file that was sent, byte for byte, or nothing,
//! whatever power cuts, full disks and other files do in between. On a real directory and on the disk in
//! memory, by seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test"
)]

mod world;

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use kv_storage::disk::Disk;
use kv_storage::{BlockKind, Drive, SnapshotBytes, Snapshots, Storage, StorageError, limits, tier::TierKind};
use kv_types::GroupId;
use world::{Mem, Real, World};

const ID: u64 = 9;
const SYNC: u64 = 16 << 10;
const SEEDS: u64 = 60;

/// A finished file of some 100 kB in a group of its own: the sender's.
fn sent(s: &Storage) -> SnapshotBytes {
    let files = s.snapshots(GroupId(7));
    let mut writer = files.create().unwrap();
    for n in 0..30_u32 {
        writer.write(BlockKind::Base, &vec![n as u8; 3_000 + n as usize]).unwrap();
    }
    writer.finish(ID, b"header").unwrap();
    files.bytes_of(ID).unwrap()
}

fn receiver(s: &Storage) -> Snapshots {
    s.snapshots(GroupId(1))
}

/// Receives until `until`.
fn feed(files: &Snapshots, from: &SnapshotBytes, until: u64, piece: usize) -> u64 {
    let mut part = files.receive(b"file a", from.length(), SYNC).unwrap();
    let resumed = part.received();
    while part.received() < until {
        let bytes = from.read(part.received(), piece).unwrap();
        part.write(&bytes).unwrap();
    }
    resumed
}

fn complete(files: &Snapshots, from: &SnapshotBytes) -> Bytes {
    let part = files.receive(b"file a", from.length(), SYNC).unwrap();
    let header = part.verify(ID, from.checksum().unwrap(), &AtomicU64::new(0), drop).unwrap();
    assert_eq!(part.publish(ID).unwrap().bytes, from.length());
    header
}

fn assert_same(files: &Snapshots, from: &SnapshotBytes) {
    files.verify(ID).unwrap();
    let got = files.bytes_of(ID).unwrap();
    let whole = |file: &SnapshotBytes| file.read(0, usize::MAX).unwrap();
    assert_eq!(whole(&got), whole(from));
}

fn manual(seed: u64) -> Mem {
    let mut w = Mem::new(seed);
    w.options().drive = Drive::Manual;
    w
}

fn both(test: impl Fn(&mut dyn World)) {
    test(&mut Real::new(TierKind::Fjall));
    let mut memory = manual(1);
    test(&mut memory);
}

#[test]
fn a_file_arrives_whole_and_a_restart_resumes_it() {
    both(|w| {
        let (s, _) = w.open();
        let from = sent(&s);
        assert_eq!(feed(&receiver(&s), &from, 60_000, 1_000), 0);
        w.crash(s);
        let (s, _) = w.open();
        let from = s.snapshots(GroupId(7)).bytes_of(ID).unwrap();
        let files = receiver(&s);
        let resumed = feed(&files, &from, from.length(), 7_777);
        assert!((SYNC..=60_000).contains(&resumed), "{resumed}");
        assert_eq!(files.list().unwrap(), [], "a part is no file");
        assert_eq!(complete(&files, &from), "header");
        assert_same(&files, &from);
        w.crash(s);
        let (s, _) = w.open();
        assert_same(&receiver(&s), &s.snapshots(GroupId(7)).bytes_of(ID).unwrap());
        // Nothing of it is left that could be resumed.
        assert_eq!(receiver(&s).receive(b"file a", from.length(), SYNC).unwrap().received(), 0);
    });
}

#[test]
fn power_cuts_at_any_place_lose_no_more_than_what_was_not_synced() {
    for seed in 0..SEEDS {
        let w = manual(seed);
        let (mut s, _) = w.open();
        let mut at = 0;
        let length = sent(&s).length();
        let mut rng = fastrand::Rng::with_seed(seed);
        while at < length {
            let files = receiver(&s);
            let from = s.snapshots(GroupId(7)).bytes_of(ID).unwrap();
            let until = (at + rng.u64(1..40_000)).min(length);
            let resumed = feed(&files, &from, until, rng.usize(500..20_000));
            assert!(resumed + SYNC + 20_000 > at, "seed {seed}: {at} were received, {resumed} resumed");
            at = until;
            w.crash(s);
            s = w.open().0;
        }
        let from = s.snapshots(GroupId(7)).bytes_of(ID).unwrap();
        feed(&receiver(&s), &from, length, 9_000);
        complete(&receiver(&s), &from);
        w.crash(s);
        let (s, _) = w.open();
        assert_same(&receiver(&s), &s.snapshots(GroupId(7)).bytes_of(ID).unwrap());
    }
}

#[test]
fn another_identity_length_or_format_begins_anew() {
    both(|w| {
        let (s, _) = w.open();
        let from = sent(&s);
        let files = receiver(&s);
        feed(&files, &from, 60_000, 1_000);
        assert!(files.receive(b"file a", from.length(), SYNC).unwrap().received() > 0);
        assert_eq!(files.receive(b"file b", from.length(), SYNC).unwrap().received(), 0);
        feed(&files, &from, 60_000, 1_000);
        assert_eq!(files.receive(b"file a", from.length() + 1, SYNC).unwrap().received(), 0);
        feed(&files, &from, 60_000, 1_000);
        let note = w.files()[0].parent().unwrap().parent().unwrap().join("snapshots/1/incoming.note");
        // The version: what a newer release wrote is not believed.
        w.flip(&note, 4, 0x80);
        assert_eq!(files.receive(b"file a", from.length(), SYNC).unwrap().received(), 0);
        files.discard_part().unwrap();
        files.discard_part().unwrap();
    });
}

#[test]
fn what_rotted_meanwhile_is_received_again_or_found_at_the_end() {
    both(|w| {
        let (s, _) = w.open();
        let from = sent(&s);
        let files = receiver(&s);
        feed(&files, &from, 60_000, 1_000);
        let part = w.files()[0].parent().unwrap().parent().unwrap().join("snapshots/1/incoming.part");
        w.flip(&part, 40_000, 1);
        let resumed = feed(&files, &from, from.length(), 1_000);
        assert!(resumed <= 40_000, "{resumed} bytes were kept, one before is wrong");
        // After it was received there is the checksum of the whole.
        w.flip(&part, 10_000, 1);
        let whole = files.receive(b"file a", from.length(), SYNC).unwrap();
        assert_eq!(whole.received(), 0, "the first piece is wrong");
        drop(whole);
        feed(&files, &from, from.length(), 1_000);
        let whole = files.receive(b"file a", from.length(), SYNC).unwrap();
        assert_eq!(whole.received(), from.length());
        w.flip(&part, 10_000, 1);
        let refused = whole.verify(ID, from.checksum().unwrap(), &AtomicU64::new(0), drop).unwrap_err();
        assert!(refused.to_string().contains("does not match its checksum"), "{refused}");
        assert_eq!(files.list().unwrap(), []);
    });
}

#[test]
fn a_whole_that_is_no_snapshot_of_this_number_is_refused() {
    let w = manual(3);
    let (s, _) = w.open();
    let from = sent(&s);
    let files = receiver(&s);
    feed(&files, &from, from.length(), 4_000);
    let part = files.receive(b"file a", from.length(), SYNC).unwrap();
    assert!(part.verify(ID + 1, from.checksum().unwrap(), &AtomicU64::new(0), drop).is_err());
    let zeros = vec![0; 50_000];
    let mut part = files.receive(b"zeros", 50_000, SYNC).unwrap();
    assert!(part.verify(ID, crc32c::crc32c(&zeros), &AtomicU64::new(0), drop).is_err(), "bytes are missing");
    part.write(&zeros).unwrap();
    assert!(matches!(part.write(b"x"), Err(StorageError::TooLarge { .. })), "longer than announced");
    let refused = part.verify(ID, crc32c::crc32c(&zeros), &AtomicU64::new(0), drop);
    assert!(matches!(refused, Err(StorageError::CorruptFile { .. })));
    assert_eq!(files.list().unwrap(), []);
}

#[test]
fn lengths_and_identities_have_bounds() {
    let w = manual(4);
    let (s, _) = w.open();
    let files = receiver(&s);
    let too_large = |refused| matches!(refused, Err(StorageError::TooLarge { .. }));
    assert!(files.receive(b"a", limits::MAX_SNAPSHOT_BYTES, SYNC).is_ok());
    assert!(too_large(files.receive(b"a", limits::MAX_SNAPSHOT_BYTES + 1, SYNC)));
    assert!(files.receive(&[1; limits::MAX_PART_IDENTITY], 1, SYNC).is_ok());
    assert!(too_large(files.receive(&[1; limits::MAX_PART_IDENTITY + 1], 1, SYNC)));
}

#[test]
fn a_full_disk_refuses_and_a_thrown_away_part_gives_its_room_back() {
    let w = manual(5);
    let (s, _) = w.open();
    let from = sent(&s);
    let files = receiver(&s);
    let mut part = files.receive(b"file a", from.length(), SYNC).unwrap();
    w.disk.set_capacity(Some(w.disk.used() + 30_000));
    let failed = loop {
        if let Err(error) = part.write(&from.read(part.received(), 4_000).unwrap()) {
            break error;
        }
    };
    assert!(matches!(failed, StorageError::Io { kind: std::io::ErrorKind::StorageFull, .. }), "{failed}");
    drop(part);
    let full = w.disk.used();
    files.discard_part().unwrap();
    assert!(w.disk.used() + 20_000 < full);
    w.disk.set_capacity(None);
    feed(&files, &from, from.length(), 4_000);
    complete(&files, &from);
    assert_same(&files, &from);
}

#[test]
fn a_refused_part_leaves_no_files_and_keeps_what_can_be_resumed() {
    let mut w = manual(6);
    w.options().disk_reserve_bytes = 64 << 10;
    let (s, _) = w.open();
    let from = sent(&s);
    let files = receiver(&s);
    let folder = w.files()[0].parent().unwrap().parent().unwrap().join("snapshots/1");
    let names = || {
        let mut names: Vec<_> = w.disk.list(&folder).unwrap_or_default();
        names.sort();
        names
            .into_iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let nearly_full = |free| {
        w.disk.set_capacity(Some(w.disk.used() + free));
        // The look that `create` takes tells what is free; it makes no file of a snapshot.
        drop(files.create());
    };
    nearly_full(2 * from.length() - 1);
    let refused = files.receive(b"file a", from.length(), SYNC).unwrap_err();
    assert!(matches!(refused, StorageError::DiskFull { .. }), "{refused}");
    assert_eq!(names(), [""; 0]);
    // There is room for a part, and then not for the rest of it.
    w.disk.set_capacity(None);
    drop(files.create());
    feed(&files, &from, 60_000, 1_000);
    nearly_full(10_000);
    let refused = files.receive(b"file a", from.length(), SYNC).unwrap_err();
    assert!(matches!(refused, StorageError::DiskFull { .. }), "{refused}");
    assert_eq!(names(), ["incoming.note", "incoming.part"]);
    w.disk.set_capacity(None);
    drop(files.create());
    assert!(feed(&files, &from, from.length(), 1_000) >= SYNC, "it is resumed");
    complete(&files, &from);
    assert_same(&files, &from);
}

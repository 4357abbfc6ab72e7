//! A journal against a model, on a disk that forgets what was not synced.

use std::path::Path;

use super::*;
use crate::disk::MemDisk;

const FILE: u64 = 4 << 10;
const DIR: &str = "/data/journal/7";

fn open(disk: &MemDisk) -> Journal {
    Journal::open(Arc::new(disk.clone()), DIR.into(), 7, FILE).unwrap()
}

fn name(stream: u64) -> Bytes {
    Bytes::from(format!("stream {stream}"))
}

fn append(stream: u64, id: u64, content: impl Into<Bytes>) -> JournalOp {
    JournalOp::Append { stream: name(stream), id, content: content.into() }
}

fn trim(stream: u64, below: u64) -> JournalOp {
    JournalOp::Trim { stream: name(stream), below }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Model(BTreeMap<Bytes, (u64, BTreeMap<u64, Bytes>)>);

impl Model {
    fn take(&mut self, ops: &[JournalOp]) {
        for op in ops {
            match op {
                JournalOp::Append { stream, id, content } => {
                    self.0.entry(stream.clone()).or_default().1.insert(*id, content.clone());
                }
                JournalOp::Trim { stream, below } => {
                    let floor = &mut self.0.entry(stream.clone()).or_default().0;
                    *floor = (*floor).max(*below);
                }
            }
        }
    }

    fn check(&self, journal: &Journal, random: &mut fastrand::Rng) {
        for (stream, (floor, entries)) in &self.0 {
            let kept: Vec<_> = entries.range(floor..).map(|(id, c)| (*id, c.clone())).collect();
            assert_eq!(journal.read(stream, *floor, usize::MAX, usize::MAX).unwrap(), kept);
            if *floor > 0 {
                let below = journal.read(stream, floor - 1, 1, 1);
                assert_eq!(below, Err(JournalError::Trimmed { floor: *floor }));
            }
            // Pages, from anywhere.
            let mut at = random.u64(*floor..floor + 200);
            let expected: Vec<_> = kept.iter().filter(|(id, _)| *id >= at).cloned().collect();
            let mut pages = Vec::new();
            loop {
                let page = journal.read(stream, at, random.usize(1..5), random.usize(0..300)).unwrap();
                let Some((last, _)) = page.last() else { break };
                at = last + 1;
                pages.extend(page);
            }
            assert_eq!(pages, expected);
        }
    }
}

/// Appends of a few streams, above what the model has, with trims in between.
fn some_ops(model: &Model, random: &mut fastrand::Rng) -> Vec<JournalOp> {
    let mut ops = Vec::new();
    for stream in 0..4 {
        if random.bool() {
            continue;
        }
        let entries = model.0.get(&name(stream)).map(|(_, entries)| entries);
        let mut id = entries.and_then(|e| e.last_key_value()).map_or(0, |(id, _)| *id);
        for _ in 0..random.u64(0..6) {
            id += random.u64(1..3);
            let bytes = if random.u8(..) == 0 { 6_000 } else { random.usize(0..200) };
            ops.push(append(stream, id, vec![id as u8; bytes]));
        }
        if random.u8(..) < 60 {
            ops.push(trim(stream, id.saturating_sub(random.u64(0..20))));
        }
    }
    ops
}

#[test]
fn whatever_happens_a_run_is_there_or_not_and_what_was_acknowledged_stays() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = MemDisk::new(seed);
        let mut journal = open(&disk);
        let mut model = Model::default();
        for _ in 0..60 {
            let ops = some_ops(&model, &mut random);
            let lost = random.u8(..) < 50;
            disk.fail_syncs(lost.then_some(0));
            let answer = journal.append(&ops);
            disk.fail_syncs(None);
            if answer.is_ok() {
                model.take(&ops);
            } else {
                assert_eq!(journal.append(&ops), Err(JournalError::Broken { table: 7 }), "seed {seed}");
                // The process may start again on a machine that goes on, and reads what is in its cache
                // alone. Its first sync may fail as well.
                if random.bool() {
                    disk.crash();
                }
                disk.fail_syncs(random.bool().then_some(0));
                drop(Journal::open(Arc::new(disk.clone()), DIR.into(), 7, FILE));
                disk.fail_syncs(None);
                journal = open(&disk);
                // The log brings the step again, whether or not the run survived.
                journal.append(&ops).unwrap();
                model.take(&ops);
            }
            if random.u8(..) < 40 {
                disk.crash();
                journal = open(&disk);
            }
            while random.bool() && journal.reclaim(Laggards::Copy).unwrap() {}
            assert_eq!(journal.lost(), [], "seed {seed}");
            model.check(&journal, &mut random);
        }
    }
}

#[test]
fn space_comes_back_though_one_stream_rests() {
    let disk = MemDisk::new(1);
    let journal = open(&disk);
    journal.append(&[append(0, 1, vec![7; 100])]).unwrap();
    for id in 1..500 {
        journal.append(&[append(1, id, vec![1; 200]), trim(1, id)]).unwrap();
        while journal.reclaim(Laggards::Copy).unwrap() {}
        assert!(journal.disk_bytes() <= 3 * FILE, "{} bytes at {id}", journal.disk_bytes());
    }
    assert_eq!(journal.read(&name(0), 0, 9, 999).unwrap(), [(1, Bytes::from(vec![7; 100]))]);
    drop(journal);
    assert_eq!(open(&disk).read(&name(0), 0, 9, 999).unwrap(), [(1, Bytes::from(vec![7; 100]))]);
}

#[test]
fn a_laggard_is_given_up_above_the_bound_and_not_before() {
    let disk = MemDisk::new(1);
    let journal = open(&disk);
    journal.append(&[append(0, 1, vec![7; 100])]).unwrap();
    for id in 1..60 {
        journal.append(&[append(1, id, vec![1; 200])]).unwrap();
    }
    while journal.reclaim(Laggards::GiveUp { above: 1 << 30 }).unwrap() {}
    assert_eq!(journal.bounds(&name(0)), Some((0, 1)));
    let above = 2 * FILE;
    while journal.reclaim(Laggards::GiveUp { above }).unwrap() {}
    assert!(journal.disk_bytes() <= above);
    assert_eq!(journal.read(&name(0), 1, 9, 999), Err(JournalError::Trimmed { floor: 2 }));
    let (floor, last) = journal.bounds(&name(1)).unwrap();
    assert!(floor > 1 && last == 59);
    assert_eq!(journal.read(&name(1), floor, 999, 1 << 20).unwrap().len() as u64, last + 1 - floor);
}

/// A stream that holds much of the oldest file does not keep what another has trimmed.
#[test]
fn the_files_are_bounded_by_what_is_wanted_though_a_large_stream_rests() {
    let disk = MemDisk::new(1);
    let journal = open(&disk);
    let resting: Vec<_> = (1..=12).map(|id| append(0, id, vec![7; 200])).collect();
    journal.append(&resting).unwrap();
    for id in 1..800 {
        journal.append(&[append(1, id, vec![1; 200]), trim(1, id)]).unwrap();
        while journal.reclaim(Laggards::Copy).unwrap() {}
        let wanted = journal.stream_bytes(&name(0)) + journal.stream_bytes(&name(1));
        let bound = wanted + wanted / 2 + (SPARE_FILES + 1) * FILE;
        assert!(
            journal.disk_bytes() <= bound,
            "{} bytes at {id}, the bound is {bound}",
            journal.disk_bytes()
        );
    }
    drop(journal);
    assert_eq!(open(&disk).read(&name(0), 0, 99, 9_999).unwrap().len(), 12);
}

#[test]
fn a_forgotten_stream_leaves_nothing_and_may_begin_anew() {
    let disk = MemDisk::new(1);
    let journal = open(&disk);
    journal.append(&[append(0, 5, "old"), append(1, 5, "other"), trim(0, 3)]).unwrap();
    journal.forget(&[name(0), name(9)]).unwrap();
    for restarted in [false, true] {
        let journal = if restarted {
            disk.crash();
            open(&disk)
        } else {
            open(&disk)
        };
        assert_eq!(journal.standing(&name(0)), None);
        assert_eq!((journal.lost(), journal.streams()), (vec![], vec![name(1)]));
        assert_eq!(journal.stream_bytes(&name(0)), 0);
    }
    drop(journal);
    let journal = open(&disk);
    journal.append(&[append(0, 2, "new")]).unwrap();
    assert_eq!(journal.read(&name(0), 0, 9, 99).unwrap(), [(2, Bytes::from("new"))]);
    // Its file goes when nothing else is wanted of it, and the stream stays forgotten.
    for id in 6..100 {
        journal.append(&[append(1, id, vec![1; 200]), trim(1, id)]).unwrap();
        while journal.reclaim(Laggards::Copy).unwrap() {}
    }
    drop(journal);
    assert_eq!(open(&disk).read(&name(0), 0, 9, 99).unwrap(), [(2, Bytes::from("new"))]);
}

/// After a power cut the log brings everything since the last checkpoint again: the entries are compared a
/// block at a time, each block read once.
#[test]
fn many_entries_that_come_again_are_compared_at_once() {
    let disk = MemDisk::new(1);
    let journal = Journal::open(Arc::new(disk.clone()), DIR.into(), 7, 1 << 20).unwrap();
    let ops: Vec<_> = (0..3_000).map(|id| append(0, 2 * id, vec![id as u8; 100])).collect();
    journal.append(&ops).unwrap();
    let before = journal.disk_bytes();
    let read = disk.reads();
    journal.append(&ops).unwrap();
    assert_eq!(journal.disk_bytes(), before);
    assert!(disk.reads() - read < 20, "{} reads", disk.reads() - read);
    let conflict = |id| Err(JournalError::Conflict { table: 7, stream: name(0), id });
    assert_eq!(journal.append(&[append(0, 2, vec![1; 100]), append(0, 3, "never was")]), conflict(3));
    assert_eq!(journal.append(&[append(0, 2, vec![1; 100]), append(0, 5_000, "another")]), conflict(5_000));
    assert_eq!(journal.append(&[append(0, 5_997, "between")]), conflict(5_997));
}

/// Three entries in runs of their own, and where the second one's content stands.
fn three_runs(disk: &MemDisk) -> u64 {
    let journal = open(disk);
    for id in 1..=3 {
        journal.append(&[append(0, id, format!("entry number {id}"))]).unwrap();
    }
    let file = disk.open(&path_of(Path::new(DIR), 7, 1), false).unwrap();
    let bytes = crate::disk::read_all(&*file).unwrap();
    let needle = b"entry number 2";
    bytes.windows(needle.len()).position(|w| w == needle).unwrap() as u64
}

#[test]
fn a_damaged_block_is_named_and_given_up_and_the_rest_is_read() {
    let disk = MemDisk::new(1);
    let at = three_runs(&disk);
    disk.flip(&path_of(Path::new(DIR), 7, 1), at, 1).unwrap();
    let journal = open(&disk);
    let damaged = Err(JournalError::Damaged { table: 7, stream: name(0), first: 2, last: 2 });
    // What comes before it is handed out first.
    assert_eq!(journal.read(&name(0), 1, 9, 999).unwrap().len(), 1);
    assert_eq!(journal.read(&name(0), 2, 9, 999), damaged);
    assert_eq!(journal.read(&name(0), 2, 9, 999), damaged, "and it stays lost");
    assert_eq!(journal.lost(), [(name(0), 2, 2)]);
    assert_eq!(journal.read(&name(0), 3, 9, 999).unwrap(), [(3, Bytes::from("entry number 3"))]);
    journal.append(&[append(0, 4, "more"), trim(0, 3)]).unwrap();
    assert_eq!(journal.lost(), []);
    assert_eq!(journal.read(&name(0), 3, 9, 999).unwrap().len(), 2);
}

/// Damage anywhere but in the last runs; what is lost is filled in, in parts of any size, with restarts in
/// between, and is there for good.
#[test]
fn what_was_lost_is_filled_in_and_stays() {
    let content = |id: u64| Bytes::from(format!("{id} {}", "x".repeat((id * 37 % 300) as usize)));
    let (mut filled, mut unread) = (0, 0);
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = MemDisk::new(seed);
        let mut journal = open(&disk);
        let mut last = 0;
        let mut append_some = |journal: &Journal, random: &mut fastrand::Rng, runs: usize| {
            for _ in 0..runs {
                let from = last + 1;
                last += random.u64(1..9);
                let ops: Vec<_> = (from..=last).map(|id| append(0, id, content(id))).collect();
                journal.append(&ops).unwrap();
            }
            last
        };
        append_some(&journal, &mut random, 12);
        let files = disk.list(DIR.as_ref()).unwrap();
        for _ in 0..random.usize(1..8) {
            disk.flip(&files[random.usize(..files.len())], random.u64(..FILE), random.u8(..8)).unwrap();
        }
        let last = append_some(&journal, &mut random, 3);
        // What names a block may be damaged as well.
        drop(journal);
        journal = open(&disk);
        let mut at = 1;
        while at <= last {
            if random.u8(..) < 60 {
                drop(journal);
                journal = open(&disk);
            }
            match journal.read(&name(0), at, 9, 999) {
                Ok(entries) => {
                    assert!(
                        entries.iter().zip(at..).all(|((id, found), at)| (*id, found) == (at, &content(at)))
                    );
                    at = entries.last().unwrap().0 + 1;
                }
                Err(JournalError::Damaged { first, last, .. }) => {
                    assert!(first <= at && at <= last, "seed {seed}: {first} to {last} when {at} was read");
                    let (from, to) = (random.u64(first..=at), random.u64(at..=last));
                    let entries: Vec<_> = (from..=to).map(|id| (id, content(id))).collect();
                    journal.fill(&name(0), from.checked_sub(1), &entries).unwrap();
                    let again = journal.fill(&name(0), from.checked_sub(1), &entries);
                    assert!(matches!(again, Err(JournalError::Conflict { .. })), "seed {seed}: {again:?}");
                    filled += entries.len();
                    // Parts of a range that were not filled in yet.
                    unread += usize::from((from, to) != (first, last));
                }
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(
            journal.fill(&name(0), Some(last), &[(last + 1, content(last + 1))]).is_err(),
            "that is still to come"
        );
        journal.append(&[trim(0, last / 2)]).unwrap();
        assert!(journal.fill(&name(0), None, &[(1, content(1))]).is_err(), "that is given up");
        while journal.reclaim(Laggards::Copy).unwrap() {}
        drop(journal);
        let journal = open(&disk);
        let kept = journal.read(&name(0), last / 2, usize::MAX, usize::MAX).unwrap();
        assert_eq!(journal.lost(), [], "seed {seed}");
        assert_eq!(kept, (last / 2..=last).map(|id| (id, content(id))).collect::<Vec<_>>(), "seed {seed}");
    }
    assert!(
        filled > 300 && unread > 50,
        "{filled} entries filled in, {unread} times a part of what was lost"
    );
}

/// A sector that cannot be read is damage as well, and so is a first block that is not named any more.
#[test]
fn a_bad_sector_and_a_lost_beginning_are_filled_in() {
    let disk = MemDisk::new(1);
    let at = usize::try_from(three_runs(&disk)).unwrap();
    let path = path_of(Path::new(DIR), 7, 1);
    let journal = open(&disk);
    disk.fail_reads(&path, at..at + 1).unwrap();
    let damaged = Err(JournalError::Damaged { table: 7, stream: name(0), first: 2, last: 2 });
    assert_eq!(journal.read(&name(0), 2, 9, 999), damaged);
    assert_eq!(journal.lost(), [], "it may be read another time");
    let second = (2, Bytes::from("entry number 2"));
    journal.fill(&name(0), Some(1), std::slice::from_ref(&second)).unwrap();
    assert_eq!(journal.read(&name(0), 1, 9, 999).unwrap().len(), 3);
    drop(journal);
    assert_eq!(open(&disk).read(&name(0), 1, 9, 999).unwrap()[1], second);

    let disk = MemDisk::new(2);
    three_runs(&disk);
    let bytes = disk.contents(&path).unwrap();
    let first = bytes.windows(14).position(|found| found == b"entry number 1").unwrap() as u64;
    disk.flip(&path, first - 20, 1).unwrap();
    let journal = open(&disk);
    assert_eq!(journal.lost(), [(name(0), 0, 1)]);
    journal.fill(&name(0), None, &[(1, Bytes::from("entry number 1"))]).unwrap();
    assert_eq!(journal.lost(), []);
    drop(journal);
    let journal = open(&disk);
    assert_eq!((journal.lost(), journal.read(&name(0), 0, 9, 999).unwrap().len()), (vec![], 3));
}

#[test]
fn a_damaged_directory_in_the_middle_is_found_by_what_comes_after_it() {
    let disk = MemDisk::new(1);
    let at = three_runs(&disk);
    // The directory stands right before the payload.
    disk.flip(&path_of(Path::new(DIR), 7, 1), at - 20, 1).unwrap();
    let journal = open(&disk);
    assert_eq!(journal.lost(), [(name(0), 2, 2)]);
    assert_eq!(journal.read(&name(0), 1, 9, 999).unwrap().len(), 1);
    assert_eq!(journal.read(&name(0), 3, 9, 999).unwrap().len(), 1);
}

#[test]
fn a_torn_tail_is_cut_and_written_again() {
    for flip_back in [0, 20] {
        let disk = MemDisk::new(1);
        three_runs(&disk);
        let file = disk.open(&path_of(Path::new(DIR), 7, 1), false).unwrap();
        let bytes = crate::disk::read_all(&*file).unwrap();
        let at = bytes.windows(14).position(|w| w == b"entry number 3").unwrap() as u64;
        disk.flip(&path_of(Path::new(DIR), 7, 1), at - flip_back, 1).unwrap();
        let journal = open(&disk);
        assert_eq!(journal.lost(), []);
        assert_eq!(journal.bounds(&name(0)), Some((0, 2)));
        journal.append(&[append(0, 3, "x")]).unwrap();
        drop(journal);
        let journal = open(&disk);
        assert_eq!(journal.read(&name(0), 3, 9, 999).unwrap(), [(3, Bytes::from("x"))]);
    }
}

#[test]
fn an_entry_that_comes_again_must_be_the_same() {
    let disk = MemDisk::new(1);
    three_runs(&disk);
    let journal = open(&disk);
    journal.append(&[append(0, 2, "entry number 2"), append(0, 4, "new")]).unwrap();
    let conflict = |id| Err(JournalError::Conflict { table: 7, stream: name(0), id });
    assert_eq!(journal.append(&[append(0, 2, "another")]), conflict(2));
    assert_eq!(journal.append(&[append(0, 9, "a"), append(0, 9, "b")]), conflict(9));
    journal.append(&[append(0, 5, "goes on")]).unwrap();
}

#[test]
fn bounds_hold_at_the_bound() {
    let disk = MemDisk::new(1);
    let journal = open(&disk);
    let op =
        |bytes: usize| JournalOp::Append { stream: vec![b's'; bytes].into(), id: 1, content: Bytes::new() };
    journal.append(&[op(MAX_STREAM_BYTES)]).unwrap();
    assert!(matches!(journal.append(&[op(MAX_STREAM_BYTES + 1)]), Err(JournalError::Bound { .. })));
    // Blocks end at their bound, and one that is larger alone is whole.
    let half = BLOCK_BYTES / 2 - ENTRY_HEAD;
    let ops =
        [append(0, 1, vec![1; half]), append(0, 2, vec![2; half]), append(0, 3, vec![3; 3 * BLOCK_BYTES])];
    journal.append(&ops).unwrap();
    let sizes: Vec<_> =
        journal.index().blocks_in(journal.writer().file).iter().map(|(_, b)| (b.count, b.bytes)).collect();
    assert!(
        sizes.contains(&(2, BLOCK_BYTES as u32))
            && sizes.contains(&(1, (3 * BLOCK_BYTES + ENTRY_HEAD) as u32))
    );
    let read = open(&disk).read(&name(0), 0, 9, usize::MAX).unwrap();
    assert_eq!(
        read.iter().map(|(id, c)| (*id, c.len())).collect::<Vec<_>>(),
        [(1, half), (2, half), (3, 3 * BLOCK_BYTES)]
    );
}

/// Neither the next file nor a run that finds no room ends a journal, and nothing of them is seen.
#[test]
fn a_disk_without_room_refuses_and_goes_on_when_it_has_some() {
    for free in 0..600 {
        let disk = MemDisk::new(free);
        let journal = open(&disk);
        let (mut model, mut refused) = (Model::default(), 0);
        let ops = |id| [append(0, id, vec![id as u8; 700]), append(1, id, vec![id as u8; 90])];
        for id in 1..20 {
            disk.set_capacity(Some(disk.used() + free * 2));
            if let Err(e) = journal.append(&ops(id)) {
                assert!(matches!(e, JournalError::NoRoom { .. }), "{e}");
                refused += 1;
                disk.set_capacity(None);
                // Another run at the same place, shorter than the one before.
                journal.append(&ops(id)[1..]).unwrap();
                model.take(&ops(id)[1..]);
            } else {
                model.take(&ops(id));
            }
        }
        assert!(refused > 0 || free > 300, "{free}");
        disk.set_capacity(None);
        let mut random = fastrand::Rng::with_seed(free);
        model.check(&journal, &mut random);
        drop(journal);
        model.check(&open(&disk), &mut random);
    }
}

/// The first of some entries of a stream at rest is damaged, or cannot be read, before the file goes.
#[test]
fn what_is_damaged_does_not_keep_its_file_and_stays_named() {
    for unreadable in [false, true] {
        let disk = MemDisk::new(1);
        let at = three_runs(&disk) as usize;
        let path = path_of(Path::new(DIR), 7, 1);
        match unreadable {
            true => disk.fail_reads(&path, at..at + 1).unwrap(),
            false => disk.flip(&path, at as u64, 1).unwrap(),
        }
        let journal = open(&disk);
        if unreadable {
            let read = journal.read(&name(0), 2, 9, 999);
            assert!(matches!(read, Err(JournalError::Damaged { first: 2, last: 2, .. })), "{read:?}");
            assert_eq!(journal.lost(), [], "it may be read another time");
        }
        let (done, ended) = std::sync::mpsc::sync_channel(1);
        let shared = Arc::new(journal);
        let own = shared.clone();
        std::thread::spawn(move || {
            for id in 1..300 {
                own.append(&[append(1, id, vec![1; 200]), trim(1, id)]).unwrap();
                while own.reclaim(Laggards::Copy).unwrap() {}
            }
            drop(own);
            done.send(()).unwrap();
        });
        ended.recv_timeout(std::time::Duration::from_secs(60)).expect("reclaiming ends");
        assert!(!disk.exists(&path), "the file goes");
        drop(shared);
        let journal = open(&disk);
        assert_eq!(journal.lost(), [(name(0), 2, 2)]);
        assert_eq!(journal.read(&name(0), 1, 9, 999).unwrap().len(), 1);
        assert_eq!(journal.read(&name(0), 3, 9, 999).unwrap().len(), 1);
        // A log that reaches back so far brings it again: it is neither there nor another.
        let again: Vec<_> = (1..=3).map(|id| append(0, id, format!("entry number {id}"))).collect();
        journal.append(&again).unwrap();
    }
}

/// A file that found no room leaves nothing behind it: the one before it is the newest, and what is torn at
/// its end is cut.
#[test]
fn a_torn_tail_is_cut_though_the_next_file_found_no_room() {
    for left_behind in [false, true] {
        let disk = MemDisk::new(1);
        three_runs(&disk);
        let journal = open(&disk);
        disk.set_capacity(Some(disk.used()));
        let refused = journal.append(&[append(0, 4, vec![4; FILE as usize])]);
        assert!(matches!(refused, Err(JournalError::NoRoom { .. })), "{refused:?}");
        disk.set_capacity(None);
        assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 1);
        if left_behind {
            disk.open(&path_of(Path::new(DIR), 7, 2), true).unwrap();
            disk.sync_dir(Path::new(DIR)).unwrap();
        }
        journal.append(&[append(0, 4, "entry number 4")]).unwrap();
        drop(journal);
        let path = path_of(Path::new(DIR), 7, 1);
        let bytes = crate::disk::read_all(&*disk.open(&path, false).unwrap()).unwrap();
        let at = bytes.windows(14).position(|w| w == b"entry number 4").unwrap() as u64;
        disk.flip(&path, at, 1).unwrap();
        let journal = open(&disk);
        assert_eq!((journal.lost(), journal.bounds(&name(0))), (vec![], Some((0, 3))));
        journal.append(&[append(0, 4, "entry number 4")]).unwrap();
        assert_eq!(journal.read(&name(0), 4, 9, 99).unwrap().len(), 1);
    }
}

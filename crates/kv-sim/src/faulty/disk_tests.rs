//! The lossy disk against a model of what a process sees and what a crash leaves.

use super::*;

const FILES: [&str; 4] = ["a", "b", "c", "c.tmp"];

/// A file as a process sees it, as a crash leaves it, and all that was ever written to a sector meanwhile.
#[derive(Debug, Clone, Default)]
struct Model {
    live: Vec<u8>,
    synced: Vec<u8>,
    since: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct World {
    files: Vec<Model>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
}

fn padded(bytes: &[u8], sector: usize) -> Vec<u8> {
    let mut out = bytes.get(sector * SECTOR..).unwrap_or_default().to_vec();
    out.resize(SECTOR, 0);
    out
}

fn contents(disk: &LossyDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, false).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap() + 10];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn step(world: &mut World, disk: &LossyDisk, dir: &Path, random: &mut fastrand::Rng) {
    let path = dir.join(FILES[random.usize(..FILES.len())]);
    let known = world.live.get(&path).copied();
    match (random.u8(..12), known) {
        (0..=4, _) => {
            let data: Vec<u8> = (0..random.usize(1..1500)).map(|_| random.u8(..)).collect();
            let offset = random.usize(..2500);
            disk.open(&path, true).unwrap().write_at(&data, offset as u64).unwrap();
            let id = known.unwrap_or_else(|| {
                world.files.push(Model::default());
                world.live.insert(path.clone(), world.files.len() - 1);
                world.files.len() - 1
            });
            let file = &mut world.files[id];
            file.since.push(file.live.clone());
            let end = (offset + data.len()).max(file.live.len());
            file.live.resize(end, 0);
            file.live[offset..offset + data.len()].copy_from_slice(&data);
        }
        (5, Some(id)) => {
            let len = random.usize(..3000);
            disk.open(&path, false).unwrap().set_len(len as u64).unwrap();
            let file = &mut world.files[id];
            file.since.push(file.live.clone());
            file.live.resize(len, 0);
        }
        (6 | 7, Some(id)) => {
            disk.open(&path, false).unwrap().sync_data().unwrap();
            let file = &mut world.files[id];
            file.synced = file.live.clone();
            file.since.clear();
        }
        (8, Some(id)) => {
            let to = dir.join(FILES[random.usize(..FILES.len())]);
            disk.rename(&path, &to).unwrap();
            world.live.remove(&path);
            world.live.insert(to, id);
        }
        (9, Some(_)) => {
            disk.remove(&path).unwrap();
            world.live.remove(&path);
        }
        (10, _) => {
            disk.sync_dir(dir).unwrap();
            world.durable = world.live.clone();
        }
        (_, None) => assert!(disk.open(&path, false).is_err()),
        (_, Some(id)) => assert_eq!(contents(disk, &path), world.files[id].live),
    }
}

/// Runs random operations with crashes between them; `leaks` says whether unsynced sectors may survive.
fn run(seed: u64, leaks: bool) -> (DiskStatus, u64) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::default();
    let (mut status, mut lost) = (DiskStatus::default(), 0);
    for life in 0..4 {
        let disk = LossyDisk::with(seed + life, leaks);
        for name in FILES {
            let path = dir.join(name);
            assert_eq!(disk.exists(&path), world.live.contains_key(&path), "seed {seed} life {life} {name}");
            let Some(id) = world.live.get(&path).copied() else { continue };
            let found = contents(&disk, &path);
            let file = &mut world.files[id];
            if leaks {
                // Any sector may be any version since the last sync, and a leaked tail may have made the file
                // longer.
                let versions = [&file.synced, &file.live].into_iter().chain(&file.since);
                for sector in 0..found.len().div_ceil(SECTOR) {
                    let is = padded(&found, sector);
                    assert!(versions.clone().any(|v| padded(v, sector) == is), "seed {seed} sector {sector}");
                }
            } else {
                assert_eq!(found, file.synced, "seed {seed} life {life} {name}");
            }
            lost += u64::from(found != file.live);
            *file = Model { live: found.clone(), synced: found, since: Vec::new() };
        }
        let listed: Vec<PathBuf> = world.live.keys().cloned().collect();
        assert_eq!(disk.list(dir).unwrap(), listed);
        for _ in 0..60 {
            step(&mut world, &disk, dir, &mut random);
        }
        status = disk.status();
        world.live = world.durable.clone();
    }
    (status, lost)
}

#[test]
fn exactly_what_was_synced_survives() {
    let lost: u64 = (0..60).map(|seed| run(seed, false).1).sum();
    assert!(lost > 50, "crashes lost something: {lost}");
}

#[test]
fn leaked_sectors_are_torn_writes_and_nothing_else() {
    let leaked: u64 = (0..60).map(|seed| run(seed, true).0.leaked_sectors).sum();
    assert!(leaked > 50, "{leaked}");
}

#[test]
fn a_failed_sync_drops_what_it_had_and_later_ones_do_not_bring_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let disk = LossyDisk::without_leaks();
    let file = disk.open(&path, true).unwrap();
    file.write_at(&[1; 2 * SECTOR], 0).unwrap();
    file.sync_all().unwrap();
    disk.sync_dir(folder.path()).unwrap();
    disk.fail_sync(Some(1), 1);
    file.write_at(&[2; SECTOR], 0).unwrap();
    file.sync_data().unwrap();
    file.write_at(&[3; SECTOR], SECTOR as u64).unwrap();
    assert_eq!(disk.status().unsynced_bytes, SECTOR as u64);
    assert!(file.sync_data().is_err());
    assert_eq!(contents(&disk, &path)[SECTOR], 3, "the process still reads it");
    file.write_at(&[4; SECTOR], 2 * SECTOR as u64).unwrap();
    file.sync_data().unwrap();
    let status = disk.status();
    assert_eq!((status.syncs, status.failed_syncs, status.fail_sync_after), (3, 1, None));
    let after = contents(&LossyDisk::without_leaks(), &path);
    assert_eq!([after[0], after[SECTOR], after[2 * SECTOR]], [2, 1, 4], "but the disk never got it");
}

#[test]
fn a_full_disk_refuses_what_grows_and_takes_it_again_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = LossyDisk::without_leaks();
    let open = |name: &str| disk.open(&folder.path().join(name), true).unwrap();
    open("a").write_at(&[1; 1000], 0).unwrap();
    disk.set_capacity(Some(disk.status().used_bytes + 100));
    open("a").write_at(&[1; 500], 500).unwrap();
    let refused = open("b").write_at(&[1; 101], 0).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    // A hole takes nothing until somebody writes into it.
    open("b").set_len(1 << 20).unwrap();
    assert!(open("b").write_at(&[1; 10], 1000).is_err());
    disk.remove(&folder.path().join("a")).unwrap();
    open("b").write_at(&[1; 10], 1000).unwrap();
    disk.set_capacity(None);
    open("b").write_at(&[1; 1000], 1 << 21).unwrap();
    assert_eq!(disk.status().refused_writes, 2);
}

#[test]
fn a_disk_that_need_not_lose_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let disk = LossyDisk::new(1);
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    disk.open(&a, true).unwrap().write_at(b"before", 0).unwrap();
    disk.lose_unsynced(false).unwrap();
    disk.open(&b, true).unwrap().write_at(b"after", 0).unwrap();
    disk.rename(&b, &folder.path().join("c")).unwrap();
    let reopened = LossyDisk::new(2);
    assert_eq!(contents(&reopened, &a), b"before");
    assert_eq!(contents(&reopened, &folder.path().join("c")), b"after");
    assert!(!reopened.exists(&b));
}

#[test]
fn a_disk_that_hangs_keeps_writes_and_syncs_waiting_and_goes_on_when_it_is_healed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let disk = LossyDisk::without_leaks();
    let file = disk.open(&path, true).unwrap();
    file.write_at(&[1; SECTOR], 0).unwrap();
    disk.hang(true);
    let (writes, syncs) = (file.clone(), file.clone());
    let threads = [
        std::thread::spawn(move || writes.write_at(&[2; SECTOR], 0).unwrap()),
        std::thread::spawn(move || syncs.sync_data().unwrap()),
    ];
    while disk.status().held_calls < 2 {
        std::thread::yield_now();
    }
    assert_eq!(contents(&disk, &path)[0], 1, "reads go on");
    assert!(threads.iter().all(|thread| !thread.is_finished()));
    disk.hang(false);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((contents(&disk, &path)[0], disk.status().syncs, disk.status().hangs), (2, 1, false));
}

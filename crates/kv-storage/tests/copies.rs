//! Copies while writes and the drain go on: base and tail together are what was there at the close.
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
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use kv_storage::{Batch, Copy, Drive, Piece, Storage, StorageError, TableId, limits, tier::TierKind};
use world::{Mem, Real, T, U, World, run};

type Rows = BTreeMap<(TableId, Bytes), Bytes>;

/// The rows that pieces say, read as a snapshot is: the last record of a key counts.
#[derive(Debug, Default)]
struct Reader {
    rows: Rows,
    tails: usize,
}

impl Reader {
    fn read(&mut self, piece: Piece) {
        self.tails += usize::from(matches!(piece, Piece::Tail(_)));
        for (table, key, value) in piece.into_rows() {
            match value {
                Some(value) => self.rows.insert((table, key), value),
                None => self.rows.remove(&(table, key)),
            };
        }
    }

    fn finish(&mut self, copy: &mut Copy) {
        while let Some(piece) = copy.next_piece(64, 4_096).unwrap() {
            self.read(piece);
        }
        assert!(copy.is_closed());
    }
}

/// Writes by the dice, with what must come of them.
struct Writer {
    storage: Storage,
    model: Rows,
    dice: fastrand::Rng,
    written: usize,
}

impl Writer {
    /// One batch: puts and deletes of a few keys, derived or logged.
    async fn write(&mut self) {
        let mut batch = Batch::new();
        for _ in 0..self.dice.usize(1..=6) {
            let table = if self.dice.bool() { T } else { U };
            let key = format!("{}/{:03}", self.dice.choice(["a", "b", "c"]).unwrap(), self.dice.u8(0..150));
            self.written += 1;
            if self.dice.u8(..) < 80 {
                batch.push_delete(table, &key);
                self.model.remove(&(table, key.into()));
            } else {
                let value = format!("{} {}", self.written, "x".repeat(self.dice.usize(0..60)));
                batch.push_put(table, &key, &value);
                self.model.insert((table, key.into()), value.into());
            }
        }
        if self.dice.bool() {
            return self.storage.apply(batch).await.unwrap();
        }
        // Faster than the drain: it has to wait like every writer.
        while let Err(e) = self.storage.commit(batch.clone()) {
            assert!(e.is_refusal(), "{e}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What a copy of both ranges must hold now.
    fn expected(&self) -> Rows {
        let inside = |(table, key): &(TableId, Bytes)| *table == T || key.starts_with(b"b/");
        self.model.iter().filter(|(place, _)| inside(place)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

const RANGES: [(TableId, &[u8]); 2] = [(T, b""), (U, b"b/")];

/// A copy of random writes, drains, chunk sizes and closes; every seed repeats.
async fn one_copy(storage: &Storage, seed: u64, lazy_disk: bool) {
    let mut w = Writer {
        storage: storage.clone(),
        model: Rows::new(),
        dice: fastrand::Rng::with_seed(seed),
        written: 0,
    };
    for (table, found) in [T, U].map(|table| (table, storage.scan(table, b"", None, usize::MAX).unwrap())) {
        w.model.extend(found.into_iter().map(|(key, row)| ((table, key), row.value)));
    }
    for _ in 0..w.dice.usize(0..150) {
        w.write().await;
        if !lazy_disk && w.dice.u8(..) < 60 {
            storage.pump();
        }
    }
    let mut copy = storage.copy(&RANGES).unwrap();
    let mut reader = Reader::default();
    let busy = w.dice.u8(1..200);
    loop {
        for _ in 0..w.dice.usize(0..4) {
            if w.dice.u8(..) < busy {
                w.write().await;
            }
            if w.dice.u8(..) < 100 {
                storage.pump();
            }
        }
        let (rows, bytes) = (w.dice.usize(1..80), w.dice.usize(1..6_000));
        match copy.next_piece(rows, bytes).unwrap() {
            Some(piece) => {
                assert!(matches!(piece, Piece::Tail(_)) || piece.rows().len() <= 2 * rows);
                reader.read(piece);
            }
            None => assert!(copy.base_is_read()),
        }
        if copy.base_is_read() && w.dice.u8(..) < 60 {
            break;
        }
        if !copy.base_is_read() && w.dice.u8(..) < 8 {
            assert!(matches!(copy.close(), Err(StorageError::Invalid(_))), "the base is not read");
        }
    }
    // Whatever is written last is in it, too.
    w.write().await;
    copy.close().unwrap();
    let expected = w.expected();
    w.write().await;
    storage.pump();
    reader.finish(&mut copy);
    assert!(reader.rows == expected, "seed {seed}: {:?}", differences(&reader.rows, &expected));
}

fn differences(found: &Rows, expected: &Rows) -> Vec<String> {
    let keys = found.keys().chain(expected.keys()).collect::<std::collections::BTreeSet<_>>();
    let differing = keys.into_iter().filter(|key| found.get(key) != expected.get(key));
    differing.map(|key| format!("{key:?}: {:?}, not {:?}", found.get(key), expected.get(key))).collect()
}

fn manual(w: &mut dyn World) {
    w.options().drive = Drive::Manual;
    w.options().drain_start_bytes = 2_000;
    w.options().drain_batch_bytes = 700;
    w.options().drain_interval = Duration::ZERO;
}

#[test]
fn a_copy_is_what_was_there_at_its_close() {
    run(async {
        for kind in [TierKind::Fjall, TierKind::Sled] {
            let mut w = Real::new(kind);
            manual(&mut w);
            let (storage, _) = w.open();
            // Each seed goes on where the last one ended.
            for seed in 0..40 {
                one_copy(&storage, seed, seed % 5 == 0).await;
            }
        }
        for seed in 100..300 {
            let mut w = Mem::new(seed);
            manual(&mut w);
            let (storage, _) = w.open();
            one_copy(&storage, seed, seed % 5 == 0).await;
            one_copy(&storage, seed + 1_000, false).await;
        }
    });
}

/// A writer of its own, and drains by the engine's threads in the middle of the pieces.
async fn copies_beside_a_writer(w: &mut dyn World) {
    w.options().drain_start_bytes = 4_000;
    w.options().drain_batch_bytes = 2_000;
    w.options().drain_interval = Duration::from_millis(1);
    // What this is about is the races; on a busy machine the writer may be far ahead.
    w.options().copy_tail_bytes = 256 << 20;
    let (storage, _) = w.open();
    let writer = Arc::new(Mutex::new(Writer {
        storage: storage.clone(),
        model: Rows::new(),
        dice: fastrand::Rng::with_seed(7),
        written: 0,
    }));
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = std::thread::spawn({
        let writer = writer.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                runtime.block_on(writer.lock().unwrap().write());
                std::thread::yield_now();
            }
        }
    });
    let mut tails = 0;
    for round in 0..60 {
        let mut copy = storage.copy(&RANGES).unwrap();
        let mut reader = Reader::default();
        let begun = writer.lock().unwrap().written;
        // To the end of the base, and on until something was written meanwhile.
        while !copy.base_is_read() || writer.lock().unwrap().written < begun + 20 {
            if let Some(piece) = copy.next_piece(1 + round % 7, 64 << 10).unwrap() {
                reader.read(piece);
            }
            std::thread::yield_now();
        }
        let expected = {
            let writer = writer.lock().unwrap();
            copy.close().unwrap();
            writer.expected()
        };
        reader.finish(&mut copy);
        assert!(reader.rows == expected, "{:?}", differences(&reader.rows, &expected));
        tails += reader.tails;
    }
    stop.send(()).unwrap();
    writing.join().unwrap();
    assert!(tails > 0, "something was written meanwhile");
    assert!(storage.stats().drains > 0, "something was drained meanwhile");
}

#[test]
fn copies_beside_a_writer_and_the_threads() {
    run(async {
        copies_beside_a_writer(&mut Real::new(TierKind::Fjall)).await;
        copies_beside_a_writer(&mut Real::new(TierKind::Sled)).await;
        copies_beside_a_writer(&mut Mem::new(1)).await;
    });
}

#[test]
fn a_copy_holds_up_neither_drain_nor_commit_and_is_given_up_by_name() {
    run(async {
        let mut w = Mem::new(3);
        w.options().drive = Drive::Manual;
        w.options().copy_tail_bytes = 100 << 10;
        let (storage, _) = w.open();
        let put = |n: usize| Batch::new().put(T, format!("{n:04}"), vec![1; 10_000]);
        storage.commit(put(0)).unwrap();
        let mut copies: Vec<Copy> = (0..limits::MAX_COPIES).map(|_| storage.copy(&RANGES).unwrap()).collect();
        assert_eq!(
            storage.copy(&RANGES).err(),
            Some(StorageError::Overloaded { what: "the number of copies" })
        );
        let mut other = copies.pop().unwrap();
        for n in 1..60 {
            storage.commit(put(n)).unwrap();
            storage.apply(put(n)).await.unwrap();
            if n % 4 == 0 {
                while let Some(piece) = other.next_piece(1_000, 1 << 20).unwrap() {
                    drop(piece);
                }
            }
            while storage.pump() {}
        }
        // Nothing was read from them, and everything is in the tier.
        let checkpoint = tokio::spawn({
            let storage = storage.clone();
            async move { storage.checkpoint().await }
        });
        while !checkpoint.is_finished() {
            storage.pump();
            tokio::task::yield_now().await;
        }
        checkpoint.await.unwrap().unwrap();
        assert_eq!(storage.stats().memtable_bytes, 0);
        let overrun = Err(StorageError::CopyOverrun { max: 100 << 10 });
        assert_eq!(copies[0].next_piece(10, 10), overrun.clone());
        while other.next_piece(10, 10).expect("one that keeps up is not given up").is_some() {}
        other.close().unwrap();
        drop((copies, other));
        storage.commit(put(1)).unwrap();
        assert!(storage.copy(&RANGES).is_ok());
    });
}

/// Three quarters of what is read goes to the tail where that much is written: the copy is not given up, and
/// its base is read to the end.
#[test]
fn a_copy_keeps_up_with_a_writer_that_is_nearly_as_fast() {
    let mut w = Mem::new(1);
    manual(&mut w);
    w.options().copy_tail_bytes = 64 << 10;
    let (storage, _) = w.open();
    for key in 0..2_000_u32 {
        let mut batch = Batch::new();
        batch.push_put(T, key.to_be_bytes(), [1; 200]);
        storage.commit(batch).unwrap();
        while storage.pump() {}
    }
    let mut copy = storage.copy(&[(T, b"")]).unwrap();
    let (mut reader, mut steps) = (Reader::default(), 0);
    while !copy.base_is_read() {
        for row in 0..9_u32 {
            let mut batch = Batch::new();
            batch.push_put(T, ((steps * 9 + row) % 2_000).to_be_bytes(), [2; 200]);
            storage.commit(batch).unwrap();
        }
        while storage.pump() {}
        if let Some(piece) = copy.next_piece(64, 4_096).unwrap() {
            reader.read(piece);
        }
        steps += 1;
    }
    copy.close().unwrap();
    reader.finish(&mut copy);
    assert_eq!(reader.rows.len(), 2_000);
    assert!(reader.tails as u32 > steps / 2, "{} tails of {steps}", reader.tails);
}

//! The index against a list of entries, through any history of appends, truncations, purges, writes, copies
//! and restarts.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::wal::frame::RECORD_HEAD;

#[derive(Debug, Clone)]
enum Step {
    Append { entries: u64, bytes: usize, new_term: bool },
    Truncate { entries: u64 },
    Purge { entries: u64 },
    PurgeBeyond { by: u64 },
    Write { items: usize },
    Roll,
    CopyOldest,
    Shrink { max: usize },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..9u64, 0..200usize, any::<bool>())
            .prop_map(|(entries, bytes, new_term)| Step::Append { entries, bytes, new_term }),
        2 => (0..12u64).prop_map(|entries| Step::Truncate { entries }),
        2 => (0..12u64).prop_map(|entries| Step::Purge { entries }),
        1 => (0..5u64).prop_map(|by| Step::PurgeBeyond { by }),
        6 => (1..6usize).prop_map(|items| Step::Write { items }),
        3 => Just(Step::Roll),
        2 => Just(Step::CopyOldest),
        2 => (0..4_000usize).prop_map(|max| Step::Shrink { max }),
        1 => Just(Step::Restart),
    ]
}

/// On its way to the log.
enum Waiting {
    Run(Run),
    Truncate(Option<u64>),
    Purge(u64),
}

/// In the log.
#[derive(Debug, Clone, Copy)]
enum Written {
    Entry { copied: bool, id: RaftLogId, at: Location },
    Truncate(Option<u64>),
    Purge(u64),
}

#[derive(Debug, Clone)]
struct Entry {
    id: RaftLogId,
    payload: Bytes,
    append_id: u64,
    at: Option<Location>,
}

#[derive(Default)]
struct World {
    index: GroupIndex,
    purged: Option<RaftLogId>,
    entries: Vec<Entry>,
    waiting: VecDeque<Waiting>,
    log: Vec<(u64, Written)>,
    segment: u64,
    offset: u32,
    term: u64,
}

impl World {
    fn next_index(&self) -> u64 {
        self.entries.last().map(|e| e.id).or(self.purged).map_or(1, |last| last.index + 1)
    }

    fn append(&mut self, count: u64, bytes: usize) {
        let first = self.next_index();
        let id = |index| RaftLogId { term: self.term, node: self.term % 3, index };
        let entries: Vec<RaftEntry> = (first..first + count)
            .map(|index| RaftEntry { id: id(index), payload: vec![index as u8; bytes].into() })
            .collect();
        let append_id = self.index.append(&entries);
        for (entry, append_id) in entries.iter().zip(append_id..) {
            let (id, payload) = (entry.id, entry.payload.clone());
            self.entries.push(Entry { id, payload, append_id, at: None });
        }
        self.waiting.push_back(Waiting::Run(Run::new(7, append_id, false, entries)));
    }

    fn truncate(&mut self, after: Option<u64>) {
        self.index.drop_after(after);
        self.entries.retain(|e| after.is_some_and(|after| e.id.index <= after));
        self.waiting.push_back(Waiting::Truncate(after));
    }

    fn purge(&mut self, id: RaftLogId) {
        let newer = self.purged.is_none_or(|p| p.index < id.index);
        assert_eq!(self.index.purge(id), newer);
        if newer {
            self.purged = Some(id);
            self.entries.retain(|e| e.id.index > id.index);
            self.waiting.push_back(Waiting::Purge(id.index));
        }
    }

    fn write(&mut self) {
        match self.waiting.pop_front() {
            None => {}
            Some(Waiting::Truncate(after)) => self.log.push((self.segment, Written::Truncate(after))),
            Some(Waiting::Purge(index)) => self.log.push((self.segment, Written::Purge(index))),
            Some(Waiting::Run(run)) => {
                self.index.located(&run, self.segment, self.offset);
                for (entry, append_id, offset) in run.placed(self.offset) {
                    let at = Location { segment: self.segment, offset, bytes: entry.payload.len() as u32 };
                    let found = self
                        .entries
                        .iter_mut()
                        .find(|e| e.id.index == entry.id.index && e.append_id == append_id);
                    if let Some(found) = found {
                        found.at = Some(at);
                    }
                    self.log
                        .push((self.segment, Written::Entry { copied: run.is_copied(), id: entry.id, at }));
                    self.offset = offset + (ENTRY_HEAD + RECORD_HEAD + entry.payload.len()) as u32;
                }
            }
        }
    }

    fn oldest_segment(&self) -> Option<u64> {
        self.entries.iter().filter_map(|e| e.at).map(|at| at.segment).min()
    }

    fn copy_oldest(&mut self) {
        let Some(segment) = self.oldest_segment() else { return };
        let expected: Vec<RaftLogId> = self
            .entries
            .iter()
            .filter(|e| e.at.is_some_and(|at| at.segment == segment))
            .map(|e| e.id)
            .collect();
        let laggards = self.index.laggards(segment);
        assert_eq!(laggards.iter().map(|l| l.id).collect::<Vec<_>>(), expected);
        for laggard in laggards {
            let of = self.entries.iter().find(|e| e.id == laggard.id).unwrap();
            assert_eq!(of.append_id, laggard.append_id);
            let entry = RaftEntry { id: of.id, payload: of.payload.clone() };
            self.waiting.push_back(Waiting::Run(Run::new(7, of.append_id, true, vec![entry])));
        }
    }

    /// Everything is written, segments that nothing needs go, and the rest is read again.
    fn restart(&mut self) {
        while !self.waiting.is_empty() {
            self.write();
        }
        let keep_from = self.oldest_segment().unwrap_or(self.segment);
        self.log.retain(|(segment, _)| *segment >= keep_from);
        let mut found = Recovering::default();
        for (_, written) in &self.log {
            match *written {
                Written::Entry { copied: false, id, at } => found.appended(id, at).unwrap(),
                Written::Entry { copied: true, id, at } => found.copied(id, at).unwrap(),
                Written::Truncate(after) => found.truncate(after),
                Written::Purge(index) => found.purge(index),
            }
        }
        self.index = found.finish(self.purged).unwrap();
        for entry in &mut self.entries {
            entry.append_id = self.index.append_id_of(entry.id.index).unwrap();
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let last = self.entries.last().map(|e| e.id).or(self.purged);
        prop_assert_eq!(self.index.bounds(), RaftBounds { purged: self.purged, last });
        let found = self.index.find(0..u64::MAX, usize::MAX);
        prop_assert_eq!(found.len(), self.entries.len());
        for ((id, place), entry) in found.iter().zip(&self.entries) {
            prop_assert_eq!(*id, entry.id);
            prop_assert_eq!(self.index.location_of(*id), entry.at);
            match place {
                Place::Memory(payload) => prop_assert_eq!(payload, &entry.payload),
                Place::Disk(at) => prop_assert_eq!(Some(*at), entry.at),
            }
        }
        let cached: usize = found
            .iter()
            .filter_map(|(_, p)| if let Place::Memory(p) = p { Some(cost(p)) } else { None })
            .sum();
        prop_assert_eq!(self.index.cached_bytes(), cached);
        Ok(())
    }
}

proptest! {
    #[test]
    fn an_index_is_a_list_through_any_history(steps in proptest::collection::vec(step(), 1..120)) {
        let mut w = World { segment: 1, offset: 64, ..World::default() };
        for step in steps {
            match step {
                Step::Append { entries, bytes, new_term } => {
                    w.term += u64::from(new_term);
                    w.append(entries, bytes);
                }
                Step::Truncate { entries } => {
                    let keep = w.entries.len().saturating_sub(entries as usize);
                    let after = w.entries.get(keep).map_or(w.next_index() - 1, |e| e.id.index - 1);
                    w.truncate(Some(after));
                }
                Step::Purge { entries } => {
                    if let Some(entry) = w.entries.iter().take(entries as usize).next_back() {
                        w.purge(entry.id);
                    }
                }
                Step::PurgeBeyond { by } => {
                    let index = w.next_index() + by;
                    w.purge(RaftLogId { term: w.term, node: 0, index });
                }
                Step::Write { items } => (0..items).for_each(|_| w.write()),
                Step::Roll => (w.segment, w.offset) = (w.segment + 1, 64),
                Step::CopyOldest => w.copy_oldest(),
                Step::Shrink { max } => {
                    w.index.shrink_cache(max);
                    let unwritten = w.entries.iter().filter(|e| e.at.is_none()).map(|e| cost(&e.payload)).sum();
                    prop_assert!(w.index.cached_bytes() <= max.max(unwritten));
                }
                Step::Restart => w.restart(),
            }
            w.check()?;
        }
        w.restart();
        w.check()?;
    }
}

/// 1 GiB of small puts is about ten million entries: at 96 bytes each their index took as much as they did.
#[test]
fn an_entry_costs_sixteen_bytes_of_memory_at_most() {
    const ENTRIES: u64 = 1_000_000;
    const BATCH: u64 = 64;
    let mut index = GroupIndex::default();
    let payload = Bytes::from(vec![7; 100]);
    let mut offset = 64;
    for batch in 0..ENTRIES / BATCH {
        let first = batch * BATCH + 1;
        // A new term now and then, a new segment every 64 MiB.
        let (term, segment) = (batch / 500, batch / 7_500);
        let id = |index| RaftLogId { term, node: term % 5, index };
        let entries: Vec<RaftEntry> =
            (first..first + BATCH).map(|i| RaftEntry { id: id(i), payload: payload.clone() }).collect();
        let append_id = index.append(&entries);
        index.located(&Run::new(1, append_id, false, entries), segment, offset % (64 << 20));
        offset += 137 * BATCH as u32;
        index.shrink_cache(64 << 10);
        if batch % 1_000 == 999 {
            let live = index.end() - index.first();
            let per_entry = index.memory_bytes() as f64 / live as f64;
            assert!(
                per_entry <= limits::INDEX_ENTRY_BYTES as f64,
                "{per_entry} bytes of each of {live} entries"
            );
        }
    }
    assert!(index.cached_bytes() <= 64 << 10);
    // What is purged is given back.
    let half = index.name_of(ENTRIES / 2).unwrap();
    let before = index.memory_bytes();
    index.purge(half);
    assert!(index.memory_bytes() < before * 6 / 10, "{} of {before}", index.memory_bytes());
}

#[test]
fn entries_that_do_not_form_a_log_are_named() {
    let id = |index| RaftLogId { term: 1, node: 1, index };
    let at = |offset| Location { segment: 1, offset, bytes: 1 };
    let mut hole = Recovering::default();
    hole.appended(id(5), at(1)).unwrap();
    assert_eq!(hole.appended(id(7), at(2)), Err(Disorder::Missing(6)));
    let mut renamed = Recovering::default();
    renamed.appended(id(5), at(1)).unwrap();
    assert_eq!(renamed.copied(RaftLogId { term: 2, ..id(5) }, at(2)), Err(Disorder::Renamed(5)));
    let mut early = Recovering::default();
    early.appended(id(5), at(1)).unwrap();
    early.copied(id(3), at(2)).unwrap();
    assert_eq!(early.finish(None).unwrap_err(), Disorder::Missing(4));
    let mut late = Recovering::default();
    late.appended(id(5), at(1)).unwrap();
    assert_eq!(late.finish(Some(id(3))).unwrap_err(), Disorder::Missing(4));
}

//! The history of a strong namespace: for each revision what it changed, and the account that bounds it.
//!
//! An entry is appended to the namespace's stream with the rows that it changes, under its revision as id. It
//! holds, for each key, the row before; and the row after, without its value where that is large: that value
//! is in the present row, or is the row before in the key's next entry. So a large value is written once more
//! when it is replaced, not when it is new.
//!
//! `get(k, r)`: the present row, if its revision is at most r; otherwise the row before in k's first entry
//! above r. That holds for every r at or above the floor: a deleted key has a tombstone in its place until
//! the floor has passed its revision.
//!
//! The account is a function of the log, and so is the floor: it rises when the entries above it count for
//! more than the bound, by whole marks. Marks are made as entries are appended, so that nothing has to be
//! read to find the next floor. `docs/decisions/0014` has the reasons.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes};
use kv_storage::journal::JournalError;
use kv_storage::{Storage, StorageError};
use kv_types::{Key, NamespaceId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::{self, CodecError, Reader, Write};
use crate::limits::{
    HISTORY_ENTRY_BYTES, HISTORY_MARK_SHARE, HISTORY_WHOLE_VALUE_BYTES, PIECE_BYTES, ROWS_AT_ONCE,
};
use crate::machine_error::MachineError;
use crate::row::{HEAD_BYTES, Live, Row};
use crate::tables::{Space, Table, keys};

/// Version of an entry.
const ENTRY_VERSION: u8 = 1;
const ENTRY: &str = "entry of a history";
/// Version of an account: the first was a revision alone.
const ACCOUNT_VERSION: u8 = 2;
const ACCOUNT: &str = "account of a namespace";
const MARKS_VERSION: u8 = 1;

/// The row after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    /// The row.
    Whole(Row),
    /// A row with a large value, which is not kept here: its length and its hash identify it.
    Large {
        /// The row without its value.
        row: Row,
        /// Length of the value, bytes.
        length: u64,
        /// Hash of the value.
        hash: u64,
    },
}

/// What a revision did to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The key.
    pub(crate) key: Bytes,
    /// The row before; none where the key had no value.
    pub(crate) before: Option<Live>,
    /// The row after.
    pub(crate) after: After,
}

const WHOLE: u8 = 1;
const LARGE: u8 = 2;

/// An entry that is being made.
pub(crate) struct Entry(Vec<u8>);

impl Entry {
    /// Without changes yet.
    pub(crate) fn new() -> Self {
        Self(codec::versioned(ENTRY_VERSION, 256))
    }

    /// Adds a change of a key, with the rows as they are in the tables. A tombstone before is as no row:
    /// nodes remove it in their own time.
    pub(crate) fn change(&mut self, key: &[u8], before: Option<&Bytes>, after: &Bytes) {
        self.0.put_block(key);
        self.0.put_u8(u8::from(before.is_some()));
        if let Some(before) = before {
            self.0.put_block(before);
        }
        match after.split_at_checked(HEAD_BYTES) {
            Some((head, value)) if value.len() > HISTORY_WHOLE_VALUE_BYTES => {
                self.0.put_u8(LARGE);
                self.0.put_block(head);
                self.0.put_u64(value.len() as u64);
                self.0.put_u64(xxh3_64(value));
            }
            _ => {
                self.0.put_u8(WHOLE);
                self.0.put_block(after);
            }
        }
    }

    /// Its bytes.
    pub(crate) fn finish(self) -> Bytes {
        self.0.into()
    }
}

/// The changes of an entry.
pub(crate) fn decode_entry(content: Bytes) -> Result<Vec<Change>, CodecError> {
    let mut reader = Reader::versioned(content, ENTRY, ENTRY_VERSION)?;
    let mut changes = Vec::new();
    while !reader.is_empty() {
        let key = reader.bytes()?;
        let before = match reader.flag()? {
            true => match Live::of_row(reader.bytes()?)? {
                Some(live) => Some(live),
                None => return Err(reader.invalid("a tombstone stands for the row before")),
            },
            false => None,
        };
        let after = match reader.u8()? {
            WHOLE => After::Whole(Row::decode(reader.bytes()?)?),
            LARGE => {
                let row = Row::decode(reader.bytes()?)?;
                After::Large { row, length: reader.u64()?, hash: reader.u64()? }
            }
            found => return Err(reader.newer("kind of a row", found)),
        };
        changes.push(Change { key, before, after });
    }
    Ok(changes)
}

/// What must hold of the entry of a revision, also of one that another node sent.
pub(crate) fn check_entry(revision: u64, content: Bytes) -> Result<(), CodecError> {
    let invalid = |why: String| CodecError::Invalid { what: ENTRY, why };
    let changes = decode_entry(content)?;
    if changes.is_empty() {
        return Err(invalid(format!("revision {revision} changed nothing")));
    }
    for Change { key, before, after } in changes {
        Key::new(key).map_err(|failure| invalid(failure.message))?;
        let (row, large) = match &after {
            After::Whole(row) => (row, None),
            After::Large { row, length, .. } => (row, Some(*length)),
        };
        if row.revision() != revision || before.is_some_and(|before| before.revision >= revision) {
            return Err(invalid(format!("a row of revision {} in that of {revision}", row.revision())));
        }
        if large.is_some_and(|length| length <= HISTORY_WHOLE_VALUE_BYTES as u64) {
            return Err(invalid(format!("a value of {large:?} bytes is left out")));
        }
    }
    Ok(())
}

/// A place at which the history may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The last revision below it.
    revision: u64,
    /// The chain up to it.
    chain: u64,
    /// What the entries since the mark before count for.
    bytes: u64,
}

/// What is known of a namespace's history: a row, and another one for the marks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// The namespace's revision.
    pub(crate) revision: u64,
    /// Entries up to this revision are given up: the state can be asked for from here on.
    pub(crate) floor: u64,
    /// The chain up to the floor.
    pub(crate) floor_chain: u64,
    /// A hash of all entries that there ever were, in order.
    pub(crate) chain: u64,
    /// What the entries above the floor count for.
    bytes: u64,
    marks: VecDeque<Mark>,
}

/// What appending an entry did to the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    /// The floor has risen.
    pub(crate) floor_rose: bool,
    /// The marks are others.
    pub(crate) marked: bool,
}

/// The next value of the chain.
pub(crate) fn chained(chain: u64, content: &[u8]) -> u64 {
    xxh3_64_with_seed(content, chain)
}

impl Past {
    /// Counts the next entry. The bytes above the floor are at most `bound` afterwards.
    pub(crate) fn append(&mut self, content: &[u8], bound: u64) -> Appended {
        let price = content.len() as u64 + HISTORY_ENTRY_BYTES;
        self.revision += 1;
        self.chain = chained(self.chain, content);
        self.bytes += price;
        let marked: u64 = self.marks.iter().map(|mark| mark.bytes).sum();
        let open = self.bytes - marked;
        let mut appended = Appended { floor_rose: false, marked: false };
        if open >= bound / HISTORY_MARK_SHARE {
            self.marks.push_back(Mark { revision: self.revision, chain: self.chain, bytes: open });
            appended.marked = true;
        }
        while self.bytes > bound
            && let Some(mark) = self.marks.pop_front()
        {
            (self.floor, self.floor_chain) = (mark.revision, mark.chain);
            self.bytes -= mark.bytes;
            appended = Appended { floor_rose: true, marked: true };
        }
        assert!(self.bytes <= bound, "a history counts for {} bytes, the bound is {bound}", self.bytes);
        appended
    }

    /// What the entries above the floor count for, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first row: what every step writes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = codec::versioned(ACCOUNT_VERSION, 40);
        for number in [self.revision, self.floor, self.floor_chain, self.chain, self.bytes] {
            out.put_u64(number);
        }
        out
    }

    /// From the first row, without marks.
    pub(crate) fn decode(row: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(row, ACCOUNT, ACCOUNT_VERSION)?;
        let past = Self {
            revision: reader.u64()?,
            floor: reader.u64()?,
            floor_chain: reader.u64()?,
            chain: reader.u64()?,
            bytes: reader.u64()?,
            marks: VecDeque::new(),
        };
        if past.floor > past.revision {
            return Err(reader.invalid(format!("a floor of {} at revision {}", past.floor, past.revision)));
        }
        reader.end().map(|()| past)
    }

    /// The account with its marks, as the rows have it now. Blocks.
    pub(crate) fn stored(
        storage: &Storage,
        space: Space,
        namespace: NamespaceId,
    ) -> Result<Self, MachineError> {
        // The marks first: what is appended in between makes the last segment longer, or refuses.
        let marks = storage.get(Table::Meta.id(), &keys::marks(space, namespace))?;
        let row = storage.get(Table::Meta.id(), &keys::revision(space, namespace))?;
        let past = row.map(|row| Self::decode(row.value)).transpose()?.unwrap_or_default();
        Ok(match marks {
            Some(marks) => past.with_marks(marks.value)?,
            None => past,
        })
    }

    /// The smallest part with a revision whose entries can be checked without the others; none for a revision
    /// that has no entry.
    pub(crate) fn segment(&self, revision: u64) -> Option<Segment> {
        if revision <= self.floor || revision > self.revision {
            return None;
        }
        let mut start = (self.floor, self.floor_chain);
        for mark in &self.marks {
            if mark.revision >= revision {
                return Some(Segment::between(start, (mark.revision, mark.chain)));
            }
            start = (mark.revision, mark.chain);
        }
        Some(Segment::between(start, (self.revision, self.chain)))
    }

    /// The row of the marks.
    pub(crate) fn encode_marks(&self) -> Vec<u8> {
        let mut out = codec::versioned(MARKS_VERSION, 4 + 24 * self.marks.len());
        out.put_u32(codec::length(self.marks.len()));
        for mark in &self.marks {
            [mark.revision, mark.chain, mark.bytes].into_iter().for_each(|number| out.put_u64(number));
        }
        out
    }

    /// With the marks of their row.
    pub(crate) fn with_marks(self, row: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(row, ACCOUNT, MARKS_VERSION)?;
        let mark = |reader: &mut Reader| {
            Ok(Mark { revision: reader.u64()?, chain: reader.u64()?, bytes: reader.u64()? })
        };
        let marks: VecDeque<Mark> = reader.list(mark)?.into();
        let mut before = self.floor;
        let mut bytes = 0_u64;
        for mark in &marks {
            bytes = bytes.saturating_add(mark.bytes);
            if mark.revision <= before || mark.revision > self.revision || bytes > self.bytes {
                return Err(reader.invalid(format!("a mark at {} behind {before}", mark.revision)));
            }
            before = mark.revision;
        }
        reader.end().map(|()| Self { marks, ..self })
    }
}

/// Successive entries between two places where the account has the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The first revision.
    pub(crate) from: u64,
    /// The last one.
    pub(crate) to: u64,
    /// The chain up to the first, without it.
    before: u64,
    /// The chain up to the last.
    after: u64,
}

impl Segment {
    fn between((start, before): (u64, u64), (to, after): (u64, u64)) -> Self {
        Self { from: start + 1, to, before, after }
    }

    /// That these are the entries, all of them and unchanged.
    pub(crate) fn check(&self, entries: &[(u64, Bytes)]) -> Result<(), CodecError> {
        let invalid = |why: String| Err(CodecError::Invalid { what: ENTRY, why });
        let mut chain = self.before;
        let mut next = self.from;
        for (revision, content) in entries {
            if *revision != next {
                return invalid(format!("revision {revision} in the place of {next}"));
            }
            check_entry(*revision, content.clone())?;
            chain = chained(chain, content);
            next += 1;
        }
        if next <= self.to || chain != self.after {
            return invalid(format!("revisions {} to {} are not what the account says", self.from, self.to));
        }
        Ok(())
    }
}

/// A page of the entries of a namespace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// Entries of successive revisions; none where there is nothing more up to the end.
    Entries(Vec<(u64, Bytes)>),
    /// What was asked for was trimmed: the first revision that this node still has.
    Trimmed(u64),
    /// What was asked for is lost to damage: the first revision behind it.
    Lost(u64),
}

/// Entries of a namespace from a revision up to another (inclusive) that has been applied. Blocks.
pub(crate) fn read(
    storage: &Storage,
    space: Space,
    namespace: NamespaceId,
    (from, to): (u64, u64),
    max_bytes: usize,
) -> Result<Page, StorageError> {
    if from > to {
        return Ok(Page::Entries(Vec::new()));
    }
    let stream = keys::of_namespace(space, namespace);
    let read = storage.read_entries(Table::History.id(), &stream, (from, to), ROWS_AT_ONCE, max_bytes);
    let mut entries = match read {
        Ok(entries) => entries,
        Err(StorageError::Journal(JournalError::Trimmed { floor })) => return Ok(Page::Trimmed(floor)),
        Err(StorageError::Journal(JournalError::Damaged { last, .. })) => {
            return Ok(Page::Lost(last.saturating_add(1)));
        }
        Err(error) => return Err(error),
    };
    // Every revision has an entry: where one is not there it was lost.
    if entries.first().is_none_or(|(first, _)| *first != from) {
        return Ok(Page::Lost(entries.first().map_or(to.saturating_add(1), |(first, _)| *first)));
    }
    let successive = entries.iter().zip(from..).take_while(|((id, _), at)| id == at).count();
    entries.truncate(successive);
    Ok(Page::Entries(entries))
}

/// The entries of a namespace on their way through a hash, to compare what is stored with the account.
#[derive(Debug)]
pub(crate) struct Walk {
    namespace: NamespaceId,
    next: u64,
    chain: u64,
    lost: bool,
}

impl Walk {
    /// From the floor of an account on.
    pub(crate) fn from(namespace: NamespaceId, past: &Past) -> Self {
        Self { namespace, next: past.floor + 1, chain: past.floor_chain, lost: false }
    }

    /// Reads up to a revision, at most `max_entries`. False if the entries were trimmed meanwhile, or are too
    /// many: begin again. Blocks.
    pub(crate) fn to(
        &mut self,
        storage: &Storage,
        space: Space,
        revision: u64,
        max_entries: u64,
    ) -> Result<bool, StorageError> {
        if revision.saturating_sub(self.next) > max_entries {
            return Ok(false);
        }
        while self.next <= revision {
            match read(storage, space, self.namespace, (self.next, revision), PIECE_BYTES)? {
                Page::Trimmed(_) => return Ok(false),
                Page::Lost(next) => (self.lost, self.next) = (true, next),
                Page::Entries(entries) => {
                    for (id, content) in entries {
                        self.chain = chained(self.chain, &content);
                        self.next = id + 1;
                    }
                }
            }
        }
        Ok(true)
    }

    /// The next revision to read.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// What was read; none where something was lost.
    pub(crate) fn chain(&self) -> Option<u64> {
        (!self.lost).then_some(self.chain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn live(revision: u64, value: &[u8]) -> Bytes {
        Live::after(None, revision, Bytes::copy_from_slice(value)).encode().into()
    }

    proptest! {
        /// The account against plain sums: within its bound, cut at marks, the same after a restart.
        #[test]
        fn an_account_is_within_its_bound(sizes in proptest::collection::vec(0..3_000_usize, 1..300), bound in 0..40_000_u64) {
            let mut past = Past::default();
            let mut prices = VecDeque::new();
            let mut chains = vec![0];
            for (size, byte) in sizes.into_iter().zip(0_u32..) {
                let content = vec![byte as u8; size];
                let before = past.floor;
                let appended = past.append(&content, bound);
                prices.push_back(size as u64 + HISTORY_ENTRY_BYTES);
                chains.push(chained(*chains.last().unwrap(), &content));
                prop_assert_eq!(past.revision, u64::from(byte) + 1);
                prop_assert_eq!(appended.floor_rose, past.floor > before);
                for _ in before..past.floor {
                    prices.pop_front();
                }
                let kept: u64 = prices.iter().sum();
                prop_assert_eq!(past.bytes, kept);
                prop_assert!(kept <= bound);
                // No more is given up than one mark's worth, and the entry that fills it.
                if past.floor > before {
                    prop_assert!(kept + bound / HISTORY_MARK_SHARE + 3_000 + HISTORY_ENTRY_BYTES >= bound.min(kept + 1));
                }
                prop_assert_eq!((past.chain, past.floor_chain), (chains[past.revision as usize], chains[past.floor as usize]));
                prop_assert!(past.marks.len() as u64 <= HISTORY_MARK_SHARE + 1);
                let read = Past::decode(past.encode().into()).unwrap().with_marks(past.encode_marks().into());
                prop_assert_eq!(read.unwrap(), past.clone());
            }
        }

        #[test]
        fn bad_entries_and_accounts_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 0..90), version in 0..4_u8) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            let bytes = Bytes::from(bytes);
            let _ = (decode_entry(bytes.clone()), Past::decode(bytes.clone()), Past::default().with_marks(bytes));
        }
    }

    #[test]
    fn an_entry_has_the_row_before_and_a_large_value_after_only_by_its_hash() {
        let at_bound = vec![1; HISTORY_WHOLE_VALUE_BYTES];
        let above = vec![2; HISTORY_WHOLE_VALUE_BYTES + 1];
        let mut entry = Entry::new();
        entry.change(b"a", None, &live(7, &at_bound));
        entry.change(b"b", Some(&live(3, &above)), &live(7, &above));
        entry.change(b"c", Some(&live(4, b"x")), &Row::Tombstone { revision: 7 }.encode().into());
        let content = entry.finish();
        assert!(content.len() < at_bound.len() + above.len() + 300, "{} bytes", content.len());
        let changes = decode_entry(content.clone()).unwrap();
        let row = |revision, value: &[u8]| Row::decode(live(revision, value)).unwrap();
        let before = |revision, value: &[u8]| Live::of_row(live(revision, value)).unwrap().unwrap();
        let large = After::Large { row: row(7, b""), length: above.len() as u64, hash: xxh3_64(&above) };
        assert_eq!(
            changes,
            [
                Change { key: "a".into(), before: None, after: After::Whole(row(7, &at_bound)) },
                Change { key: "b".into(), before: Some(before(3, &above)), after: large },
                Change {
                    key: "c".into(),
                    before: Some(before(4, b"x")),
                    after: After::Whole(Row::Tombstone { revision: 7 }),
                },
            ]
        );
        check_entry(7, content.clone()).unwrap();
        assert!(check_entry(8, content.clone()).is_err() && check_entry(7, content.slice(..1)).is_err());
        let mut late = Entry::new();
        late.change(b"a", Some(&live(7, b"x")), &live(7, b"y"));
        assert!(check_entry(7, late.finish()).is_err(), "the row before is not older");
        let newer = [&[ENTRY_VERSION + 1], &content[1..]].concat();
        let refused = decode_entry(newer.into()).unwrap_err();
        assert!(refused.to_string().contains("upgrade this node"), "{refused}");
        for cut in 1..content.len() {
            assert!(decode_entry(content.slice(..cut)).map_or(true, |changes| changes.len() < 3), "{cut}");
        }
    }

    #[test]
    fn a_segment_takes_its_entries_alone() {
        let mut past = Past::default();
        let mut all = Vec::new();
        for revision in 1..=200 {
            let mut entry = Entry::new();
            entry.change(b"key", None, &live(revision, &vec![revision as u8; revision as usize % 70]));
            let content = entry.finish();
            past.append(&content, 20_000);
            all.push((revision, content));
        }
        assert!(past.floor > 0 && past.segment(past.floor).is_none() && past.segment(201).is_none());
        let mut segments = Vec::new();
        for revision in past.floor + 1..=200 {
            let segment = past.segment(revision).unwrap();
            assert!((segment.from..=segment.to).contains(&revision));
            if !segments.contains(&segment) {
                segments.push(segment);
            }
        }
        assert!(segments.len() > 20 && segments.iter().any(|s| s.to == 200));
        for segment in segments {
            let own = all[segment.from as usize - 1..segment.to as usize].to_vec();
            segment.check(&own).unwrap();
            segment.check(&own[1..]).unwrap_err();
            segment.check(&own[..own.len() - 1]).unwrap_err();
            let more = segment.check(&all[segment.from as usize - 1..]);
            assert_eq!(more.is_ok(), segment.to == 200, "{more:?}");
            for at in 0..own.len() {
                let mut other = own.clone();
                let mut entry = Entry::new();
                entry.change(b"key", None, &live(own[at].0, b"another value"));
                other[at].1 = entry.finish();
                segment.check(&other).unwrap_err();
            }
        }
    }

    #[test]
    fn accounts_of_other_releases_are_refused_by_name() {
        let row = Past::default().encode();
        for (version, words) in [(1, "unknown version 1"), (3, "upgrade this node")] {
            let refused = Past::decode([&[version], &row[1..]].concat().into()).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
        }
        let wrong = Past { floor: 3, revision: 2, ..Past::default() };
        assert!(matches!(Past::decode(wrong.encode().into()), Err(CodecError::Invalid { .. })));
    }
}

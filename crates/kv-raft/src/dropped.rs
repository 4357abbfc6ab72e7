//! Which namespaces were dropped from a group. The catalogue says that a namespace was deleted, the group's
//! leader proposes to drop it, and from that entry on every member refuses its writes: also those of a leader
//! whose catalogue is older. So what is removed afterwards, by each node in its own time, stays away.
//!
//! The ids of namespaces only grow and are never used again, so what is known is a few runs of ids: those
//! between the namespaces that live, at most one run more than these. A run also has ids of namespaces that
//! never were in this group, which does not matter.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::{BufMut, Bytes};
use kv_types::catalogue::runs_beyond;
use kv_types::{Failure, Mutation, NamespaceId, Reason};

use crate::codec::{self, CodecError, Reader};
use crate::proposal::Proposal;

/// The first byte of commands that are not writes: no version of a write is as high.
const NO_WRITE: u8 = 128;
const DROP: u8 = 1;
const WHAT: &str = "drop command";
const ROW: &str = "row of dropped namespaces";

/// Drops namespaces, by a run of ids of which none lives in this group, or ever will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DropCommand(pub(crate) RangeInclusive<u64>);

impl DropCommand {
    /// Whether these are the bytes of a command of this kind, and not of a write.
    pub(crate) fn is_in(proposal: &Proposal) -> bool {
        proposal.0.first() == Some(&NO_WRITE)
    }

    pub(crate) fn encode(&self) -> Proposal {
        let mut out = codec::versioned(NO_WRITE, 18);
        out.put_u8(codec::VERSION);
        out.put_u8(DROP);
        out.put_u64(*self.0.start());
        out.put_u64(*self.0.end());
        Proposal(out.into())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, WHAT, NO_WRITE)?;
        for (field, known) in [("version", codec::VERSION), ("kind", DROP)] {
            let found = reader.u8()?;
            if found != known {
                return Err(reader.newer(field, found));
            }
        }
        let (from, to) = (reader.u64()?, reader.u64()?);
        // 0 is no namespace, and there is room for a run behind this one.
        if from == 0 || from > to || to >= u64::MAX - 1 {
            return Err(reader.invalid(format!("ids from {from} to {to}")));
        }
        reader.end().map(|()| Self(from..=to))
    }
}

/// The namespaces that were dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// First and last ids of the runs. There is a gap between any two.
    runs: BTreeMap<u64, u64>,
    /// A run of which sessions are left.
    pub(crate) unfinished: Option<(u64, u64)>,
}

impl Dropped {
    /// Whether this namespace was dropped.
    pub(crate) fn has(&self, namespace: NamespaceId) -> bool {
        self.covers(&(namespace.0..=namespace.0))
    }

    /// Whether all of these ids were dropped.
    pub(crate) fn covers(&self, run: &RangeInclusive<u64>) -> bool {
        let before = self.runs.range(..=*run.start()).next_back();
        before.is_some_and(|(_, last)| run.end() <= last)
    }

    /// The runs, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().map(|(first, last)| (*first, *last))
    }

    /// The runs without those that `others` has.
    pub(crate) fn without(&self, others: &Self) -> Vec<(u64, u64)> {
        runs_beyond(self.runs(), &others.runs().collect::<Vec<_>>())
    }

    /// Adds a run, and makes one of those that touch. False if nothing changes.
    pub(crate) fn add(&mut self, run: &RangeInclusive<u64>) -> bool {
        if self.covers(run) {
            return false;
        }
        let (mut first, mut last) = (*run.start(), *run.end());
        // The one before, and those that begin within this or right behind it.
        let touching = self.runs.range(..=last.saturating_add(1)).rev();
        let touching: Vec<_> =
            touching.take_while(|(_, end)| end.saturating_add(1) >= first).map(|(a, b)| (*a, *b)).collect();
        for (from, to) in touching {
            self.runs.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.runs.insert(first, last);
        true
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = codec::versioned(codec::VERSION, 4 + 16 * self.runs.len());
        out.put_u32(codec::length(self.runs.len()));
        for (first, last) in &self.runs {
            out.put_u64(*first);
            out.put_u64(*last);
        }
        out
    }

    pub(crate) fn decode(row: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(row, ROW, codec::VERSION)?;
        let runs = reader.list(|reader| Ok((reader.u64()?, reader.u64()?)))?;
        let mut least = 1;
        for (first, last) in &runs {
            if *first < least || first > last || *last >= u64::MAX - 1 {
                return Err(reader.invalid(format!("ids from {first} to {last} where {least} may be next")));
            }
            least = last + 2;
        }
        reader.end()?;
        Ok(Self { runs: runs.into_iter().collect(), unfinished: None })
    }
}

/// The refusal of a write to a namespace that was dropped. It may have been applied before the drop, and what
/// is known of that went with it.
pub(crate) fn refused(namespace: NamespaceId, mutation: &Mutation) -> Failure {
    let failure = no_namespace(namespace).of_request(mutation.request_id);
    if mutation.attempt == 1 { failure } else { failure.after_sending() }
}

/// That a namespace was deleted.
pub(crate) fn no_namespace(namespace: NamespaceId) -> Failure {
    Failure::new(Reason::NamespaceUnknown, format!("{namespace} was deleted"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set of ids.
        #[test]
        fn runs_are_what_was_added_and_as_few_as_can_be(added in proptest::collection::vec((1..60_u64, 0..6_u64), 0..30)) {
            let (mut dropped, mut ids) = (Dropped::default(), std::collections::BTreeSet::new());
            for (first, more) in added {
                let run = first..=first + more;
                let new = run.clone().any(|id| !ids.contains(&id));
                ids.extend(run.clone());
                prop_assert_eq!(dropped.add(&run), new);
                prop_assert!(dropped.covers(&run));
                let row = Bytes::from(dropped.encode());
                prop_assert_eq!(Dropped::decode(row.clone()).unwrap(), dropped.clone());
                for cut in 0..row.len() {
                    prop_assert!(Dropped::decode(row.slice(..cut)).is_err());
                }
            }
            let mut some = Dropped::default();
            for id in ids.iter().filter(|id| *id % 3 != 0) {
                some.add(&(*id..=*id));
            }
            let left: Vec<u64> = dropped.without(&some).into_iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(left, ids.iter().copied().filter(|id| id % 3 == 0).collect::<Vec<_>>());
            prop_assert!(dropped.without(&dropped).is_empty() && some.without(&dropped).is_empty());
            for id in 0..70 {
                prop_assert_eq!(dropped.has(NamespaceId(id)), ids.contains(&id));
            }
            let found: Vec<u64> = dropped.runs().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(found, ids.into_iter().collect::<Vec<_>>());
            let runs: Vec<_> = dropped.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", runs);
        }

        #[test]
        fn bad_bytes_are_errors(mut bytes in proptest::collection::vec(0..4_u8, 1..60), command: bool) {
            if command {
                bytes[0] = NO_WRITE;
                if let Ok(drop) = DropCommand::decode(bytes.clone().into()) {
                    prop_assert_eq!(drop.encode().0, Bytes::from(bytes));
                }
            } else if let Ok(dropped) = Dropped::decode(bytes.clone().into()) {
                prop_assert_eq!(dropped.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_command_survives_and_a_newer_one_is_refused_by_name() {
        let command = DropCommand(3..=7);
        let proposal = command.encode();
        assert!(DropCommand::is_in(&proposal));
        assert_eq!(DropCommand::decode(proposal.0.clone()), Ok(command));
        for at in [1, 2] {
            let mut newer = proposal.0.to_vec();
            newer[at] += 1;
            let error = DropCommand::decode(newer.into()).unwrap_err().to_string();
            assert!(error.contains("upgrade this node"), "{error}");
        }
        for (from, to) in [(0, 4), (5, 4), (5, u64::MAX - 1)] {
            let bytes = DropCommand(from..=to).encode();
            assert!(
                matches!(DropCommand::decode(bytes.0), Err(CodecError::Invalid { .. })),
                "{from} to {to}"
            );
        }
    }
}

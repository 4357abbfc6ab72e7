//! The open segment files, and reading Raft entries from them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, RwLock},
};

use bytes::Bytes;

use super::{
    entry::RaftLogId,
    frame::{ENTRY_HEAD, EntryHead, RECORD_HEAD},
    index::Location,
};
use crate::{
    disk::DiskFile,
    error::StorageError,
    limits,
    locks::{read, write},
};

#[derive(Debug)]
pub(crate) struct SegmentFiles {
    files: RwLock<BTreeMap<u64, Arc<dyn DiskFile>>>,
}

/// Successive entries that stand close to each other in a segment, so that one read has them all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    segment: u64,
    offset: u32,
    bytes: usize,
    entries: Vec<(RaftLogId, Location)>,
}

impl Stretch {
    fn starting_with(id: RaftLogId, at: Location) -> Stretch {
        let bytes = ENTRY_HEAD + at.bytes as usize;
        Stretch { segment: at.segment, offset: at.offset, bytes, entries: vec![(id, at)] }
    }

    /// Adds an entry if it stands behind the last and little lies between them.
    fn extend(&mut self, id: RaftLogId, at: Location) -> bool {
        let end = self.offset as usize + self.bytes;
        let gap = (at.offset as usize).checked_sub(end);
        let bytes = at.offset as usize + ENTRY_HEAD + at.bytes as usize - self.offset.min(at.offset) as usize;
        if at.segment != self.segment
            || gap.is_none_or(|gap| gap > limits::READ_GAP_BYTES + RECORD_HEAD)
            || bytes > limits::READ_STRETCH_BYTES
        {
            return false;
        }
        self.bytes = bytes;
        self.entries.push((id, at));
        true
    }

    /// Divides entries on disk, in order of their indexes, into as few reads as it takes.
    pub(crate) fn plan(entries: impl IntoIterator<Item = (RaftLogId, Location)>) -> Vec<Stretch> {
        let mut out: Vec<Stretch> = Vec::new();
        for (id, at) in entries {
            if !out.last_mut().is_some_and(|last| last.extend(id, at)) {
                out.push(Stretch::starting_with(id, at));
            }
        }
        out
    }

    /// What it reads.
    pub(crate) fn entries(&self) -> &[(RaftLogId, Location)] {
        &self.entries
    }
}

impl SegmentFiles {
    pub(crate) fn new(files: BTreeMap<u64, Arc<dyn DiskFile>>) -> SegmentFiles {
        SegmentFiles { files: RwLock::new(files) }
    }

    pub(crate) fn add(&self, segment: u64, file: Arc<dyn DiskFile>) {
        write(&self.files).insert(segment, file);
    }

    pub(crate) fn remove(&self, segment: u64) {
        write(&self.files).remove(&segment);
    }

    fn of(&self, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the entry was purged meanwhile");
        read(&self.files).get(&segment).cloned().ok_or_else(gone)
    }

    /// The payload of an entry, checked.
    pub(crate) fn read_entry(&self, group: u32, id: RaftLogId, at: Location) -> io::Result<Bytes> {
        let found = self.read_stretch(group, &Stretch::starting_with(id, at))?.pop();
        found.unwrap_or_else(|| Err(damaged(group, id, at)))
    }

    /// The payloads of a stretch, each checked by itself; they share one buffer.
    pub(crate) fn read_stretch(&self, group: u32, stretch: &Stretch) -> io::Result<Vec<io::Result<Bytes>>> {
        let file = self.of(stretch.segment)?;
        let mut buf = vec![0; stretch.bytes];
        let n = file.read_at(&mut buf, u64::from(stretch.offset))?;
        buf.truncate(n);
        let buf = Bytes::from(buf);
        let payloads = stretch.entries.iter().map(|(id, at)| {
            let from = (at.offset - stretch.offset) as usize;
            let to = from + ENTRY_HEAD + at.bytes as usize;
            let expected = EntryHead { group, term: id.term, node: id.node, index: id.index };
            match buf.get(from..to).and_then(EntryHead::decode) {
                Some((head, _)) if head == expected => Ok(buf.slice(from + ENTRY_HEAD..to)),
                _ => Err(damaged(group, *id, *at)),
            }
        });
        Ok(payloads.collect())
    }
}

fn damaged(group: u32, id: RaftLogId, at: Location) -> io::Error {
    let what = format!("entry {id} of group {group} fails its checksum");
    StorageError::CorruptLog { segment: at.segment, offset: u64::from(at.offset), what }.into()
}

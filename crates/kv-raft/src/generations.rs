//! Which of the states that a node has of a group counts. A snapshot is loaded under the next generation
//! while the present one is read; a record switches; what is of no generation that counts is removed in the
//! background, and again after a restart.

use bytes::{BufMut, Bytes};
use kv_storage::{Storage, StorageError};
use kv_types::GroupId;
use tokio::time::Instant;

use crate::codec::{self, CodecError, Reader};
use crate::limits::{NO_ROOM_PAUSE, REMOVED_BYTES_PER_SECOND};
use crate::machine_error::MachineError;
use crate::runtime::NodeRuntime;
use crate::schedule::Rate;
use crate::tables::{Space, Table, keys};

/// The record of a group's generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generations {
    /// The one that counts.
    pub(crate) current: u64,
    /// The highest under which anything was ever written.
    pub(crate) attempted: u64,
}

fn name_of(group: GroupId) -> Vec<u8> {
    [b"generations/", &group.0.to_be_bytes()[..]].concat()
}

impl Generations {
    /// Those of a group, as last recorded.
    pub(crate) fn read(storage: &Storage, group: GroupId) -> Result<Self, MachineError> {
        match storage.record(&name_of(group))? {
            Some(record) => Ok(Self::decode(record)?),
            None => {
                let first = Space::first(group).generation;
                Ok(Self { current: first, attempted: first })
            }
        }
    }

    /// Durable when this returns.
    pub(crate) async fn put(self, storage: &Storage, group: GroupId) -> Result<(), StorageError> {
        storage.put_record(&name_of(group), &self.encode()).await
    }

    fn encode(self) -> Vec<u8> {
        let mut out = codec::versioned(codec::VERSION, 16);
        out.put_u64(self.current);
        out.put_u64(self.attempted);
        out
    }

    fn decode(record: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(record, "generations", codec::VERSION)?;
        let generations = Self { current: reader.u64()?, attempted: reader.u64()? };
        reader.end()?;
        if generations.current > generations.attempted {
            let why = format!("generation {} counts of {}", generations.current, generations.attempted);
            return Err(CodecError::Invalid { what: "generations", why });
        }
        Ok(generations)
    }

    /// These, with a new one to write under.
    pub(crate) fn attempt(self) -> Self {
        Self { attempted: self.attempted + 1, ..self }
    }

    /// These, when what was attempted last counts.
    pub(crate) fn switched(self) -> Self {
        Self { current: self.attempted, ..self }
    }

    /// Generations that do not count: from (inclusive) to (exclusive). What is attempted from now on is not
    /// among them.
    pub(crate) fn garbage(self) -> Vec<(u64, u64)> {
        let all = [(0, self.current), (self.current + 1, self.attempted + 1)];
        all.into_iter().filter(|(from, to)| from < to).collect()
    }
}

/// Forgets a stream of the history. A disk that has no room to say so will have some: until then it waits, or
/// the old state would stay until the next start.
async fn forget(storage: &Storage, stream: Bytes) -> Result<(), MachineError> {
    loop {
        let (own, streams) = (storage.clone(), [stream.clone()]);
        let step = move || own.forget_streams(Table::History.id(), &streams);
        match NodeRuntime::blocking(step).await? {
            Err(StorageError::DiskFull { .. }) => tokio::time::sleep(NO_ROOM_PAUSE).await,
            forgotten => return Ok(forgotten?),
        }
    }
}

/// Removes generations of a group, in bounded steps that let others write.
pub(crate) async fn remove(
    storage: Storage,
    group: GroupId,
    garbage: Vec<(u64, u64)>,
) -> Result<(), MachineError> {
    let mut rate = Rate::new(REMOVED_BYTES_PER_SECOND);
    let opened = Instant::now();
    let mut removed = 0;
    for (from, to) in garbage {
        let end = keys::of_space(Space { group, generation: to });
        let first = keys::of_space(Space { group, generation: from });
        for stream in storage.streams(Table::History.id(), &first, &end) {
            forget(&storage, stream).await?;
            storage.let_drain().await;
        }
        for table in Table::ALL {
            let mut next = Some(keys::of_space(Space { group, generation: from }));
            while let Some(from) = next.take() {
                let (storage_of_step, end) = (storage.clone(), end.clone());
                let step = move || storage_of_step.remove(table.id(), &from, &end);
                let step = NodeRuntime::blocking(step).await??;
                removed += step.bytes;
                next = step.next.map(|next| next.to_vec());
                storage.let_drain().await;
                tokio::time::sleep(rate.spend(opened.elapsed(), step.bytes)).await;
            }
        }
    }
    if removed > 0 {
        tracing::info!(%group, bytes = removed, "states that no longer count were removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_counts_and_what_is_garbage() {
        let first = Generations { current: 1, attempted: 1 };
        assert_eq!(first.garbage(), [(0, 1)]);
        let loading = first.attempt();
        assert_eq!(loading.garbage(), [(0, 1), (2, 3)], "a crash now leaves half of 2");
        let again = loading.attempt();
        assert_eq!((again.attempted, again.garbage()), (3, vec![(0, 1), (2, 4)]));
        let switched = again.switched();
        assert_eq!((switched.current, switched.garbage()), (3, vec![(0, 3)]));
        assert_eq!(Generations::decode(switched.encode().into()), Ok(switched));
    }

    #[test]
    fn bad_records_are_errors() {
        let good = Generations { current: 2, attempted: 5 }.encode();
        for cut in 0..good.len() {
            assert!(Generations::decode(Bytes::copy_from_slice(&good[..cut])).is_err());
        }
        let wrong = Generations { current: 6, attempted: 5 }.encode();
        assert!(matches!(Generations::decode(wrong.into()), Err(CodecError::Invalid { .. })));
        let newer = [&[codec::VERSION + 1], &good[1..]].concat();
        assert!(Generations::decode(newer.into()).is_err());
    }
}

//! The shell of every replicated state machine: it feeds a [`Domain`] with committed entries, brings each
//! step's changes and the applied mark to the tables as one batch, and makes and installs snapshots. What the
//! entries mean is the domain's business.
//!
//! Readers and the applier meet at one lock that holds how far the tables are applied: a read sees one point
//! of the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use kv_storage::journal::JournalOp;
use kv_storage::{CopyRow, RowChunk, Snapshots, Storage, StorageError};
use kv_types::{GroupId, Latency, NamespaceId};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend};
use tokio::sync::RwLock;
use tokio::time::Instant;

use crate::applied::{Applied, AppliedState, stored_mark};
use crate::builder::{Account, Builder, SnapshotWork};
use crate::codec;
use crate::config::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::dropped::Dropped;
use crate::generations::{self, Generations};
use crate::history::{Past, check_entry};
use crate::limits::{
    HISTORY_PAGE_BYTES, LOG_ENTRY_BYTES, NO_ROOM_PAUSE, STEP_BYTES, STEP_ENTRIES, TOMBSTONES_AT_ONCE,
};
use crate::machine_error::MachineError;
use crate::proposal::{Point, Proposal, Reply};
use crate::recent::RecentWrites;
use crate::runtime::NodeRuntime;
use crate::snapshot::Snapshot;
use crate::snapshot::SnapshotData;
use crate::snapshot::{self, id_of, rows_for};
use crate::tables::{Range, Rows, Space, Stage, Table, entry_of, keys};

/// What the entries of a group mean. Deterministic: the same log gives the same state on every member.
pub(crate) trait Domain: Send + Sync + 'static {
    /// One with the same settings that knows nothing yet, and shows what it will know in the same place.
    fn anew(&self) -> Box<dyn Domain>;

    /// Reads what it keeps in memory from the tables. Blocks.
    fn load(&mut self, storage: &Storage, space: Space) -> Result<(), MachineError>;

    /// The row that applying a proposal reads, if it reads one: those of many are read at once beforehand.
    fn reads(&self, _: Space, _: &Proposal) -> Result<Option<(Table, Vec<u8>)>, MachineError> {
        Ok(None)
    }

    /// Applies one committed proposal on the stage.
    fn apply(
        &mut self,
        stage: &mut Stage<'_>,
        point: Point,
        proposal: &Proposal,
    ) -> Result<Reply, MachineError>;

    /// Rows that no longer mean anything and that a step may remove, if there are any: it is told the first
    /// of them.
    fn sweep(&self, _: Space) -> Option<Range> {
        None
    }

    /// Removes rows of the range that [`Domain::sweep`] named, before anything else of the step. `more`: the
    /// range has more of them.
    fn swept(&mut self, _: &mut Stage<'_>, _: Vec<(Bytes, Bytes)>, _more: bool) -> Result<(), MachineError> {
        Ok(())
    }

    /// Which namespaces were dropped, for those who read and for what removes their rows.
    fn dropped(&self) -> Arc<Dropped> {
        Arc::default()
    }

    /// Brings to the stage what it keeps in memory and a step's entries changed.
    fn seal(&mut self, _: &mut Stage<'_>) {}

    /// Shows the state to others; called when what was applied, loaded or installed is in the tables.
    fn publish(&self);
}

/// A group, as openraft runs it.
pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;

/// A group's state machine.
pub(crate) struct Machine {
    space: Space,
    storage: Storage,
    files: Snapshots,
    domain: Box<dyn Domain>,
    mark: SnapshotMeta,
    applied: Applied,
    recent: Arc<RecentWrites>,
    /// Of a step of entries.
    latency: Arc<Latency>,
    account: Arc<Account>,
    work: SnapshotWork,
}

impl Machine {
    /// The state as it is in the tables, in the generation that counts; what is of others is removed in the
    /// background.
    pub(crate) async fn open(
        storage: Storage,
        group: GroupId,
        domain: impl Domain,
    ) -> Result<Self, MachineError> {
        let files = storage.snapshots(group);
        let generations = Generations::read(&storage, group)?;
        let space = Space { group, generation: generations.current };
        let mut machine = Self {
            space,
            storage,
            files,
            domain: Box::new(domain),
            mark: SnapshotMeta::default(),
            applied: Arc::new(RwLock::new(AppliedState {
                space,
                mark: SnapshotMeta::default(),
                dropped: Arc::default(),
            })),
            recent: Arc::default(),
            latency: Arc::default(),
            account: Arc::default(),
            work: SnapshotWork::default(),
        };
        let mark = stored_mark(&machine.storage, space)?;
        machine.reload(mark).await?;
        if generations.attempted > Space::first(group).generation {
            machine.remove_garbage(generations);
        }
        Ok(machine)
    }

    /// The lock that readers share with this machine.
    pub(crate) fn applied(&self) -> Applied {
        self.applied.clone()
    }

    /// How long the steps take.
    pub(crate) fn latency(&self) -> Arc<Latency> {
        self.latency.clone()
    }

    /// Which rows were written lately.
    pub(crate) fn recent(&self) -> Arc<RecentWrites> {
        self.recent.clone()
    }

    /// What the steward reads and openraft's progress is told to.
    pub(crate) fn account(&self) -> Arc<Account> {
        self.account.clone()
    }

    /// Shares the snapshots' turn and pace with the node's other groups.
    pub(crate) fn with_snapshot_work(self, work: SnapshotWork) -> Self {
        Self { work, ..self }
    }

    async fn reload(&mut self, mark: SnapshotMeta) -> Result<(), MachineError> {
        let (mut domain, storage, space) = (self.domain.anew(), self.storage.clone(), self.space);
        let loaded = NodeRuntime::blocking(move || domain.load(&storage, space).map(|()| domain));
        self.domain = loaded.await??;
        let dropped = self.domain.dropped();
        *self.applied.write().await = AppliedState { space: self.space, mark: mark.clone(), dropped };
        self.mark = mark;
        self.domain.publish();
        Ok(())
    }

    /// Applies entries, as few steps as their changes fit in.
    async fn apply_waiting(&mut self, waiting: &mut VecDeque<Arrived>) -> Result<(), MachineError> {
        let storage = self.storage.clone();
        while !waiting.is_empty() {
            let begun = Instant::now();
            let (mut left, found) = self.old_rows(waiting).await?;
            let mut step = Step::new(&storage, self.space, self.mark.clone(), found);
            self.sweep(&mut step.stage).await?;
            while left > 0
                && !step.is_full()
                && let Some(entry) = waiting.pop_front()
            {
                step.add(self.domain.as_mut(), entry)?;
                left -= 1;
            }
            self.finish(step).await?;
            self.latency.record(begun.elapsed());
        }
        Ok(())
    }

    /// Removes some of what no longer means anything. It waits where reads are many.
    async fn sweep(&mut self, stage: &mut Stage<'_>) -> Result<(), MachineError> {
        let Some(Range { table, from, to }) = self.domain.sweep(self.space) else { return Ok(()) };
        let read = self.storage.read_range(table.id(), &from, Some(&to), TOMBSTONES_AT_ONCE, STEP_BYTES);
        match read.await {
            Ok(RowChunk { rows, more }) => {
                let rows = rows.into_iter().map(|(key, row)| (key, row.value)).collect();
                self.domain.swept(stage, rows, more)
            }
            Err(StorageError::Overloaded { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What the tables have of the rows that entries will read, in one read: of as many of the first entries
    /// as may be read at once, and how many these are.
    async fn old_rows(&self, entries: &VecDeque<Arrived>) -> Result<(usize, Rows), MachineError> {
        let mut count = entries.len();
        loop {
            let mut places = BTreeSet::new();
            for (entry, _) in entries.iter().take(count) {
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    places.extend(self.domain.reads(self.space, proposal)?);
                }
            }
            let keys = places.iter().map(|(table, key)| (table.id(), key.clone())).collect();
            match self.storage.read_rows_for_apply(keys).await {
                Ok(rows) => {
                    let values = rows.into_iter().map(|row| row.map(|row| row.value));
                    return Ok((count, places.into_iter().zip(values).collect()));
                }
                Err(StorageError::TooLarge { .. }) if count > 1 => count = count.div_ceil(2),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Brings a step to the tables and answers its clients.
    async fn finish(&mut self, step: Step<'_>) -> Result<(), MachineError> {
        let Step { mut stage, mark, replies, log_bytes, .. } = step;
        self.domain.seal(&mut stage);
        stage.put(Table::Applied, keys::of_space(self.space), codec::encode_mark(&mark));
        let applied_mark = mark.clone();
        {
            let mut applied = self.applied.write().await;
            for (table, key) in stage.changed() {
                self.recent.wrote(table, key, mark.last_log_id.as_ref());
            }
            let freed = stage.freed();
            self.storage.apply(stage.into_batch()).await?;
            self.account.freed(freed);
            applied.mark = applied_mark;
            applied.dropped = self.domain.dropped();
            self.account.applied(log_bytes);
        }
        self.mark = mark;
        self.domain.publish();
        for (responder, reply) in replies {
            responder.send(reply);
        }
        Ok(())
    }

    /// Replaces the whole state by one of this node's own snapshot files. It is loaded beside the present
    /// one, which is read meanwhile; a record switches.
    async fn replace_with(&mut self, id: u64, mark: SnapshotMeta) -> Result<(), MachineError> {
        let group = self.space.group;
        let generations = Generations::read(&self.storage, group)?.attempt();
        generations.put(&self.storage, group).await?;
        let space = Space { group, generation: generations.attempted };
        self.load(id, space, &mark).await?;
        if !kv_types::mutant!(SwitchedBeforeDurable) {
            self.storage.finish_load().await?;
        }
        let generations = generations.switched();
        generations.put(&self.storage, group).await?;
        self.space = space;
        self.reload(mark).await?;
        self.remove_garbage(generations);
        Ok(())
    }

    /// Writes a snapshot file into a space that nothing reads yet: rows into the tier, entries into the
    /// journal.
    async fn load(&self, id: u64, space: Space, mark: &SnapshotMeta) -> Result<(), MachineError> {
        let data = SnapshotData::File { files: self.files.clone(), id };
        let mut blocks = NodeRuntime::blocking(move || data.blocks()).await??;
        let mut history = LoadedHistory::default();
        loop {
            let (rest, block) = NodeRuntime::blocking(move || {
                let block = blocks.next();
                (blocks, block)
            })
            .await?;
            blocks = rest;
            let Some((_, block)) = block? else { break };
            let (entries, rows): (VecDeque<CopyRow>, VecDeque<CopyRow>) =
                rows_for(block, space)?.into_iter().partition(|(table, ..)| *table == Table::History.id());
            history.note(&rows)?;
            self.load_rows(rows).await?;
            if history.push(entries)? {
                self.load_entries(history.take()).await?;
            }
        }
        history.end(space);
        self.load_entries(history.take()).await?;
        let row = (Table::Applied.id(), keys::of_space(space).into(), Some(codec::encode_mark(mark)));
        self.load_rows(VecDeque::from([row])).await
    }

    async fn load_rows(&self, mut rows: VecDeque<CopyRow>) -> Result<(), MachineError> {
        while !rows.is_empty() {
            let storage = self.storage.clone();
            let (rest, loaded) = NodeRuntime::blocking(move || {
                let loaded = storage.load(&mut rows);
                (rows, loaded)
            })
            .await?;
            rows = rest;
            match loaded {
                Err(error @ StorageError::DiskFull { .. }) => self.waits_for_room(&error).await,
                loaded => loaded?,
            }
            self.storage.let_drain().await;
        }
        Ok(())
    }

    async fn load_entries(&self, ops: Vec<JournalOp>) -> Result<(), MachineError> {
        // In parts that end where entries are missing: no block is on both sides, so they can be put back.
        let parts: Vec<Arc<[JournalOp]>> = ops.chunk_by(follows).map(Arc::from).collect();
        for ops in parts {
            loop {
                let (storage, own) = (self.storage.clone(), ops.clone());
                let load = move || storage.load_entries(Table::History.id(), &own);
                let loaded = NodeRuntime::blocking(load).await?;
                self.storage.let_drain().await;
                match loaded {
                    Err(error @ StorageError::DiskFull { .. }) => self.waits_for_room(&error).await,
                    loaded => break loaded?,
                }
            }
        }
        Ok(())
    }

    /// Half a state is of no use, and a node that stops comes back to the same disk: it waits.
    async fn waits_for_room(&self, error: &StorageError) {
        tracing::warn!(group = self.space.group.0, %error, "the installation of a snapshot waits for room on the disk");
        tokio::time::sleep(NO_ROOM_PAUSE).await;
    }

    fn remove_garbage(&self, generations: Generations) {
        let (storage, group) = (self.storage.clone(), self.space.group);
        drop(NodeRuntime::spawn(async move {
            if let Err(error) = generations::remove(storage, group, generations.garbage()).await {
                tracing::warn!(%group, %error, "states that no longer count are left until the next start");
            }
        }));
    }

    /// Whether the log brings the state to a snapshot's point by itself: it reaches from what is applied to
    /// there, and is known to be committed that far.
    fn log_reaches(&self, snapshot: &SnapshotMeta) -> Result<bool, MachineError> {
        let log = self.storage.raft(self.space.group);
        let committed = log.committed().map(codec::decode_log_id).transpose()?;
        let purged = log.bounds().purged.map(codec::from_storage_id);
        let Some(last) = snapshot.last_log_id else { return Ok(true) };
        let has_it = log.id_of(last.index).map(codec::from_storage_id) == Some(last);
        Ok(purged <= self.mark.last_log_id && has_it && committed >= Some(last))
    }
}

/// The history of a snapshot on its way into the journal.
#[derive(Default)]
struct LoadedHistory {
    waiting: Vec<JournalOp>,
    bytes: usize,
    /// What the rows say last.
    pasts: BTreeMap<NamespaceId, Past>,
    /// The last entry of each namespace.
    last: BTreeMap<NamespaceId, u64>,
}

impl LoadedHistory {
    /// Sees what rows say of histories: a later row counts.
    fn note(&mut self, rows: &VecDeque<CopyRow>) -> Result<(), MachineError> {
        for (table, key, row) in rows {
            if *table == Table::Meta.id()
                && let Some(namespace) = keys::of_revision(key)?
            {
                match row {
                    Some(row) => drop(self.pasts.insert(namespace, Past::decode(row.clone())?)),
                    // It was dropped: what is loaded of it is removed like the rest.
                    None => drop(self.pasts.remove(&namespace)),
                }
            }
        }
        Ok(())
    }

    /// Takes entries; true when so many wait that they should be written.
    fn push(&mut self, entries: VecDeque<CopyRow>) -> Result<bool, MachineError> {
        for record in entries {
            self.bytes += record.2.as_ref().map_or(0, Bytes::len);
            check_entry(keys::of_entry(&record.1)?.1, record.2.clone().unwrap_or_default())?;
            let (namespace, id, op) = entry_of(record)?;
            self.last.insert(namespace, id);
            self.waiting.push(op);
        }
        Ok(self.bytes >= HISTORY_PAGE_BYTES)
    }

    /// All entries were taken: what is below the floors is given up.
    fn end(&mut self, space: Space) {
        for (namespace, past) in &self.pasts {
            let last = self.last.get(namespace).copied().unwrap_or(past.floor);
            if last < past.revision {
                tracing::error!(%namespace, last, revision = past.revision, "a snapshot lacks entries of a history");
            }
            let stream = keys::of_namespace(space, *namespace).into();
            self.waiting.push(JournalOp::Trim { stream, below: past.floor + 1 });
        }
    }

    fn take(&mut self) -> Vec<JournalOp> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

type Responder = openraft::storage::ApplyResponder<TypeConfig>;
/// An entry that was committed, and who waits for its reply.
type Arrived = EntryResponder<TypeConfig>;

/// Whether an operation on a journal is not behind missing entries of the stream that the one before was of.
fn follows(one: &JournalOp, next: &JournalOp) -> bool {
    match (one, next) {
        (JournalOp::Append { stream, id, .. }, JournalOp::Append { stream: of, id: next, .. }) => {
            stream != of || id.saturating_add(1) == *next
        }
        _ => true,
    }
}

fn payload_bytes((entry, _): &Arrived) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Entries that are applied together: their changes become visible at once, then their clients are answered.
struct Step<'a> {
    stage: Stage<'a>,
    mark: SnapshotMeta,
    replies: Vec<(Responder, Reply)>,
    entries: usize,
    /// Bytes of the entries in the log.
    log_bytes: u64,
}

impl<'a> Step<'a> {
    fn new(storage: &'a Storage, space: Space, mark: SnapshotMeta, found: Rows) -> Self {
        let stage = Stage::new(storage, space).with_found(found);
        Self { stage, mark, replies: Vec::new(), entries: 0, log_bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.entries >= STEP_ENTRIES || self.stage.bytes() >= STEP_BYTES
    }

    fn add(&mut self, domain: &mut dyn Domain, (entry, responder): Arrived) -> Result<(), MachineError> {
        let id = entry.log_id;
        self.mark.last_log_id = Some(id);
        self.entries += 1;
        self.log_bytes += LOG_ENTRY_BYTES;
        let reply = match entry.payload {
            EntryPayload::Blank => Reply::None,
            EntryPayload::Membership(membership) => {
                self.mark.last_membership = StoredMembership::new(Some(id), membership);
                Reply::None
            }
            EntryPayload::Normal(proposal) => {
                self.log_bytes += proposal.0.len() as u64;
                let point = Point { term: id.leader_id.term, index: id.index };
                domain.apply(&mut self.stage, point, &proposal)?
            }
        };
        self.replies.extend(responder.map(|responder| (responder, reply)));
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.mark.last_log_id, self.mark.last_membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let (mut waiting, mut bytes) = (VecDeque::new(), 0);
        while let Some(entry) = entries.try_next().await? {
            bytes += payload_bytes(&entry);
            waiting.push_back(entry);
            if waiting.len() >= STEP_ENTRIES || bytes >= STEP_BYTES {
                self.apply_waiting(&mut waiting).await?;
                bytes = 0;
            }
        }
        Ok(self.apply_waiting(&mut waiting).await?)
    }

    async fn try_create_snapshot_builder(&mut self, _: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            space: self.space,
            storage: self.storage.clone(),
            files: self.files.clone(),
            applied: self.applied.clone(),
            account: self.account.clone(),
            work: self.work.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        // The log lets go of what contradicts the snapshot first: after a crash it must not end in entries of
        // an older leader.
        self.storage.raft(self.space.group).barrier().await?;
        let (files, mark) = (self.files.clone(), meta.clone());
        // Durable first: from here on a crash finds the file, and what it replaces may be lost.
        let id = NodeRuntime::blocking(move || data.import(&files, &mark)).await??;
        self.replace_with(id, meta.clone()).await?;
        let (files, storage, account) = (self.files.clone(), self.storage.clone(), self.account.clone());
        let group = self.space.group;
        let newest = NodeRuntime::blocking(move || {
            account.remove_old_files(&storage, group)?;
            snapshot::newest(&files)
        });
        if let Some((file, _)) = newest.await?? {
            // What was applied before is in it.
            self.account.has_snapshot(self.account.now(), file.bytes);
        }
        tracing::info!(group = self.space.group.0, last = ?meta.last_log_id, "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let files = self.files.clone();
        let kept = self.account.kept_file(&self.storage, self.space.group);
        let (newest, kept) = NodeRuntime::blocking(move || {
            let kept = kept.map_or(Ok(None), |id| snapshot::numbered(&files, id))?;
            Ok::<_, MachineError>((snapshot::newest(&files)?, kept))
        })
        .await??;
        let starting = self.account.told.get().is_none();
        // One that ends before the log begins is no help: what is between them is nowhere but in the state.
        let purged = self.storage.raft(self.space.group).bounds().purged.map(codec::from_storage_id);
        let newest = newest.filter(|(_, meta)| starting || meta.last_log_id >= purged);
        let Some((file, meta)) = newest else {
            if starting {
                return Ok(None);
            }
            // openraft would end the group for want of a file. A transfer of one that is not there is tried
            // again, and the steward takes a snapshot meanwhile.
            self.account.has_lost_snapshot();
            let id = id_of(self.mark.last_log_id.as_ref());
            let snapshot = SnapshotData::File { files: self.files.clone(), id };
            return Ok(Some(Snapshot { meta: self.mark.clone(), snapshot }));
        };
        self.account.has_snapshot(0, file.bytes);
        // At a start openraft installs any snapshot that is ahead of the tables, although they catch up by
        // themselves. It asks again when it has applied what is committed.
        if starting && meta.last_log_id > self.mark.last_log_id && self.log_reaches(&meta)? {
            return Ok(None);
        }
        // A follower that has a part of an older file gets the rest of it.
        let (file, meta) = kept.unwrap_or((file, meta));
        let snapshot = SnapshotData::File { files: self.files.clone(), id: file.id };
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

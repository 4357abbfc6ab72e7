//! Receives snapshots of a group from its leader: does what [`Receiving`] decides, keeps the bytes in a part
//! on the disk, and checks and installs the whole. Whatever a peer sends is judged before anything is
//! written; what is refused is refused by name and counted.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kv_proto::peer;
use kv_proto::peer::raft_snapshot::Step;
use kv_proto::peer::raft_snapshot_reply::Result as Reply;
use kv_storage::{SnapshotPart, Snapshots, StorageError};
use kv_types::limits::{MAX_MEMBERS, MAX_VOTERS};
use kv_types::{Failure, GroupId, NodeId};
use openraft::AsyncRuntime;
use tokio::time::Instant;

use crate::codec;
use crate::config::{LogId, SnapshotMeta, Vote};
use crate::limits::{INCOMING_AT_ONCE, MAX_INDEX, MEMBERSHIP_BYTES, PART_KEPT, SNAPSHOT_IDLE};
use crate::runtime::NodeRuntime;
use crate::snapshot::Snapshot;
use crate::snapshot::SnapshotData;
use crate::snapshot::{self, ReceivedPart};
use crate::snapshot_check::Contents;
use crate::transfer::{FileIdentity, Opening, Receiving, Refusal, Taking, refusal_name};

/// Why a step is refused: the reason by name, and a message.
type Refused = (Refusal, String);

fn refused(refusal: Refusal, why: impl Into<String>) -> Refused {
    (refusal, why.into())
}

/// What every group of a node shares: how many snapshots it receives at a time, and what was refused.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    taken: AtomicUsize,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

impl Gate {
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let enter = |taken: usize| (taken < INCOMING_AT_ONCE).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        Some(Place(self.clone()))
    }

    fn count(&self, refusal: Refusal) -> u64 {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let count = refusals.entry(refusal_name(refusal)).or_default();
        *count += 1;
        *count
    }

    /// Steps refused since the start, by name.
    pub(crate) fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One of the places for snapshots that are received at a time.
#[derive(Debug)]
struct Place(Arc<Gate>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The vote and the commit index of the group when a step arrives.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// The vote that this node holds.
    pub(crate) vote: Vote,
    /// The last entry that it knows to be committed.
    pub(crate) committed: Option<LogId>,
}

/// The progress or the result of checking and installing.
#[derive(Debug)]
enum Outcome {
    Working(u64),
    Installed(Vote),
    Refused(Refused),
    Failed(Failure),
}

/// Blocking work on the files; a task that failed is an error of the disk.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match NodeRuntime::blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            let (kind, message) = (error.kind(), error.to_string());
            Err(StorageError::Io { op: "a snapshot that is received", kind, message })
        }
    }
}

/// Checking and installing, under way in a task of its own.
struct Work {
    /// Bytes that were checked, and then one for each time that it was asked about.
    progress: Arc<AtomicU64>,
    finished: Arc<Mutex<Option<Outcome>>>,
}

struct Current {
    receiving: Receiving,
    meta: SnapshotMeta,
    part: Option<SnapshotPart>,
    work: Option<Work>,
    touched: Instant,
    /// Held until the snapshot is installed or refused.
    place: Option<Place>,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    transfers: u64,
    /// Since the last step it was made sure that there is no part on the disk.
    swept: bool,
}

/// Receives the snapshots of one group of this node.
pub(crate) struct Incoming {
    group: GroupId,
    files: Snapshots,
    /// Bytes that are synced together.
    sync_every: u64,
    gate: Arc<Gate>,
    state: Arc<tokio::sync::Mutex<State>>,
    /// A transfer is under way, or its file is being installed.
    receiving: Arc<AtomicBool>,
    used: Mutex<Instant>,
}

impl Incoming {
    /// `seed` makes the names of transfers differ from those of an earlier process.
    pub(crate) fn new(
        group: GroupId,
        files: Snapshots,
        sync_every: u64,
        gate: Arc<Gate>,
        seed: u64,
    ) -> Arc<Self> {
        let state = State { transfers: seed, ..State::default() };
        Arc::new(Self {
            group,
            files,
            sync_every,
            gate,
            state: Arc::new(tokio::sync::Mutex::new(state)),
            receiving: Arc::default(),
            used: Mutex::new(Instant::now()),
        })
    }

    /// Whether a snapshot is on its way here or being installed.
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::Acquire)
    }

    /// Takes a step of a leader whose vote is not older than this node's. `install` brings the snapshot to
    /// the group and returns the vote that the group then holds. It has to be polled to its end: bytes may be
    /// on their way to the disk.
    pub(crate) async fn step<I>(
        self: Arc<Self>,
        from: NodeId,
        vote: Vote,
        step: Step,
        standing: Standing,
        install: impl FnOnce(Snapshot) -> I + Send + 'static,
    ) -> Result<Reply, Failure>
    where
        I: Future<Output = Result<Vote, Failure>> + Send + 'static,
    {
        let Ok(mut state) = self.state.clone().try_lock_owned() else {
            return Ok(self.refuse(
                from,
                0,
                refused(Refusal::AnotherUnderWay, "another step is being served"),
            ));
        };
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        state.swept = false;
        let taken = match step {
            Step::Begin(begin) => self.begin(&mut state, from, vote, begin, &standing).await,
            Step::Chunk(chunk) => self.chunk(&mut state, chunk).await,
            Step::End(end) => match self.end(&mut state, &end, install) {
                Ok(Outcome::Working(progress)) => Ok(Reply::Working(peer::SnapshotWorking { progress })),
                Ok(Outcome::Installed(kept)) if kept > vote => {
                    Ok(Reply::HigherVote(codec::to_wire_vote(&kept)))
                }
                Ok(Outcome::Installed(kept)) => Ok(Reply::Installed(codec::to_wire_vote(&kept))),
                Ok(Outcome::Failed(failure)) => return Err(failure),
                Ok(Outcome::Refused(why)) | Err(why) => Err(why),
            },
        };
        let under_way = || state.current.as_ref().is_some_and(|current| !current.is_over());
        self.receiving.store(under_way(), Ordering::Release);
        // The work may have ended in between, and said so before.
        if !under_way() {
            self.receiving.store(false, Ordering::Release);
        }
        let offset = state.current.as_ref().map_or(0, |current| current.receiving.offset());
        Ok(taken.unwrap_or_else(|why| self.refuse(from, offset, why)))
    }

    fn refuse(&self, from: NodeId, offset: u64, (refusal, message): Refused) -> Reply {
        let count = self.gate.count(refusal);
        if count.is_power_of_two() {
            tracing::warn!(
                group = self.group.0, %from, refusal = refusal_name(refusal), count, offset, %message,
                "a step of a snapshot was refused"
            );
        }
        Reply::Refused(peer::SnapshotRefused { reason: refusal.into(), offset, message })
    }

    async fn begin(
        &self,
        state: &mut State,
        from: NodeId,
        vote: Vote,
        begin: peer::SnapshotBegin,
        standing: &Standing,
    ) -> Result<Reply, Refused> {
        let (meta, identity) = announced(from, &vote, begin)?;
        if meta.last_log_id <= standing.committed {
            // The answer counts as an acknowledgement, so the leader has to be known first; its next
            // heartbeat sees to that.
            if standing.vote != vote {
                return Err(refused(Refusal::AnotherUnderWay, "this leader is not known here yet"));
            }
            return Ok(Reply::Installed(codec::to_wire_vote(&standing.vote)));
        }
        if contradicts(meta.last_log_id, standing.committed) {
            return Err(refused(Refusal::Invalid, CONTRADICTS_COMMITTED));
        }
        if let Some(current) = &mut state.current
            && !current.is_over()
        {
            match current.receiving.announced(&vote, &identity) {
                Opening::Continue => {
                    current.touched = Instant::now();
                    return Ok(current.wanted());
                }
                Opening::Refuse(refusal) => {
                    return Err(refused(refusal, "another snapshot is being taken"));
                }
                Opening::Replace => {}
            }
        }
        state.current = None;
        let place = self.gate.enter().ok_or_else(|| {
            refused(Refusal::TooMany, format!("this node receives {INCOMING_AT_ONCE} snapshots at a time"))
        })?;
        let (files, sync_every) = (self.files.clone(), self.sync_every);
        let opened = on_disk(move || files.receive(&identity.encode(), identity.length, sync_every));
        let part = opened.await.map_err(no_room)?;
        state.transfers = state.transfers.wrapping_add(1);
        let receiving = Receiving::new(state.transfers, vote, identity, part.received());
        tracing::info!(
            group = self.group.0, %from, last = ?meta.last_log_id, bytes = identity.length, from_offset = part.received(),
            "receiving a snapshot"
        );
        let (part, place, touched) = (Some(part), Some(place), Instant::now());
        let current = Current { receiving, meta, part, work: None, touched, place };
        let wanted = current.wanted();
        state.current = Some(current);
        Ok(wanted)
    }

    async fn chunk(&self, state: &mut State, chunk: peer::SnapshotChunk) -> Result<Reply, Refused> {
        let unknown = || refused(Refusal::UnknownTransfer, "there is no such transfer here");
        let current = state.current.as_mut().ok_or_else(unknown)?;
        current.receiving.chunk(&chunk).map_err(|refusal| refused(refusal, "the chunk was not taken"))?;
        let mut part = current.part.take().ok_or_else(unknown)?;
        let bytes = chunk.data.len();
        match on_disk(move || part.write(&chunk.data).map(|()| part)).await {
            Ok(part) => {
                current.receiving.wrote(bytes);
                // Our own logic: what the plan says is what the disk has.
                if part.received() != current.receiving.offset() {
                    state.current = None;
                    return Err(refused(Refusal::Damaged, "the part and its plan differ"));
                }
                current.part = Some(part);
                current.touched = Instant::now();
                Ok(current.wanted())
            }
            Err(error) => {
                // After an error of the disk nothing of the part is certain, and its room is needed.
                state.current = None;
                discard(self.group, self.files.clone()).await;
                Err(no_room(error))
            }
        }
    }

    /// Begins to check and install the file, or reports the progress.
    fn end<I>(
        &self,
        state: &mut State,
        end: &peer::SnapshotEnd,
        install: impl FnOnce(Snapshot) -> I + Send + 'static,
    ) -> Result<Outcome, Refused>
    where
        I: Future<Output = Result<Vote, Failure>> + Send + 'static,
    {
        let unknown = || refused(Refusal::UnknownTransfer, "there is no such transfer here");
        let current = state.current.as_mut().ok_or_else(unknown)?;
        let judged = current.receiving.end(end.transfer);
        let begins = judged.map_err(|refusal| refused(refusal, "the end was not taken"))?;
        current.touched = Instant::now();
        if begins {
            let part = current.part.take().ok_or_else(unknown)?;
            let work = Work { progress: Arc::default(), finished: Arc::default() };
            let (progress, finished) = (work.progress.clone(), work.finished.clone());
            let (identity, meta) = (current.receiving.identity, current.meta.clone());
            let (files, group, place) = (self.files.clone(), self.group, current.place.take());
            let receiving = self.receiving.clone();
            current.work = Some(work);
            // Detached: it ends by itself, or with the group.
            drop(NodeRuntime::spawn(async move {
                let outcome = check_and_install(group, files, part, identity, meta, &progress, install).await;
                *finished.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
                receiving.store(false, Ordering::Release);
                drop(place);
            }));
        }
        let work = current.work.as_ref().ok_or_else(unknown)?;
        let mut finished = work.finished.lock().unwrap_or_else(PoisonError::into_inner);
        match finished.take() {
            Some(Outcome::Installed(vote)) => {
                // The sender asks again when this answer is lost.
                *finished = Some(Outcome::Installed(vote));
                Ok(Outcome::Installed(vote))
            }
            Some(other) => {
                drop(finished);
                state.current = None;
                Ok(other)
            }
            // Each wait of an installation has a bound in kv-storage, at which the group fails: that it is
            // still under way is progress.
            None => Ok(Outcome::Working(work.progress.fetch_add(1, Ordering::Relaxed) + 1)),
        }
    }

    /// Forgets a transfer that has stopped. Its part on the disk is removed after [`PART_KEPT`].
    pub(crate) async fn tidy(&self) {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.elapsed() < SNAPSHOT_IDLE {
            return;
        }
        let Ok(mut state) = self.state.try_lock() else { return };
        let abandoned = state.current.as_ref().is_some_and(|current| {
            current.is_over()
                || (current.receiving.taking == Taking::Bytes && current.touched.elapsed() >= SNAPSHOT_IDLE)
        });
        if abandoned {
            state.current = None;
            self.receiving.store(false, Ordering::Release);
        }
        if state.current.is_none() && !state.swept && used.elapsed() >= PART_KEPT {
            discard(self.group, self.files.clone()).await;
            state.swept = true;
        }
    }
}

impl Current {
    fn wanted(&self) -> Reply {
        let (transfer, offset) = (self.receiving.transfer, self.receiving.offset());
        Reply::Wanted(peer::SnapshotWanted { transfer, offset })
    }

    fn is_over(&self) -> bool {
        let over = |work: &Work| work.finished.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        self.work.as_ref().is_some_and(over)
    }
}

fn no_room(error: StorageError) -> Refused {
    match error {
        StorageError::TooLarge { .. } => refused(Refusal::TooLarge, error.to_string()),
        error => refused(Refusal::NoRoom, error.to_string()),
    }
}

/// Why such a snapshot is refused.
pub(crate) const CONTRADICTS_COMMITTED: &str = "it contradicts what is committed here";

/// Whether a snapshot up to `last` ends in another entry than the one that is committed there, or was
/// committed behind it.
pub(crate) fn contradicts(last: Option<LogId>, committed: Option<LogId>) -> bool {
    let index = |id: Option<LogId>| id.map(|id| id.index);
    last > committed && index(last) <= index(committed)
}

/// Checks an announcement of a leader, without regard to the state of the group.
fn announced(
    from: NodeId,
    vote: &Vote,
    begin: peer::SnapshotBegin,
) -> Result<(SnapshotMeta, FileIdentity), Refused> {
    let invalid = |why: &str| refused(Refusal::Invalid, why);
    let last = begin.last_log_id.map(codec::from_wire_id).ok_or_else(|| invalid("it holds no entry"))?;
    if begin.membership.len() > MEMBERSHIP_BYTES {
        return Err(invalid("its membership is too long"));
    }
    let last_membership = codec::decode_membership(begin.membership)
        .map_err(|error| refused(Refusal::Invalid, error.to_string()))?;
    if last_membership.membership().nodes().count() > MAX_MEMBERS {
        return Err(invalid("it has more members than a cluster may have"));
    }
    if !(1..=MAX_VOTERS).contains(&last_membership.voter_ids().count()) {
        return Err(invalid("its membership has no voters, or more than a group may have"));
    }
    if last_membership.log_id().as_ref().is_some_and(|id| *id > last) {
        return Err(invalid("its membership is newer than the snapshot"));
    }
    if last.leader_id > vote.leader_id {
        return Err(invalid("its last entry is newer than the leader"));
    }
    if last.index > MAX_INDEX || begin.snapshot_id != snapshot::id_of(Some(&last)) {
        return Err(invalid("its number does not belong to its last entry"));
    }
    if begin.length == 0 {
        return Err(invalid("it has no bytes"));
    }
    if begin.length > kv_storage::limits::MAX_SNAPSHOT_BYTES {
        return Err(refused(Refusal::TooLarge, "it is longer than a snapshot may be"));
    }
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
    let identity = FileIdentity {
        node: from,
        snapshot: begin.snapshot_id,
        length: begin.length,
        checksum: begin.checksum,
    };
    Ok((meta, identity))
}

async fn check_and_install<I>(
    group: GroupId,
    files: Snapshots,
    part: SnapshotPart,
    identity: FileIdentity,
    meta: SnapshotMeta,
    progress: &Arc<AtomicU64>,
    install: impl FnOnce(Snapshot) -> I + Send + 'static,
) -> Outcome
where
    I: Future<Output = Result<Vote, Failure>> + Send + 'static,
{
    let (header, seen) = (codec::encode_mark(&meta), progress.clone());
    let checked = on_disk(move || {
        let mut contents = Contents::default();
        let mut bad = None;
        let found = part.verify(identity.snapshot, identity.checksum, &seen, |block| {
            if bad.is_none() {
                bad = contents.check(block).err();
            }
        })?;
        let bad = bad.or_else(|| contents.end().err()).map(|error| error.to_string());
        let differs = (found != header).then(|| "its header is not what was announced".to_owned());
        Ok((part, differs.or(bad)))
    });
    let part = match checked.await {
        Ok((part, None)) => part,
        other => {
            let why = other.map_or_else(|error| Some(error.to_string()), |(_, why)| why).unwrap_or_default();
            tracing::error!(group = group.0, why, "a received snapshot is damaged and was thrown away");
            discard(group, files).await;
            return Outcome::Refused(refused(Refusal::Damaged, why));
        }
    };
    let received = ReceivedPart::new(part);
    let installed = install(Snapshot { meta, snapshot: SnapshotData::Received(received.clone()) }).await;
    // It was not installed: the log reached the same point first, or there is a newer leader.
    if received.take().is_some() {
        discard(group, files).await;
    }
    installed.map_or_else(Outcome::Failed, Outcome::Installed)
}

async fn discard(group: GroupId, files: Snapshots) {
    if let Err(error) = on_disk(move || files.discard_part()).await {
        tracing::warn!(group = group.0, %error, "the part of a snapshot was not removed");
    }
}

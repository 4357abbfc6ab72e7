//! Sends this node's snapshots of a group to followers, one transfer at a time to each: does what [`Sending`]
//! decides, and remembers which entries the followers will need afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_peer::PeerError;
use kv_proto::peer;
use kv_proto::peer::raft_snapshot::Step as WireStep;
use kv_proto::peer::raft_snapshot_reply::Result as WireResult;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_storage::{SnapshotBytes, Snapshots, StorageError};
use kv_types::{GroupId, NodeId};
use tokio::time::Instant;

use crate::builder::Account;
use crate::codec;
use crate::config::{SnapshotMeta, Vote};
use crate::limits::SNAPSHOT_CALL_DEADLINE;
use crate::machine_error::MachineError;
use crate::runtime::NodeRuntime;
use crate::snapshot;
use crate::snapshot::{Snapshot, SnapshotData};
use crate::transfer::{
    Ended, FileIdentity, Heard, Hold, Refusal, Sending, Step, no_room_pause, refusal_name,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How fast a snapshot may go to a follower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Bytes in one message.
    pub(crate) chunk_bytes: usize,
    /// Bytes in a second; 0 for no bound.
    pub(crate) bytes_per_second: u64,
}

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSent {
    /// The file could not be read.
    #[error("the snapshot cannot be read: {0}")]
    File(#[from] MachineError),
    /// There was no progress for so long.
    #[error("the transfer made no progress for {0:?}")]
    Idle(Duration),
    /// The receiver refused it, for this reason.
    #[error("the follower refused the snapshot: {}", refusal_name(*.0))]
    Refused(Refusal),
}

/// The transfers of a group's snapshots to its followers, and the entries that are kept for them.
pub(crate) struct Outgoing {
    group: GroupId,
    node: NodeId,
    pace: Pace,
    began: Instant,
    /// The checksum of the file that was sent last: it is read for that once, and again when a receiver finds
    /// it damaged.
    checked: Mutex<Option<FileIdentity>>,
    /// Held while a transfer to the node is under way.
    lanes: Mutex<BTreeMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
    holds: Mutex<BTreeMap<NodeId, Hold>>,
    /// Knows which files must be kept.
    account: Arc<Account>,
    /// Transfers in a row that ended because the receiver had no room.
    without_room: Mutex<BTreeMap<NodeId, u32>>,
}

/// Records, when it is dropped, that a transfer has ended.
struct InTransit<'a>(&'a Outgoing, NodeId);

impl Drop for InTransit<'_> {
    fn drop(&mut self) {
        let now = self.0.now();
        if let Some(hold) = lock(&self.0.holds).get_mut(&self.1) {
            *hold = Hold { in_transit: false, moved: now, ..*hold };
        }
        self.0.account.sent().interrupted(self.1);
    }
}

impl Outgoing {
    pub(crate) fn new(group: GroupId, node: NodeId, pace: Pace, account: Arc<Account>) -> Arc<Self> {
        Arc::new(Self {
            group,
            node,
            pace,
            began: Instant::now(),
            checked: Mutex::default(),
            lanes: Mutex::default(),
            holds: Mutex::default(),
            account,
            without_room: Mutex::default(),
        })
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Gives a snapshot to a follower. `call` asks it one thing within a time. The vote of the answer may be
    /// a newer one. After a refusal for want of room it returns when the follower may be asked again; a
    /// caller that stops drops the future.
    pub(crate) async fn give<F>(
        &self,
        to: NodeId,
        vote: Vote,
        snapshot: Snapshot,
        call: impl Fn(Request, Duration) -> F,
    ) -> Result<Vote, NotSent>
    where
        F: Future<Output = Result<Response, PeerError>>,
    {
        let lane = lock(&self.lanes).entry(to).or_default().clone();
        let _one_at_a_time = lane.lock().await;
        let given = self.transfer(to, vote, snapshot, call).await;
        if matches!(given, Err(NotSent::Refused(Refusal::NoRoom))) {
            let times = {
                let mut without_room = lock(&self.without_room);
                let times = without_room.entry(to).or_default();
                *times = times.saturating_add(1);
                *times
            };
            tokio::time::sleep(no_room_pause(times)).await;
        } else {
            lock(&self.without_room).remove(&to);
        }
        given
    }

    async fn transfer<F>(
        &self,
        to: NodeId,
        vote: Vote,
        snapshot: Snapshot,
        call: impl Fn(Request, Duration) -> F,
    ) -> Result<Vote, NotSent>
    where
        F: Future<Output = Result<Response, PeerError>>,
    {
        let SnapshotData::File { files, id } = snapshot.snapshot else {
            return Err(MachineError::Lost { what: "the file of a received snapshot" }.into());
        };
        // First of all: what follows the snapshot is kept from now on.
        let needs = snapshot::id_of(snapshot.meta.last_log_id.as_ref());
        lock(&self.holds).insert(to, Hold { needs, in_transit: true, moved: self.now() });
        self.account.sent().begin(to, id, Instant::now());
        let _in_transit = InTransit(self, to);
        let (file, identity) = self.open(files, id).await?;
        tracing::info!(group = self.group.0, %to, last = ?snapshot.meta.last_log_id, bytes = identity.length, "sending a snapshot");
        let pace = self.pace;
        let mut sending = Sending::new(identity.length, pace.chunk_bytes, pace.bytes_per_second, self.now());
        let ended = loop {
            let (step, not_before) = sending.next();
            tokio::time::sleep_until(self.began + not_before).await;
            let begun = self.now();
            let body = self.wire(step, &vote, &snapshot.meta, &identity, &file).await?;
            let heard = hear(call(body, SNAPSHOT_CALL_DEADLINE).await);
            if let Heard::Refused { refusal, offset } = heard {
                tracing::warn!(group = self.group.0, %to, refusal = refusal_name(refusal), offset, "a step of a snapshot was refused");
            }
            let before = sending.received();
            if let Some(ended) = sending.heard(heard, begun, self.now()) {
                break ended;
            }
            if sending.received() > before {
                self.account.sent().moved(to, Instant::now());
            }
        };
        if matches!(ended, Ended::Installed(_) | Ended::Refused(_)) {
            self.account.sent().end(to);
        }
        match ended {
            Ended::Installed(vote) | Ended::HigherVote(vote) => Ok(vote),
            Ended::Idle => Err(NotSent::Idle(crate::limits::SNAPSHOT_IDLE)),
            Ended::Refused(refusal) => {
                if refusal == Refusal::Damaged {
                    // It may have been damaged since it was checked: the next transfer checks it again.
                    *lock(&self.checked) = None;
                }
                Err(NotSent::Refused(refusal))
            }
        }
    }

    /// Opens a file and identifies it; checks it, unless that was done before.
    async fn open(&self, files: Snapshots, id: u64) -> Result<(SnapshotBytes, FileIdentity), MachineError> {
        let known = *lock(&self.checked);
        let node = self.node;
        let (file, identity) = NodeRuntime::blocking(move || {
            let file = files.bytes_of(id)?;
            let length = file.length();
            let identity = match known.filter(|known| known.snapshot == id && known.length == length) {
                Some(known) => known,
                None => {
                    // A damaged file is not sent, and is removed: another snapshot is due.
                    files.verify(id).inspect_err(|error| set_aside(&files, id, error))?;
                    FileIdentity { node, snapshot: id, length, checksum: file.checksum()? }
                }
            };
            Ok::<_, MachineError>((file, identity))
        })
        .await??;
        *lock(&self.checked) = Some(identity);
        Ok((file, identity))
    }

    async fn wire(
        &self,
        step: Step,
        vote: &Vote,
        meta: &SnapshotMeta,
        identity: &FileIdentity,
        file: &SnapshotBytes,
    ) -> Result<Request, MachineError> {
        let step = match step {
            Step::Begin => WireStep::Begin(peer::SnapshotBegin {
                last_log_id: meta.last_log_id.as_ref().map(codec::to_wire_id),
                membership: codec::encode_membership(&meta.last_membership),
                snapshot_id: identity.snapshot,
                length: identity.length,
                checksum: identity.checksum,
            }),
            Step::Chunk { transfer, offset, bytes } => {
                let file = file.clone();
                let data = NodeRuntime::blocking(move || file.read(offset, bytes)).await??;
                let checksum = crc32c::crc32c(&data);
                WireStep::Chunk(peer::SnapshotChunk { transfer, offset, data, checksum })
            }
            Step::End { transfer } => WireStep::End(peer::SnapshotEnd { transfer }),
        };
        Ok(Request::RaftSnapshot(peer::RaftSnapshot {
            vote: Some(codec::to_wire_vote(vote)),
            step: Some(step),
        }))
    }

    /// What the log must keep. `matched` tells how far (exclusive) a follower's log is known to match; the
    /// log ends before `end`; a follower within `near` entries of it needs no hold.
    pub(crate) fn holds(&self, matched: impl Fn(NodeId) -> u64, end: u64, near: u64) -> Vec<Hold> {
        let now = self.now();
        let mut holds = lock(&self.holds);
        holds.retain(|to, hold| match hold.followed(matched(*to), end, near, now) {
            Some(kept) => {
                *hold = kept;
                true
            }
            None => false,
        });
        holds.values().copied().collect()
    }

    /// This node does not lead: no follower needs entries from it.
    pub(crate) fn let_go(&self) {
        lock(&self.holds).retain(|_, hold| hold.in_transit);
    }
}

/// Removes a snapshot file that is damaged. Blocks.
fn set_aside(files: &Snapshots, id: u64, error: &StorageError) {
    if matches!(error, StorageError::CorruptFile { .. }) {
        tracing::error!(snapshot = id, %error, "a damaged snapshot is removed; another one is taken");
        if let Err(error) = files.remove(id) {
            tracing::error!(snapshot = id, %error, "a damaged snapshot was not removed");
        }
    }
}

fn hear(answer: Result<Response, PeerError>) -> Heard {
    let result = match answer {
        Ok(Response::RaftSnapshot(peer::RaftSnapshotReply { result: Some(result) })) => result,
        Ok(_) => return Heard::Refused { refusal: Refusal::Invalid, offset: 0 },
        Err(PeerError::TimedOut) => return Heard::NoAnswer,
        Err(PeerError::NotSent { .. } | PeerError::Lost { .. } | PeerError::Refused(_)) => {
            return Heard::NotSent;
        }
    };
    let vote = |vote, heard: fn(Vote) -> Heard| match codec::from_wire_vote(Some(vote)) {
        Ok(vote) => heard(vote),
        Err(_) => Heard::Refused { refusal: Refusal::Invalid, offset: 0 },
    };
    match result {
        WireResult::HigherVote(higher) => vote(higher, Heard::HigherVote),
        WireResult::Installed(installed) => vote(installed, Heard::Installed),
        WireResult::Wanted(peer::SnapshotWanted { transfer, offset }) => Heard::Wanted { transfer, offset },
        WireResult::Working(peer::SnapshotWorking { progress }) => Heard::Working { progress },
        WireResult::Refused(refused) => Heard::Refused { refusal: refused.reason(), offset: refused.offset },
    }
}

//! Entries of histories that this node's disk has lost: they are asked of the other members, compared with
//! the hash that the account keeps, and put back. What no member has stays lost by name.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use kv_peer::{Address, Lane, PeerRequest};
use kv_proto::peer;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_types::{Failure, NamespaceId, NodeId, Reason};
use tokio::time::Instant;

use super::Group;
use crate::history::{self, Page, Past, Segment};
use crate::limits::{MEND_BYTES, MEND_DEADLINE, PIECE_BYTES, RETRY_AFTER_MS};
use crate::machine_error::MachineError;
use crate::runtime::NodeRuntime;
use crate::tables::{Space, Table, keys};

type Entries = Vec<(u64, Bytes)>;

impl Group {
    /// Whether entries of this group's histories are missing here, as far as it can be told without waiting.
    pub(super) fn has_holes(&self) -> bool {
        // The lock is held while entries are applied, for as long as the disk takes.
        let space = self.applied.try_read().map(|applied| applied.space);
        space.is_ok_and(|space| !self.holes_of(space).is_empty())
    }

    /// What is missing of a space: what the disk has lost, and what a snapshot met.
    fn holes_of(&self, space: Space) -> Vec<(NamespaceId, u64, u64)> {
        let lost = self.around.storage.lost_entries(Table::History.id());
        let own = lost.into_iter().filter_map(|(stream, first, last)| {
            keys::of_stream(space, &stream).map(|namespace| (namespace, first, last))
        });
        let mut holes: Vec<_> = own.chain(self.account.holes().all()).collect();
        holes.sort_unstable();
        holes.dedup();
        holes
    }

    /// Puts back what is missing and other members have. True when nothing is missing any more.
    pub(super) async fn mend(self: Arc<Self>) -> bool {
        let space = self.applied.read().await.space;
        let mut whole = true;
        for (namespace, first, last) in self.holes_of(space) {
            match self.mend_range(space, namespace, first..=last).await {
                Ok(true) => self.account.holes().close(namespace, first),
                Ok(false) => whole = false,
                Err(error) => {
                    whole = false;
                    tracing::warn!(group = %self.id, %namespace, first, last, %error, "lost entries of a history are not put back");
                }
            }
        }
        whole
    }

    /// Puts one range back. False if no other member has it now.
    async fn mend_range(
        &self,
        space: Space,
        namespace: NamespaceId,
        range: RangeInclusive<u64>,
    ) -> Result<bool, MachineError> {
        let mut at = *range.start();
        while at <= *range.end() {
            let (storage, rest) = (self.around.storage.clone(), (at, *range.end()));
            let (past, page) = NodeRuntime::blocking(move || {
                let page = history::read(&storage, space, namespace, rest, PIECE_BYTES)?;
                Ok::<_, MachineError>((Past::stored(&storage, space, namespace)?, page))
            })
            .await??;
            let missing = match page {
                // An installation brought them, or an earlier part of this.
                Page::Entries(entries) => {
                    at = entries.last().map_or(*range.end(), |(id, _)| *id) + 1;
                    continue;
                }
                Page::Trimmed(floor) => {
                    at = floor.max(at + 1);
                    continue;
                }
                Page::Lost(next) => next - 1,
            };
            // Before its first entry a history has nothing.
            if at <= past.floor {
                at = past.floor + 1;
                continue;
            }
            // Nor behind its last one, and one that was dropped has none.
            if at > past.revision {
                return Ok(true);
            }
            let Some(segment) = past.segment(at) else { return Ok(false) };
            let Some((from, entries)) = self.fetch(namespace, &segment).await else { return Ok(false) };
            let wanted = at..=missing.min(*range.end()).min(segment.to);
            let after = Some(at - 1).filter(|before| *before > past.floor);
            at = *wanted.end() + 1;
            let (storage, count) = (self.around.storage.clone(), wanted.clone().count());
            let lost: Entries = entries.into_iter().filter(|(id, _)| wanted.contains(id)).collect();
            assert_eq!(lost.len(), count, "a segment was checked to have every revision");
            let stream = keys::of_namespace(space, namespace);
            NodeRuntime::blocking(move || storage.fill_entries(Table::History.id(), &stream, after, &lost))
                .await??;
            tracing::info!(group = %self.id, %namespace, first = wanted.start(), last = wanted.end(), %from, "lost entries of a history are back");
        }
        Ok(true)
    }

    /// A segment as the first member has it that has it as the account says.
    async fn fetch(&self, namespace: NamespaceId, segment: &Segment) -> Option<(NodeId, Entries)> {
        let me = self.around.config.node_id;
        let others = self.around.config.members.iter().map(|member| member.id).filter(|id| *id != me);
        for other in others.filter(|id| self.around.peers.liveness(*id).is_up()) {
            let Some(entries) = self.fetch_from(other, namespace, segment).await else { continue };
            match segment.check(&entries) {
                Ok(()) => return Some((other, entries)),
                Err(why) => drop(self.malformed(other, &why)),
            }
        }
        None
    }

    async fn fetch_from(&self, other: NodeId, namespace: NamespaceId, segment: &Segment) -> Option<Entries> {
        let about = Address { group: self.id, namespace, ..Address::default() };
        let (mut entries, mut bytes, mut next) = (Entries::new(), 0, segment.from);
        while next <= segment.to {
            let body = Request::RaftHistory(peer::RaftHistory { from: next, to: segment.to });
            let deadline = Instant::now() + MEND_DEADLINE;
            let reply = self.around.peers.call(other, Lane::Bulk, about, body, deadline).await;
            let Ok(Response::RaftHistory(page)) = reply else { return None };
            let last = page.entries.last()?.revision;
            bytes += page.entries.iter().map(|entry| entry.content.len()).sum::<usize>();
            if last < next || bytes > MEND_BYTES {
                return None;
            }
            next = last.saturating_add(1);
            entries.extend(page.entries.into_iter().map(|entry| (entry.revision, entry.content)));
        }
        Some(entries)
    }

    /// Entries of a namespace for a member that has lost them: a page from the first one on, nothing where
    /// this node does not have that.
    pub(super) async fn answer_history(&self, request: PeerRequest) -> Result<Response, Failure> {
        let Request::RaftHistory(peer::RaftHistory { from, to }) = request.body else {
            return Err(Failure::new(Reason::InvalidRequest, "not a question about a history"));
        };
        let busy = || {
            Failure::new(Reason::Overloaded, "another member is being given a history")
                .retry_after_ms(RETRY_AFTER_MS)
        };
        let turn = Arc::clone(&self.giving_history).try_lock_owned().map_err(|_| busy())?;
        let space = self.applied.read().await.space;
        let (storage, namespace) = (self.around.storage.clone(), request.about.namespace);
        let read = NodeRuntime::blocking(move || {
            // Also when the caller has left.
            let _turn = turn;
            history::read(&storage, space, namespace, (from, to), PIECE_BYTES)
        });
        let read = read.await.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        let page = read.map_err(|error| Failure::new(Reason::StorageFailed, error.to_string()))?;
        let entries = match page {
            Page::Entries(entries) => entries,
            Page::Trimmed(_) | Page::Lost(_) => Entries::new(),
        };
        let entry = |(revision, content)| peer::HistoryEntry { revision, content };
        let entries = entries.into_iter().map(entry).collect();
        Ok(Response::RaftHistory(peer::RaftHistoryReply { entries }))
    }
}

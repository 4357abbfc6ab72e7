//! Which of this node's snapshot files a follower has a part of. The file is kept while the transfer can go
//! on, so that a transfer over a slow link ends although newer snapshots are taken meanwhile. Decided without
//! clock or disk.

use std::collections::BTreeMap;

use kv_types::NodeId;
use tokio::time::Instant;

use crate::limits::PART_KEPT;

/// The last transfer to one follower.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    /// Number of the file.
    snapshot: u64,
    under_way: bool,
    /// The receiver has some of its bytes.
    begun: bool,
    /// When something moved last.
    moved: Instant,
}

/// The last transfer of a group's snapshots to each follower.
#[derive(Debug, Default)]
pub(crate) struct SentFiles(BTreeMap<NodeId, Transfer>);

impl SentFiles {
    /// A transfer of a file begins, or goes on.
    pub(crate) fn begin(&mut self, to: NodeId, snapshot: u64, now: Instant) {
        let begun = self.0.get(&to).is_some_and(|before| before.snapshot == snapshot && before.begun);
        self.0.insert(to, Transfer { snapshot, under_way: true, begun, moved: now });
    }

    /// The follower has received more.
    pub(crate) fn moved(&mut self, to: NodeId, now: Instant) {
        if let Some(transfer) = self.0.get_mut(&to) {
            *transfer = Transfer { begun: true, moved: now, ..*transfer };
        }
    }

    /// The transfer stops and may go on later.
    pub(crate) fn interrupted(&mut self, to: NodeId) {
        match self.0.get_mut(&to) {
            Some(transfer) if transfer.begun => transfer.under_way = false,
            _ => self.end(to),
        }
    }

    /// The transfer does not go on: the follower has the snapshot, or will not take it.
    pub(crate) fn end(&mut self, to: NodeId) {
        self.0.remove(&to);
    }

    /// Forgets every transfer: the room of the file is needed. One that is under way goes on as long as it is
    /// not interrupted.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The file to keep: the oldest whose transfer is under way, or was interrupted less than [`PART_KEPT`]
    /// ago. A file that ends before `log_begins`, the index of the first entry that the log has, is of no use
    /// to a follower. Forgets the transfers of other files.
    pub(crate) fn kept(&mut self, log_begins: u64, now: Instant) -> Option<u64> {
        self.0.retain(|_, transfer| {
            let fresh = transfer.under_way || now.saturating_duration_since(transfer.moved) < PART_KEPT;
            fresh && transfer.snapshot >= log_begins
        });
        self.0.values().map(|transfer| transfer.snapshot).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    #[test]
    fn a_file_is_kept_while_its_transfer_can_go_on() {
        let now = Instant::now();
        let mut sent = SentFiles::default();
        assert_eq!(sent.kept(0, now), None);
        sent.begin(A, 40, now);
        assert_eq!(sent.kept(0, now + 2 * PART_KEPT), Some(40), "it is under way");
        sent.moved(A, now);
        sent.interrupted(A);
        let last = now + PART_KEPT - Duration::from_secs(1);
        assert_eq!(sent.kept(40, last), Some(40));
        // It goes on; before anything moves it is interrupted again.
        sent.begin(A, 40, last);
        sent.interrupted(A);
        assert_eq!(sent.kept(40, last + PART_KEPT - Duration::from_secs(1)), Some(40));
        assert_eq!(sent.kept(40, last + PART_KEPT), None, "its receiver has thrown the part away");
        assert_eq!(sent.kept(40, last), None, "it stays forgotten");
    }

    #[test]
    fn a_file_is_let_go_when_it_is_of_no_use() {
        let now = Instant::now();
        let mut sent = SentFiles::default();
        let begun = |sent: &mut SentFiles, to, snapshot| {
            sent.begin(to, snapshot, now);
            sent.moved(to, now);
            sent.interrupted(to);
        };
        begun(&mut sent, A, 40);
        begun(&mut sent, B, 70);
        assert_eq!(sent.kept(40, now), Some(40), "the oldest");
        assert_eq!(sent.kept(41, now), Some(70), "the log begins behind the first");
        sent.end(B);
        assert_eq!(sent.kept(41, now), None);
        // Nothing was received, or another file was begun.
        sent.begin(A, 80, now);
        sent.interrupted(A);
        assert_eq!(sent.kept(0, now), None);
        begun(&mut sent, A, 80);
        sent.begin(A, 90, now);
        assert_eq!(sent.kept(0, now), Some(90));
        sent.interrupted(A);
        assert_eq!(sent.kept(0, now), None, "of the new file nothing was received");
        begun(&mut sent, A, 95);
        sent.clear();
        assert_eq!(sent.kept(0, now), None);
    }
}

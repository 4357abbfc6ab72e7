//! Which requests made and changed namespaces, as far as that is kept: of every namespace that is there the
//! one that made it, and the last changes. A resend that may be older than these is refused as *unknown*, and
//! nothing is done again.

use std::collections::{BTreeMap, VecDeque};

use kv_types::{Failure, Namespace, NamespaceId, Reason, RequestId};

use crate::limits::{CHANGES_KEPT, FORGOTTEN_AROUND};

/// What a change did with a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// It was deleted at once.
    Deleted,
    /// It was deleted when its grace was over; the request is the one that began it.
    Due,
    /// It is to be deleted when its grace is over.
    Scheduled,
    /// That was undone.
    Undeleted,
    /// Its settings were changed.
    Altered,
}

impl What {
    /// Whether a request that did this is one that asks for `what`.
    pub(super) fn answers(self, what: Self) -> bool {
        self == what || (self, what) == (Self::Due, Self::Scheduled)
    }

    /// The namespace is gone since then.
    pub(super) fn removes(self) -> bool {
        matches!(self, Self::Deleted | Self::Due)
    }
}

/// A request, and when it was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct By {
    pub(super) request: RequestId,
    pub(super) issued_at_ms: u64,
}

/// A change of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) what: What,
    /// As it became, or as it was before it was deleted.
    pub(super) namespace: Namespace,
    /// The request that made it, where it is gone.
    pub(super) creator: Option<RequestId>,
    pub(super) by: By,
}

/// Which requests made and changed namespaces, as far as that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// By namespace that is there: its resends are always recognized.
    pub(super) creators: BTreeMap<NamespaceId, RequestId>,
    /// By namespace that goes when its grace is over: who asked for that.
    pub(super) scheduled: BTreeMap<NamespaceId, By>,
    /// The last changes, the oldest first.
    pub(super) changes: VecDeque<Change>,
    /// When the latest of those before them was issued; 0 without any.
    pub(super) forgotten_until_ms: u64,
}

/// What an earlier attempt of a request did.
pub(super) enum Before<'a> {
    Made(NamespaceId),
    MadeAndGone(&'a Namespace),
    Changed(What, &'a Namespace),
    Nothing,
}

impl Requests {
    /// What became of a request. `again`: when it was issued, if it was sent before.
    pub(super) fn look_up(&self, request: RequestId, again: Option<u64>) -> Result<Before<'_>, Failure> {
        if let Some((made, _)) = self.creators.iter().find(|(_, by)| **by == request) {
            return Ok(Before::Made(*made));
        }
        for change in &self.changes {
            if change.by.request == request {
                return Ok(Before::Changed(change.what, &change.namespace));
            }
            if change.creator == Some(request) {
                return Ok(Before::MadeAndGone(&change.namespace));
            }
        }
        // A namespace is made before it is deleted, by clocks that differ by no more than that.
        let forgotten = self.forgotten_until_ms.saturating_add(FORGOTTEN_AROUND.as_millis() as u64);
        if self.forgotten_until_ms > 0 && again.is_some_and(|issued_at_ms| issued_at_ms <= forgotten) {
            let message = format!(
                "this request was sent before, and may have been taken: only the last {CHANGES_KEPT} deletions and \
                 changes are remembered"
            );
            return Err(Failure::new(Reason::RequestExpired, message));
        }
        Ok(Before::Nothing)
    }

    /// Keeps a change, and forgets the oldest one beyond the bound.
    pub(super) fn keep(&mut self, what: What, namespace: Namespace, by: By) {
        let creator = match what.removes() {
            true => self.creators.remove(&namespace.id),
            false => None,
        };
        match what {
            What::Scheduled => {
                self.scheduled.insert(namespace.id, by);
            }
            What::Deleted | What::Due | What::Undeleted => {
                self.scheduled.remove(&namespace.id);
            }
            What::Altered => {}
        }
        self.changes.push_back(Change { what, namespace, creator, by });
        while self.changes.len() > CHANGES_KEPT
            && let Some(oldest) = self.changes.pop_front()
        {
            // At least one: there is something that is forgotten.
            self.forgotten_until_ms = self.forgotten_until_ms.max(oldest.by.issued_at_ms).max(1);
        }
    }
}

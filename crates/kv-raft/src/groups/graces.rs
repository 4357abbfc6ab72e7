//! Namespaces that are deleted and can be taken back: the leader of the catalogue proposes to delete them for
//! good when their time has come by the clocks of a majority. The log decides (`DeleteDue`): a proposal that
//! comes late has no effect.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_types::catalogue::Catalogue;
use kv_types::{Deletion, GroupId, NamespaceId};
use openraft::errors::{Fatal, RaftError};
use tokio::time::{Instant, timeout_at};

use super::Group;
use crate::agreed_time::AgreedTime;
use crate::catalogue_machine::CatalogueCommand;
use crate::config::TypeConfig;
use crate::limits::{STEWARD_DEADLINE, TIME_EVERY, UNDO_LEAST};
use crate::proposal::{Catalogued, Reply};

/// What the leader of the catalogue knows of deletions that can be undone. A value.
#[derive(Debug, Default)]
pub(super) struct Graces {
    looked: Option<Instant>,
    /// Since when they could be undone here: this node leads, and a majority answers it.
    since: BTreeMap<(NamespaceId, u64), Instant>,
}

impl Graces {
    /// The deletion that is due for longest, of those whose time has come and that could be undone for a
    /// while: one that was decided late, or was due while there was no majority, is not done at once.
    fn due(&mut self, catalogue: &Catalogue, time: AgreedTime, now: Instant) -> Option<(NamespaceId, u64)> {
        let marked: BTreeMap<_, _> =
            catalogue.marked().map(|(id, Deletion { due_ms, grace_ms })| ((id, due_ms), grace_ms)).collect();
        self.since.retain(|mark, _| marked.contains_key(mark));
        let due = marked.into_iter().filter(|((id, due_ms), grace_ms)| {
            let since = *self.since.entry((*id, *due_ms)).or_insert(now);
            let least = UNDO_LEAST.min(Duration::from_millis(*grace_ms));
            *due_ms <= time.reached_ms && now.saturating_duration_since(since) >= least
        });
        due.map(|(mark, _)| mark).min_by_key(|(id, due_ms)| (*due_ms, *id))
    }
}

impl Group {
    /// Proposes the deletion of a namespace whose grace is over by the clocks of a majority, where this node
    /// leads the catalogue.
    pub(super) async fn delete_due(&self, graces: &mut Graces) -> Result<(), Fatal<TypeConfig>> {
        if self.id != GroupId::CATALOGUE || graces.looked.is_some_and(|at| at.elapsed() < TIME_EVERY) {
            return Ok(());
        }
        let any = self.around.catalogue.borrow().marked().next().is_some();
        if !any {
            graces.since.clear();
            return Ok(());
        }
        graces.looked = Some(Instant::now());
        let Some(time) = self.time().await else {
            graces.since.clear();
            return Ok(());
        };
        let due = graces.due(&self.around.catalogue.borrow(), time, Instant::now());
        let Some((namespace, due_ms)) = due else { return Ok(()) };
        let command = CatalogueCommand::DeleteDue { namespace, due_ms };
        let deadline = Instant::now() + STEWARD_DEADLINE;
        match timeout_at(deadline, self.raft.client_write(command.encode())).await {
            Ok(Err(RaftError::Fatal(fatal))) => Err(fatal),
            Ok(Ok(response)) => {
                // Perhaps not the only one.
                graces.looked = None;
                if let Reply::Catalogue(Ok(Catalogued { namespace: Some(gone), .. })) = response.data {
                    tracing::info!(namespace = %gone.name, id = %gone.id, "the grace of a deleted namespace is over");
                }
                Ok(())
            }
            // No longer the leader, or too slow: it is tried again after a pause.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Guarantee, Namespace, NamespaceName, Placement};

    const DAY_MS: u64 = 24 * 3_600_000;

    fn catalogue(marks: &[(u64, Option<Deletion>)]) -> Catalogue {
        let namespace = |(id, deletion): &(u64, Option<Deletion>)| Namespace {
            id: NamespaceId(*id),
            name: NamespaceName::new(format!("n{id}")).unwrap(),
            settings_version: 1,
            deletion: *deletion,
            guarantee: Guarantee::Linearizable,
            placement: Placement::Strong { group: GroupId::FIRST_DATA },
        };
        let namespaces = marks.iter().map(namespace).map(|namespace| (namespace.id, namespace)).collect();
        Catalogue { namespaces, ..Catalogue::default() }
    }

    fn at(reached_ms: u64) -> AgreedTime {
        AgreedTime { reached_ms, latest_ms: reached_ms + 50 }
    }

    #[test]
    fn what_is_due_for_longest_goes_first_and_nothing_before_its_time() {
        let mark = |due_ms| Some(Deletion { due_ms, grace_ms: DAY_MS });
        let all = catalogue(&[(1, None), (2, mark(900)), (3, mark(700)), (4, mark(700))]);
        let (mut graces, began) = (Graces::default(), Instant::now());
        assert_eq!(graces.due(&all, at(0), began), None);
        let later = began + UNDO_LEAST;
        assert_eq!(graces.due(&all, at(699), later), None);
        assert_eq!(graces.due(&all, at(700), later), Some((NamespaceId(3), 700)));
        let left = catalogue(&[(2, mark(900)), (4, mark(700))]);
        assert_eq!(graces.due(&left, at(1_000), later), Some((NamespaceId(4), 700)));
        assert_eq!(graces.due(&catalogue(&[(2, None)]), at(1_000), later), None);
        assert!(graces.since.is_empty(), "and what is not marked any more is forgotten");
    }

    /// The mark was decided after it was due, or there was no majority when it was: there is a moment for it.
    #[test]
    fn what_is_overdue_when_it_is_first_seen_can_be_undone_for_a_moment() {
        let mut graces = Graces::default();
        let began = Instant::now();
        let overdue = catalogue(&[(1, Some(Deletion { due_ms: 500, grace_ms: DAY_MS }))]);
        let moment = Duration::from_millis(1);
        assert_eq!(graces.due(&overdue, at(DAY_MS), began), None);
        assert_eq!(graces.due(&overdue, at(DAY_MS), began + UNDO_LEAST - moment), None);
        // Deleted anew: that is another mark.
        let anew = catalogue(&[(1, Some(Deletion { due_ms: 600, grace_ms: DAY_MS }))]);
        assert_eq!(graces.due(&anew, at(DAY_MS), began + UNDO_LEAST), None);
        assert_eq!(graces.due(&anew, at(DAY_MS), began + 2 * UNDO_LEAST), Some((NamespaceId(1), 600)));
        // A shorter grace was asked for: no longer than that.
        let mut graces = Graces::default();
        let short = catalogue(&[(1, Some(Deletion { due_ms: 500, grace_ms: 1_000 }))]);
        assert_eq!(graces.due(&short, at(DAY_MS), began), None);
        let second = Duration::from_secs(1);
        assert_eq!(graces.due(&short, at(DAY_MS), began + second), Some((NamespaceId(1), 500)));
    }
}

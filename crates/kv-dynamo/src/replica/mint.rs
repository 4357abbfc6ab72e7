//! A client's write at the node that coordinates it: what it supersedes, its dot, and the one batch in which
//! value, dot and request are committed; or the proof that it was taken before.

use std::collections::BTreeMap;

use kv_types::catalogue::token;
use kv_types::causal::primary::{self, Change};
use kv_types::causal::{Dot, Hlc, Seen, Sibling, State, Write};
use kv_types::limits::{MAX_SIBLINGS, REQUEST_WINDOW};
use kv_types::{Failure, NodeId, Reason};
use tokio::time::Instant;

use super::copy::{Copy, Known, raw};
use super::held::Growth;
use super::rows::{Rows, Stop, lock};
use super::{Minted, Order, Partition, Replica, Role, Supersedes};
use crate::layout::{Hint, Place};
use crate::limits;

/// A write under its new dot.
struct New<'a> {
    supersedes: &'a Seen,
    dot: Dot,
    write: Write,
    sibling: Option<Sibling>,
}

impl Replica {
    /// Takes a client's write: mints its dot and logs it, or finds that it was taken before.
    ///
    /// A refusal has changed nothing, a refusal by storage included. So a first attempt that was not taken
    /// here before is not applied, whatever refused it; of a resend the reason decides.
    pub(crate) async fn mint(
        &self,
        place: &Place,
        role: Role<'_>,
        order: &Order,
        deadline: Instant,
    ) -> Result<Minted, Failure> {
        let mut known = false;
        let minted = self.run(place.slice, deadline, |partition, rows| {
            self.mint_now(place, role, order, partition, rows, &mut known)
        });
        let minted = minted.await;
        let minted = minted.map_err(|failure| match known || order.is_resent() {
            true => failure,
            false => failure.not_applied(),
        })?;
        if matches!(role, Role::Fallback(_)) {
            self.hinted.notify_one();
        }
        Ok(minted)
    }

    /// `known` becomes true when the request was taken before.
    fn mint_now(
        &self,
        place: &Place,
        role: Role<'_>,
        order: &Order,
        partition: &mut Partition,
        rows: &mut Rows<'_>,
        known: &mut bool,
    ) -> Result<Minted, Stop> {
        let request = order.mutation.request_id;
        let deleted = self.refuse_deleted(place.namespace);
        // It may have been taken before the deletion, and its traces went with the namespace.
        deleted.map_err(|failure| if order.is_resent() { failure.after_sending() } else { failure })?;
        let mut hints = Known::new();
        let mut stored = None;
        let before = match role {
            Role::Primary => {
                self.expect(place, partition, rows)?;
                let row = self.stored(place, rows)?;
                stored = row.as_ref().map(|(state, _)| state.clone());
                partition.copy(place, row)
            }
            Role::Fallback(targets) => {
                hints = self.known_hints(place, targets, rows)?;
                raw(&hints)
            }
        };
        if let Some(mut minted) = self.taken_before(place, role, order, &before, rows)? {
            *known = true;
            if let Role::Fallback(targets) = role {
                // The request is here already: a refusal now cannot promise that it will not be applied.
                let completed = self.complete_hints(place, &hints, targets, request, &minted, rows);
                minted.position = minted.position.max(completed.map_err(Failure::after_sending)?);
            }
            return Ok(minted);
        }
        self.refuse_put_back()?;
        self.admit(partition, role, order)?;
        let supersedes = self.superseded(role, order, &before, partition)?;
        let dot = Dot { incarnation: self.incarnation, counter: partition.counter + 1 };
        let stamp = self.stamp(&before.state);
        let sibling = order.value.clone().map(|value| Sibling { stamp, request, value });
        let write = Write { request, issued_at_ms: order.mutation.issued_at_ms, body: order.body };
        let new = New { supersedes: &supersedes, dot, write, sibling };
        let mut next = Partition { counter: dot.counter, ..partition.clone() };
        let (state, growth, change) = match role {
            Role::Primary => {
                let before = (stored.as_ref(), before.state);
                let change = self.mint_as_primary(place, order, new, before, &mut next, rows)?;
                (change.state.clone(), Vec::new(), Some(change))
            }
            Role::Fallback(targets) => {
                let known = (targets, &hints);
                let (state, growth) = self.mint_as_fallback(place, order, new, before.state, known, rows)?;
                (state, growth, None)
            }
        };
        let position = rows.commit(false)?;
        lock(&self.held).grow(&growth);
        if let Some(change) = &change {
            self.settle(&mut next, position, change);
        }
        *partition = next;
        tracing::debug!(%place, %dot, %request, ?role, "minted");
        Ok(Minted { state, covered: covered(supersedes, [dot], write), position, deduplicated: false })
    }

    /// The change whose state the others have to merge: filled.
    fn mint_as_primary(
        &self,
        place: &Place,
        order: &Order,
        New { supersedes, dot, write, sibling }: New<'_>,
        (stored, filled): (Option<&State>, State),
        next: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<Change, Stop> {
        let mut clock = next.clock.clone();
        let token = token(place.namespace, &place.key);
        let mut known = |request| rows.requests().dots_of(request, token);
        let change = primary::write(Some(filled), supersedes, (dot, write), sibling, &mut clock, &mut known);
        self.refuse_gaps(&change, next)?;
        next.clock = clock;
        self.check_size(&change.state, order)?;
        self.stage(place, stored, &change, next, rows)?;
        Ok(change)
    }

    /// The state that the others have to merge, raw, and by how much the hints grow.
    fn mint_as_fallback(
        &self,
        place: &Place,
        order: &Order,
        New { supersedes, dot, write, sibling }: New<'_>,
        mut state: State,
        (targets, hints): (&[NodeId], &Known),
        rows: &mut Rows<'_>,
    ) -> Result<(State, Vec<Growth>), Stop> {
        state.update(supersedes, dot, write, sibling);
        state.bury_twins(|_| Vec::new());
        self.check_size(&state, order)?;
        carry_some(&mut state, supersedes, (dot, write));
        let hint = Hint { counted: true, note: false, state: state.clone() };
        let growth = self.stage_hints(place, targets, &hint, hints, rows)?;
        Ok((state, growth))
    }

    /// What a write supersedes here.
    ///
    /// Errors: `BAD_CONTEXT` for a context that this node knows to be wrong. A delete is not acknowledged
    /// where it would delete nothing: `RESULT_UNKNOWN` for one that is sent again, `QUORUM_NOT_MET` where
    /// this node stands in for the primaries and holds nothing of the key.
    fn superseded(
        &self,
        role: Role<'_>,
        order: &Order,
        before: &Copy,
        partition: &Partition,
    ) -> Result<Seen, Failure> {
        let deletes = order.value.is_none();
        match &order.supersedes {
            Supersedes::Seen(seen) if seen.context.highest(self.incarnation) > partition.counter => {
                let message = "the causal context names writes that were never made";
                Err(Failure::new(Reason::BadContext, message))
            }
            Supersedes::Seen(seen) => Ok(seen.clone()),
            // A resend may be a twin of a write that was acknowledged elsewhere and superseded since: what is
            // observed now is not what the client meant, and may be what superseded it.
            Supersedes::Observed if order.is_resent() && !kv_types::mutant!(ObservedResendSupersedes) => {
                if deletes {
                    let message = "this node cannot tell whether the delete was taken before, and what it meant to delete: read, then decide";
                    return Err(Failure::new(Reason::ResultUnknown, message));
                }
                Ok(Seen::default())
            }
            // A put goes on: its value is kept beside what the primaries have.
            Supersedes::Observed if deletes && matches!(role, Role::Fallback(_)) && !before.known => {
                Err(nothing_to_delete())
            }
            Supersedes::Observed => Ok(before.state.seen()),
            Supersedes::Nothing => Ok(Seen::default()),
        }
    }

    /// The proof that this request was taken before, if there is one.
    fn taken_before(
        &self,
        place: &Place,
        role: Role<'_>,
        order: &Order,
        before: &Copy,
        rows: &Rows<'_>,
    ) -> Result<Option<Minted>, Failure> {
        let request = order.mutation.request_id;
        // With the record here is the entry that names the request: they came in one batch.
        let position = before.position;
        let (body, dots, same_key) = match role {
            Role::Primary => match rows.requests().get(request) {
                Some(taken) => {
                    let same_key = taken.is_of(place);
                    (taken.body, taken.dots, same_key)
                }
                None => return Ok(None),
            },
            Role::Fallback(_) => {
                let mine = before.state.writes.iter().filter(|(_, write)| write.request == request);
                let dots: Vec<Dot> = mine.clone().map(|(dot, _)| *dot).collect();
                match mine.map(|(_, write)| write.body).next() {
                    Some(body) => (body, dots, true),
                    None => return Ok(None),
                }
            }
        };
        if body != order.body || !same_key {
            let message = format!("request {request} was used before for something else");
            return Err(Failure::new(Reason::RequestIdReused, message));
        }
        // A node that catches up learns of requests before it has their writes. To answer for one of those
        // would acknowledge what is not here: it is taken as a twin.
        let here = &before.state.record.context;
        let dots: Vec<Dot> = dots.into_iter().filter(|dot| here.covers(*dot)).collect();
        if dots.is_empty() {
            return Ok(None);
        }
        // As the first answer said it. What the client states that it has seen is superseded by this write
        // wherever it was minted; what a replica observed then is not known any more.
        let supersedes = match &order.supersedes {
            Supersedes::Seen(seen) => seen.clone(),
            _ => Seen::default(),
        };
        let write = Write { request, issued_at_ms: order.mutation.issued_at_ms, body: order.body };
        let covered = covered(supersedes, dots, write);
        Ok(Some(Minted { state: before.state.clone(), covered, position, deduplicated: true }))
    }

    /// Whether a new request may still be told from an old one.
    fn admit(&self, partition: &Partition, role: Role<'_>, order: &Order) -> Result<(), Failure> {
        let now = self.env.clock.wall_ms();
        let window = REQUEST_WINDOW.as_millis() as u64;
        let issued = order.mutation.issued_at_ms;
        if issued.saturating_add(window) < now {
            let message =
                "the request was issued too long ago to tell whether it was taken: read, then decide";
            return Err(Failure::new(Reason::RequestExpired, message).with("window_ms", window));
        }
        if issued > now.saturating_add(window) {
            let message = "the request claims to have been issued in the future: set the client's clock";
            return Err(Failure::new(Reason::RequestIdInvalid, message).with("window_ms", window));
        }
        if let Role::Fallback(targets) = role {
            return if targets.is_empty() {
                Err(Failure::new(Reason::Internal, "there is no replica to stand in for"))
            } else {
                Ok(())
            };
        }
        if order.is_resent() && issued < partition.forgotten_ms {
            let message = "this replica has forgotten requests of that time and cannot tell whether it was taken: read, then decide";
            return Err(Failure::new(Reason::RequestExpired, message));
        }
        if issued < *lock(&self.proves_since_ms) {
            let message = "this replica lost its disk after the request was issued and cannot tell whether it was taken";
            return Err(Failure::new(Reason::RequestExpired, message));
        }
        Ok(())
    }

    fn check_size(&self, state: &State, order: &Order) -> Result<(), Failure> {
        let siblings = state.record.siblings.len();
        if order.value.is_some() && siblings > MAX_SIBLINGS {
            let message = format!(
                "the key would have {siblings} concurrent values: read it and write with its context"
            );
            return Err(Failure::new(Reason::LimitSiblings, message).with("limit", MAX_SIBLINGS));
        }
        let bytes: usize = state.record.siblings.values().map(|sibling| sibling.value.len()).sum();
        if order.value.is_some() && siblings > 1 && bytes > limits::RECORD_BYTES {
            let message = format!("the concurrent values of the key would have {bytes} bytes together");
            return Err(
                Failure::new(Reason::LimitSiblings, message).with("limit_bytes", limits::RECORD_BYTES)
            );
        }
        Ok(())
    }

    fn stamp(&self, before: &State) -> Hlc {
        let now = self.env.clock.wall_ms();
        let mut last = lock(&self.stamp);
        let seen = before.record.siblings.values().map(|sibling| sibling.stamp);
        let after = seen.fold(*last, |last, seen| Hlc::observe(last, seen, now));
        *last = Hlc::mint(after, now);
        *last
    }
}

/// A delete of what is observed, where nothing is: the primaries may have something.
pub(crate) fn nothing_to_delete() -> Failure {
    let message = "no node that keeps the key can be reached, so it is not known here what there is to delete: ask another node";
    Failure::new(Reason::QuorumNotMet, message)
}

/// What a client has seen after its write: what that superseded, and the write. Which requests the superseded
/// dots stood for was said with the write, and is not said again with the next one.
fn covered(supersedes: Seen, dots: impl IntoIterator<Item = Dot>, write: Write) -> Seen {
    let mut covered = Seen { context: supersedes.context, ..Seen::default() };
    for dot in dots {
        covered.context.insert(dot);
        covered.writes.insert(dot, write);
    }
    covered
}

/// Leaves a new hint with the last few of the superseded writes, and what the new one brought. The hints
/// before it have the others, and go to the same targets.
fn carry_some(state: &mut State, supersedes: &Seen, (dot, write): (Dot, Write)) {
    let superseded = std::mem::take(&mut state.writes);
    let live = |dot: &Dot| state.record.siblings.contains_key(dot);
    let mut kept: BTreeMap<Dot, Write> =
        superseded.iter().filter(|(dot, _)| live(dot)).map(|(dot, write)| (*dot, *write)).collect();
    kept.extend(supersedes.writes.iter().map(|(dot, write)| (*dot, *write)));
    kept.insert(dot, write);
    state.writes = kept;
    state.carry(superseded);
    // A note in the same row names writes whose record is elsewhere.
    let context = &state.record.context;
    state.writes.retain(|dot, _| context.covers(*dot));
}

//! Request ids. A strong group remembers a session's answers, and a session's first request must have been
//! answered before any other is sent: otherwise a late second request could not be told from one whose
//! session was forgotten.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_env::Entropy;
use kv_types::{ClientId, Failure, Reason, RequestId};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use crate::limits::{SESSION_REST, SESSION_SPAN};

/// Which sequence numbers are out, as a value.
#[derive(Debug)]
struct Seqs {
    next: u64,
    open: BTreeSet<u64>,
    used: Instant,
    /// The servers have forgotten the session.
    expired: bool,
}

impl Seqs {
    fn new(now: Instant) -> Self {
        Self { next: 1, open: BTreeSet::new(), used: now, expired: false }
    }

    fn lowest_unacked(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    /// The next number and the lowest that is still unanswered, this one included; `None` when the servers
    /// might not keep the answers of all between.
    fn issue(&mut self, now: Instant) -> Option<(u64, u64)> {
        let full = self.next - self.lowest_unacked() >= SESSION_SPAN;
        if self.expired || full || now.duration_since(self.used) >= SESSION_REST {
            return None;
        }
        let seq = self.next;
        self.next += 1;
        self.open.insert(seq);
        self.used = now;
        Some((seq, self.lowest_unacked()))
    }
}

/// One client id and its sequence numbers.
#[derive(Debug)]
pub(crate) struct Session {
    client_id: ClientId,
    seqs: Mutex<Seqs>,
}

impl Session {
    pub(crate) fn new(entropy: &Entropy) -> Arc<Self> {
        let client_id = ClientId(entropy.next_u128().max(1));
        Arc::new(Self { client_id, seqs: Mutex::new(Seqs::new(Instant::now())) })
    }

    /// The next request of this session; `None` when the session is used up.
    pub(crate) fn issue(self: &Arc<Self>) -> Option<Ticket> {
        let (seq, lowest_unacked) = lock(&self.seqs).issue(Instant::now())?;
        Some(Ticket { session: Arc::clone(self), seq, lowest_unacked, opening: None })
    }
}

/// The right to send one request, in as many attempts as it takes. Dropping it acknowledges the answer, or
/// the decision not to wait for one: either way this number is never sent again.
#[derive(Debug)]
pub(crate) struct Ticket {
    session: Arc<Session>,
    seq: u64,
    lowest_unacked: u64,
    /// Held by a session's first request while the others wait.
    opening: Option<OwnedMutexGuard<Opened>>,
}

impl Ticket {
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId { client_id: self.session.client_id, seq: self.seq }
    }

    pub(crate) fn lowest_unacked(&self) -> u64 {
        self.lowest_unacked
    }

    /// The request was answered: a session that it opened may now be used by others.
    pub(crate) fn answered(mut self) {
        if let Some(mut slot) = self.opening.take() {
            *slot = Some(Arc::clone(&self.session));
        }
    }

    /// The servers have forgotten the session: later requests open another one.
    pub(crate) fn expired(self) {
        lock(&self.session.seqs).expired = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.session.seqs).open.remove(&self.seq);
    }
}

type Opened = Option<Arc<Session>>;

/// The present session with one strong namespace, shared by the handles of a client. The first request
/// that finds it empty opens it; the others wait.
#[derive(Debug, Default)]
pub(crate) struct SessionSlot(Arc<tokio::sync::Mutex<Opened>>);

impl SessionSlot {
    /// The next request: waits, within the deadline, while another request opens the session.
    pub(crate) async fn begin(&self, entropy: &Entropy, deadline: Instant) -> Result<Ticket, Failure> {
        let Ok(mut opened) = timeout_at(deadline, Arc::clone(&self.0).lock_owned()).await else {
            return Err(Failure::new(
                Reason::DeadlineExpired,
                "the session's first write had no answer before this one's deadline; this one was never sent",
            ));
        };
        if let Some(ticket) = opened.as_ref().and_then(Session::issue) {
            return Ok(ticket);
        }
        *opened = None;
        let session = Session::new(entropy);
        let Some(mut ticket) = session.issue() else {
            return Err(Failure::new(Reason::ClientLimit, "a new session has no room"));
        };
        ticket.opening = Some(opened);
        Ok(ticket)
    }
}

fn lock(seqs: &Mutex<Seqs>) -> MutexGuard<'_, Seqs> {
    seqs.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn lowest_unacked_follows_the_oldest_open_request() {
        let session = Session::new(&Entropy::seeded(1));
        let first = session.issue().unwrap();
        let second = session.issue().unwrap();
        assert_eq!((first.seq, first.lowest_unacked()), (1, 1));
        assert_eq!((second.seq, second.lowest_unacked()), (2, 1));
        drop(first);
        assert_eq!(session.issue().unwrap().lowest_unacked(), 2);
        drop(second);
        assert_eq!(session.issue().unwrap().lowest_unacked(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_request_of_a_session_travels_alone() {
        let slot = SessionSlot::default();
        let entropy = Entropy::seeded(1);
        let first = slot.begin(&entropy, soon()).await.unwrap();
        assert_eq!(first.request_id().seq, 1);
        let refused = slot.begin(&entropy, soon()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::DeadlineExpired);
        let client_id = first.request_id().client_id;
        first.answered();
        let second = slot.begin(&entropy, soon()).await.unwrap();
        let third = slot.begin(&entropy, soon()).await.unwrap();
        assert_eq!(second.request_id(), RequestId { client_id, seq: 2 });
        assert_eq!(third.request_id().seq, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_did_not_open_is_discarded() {
        let slot = SessionSlot::default();
        let entropy = Entropy::seeded(1);
        let first = slot.begin(&entropy, soon()).await.unwrap();
        let id = first.request_id();
        drop(first);
        let second = slot.begin(&entropy, soon()).await.unwrap();
        assert_eq!(second.request_id().seq, 1);
        assert_ne!(second.request_id().client_id, id.client_id);
    }

    #[tokio::test(start_paused = true)]
    async fn forgotten_idle_and_full_sessions_are_left() {
        let slot = SessionSlot::default();
        let entropy = Entropy::seeded(1);
        let mut ids = BTreeSet::new();
        let first = slot.begin(&entropy, soon()).await.unwrap();
        ids.insert(first.request_id().client_id);
        first.answered();
        slot.begin(&entropy, soon()).await.unwrap().expired();
        let again = slot.begin(&entropy, soon()).await.unwrap();
        assert!(ids.insert(again.request_id().client_id), "forgotten");
        again.answered();
        tokio::time::advance(SESSION_REST).await;
        let rested = slot.begin(&entropy, soon()).await.unwrap();
        assert!(ids.insert(rested.request_id().client_id), "idle");
        rested.answered();
        let stuck = slot.begin(&entropy, soon()).await.unwrap();
        for _ in 1..SESSION_SPAN {
            slot.begin(&entropy, soon()).await.unwrap();
        }
        let fresh = slot.begin(&entropy, soon()).await.unwrap();
        assert!(ids.insert(fresh.request_id().client_id), "its window is full");
        assert_eq!(stuck.request_id().seq, 2);
    }
}

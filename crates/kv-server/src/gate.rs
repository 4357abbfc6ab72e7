//! Where requests are let in: [`Admission`] behind a lock, and the place that a request holds from its first
//! byte until the last byte of its answer was taken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_types::{Failure, NodeId, Reason};
use tokio::time::Instant;

use crate::LimitSettings;
use crate::admission::{Admission, Amount, Class, Full};
use crate::limits::{OVERLOAD_RETRY_MS, STREAMS_PER_REQUEST};

/// The account of a node.
pub(crate) struct Gate {
    node: NodeId,
    limits: LimitSettings,
    admission: Mutex<Admission>,
    connections: AtomicU64,
    stopping: AtomicBool,
}

impl Gate {
    pub(crate) fn new(node: NodeId, limits: &LimitSettings) -> Self {
        let requests = limits.concurrent_requests;
        let bytes = usize::try_from(limits.buffered_size).unwrap_or(usize::MAX);
        let streams = requests.saturating_mul(STREAMS_PER_REQUEST);
        Self {
            node,
            limits: limits.clone(),
            admission: Mutex::new(Admission::new(streams, requests, bytes)),
            connections: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// A number for a new connection.
    pub(crate) fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// New requests are refused from here on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Requests and bytes under way, and the most bytes so far.
    pub(crate) fn held(&self) -> (Amount, usize) {
        self.admission().held()
    }

    /// A place for a request that arrives on a connection: `OVERLOADED` when the connection has its share.
    pub(crate) fn arrive(self: &Arc<Self>, connection: u64) -> Result<Arc<Place>, Failure> {
        self.admission().arrive(connection, Amount::ONE).map_err(|full| self.refusal(full))?;
        Ok(self.place(Some(connection)))
    }

    /// A place for a request that a peer passed on, whose bytes the links between nodes bound.
    pub(crate) fn forwarded(self: &Arc<Self>) -> Arc<Place> {
        self.place(None)
    }

    fn place(self: &Arc<Self>, connection: Option<u64>) -> Arc<Place> {
        let held = Mutex::new(Held { amount: Amount::ONE, class: None });
        Arc::new(Place { gate: Arc::clone(self), connection, arrived: Instant::now(), held })
    }

    fn admission(&self) -> MutexGuard<'_, Admission> {
        lock(&self.admission)
    }

    fn refusal(&self, full: Full) -> Failure {
        let (what, limit) = match full {
            Full::Connection => ("this connection", self.limits.concurrent_requests * STREAMS_PER_REQUEST),
            Full::Class => ("this namespace", self.limits.concurrent_requests),
        };
        let message = format!(
            "{}: {what} has its share of the requests and bytes that may be under way ({limit} requests, {} bytes in all)",
            self.node, self.limits.buffered_size
        );
        Failure::new(Reason::Overloaded, message)
            .with("limit", limit)
            .with("limit_bytes", self.limits.buffered_size)
            .retry_after_ms(OVERLOAD_RETRY_MS)
    }
}

/// The place of one request. It is given back when its last holder is gone: the task that serves it, a write
/// that is seen through although its caller left, and every piece of its answer that was not sent.
pub(crate) struct Place {
    gate: Arc<Gate>,
    connection: Option<u64>,
    arrived: Instant,
    held: Mutex<Held>,
}

struct Held {
    amount: Amount,
    class: Option<Class>,
}

impl Place {
    /// When the request began to arrive: what its deadline counts from.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Makes room for bytes before they are buffered: `OVERLOADED` when there is none.
    pub(crate) fn hold(&self, bytes: usize) -> Result<(), Failure> {
        let mut held = lock(&self.held);
        let (more, mut admission) = (Amount::bytes(bytes), self.gate.admission());
        if let Some(connection) = self.connection {
            admission.arrive(connection, more).map_err(|full| self.gate.refusal(full))?;
        }
        if let Some(class) = held.class
            && let Err(full) = admission.enter(class, more)
        {
            if let Some(connection) = self.connection {
                admission.depart(connection, more);
            }
            return Err(self.gate.refusal(full));
        }
        held.amount.bytes += bytes;
        Ok(())
    }

    /// Counts bytes whether there is room or not: the answer of a write that was applied is not refused.
    pub(crate) fn hold_anyway(&self, bytes: usize) {
        let mut held = lock(&self.held);
        let (more, mut admission) = (Amount::bytes(bytes), self.gate.admission());
        if let Some(connection) = self.connection {
            admission.arrive_anyway(connection, more);
        }
        if let Some(class) = held.class {
            admission.enter_anyway(class, more);
        }
        held.amount.bytes += bytes;
    }

    /// Lets the request in under its class: `SHUTTING_DOWN` or `OVERLOADED`. Once for each request; it stays
    /// counted until the place is given back.
    pub(crate) fn enter(&self, class: Class) -> Result<(), Failure> {
        if self.gate.stopping.load(Ordering::Relaxed) && class != Class::Health {
            return Err(Failure::new(Reason::ShuttingDown, format!("{} is stopping", self.gate.node)));
        }
        let mut held = lock(&self.held);
        let mut admission = self.gate.admission();
        if let Some(earlier) = held.class.take() {
            admission.leave(earlier, held.amount);
        }
        admission.enter(class, held.amount).map_err(|full| self.gate.refusal(full))?;
        held.class = Some(class);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut admission = self.gate.admission();
        if let Some(connection) = self.connection {
            admission.depart(connection, held.amount);
        }
        if let Some(class) = held.class {
            admission.leave(class, held.amount);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

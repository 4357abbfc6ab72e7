//! What a node is given instead of the real world: clock, entropy, listener and dialer. A node that takes
//! everything through [`Env`] runs unchanged in production and inside a seeded simulation. Durations and
//! deadlines come from `tokio::time`, which a simulation controls already; only wall time needs a name here.

mod clock;
mod entropy;
mod network;
mod ports;

use std::sync::Arc;

pub use clock::{Clock, SystemClock};
pub use entropy::Entropy;
pub use network::{Connection, ConnectionInfo, Introduced, Listener, Network, ReceivedBytes, TcpNetwork};
pub use ports::{choose_port, port_is_free};

/// Everything that a node may not take for itself.
#[derive(Clone)]
pub struct Env {
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Entropy,
    /// Sockets.
    pub network: Arc<dyn Network>,
}

impl Env {
    /// The real world.
    pub fn real() -> Self {
        Self { clock: Arc::new(SystemClock), entropy: Entropy::system(), network: Arc::new(TcpNetwork) }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env")
    }
}

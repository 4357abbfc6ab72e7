//! A client of one cluster, from which the handles of namespaces and the administration come.

use std::sync::Arc;

use kv_env::Env;

use crate::attempts::Attempts;
use crate::options::ClientOptions;
use crate::outcome::Error;
use crate::{Admin, Available, Strong};

/// A client of one cluster. Cheap to clone; clones share connections, budget, breakers and sessions.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Attempts>);

impl Client {
    /// A client for these nodes. Connections are opened by the operations that need them, so a cluster that
    /// is down is reported by those; options that make no sense are refused here.
    pub fn connect(options: ClientOptions) -> Result<Self, Error> {
        Self::connect_in(options, Env::real())
    }

    /// The same with another clock, randomness and network, as inside a simulation.
    pub fn connect_in(options: ClientOptions, env: Env) -> Result<Self, Error> {
        Ok(Self(Arc::new(Attempts::new(options, env)?)))
    }

    /// A strong namespace: linearizable, refuses in a minority.
    pub fn strong(&self, namespace: impl Into<String>) -> Strong {
        Strong::new(Arc::clone(&self.0), namespace.into())
    }

    /// An available namespace: answers in a minority, keeps concurrent writes as siblings.
    pub fn available(&self, namespace: impl Into<String>) -> Available {
        Available::new(Arc::clone(&self.0), namespace.into())
    }

    /// Namespaces, topology, status.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.0))
    }

    /// The endpoints it was given, as `host:port`.
    pub fn endpoints(&self) -> &[String] {
        &self.0.options.endpoints
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.0.options.endpoints).finish_non_exhaustive()
    }
}

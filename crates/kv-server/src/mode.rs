//! A side of CAP, as the router sees it: whatever serves the calls of its namespaces.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use kv_dynamo::Available;
use kv_raft::Strong;
use kv_types::{Answer, Call, Failure, Hop, Namespace};
use tokio::time::Instant;

/// Serves the calls of the namespaces of one mode.
pub(crate) trait ModeService: Send + Sync {
    /// Answers a call, which suits the mode. A read may be dropped at any time; a mutation is seen through.
    fn serve(
        &self,
        namespace: Arc<Namespace>,
        call: Call,
        deadline: Instant,
        hop: Hop,
    ) -> BoxFuture<'static, Result<Answer, Failure>>;
}

impl ModeService for Strong {
    fn serve(
        &self,
        namespace: Arc<Namespace>,
        call: Call,
        deadline: Instant,
        hop: Hop,
    ) -> BoxFuture<'static, Result<Answer, Failure>> {
        let this = self.clone();
        Box::pin(async move { this.serve(&namespace, call, deadline, hop).await })
    }
}

impl ModeService for Available {
    fn serve(
        &self,
        namespace: Arc<Namespace>,
        call: Call,
        deadline: Instant,
        hop: Hop,
    ) -> BoxFuture<'static, Result<Answer, Failure>> {
        let this = self.clone();
        Box::pin(async move { this.serve(&namespace, call, deadline, hop).await })
    }
}

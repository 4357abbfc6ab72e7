//! The standard health service, by mode: in a minority one side of CAP serves and the other does not.

use std::sync::Arc;
use std::time::Duration;

use kv_types::GroupId;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::limits::HEALTH_EVERY;
use crate::notices::{Sight, Told};
use crate::router::Router;

/// Serving while this node believes that a quorum of the data group is reachable.
pub(crate) const STRONG: &str = "quorate.v1.KvService/strong";
/// Serving as soon as this node can route.
pub(crate) const AVAILABLE: &str = "quorate.v1.KvService/available";

/// Tells no while the node starts and while it stops.
pub(crate) async fn announce(reporter: &HealthReporter, strong: bool, available: bool) {
    let status = |serving| if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status(STRONG, status(strong)).await;
    reporter.set_service_status(AVAILABLE, status(available)).await;
}

/// Keeps the announcements true until the node stops.
pub(crate) async fn follow(router: Arc<Router>, reporter: HealthReporter, mut stop: watch::Receiver<bool>) {
    let (mut announced, mut told, begun) = (None, Told::default(), Instant::now());
    loop {
        let available = !router.catalogue().members.is_empty();
        let groups = router.strong.status();
        let quorum = groups.iter().any(|group| group.group != GroupId::CATALOGUE.0 && group.quorum);
        // Without the catalogue no request finds its namespace, whatever the groups say.
        let strong = available && quorum;
        if announced != Some((strong, available)) {
            tracing::info!(strong, available, "serving");
            announce(&reporter, strong, available).await;
            announced = Some((strong, available));
        }
        let sight = Sight {
            peers: router.peers.snapshot().into_iter().collect(),
            groups,
            started: available,
            runs_for: begun.elapsed(),
        };
        for notice in told.look(&sight) {
            if notice.is_bad() {
                tracing::warn!("{notice}");
            } else {
                tracing::info!("{notice}");
            }
        }
        if stopped_within(&mut stop, HEALTH_EVERY).await {
            announce(&reporter, false, false).await;
            return;
        }
    }
}

async fn stopped_within(stop: &mut watch::Receiver<bool>, time: Duration) -> bool {
    tokio::time::timeout(time, stop.wait_for(|stop| *stop)).await.is_ok()
}

//! Strips records again that were ahead of the node clock when they were stored: a few at a time, as long as
//! there are any.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::limits;
use crate::node::{Node, stopped};

/// Strips until the node stops. A pass that strips nothing is followed by a longer pause: what such records
/// are waiting for may never come.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let mut after: Option<Bytes> = None;
    let (mut pause, mut before) = (limits::STRIP.0, 0);
    loop {
        let rest = if after.is_some() { limits::STRIP.2 } else { pause };
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(rest) => {}
        }
        if after.is_none() {
            before = node.replica.records_ahead();
        }
        if before == 0 {
            continue;
        }
        let deadline = Instant::now() + limits::BACKGROUND_READ;
        after = match node.replica.strip(after.as_ref(), deadline).await {
            Ok(next) => next,
            Err(failure) => {
                tracing::debug!(%failure, "records that are ahead of the node clock stay so for now");
                None
            }
        };
        if after.is_none() {
            let fewer = node.replica.records_ahead() < before;
            pause = if fewer { limits::STRIP.0 } else { (pause * 2).min(limits::STRIP_PAUSE_MAX) };
        }
    }
}

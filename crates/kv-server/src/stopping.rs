//! What the log leaves out while a node stops as it was asked to: the consensus library calls it an error
//! that its tasks end while others of them still speak. Everything else is logged, also then.

use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Whose words they are.
const SPEAKER: &str = "openraft";
/// What it says, in part, where one of its tasks has ended. What it says of the disk has none of these.
const ENDED: [&str; 11] = [
    "to RaftCore; when:",
    "failed to send RaftMsg to RaftCore",
    "failed to receive from RaftCore",
    "error: raft stopped",
    "RaftCore stopped: raft stopped",
    "failed to send apply complete event",
    "sm::Worker may have shutdown",
    "rx_notify",
    "to-Raft tx send error",
    "failed to send response to user tx",
    "failed to report metrics",
];

/// Whether this process was asked to stop.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// From here on it is as it should be that tasks end.
pub(crate) fn begin() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// Leaves out what a stop is to blame for.
pub(crate) struct Quiet;

impl<S: Subscriber> Layer<S> for Quiet {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let is_expected = STOPPING.load(Ordering::Relaxed) && event.metadata().target().starts_with(SPEAKER);
        !is_expected || !says_ended(event)
    }
}

fn says_ended(event: &Event<'_>) -> bool {
    let mut message = Message::default();
    event.record(&mut message);
    ENDED.iter().any(|part| message.0.contains(part))
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a string cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stop_that_was_asked_for_is_no_error_and_a_disk_that_fails_is_one() {
        let log = Log::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let log_here = tracing::Dispatch::new(tracing_subscriber::registry().with(Quiet).with(lines));
        let said = || {
            tracing::dispatcher::with_default(&log_here, || {
                tracing::error!(target: "openraft::raft::raft_inner", "failed to send RaftMsg to RaftCore: x, error: raft stopped");
                tracing::error!(target: "openraft::core::heartbeat::worker", "HeartbeatWorker failed to send Y to RaftCore; when:(z)");
                tracing::error!(target: "openraft::storage::callback", "io_completed: IOFlushed error: no space, while flushing IO: 7");
                tracing::error!(target: "kv_raft", "error: raft stopped, says one of ours");
            });
            let text = std::mem::take(&mut *log.0.lock().unwrap());
            String::from_utf8(text).unwrap().lines().count()
        };
        assert_eq!(said(), 4, "a node that runs");
        begin();
        assert_eq!(said(), 2, "the disk, and what is ours");
        STOPPING.store(false, Ordering::Relaxed);
    }
}

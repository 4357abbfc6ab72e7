//! Whether a task that must not end still runs. A panic in it is told to those who would stop the node: a
//! group without its steward takes no snapshots and does not watch its disk, and would fail much later.

use tokio::sync::watch;

/// Knows whether the task has panicked.
#[derive(Debug, Default)]
pub(crate) struct Attendance(watch::Sender<bool>);

/// Held by the task.
pub(crate) struct Present<'a>(&'a Attendance);

impl Attendance {
    /// The task begins.
    pub(crate) fn begin(&self) -> Present<'_> {
        Present(self)
    }

    /// Resolves when the task has panicked; never when it ended otherwise.
    pub(crate) async fn panicked(&self) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|panicked| *panicked).await;
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_and_an_end_is_not() {
        let attendance = Arc::new(Attendance::default());
        for panics in [false, true] {
            let task = attendance.clone();
            let ended = tokio::spawn(async move {
                let _present = task.begin();
                tokio::task::yield_now().await;
                assert!(!panics, "as the test wants it");
            });
            assert_eq!(ended.await.is_err(), panics);
            let told = timeout(Duration::from_secs(1), attendance.panicked()).await;
            assert_eq!(told.is_ok(), panics);
        }
    }
}

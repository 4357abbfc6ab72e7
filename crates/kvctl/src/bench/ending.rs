//! Ctrl-C, SIGTERM and SIGHUP of a benchmark, which says what it has measured and removes what it made before
//! it ends. They are heard from the beginning on, whatever is under way, and none is missed in between.

use std::future::pending;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often it was asked to end.
#[derive(Debug, Clone)]
pub(super) struct Ending(watch::Receiver<u32>);

impl Ending {
    /// From here on the signals are heard, and not the end of the process.
    pub(super) fn listen() -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (tell, heard) = watch::channel(0_u32);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                tell.send_modify(|times| *times = times.saturating_add(1));
            }
        });
        Ok(Self(heard))
    }

    /// How often it was asked to end until now.
    pub(super) fn times(&self) -> u32 {
        *self.0.borrow()
    }

    /// Resolves when it was asked more than so often, at once if that is so already.
    pub(super) async fn asked(&self, more_than: u32) {
        if self.0.clone().wait_for(|times| *times > more_than).await.is_err() {
            // Signals are not heard any more.
            pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_is_heard_also_before_it_is_waited_for() {
        let (tell, heard) = watch::channel(0);
        let ending = Ending(heard);
        tell.send_modify(|times| *times += 1);
        ending.asked(0).await;
        assert_eq!(ending.times(), 1);
        tokio::select! {
            biased;
            () = ending.asked(1) => panic!("it was asked once"),
            () = std::future::ready(()) => {}
        }
        tell.send_modify(|times| *times += 1);
        ending.asked(1).await;
    }
}

//! Ctrl-C, SIGTERM and SIGHUP of a benchmark, which says what it has measured and removes what it made before
//! it ends. They are heard from the beginning on, whatever is under way, and none is missed in between.

use std::future::pending;
use std::time::Duration;

use kv_lab::EndSignal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::exit::Exit;

/// What comes sooner than this after what was heard is the same word once more: of Ctrl-C a line of a script
/// is told by the terminal, and by its shell. No person asks twice so fast.
const SAME: Duration = Duration::from_millis(400);

/// How often it was asked to end, and how first.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    times: u32,
    first: Option<EndSignal>,
    last: Option<Instant>,
}

impl Asked {
    /// Once more, at this time, unless it is the same word.
    fn again(&mut self, how: EndSignal, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < SAME) {
            return;
        }
        self.last = Some(now);
        self.times = self.times.saturating_add(1);
        self.first.get_or_insert(how);
    }
}

/// What has been heard.
#[derive(Debug, Clone)]
pub(super) struct Ending(watch::Receiver<Asked>);

impl Ending {
    /// From here on the signals are heard, and not the end of the process.
    pub(super) fn listen() -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (tell, heard) = watch::channel(Asked::default());
        tokio::spawn(async move {
            loop {
                let how = tokio::select! {
                    biased;
                    _ = interrupt.recv() => EndSignal::Interrupt,
                    _ = terminate.recv() => EndSignal::Terminate,
                    _ = hangup.recv() => EndSignal::HangUp,
                };
                tell.send_modify(|asked| asked.again(how, Instant::now()));
            }
        });
        Ok(Self(heard))
    }

    /// How often it was asked to end until now.
    pub(super) fn times(&self) -> u32 {
        self.0.borrow().times
    }

    /// How a benchmark ends that was asked to.
    pub(super) fn exit(&self) -> Exit {
        self.0.borrow().first.map_or(Exit::Interrupted, Exit::of_signal)
    }

    /// Resolves when it was asked more than so often, at once if that is so already.
    pub(super) async fn asked(&self, more_than: u32) {
        if self.0.clone().wait_for(|asked| asked.times > more_than).await.is_err() {
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
        let (tell, heard) = watch::channel(Asked::default());
        let ending = Ending(heard);
        let now = Instant::now();
        tell.send_modify(|asked| asked.again(EndSignal::Terminate, now));
        // Of the terminal and of the shell: that is one word.
        tell.send_modify(|asked| asked.again(EndSignal::Interrupt, now + SAME / 2));
        ending.asked(0).await;
        assert_eq!((ending.times(), ending.exit()), (1, Exit::Terminated));
        tokio::select! {
            biased;
            () = ending.asked(1) => panic!("it was asked once"),
            () = std::future::ready(()) => {}
        }
        tell.send_modify(|asked| asked.again(EndSignal::Interrupt, now + SAME));
        ending.asked(1).await;
        assert_eq!(ending.exit(), Exit::Terminated, "the first one counts");
    }
}

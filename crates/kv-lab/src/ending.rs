//! How a process of a lab is asked to end. Ctrl-C and a service manager are told apart by the exit code.

use tokio::signal::unix::{SignalKind, signal};

/// The signal by which a process is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndSignal {
    /// Ctrl-C: SIGINT.
    Interrupt,
    /// SIGTERM, as from `kill` or a service manager.
    Terminate,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

impl EndSignal {
    /// The exit code of a program that ends because of it, as shells count it: 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::HangUp => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Resolves when this process is asked to end, and says how.
pub async fn interrupted() -> EndSignal {
    let wait = |kind, how| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
                how
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        how = wait(SignalKind::interrupt(), EndSignal::Interrupt) => how,
        how = wait(SignalKind::terminate(), EndSignal::Terminate) => how,
        how = wait(SignalKind::hangup(), EndSignal::HangUp) => how,
    }
}

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

/// Resolves when this process is asked to end, and says how. The signals are heard from this call on, also
/// before it is waited for what comes of it.
pub fn interrupted() -> impl Future<Output = EndSignal> {
    let hear = |kind, how| {
        let heard = signal(kind);
        async move {
            match heard {
                Ok(mut heard) => {
                    heard.recv().await;
                    how
                }
                Err(_) => std::future::pending().await,
            }
        }
    };
    let interrupt = hear(SignalKind::interrupt(), EndSignal::Interrupt);
    let terminate = hear(SignalKind::terminate(), EndSignal::Terminate);
    let hangup = hear(SignalKind::hangup(), EndSignal::HangUp);
    async move {
        tokio::select! {
            biased;
            how = interrupt => how,
            how = terminate => how,
            how = hangup => how,
        }
    }
}

//! Exit codes: the contract with scripts (`kvctl help exit-codes`).

use std::process::ExitCode;

use kv_lab::EndSignal;
use kv_types::{Applied, Failure, Reason};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// A definite "no": key absent, mismatch, health not ok, history invalid.
    No = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Unavailable, not applied: safe to retry.
    Unavailable = 3,
    /// May have been applied.
    Unknown = 4,
    /// Refused or internal.
    Refused = 5,
    /// A pipe takes one value, and the key has several.
    Siblings = 6,
    /// SIGHUP, which a benchmark and a lab hear.
    HungUp = 129,
    /// Ctrl-C.
    Interrupted = 130,
    /// A line tells its shell so that no one reads what it says, as SIGPIPE would. The shell ends; no command
    /// that is typed ends with it.
    Unread = 141,
    /// SIGTERM.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// How a command ended that ran as a program of its own; none: a signal ended it.
    pub(crate) fn from_code(code: Option<i32>) -> Self {
        let answers = [Self::Done, Self::No, Self::Usage, Self::Unavailable, Self::Unknown, Self::Siblings];
        let ends = [Self::HungUp, Self::Interrupted, Self::Terminated, Self::Unread];
        let Some(code) = code else { return Self::Interrupted };
        let known = answers.into_iter().chain(ends).find(|exit| *exit as i32 == code);
        known.unwrap_or(Self::Refused)
    }

    /// How a command ends that was asked to end.
    pub(crate) fn of_signal(signal: EndSignal) -> Self {
        match signal {
            EndSignal::HangUp => Self::HungUp,
            EndSignal::Interrupt => Self::Interrupted,
            EndSignal::Terminate => Self::Terminated,
        }
    }

    /// Whether it was asked to end, and did not come to its own end.
    pub(crate) fn is_of_signal(self) -> bool {
        matches!(self, Self::HungUp | Self::Interrupted | Self::Terminated)
    }

    /// The code of a failed operation.
    pub(crate) fn of(failure: &Failure) -> Self {
        if failure.applied != Applied::No {
            return Self::Unknown;
        }
        match failure.reason {
            Reason::NotLeader
            | Reason::NoQuorum
            | Reason::QuorumNotMet
            | Reason::DeadlineExpired
            | Reason::Overloaded
            | Reason::LimitHints
            | Reason::LimitRequests
            | Reason::WrongEpoch
            | Reason::NotReady
            | Reason::ShuttingDown
            | Reason::Unreachable
            | Reason::ClientLimit
            // Of reads, which have no effect whatever went wrong:
            | Reason::ResultUnknown
            | Reason::PartialWrite
            | Reason::ConnectionLost => Self::Unavailable,
            Reason::ModeMissing | Reason::InvalidRequest | Reason::NamespaceInvalid => Self::Usage,
            Reason::DeadlineMissing
            | Reason::RequestIdReused
            | Reason::RequestIdInvalid
            | Reason::ModeMismatch
            | Reason::LimitStorage
            | Reason::EmptyKey
            | Reason::LimitKey
            | Reason::LimitValue
            | Reason::LimitSiblings
            | Reason::LimitNamespaces
            | Reason::BadContext
            | Reason::ForeignContext
            | Reason::ContextMissing
            | Reason::WrongCluster
            | Reason::WrongGroup
            | Reason::WrongNode
            | Reason::SessionExpired
            | Reason::RequestExpired
            | Reason::NamespaceUnknown
            | Reason::NamespaceExists
            | Reason::DeletionPending
            | Reason::StorageFailed
            | Reason::Internal => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_code_that_its_outcome_allows() {
        for reason in Reason::ALL {
            let failure = Failure::new(*reason, "x");
            let exit = Exit::of(&failure);
            match reason.applied() {
                Applied::No => {
                    assert!(matches!(exit, Exit::Unavailable | Exit::Refused | Exit::Usage), "{reason}")
                }
                _ => assert_eq!(exit, Exit::Unknown, "{reason}"),
            }
            assert_eq!(Exit::of(&failure.clone().after_sending()), Exit::Unknown, "{reason}");
            assert_ne!(Exit::of(&failure.of_read()), Exit::Unknown, "{reason}: a read has no effect");
        }
        assert_eq!(Exit::of(&Failure::new(Reason::NoQuorum, "")), Exit::Unavailable);
        assert_eq!(Exit::of(&Failure::new(Reason::ModeMismatch, "")), Exit::Refused);
        assert_eq!(Exit::of(&Failure::new(Reason::RequestExpired, "")), Exit::Unknown);
    }

    #[test]
    fn the_numbers_are_fixed() {
        let all = [Exit::Done, Exit::No, Exit::Usage, Exit::Unavailable, Exit::Unknown, Exit::Refused];
        assert_eq!(all.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5]);
        assert_eq!((Exit::Siblings as u8, Exit::Interrupted as u8), (6, 130));
        assert_eq!((Exit::HungUp as u8, Exit::Terminated as u8), (129, 143));
        let others = [Exit::Siblings, Exit::Interrupted, Exit::Terminated, Exit::HungUp, Exit::Unread];
        for exit in all.into_iter().chain(others) {
            assert_eq!(Exit::from_code(Some(exit as i32)), exit);
        }
        for signal in [EndSignal::HangUp, EndSignal::Interrupt, EndSignal::Terminate] {
            let exit = Exit::of_signal(signal);
            assert_eq!(exit as u8, signal.exit_code());
            assert!(exit.is_of_signal() && !all.iter().any(|other| other.is_of_signal()));
        }
        assert_eq!((Exit::from_code(None), Exit::from_code(Some(99))), (Exit::Interrupted, Exit::Refused));
    }
}

//! What a leader may send back for a request that was passed on to it.

use kv_proto::peer::forward_reply::Response as ForwardedReply;
use kv_proto::{admin, v1};
use kv_types::{Answer, Degradation, Failure, Reason};

/// What may come back from the leader, marked as come through another node.
pub(super) trait FromLeader: Sized {
    fn from_reply(reply: ForwardedReply) -> Result<Self, Failure>;

    /// The epoch of the catalogue that it was decided by, of a change of a namespace.
    fn epoch(&self) -> Option<u64> {
        None
    }
}

impl FromLeader for Answer {
    fn from_reply(reply: ForwardedReply) -> Result<Self, Failure> {
        Self::try_from(reply).map(Self::forwarded)
    }
}

/// A change of a namespace that was decided, and its evidence.
pub(super) struct Changed {
    pub(super) namespace: admin::Namespace,
    pub(super) receipt: v1::Receipt,
}

/// Answers to changes of namespaces, which all say the same.
macro_rules! changes {
    ($($response:ident of $forwarded:ident;)*) => {$(
        impl FromLeader for admin::$response {
            fn from_reply(reply: ForwardedReply) -> Result<Self, Failure> {
                let ForwardedReply::$forwarded(mut answer) = reply else { return Err(unexpected_reply()) };
                forwarded(answer.receipt.as_mut());
                Ok(answer)
            }

            fn epoch(&self) -> Option<u64> {
                self.receipt.as_ref().map(|receipt| receipt.epoch)
            }
        }

        impl From<Changed> for admin::$response {
            fn from(Changed { namespace, receipt }: Changed) -> Self {
                Self { namespace: Some(namespace), receipt: Some(receipt) }
            }
        }
    )*};
}

changes! {
    CreateNamespaceResponse of CreateNamespace;
    DeleteNamespaceResponse of DeleteNamespace;
    ScheduleDeletionResponse of ScheduleDeletion;
    UndeleteNamespaceResponse of UndeleteNamespace;
    AlterNamespaceResponse of AlterNamespace;
}

/// The receipt says that the answer came through another node.
fn forwarded(receipt: Option<&mut v1::Receipt>) {
    let forwarded = v1::Degradation::from(Degradation::Forwarded).into();
    if let Some(receipt) = receipt.filter(|receipt| !receipt.degraded.contains(&forwarded)) {
        receipt.degraded.push(forwarded);
        receipt.degraded.sort_unstable();
    }
}

impl FromLeader for admin::TransferLeaderResponse {
    fn from_reply(reply: ForwardedReply) -> Result<Self, Failure> {
        match reply {
            ForwardedReply::TransferLeader(answer) => Ok(answer),
            _ => Err(unexpected_reply()),
        }
    }
}

/// A reply that does not belong to what was asked.
pub(super) fn unexpected_reply() -> Failure {
    Failure::new(Reason::Internal, "unexpected response type")
}

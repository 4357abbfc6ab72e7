//! The responses that a leader may send back for a request that was passed on to it.

use kv_proto::peer::forward_reply::Response as ForwardedReply;
use kv_proto::{admin, v1};
use kv_types::{Failure, Reason};

/// A response that may come back from the leader.
pub(super) trait Answer: Sized {
    fn from_reply(reply: ForwardedReply) -> Option<Self>;
    fn receipt_mut(&mut self) -> Option<&mut v1::Receipt>;
}

macro_rules! answers {
    ($($message:ty = $variant:ident, $receipt:expr;)*) => {$(
        impl Answer for $message {
            fn from_reply(reply: ForwardedReply) -> Option<Self> {
                match reply {
                    ForwardedReply::$variant(answer) => Some(answer),
                    _ => None,
                }
            }

            fn receipt_mut(&mut self) -> Option<&mut v1::Receipt> {
                let receipt: fn(&mut Self) -> Option<&mut v1::Receipt> = $receipt;
                receipt(self)
            }
        }
    )*};
}

answers! {
    v1::GetResponse = Get, |answer| answer.receipt.as_mut();
    v1::PutResponse = Put, |answer| answer.receipt.as_mut();
    v1::DeleteResponse = Delete, |answer| answer.receipt.as_mut();
    v1::CompareAndSetResponse = CompareAndSet, |answer| answer.receipt.as_mut();
    admin::CreateNamespaceResponse = CreateNamespace, |answer| answer.receipt.as_mut();
    admin::TransferLeaderResponse = TransferLeader, |_| None;
}

/// A reply that does not belong to what was asked.
pub(super) fn unexpected_reply() -> Failure {
    Failure::new(Reason::Internal, "unexpected response type")
}

//! Requests and answers as parts of a session's frames. What they mean is what the unary calls mean.

use bytes::Bytes;
use kv_types::{Failure, Reason};
use prost::Message;
use tonic::{Code, Status};

use crate::calls::DataRequest;
use crate::v1::session_answer::Answer;
use crate::v1::session_request::Request;
use crate::{failure_from_status, status_from_failure, v1};

/// A request that may travel in a session.
pub trait SessionCall: DataRequest + Into<Request> {
    /// Its answer, or the failure that came instead. What cannot be read says nothing about a mutation.
    fn answered(answer: Option<Answer>) -> Result<Self::Response, Failure>;
}

macro_rules! calls {
    ($($part:ident: $request:ident -> $response:ident;)*) => {
        $(
            impl From<v1::$request> for Request {
                fn from(request: v1::$request) -> Self {
                    Self::$part(request)
                }
            }

            impl From<v1::$response> for Answer {
                fn from(response: v1::$response) -> Self {
                    Self::$part(response)
                }
            }

            impl SessionCall for v1::$request {
                fn answered(answer: Option<Answer>) -> Result<Self::Response, Failure> {
                    match answer {
                        Some(Answer::$part(response)) => Ok(response),
                        Some(Answer::Status(status)) => Err(failure_of(status)),
                        _ => Err(Failure::new(Reason::Internal, "the answer does not belong to what was asked")),
                    }
                }
            }
        )*
    };
}

calls! {
    Get: GetRequest -> GetResponse;
    Put: PutRequest -> PutResponse;
    Delete: DeleteRequest -> DeleteResponse;
    CompareAndSet: CompareAndSetRequest -> CompareAndSetResponse;
}

impl From<&Failure> for Answer {
    fn from(failure: &Failure) -> Self {
        Self::Status(Bytes::copy_from_slice(status_from_failure(failure).details()))
    }
}

/// The code and the message of a `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// What a failure became as an answer, read back.
fn failure_of(status: Bytes) -> Failure {
    match Head::decode(status.clone()) {
        Ok(head) => failure_from_status(&Status::with_details(Code::from(head.code), head.message, status)),
        Err(error) => Failure::new(Reason::ConnectionLost, format!("a failure that cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Applied, RequestId};

    #[test]
    fn every_reason_survives_a_session_as_it_does_the_unary_call() {
        for reason in Reason::ALL {
            for applied in [Applied::No, Applied::Unknown] {
                let id = RequestId { client_id: kv_types::ClientId(9), seq: 4 };
                let mut failure = Failure::new(*reason, "what happened")
                    .with("leader", "n3")
                    .of_request(id)
                    .retry_after_ms(25);
                failure.applied = applied;
                let unary = failure_from_status(&status_from_failure(&failure));
                let session = v1::PutRequest::answered(Some((&failure).into())).unwrap_err();
                assert_eq!(session, unary);
                assert_eq!(session, failure);
            }
        }
    }

    #[test]
    fn another_answer_or_none_leaves_the_fate_of_a_mutation_open() {
        for answer in
            [None, Some(v1::GetResponse::default().into()), Some(Answer::Status(Bytes::from_static(b"x")))]
        {
            assert_eq!(v1::PutRequest::answered(answer).unwrap_err().applied, Applied::Unknown);
        }
    }
}

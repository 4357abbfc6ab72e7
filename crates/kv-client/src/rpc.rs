//! The calls of the two public services as one trait, so that one loop drives them all.

use futures_util::future::BoxFuture;
use kv_proto::admin::admin_service_client::AdminServiceClient;
use kv_proto::v1::kv_service_client::KvServiceClient;
use kv_proto::v1::session_answer::Answer as SessionAnswer;
use kv_proto::v1::session_request::Request as SessionRequest;
use kv_proto::{SessionCall, admin, v1};
use kv_types::{Failure, Reason};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::endpoint::MESSAGE_BYTES;

/// A request that knows its call.
pub(crate) trait Rpc: Clone + Send + Sync + 'static {
    /// The answer.
    type Reply: Send;

    /// Writes the number of the attempt into the request; its identity stays the same.
    fn stamp(&mut self, attempt: u32);

    /// What it is in a session stream; itself, if it does not travel there.
    fn in_session(self) -> Result<SessionRequest, Self>;

    /// The answer that came in a session stream.
    fn from_session(answer: Option<SessionAnswer>) -> Result<Self::Reply, Failure>;

    /// Sends it.
    fn send(
        channel: Channel,
        request: Request<Self>,
    ) -> BoxFuture<'static, Result<Response<Self::Reply>, Status>>;
}

/// Requests that travel in session streams.
macro_rules! in_sessions {
    (yes) => {
        fn in_session(self) -> Result<SessionRequest, Self> {
            Ok(self.into())
        }

        fn from_session(answer: Option<SessionAnswer>) -> Result<Self::Reply, Failure> {
            <Self as SessionCall>::answered(answer)
        }
    };
    (no) => {
        fn in_session(self) -> Result<SessionRequest, Self> {
            Err(self)
        }

        fn from_session(_: Option<SessionAnswer>) -> Result<Self::Reply, Failure> {
            Err(Failure::new(Reason::Internal, "this call does not travel in a session"))
        }
    };
}

macro_rules! calls {
    ($client:ident, $package:ident, in sessions $in_sessions:ident: $($method:ident($request:ident) -> $reply:ident $(, stamps $mutation:ident)?;)*) => {
        $(impl Rpc for $package::$request {
            type Reply = $package::$reply;

            fn stamp(&mut self, attempt: u32) {
                let _ = attempt;
                $(if let Some(mutation) = &mut self.$mutation {
                    mutation.attempt = attempt;
                })?
            }

            in_sessions!($in_sessions);

            fn send(
                channel: Channel,
                request: Request<Self>,
            ) -> BoxFuture<'static, Result<Response<Self::Reply>, Status>> {
                Box::pin(async move {
                    $client::new(channel)
                        .max_decoding_message_size(MESSAGE_BYTES)
                        .max_encoding_message_size(MESSAGE_BYTES)
                        .$method(request)
                        .await
                })
            }
        })*
    };
}

calls! { KvServiceClient, v1, in sessions yes:
    get(GetRequest) -> GetResponse;
    put(PutRequest) -> PutResponse, stamps mutation;
    delete(DeleteRequest) -> DeleteResponse, stamps mutation;
    compare_and_set(CompareAndSetRequest) -> CompareAndSetResponse, stamps mutation;
}

calls! { AdminServiceClient, admin, in sessions no:
    create_namespace(CreateNamespaceRequest) -> CreateNamespaceResponse, stamps mutation;
    delete_namespace(DeleteNamespaceRequest) -> DeleteNamespaceResponse, stamps mutation;
    schedule_deletion(ScheduleDeletionRequest) -> ScheduleDeletionResponse, stamps mutation;
    undelete_namespace(UndeleteNamespaceRequest) -> UndeleteNamespaceResponse, stamps mutation;
    alter_namespace(AlterNamespaceRequest) -> AlterNamespaceResponse, stamps mutation;
    list_namespaces(ListNamespacesRequest) -> ListNamespacesResponse;
    get_topology(GetTopologyRequest) -> GetTopologyResponse;
    get_status(GetStatusRequest) -> GetStatusResponse;
    transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse;
    get_ring_owners(GetRingOwnersRequest) -> GetRingOwnersResponse;
    explain_key(ExplainKeyRequest) -> ExplainKeyResponse;
    get_digest(GetDigestRequest) -> GetDigestResponse;
}

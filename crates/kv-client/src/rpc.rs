//! The calls of the two public services as one trait, so that one loop drives them all.

use futures_util::future::BoxFuture;
use kv_proto::admin::admin_service_client::AdminServiceClient;
use kv_proto::v1::kv_service_client::KvServiceClient;
use kv_proto::{admin, v1};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::endpoint::MESSAGE_BYTES;

/// A request that knows its call.
pub(crate) trait Rpc: Clone + Send + Sync + 'static {
    /// The answer.
    type Reply: Send;

    /// Writes the number of the attempt into the request; its identity stays the same.
    fn stamp(&mut self, attempt: u32);

    /// Sends it.
    fn send(
        channel: Channel,
        request: Request<Self>,
    ) -> BoxFuture<'static, Result<Response<Self::Reply>, Status>>;
}

macro_rules! calls {
    ($client:ident, $package:ident: $($method:ident($request:ident) -> $reply:ident $(, stamps $mutation:ident)?;)*) => {
        $(impl Rpc for $package::$request {
            type Reply = $package::$reply;

            fn stamp(&mut self, attempt: u32) {
                let _ = attempt;
                $(if let Some(mutation) = &mut self.$mutation {
                    mutation.attempt = attempt;
                })?
            }

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

calls! { KvServiceClient, v1:
    get(GetRequest) -> GetResponse;
    put(PutRequest) -> PutResponse, stamps mutation;
    delete(DeleteRequest) -> DeleteResponse, stamps mutation;
    compare_and_set(CompareAndSetRequest) -> CompareAndSetResponse, stamps mutation;
}

calls! { AdminServiceClient, admin:
    create_namespace(CreateNamespaceRequest) -> CreateNamespaceResponse, stamps mutation;
    list_namespaces(ListNamespacesRequest) -> ListNamespacesResponse;
    get_topology(GetTopologyRequest) -> GetTopologyResponse;
    get_status(GetStatusRequest) -> GetStatusResponse;
    transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse;
    get_ring_owners(GetRingOwnersRequest) -> GetRingOwnersResponse;
    get_digest(GetDigestRequest) -> GetDigestResponse;
}

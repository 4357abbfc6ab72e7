//! The two public services: a thin skin over [`Router`] that reads the deadline, makes room for the answer,
//! and turns failures into statuses.

use std::sync::Arc;

use kv_proto::admin::admin_service_server::AdminService;
use kv_proto::v1::kv_service_server::KvService;
use kv_proto::{DataRequest, admin, status_from_failure, v1};
use kv_types::limits::MAX_PUBLIC_MESSAGE_BYTES;
use kv_types::{Failure, Hop, Reason};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::gate::Place;
use crate::requests::{self, Deadline};
use crate::router::{Caller, Router};

/// Both services.
#[derive(Clone)]
pub(crate) struct Services(pub(crate) Arc<Router>);

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    /// The request and what its caller grants.
    fn open<T>(&self, request: Request<T>) -> Result<(T, Caller), Status> {
        let longest = self.0.config.limits.max_deadline;
        let place = request.extensions().get::<Arc<Place>>().map(Arc::clone);
        let place = place.ok_or_else(|| Failure::new(Reason::Internal, "a request without a place"));
        let timeout = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let caller = place.and_then(|place| {
            let deadline = Deadline::of(place.arrived(), requests::time_granted(timeout, longest)?);
            Ok(Caller { hop: Hop::Client, deadline, place, seen_through: false })
        });
        let caller = caller.map_err(|failure| status_from_failure(&failure))?;
        Ok((request.into_inner(), caller))
    }
}

/// The answer of a read, if there is room for it: refusing it changes nothing.
fn read<T: Message>(result: Result<T, Failure>, caller: &Caller) -> Result<T, Failure> {
    let result = result.and_then(|answer| {
        let bytes = answer.encoded_len();
        if bytes > MAX_PUBLIC_MESSAGE_BYTES {
            let message = format!(
                "the answer has {bytes} bytes, and at most {MAX_PUBLIC_MESSAGE_BYTES} are sent; does the key have many \
                 large siblings?"
            );
            return Err(Failure::new(Reason::LimitSiblings, message));
        }
        caller.place.hold(bytes)?;
        Ok(answer)
    });
    result.map_err(Failure::of_read)
}

/// The answer of a mutation: it may have been applied, so it is sent whether there is room or not.
fn mutation<T: Message>(result: Result<T, Failure>, caller: &Caller) -> Result<T, Failure> {
    if let Ok(answer) = &result {
        caller.place.hold_anyway(answer.encoded_len());
    }
    result
}

/// As the unary calls send it.
fn unary<T>(result: Result<T, Failure>) -> Answer<T> {
    result.map(Response::new).map_err(|failure| status_from_failure(&failure))
}

impl Services {
    /// The answer to a request of the data service, with room made for it.
    pub(crate) async fn answer<R: DataRequest>(
        &self,
        request: R,
        caller: &Caller,
    ) -> Result<R::Response, Failure> {
        let answer = self.0.call(request, caller).await?;
        let nothing = answer.changed_nothing();
        let response = R::Response::try_from(answer)?;
        match nothing {
            // What was found may be large, and is sent if there is room.
            true => read(Ok(response), caller),
            false => mutation(Ok(response), caller),
        }
    }

    async fn serve<R: DataRequest>(&self, request: Request<R>) -> Answer<R::Response> {
        let (request, caller) = self.open(request)?;
        unary(self.answer(request, &caller).await)
    }
}

#[tonic::async_trait]
impl KvService for Services {
    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        self.serve(request).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        self.serve(request).await
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        self.serve(request).await
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Answer<v1::CompareAndSetResponse> {
        self.serve(request).await
    }
}

#[tonic::async_trait]
impl AdminService for Services {
    async fn create_namespace(
        &self,
        request: Request<admin::CreateNamespaceRequest>,
    ) -> Answer<admin::CreateNamespaceResponse> {
        let (request, caller) = self.open(request)?;
        unary(mutation(self.0.create_namespace(request, &caller).await, &caller))
    }

    async fn delete_namespace(
        &self,
        request: Request<admin::DeleteNamespaceRequest>,
    ) -> Answer<admin::DeleteNamespaceResponse> {
        let (request, caller) = self.open(request)?;
        unary(mutation(self.0.delete_namespace(request, &caller).await, &caller))
    }

    async fn schedule_deletion(
        &self,
        request: Request<admin::ScheduleDeletionRequest>,
    ) -> Answer<admin::ScheduleDeletionResponse> {
        let (request, caller) = self.open(request)?;
        unary(mutation(self.0.schedule_deletion(request, &caller).await, &caller))
    }

    async fn undelete_namespace(
        &self,
        request: Request<admin::UndeleteNamespaceRequest>,
    ) -> Answer<admin::UndeleteNamespaceResponse> {
        let (request, caller) = self.open(request)?;
        unary(mutation(self.0.undelete_namespace(request, &caller).await, &caller))
    }

    async fn alter_namespace(
        &self,
        request: Request<admin::AlterNamespaceRequest>,
    ) -> Answer<admin::AlterNamespaceResponse> {
        let (request, caller) = self.open(request)?;
        unary(mutation(self.0.alter_namespace(request, &caller).await, &caller))
    }

    async fn list_namespaces(
        &self,
        request: Request<admin::ListNamespacesRequest>,
    ) -> Answer<admin::ListNamespacesResponse> {
        let (_, caller) = self.open(request)?;
        unary(read(self.0.list_namespaces(&caller), &caller))
    }

    async fn get_topology(
        &self,
        request: Request<admin::GetTopologyRequest>,
    ) -> Answer<admin::GetTopologyResponse> {
        let (_, caller) = self.open(request)?;
        unary(read(self.0.topology(&caller), &caller))
    }

    async fn get_status(
        &self,
        request: Request<admin::GetStatusRequest>,
    ) -> Answer<admin::GetStatusResponse> {
        let (_, caller) = self.open(request)?;
        unary(read(self.0.status(&caller), &caller))
    }

    async fn transfer_leader(
        &self,
        request: Request<admin::TransferLeaderRequest>,
    ) -> Answer<admin::TransferLeaderResponse> {
        let (request, caller) = self.open(request)?;
        unary(mutation(self.0.transfer_leader(request, &caller).await, &caller))
    }

    async fn get_ring_owners(
        &self,
        request: Request<admin::GetRingOwnersRequest>,
    ) -> Answer<admin::GetRingOwnersResponse> {
        let (request, caller) = self.open(request)?;
        unary(read(self.0.owners(&request, &caller).await, &caller))
    }

    async fn explain_key(
        &self,
        request: Request<admin::ExplainKeyRequest>,
    ) -> Answer<admin::ExplainKeyResponse> {
        let (request, caller) = self.open(request)?;
        unary(read(self.0.explain(&request, &caller).await, &caller))
    }

    async fn get_digest(
        &self,
        request: Request<admin::GetDigestRequest>,
    ) -> Answer<admin::GetDigestResponse> {
        let (request, caller) = self.open(request)?;
        unary(read(self.0.digest(&request, &caller).await, &caller))
    }
}

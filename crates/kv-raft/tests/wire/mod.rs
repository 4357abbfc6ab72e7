//! Strong namespaces asked with messages of the wire, as a server reads them.

use std::future::Future;

use kv_proto::{DataRequest, v1};
use kv_types::{Failure, Hop, Namespace};
use tokio::time::Instant;

use super::Strong;

type Answered<T> = Result<T, Failure>;

pub(crate) async fn ask<R: DataRequest>(
    node: &Strong,
    bank: &Namespace,
    request: R,
    deadline: Instant,
    hop: Hop,
) -> Answered<R::Response> {
    let (_, call) = request.read()?;
    node.serve(bank, call, deadline, hop).await?.try_into()
}

macro_rules! asked {
    ($($name:ident: $request:ident -> $response:ident;)*) => {
        /// Each request as a method.
        #[allow(dead_code, reason = "each test asks for some of it")]
        pub(crate) trait Asked {
            $(fn $name(
                &self,
                bank: &Namespace,
                request: v1::$request,
                deadline: Instant,
                hop: Hop,
            ) -> impl Future<Output = Answered<v1::$response>> + Send;)*
        }

        impl Asked for Strong {
            $(async fn $name(
                &self,
                bank: &Namespace,
                request: v1::$request,
                deadline: Instant,
                hop: Hop,
            ) -> Answered<v1::$response> {
                ask(self, bank, request, deadline, hop).await
            })*
        }
    };
}

asked! {
    get: GetRequest -> GetResponse;
    put: PutRequest -> PutResponse;
    delete: DeleteRequest -> DeleteResponse;
    compare_and_set: CompareAndSetRequest -> CompareAndSetResponse;
}

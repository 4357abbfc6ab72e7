//! The client against a server that misbehaves on purpose: what it promises must hold whatever comes back, or
//! does not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

mod attempts;
mod connections;
mod open_writes;
mod routes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kv_client::limits::{ATTEMPTS, BUDGET_CAP, MAX_ATTEMPTS, RETRY_COST, SPEED_HALF_LIFE, TOPOLOGY_INTERVAL};
use kv_client::{Available, Client, ClientOptions, Error, Expect, Swap, Via, WriteContext, WriteObserver};
use kv_env::{Connection, Env, Listener, Network};
use kv_proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use kv_proto::v1::kv_service_server::{KvService, KvServiceServer};
use kv_proto::{admin, status_from_failure, v1};
use kv_types::{Applied, Failure, Reason, RequestId};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

/// What the server does with one call.
#[derive(Clone)]
enum Act {
    Answer,
    /// A compare-and-set finds something else.
    Mismatch,
    Wait(Duration),
    Refuse(Failure),
    /// Words of someone else, such as a proxy.
    Foreign(Status),
}

#[derive(Default)]
struct Script {
    acts: VecDeque<Act>,
    /// Of every mutation: its request id, attempt and lowest unanswered, in order of arrival.
    mutations: Vec<(RequestId, u32, u64)>,
    calls: usize,
    running: usize,
    most_running: usize,
    /// Time left according to the wire.
    deadlines: Vec<String>,
    members: Vec<String>,
    leader: u64,
    /// The nodes that keep the keys of `cart`, in order of preference.
    replicas: Vec<u64>,
    topologies: usize,
    /// How new the catalogue is, and of which cluster.
    epoch: u64,
    cluster: u8,
    /// Topologies are not told.
    silent: bool,
    /// What reads say, if not the usual: what there is, and the context.
    read: Option<(v1::Presence, &'static [u8])>,
    /// What deletes said that they supersede.
    superseded: Vec<v1::write_context::Context>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn script<T>(&self, use_it: impl FnOnce(&mut Script) -> T) -> T {
        use_it(&mut self.0.lock().unwrap())
    }

    fn plays(acts: impl IntoIterator<Item = Act>) -> Self {
        let fake = Self::default();
        fake.script(|script| script.acts = acts.into_iter().collect());
        fake
    }

    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(self.server().serve_with_incoming(incoming));
        address
    }

    fn server(&self) -> tonic::transport::server::Router {
        tonic::transport::Server::builder()
            .add_service(KvServiceServer::new(self.clone()))
            .add_service(AdminServiceServer::new(self.clone()))
    }

    async fn play<T>(&self, request: &Request<T>, mutation: Option<&v1::Mutation>) -> Result<bool, Status> {
        let act = self.script(|script| {
            script.calls += 1;
            script.running += 1;
            script.most_running = script.most_running.max(script.running);
            if let Some(mutation) = mutation {
                let read = v1::Mutation::read(Some(mutation)).unwrap();
                script.mutations.push((read.request_id, read.attempt, read.lowest_unacked));
            }
            let timeout = request.metadata().get("grpc-timeout").unwrap().to_str().unwrap();
            script.deadlines.push(timeout.to_owned());
            script.acts.pop_front().unwrap_or(Act::Answer)
        });
        let result = match act {
            Act::Answer => Ok(true),
            Act::Mismatch => Ok(false),
            Act::Wait(time) => {
                sleep(time).await;
                Ok(true)
            }
            Act::Refuse(failure) => Err(status_from_failure(&failure)),
            Act::Foreign(status) => Err(status),
        };
        self.script(|script| script.running -= 1);
        result
    }
}

fn receipt() -> Option<v1::Receipt> {
    let evidence = v1::StrongEvidence {
        group: 1,
        term: 1,
        index: 7,
        path: v1::ReadPath::Log.into(),
        ..Default::default()
    };
    Some(v1::Receipt {
        promised: v1::Guarantee::Linearizable.into(),
        delivered: v1::Guarantee::Linearizable.into(),
        evidence: Some(v1::receipt::Evidence::Strong(evidence)),
        ..Default::default()
    })
}

#[tonic::async_trait]
impl KvService for Fake {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.play(&request, None).await?;
        let value = bytes::Bytes::from_static(b"100");
        let (presence, context) = self.script(|script| script.read).unwrap_or((v1::Presence::Found, b""));
        Ok(Response::new(v1::GetResponse {
            presence: presence.into(),
            context: bytes::Bytes::from_static(context),
            value,
            revision: 5,
            receipt: receipt(),
            ..Default::default()
        }))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        self.play(&request, request.get_ref().mutation.as_ref()).await?;
        Ok(Response::new(v1::PutResponse { revision: 6, receipt: receipt(), ..Default::default() }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let context = request.get_ref().context.clone().and_then(|context| context.context);
        self.script(|script| script.superseded.extend(context));
        self.play(&request, request.get_ref().mutation.as_ref()).await?;
        Ok(Response::new(v1::DeleteResponse {
            existed: true,
            revision: 7,
            receipt: receipt(),
            ..Default::default()
        }))
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Result<Response<v1::CompareAndSetResponse>, Status> {
        let swapped = self.play(&request, request.get_ref().mutation.as_ref()).await?;
        let found = bytes::Bytes::from_static(b"100");
        Ok(Response::new(v1::CompareAndSetResponse { swapped, revision: 8, found, receipt: receipt() }))
    }
}

#[tonic::async_trait]
impl AdminService for Fake {
    async fn get_topology(
        &self,
        _: Request<admin::GetTopologyRequest>,
    ) -> Result<Response<admin::GetTopologyResponse>, Status> {
        while self.script(|script| script.silent) {
            sleep(Duration::from_secs(1)).await;
        }
        self.script(|script| {
            script.topologies += 1;
            let ids = 1_u64..;
            let member = |(id, address): (u64, &String)| admin::Member {
                id,
                client_address: address.clone(),
                ..Default::default()
            };
            let bank = admin::Namespace {
                id: 1,
                name: "bank".into(),
                mode: admin::Mode::Strong.into(),
                guarantee: v1::Guarantee::Linearizable.into(),
                group: 1,
                ..Default::default()
            };
            let cart = admin::Namespace {
                id: 2,
                name: "cart".into(),
                mode: admin::Mode::Available.into(),
                guarantee: v1::Guarantee::Eventual.into(),
                ring: 1,
                n: 2,
                r: 1,
                w: 1,
                ..Default::default()
            };
            let ring = admin::Ring { id: 1, partitions: 1, primaries: script.replicas.clone(), epoch: 1 };
            Ok(Response::new(admin::GetTopologyResponse {
                cluster_id: vec![1 + script.cluster; 16].into(),
                answered_by: 1,
                epoch: 1 + script.epoch,
                members: ids.zip(&script.members).map(member).collect(),
                namespaces: vec![bank, cart],
                leaders: vec![admin::GroupLeader { group: 1, leader: script.leader, term: 1 }],
                rings: Some(ring).into_iter().filter(|ring| !ring.primaries.is_empty()).collect(),
            }))
        })
    }

    async fn create_namespace(
        &self,
        _: Request<admin::CreateNamespaceRequest>,
    ) -> Result<Response<admin::CreateNamespaceResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn delete_namespace(
        &self,
        _: Request<admin::DeleteNamespaceRequest>,
    ) -> Result<Response<admin::DeleteNamespaceResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn schedule_deletion(
        &self,
        _: Request<admin::ScheduleDeletionRequest>,
    ) -> Result<Response<admin::ScheduleDeletionResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn undelete_namespace(
        &self,
        _: Request<admin::UndeleteNamespaceRequest>,
    ) -> Result<Response<admin::UndeleteNamespaceResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn alter_namespace(
        &self,
        _: Request<admin::AlterNamespaceRequest>,
    ) -> Result<Response<admin::AlterNamespaceResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list_namespaces(
        &self,
        _: Request<admin::ListNamespacesRequest>,
    ) -> Result<Response<admin::ListNamespacesResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get_status(
        &self,
        _: Request<admin::GetStatusRequest>,
    ) -> Result<Response<admin::GetStatusResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn transfer_leader(
        &self,
        request: Request<admin::TransferLeaderRequest>,
    ) -> Result<Response<admin::TransferLeaderResponse>, Status> {
        self.play(&request, None).await?;
        Ok(Response::new(admin::TransferLeaderResponse { leader: 2, term: 9 }))
    }

    async fn get_ring_owners(
        &self,
        _: Request<admin::GetRingOwnersRequest>,
    ) -> Result<Response<admin::GetRingOwnersResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn explain_key(
        &self,
        _: Request<admin::ExplainKeyRequest>,
    ) -> Result<Response<admin::ExplainKeyResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get_digest(
        &self,
        _: Request<admin::GetDigestRequest>,
    ) -> Result<Response<admin::GetDigestResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

fn refuse(reason: Reason) -> Act {
    Act::Refuse(Failure::new(reason, "as scripted"))
}

async fn pinned(fake: &Fake) -> Client {
    Client::connect(ClientOptions::pinned(fake.start().await)).unwrap()
}

/// An address where no server listens.
fn no_server() -> String {
    format!("127.0.0.1:{}", kv_env::choose_port().unwrap())
}

/// Nodes in memory, by address: their answers take no time but what their acts say.
struct InMemory(BTreeMap<String, Fake>);

impl Network for InMemory {
    fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let node = self.0.get(address).ok_or(io::ErrorKind::ConnectionRefused)?;
            let (here, there) = tokio::io::duplex(64 << 10);
            let accepted = stream::iter([Ok::<_, io::Error>(Connection::new(there, None))]);
            tokio::spawn(node.server().serve_with_incoming(accepted.chain(stream::pending())));
            Ok(Connection::new(here, None))
        })
    }
}

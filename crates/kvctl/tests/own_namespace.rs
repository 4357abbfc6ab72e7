//! The namespace that a benchmark makes for itself, against a server whose answers leave open whether it is
//! there: it is removed all the same, or the benchmark says what to type.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use kv_proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use kv_proto::{admin, status_from_failure, v1};
use kv_types::{Failure, Reason};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What the server does when it is asked for something.
#[derive(Debug, Clone, Copy)]
enum Act {
    Answer,
    Refuse(Reason),
    /// It never answers.
    Hang,
}

impl Act {
    async fn play(self) -> Result<(), Status> {
        match self {
            Self::Answer => Ok(()),
            Self::Refuse(reason) => Err(status_from_failure(&Failure::new(reason, "as scripted"))),
            Self::Hang => std::future::pending().await,
        }
    }
}

/// The names that it was asked to make, and to delete.
#[derive(Debug, Default)]
struct Asked {
    made: Vec<String>,
    deleted: Vec<String>,
}

#[derive(Clone)]
struct Fake {
    creation: Act,
    deletion: Act,
    asked: Arc<Mutex<Asked>>,
}

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl AdminService for Fake {
    async fn create_namespace(
        &self,
        request: Request<admin::CreateNamespaceRequest>,
    ) -> Result<Response<admin::CreateNamespaceResponse>, Status> {
        self.asked.lock().unwrap().made.push(request.into_inner().name);
        self.creation.play().await?;
        unused()
    }

    async fn delete_namespace(
        &self,
        request: Request<admin::DeleteNamespaceRequest>,
    ) -> Result<Response<admin::DeleteNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        self.asked.lock().unwrap().deleted.push(name.clone());
        self.deletion.play().await?;
        let namespace = admin::Namespace {
            id: 1,
            name,
            mode: admin::Mode::Strong.into(),
            guarantee: v1::Guarantee::Linearizable.into(),
            group: 1,
            ..Default::default()
        };
        let path = v1::ReadPath::Log.into();
        let evidence = v1::StrongEvidence { group: 1, term: 1, index: 7, path, ..Default::default() };
        let receipt = v1::Receipt {
            promised: v1::Guarantee::Linearizable.into(),
            delivered: v1::Guarantee::Linearizable.into(),
            evidence: Some(v1::receipt::Evidence::Strong(evidence)),
            ..Default::default()
        };
        Ok(Response::new(admin::DeleteNamespaceResponse {
            namespace: Some(namespace),
            receipt: Some(receipt),
        }))
    }

    async fn schedule_deletion(
        &self,
        _: Request<admin::ScheduleDeletionRequest>,
    ) -> Result<Response<admin::ScheduleDeletionResponse>, Status> {
        unused()
    }

    async fn undelete_namespace(
        &self,
        _: Request<admin::UndeleteNamespaceRequest>,
    ) -> Result<Response<admin::UndeleteNamespaceResponse>, Status> {
        unused()
    }

    async fn alter_namespace(
        &self,
        _: Request<admin::AlterNamespaceRequest>,
    ) -> Result<Response<admin::AlterNamespaceResponse>, Status> {
        unused()
    }

    async fn list_namespaces(
        &self,
        _: Request<admin::ListNamespacesRequest>,
    ) -> Result<Response<admin::ListNamespacesResponse>, Status> {
        unused()
    }

    async fn get_topology(
        &self,
        _: Request<admin::GetTopologyRequest>,
    ) -> Result<Response<admin::GetTopologyResponse>, Status> {
        unused()
    }

    async fn get_status(
        &self,
        _: Request<admin::GetStatusRequest>,
    ) -> Result<Response<admin::GetStatusResponse>, Status> {
        unused()
    }

    async fn transfer_leader(
        &self,
        _: Request<admin::TransferLeaderRequest>,
    ) -> Result<Response<admin::TransferLeaderResponse>, Status> {
        unused()
    }

    async fn get_ring_owners(
        &self,
        _: Request<admin::GetRingOwnersRequest>,
    ) -> Result<Response<admin::GetRingOwnersResponse>, Status> {
        unused()
    }

    async fn explain_key(
        &self,
        _: Request<admin::ExplainKeyRequest>,
    ) -> Result<Response<admin::ExplainKeyResponse>, Status> {
        unused()
    }

    async fn get_digest(
        &self,
        _: Request<admin::GetDigestRequest>,
    ) -> Result<Response<admin::GetDigestResponse>, Status> {
        unused()
    }
}

/// What became of a benchmark.
struct Ended {
    address: String,
    code: Option<i32>,
    err: String,
    asked: Asked,
}

impl Ended {
    /// The name of its namespace, which it asked for and no other.
    fn name(&self) -> &str {
        let name = &self.asked.made[0];
        assert!(name.starts_with("bench-") && self.asked.made.iter().all(|made| made == name));
        name
    }
}

/// Runs a benchmark against a server that does this.
async fn bench(creation: Act, deletion: Act) -> Ended {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let fake = Fake { creation, deletion, asked: Arc::default() };
    let server = tonic::transport::Server::builder().add_service(AdminServiceServer::new(fake.clone()));
    let server = tokio::spawn(server.serve_with_incoming(incoming));
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.args(["-e", &address.to_string(), "--timeout", "3s", "bench", "--for", "100ms"]).env_clear();
    command.env("XDG_CONFIG_HOME", home.path()).env("XDG_STATE_HOME", home.path()).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    server.abort();
    let err = String::from_utf8(output.stderr).unwrap();
    let address = address.to_string();
    Ended {
        address,
        code: output.status.code(),
        err,
        asked: std::mem::take(&mut *fake.asked.lock().unwrap()),
    }
}

/// The exit code that says *it may have happened*.
const UNKNOWN: Option<i32> = Some(4);
const REFUSED: Option<i32> = Some(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_made_is_removed() {
    for creation in [Act::Refuse(Reason::ResultUnknown), Act::Hang] {
        let ended = bench(creation, Act::Answer).await;
        assert_eq!(ended.code, UNKNOWN, "{creation:?}: {}", ended.err);
        assert_eq!(ended.asked.deleted, [ended.name()], "{creation:?}");
        assert!(ended.err.contains(&format!("removed {}\n", ended.name())), "{creation:?}: {}", ended.err);
        // At the node that was named, and nowhere else.
        let list = format!("  try: kvctl -e {} ns list ", ended.address);
        assert!(ended.err.contains(&list), "{creation:?}: {}", ended.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_yet_be_made_or_cannot_be_removed_is_named_with_what_to_type() {
    let answers = [
        (Reason::NamespaceUnknown, "it is not there, but may yet be made"),
        (Reason::NotReady, "as scripted"),
    ];
    for (reason, why) in answers {
        let ended = bench(Act::Refuse(Reason::ResultUnknown), Act::Refuse(reason)).await;
        assert_eq!(ended.code, UNKNOWN, "{}", ended.err);
        let name = ended.name();
        assert!(ended.asked.deleted.iter().all(|deleted| deleted == name), "{:?}", ended.asked);
        let delete = format!("kvctl -e {} ns delete --now {name}", ended.address);
        let says = format!("{name} was not removed ({why}); to remove it: {delete}\n");
        assert!(ended.err.contains(&says), "{}", ended.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_certainly_not_made_is_not_removed() {
    let ended = bench(Act::Refuse(Reason::LimitNamespaces), Act::Answer).await;
    assert_eq!(ended.code, REFUSED, "{}", ended.err);
    assert!(ended.asked.deleted.is_empty(), "{:?}", ended.asked);
    assert!(!ended.err.contains("remove"), "{}", ended.err);
}

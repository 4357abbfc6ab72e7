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

/// Accepts connections and closes each as soon as a request could have arrived on it; the number of them.
async fn slammer() -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            *counter.lock().unwrap() += 1;
            let mut seen = 0;
            let mut buffer = [0; 4_096];
            // The preface and the settings are shorter than a request's headers and value.
            while seen < 600 {
                match socket.read(&mut buffer).await {
                    Ok(read) if read > 0 => seen += read,
                    _ => break,
                }
            }
        }
    });
    (address, count)
}

/// An address where no server listens.
fn no_server() -> String {
    format!("127.0.0.1:{}", kv_env::choose_port().unwrap())
}

#[tokio::test]
async fn answers_come_with_receipts() {
    let fake = Fake::plays([Act::Answer, Act::Answer, Act::Answer, Act::Mismatch]);
    let bank = pinned(&fake).await.strong("bank");
    let read = bank.get("alice").await.unwrap();
    assert_eq!(read.value.unwrap().value, "100");
    assert_eq!(bank.put("alice", "1").await.unwrap().value.0, 6);
    assert!(matches!(
        bank.compare_and_set("alice", Expect::Absent, "2").await.unwrap().value,
        Swap::Swapped(_)
    ));
    let mismatch = bank.compare_and_set("alice", Expect::Absent, "2").await.unwrap().value;
    assert!(matches!(mismatch, Swap::Mismatch(Some(found)) if found.revision.0 == 8));
    assert!(fake.script(|s| s.deadlines.iter().all(|d| !d.is_empty())), "every call carries its deadline");
}

#[tokio::test]
async fn attempts_are_bounded_and_share_one_request_id() {
    let fake = Fake::plays((0..10).map(|_| refuse(Reason::NoQuorum)));
    let error = pinned(&fake).await.strong("bank").put("alice", "1").await.unwrap_err();
    assert!(
        matches!(&error, Error::Failed(f) if f.reason == Reason::NoQuorum && f.detail("attempts") == Some("3"))
    );
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!(mutations.len(), ATTEMPTS as usize);
    assert_eq!(mutations.iter().map(|m| m.0).collect::<BTreeSet<_>>().len(), 1);
    // None of them was taken: none is a resend.
    assert_eq!(mutations.iter().map(|m| m.1).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(error.failure().request_id, Some(mutations[0].0));
}

#[tokio::test]
async fn an_election_is_waited_for_within_the_deadline() {
    let elects = || {
        let failure = Failure::new(Reason::NoQuorum, "it hears no leader");
        Act::Refuse(failure.with("reachable", 3).with("required", 3).retry_after_ms(1))
    };
    // More refusals than attempts.
    let fake = Fake::plays((0..5).map(|_| elects()).chain([Act::Answer]));
    assert!(pinned(&fake).await.strong("bank").put("alice", "1").await.is_ok());
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!(mutations.len(), 6);
    assert_eq!(mutations.iter().map(|m| m.0).collect::<BTreeSet<_>>().len(), 1);
    // One that does not end ends with the deadline, and with what was refused.
    let fake = Fake::plays((0..10_000).map(|_| elects()));
    let mut options = ClientOptions::pinned(fake.start().await);
    options.write_timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let error = Client::connect(options).unwrap().strong("bank").put("alice", "1").await.unwrap_err();
    assert!(matches!(&error, Error::Failed(f) if f.reason == Reason::NoQuorum), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    // Each costs a token, and waits longer than the one before: a cluster that elects is left alone.
    assert!(fake.script(|s| s.calls) <= (BUDGET_CAP / RETRY_COST) as usize + 1);
}

#[tokio::test]
async fn a_write_is_sent_again_under_its_id() {
    let fake = Fake::plays([refuse(Reason::LimitStorage), Act::Answer, refuse(Reason::LimitStorage)]);
    let client = pinned(&fake).await;
    let error = client.strong("bank").put("alice", "1").await.unwrap_err();
    let id = error.write_id().unwrap();
    assert_eq!(id.to_string().parse(), Ok(id));
    // In another process.
    let other = pinned(&fake).await.strong("bank").resending(id);
    assert!(other.put("alice", "1").await.is_ok());
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!((mutations[0].0, mutations[1].0), (id.request_id, id.request_id));
    assert!(mutations[1].1 > 1, "a resend is never a first attempt");
    // What refuses the resend says nothing of the first time.
    let error = other.put("alice", "1").await.unwrap_err();
    assert!(
        error.is_unknown() && error.failure().detail("last_reason") == Some("LIMIT_STORAGE"),
        "{error:?}"
    );
}

/// A strong namespace has one account of ids: one that belongs to another body proves that this body was not
/// applied. Another replica of an available one may have taken it.
#[tokio::test]
async fn an_id_of_another_body_closes_what_was_open_where_there_is_one_account() {
    let id = "5f2c0000000000000000000000000000:41@1700000000000".parse().unwrap();
    let reused = || refuse(Reason::RequestIdReused);
    let fake = Fake::plays([reused(), reused()]);
    let client = pinned(&fake).await;
    let error = client.strong("bank").resending(id).put("alice", "2").await.unwrap_err();
    assert!(!error.is_unknown() && error.reason() == Reason::RequestIdReused, "{error:?}");
    let again = client.available("cart").resending(id);
    let error = again.put("k", "2", WriteContext::Blind).await.unwrap_err();
    let last = error.failure().detail("last_reason");
    assert!(error.is_unknown() && last == Some("REQUEST_ID_REUSED"), "{error:?}");
}

/// A node that gets a delete of what is observed a second time cannot tell what the first meant. So the
/// client says what it means.
#[tokio::test]
async fn a_delete_of_what_is_observed_reads_and_says_what_it_saw() {
    use v1::write_context::Context;
    let delete = async |fake: &Fake, handle: Available| {
        let deleted = handle.delete("k", WriteContext::Observed).await;
        let sent = fake.script(|s| (std::mem::take(&mut s.superseded), std::mem::take(&mut s.mutations)));
        (deleted, sent.0, sent.1.into_iter().map(|(_, attempt, _)| attempt).collect::<Vec<_>>())
    };
    let fake = Fake::plays([Act::Answer, refuse(Reason::Overloaded), refuse(Reason::ResultUnknown)]);
    fake.script(|s| s.read = Some((v1::Presence::Found, b"seen")));
    let client = pinned(&fake).await;
    let (deleted, superseded, attempts) = delete(&fake, client.available("cart")).await;
    assert_eq!(deleted.unwrap().value.saw_value, Some(true));
    assert_eq!(superseded, vec![Context::Causal(b"seen".as_slice().into()); 3]);
    assert_eq!(attempts, [1, 1, 2]);

    // What is absent, is; what is not known, is not.
    fake.script(|s| s.read = Some((v1::Presence::Absent, b"gone")));
    let (deleted, superseded, _) = delete(&fake, client.available("cart")).await;
    assert_eq!(deleted.unwrap().value.saw_value, Some(false));
    assert_eq!(superseded, [Context::Causal(b"gone".as_slice().into())]);
    fake.script(|s| s.read = Some((v1::Presence::NoKnowledge, b"")));
    let (deleted, superseded, _) = delete(&fake, client.available("cart")).await;
    let error = deleted.unwrap_err();
    assert!(!error.is_unknown() && error.reason() == Reason::QuorumNotMet, "{error:?}");
    assert!(superseded.is_empty(), "nothing was sent");
    fake.script(|s| s.acts = vec![refuse(Reason::StorageFailed); 9].into());
    let (deleted, superseded, _) = delete(&fake, client.available("cart")).await;
    assert!(!deleted.unwrap_err().is_unknown() && superseded.is_empty(), "a read changes nothing");

    // Another process that sends it again does not know what the first one saw: who has a trace of it does.
    fake.script(|s| (s.acts, s.read) = (VecDeque::new(), Some((v1::Presence::Found, b"later".as_slice()))));
    let id = "5f2c0000000000000000000000000000:41@1700000000000".parse().unwrap();
    let (deleted, superseded, attempts) = delete(&fake, client.available("cart").resending(id)).await;
    assert_eq!(deleted.unwrap().value.saw_value, None);
    assert_eq!((superseded, attempts), (vec![Context::Observed(true)], vec![2]));
}

#[tokio::test]
async fn a_resend_that_succeeds_makes_the_operation_succeed() {
    let fake = Fake::plays([refuse(Reason::ResultUnknown), Act::Answer]);
    assert!(pinned(&fake).await.strong("bank").put("alice", "1").await.is_ok());
    assert_eq!(fake.script(|s| s.calls), 2);
}

#[tokio::test]
async fn unknown_stays_unknown_whatever_a_resend_is_told() {
    for later in [
        Reason::NoQuorum,
        Reason::NotLeader,
        Reason::NotReady,
        Reason::NamespaceUnknown,
        Reason::ModeMismatch,
    ] {
        let laters = (0..1_000).map(|_| refuse(later));
        let fake = Fake::plays([refuse(Reason::PartialWrite)].into_iter().chain(laters));
        let mut options = ClientOptions::pinned(fake.start().await);
        options.write_timeout = Duration::from_millis(300);
        let client = Client::connect(options).unwrap();
        let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
        assert!(error.is_unknown(), "{later}: {error}");
        assert_eq!(error.reason(), Reason::PartialWrite);
    }
}

/// A node that is cut off for longer than three attempts take. Nothing else tells what became of the write.
#[tokio::test(start_paused = true)]
async fn a_write_whose_fate_is_open_is_sent_again_until_its_deadline() {
    let node = "a:1".to_owned();
    let client = |fake: &Fake, timeout| {
        let network = Arc::new(InMemory(BTreeMap::from([(node.clone(), fake.clone())])));
        let options = ClientOptions { write_timeout: timeout, ..ClientOptions::pinned(node.clone()) };
        Client::connect_in(options, Env { network, ..Env::real() }).unwrap()
    };
    let cut_off = || {
        let said = Failure::new(Reason::NoQuorum, "2 of 5").with("reachable", 2).with("required", 3);
        Act::Refuse(said.retry_after_ms(100))
    };
    let open = || std::iter::once(refuse(Reason::ResultUnknown));
    // It is healed after more refusals than there are attempts.
    let fake = Fake::plays(open().chain(std::iter::repeat_with(cut_off).take(8)).chain([Act::Answer]));
    client(&fake, Duration::from_secs(20)).strong("bank").put("alice", "1").await.unwrap();
    let mutations = fake.script(|script| script.mutations.clone());
    assert_eq!(mutations.len(), 10);
    assert_eq!(mutations.iter().map(|(id, ..)| id).collect::<BTreeSet<_>>().len(), 1, "one request");
    let attempts: Vec<u32> = mutations.iter().map(|(_, attempt, _)| *attempt).collect();
    assert_eq!((attempts[0], &attempts[1..]), (1, &[2; 9][..]), "one that was taken, and its resends");
    // It is not healed: that is said at the deadline and not before.
    let timeout = Duration::from_secs(5);
    let fake = Fake::plays(open().chain(std::iter::repeat_with(cut_off).take(1_000)));
    let begun = Instant::now();
    let error = client(&fake, timeout).strong("bank").put("alice", "1").await.unwrap_err();
    let last = error.failure().detail("last_reason");
    assert!(error.is_unknown() && last == Some("NO_QUORUM"), "{error:?}");
    let took = begun.elapsed();
    assert!(took > timeout * 3 / 4 && took <= timeout + Duration::from_millis(100), "{took:?}");
    // What was never taken is refused after as many attempts as there are.
    let fake = Fake::plays(std::iter::repeat_with(cut_off).take(1_000));
    let error = client(&fake, timeout).strong("bank").put("alice", "1").await.unwrap_err();
    assert!(!error.is_unknown() && fake.script(|script| script.calls) == ATTEMPTS as usize, "{error:?}");
}

/// A resend that a node takes and cannot settle leaves the fate open as the first one did. It is not for more
/// than three of them that it ends before its deadline; nor is a cluster in trouble flooded with them.
#[tokio::test(start_paused = true)]
async fn a_resend_that_leaves_it_open_again_does_not_end_a_write_early() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let paid = (BUDGET_CAP / RETRY_COST) as usize;
    let cluster = |acts: &dyn Fn() -> Vec<Act>, timeout| {
        let nodes = [acts(), acts(), acts()].map(Fake::plays);
        for node in &nodes {
            node.script(|script| (script.members, script.replicas) = (names.to_vec(), vec![3, 1]));
        }
        let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
        let options =
            ClientOptions { spread: false, write_timeout: timeout, ..ClientOptions::new(names.to_vec()) };
        (Client::connect_in(options, Env { network, ..Env::real() }).unwrap(), nodes)
    };
    let sent = |nodes: &[Fake; 3]| -> Vec<_> {
        nodes.iter().flat_map(|node| node.script(|script| script.mutations.clone())).collect()
    };
    for reason in [Reason::PartialWrite, Reason::ResultUnknown] {
        // Each node leaves it open three times, and then it can be done.
        let (client, nodes) = cluster(&|| vec![refuse(reason); 3], Duration::from_secs(20));
        client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap();
        let all = sent(&nodes);
        assert!(all.len() > ATTEMPTS as usize, "{reason}: {}", all.len());
        assert_eq!(all.iter().map(|(id, ..)| id).collect::<BTreeSet<_>>().len(), 1, "one request");
        let numbers: BTreeSet<u32> = all.iter().map(|(_, attempt, _)| *attempt).collect();
        assert_eq!(numbers.len(), all.len(), "no two bear the same number");
        // It cannot be done: that is said at the deadline, and what was sent was paid for.
        for timeout in [5, 60].map(Duration::from_secs) {
            let (client, nodes) = cluster(&|| vec![refuse(reason); 1_000], timeout);
            let begun = Instant::now();
            let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
            assert!(error.is_unknown() && error.reason() == reason, "{error:?}");
            let took = begun.elapsed();
            assert!(took > timeout * 3 / 4 && took <= timeout + Duration::from_millis(100), "{took:?}");
            let all = sent(&nodes);
            assert!(all.len() <= paid + 1, "{reason}: {} in {took:?}", all.len());
            let asked = nodes.iter().filter(|node| node.script(|script| script.calls) > 1).count();
            assert_eq!(asked, 3, "{reason}: others are asked too");
        }
    }
    // Nodes that are silent have as much of the time as before: three attempts, however long it is.
    let silent = || vec![Act::Wait(Duration::from_secs(600)); 50];
    let (client, nodes) = cluster(&silent, Duration::from_secs(4));
    let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    assert_eq!(sent(&nodes).len(), ATTEMPTS as usize);
    // Nor is a write with which connections break sent to one node after the other.
    let (client, nodes) = cluster(&|| vec![refuse(Reason::ConnectionLost); 50], Duration::from_secs(20));
    let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    assert_eq!(sent(&nodes).len(), ATTEMPTS as usize);
}

/// A node that names the leader ends the search for it, also where all attempts are used up and a write is
/// only sent again because its fate is open.
#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_where_no_attempt_is_left() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let hint = Failure::new(Reason::NotLeader, "n3 leads").with("leader_address", &names[2]);
    let nodes = [
        Fake::plays(std::iter::repeat_n(refuse(Reason::ConnectionLost), 9)),
        Fake::plays(std::iter::repeat_n(Act::Refuse(hint), 9)),
        Fake::default(),
    ];
    for node in &nodes {
        node.script(|script| (script.members, script.leader) = (names.to_vec(), 1));
    }
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, attempts: 2, ..ClientOptions::new(names.to_vec()) };
    let client = Client::connect_in(options, Env { network, ..Env::real() }).unwrap();
    client.strong("bank").put("k", "v").await.unwrap();
    let calls = nodes.each_ref().map(|node| node.script(|script| script.calls));
    assert_eq!(calls, [1, 1, 1], "the leader, another one, and the leader that it named");
    // Two that name each other are not asked one after the other without end.
    let [a, b] =
        [0, 1].map(|at| Failure::new(Reason::NotLeader, "it leads").with("leader_address", &names[at]));
    let circle = [
        Fake::plays(
            [refuse(Reason::ResultUnknown)].into_iter().chain((0..10_000).map(|_| Act::Refuse(b.clone()))),
        ),
        Fake::plays((0..10_000).map(|_| Act::Refuse(a.clone()))),
    ];
    for node in &circle {
        node.script(|script| (script.members, script.leader) = (names[..2].to_vec(), 1));
    }
    let network = Arc::new(InMemory(names.iter().cloned().zip(circle.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(names[..2].to_vec()) };
    let client = Client::connect_in(options, Env { network, ..Env::real() }).unwrap();
    assert!(client.strong("bank").put("k", "v").await.unwrap_err().is_unknown());
    let calls: usize = circle.iter().map(|node| node.script(|script| script.calls)).sum();
    assert!(calls <= (BUDGET_CAP / RETRY_COST + ATTEMPTS) as usize, "{calls} calls");
}

/// An attempt has a part of the time. That it passed does not end the operation.
#[tokio::test]
async fn a_deadline_of_one_attempt_is_not_that_of_the_operation() {
    let fake = Fake::plays([refuse(Reason::DeadlineExpired), Act::Answer]);
    pinned(&fake).await.strong("bank").put("alice", "1").await.unwrap();
    let fake = Fake::plays([refuse(Reason::DeadlineExpired), Act::Answer]);
    pinned(&fake).await.strong("bank").get("alice").await.unwrap();
    assert_eq!(fake.script(|script| script.calls), 2);
}

#[tokio::test]
async fn foreign_words_prove_nothing_about_a_write() {
    for status in [Status::unavailable("a proxy"), Status::internal("?"), Status::unimplemented("?")] {
        let fake = Fake::plays((0..3).map(|_| Act::Foreign(status.clone())));
        let client = pinned(&fake).await;
        assert!(client.strong("bank").put("k", "v").await.unwrap_err().is_unknown(), "{status}");
        let fake = Fake::plays((0..3).map(|_| Act::Foreign(status.clone())));
        let client = pinned(&fake).await;
        assert!(!client.strong("bank").get("k").await.unwrap_err().is_unknown(), "a read has no effect");
    }
}

#[tokio::test]
async fn final_reasons_are_not_retried() {
    for reason in [Reason::LimitStorage, Reason::ModeMismatch, Reason::SessionExpired, Reason::RequestExpired]
    {
        let fake = Fake::plays([refuse(reason)]);
        let error = pinned(&fake).await.strong("bank").put("k", "v").await.unwrap_err();
        assert_eq!((error.reason(), error.is_unknown()), (reason, reason.applied() == Applied::Unknown));
        assert_eq!(fake.script(|s| s.calls), 1, "{reason}");
    }
}

#[tokio::test]
async fn keys_and_values_out_of_bounds_are_never_sent() {
    let fake = Fake::default();
    let bank = pinned(&fake).await.strong("bank");
    assert_eq!(bank.put("", "v").await.unwrap_err().reason(), Reason::EmptyKey);
    assert_eq!(bank.put("k", vec![0; 2 << 20]).await.unwrap_err().reason(), Reason::LimitValue);
    assert_eq!(fake.script(|s| s.calls), 0);
}

#[tokio::test]
async fn no_server_there_is_definite() {
    let client = Client::connect(ClientOptions::pinned(no_server())).unwrap();
    let begun = Instant::now();
    let error = client.strong("bank").put("k", "v").await.unwrap_err();
    assert!(matches!(&error, Error::Failed(f) if f.reason == Reason::Unreachable), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn a_connection_that_breaks_after_sending_is_unknown() {
    let (address, connections) = slammer().await;
    let client =
        Client::connect(ClientOptions { via: Via::Unary, ..ClientOptions::pinned(address) }).unwrap();
    let value = vec![7; 2_000];
    let error = client.strong("bank").put("k", value.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Unknown(f) if f.reason == Reason::ConnectionLost), "{error}");
    assert_eq!(*connections.lock().unwrap(), ATTEMPTS as usize);
    assert!(!client.strong("bank").get("k").await.unwrap_err().is_unknown());
}

#[tokio::test]
async fn the_breaker_stops_calls_to_a_node_that_keeps_failing() {
    let (address, connections) = slammer().await;
    let options = ClientOptions { attempts: 1, via: Via::Unary, ..ClientOptions::pinned(address) };
    let client = Client::connect(options).unwrap();
    let value = vec![7; 2_000];
    for _ in 0..5 {
        assert!(client.strong("bank").put("k", value.clone()).await.unwrap_err().is_unknown());
    }
    let refused = client.strong("bank").put("k", value).await.unwrap_err();
    assert!(matches!(&refused, Error::Failed(f) if f.detail("breaker") == Some("open")), "{refused}");
    assert_eq!(*connections.lock().unwrap(), 5);
}

/// Passes connections on to a node; each count sent cuts those that are open, and later ones are passed on
/// again.
async fn cuttable(node: String) -> (String, watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (cuts, cut) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            let (node, mut cut) = (node.clone(), cut.clone());
            cut.mark_unchanged();
            tokio::spawn(async move {
                let mut inside = TcpStream::connect(node).await.unwrap();
                tokio::select! {
                    _ = cut.changed() => {}
                    _ = tokio::io::copy_bidirectional(&mut outside, &mut inside) => {}
                }
            });
        }
    });
    (address, cuts)
}

#[tokio::test]
async fn one_lost_connection_is_one_failure_however_many_calls_were_on_it() {
    const CALLS: usize = 64;
    let fake = Fake::plays((0..CALLS).map(|_| Act::Wait(Duration::from_secs(30))));
    let (address, cuts) = cuttable(fake.start().await).await;
    let options = ClientOptions {
        attempts: 1,
        read_timeout: Duration::from_secs(20),
        ..ClientOptions::pinned(address)
    };
    let client = Client::connect(options).unwrap();
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.strong("bank").get("k").await })
        })
        .collect();
    while fake.script(|script| script.calls) < CALLS {
        sleep(Duration::from_millis(5)).await;
    }
    cuts.send_modify(|cuts| *cuts += 1);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().reason(), Reason::ConnectionLost);
    }
    // The node is there again: it is asked and not avoided.
    client.strong("bank").get("k").await.unwrap();
    assert_eq!(fake.script(|script| script.calls), CALLS + 1);
}

#[tokio::test]
async fn an_observer_is_told_of_each_write_before_it_is_sent() {
    // Two attempts of the first write, then one that is not answered while the caller waits.
    let long = Act::Wait(Duration::from_secs(30));
    let fake = Fake::plays([refuse(Reason::NoQuorum), Act::Answer, Act::Answer, Act::Answer, long]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let (told, fake) = (Arc::clone(&told), fake.clone());
        WriteObserver::new(move |id: kv_types::WriteId| {
            told.lock().unwrap().push((id, fake.script(|script| script.mutations.len())));
        })
    };
    let address = fake.start().await;
    let options = ClientOptions { observer: Some(observer), ..ClientOptions::pinned(address) };
    let client = Client::connect(options).unwrap();
    let told = || told.lock().unwrap().clone();
    client.strong("bank").put("k", "v").await.unwrap();
    client.strong("bank").get("k").await.unwrap();
    assert_eq!(told().len(), 1, "a write is named once, and a read not at all");
    let id = told()[0].0;
    client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap();
    // Given up before an answer comes: what is known of it was known before it was sent.
    let cart = client.available("cart");
    let waits = tokio::time::timeout(Duration::from_secs(1), cart.put("k", "v", WriteContext::Blind));
    assert!(waits.await.is_err());
    let sent = fake.script(|script| script.mutations.clone());
    let mut sent: Vec<_> = sent.into_iter().map(|(id, ..)| id).collect();
    assert_eq!(sent.len(), 4);
    sent.dedup();
    assert_eq!(told().iter().map(|(id, _)| id.request_id).collect::<Vec<_>>(), sent);
    assert_eq!(told().iter().map(|(_, before)| *before).collect::<Vec<_>>(), [0, 2, 3]);
    // The caller of a resend knows its name.
    client.strong("bank").resending(id).put("k", "v").await.unwrap();
    assert_eq!(told().len(), 3);
}

#[tokio::test]
async fn no_operation_outlives_its_deadline() {
    let long = Act::Wait(Duration::from_secs(30));
    let fake = Fake::plays((0..10).map(|_| long.clone()));
    let timeout = Duration::from_millis(300);
    let options = ClientOptions {
        read_timeout: timeout,
        write_timeout: timeout,
        ..ClientOptions::pinned(fake.start().await)
    };
    let client = Client::connect(options).unwrap();
    for _ in 0..2 {
        let begun = Instant::now();
        let error = client.strong("bank").put("k", "v").await.unwrap_err();
        assert!(begun.elapsed() < timeout + Duration::from_millis(100), "{:?}", begun.elapsed());
        assert!(matches!(&error, Error::Unknown(f) if f.reason == Reason::ResultUnknown), "{error}");
    }
    let busy =
        Fake::plays((0..10).map(|_| Act::Refuse(Failure::new(Reason::Overloaded, "").retry_after_ms(200))));
    let options = ClientOptions { write_timeout: timeout, ..ClientOptions::pinned(busy.start().await) };
    let begun = Instant::now();
    let error = Client::connect(options).unwrap().strong("bank").put("k", "v").await.unwrap_err();
    assert!(begun.elapsed() < timeout, "no pause reaches past the deadline");
    assert!(matches!(error, Error::Failed(_)));
    assert_eq!(busy.script(|s| s.calls), 2, "the server's pause is honoured");
}

#[tokio::test]
async fn the_retry_budget_is_shared_and_runs_dry() {
    let fake = Fake::plays((0..1_000).map(|_| refuse(Reason::ShuttingDown)));
    let client = pinned(&fake).await;
    let operations: usize = 40;
    for _ in 0..operations {
        let error = client.strong("bank").get("k").await.unwrap_err();
        assert_eq!(error.reason(), Reason::ShuttingDown);
    }
    let paid = usize::try_from(BUDGET_CAP / RETRY_COST).unwrap();
    assert_eq!(fake.script(|s| s.calls), operations + paid);
    let last = client.strong("bank").get("k").await.unwrap_err();
    assert!(last.failure().detail("gave_up").is_some());
}

#[tokio::test]
async fn a_full_client_fails_fast() {
    let fake = Fake::plays([Act::Wait(Duration::from_millis(300)), Act::Wait(Duration::from_millis(300))]);
    let options = ClientOptions { max_in_flight: 1, ..ClientOptions::pinned(fake.start().await) };
    let bank = Client::connect(options).unwrap().strong("bank");
    let held = tokio::spawn({
        let bank = bank.clone();
        async move { bank.get("k").await }
    });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(bank.get("k").await.unwrap_err().reason(), Reason::ClientLimit);
    assert!(held.await.unwrap().is_ok());
    assert!(bank.get("k").await.is_ok());
}

#[tokio::test]
async fn the_first_write_of_a_session_completes_before_others_are_sent() {
    let fake = Fake::plays([Act::Wait(Duration::from_millis(150))]);
    let client = pinned(&fake).await;
    let writes: Vec<_> = (0..8)
        .map(|_| {
            let bank = client.strong("bank");
            tokio::spawn(async move { bank.put("k", "v").await })
        })
        .collect();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.script(|s| s.calls), 1, "the others wait");
    for write in writes {
        write.await.unwrap().unwrap();
    }
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!(mutations.iter().map(|m| m.0.client_id).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(mutations.iter().map(|m| m.0.seq).collect::<BTreeSet<_>>(), (1..=8).collect());
    assert!(mutations.iter().all(|m| m.2 <= m.0.seq));
}

#[tokio::test]
async fn a_session_that_failed_to_open_or_expired_is_replaced() {
    let fake =
        Fake::plays([refuse(Reason::LimitStorage), Act::Answer, refuse(Reason::SessionExpired), Act::Answer]);
    let bank = pinned(&fake).await.strong("bank");
    assert!(bank.put("k", "1").await.is_err());
    assert!(bank.put("k", "2").await.is_ok());
    assert!(bank.put("k", "3").await.unwrap_err().is_unknown());
    assert!(bank.put("k", "4").await.is_ok());
    let ids: Vec<_> = fake.script(|s| s.mutations.iter().map(|m| m.0).collect());
    assert_eq!(ids.iter().map(|id| id.seq).collect::<Vec<_>>(), [1, 1, 2, 1]);
    assert_eq!(ids[1].client_id, ids[2].client_id);
    assert_eq!(ids.iter().map(|id| id.client_id).collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test]
async fn a_write_without_identity_is_not_resent_once_its_fate_is_open() {
    let fake = Fake::plays([refuse(Reason::ResultUnknown)]);
    let admin = pinned(&fake).await.admin();
    let error = admin.transfer_leader(kv_types::GroupId(1), kv_types::NodeId(2)).await.unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(fake.script(|s| s.calls), 1);
}

#[tokio::test]
async fn operations_find_the_leader_and_follow_hints() {
    let (first, second) = (Fake::default(), Fake::default());
    let members = vec![first.start().await, second.start().await];
    for fake in [&first, &second] {
        fake.script(|s| (s.members, s.leader) = (members.clone(), 2));
    }
    let client = Client::connect(ClientOptions::new([members[0].clone()])).unwrap();
    let bank = client.strong("bank");
    bank.put("k", "1").await.unwrap();
    assert_eq!((first.script(|s| s.calls), second.script(|s| s.calls)), (0, 1), "straight to the leader");
    let moved =
        Failure::new(Reason::NotLeader, "n1 leads").with("leader", "n1").with("leader_address", &members[0]);
    second.script(|s| s.acts.push_back(Act::Refuse(moved)));
    bank.put("k", "2").await.unwrap();
    assert_eq!((first.script(|s| s.calls), second.script(|s| s.calls)), (1, 2), "redirected");
    bank.put("k", "3").await.unwrap();
    assert_eq!((first.script(|s| s.calls), second.script(|s| s.calls)), (2, 2), "and remembered");
    assert_eq!(first.script(|s| s.topologies), 1);
}

#[tokio::test]
async fn a_dead_node_is_passed_by() {
    let alive = Fake::default();
    let members = vec![no_server(), alive.start().await];
    alive.script(|s| (s.members, s.leader) = (members.clone(), 1));
    let client = Client::connect(ClientOptions::new(members.clone())).unwrap();
    for _ in 0..5 {
        client.strong("bank").put("k", "1").await.unwrap();
        client.strong("bank").get("k").await.unwrap();
    }
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

#[tokio::test(start_paused = true)]
async fn a_key_is_asked_of_its_replicas_and_a_slow_one_is_left_for_a_while() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let nodes = [Fake::default(), Fake::default(), Fake::default()];
    for node in &nodes {
        node.script(|script| (script.members, script.replicas) = (names.to_vec(), vec![3, 1]));
    }
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    // The client knows one node, which keeps nothing.
    let options = ClientOptions::new(vec![names[1].clone()]);
    let cart = Client::connect_in(options, Env { network, ..Env::real() }).unwrap().available("cart");
    let calls = || nodes.each_ref().map(|node| node.script(|script| script.calls));
    for _ in 0..3 {
        cart.get("k").await.unwrap();
        cart.put("k", "v", WriteContext::Observed).await.unwrap();
    }
    assert_eq!(calls(), [0, 0, 6], "the first replica");
    nodes[2].script(|script| script.acts = [Act::Wait(Duration::from_millis(200))].into());
    cart.get("k").await.unwrap();
    for _ in 0..3 {
        cart.get("k").await.unwrap();
    }
    assert_eq!(calls(), [3, 0, 7], "the second, since the first is slow");
    sleep(SPEED_HALF_LIFE * 6).await;
    nodes[2].script(|script| script.acts = [Act::Wait(Duration::from_millis(200))].into());
    let (slow, other) = tokio::join!(cart.get("k"), cart.get("k"));
    slow.unwrap();
    other.unwrap();
    assert_eq!(calls(), [4, 0, 8], "one request tries it again");
    sleep(SPEED_HALF_LIFE * 6).await;
    for _ in 0..3 {
        cart.get("k").await.unwrap();
        sleep(SPEED_HALF_LIFE * 6).await;
    }
    assert_eq!(calls(), [4, 0, 11], "it is fast again");
    // It refuses for itself: the other replica is asked, and it is tried now and then.
    nodes[2].script(|script| script.acts = std::iter::repeat_n(refuse(Reason::NotReady), 500).collect());
    for n in 0..200 {
        cart.get("k").await.unwrap_or_else(|e| panic!("{n}: {e}"));
    }
    let refused = nodes[2].script(|script| std::mem::take(&mut script.acts).len());
    assert!((490..500).contains(&refused), "{} tries", 500 - refused);
    sleep(SPEED_HALF_LIFE * 6).await;
    let before = calls();
    cart.get("k").await.unwrap();
    assert_eq!(calls()[2], before[2] + 1, "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn a_full_replica_is_passed_by_and_a_new_namespace_is_found() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let nodes = [Fake::default(), Fake::default(), Fake::default()];
    let know = |replicas: Vec<u64>| {
        for node in &nodes {
            node.script(|script| (script.members, script.replicas) = (names.to_vec(), replicas.clone()));
        }
    };
    know(Vec::new());
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(vec![names[1].clone()]) };
    let cart = Client::connect_in(options, Env { network, ..Env::real() }).unwrap().available("cart");
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    assert_eq!(nodes[2].script(|script| script.calls), 0, "no ring is known");
    know(vec![3, 1]);
    sleep(TOPOLOGY_INTERVAL * 2).await;
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    assert_eq!(nodes[2].script(|script| script.calls), 1, "it is looked for again");
    nodes[2].script(|script| script.acts = [refuse(Reason::LimitStorage)].into());
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    assert_eq!(nodes[2].script(|script| script.calls), 2, "the other replica has a disk of its own");
}

/// Four of five nodes are down: the fifth is found within one operation, by any of them.
#[tokio::test]
async fn a_node_that_cannot_be_reached_counts_for_no_attempt() {
    let names = ["a:1", "b:1", "c:1", "d:1", "e:1"].map(str::to_owned);
    let alive = Fake::default();
    let client = |attempts| {
        let network = Arc::new(InMemory(BTreeMap::from([(names[4].clone(), alive.clone())])));
        let options = ClientOptions { spread: false, attempts, ..ClientOptions::new(names.to_vec()) };
        Client::connect_in(options, Env { network, ..Env::real() }).unwrap()
    };
    client(ATTEMPTS).available("cart").get("k").await.unwrap();
    client(ATTEMPTS).available("cart").put("k", "v", WriteContext::Observed).await.unwrap();
    client(ATTEMPTS).strong("bank").put("k", "v").await.unwrap();
    assert!(alive.script(|script| script.mutations.iter().all(|(_, attempt, _)| *attempt == 1)));
    // Who asks for one attempt gets one.
    assert_eq!(client(1).available("cart").get("k").await.unwrap_err().reason(), Reason::Unreachable);
    // With none to be reached it ends.
    alive.script(|script| script.calls = 0);
    let network = Arc::new(InMemory(BTreeMap::new()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(names.to_vec()) };
    let none = Client::connect_in(options, Env { network, ..Env::real() }).unwrap();
    let error = none.available("cart").put("k", "v", WriteContext::Observed).await.unwrap_err();
    assert!(!error.is_unknown() && error.reason() == Reason::Unreachable, "{error}");
}

#[tokio::test]
async fn a_replica_without_room_for_request_ids_is_passed_by() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let nodes = [Fake::default(), Fake::default(), Fake::default()];
    for node in &nodes {
        node.script(|script| (script.members, script.replicas) = (names.to_vec(), vec![3, 1]));
    }
    nodes[2].script(|script| script.acts = vec![refuse(Reason::LimitRequests); 9].into());
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(vec![names[1].clone()]) };
    let cart = Client::connect_in(options, Env { network, ..Env::real() }).unwrap().available("cart");
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    let calls = nodes.each_ref().map(|node| node.script(|script| script.calls));
    assert_eq!(calls, [1, 0, 1], "the other replica has a table of its own");
}

#[tokio::test]
async fn a_pinned_client_does_not_try_a_full_disk_again() {
    let fake = Fake::plays((0..3).map(|_| refuse(Reason::LimitStorage)));
    let cart = pinned(&fake).await.available("cart");
    let error = cart.put("k", "v", WriteContext::Observed).await.unwrap_err();
    assert!(matches!(error, Error::Failed(f) if f.reason == Reason::LimitStorage));
    assert_eq!(fake.script(|script| script.calls), 1);
}

#[tokio::test]
async fn a_pinned_client_ignores_hints_and_asks_for_no_topology() {
    let other = Fake::default();
    let hint = Failure::new(Reason::NotLeader, "elsewhere").with("leader_address", other.start().await);
    let fake = Fake::plays((0..3).map(|_| Act::Refuse(hint.clone())));
    let error = pinned(&fake).await.strong("bank").put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Failed(f) if f.reason == Reason::NotLeader));
    assert_eq!(
        (fake.script(|s| s.calls), other.script(|s| s.calls), fake.script(|s| s.topologies)),
        (3, 0, 0)
    );
}

#[tokio::test]
async fn options_without_sense_are_refused() {
    assert!(Client::connect(ClientOptions::new(Vec::<String>::new())).is_err());
    assert!(Client::connect(ClientOptions::new(["nowhere"])).is_err());
    let two = ClientOptions { pinned: true, ..ClientOptions::new(["h:1", "h:2"]) };
    assert!(Client::connect(two).is_err());
}

/// Three of five nodes are paused: they take connections and say nothing. A read finds those that are up, and
/// ends with what they say, not with the silence of the others.
#[tokio::test(start_paused = true)]
async fn what_a_cut_off_node_says_counts_for_more_than_the_silence_of_others() {
    let names = ["a:1", "b:1", "c:1", "d:1", "e:1"].map(str::to_owned);
    let paused = || Fake::plays(std::iter::repeat_n(Act::Wait(Duration::from_secs(60)), 50));
    let client = |nodes: [Fake; 5]| {
        let network = Arc::new(InMemory(names.iter().cloned().zip(nodes).collect()));
        let options = ClientOptions { spread: false, ..ClientOptions::new(names.to_vec()) };
        Client::connect_in(options, Env { network, ..Env::real() }).unwrap()
    };
    // An available read needs none of the silent ones.
    let alive = [paused(), paused(), paused(), Fake::default(), Fake::default()];
    client(alive).available("cart").get("k").await.unwrap();
    let cut_off = || {
        let said = Failure::new(Reason::NoQuorum, "2 of 5").with("reachable", 2).with("required", 3);
        Fake::plays(std::iter::repeat_n(Act::Refuse(said), 50))
    };
    for nodes in [
        [paused(), paused(), paused(), cut_off(), cut_off()],
        [paused(), cut_off(), paused(), cut_off(), paused()],
        [cut_off(), paused(), paused(), paused(), cut_off()],
    ] {
        let said = client(nodes.clone()).strong("bank").get("k").await.unwrap_err();
        assert_eq!((said.reason(), said.is_unknown()), (Reason::NoQuorum, false), "{said}");
        let calls: usize = nodes.iter().map(|node| node.script(|script| script.calls)).sum();
        assert!(calls <= MAX_ATTEMPTS as usize, "{calls} calls");
        // A write may have been taken by any that is silent.
        let said = client(nodes).strong("bank").put("k", "v").await.unwrap_err();
        assert!(said.is_unknown(), "{said}");
    }
}

/// A member that is cut off knows an old topology; one at whose address another cluster runs now, another's.
#[tokio::test]
async fn the_newest_topology_is_looked_for_at_every_member() {
    let fakes: Vec<Fake> = (0..5).map(|_| Fake::default()).collect();
    let mut members = Vec::new();
    for fake in &fakes {
        members.push(fake.start().await);
    }
    for (fake, (epoch, cluster)) in fakes.iter().zip([(1, 0), (7, 0), (90, 1), (3, 0), (8, 0)]) {
        fake.script(|script| {
            (script.epoch, script.cluster, script.members) = (epoch, cluster, members.clone());
        });
    }
    fakes[4].script(|script| script.silent = true);
    let client = Client::connect(ClientOptions::pinned(members[0].clone())).unwrap();
    let admin = client.admin();
    let known = admin.topology().await.unwrap();
    assert_eq!(known.epoch.0, 2);
    let newest = admin.newest_topology(known.clone()).await;
    assert_eq!((newest.epoch.0, newest.cluster_id), (8, known.cluster_id));
    // The one that was silent tells it later.
    fakes[4].script(|script| script.silent = false);
    assert_eq!(admin.newest_topology(known).await.epoch.0, 9);
}

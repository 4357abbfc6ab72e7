//! What is advised after a change of a namespace whose fate is not known, against two nodes of which one was
//! cut off: it leads to the other one, can be typed as it stands, and sends the same request.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use kv_lab::NodeName;
use kv_lab::control::{NodeView, Reply};
use kv_proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use kv_proto::v1::kv_service_server::{KvService, KvServiceServer};
use kv_proto::{admin, status_from_failure, v1};
use kv_types::{Failure, Reason};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A change that was asked for: its name, and the client, number and attempt of its request.
type Asked = (&'static str, Vec<u8>, u64, u32);

/// A node of two.
#[derive(Clone)]
struct Fake {
    id: u64,
    addresses: [String; 2],
    /// It reaches a quorum, and leads; otherwise what becomes of a change is not known to it.
    quorum: bool,
    /// It has seen the catalogue; otherwise it waits for the other one, to start for the first time.
    started: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// What the puts were to supersede.
    superseded: Arc<Mutex<Vec<v1::WriteContext>>>,
    /// What they were to store.
    values: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The namespaces that they were for.
    written: Arc<Mutex<BTreeSet<String>>>,
    /// It does not answer the first attempt of a change.
    holds: bool,
}

/// No clock is there yet.
const AHEAD_MS: u64 = 9_000_000_000_000;
/// The causal context of every key.
const CONTEXT: &[u8] = b"all that there is";

impl Fake {
    async fn change(&self, what: &'static str, mutation: Option<v1::Mutation>) -> Result<(), Status> {
        if !self.started {
            return Err(not_started());
        }
        let mutation = mutation.unwrap();
        if mutation.issued_at_ms > AHEAD_MS {
            let ahead = Failure::new(Reason::RequestIdInvalid, "issued in the future");
            return Err(status_from_failure(&ahead.with("clock_ahead_ms", 1)));
        }
        let asked = (what, mutation.client_id.to_vec(), mutation.seq, mutation.attempt);
        self.asked.lock().unwrap().push(asked);
        if self.holds && mutation.attempt == 1 {
            std::future::pending::<()>().await;
        }
        let open = Failure::new(Reason::ResultUnknown, "not committed before the deadline");
        if self.quorum { Ok(()) } else { Err(status_from_failure(&open)) }
    }
}

/// The namespace of all answers.
fn cart() -> Option<admin::Namespace> {
    Some(admin::Namespace {
        id: 1,
        name: "cart".into(),
        mode: admin::Mode::Available.into(),
        guarantee: v1::Guarantee::Eventual.into(),
        ring: 1,
        n: 3,
        r: 2,
        w: 2,
        sloppy: true,
        deleted_until_ms: None,
        ..Default::default()
    })
}

/// A namespace of the other mode.
fn bank() -> Option<admin::Namespace> {
    Some(admin::Namespace {
        id: 2,
        name: "bank".into(),
        mode: admin::Mode::Strong.into(),
        guarantee: v1::Guarantee::Linearizable.into(),
        group: 1,
        ..Default::default()
    })
}

fn receipt() -> Option<v1::Receipt> {
    let path = v1::ReadPath::Log.into();
    let evidence = v1::StrongEvidence { group: 0, term: 1, index: 7, path, ..Default::default() };
    Some(v1::Receipt {
        promised: v1::Guarantee::Linearizable.into(),
        delivered: v1::Guarantee::Linearizable.into(),
        evidence: Some(v1::receipt::Evidence::Strong(evidence)),
        ..Default::default()
    })
}

fn not_started() -> Status {
    status_from_failure(&Failure::new(Reason::NotReady, "this node has not seen the catalogue yet"))
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
        self.change("create", request.into_inner().mutation).await?;
        Ok(Response::new(admin::CreateNamespaceResponse { namespace: cart(), receipt: receipt() }))
    }

    async fn delete_namespace(
        &self,
        request: Request<admin::DeleteNamespaceRequest>,
    ) -> Result<Response<admin::DeleteNamespaceResponse>, Status> {
        self.change("delete --now", request.into_inner().mutation).await?;
        Ok(Response::new(admin::DeleteNamespaceResponse { namespace: cart(), receipt: receipt() }))
    }

    async fn schedule_deletion(
        &self,
        request: Request<admin::ScheduleDeletionRequest>,
    ) -> Result<Response<admin::ScheduleDeletionResponse>, Status> {
        self.change("delete", request.into_inner().mutation).await?;
        Ok(Response::new(admin::ScheduleDeletionResponse { namespace: cart(), receipt: receipt() }))
    }

    async fn undelete_namespace(
        &self,
        request: Request<admin::UndeleteNamespaceRequest>,
    ) -> Result<Response<admin::UndeleteNamespaceResponse>, Status> {
        self.change("undelete", request.into_inner().mutation).await?;
        Ok(Response::new(admin::UndeleteNamespaceResponse { namespace: cart(), receipt: receipt() }))
    }

    async fn alter_namespace(
        &self,
        request: Request<admin::AlterNamespaceRequest>,
    ) -> Result<Response<admin::AlterNamespaceResponse>, Status> {
        self.change("alter", request.into_inner().mutation).await?;
        Ok(Response::new(admin::AlterNamespaceResponse { namespace: cart(), receipt: receipt() }))
    }

    async fn list_namespaces(
        &self,
        _: Request<admin::ListNamespacesRequest>,
    ) -> Result<Response<admin::ListNamespacesResponse>, Status> {
        match self.started {
            true => unused(),
            false => Err(not_started()),
        }
    }

    async fn get_topology(
        &self,
        _: Request<admin::GetTopologyRequest>,
    ) -> Result<Response<admin::GetTopologyResponse>, Status> {
        let member = |(id, address): (u64, &String)| admin::Member {
            id,
            client_address: address.clone(),
            ..Default::default()
        };
        Ok(Response::new(admin::GetTopologyResponse {
            cluster_id: vec![7; 16].into(),
            answered_by: self.id,
            epoch: if self.started { 4 } else { 0 },
            members: (1..).zip(&self.addresses).map(member).collect(),
            namespaces: [cart(), bank()].into_iter().flatten().filter(|_| self.started).collect(),
            ..Default::default()
        }))
    }

    async fn get_status(
        &self,
        _: Request<admin::GetStatusRequest>,
    ) -> Result<Response<admin::GetStatusResponse>, Status> {
        let (quorum, leader) = (self.quorum, if self.quorum { self.id } else { 0 });
        let catalogue = admin::GroupStatus { group: 0, quorum, leader, term: self.id, ..Default::default() };
        let groups = vec![catalogue];
        let epoch = if self.started { 4 } else { 0 };
        let state = if self.started { admin::PeerState::Up } else { admin::PeerState::Down };
        let peers = vec![admin::PeerStatus { node: 3 - self.id, state: state.into(), ..Default::default() }];
        let status = admin::GetStatusResponse { node: self.id, epoch, groups, peers, ..Default::default() };
        Ok(Response::new(status))
    }

    async fn transfer_leader(
        &self,
        request: Request<admin::TransferLeaderRequest>,
    ) -> Result<Response<admin::TransferLeaderResponse>, Status> {
        let to = request.into_inner().to;
        if !self.quorum {
            // As one that is cut off, and is asked first.
            few(b"cut")?;
        }
        Err(status_from_failure(&Failure::new(Reason::Unreachable, format!("n{to} does not answer"))))
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

/// Of the key `few` too few replicas are in reach, and of `cut` too few voters.
fn few(key: &[u8]) -> Result<(), Status> {
    let failure = match key {
        b"few" => Failure::new(Reason::QuorumNotMet, "1 of 3 replicas answered, 2 needed"),
        b"cut" => Failure::new(Reason::NoQuorum, "1 of 3 voters reachable, 2 needed")
            .with("reachable", 1)
            .with("required", 2),
        _ => return Ok(()),
    };
    Err(status_from_failure(&failure))
}

/// The key `ss` has three concurrent values, any other key one. Of `far` only nodes without a copy answer.
#[tonic::async_trait]
impl KvService for Fake {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let key = request.into_inner().key;
        few(&key)?;
        let several = if key == "ss" { 3 } else { 1 };
        let sibling = |counter: u64| v1::Sibling {
            value: format!("value {counter}").into(),
            incarnation: 1 << 32,
            counter,
            client_id: vec![7; 16].into(),
            seq: counter,
            ..Default::default()
        };
        Ok(Response::new(v1::GetResponse {
            presence: if key == "far" { v1::Presence::NoKnowledge } else { v1::Presence::Found }.into(),
            siblings: (1..=several).map(sibling).collect(),
            context: CONTEXT.into(),
            receipt: receipt(),
            ..Default::default()
        }))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let request = request.into_inner();
        few(&request.key)?;
        self.change("put", request.mutation).await?;
        self.superseded.lock().unwrap().extend(request.context);
        self.values.lock().unwrap().push(request.value.to_vec());
        self.written.lock().unwrap().insert(request.namespace);
        Ok(Response::new(v1::PutResponse {
            context: CONTEXT.into(),
            receipt: receipt(),
            ..Default::default()
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.change("del", request.into_inner().mutation).await?;
        Ok(Response::new(v1::DeleteResponse {
            context: CONTEXT.into(),
            receipt: receipt(),
            ..Default::default()
        }))
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Result<Response<v1::CompareAndSetResponse>, Status> {
        self.change("cas", request.into_inner().mutation).await?;
        Ok(Response::new(v1::CompareAndSetResponse {
            swapped: true,
            revision: 8,
            receipt: receipt(),
            ..Default::default()
        }))
    }
}

/// n1, which was cut off, and n2, which goes on.
struct Two {
    nodes: [Fake; 2],
    home: tempfile::TempDir,
}

impl Two {
    fn serve() -> Self {
        Self::serve_as(true)
    }

    /// A cluster that does not answer what it is asked to change, unless it is asked again.
    fn serve_holding() -> Self {
        Self::serve_each(true, true, true)
    }

    /// A cluster of which a majority is gone: what becomes of a change is known to no node.
    fn serve_without_quorum() -> Self {
        Self::serve_with(true, false)
    }

    fn serve_as(started: bool) -> Self {
        Self::serve_with(started, true)
    }

    fn serve_with(started: bool, quorum: bool) -> Self {
        Self::serve_each(started, quorum, false)
    }

    fn serve_each(started: bool, quorum: bool, holds: bool) -> Self {
        let bind = || TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let incoming = [bind(), bind()];
        let addresses = [0, 1].map(|at| incoming[at].local_addr().unwrap().to_string());
        let node = |id: u64| Fake {
            id,
            addresses: addresses.clone(),
            quorum: quorum && id == 2,
            started,
            asked: Arc::default(),
            superseded: Arc::default(),
            values: Arc::default(),
            written: Arc::default(),
            holds,
        };
        let nodes = [node(1), node(2)];
        for (node, incoming) in nodes.iter().zip(incoming) {
            let server = tonic::transport::Server::builder()
                .add_service(AdminServiceServer::new(node.clone()))
                .add_service(KvServiceServer::new(node.clone()));
            tokio::spawn(server.serve_with_incoming(incoming));
        }
        Self { nodes, home: tempfile::tempdir().unwrap() }
    }

    fn address(&self, node: usize) -> &str {
        &self.nodes[0].addresses[node - 1]
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(line.split(' ')).env_clear().stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.home.path()).env("XDG_STATE_HOME", self.home.path());
        command
    }

    async fn run(&self, line: &str) -> Output {
        let mut command = self.command(line);
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
    }

    /// From now on its context is that of a lab: see [`serve_lab`].
    fn is_a_lab(&self, broken: Broken) {
        let dir = self.home.path().join("the-lab");
        std::fs::create_dir_all(&dir).unwrap();
        serve_lab(&dir, &self.nodes[0].addresses, broken);
        std::fs::create_dir_all(self.home.path().join("kvctl")).unwrap();
        let endpoints = self.nodes[0].addresses.clone().map(|address| format!("\"{address}\"")).join(", ");
        let dir = dir.display();
        let lab = format!("current = \"lab\"\n[context.lab]\nendpoints = [{endpoints}]\nlab = \"{dir}\"\n");
        std::fs::write(self.home.path().join("kvctl/config.toml"), lab).unwrap();
    }

    /// A line that is told to end by this signal when `begun` says so.
    async fn interrupted(&self, line: &str, signal: &str, begun: impl FnOnce()) -> Output {
        let mut command = self.command(line);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        tokio::task::block_in_place(begun);
        let told = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(told.success());
        tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap()
    }

    /// The lines of a script in `kvctl shell`, which is given these words before.
    async fn shell(&self, words: &str, script: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(words.split(' ')).arg("shell").env_clear();
        command.env("XDG_CONFIG_HOME", self.home.path()).env("XDG_STATE_HOME", self.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let script = script.to_owned();
        let run = move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

/// The lines that an error advises, without the name of the program.
fn advised(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = |line: &str| {
        let line = line.trim_start().trim_start_matches("try: ").strip_prefix("kvctl ")?;
        Some(line.split("   (").next().unwrap().trim_end().to_owned())
    };
    text.lines().filter_map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_unknown_change_of_a_namespace_the_node_with_a_quorum_is_asked() {
    for (line, what) in [
        ("ns create cart --mode available --n 3", "create"),
        ("ns delete cart", "delete"),
        ("ns delete cart --grace 1h", "delete"),
        ("ns delete cart --now", "delete --now"),
        ("ns undelete cart", "undelete"),
        ("ns alter cart --r 1", "alter"),
    ] {
        let two = Two::serve();
        let output = two.run(&format!("-e {} {line} --timeout 500ms", two.address(1))).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{line}: {text}");
        let (lines, at_two) = (advised(&output), format!("-e {} ns ", two.address(2)));
        assert_eq!(lines.len(), 2, "{line}: {text}");
        assert!(lines.iter().all(|line| line.starts_with(&at_two)), "{line}: {text}");
        assert!(lines[0].contains("--request-id ") && lines[1].ends_with("ns list"), "{line}: {text}");
        for advice in &lines {
            let done = two.run(advice).await;
            assert_eq!(done.status.code(), Some(0), "{advice}: {}", String::from_utf8_lossy(&done.stderr));
        }
        let first = two.nodes[0].asked.lock().unwrap()[0].clone();
        let again = two.nodes[1].asked.lock().unwrap().clone();
        let (_, client, number, _) = first;
        assert_eq!(
            again,
            [(what, client, number, 2)],
            "{line}: the same request, as one that was sent before"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_a_node_without_a_quorum_says_that_it_may_be_old() {
    let two = Two::serve();
    for line in ["ns list", "ns show cart", "ls"] {
        for (node, quorum) in [(1, false), (2, true)] {
            let output = two.run(&format!("-e {} {line}", two.address(node))).await;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{line}: {text}");
            let says = format!("warning: as n{node} knows it, which reaches no quorum");
            assert_eq!(text.contains(&says), !quorum, "{line} at n{node}: {text}");
            let output = two.run(&format!("-e {} {line} -o json", two.address(node))).await;
            let first = output.stdout.split(|byte| *byte == b'\n').next().unwrap();
            let read: serde_json::Value = serde_json::from_slice(first).unwrap();
            assert_eq!(read["answered_by"], format!("n{node}"), "{line}: {read}");
            assert_eq!(read["quorum"], quorum, "{line}: {read}");
            let warned = serde_json::from_slice::<serde_json::Value>(&output.stderr).ok();
            let warned = warned.is_some_and(|said| said["warning"].is_string());
            assert_eq!(warned, !quorum, "{line} at n{node}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_names_the_node_that_it_waits_for() {
    let two = Two::serve_as(false);
    let says = "n1 waits for n2, which does not answer: a first start needs more than a majority";
    for (line, applied) in
        [("put -n cart k v", true), ("get -n cart k", false), ("ns create x --mode strong", true)]
    {
        let line = format!("-e {} {line} --timeout 500ms", two.address(1));
        let output = two.run(&line).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{line}: {text}");
        assert!(text.contains(says) && text.contains("reason: NOT_READY"), "{line}: {text}");
        assert_eq!(text.contains("applied: no"), applied, "{line}: {text}");
    }
    let output = two.run(&format!("-e {} cluster status", two.address(1))).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("NOT READY") && text.contains(says), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_namespace_is_named_as_it_is() {
    let two = Two::serve();
    for (line, meant) in [
        ("get -n CART k", "get -n cart k"),
        ("put -n crat k v", "put -n cart k v"),
        ("ns show Cart", "ns show cart"),
        ("ns delete CART", "ns delete cart"),
        ("bench -n caart --for 1s", "bench --for 1s -n cart"),
    ] {
        let output = two.run(&format!("-e {} {line}", two.address(2))).await;
        let lines = advised(&output);
        let meant = format!("-e {} {meant}", two.address(2));
        assert_eq!(lines.first(), Some(&meant), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = two.run(&format!("-e {} get -n ledger k", two.address(2))).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("--mode strong ledger"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_get_did_not_show_was_not_seen() {
    let two = Two::serve();
    let at = format!("-e {} -n cart", two.address(2));
    // A pipe takes one value, and none was shown.
    let refused = two.shell(&at, "get ss\nput ss MERGED --seen\n").await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("line 1: error: cart/ss has 3 concurrent values"), "{text}");
    assert!(text.contains("line 2: error: cart/ss was not read in this shell yet"), "{text}");
    assert!(two.nodes[1].asked.lock().unwrap().is_empty(), "{text}");
    for get in ["get ss --all", "get ss -o json", "get one", "get ss --all\nget ss"] {
        let key = if get.contains("ss") { "ss" } else { "one" };
        let merged = two.shell(&at, &format!("{get}\nput {key} MERGED --seen\n")).await;
        let text = String::from_utf8_lossy(&merged.stderr).into_owned();
        let superseded = two.nodes[1].superseded.lock().unwrap().pop().expect(&text);
        let seen = v1::write_context::Context::Causal(CONTEXT.into());
        assert_eq!(superseded.context, Some(seen), "{get}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_use_no_namespace_is_selected() {
    let two = Two::serve();
    let at = format!("-e {} -n cart", two.address(2));
    for failing in ["use crat", "use No!", "use", "use cart x", "use 'cart", "kvctl use crat"] {
        let script = format!("{failing}\nput alice 1\nput alice 2 -n cart\nuse cart\nput alice 3\n");
        let output = two.shell(&at, &script).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("line 1: error: "), "{failing}: {text}");
        assert!(text.contains("line 2: error: no namespace is selected: `"), "{failing}: {text}");
        let done = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(done.matches("OK  cart/alice").count(), 2, "{failing}: {done}{text}");
    }
    // Nor does the one of the environment or of the context take its place.
    assert_eq!(two.run(&format!("ctx add two -e {} -n cart", two.address(2))).await.status.code(), Some(0));
    let output = two.shell("-c two", "use crat\nput alice 1\n").await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("line 2: error: no namespace is selected: `use crat` before it failed"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_a_script_may_end_as_on_windows() {
    let two = Two::serve();
    let at = format!("-e {} -n cart", two.address(2));
    let output = two.shell(&at, "put crk v1\r\nput crk v2\r").await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let values: Vec<_> = two.nodes[1].values.lock().unwrap().clone();
    assert_eq!(values, [b"v1", b"v2"], "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_benchmark_leaves_a_namespace_alone_that_its_line_does_not_name() {
    let two = Two::serve();
    assert_eq!(two.run(&format!("ctx add two -e {} -n cart", two.address(2))).await.status.code(), Some(0));
    let bench = "bench --for 200ms --clients 1 --workload put --mode available\n";
    for (words, script) in [
        ("-c two", bench.to_owned()),
        ("-n cart", bench.to_owned()),
        ("-c two", format!("use cart\n{bench}")),
        ("-c two", bench.replace(" --mode available", "")),
    ] {
        let output = two.shell(words, &script).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let asked: Vec<_> = two.nodes[1].asked.lock().unwrap().drain(..).map(|(what, ..)| what).collect();
        assert_eq!(asked.first(), Some(&"create"), "{words}, {script}: {text}");
        assert!(!two.nodes[1].written.lock().unwrap().contains("cart"), "{words}, {script}: {text}");
    }
    let line = "bench -n cart --for 200ms --clients 1 --workload put\n";
    let output = two.shell("-c two", line).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(two.nodes[1].written.lock().unwrap().contains("cart"), "{text}");
}

/// What is asked of the nodes is not counted with the load: with one client all of them are asked at
/// once. And what stays in a namespace of another is said, with the line that removes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_benchmark_asks_nodes_beside_its_load_and_says_what_it_leaves() {
    let two = Two::serve();
    let line = format!("-e {} bench -n cart --clients 1 --keys 7 --workload put --for 200ms", two.address(2));
    let output = two.run(&format!("{line} -o json")).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect(&text);
    let hardware = said["hardware"].as_str().unwrap();
    assert!(hardware.ends_with("shared by the client and 2 nodes"), "{hardware}");
    let text = String::from_utf8_lossy(&two.run(&line).await.stderr).into_owned();
    let removes = format!("  seq -f 'del bench/%07.0f' 0 6 | kvctl -e {} shell -n cart -q", two.address(2));
    assert!(text.lines().any(|line| line == removes), "{text}");
    two.nodes[1].asked.lock().unwrap().clear();
    let typed = removes.replace("kvctl", env!("CARGO_BIN_EXE_kvctl"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &typed]).env("XDG_CONFIG_HOME", two.home.path());
    shell.env("XDG_STATE_HOME", two.home.path()).stdin(Stdio::null());
    let removed = tokio::task::spawn_blocking(move || shell.output()).await.unwrap().unwrap();
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let asked: Vec<_> = two.nodes[1].asked.lock().unwrap().iter().map(|(what, ..)| *what).collect();
    assert_eq!(asked, ["del"; 7]);
    // What a benchmark made for itself it removes, and nothing stays.
    let own = format!("-e {} bench --for 200ms --clients 1 --workload put", two.address(2));
    let text = String::from_utf8_lossy(&two.run(&own).await.stderr).into_owned();
    assert!(!text.contains("seq -f"), "{text}");
}

/// A line that is advised in a shell can be typed outside of it as well: it says all that the shell was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shell_advises_says_what_the_shell_was_told() {
    let two = Two::serve();
    let at = two.address(2);
    for (told, says) in [
        (format!("-e {at} --timeout 700ms"), format!("-e {at} get --timeout 700ms -n cart k")),
        (format!("-e {at} -v --color never"), format!("-e {at} get -v --color never -n cart k")),
        (format!("-e {at} -o raw"), format!("-e {at} get -o raw -n cart k")),
    ] {
        let output = two.shell(&told, "get -n CART k\n").await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
        let advice = advised(&output);
        assert_eq!(advice.first().map(|line| words(line)), Some(words(&says)), "{told}: {text}");
        assert_eq!(two.run(&advice[0]).await.status.code(), Some(0), "{}", advice[0]);
    }
    // One that asks about the cluster asks the same one.
    let output = two.run("-e localhost get -n cart k").await;
    assert_eq!(advised(&output), ["-e localhost ctx show"]);
    // What the shell was told beats what is set around it.
    let mut shell = two.command(&format!("-e {at} -o text shell"));
    shell.env("KVCTL_OUTPUT", "json").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"version\n").unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.stdout.starts_with(b"kvctl "), "{}", String::from_utf8_lossy(&output.stdout));
}

/// As `kvctl shell < lines | head -1`: what no one reads is not done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_ends_when_no_one_reads_what_it_says() {
    let two = Two::serve();
    for format in ["", "-o json "] {
        two.nodes[1].values.lock().unwrap().clear();
        let mut command = two.command(&format!("{format}-e {} -n cart shell", two.address(2)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        input.write_all(b"put a 1\n").unwrap();
        let mut first = String::new();
        output.read_line(&mut first).unwrap();
        drop(output);
        // The first of these may be under way before it is known that no one reads on.
        let written = input.write_all(b"put b 2\nput c 3\nput d 4\nversion\n");
        let broken = written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
        assert!(written.is_ok() || broken, "{written:?}");
        // Its input stays open: it ends by itself.
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        drop(input);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        // Lines were not run, and a script of writes must not pass for done.
        assert_eq!((ended.status.code(), text.as_str()), (Some(141), ""), "{first}");
        let values = two.nodes[1].values.lock().unwrap().clone();
        assert!(values.len() <= 2 && values[0] == b"1", "{values:?}");
    }
}

/// How a signal is sent, and the exit code after it.
const SIGNALS: [(&str, i32); 2] = [("-INT", 130), ("-TERM", 143)];

/// The command under way is told too, and no other line is begun: also where no terminal tells both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_a_script_with_the_line_that_it_is_at() {
    for (signal, code) in SIGNALS {
        let two = Two::serve_holding();
        let node = Arc::clone(&two.nodes[1].asked);
        let mut command = two.command(&format!("-e {} -n cart --timeout 30s shell", two.address(2)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Nothing says that the script is at its end.
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"put k first\nput k second\n").unwrap();
        let output = tokio::task::block_in_place(|| {
            while node.lock().unwrap().is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
            let output = child.wait_with_output().unwrap();
            drop(input);
            output
        });
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains("line 1: error: ") && text.contains("RESULT_UNKNOWN"), "{text}");
        assert_eq!(node.lock().unwrap().len(), 1, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_change_is_named_and_can_be_sent_again() {
    // Longer than anything waits here: without an answer to the first attempt a second one would be sent.
    for (line, what) in [
        ("put -n cart --timeout 24h k v", "put"),
        ("del -n cart --timeout 24h k", "del"),
        ("cas --expect-absent -n cart --timeout 24h k v", "cas"),
        ("ns create --mode strong --timeout 24h x", "create"),
        ("ns delete --timeout 24h cart", "delete"),
        ("ns delete --now --timeout 24h cart", "delete --now"),
        ("ns undelete --timeout 24h cart", "undelete"),
        ("ns alter --r 1 --timeout 24h cart", "alter"),
    ] {
        for (signal, code) in SIGNALS {
            let two = Two::serve_holding();
            let node = &two.nodes[1];
            let asked = || node.asked.lock().unwrap().first().cloned();
            let begun = || {
                while asked().is_none() {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            };
            let at = format!("-e {}", two.address(2));
            let output = two.interrupted(&format!("{at} {line}"), signal, begun).await;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{signal} {line}: {text}");
            assert!(
                text.contains("applied: unknown    reason: RESULT_UNKNOWN    request: "),
                "{line}: {text}"
            );
            // The very line, with the id under which the node has it.
            let (_, client, number, _) = asked().unwrap();
            let hex: String = client.iter().map(|byte| format!("{byte:02x}")).collect();
            let lines = advised(&output);
            let id = lines[0].split(' ').find(|word| word.contains('@')).expect(&text);
            assert!(id.starts_with(&format!("{hex}:{number}@")), "{line}: {text}");
            let same = lines[0].replace(&format!("--request-id {id} "), "");
            assert_eq!(same, format!("{at} {line}"), "{text}");
            let done = two.run(&lines[0]).await;
            assert_eq!(
                done.status.code(),
                Some(0),
                "{}: {}",
                lines[0],
                String::from_utf8_lossy(&done.stderr)
            );
            let again = node.asked.lock().unwrap()[1].clone();
            assert_eq!(again, (what, client, number, 2), "{line}: the same request");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_interrupted_before_it_was_sent_was_not_applied() {
    for (signal, code) in SIGNALS {
        let two = Two::serve_holding();
        let pipe = two.home.path().join("key");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let line = format!("-e {} -n cart put --key-file {} v", two.address(2), pipe.display());
        // It reads its key, which does not come.
        let mut open = None;
        let begun = || open = Some(std::fs::File::options().write(true).open(&pipe).unwrap());
        let output = two.interrupted(&line, signal, begun).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        let says = "error: interrupted before the write was sent: nothing was applied\n       applied: no\n";
        assert!(text.starts_with(says), "{text}");
        assert!(two.nodes[1].asked.lock().unwrap().is_empty() && !text.contains("--request-id"), "{text}");
        drop(open);
        let mut open = None;
        let begun = || open = Some(std::fs::File::options().write(true).open(&pipe).unwrap());
        let output = two.interrupted(&format!("{line} -o json"), signal, begun).await;
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(
            (&said["error"]["applied"], &said["error"]["exit"]),
            (&"no".into(), &code.into()),
            "{said}"
        );
    }
}

/// What is broken in a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// All nodes but the last are down.
    Nodes,
    /// The link between the first two is cut.
    Links,
    Both,
    /// The first is cut off from the second and from a third, which answers nowhere.
    First,
}

/// A lab in this folder, as its process says.
fn serve_lab(dir: &std::path::Path, addresses: &[String], broken: Broken) {
    let dead = matches!(broken, Broken::Nodes | Broken::Both);
    let third = (broken == Broken::First).then(|| "127.0.0.1:1".to_owned());
    let node = |(id, address): (u64, &String)| NodeView {
        node: NodeName(kv_types::NodeId(id)),
        client_address: address.clone(),
        peer_address: String::new(),
        up: !dead || id == 2,
        pid: None,
        paused: false,
    };
    let name = |id| NodeName(kv_types::NodeId(id));
    let cut = |to| kv_lab::Fault { from: name(1), to: name(to), flow: kv_lab::Flow::Swallow };
    let status = Reply::Status(kv_lab::control::Status {
        pid: 1,
        dir: dir.to_owned(),
        port_base: 7_100,
        nodes: (1..).zip(addresses.iter().chain(&third)).map(node).collect(),
        faults: match broken {
            Broken::Nodes => Vec::new(),
            Broken::Links | Broken::Both => vec![cut(2)],
            Broken::First => vec![cut(2), cut(3)],
        },
        faults_for_ms: None,
    });
    let said = serde_json::to_string(&status).unwrap() + "\n";
    let socket = std::os::unix::net::UnixListener::bind(dir.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in socket.incoming() {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            std::io::BufReader::new(&stream).read_line(&mut request).unwrap();
            let _ = stream.write_all(said.as_bytes());
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_majority_is_dead_the_advice_begins_with_its_nodes() {
    let two = Two::serve_without_quorum();
    two.is_a_lab(Broken::Nodes);
    for line in ["put -n cart k v", "ns delete cart", "ns create x --mode strong", "bench --for 1s"] {
        let output = two.run(&format!("{line} --timeout 500ms")).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{line}: {text}");
        let lines = advised(&output);
        assert!(lines.iter().any(|line| line == "lab restart --name lab n1"), "{line}: {text}");
        let error = text.split("error: ").nth(1).unwrap();
        assert!(error.contains("  try: kvctl lab restart --name lab n1 "), "{line}: {text}");
        assert!(!text.contains("read, then decide"), "{line}: {text}");
    }
}

/// Where too few replicas are in reach, a lab is known to have nodes that are down, or links that are cut;
/// elsewhere the cluster is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_replicas_are_out_of_reach_the_advice_is_about_what_is_known_to_be_down() {
    for (lab, first) in [
        (Some(Broken::Nodes), "lab restart --name lab n1"),
        (Some(Broken::Both), "lab restart --name lab n1"),
        (Some(Broken::Links), "fault list --name lab"),
        (None, "-c two cluster status"),
    ] {
        let two = Two::serve();
        let mut named = "";
        match lab {
            Some(broken) => two.is_a_lab(broken),
            None => {
                let add = format!("ctx add two -e {} -e {}", two.address(1), two.address(2));
                assert_eq!(two.run(&add).await.status.code(), Some(0));
                named = "-c two ";
            }
        }
        for (line, code) in [("get -n cart few", 3), ("put -n cart few v", 3), ("get -n cart far", 3)] {
            let output = two.run(&format!("{named}{line} --timeout 500ms")).await;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{line}: {text}");
            assert!(text.contains("reason: QUORUM_NOT_MET"), "{line}: {text}");
            let lines = advised(&output);
            assert_eq!(lines.first().map(String::as_str), Some(first), "{line}: {text}");
            let looks = lines.iter().any(|line| line.ends_with("cluster status"));
            assert_eq!(looks, matches!(lab, None | Some(Broken::Links)), "{line}: {text}");
            let cut = lines.iter().any(|line| line == "fault list --name lab");
            assert_eq!(cut, matches!(lab, Some(Broken::Links | Broken::Both)), "{line}: {text}");
        }
    }
}

/// No group of nodes has a majority, or another one than that which was asked: an election would not help.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_node_hears_a_majority_none_is_said_to_be_elected() {
    for (lab, at, first) in [
        (Some(Broken::Nodes), "", &["lab restart --name lab n1"][..]),
        (Some(Broken::Both), "", &["lab restart --name lab n1", "fault heal --name lab"]),
        (Some(Broken::Links), "", &["fault heal --name lab"]),
        (Some(Broken::First), "-e {1} ", &["-e {2} get -n cart cut"]),
        (Some(Broken::First), "", &["get -n cart cut"]),
        (None, "-e {1} -e {2} ", &["-e {1} -e {2} get -n cart cut"]),
    ] {
        let two = Two::serve();
        if let Some(broken) = lab {
            two.is_a_lab(broken);
        }
        let named = |line: &str| line.replace("{1}", two.address(1)).replace("{2}", two.address(2));
        let output = two.run(&named(&format!("{at}get -n cart cut"))).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{lab:?}: {text}");
        assert!(text.contains("reason: NO_QUORUM"), "{lab:?}: {text}");
        let lines = advised(&output);
        let first: Vec<String> = first.iter().map(|line| named(line)).collect();
        assert!(lines.starts_with(&first), "{lab:?}: {text}");
        // Of three nodes two have a majority, and elect.
        let elects = lab == Some(Broken::First) && at.is_empty();
        assert_eq!(text.contains("an election takes"), elects, "{lab:?}: {text}");
        let no_one = matches!(lab, Some(Broken::Nodes | Broken::Links | Broken::Both));
        assert_eq!(text.contains("no node hears a majority: "), no_one, "{lab:?}: {text}");
    }
}

/// A leadership stays where it is when the leader does not hear the node that was to have it: who leads, who
/// does not hear whom, and what mends that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leadership_that_does_not_move_says_who_does_not_hear_whom() {
    for (lab, first) in [
        (Some(Broken::Links), Some("fault heal --name lab")),
        (Some(Broken::Nodes), Some("lab restart --name lab n1")),
        (None, None),
    ] {
        let two = Two::serve();
        if let Some(broken) = lab {
            two.is_a_lab(broken);
        }
        let nodes = format!("-e {} -e {} ", two.address(1), two.address(2));
        let at = if lab.is_some() { "" } else { &nodes };
        let output = two.run(&format!("{at}cluster transfer-leader n1 --group 0 --timeout 500ms")).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{lab:?}: {text}");
        let says = "n2, which leads group 0, does not hear n1";
        assert!(text.replace("\n       ", " ").contains(says), "{lab:?}: {text}");
        let lines = advised(&output);
        let look = format!("{at}cluster status --as-seen-by all");
        assert_eq!(lines.first().map(String::as_str), first.or(Some(&*look)), "{lab:?}: {text}");
        assert_eq!(lines.last(), Some(&look), "{lab:?}: {text}");
    }
}

/// What a line has read from standard input is not there to be read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_advised_does_not_read_its_key_again() {
    let two = Two::serve_without_quorum();
    for (words, key) in [("put --key-file - v", "put --key-hex"), ("del --key-file -", "del --key-hex")] {
        let mut command = two.command(&format!("-e {} -n cart {words}", two.address(2)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a\xff").unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{text}");
        let lines = advised(&output);
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].contains(key) && lines[0].contains("--request-id ") && lines[0].contains(" 61ff"),
            "{text}"
        );
        assert!(lines[1].contains("get --key-hex") && lines[1].ends_with(" 61ff"), "{text}");
    }
}

/// An id that is ahead of the clock will be taken, and it is said when; a look settles nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_a_time_to_come_is_sent_again_then() {
    let two = Two::serve();
    let line =
        format!("-e {} put --request-id {}:1@9999999999999 -n cart k v", two.address(2), "0f".repeat(16));
    let output = two.run(&line).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert_eq!(advised(&output)[0], line, "{text}");
    assert!(text.contains("(again from 2286-11-20T17:46:39Z on: "), "{text}");
}

/// Options of the other mode are refused with the line that does without them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_the_other_mode_are_refused_with_the_line_without_them() {
    let two = Two::serve();
    let at = format!("-e {} ", two.address(2));
    for (typed, without) in [
        ("get -n bank -r 2 --strict k", "get -n bank k"),
        ("put -n bank --blind -w 3 k v", "put -n bank k v"),
        ("del -n bank --strict k", "del -n bank k"),
    ] {
        let output = two.run(&format!("{at}{typed}")).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{typed}: {text}");
        assert!(text.contains("belongs to available namespaces; bank is strong"), "{typed}: {text}");
        assert_eq!(advised(&output), [format!("{at}{without}"), "help consistency".to_owned()], "{text}");
    }
}

/// A change that changes nothing is not said to have been one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_nothing_is_said_to_be_none() {
    let two = Two::serve();
    let said = two.run(&format!("-e {} ns alter cart --r 2", two.address(2))).await;
    let out = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(out.starts_with("nothing changes, it is so already: cart"), "{out}");
}

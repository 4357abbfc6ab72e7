//! Connections to nodes. A connection is opened explicitly before the first call on it, so that *nothing was
//! sent* is known and not guessed; a broken one is dropped, and the next call opens another.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Uri;
use hyper_util::rt::TokioIo;
use kv_env::{Env, Network};
use kv_proto::failure_from_status;
use kv_proto::v1::session_answer::Answer as SessionAnswer;
use kv_proto::v1::session_request::Request as SessionRequest;
use kv_types::limits::MAX_PUBLIC_MESSAGE_BYTES;
use kv_types::{Applied, Failure, Reason};
use tokio::time::{Duration, Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::limits::{CONNECT_TIMEOUT, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, MAX_ENDPOINTS};
use crate::policy::{Breaker, refused_for_itself};
use crate::session_stream::{End, SessionStream, Unanswered, is_no_node};
use crate::speed::{Candidate, Speed};

/// The detail of a failure that names an address where something else than a node listens.
const NOT_A_NODE: &str = "not_a_node";
/// Largest message that a client accepts or sends.
pub(crate) const MESSAGE_BYTES: usize = MAX_PUBLIC_MESSAGE_BYTES;

/// One node, as far as this client is concerned.
pub(crate) struct Endpoint {
    pub(crate) address: String,
    breaker: Mutex<Breaker>,
    speed: Mutex<Speed>,
    open: Mutex<Option<Opened>>,
    /// Held while a connection is opened.
    dialing: tokio::sync::Mutex<()>,
    /// Dials begun; the number of a connection is that of its dial.
    dials: AtomicU64,
    /// Why the newest dial failed, and its number.
    failed: Mutex<Option<(u64, String)>>,
    network: Arc<dyn Network>,
}

/// An open connection and its number, by which the breaker counts it once.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) channel: Channel,
    number: u64,
    stream: Arc<Mutex<Stream>>,
}

/// The session stream of a connection.
#[derive(Default)]
enum Stream {
    /// None yet.
    #[default]
    None,
    Open(SessionStream),
    /// The node knows no such streams.
    Unknown,
}

impl Opened {
    /// The stream, opened if it has to be; `None` if the node knows none.
    fn stream(&self) -> Option<SessionStream> {
        let mut stream = lock(&self.stream);
        match &*stream {
            Stream::Unknown => return None,
            Stream::Open(open) if !open.is_over() => return Some(open.clone()),
            Stream::Open(_) | Stream::None => {}
        }
        let open = SessionStream::open(self.channel.clone());
        *stream = Stream::Open(open.clone());
        Some(open)
    }
}

/// A request whose time says how fast a node is, also if its caller leaves before it ends.
pub(crate) struct Asked<'a> {
    endpoint: &'a Endpoint,
    begun: Instant,
    ended: bool,
}

impl Asked<'_> {
    /// It was answered, or failed so.
    pub(crate) fn ended<T>(mut self, result: &Result<T, Failure>) {
        self.ended = true;
        let (now, mut speed) = (Instant::now(), lock(&self.endpoint.speed));
        let took = now - self.begun;
        match result {
            Ok(_) => speed.answered(now, took),
            Err(failure) if refused_for_itself(failure.reason) => speed.refused(now, took),
            Err(_) => speed.failed(now, took),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let now = Instant::now();
            lock(&self.endpoint.speed).failed(now, now - self.begun);
        }
    }
}

impl Endpoint {
    fn new(address: &str, network: Arc<dyn Network>) -> Self {
        Self {
            address: address.to_owned(),
            breaker: Mutex::default(),
            speed: Mutex::default(),
            open: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            dials: AtomicU64::new(0),
            failed: Mutex::default(),
            network,
        }
    }

    /// Whether a call may go there now.
    pub(crate) fn admit(&self) -> bool {
        lock(&self.breaker).admit(Instant::now())
    }

    /// Whether a connection to it is open.
    pub(crate) fn is_connected(&self) -> bool {
        lock(&self.open).is_some()
    }

    /// What is known of its speed.
    pub(crate) fn candidate(&self) -> Candidate<String> {
        let speed = lock(&self.speed);
        let (typical, expected) = (speed.typical(), speed.expected(Instant::now()));
        Candidate { replica: self.address.clone(), typical, expected }
    }

    /// It is asked now because of its speed.
    pub(crate) fn asked(&self) -> Asked<'_> {
        let begun = Instant::now();
        lock(&self.speed).asked(begun);
        Asked { endpoint: self, begun, ended: false }
    }

    /// There is no connection in the time of one attempt.
    pub(crate) fn connected_late(&self) -> Failure {
        self.unreachable("the connection took all the time of the attempt")
    }

    /// An open connection: `UNREACHABLE` when there is none in time.
    pub(crate) async fn connection(&self, deadline: Instant) -> Result<Opened, Failure> {
        if let Some(open) = lock(&self.open).clone() {
            return Ok(open);
        }
        let deadline = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let failed_before = lock(&self.failed).as_ref().map_or(0, |(number, _)| *number);
        match timeout_at(deadline, self.dial_once(deadline, failed_before)).await {
            Ok(result) => result.map_err(|why| self.unreachable(&why)),
            Err(_) => {
                // The dial that was waited for, whichever call began it.
                self.breaker_failure(self.dials.load(Ordering::Relaxed));
                Err(self.unreachable(&too_late()))
            }
        }
    }

    /// Dials, unless another call's dial ended since dial `failed_before` failed: its outcome is then that of
    /// both.
    async fn dial_once(&self, deadline: Instant, failed_before: u64) -> Result<Opened, String> {
        let _alone = self.dialing.lock().await;
        if let Some(open) = lock(&self.open).clone() {
            return Ok(open);
        }
        if let Some((number, why)) = lock(&self.failed).clone()
            && number > failed_before
        {
            return Err(why);
        }
        if Instant::now() >= deadline {
            return Err(too_late());
        }
        let number = self.dials.fetch_add(1, Ordering::Relaxed) + 1;
        match self.dial().await {
            Ok(channel) => {
                let open = Opened { channel, number, stream: Arc::default() };
                *lock(&self.open) = Some(open.clone());
                Ok(open)
            }
            Err(why) => {
                *lock(&self.failed) = Some((number, why.clone()));
                self.breaker_failure(number);
                Err(why)
            }
        }
    }

    fn breaker_failure(&self, connection: u64) {
        lock(&self.breaker).failure(Instant::now(), connection);
    }

    async fn dial(&self) -> Result<Channel, String> {
        let (network, address) = (Arc::clone(&self.network), self.address.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (network, address) = (Arc::clone(&network), address.clone());
            async move { network.dial(&address).await.map(TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|e| format!("`{}` is not an address: {e}", self.address))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        endpoint.connect_with_connector(connector).await.map_err(|e| root_cause(&e))
    }

    /// Sends a request on the session stream of connection `on`, which is opened where it is not open, and
    /// waits for its answer until the deadline. `None`: the node knows no such streams, and nothing was sent.
    /// `UNREACHABLE` where nothing could be sent, `CONNECTION_LOST` where the stream ended, `RESULT_UNKNOWN`
    /// where the node was silent.
    pub(crate) async fn ask(
        &self,
        on: &Opened,
        request: &SessionRequest,
        deadline: Instant,
    ) -> Option<Result<Option<SessionAnswer>, Failure>> {
        let mut why = None;
        // The stream that is there may just have ended: then nothing was sent, and a new one is opened.
        for _ in 0..2 {
            let stream = on.stream()?;
            match stream.ask(request.clone(), deadline).await {
                Ok(answer) => {
                    lock(&self.breaker).success();
                    return Some(Ok(answer));
                }
                Err(Unanswered::Unknown) => {
                    *lock(&on.stream) = Stream::Unknown;
                    return None;
                }
                Err(Unanswered::Late) => {
                    return Some(Err(self.unreachable("nothing could be sent by the deadline")));
                }
                Err(Unanswered::Refused(failure)) => {
                    lock(&self.breaker).success();
                    return Some(Err(failure));
                }
                Err(Unanswered::Silent) => return Some(Err(self.silent())),
                Err(Unanswered::NotSent(end)) if why != Some(End::NoNode) => why = Some(end),
                Err(Unanswered::NotSent(_)) => {}
                Err(Unanswered::Lost(end)) => {
                    self.broke(on);
                    let mut failure = match end {
                        End::NoNode => self.no_node(Reason::ConnectionLost),
                        End::Other(why) => {
                            let what = format!("the session stream to {} ended: {why}", self.address);
                            Failure::new(Reason::ConnectionLost, what)
                        }
                    };
                    if kv_types::mutant!(StreamEndNotApplied) {
                        failure.applied = Applied::No;
                    }
                    if kv_types::mutant!(ResendLost) {
                        failure.reason = Reason::Internal;
                    }
                    return Some(Err(failure));
                }
            }
        }
        self.broke(on);
        Some(Err(match why {
            Some(End::NoNode) => self.no_node(Reason::Unreachable),
            Some(End::Other(why)) => self.unreachable(&why),
            None => self.unreachable("no stream was opened"),
        }))
    }

    /// What became of a call that was handed to connection `on`: the node's own words where it sent some,
    /// otherwise what can be proven. Also settles what the breaker and the connection learn from it.
    pub(crate) fn settle<T>(&self, on: &Opened, result: Result<T, Status>) -> Result<T, Failure> {
        let failure = match result {
            Ok(answer) => {
                lock(&self.breaker).success();
                return Ok(answer);
            }
            Err(status) if refused_to_connect(&status) => self.unreachable(status.message()),
            // As likely as anything; it proves nothing about what was sent.
            Err(status) if is_no_node(&status) => self.no_node(Reason::ConnectionLost),
            Err(status) => {
                let failure = failure_from_status(&status);
                match (failure.reason, status.code()) {
                    // The deadline passed, and the node did not say what became of the request.
                    (Reason::ConnectionLost, Code::DeadlineExceeded | Code::Cancelled) => {
                        return Err(self.silent());
                    }
                    // As likely as anything; it proves nothing about what was sent.
                    (Reason::ConnectionLost, Code::Unimplemented) => Failure {
                        message: format!(
                            "{} does not serve clients: is that a port for peers?",
                            self.address
                        ),
                        ..failure
                    },
                    (Reason::ConnectionLost, _) => Failure {
                        message: format!("the connection to {} broke: {}", self.address, failure.message),
                        ..failure
                    },
                    _ => {
                        lock(&self.breaker).success();
                        return Err(failure);
                    }
                }
            }
        };
        self.broke(on);
        Err(failure)
    }

    fn broke(&self, on: &Opened) {
        // A later connection is not to blame.
        lock(&self.open).take_if(|open| open.number == on.number);
        self.breaker_failure(on.number);
    }

    /// It was sent a request and did not answer in time. The breaker does not count this: a node in a
    /// minority may be silent for good reason, and its next answer must not be hidden.
    pub(crate) fn silent(&self) -> Failure {
        Failure::new(Reason::ResultUnknown, format!("{} did not answer in time", self.address))
    }

    /// Something else than a node listens there; `reason` says whether a request was sent to it.
    fn no_node(&self, reason: Reason) -> Failure {
        let what = format!("what listens at {} is no kvd: it does not speak gRPC", self.address);
        Failure::new(reason, what).with("endpoint", &self.address).with(NOT_A_NODE, &self.address)
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::new(Reason::Unreachable, format!("cannot reach {}: {why}", self.address))
            .with("endpoint", &self.address)
    }
}

/// All the nodes that a client has met, a bounded number.
pub(crate) struct Pool {
    network: Arc<dyn Network>,
    endpoints: Mutex<BTreeMap<String, Arc<Endpoint>>>,
}

impl Pool {
    pub(crate) fn new(env: &Env) -> Self {
        Self { network: Arc::clone(&env.network), endpoints: Mutex::default() }
    }

    /// The node at this address.
    pub(crate) fn at(&self, address: &str) -> Arc<Endpoint> {
        let mut endpoints = lock(&self.endpoints);
        if let Some(known) = endpoints.get(address) {
            return Arc::clone(known);
        }
        let endpoint = Arc::new(Endpoint::new(address, Arc::clone(&self.network)));
        // Addresses come from options and from the catalogue, both bounded; one beyond the bound is not kept.
        if endpoints.len() < MAX_ENDPOINTS {
            endpoints.insert(address.to_owned(), Arc::clone(&endpoint));
        }
        endpoint
    }
}

/// `host:port` of an endpoint as people write it.
pub(crate) fn parse_address(text: &str) -> Result<String, Failure> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    let port = port.and_then(|port| port.parse::<u16>().ok()).filter(|_| !address.contains('/'));
    let why = match port {
        Some(1..) => return Ok(address.to_owned()),
        // It stands for a port that the system chooses, where one is opened.
        Some(0) => ": no node can be reached at port 0",
        None => "",
    };
    Err(Failure::new(
        Reason::InvalidRequest,
        format!("`{text}` is not an endpoint{why}; write host:port, as in 127.0.0.1:7101"),
    ))
}

/// How much of the time left is worth an attempt's deadline on the wire.
pub(crate) fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn too_late() -> String {
    format!("no connection within {} ms", CONNECT_TIMEOUT.as_millis())
}

fn refused_to_connect(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_host_and_port() {
        assert_eq!(parse_address("127.0.0.1:7101").as_deref(), Ok("127.0.0.1:7101"));
        assert_eq!(parse_address("http://node:1/").as_deref(), Ok("node:1"));
        assert_eq!(parse_address("[::1]:80").as_deref(), Ok("[::1]:80"));
        for wrong in ["", "node", ":1", "node:", "node:99999", "https://node:1", "node:1/path", "node:0/"] {
            assert!(parse_address(wrong).is_err(), "{wrong:?}");
        }
        for zero in ["127.0.0.1:0", "[::1]:00", "http://node:0"] {
            let refused = parse_address(zero).unwrap_err();
            assert!(refused.message.contains("no node can be reached at port 0"), "{}", refused.message);
        }
    }
}

//! What all handles of a client share, and the one loop that sends an operation: one deadline, bounded
//! attempts, one request id. Nothing else in Quorate retries.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select_ok;
use kv_env::Env;
use kv_proto::{admin, v1};
use kv_types::{Applied, Failure, Mutation, Placement, Reason, WriteId, counted, noun};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::endpoint::{Endpoint, Opened, Pool, parse_address, time_left};
use crate::limits::{
    ATTEMPT_GRACE, MAX_ATTEMPTS, MAX_SESSION_SLOTS, MIN_ATTEMPT, MIN_SHARE, SESSION_SPAN,
    STREAM_REQUEST_BYTES, TOPOLOGY_FAN_OUT, TOPOLOGY_INTERVAL, TOPOLOGY_TIMEOUT,
};
use crate::options::{ClientOptions, Via};
use crate::outcome::Error;
use crate::policy::{Budget, Effect, Next, RetryPolicy, Verdict, nothing_sent};
use crate::rpc::Rpc;
use crate::session::{Session, SessionSlot, Ticket};
use crate::session_stream::bytes_of;
use crate::speed::fastest_first;
use crate::topology::Topology;

/// Where an operation wants to go first.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Route<'a> {
    /// To the leader of this strong namespace.
    Leader(&'a str),
    /// To a node that keeps this key of an available namespace.
    Replica(&'a str, &'a [u8]),
    /// To any node.
    Any,
    /// To this node and no other.
    Node(&'a str),
}

pub(crate) struct Attempts {
    pub(crate) options: ClientOptions,
    pub(crate) env: Env,
    pool: Pool,
    policy: RetryPolicy,
    budget: Mutex<Budget>,
    in_flight: Semaphore,
    topology: Mutex<Option<Topology>>,
    /// When the topology was last asked for; held by the task that asks.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    /// The node that operations which any node serves begin with; moves on when it fails.
    start: AtomicUsize,
    sessions: Mutex<BTreeMap<String, Arc<SessionSlot>>>,
    available: Mutex<Arc<Session>>,
}

impl Attempts {
    pub(crate) fn new(mut options: ClientOptions, env: Env) -> Result<Self, Failure> {
        let invalid = |message: &str| Failure::new(Reason::InvalidRequest, message);
        options.endpoints =
            options.endpoints.iter().map(|text| parse_address(text)).collect::<Result<_, _>>()?;
        if options.endpoints.is_empty() {
            return Err(invalid("a client needs at least one endpoint"));
        }
        if options.pinned && options.endpoints.len() != 1 {
            return Err(invalid("a pinned client has exactly one endpoint"));
        }
        let start =
            if options.spread { usize::try_from(env.entropy.next_u64() >> 33).unwrap_or(0) } else { 0 };
        Ok(Self {
            pool: Pool::new(&env),
            policy: RetryPolicy::new(options.attempts),
            budget: Mutex::default(),
            in_flight: Semaphore::new(options.max_in_flight),
            topology: Mutex::default(),
            refreshed: tokio::sync::Mutex::default(),
            start: AtomicUsize::new(start),
            sessions: Mutex::default(),
            available: Mutex::new(Session::new(&env.entropy)),
            options,
            env,
        })
    }

    pub(crate) fn read_deadline(&self) -> Instant {
        Instant::now() + self.options.read_timeout
    }

    pub(crate) fn admin_deadline(&self) -> Instant {
        Instant::now() + self.options.admin_timeout
    }

    pub(crate) fn write_deadline(&self) -> Instant {
        Instant::now() + self.options.write_timeout
    }

    /// The session that all handles of a strong namespace share.
    pub(crate) fn session(&self, namespace: &str) -> Arc<SessionSlot> {
        let mut sessions = lock(&self.sessions);
        if let Some(slot) = sessions.get(namespace) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(SessionSlot::default());
        if sessions.len() < MAX_SESSION_SLOTS {
            sessions.insert(namespace.to_owned(), Arc::clone(&slot));
        }
        slot
    }

    /// The next request id for an available namespace: nothing is opened there, the scheme is the same.
    pub(crate) fn available_ticket(&self) -> Result<Ticket, Failure> {
        let mut session = lock(&self.available);
        if let Some(ticket) = session.issue() {
            return Ok(ticket);
        }
        *session = Session::new(&self.env.entropy);
        session.issue().ok_or_else(|| Failure::new(Reason::ClientLimit, "a new session has no room"))
    }

    /// What the servers are told of a write beside its operation, and how it is named to send it again. The
    /// caller's observer is told too: what is made here is about to be sent.
    pub(crate) fn mutation(&self, ticket: &Ticket) -> (v1::Mutation, WriteId) {
        let id = WriteId { request_id: ticket.request_id(), issued_at_ms: self.env.clock.wall_ms() };
        if let Some(observer) = &self.options.observer {
            observer.observe(id);
        }
        let mutation = Mutation {
            request_id: id.request_id,
            issued_at_ms: id.issued_at_ms,
            lowest_unacked: ticket.lowest_unacked(),
            attempt: 1,
        };
        (mutation.into(), id)
    }

    /// Sends a write that was sent before, by this process or another one.
    pub(crate) async fn resend<Q: Rpc>(
        &self,
        id: WriteId,
        route: Route<'_>,
        deadline: Instant,
        build: impl FnOnce(Option<v1::Mutation>) -> Q,
    ) -> Result<Q::Reply, Error> {
        let mutation = Mutation {
            request_id: id.request_id,
            issued_at_ms: id.issued_at_ms,
            // Nothing is known of the others of its session: as little as may be is given up.
            lowest_unacked: id.request_id.seq.saturating_sub(SESSION_SPAN).max(1),
            attempt: 2,
        };
        let request = build(Some(mutation.into()));
        let result = self.run(request, Effect::Again, route, deadline).await;
        result.map_err(|error| error.of_write(id))
    }

    /// Sends one operation until it is answered, refused for good, or out of time or attempts.
    pub(crate) async fn run<Q: Rpc>(
        &self,
        mut request: Q,
        effect: Effect,
        route: Route<'_>,
        deadline: Instant,
    ) -> Result<Q::Reply, Error> {
        let mut verdict = Verdict::of(effect).in_one_log(effect, !matches!(route, Route::Replica(..)));
        let Ok(_permit) = self.in_flight.try_acquire() else {
            let most = self.options.max_in_flight;
            let (operations, are) = (counted(most, "operation", "operations"), noun(most, "is", "are"));
            let message = format!("{operations} of this client {are} in flight already");
            return Err(verdict.conclude(Failure::new(Reason::ClientLimit, message), 0).into());
        };
        let pinned = self.options.pinned || matches!(route, Route::Node(_));
        if !pinned && !self.knows(route) {
            self.refresh(&[], deadline).await;
        }
        let mut tried: Vec<String> = Vec::new();
        let mut hint: Option<String> = None;
        let (mut attempt, mut awaited, mut looked) = (1, 0, 0);
        let replicas = !pinned && matches!(route, Route::Replica(..));
        loop {
            request.stamp(verdict.attempt());
            let known = tried.len();
            let number = (attempt, attempt - awaited - looked);
            let begun = Instant::now();
            let asked = self.ask_one(&request, route, hint.take(), &mut tried, number, deadline).await;
            // Less than a third of the time that there was: more of such attempts still fit.
            let soon = begun.elapsed() < time_left(deadline) / 2;
            let mut failure = match asked {
                None => return Err(verdict.out_of_time(attempt).into()),
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(failure)) => failure,
            };
            if effect == Effect::None {
                failure.applied = Applied::No;
            }
            tracing::debug!(attempt, %failure, "attempt failed");
            verdict.add(&failure);
            if self.looks_on(&failure, route, &tried, known, deadline) {
                (awaited, attempt) = (awaited + 1, attempt + 1);
                continue;
            }
            if effect == Effect::None
                && attempt - awaited < MAX_ATTEMPTS
                && self.looks_past(&failure, route, &tried, deadline)
            {
                (looked, attempt) = (looked + 1, attempt + 1);
                sleep(self.policy.pause(1, None, self.env.entropy.next_u64())).await;
                continue;
            }
            let next = self.next(&verdict, effect, attempt - awaited, &failure, replicas, soon);
            if next == Next::Await {
                awaited += 1;
                self.forget_refusals(&failure, route, &mut tried);
            }
            match self.plan(next, attempt, &failure, pinned, route, &tried, deadline).await {
                Retry::Stop(why) => {
                    let whole = verdict.conclude(failure, attempt);
                    return Err(why.map_or(whole.clone(), |why| whole.with("gave_up", why)).into());
                }
                Retry::Now(leader) => hint = leader,
            }
            attempt += 1;
        }
    }

    /// What to do after an attempt that failed so, `soon` or after a good part of the time: a write whose
    /// fate is open is sent again under its id until its deadline, however often that is refused for the
    /// moment or leaves it open again soon, while the retry budget lasts.
    fn next(
        &self,
        verdict: &Verdict,
        effect: Effect,
        attempt: u32,
        failure: &Failure,
        replicas: bool,
        soon: bool,
    ) -> Next {
        let resends = self.options.attempts > 1 && matches!(effect, Effect::Once | Effect::Again);
        match self.policy.next(effect, attempt, failure, replicas) {
            Next::Redirect => Next::Redirect,
            _ if resends && verdict.waits_out(failure, soon) => Next::Await,
            next => next,
        }
    }

    /// Before the next of attempts that are waited out. Who refused did so for the moment, and those that
    /// cannot be reached stay last. Who left a write open comes again when all others were asked.
    fn forget_refusals(&self, failure: &Failure, route: Route<'_>, tried: &mut Vec<String>) {
        let others = || self.candidates(route, None).iter().any(|address| !tried.contains(address));
        if failure.applied == Applied::No || !others() {
            tried.retain(|address| !self.pool.at(address).is_connected());
        }
    }

    /// Asks one node: the hinted one, or the next for this route. `None`: no time was left to send anything.
    /// `number`: of this attempt, and of those among them that share the time.
    async fn ask_one<Q: Rpc>(
        &self,
        request: &Q,
        route: Route<'_>,
        hint: Option<String>,
        tried: &mut Vec<String>,
        (attempt, sharing): (u32, u32),
        deadline: Instant,
    ) -> Option<Result<Q::Reply, Failure>> {
        let endpoint = match self.pick(route, hint, tried) {
            Ok(endpoint) => endpoint,
            Err(failure) => return Some(Err(failure)),
        };
        tracing::debug!(attempt, at = endpoint.address, "asks");
        let answer = self.attempt(&endpoint, route, request.clone(), sharing, deadline).await?;
        match &answer {
            Ok(_) => {
                tracing::debug!(attempt, at = endpoint.address, "was answered");
                if attempt == 1 {
                    lock(&self.budget).earn();
                }
            }
            Err(failure) => {
                let replicas = !self.options.pinned && matches!(route, Route::Replica(..));
                self.learn(&endpoint, failure, replicas, tried);
            }
        }
        Some(answer)
    }

    /// Whether another node is looked at, without it being an attempt, after one that could not be reached:
    /// each is once, and nothing was sent, so that costs the cluster nothing. What was tried before this one
    /// are the first `known`.
    fn looks_on(
        &self,
        failure: &Failure,
        route: Route<'_>,
        tried: &[String],
        known: usize,
        deadline: Instant,
    ) -> bool {
        let nothing_sent = failure.reason == Reason::Unreachable && failure.applied == Applied::No;
        let is_first = tried
            .split_at_checked(known)
            .is_some_and(|(before, new)| new.last().is_some_and(|address| !before.contains(address)));
        nothing_sent && is_first && self.others_are_left(route, tried, deadline)
    }

    /// Whether a read goes on to a node that was not asked yet, after one that did not answer. It is an
    /// attempt, though one beyond those that are usual, and paid for as a retry.
    fn looks_past(&self, failure: &Failure, route: Route<'_>, tried: &[String], deadline: Instant) -> bool {
        failure.reason == Reason::ResultUnknown
            && self.others_are_left(route, tried, deadline)
            && lock(&self.budget).spend().is_some()
    }

    fn others_are_left(&self, route: Route<'_>, tried: &[String], deadline: Instant) -> bool {
        self.options.attempts > 1
            && time_left(deadline) > MIN_ATTEMPT
            && self.candidates(route, None).iter().any(|address| !tried.contains(address))
    }

    /// Whether there is another attempt, and where. It is waited for here.
    async fn plan(
        &self,
        next: Next,
        attempt: u32,
        failure: &Failure,
        pinned: bool,
        route: Route<'_>,
        tried: &[String],
        deadline: Instant,
    ) -> Retry {
        if next == Next::Stop {
            return Retry::Stop(None);
        }
        let leader = Some(failure).filter(|_| !pinned && matches!(next, Next::Redirect | Next::Await));
        let leader = leader.and_then(|failure| parse_address(failure.detail("leader_address")?).ok());
        if let (Some(leader), Route::Leader(namespace)) = (&leader, route) {
            self.learn_leader(namespace, leader);
        }
        if next == Next::Redirect && leader.is_some() && time_left(deadline) > MIN_ATTEMPT {
            return Retry::Now(leader);
        }
        let spent = lock(&self.budget).spend();
        let Some(left) = spent else { return Retry::Stop(Some("the retry budget is used up")) };
        if !pinned && next != Next::Same && leader.is_none() {
            self.refresh(tried, deadline).await;
        }
        let retry_after = failure.retry_after_ms.map(|ms| Duration::from_millis(ms.into()));
        let random = self.env.entropy.next_u64();
        let pause = match next {
            Next::Await => self.policy.wait(attempt, retry_after, time_left(deadline), left, random),
            _ => self.policy.pause(attempt, retry_after, random),
        };
        let longest = time_left(deadline).saturating_sub(MIN_ATTEMPT);
        // What passes may have passed a moment before the deadline.
        let pause = match pause < longest {
            true => pause,
            false if next == Next::Await && longest > MIN_SHARE => longest - MIN_SHARE,
            false => return Retry::Stop(None),
        };
        sleep(pause).await;
        Retry::Now(leader)
    }

    /// One attempt at the node that was picked for `route`. `None`: no time was left to send anything.
    async fn attempt<Q: Rpc>(
        &self,
        endpoint: &Endpoint,
        route: Route<'_>,
        request: Q,
        attempt: u32,
        deadline: Instant,
    ) -> Option<Result<Q::Reply, Failure>> {
        let until = Instant::now() + self.policy.share(attempt, time_left(deadline));
        let connection = match endpoint.connection(until).await {
            Ok(connection) => connection,
            Err(failure) => {
                let result = Err(failure);
                if matches!(route, Route::Replica(..)) {
                    endpoint.asked().ended(&result);
                }
                return Some(result);
            }
        };
        if time_left(until) < MIN_ATTEMPT {
            return (time_left(deadline) >= MIN_ATTEMPT).then(|| Err(endpoint.connected_late()));
        }
        let asked = matches!(route, Route::Replica(..)).then(|| endpoint.asked());
        let result = self.ask(endpoint, &connection, request, until).await;
        if let Some(asked) = asked {
            asked.ended(&result);
        }
        Some(result)
    }

    /// Asks on an open connection, in a session stream or by itself.
    async fn ask<Q: Rpc>(
        &self,
        endpoint: &Endpoint,
        connection: &Opened,
        request: Q,
        until: Instant,
    ) -> Result<Q::Reply, Failure> {
        let request = match self.in_session(endpoint, connection, request, until).await {
            Ok(answered) => return answered,
            Err(request) => request,
        };
        let left = time_left(until);
        let mut request = tonic::Request::new(request);
        request.set_timeout(left);
        match timeout(left + ATTEMPT_GRACE, Q::send(connection.channel.clone(), request)).await {
            Ok(result) => endpoint.settle(connection, result).map(tonic::Response::into_inner),
            Err(_) => Err(endpoint.silent()),
        }
    }

    /// Sends a request in a session stream, if it travels there; otherwise it is given back, and nothing was
    /// sent.
    async fn in_session<Q: Rpc>(
        &self,
        endpoint: &Endpoint,
        connection: &Opened,
        request: Q,
        deadline: Instant,
    ) -> Result<Result<Q::Reply, Failure>, Q> {
        if self.options.via == Via::Unary {
            return Err(request);
        }
        let asked = request.clone().in_session()?;
        if bytes_of(&asked) > STREAM_REQUEST_BYTES {
            return Err(request);
        }
        match endpoint.ask(connection, &asked, deadline).await {
            Some(answer) => Ok(answer.and_then(Q::from_session)),
            None => Err(request),
        }
    }

    /// The node for the next attempt: the hinted one, the leader or a replica, or the next in turn, those not
    /// yet tried first; none whose breaker is open.
    fn pick(
        &self,
        route: Route<'_>,
        hint: Option<String>,
        tried: &[String],
    ) -> Result<Arc<Endpoint>, Failure> {
        let nodes = self.candidates(route, hint);
        let (fresh, stale): (Vec<_>, Vec<_>) = nodes.iter().partition(|address| !tried.contains(address));
        let admitted =
            fresh.into_iter().chain(stale).map(|address| self.pool.at(address)).find(|e| e.admit());
        admitted.ok_or_else(|| {
            let message = format!("{} failed repeatedly and is left alone for a moment", nodes.join(", "));
            Failure::new(Reason::Unreachable, message).with("breaker", "open")
        })
    }

    fn candidates(&self, route: Route<'_>, hint: Option<String>) -> Vec<String> {
        if let Route::Node(address) = route {
            return vec![address.to_owned()];
        }
        if self.options.pinned {
            return self.options.endpoints.clone();
        }
        let topology = lock(&self.topology);
        let first = match (route, topology.as_ref()) {
            (Route::Leader(namespace), Some(known)) => {
                known.leader_address(namespace).into_iter().map(str::to_owned).collect()
            }
            (Route::Replica(namespace, key), Some(known)) => {
                let candidate = |address: &str| self.pool.at(address).candidate();
                fastest_first(known.replicas(namespace, key).into_iter().map(candidate).collect())
            }
            _ => Vec::new(),
        };
        let nodes: Vec<&String> = match topology.as_ref() {
            Some(known) if !known.members.is_empty() => {
                known.members.values().map(|m| &m.client_address).collect()
            }
            _ => self.options.endpoints.iter().collect(),
        };
        let start = self.start.load(Ordering::Relaxed) % nodes.len().max(1);
        let in_turn = nodes.iter().cycle().skip(start).take(nodes.len()).map(|node| (*node).clone());
        hint.into_iter().chain(first).chain(in_turn).collect()
    }

    /// Whether the topology that is known says where to go.
    fn knows(&self, route: Route<'_>) -> bool {
        let topology = lock(&self.topology);
        topology.as_ref().is_some_and(|known| match route {
            // It may have been created since.
            Route::Replica(namespace, _) => known.ring_of(namespace).is_some(),
            Route::Leader(_) | Route::Any | Route::Node(_) => true,
        })
    }

    /// What a failed attempt says about the node it went to.
    fn learn(&self, endpoint: &Endpoint, failure: &Failure, replicas: bool, tried: &mut Vec<String>) {
        let busy = match failure.reason {
            Reason::Overloaded => true,
            Reason::LimitRequests => !replicas,
            _ => false,
        };
        if !busy {
            tried.push(endpoint.address.clone());
        }
        if matches!(failure.reason, Reason::Unreachable | Reason::ConnectionLost | Reason::ResultUnknown) {
            self.start.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn learn_leader(&self, namespace: &str, address: &str) {
        if let Some(known) = lock(&self.topology).as_mut()
            && let Some(node) = known.node_at(address)
            && let Some(Placement::Strong { group }) =
                known.namespaces.get(namespace).map(|n| n.namespace.placement)
            && let Some(leader) = known.leaders.get_mut(&group)
        {
            leader.node = Some(node);
        }
    }

    /// Asks a few nodes for the topology, once a second at most and never while another operation does.
    async fn refresh(&self, avoid: &[String], deadline: Instant) {
        let Ok(mut last) = self.refreshed.try_lock() else { return };
        if last.is_some_and(|at| at.elapsed() < TOPOLOGY_INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        let until = Instant::now() + TOPOLOGY_TIMEOUT.min(time_left(deadline) / 2);
        let (fresh, stale): (Vec<_>, Vec<_>) =
            self.candidates(Route::Any, None).into_iter().partition(|address| !avoid.contains(address));
        let asked = fresh.into_iter().chain(stale).take(TOPOLOGY_FAN_OUT).map(|address| {
            let endpoint = self.pool.at(&address);
            Box::pin(async move {
                let last_attempt = self.policy.attempts();
                let request = admin::GetTopologyRequest {};
                let told = self.attempt(&endpoint, Route::Any, request, last_attempt, until).await;
                told.unwrap_or_else(|| Err(nothing_sent()))
            })
        });
        match select_ok(asked).await {
            Ok((message, _)) => match Topology::try_from(&message) {
                Ok(topology) => self.learn_topology(topology),
                Err(failure) => tracing::warn!(%failure, "a node sent a topology that cannot be read"),
            },
            Err(failure) => tracing::debug!(%failure, "no node told the topology"),
        }
    }

    /// Takes over what is newer in a node's view.
    pub(crate) fn learn_topology(&self, topology: Topology) {
        let mut known = lock(&self.topology);
        match known.as_mut() {
            Some(known) => known.learn(topology),
            None => *known = Some(topology),
        }
    }
}

/// What follows a failed attempt.
enum Retry {
    Stop(Option<&'static str>),
    /// The next attempt, at this node if one is known to lead.
    Now(Option<String>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

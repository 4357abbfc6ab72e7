//! The public port: HTTP/2 served stream by stream, so that what clients can make this node hold has a bound
//! and an end.
//!
//! A request takes its [`Place`] before anything of it is buffered; its message is admitted by the length
//! that stands before it; its answer is counted until the transport took the last byte; and at its deadline
//! the stream is reset, whatever the other side reads. tonic decodes, encodes and dispatches; its own
//! transport offers none of the four.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason as H2Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame};
use kv_env::{Connection, Listener};
use kv_proto::admin::admin_service_server::AdminServiceServer;
use kv_proto::v1::kv_service_server::KvServiceServer;
use kv_proto::{status_from_failure, status_with_code};
use kv_types::{Failure, Reason};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::admission::Class;
use crate::gate::{Gate, Place};
use crate::incoming::{Incoming, Messages, Reading};
use crate::limits::{
    CLIENT_IDLE, CLIENT_KEEP_ALIVE, CLIENT_KEEP_ALIVE_TIMEOUT, CLIENT_STREAMS, CONNECTION_WINDOW_BYTES,
    DRAIN, HEADER_BYTES, OPENING_TIME, OVERLOAD_RETRY_MS, REFLECTION_BYTES, REFLECTION_REQUEST_BYTES,
    SEND_BUFFER_BYTES, SEND_GRACE, SMALL_FRAME_BYTES, STREAM_WINDOW_BYTES, STREAMS_OF_SESSIONS,
    UNSTATED_DEADLINE, WATCH_STALL,
};
use crate::pieces::{Held, Piece, Unsent, send_some, trailers_of};
use crate::services::Services;
use crate::{reflection, requests, session_stream};

const GRPC_CONTENT_TYPE: &str = "application/grpc";

/// What is served, and within which bounds.
pub(crate) struct Public<H: Health> {
    pub(crate) gate: Arc<Gate>,
    /// What the services and sessions have in common.
    pub(crate) services: Services,
    pub(crate) kv: KvServiceServer<Services>,
    pub(crate) admin: AdminServiceServer<Services>,
    pub(crate) health: HealthServer<H>,
    pub(crate) reflection: Routes,
    /// Longer deadlines are capped.
    pub(crate) max_deadline: Duration,
}

/// Serves clients until told to stop, then lets their requests end.
pub(crate) async fn serve<H: Health>(
    mut listener: Listener,
    public: Arc<Public<H>>,
    mut stop: watch::Receiver<bool>,
) {
    let for_connections = stop.clone();
    // Dropped with this future, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.next() => match accepted {
                Some(Ok(connection)) => {
                    connections.spawn(converse(Arc::clone(&public), connection, for_connections.clone()));
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection was not accepted"),
                None => break,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection. What ends it is the client's affair or a bound, and neither is worth a line at every turn.
async fn converse<H: Health>(
    public: Arc<Public<H>>,
    connection: Connection,
    mut stop: watch::Receiver<bool>,
) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CLIENT_STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .data_frame_budget(SMALL_FRAME_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let mut streams = match timeout(OPENING_TIME, builder.handshake::<_, Piece>(connection)).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return tracing::debug!(%error, "a connection did not open"),
        Err(_) => return tracing::debug!("a connection did not open in time"),
    };
    let number = public.gate.connection();
    // Held by every stream too: alone, the connection is idle. It counts those that are sessions.
    let in_use = Arc::new(AtomicUsize::new(0));
    let mut last_request = Instant::now();
    let mut looks = interval(CLIENT_IDLE / 4);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let silence = answers_pings(streams.ping_pong());
    let for_streams = stop.clone();
    let stopped = async {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::pin!(silence, stopped);
    // Once it is closing: until when it may take.
    let mut closing: Option<Instant> = None;
    loop {
        let begun = closing.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = &mut stopped, if closing.is_none() => {
                streams.graceful_shutdown();
                closing = Some(Instant::now() + DRAIN);
            }
            () = &mut silence => return tracing::debug!("a connection does not answer pings"),
            () = sleep_until(begun), if closing.is_some() => return,
            _ = looks.tick(), if closing.is_none() => {
                if Arc::strong_count(&in_use) == 1 && last_request.elapsed() >= CLIENT_IDLE {
                    streams.graceful_shutdown();
                    closing = Some(Instant::now() + DRAIN);
                }
            }
            next = streams.accept() => match next {
                Some(Ok((request, respond))) => {
                    last_request = Instant::now();
                    begin(&public, number, request, respond, Arc::clone(&in_use), &for_streams);
                }
                Some(Err(error)) => return tracing::debug!(%error, "a connection broke"),
                None => return,
            },
        }
    }
}

/// Ends when a ping stays unanswered.
async fn answers_pings(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(CLIENT_KEEP_ALIVE).await;
        match timeout(CLIENT_KEEP_ALIVE_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Decides at once whether a stream is served: a refusal costs neither a task nor a look at its message.
fn begin<H: Health>(
    public: &Arc<Public<H>>,
    connection: u64,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Piece>,
    in_use: Arc<AtomicUsize>,
    stop: &watch::Receiver<bool>,
) {
    let is_session = request.uri().path() == session_stream::PATH;
    if is_session && in_use.load(Ordering::Relaxed) >= STREAMS_OF_SESSIONS {
        let message =
            format!("this connection has {STREAMS_OF_SESSIONS} session streams, and no more are served");
        return refuse(
            &mut respond,
            &Failure::new(Reason::Overloaded, message).retry_after_ms(OVERLOAD_RETRY_MS),
        );
    }
    match public.gate.arrive(connection) {
        Ok(place) => {
            let (public, stop) = (Arc::clone(public), stop.clone());
            in_use.fetch_add(usize::from(is_session), Ordering::Relaxed);
            tokio::spawn(async move {
                if is_session {
                    let _counted = CountedSession(&in_use);
                    open_session(public.session(connection), request, respond, stop).await;
                } else {
                    stream(&public, request, respond, place, stop).await;
                }
                drop(in_use);
            });
        }
        Err(failure) => refuse(&mut respond, &failure),
    }
}

/// One of the session streams of a connection.
struct CountedSession<'a>(&'a AtomicUsize);

impl Drop for CountedSession<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn refuse(respond: &mut SendResponse<Piece>, failure: &Failure) {
    // An error means that the caller is gone.
    let _ = respond.send_response(status_from_failure(failure).into_http::<()>(), true);
}

/// A stream that is a session: it has a place, as every stream, and so has each of its requests.
async fn open_session(
    around: session_stream::Around,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Piece>,
    mut stop: watch::Receiver<bool>,
) {
    let head = http::Response::builder().header(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    let Ok(head) = head.body(()) else { return };
    let Ok(send) = respond.send_response(head, false) else { return };
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    session_stream::serve(around, request.into_body(), send, stopped).await;
}

/// One stream, from its request to the last byte of its answer.
async fn stream<H: Health>(
    public: &Public<H>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Piece>,
    place: Arc<Place>,
    mut stop: watch::Receiver<bool>,
) {
    let timeout = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let granted = requests::time_granted(timeout, public.max_deadline).unwrap_or(UNSTATED_DEADLINE);
    // A watch has no deadline of its own: each piece has, and the node's stop ends it.
    let watches = timeout.is_none() && request.uri().path().ends_with("/Watch");
    // Many questions in one call: it has a deadline, and does not outlast the node.
    let reflects = service_of(request.uri()).is_some_and(reflection::is);
    let messages = if reflects { Messages::Many(REFLECTION_REQUEST_BYTES) } else { Messages::One };
    let until = place.arrived() + granted + SEND_GRACE;
    let (head, body) = request.into_parts();
    let incoming = Incoming::new(body, Arc::clone(&place), messages);
    let reading = reflects.then(|| incoming.reading());
    let mut request = http::Request::from_parts(head, Body::new(incoming));
    request.extensions_mut().insert(Arc::clone(&place));
    let response = tokio::select! {
        biased;
        () = gone(&mut respond) => return,
        response = public.dispatch(request, &place) => response,
        () = sleep_until(until) => {
            let message = "the request had not arrived by its deadline";
            return refuse(&mut respond, &Failure::new(Reason::DeadlineExpired, message));
        }
    };
    let (head, body) = explained(response).into_parts();
    let head = http::Response::from_parts(head, ());
    if body.is_end_stream() {
        let _ = respond.send_response(head, true);
        return;
    }
    let Ok(mut send) = respond.send_response(head, false) else { return };
    let stopped = async {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let stall = watches.then_some(WATCH_STALL);
    let late = tokio::select! {
        biased;
        taken = answer(&mut send, body, &place, stall, reading.as_deref()) => taken.is_err(),
        () = sleep_until(until), if !watches => true,
        () = stopped, if watches || reflects => true,
    };
    if late {
        // Explicitly: it drops what is queued, however narrow the caller's window is.
        send.send_reset(H2Reason::CANCEL);
    }
}

async fn gone(respond: &mut SendResponse<Piece>) {
    // Reset by the caller, or the connection broke: the same to us.
    let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
}

impl<H: Health> Public<H> {
    fn session(&self, connection: u64) -> session_stream::Around {
        session_stream::Around {
            services: self.services.clone(),
            gate: Arc::clone(&self.gate),
            connection,
            longest: self.max_deadline,
        }
    }

    fn dispatch(
        &self,
        request: http::Request<Body>,
        place: &Place,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let service = service_of(request.uri());
        if service == Some(<KvServiceServer<Services> as NamedService>::NAME) {
            return call(self.kv.clone(), request);
        }
        if service == Some(<AdminServiceServer<Services> as NamedService>::NAME) {
            return call(self.admin.clone(), request);
        }
        let refused = if service == Some(<HealthServer<H> as NamedService>::NAME) {
            match place.enter(Class::Health) {
                Ok(()) => return call(self.health.clone(), request),
                Err(failure) => status_from_failure(&failure),
            }
        } else if service.is_some_and(reflection::is) {
            match place.enter(Class::Reflection).and_then(|()| place.hold(REFLECTION_BYTES)) {
                Ok(()) => return call(self.reflection.clone(), request),
                Err(failure) => status_from_failure(&failure),
            }
        } else {
            // The code that gRPC clients look for, with our words.
            let failure = Failure::new(Reason::InvalidRequest, "there is no such service");
            status_with_code(Code::Unimplemented, &failure)
        };
        Box::pin(std::future::ready(refused.into_http()))
    }
}

/// The service that is asked, as the path names it.
fn service_of(uri: &http::Uri) -> Option<&str> {
    uri.path().strip_prefix('/')?.split_once('/').map(|(service, _)| service)
}

fn call<S>(mut service: S, request: http::Request<Body>) -> BoxFuture<'static, http::Response<Body>>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    // The generated services are ready at any time.
    let response = service.call(request);
    Box::pin(async move {
        match response.await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    })
}

/// What tonic refuses by itself (a message that is not protobuf, a compression that is not offered, an
/// unknown method) carries no `ErrorInfo`; it never reached a service, so it was not applied. `None`: there
/// is nothing to add.
fn in_our_words(status: &Status) -> Option<Status> {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return None;
    }
    let message = format!("the request cannot be read: {}", status.message());
    let failure = Failure::new(Reason::InvalidRequest, message);
    Some(match status.code() {
        Code::Unimplemented => status_with_code(Code::Unimplemented, &failure),
        // Of health and of reflection: an unknown name.
        Code::NotFound => {
            status_with_code(Code::NotFound, &Failure { message: status.message().to_owned(), ..failure })
        }
        _ => status_from_failure(&failure),
    })
}

fn explained(response: http::Response<Body>) -> http::Response<Body> {
    let status = Status::from_header_map(response.headers());
    status.as_ref().and_then(in_our_words).map_or(response, Status::into_http)
}

/// The end of an answer to many questions. tonic ends it in order when it cannot read one of them: then it
/// says so here.
fn ending(trailers: http::HeaderMap, reading: &Reading) -> http::HeaderMap {
    let Some(status) = Status::from_header_map(&trailers) else { return trailers };
    let ours = match status.code() {
        Code::Ok => reading.broken_off().map(|failure| status_from_failure(&failure)),
        _ => in_our_words(&status),
    };
    ours.map_or(trailers, |status| trailers_of(&status))
}

/// Hands an answer to the transport, no more at a time than it may send, and returns when it has sent all.
/// Each piece may wait for `stall` at most, where that is given. `reading` is given where the request has
/// many messages, which are read while they are answered.
async fn answer(
    send: &mut SendStream<Piece>,
    mut body: Body,
    place: &Arc<Place>,
    stall: Option<Duration>,
    reading: Option<&Reading>,
) -> Result<(), Unsent> {
    let (unsent, sent) = oneshot::channel::<()>();
    let held: Held = Arc::new((Arc::clone(place), unsent));
    loop {
        let frame = poll_fn(|cx| match send.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Unsent)),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Ok),
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            // The answer could not be encoded: the status says so instead of it.
            Some(Err(status)) => Frame::trailers(trailers_of(&status)),
            None => {
                send.send_data(Piece::end(), true)?;
                break;
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let mut data = data;
                let piece = async {
                    while !data.is_empty() {
                        send_some(send, &mut data, &held).await?;
                    }
                    Ok::<_, Unsent>(())
                };
                match stall {
                    Some(stall) => timeout(stall, piece).await.map_err(|_| Unsent)??,
                    None => piece.await?,
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    let trailers = match reading {
                        Some(reading) => ending(trailers, reading),
                        None => trailers,
                    };
                    send.send_trailers(trailers)?;
                    break;
                }
            }
        }
    }
    drop(held);
    // Ends with the last piece, sent or dropped.
    let _ = sent.await;
    Ok(())
}

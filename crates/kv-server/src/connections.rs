//! Connections, bounded before anything is read from them. A port has so many at most; one that does not
//! complete its HTTP/2 preface in time, or on the port for other nodes does not say which node it is, is
//! closed, and when the port is full the oldest of those makes room for a newcomer, so that silence does not
//! keep others out. Descriptors for storage and for other nodes are
//! set aside first.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use futures_util::stream::unfold;
use kv_env::{Connection, Introduced, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::StartError;
use crate::limits::{
    ACCEPT_PAUSE, CLOSING_CONNECTIONS, CONNECTIONS_PER_MEMBER, MIN_CONNECTIONS, OPENING_BYTES, OPENING_TIME,
    RESERVED_DESCRIPTORS,
};

/// How many connections each port may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) clients: usize,
    pub(crate) peers: usize,
}

impl Ports {
    /// `wanted` for clients, or what the limit of open descriptors leaves of it. `None` is no limit.
    pub(crate) fn within(
        wanted: usize,
        members: usize,
        descriptors: Option<u64>,
    ) -> Result<Self, StartError> {
        let peers = members.max(1) * CONNECTIONS_PER_MEMBER;
        let reserved = RESERVED_DESCRIPTORS + peers;
        let most = descriptors.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let clients = wanted.min(most.saturating_sub(reserved));
        if clients < MIN_CONNECTIONS.min(wanted) {
            return Err(StartError::ConfigInvalid(format!(
                "the limit of open files is {most}; a node needs {RESERVED_DESCRIPTORS} for storage, {peers} for other \
                 nodes and at least {MIN_CONNECTIONS} for clients: raise it, as with `ulimit -n {}`",
                reserved + wanted
            )));
        }
        if clients < wanted {
            tracing::warn!(
                clients,
                wanted,
                descriptors = most,
                reserved,
                "fewer client connections than limits.connections: the limit of open files allows no more (ulimit -n)"
            );
        }
        Ok(Self { clients, peers })
    }
}

/// The limit of open descriptors of this process; `None` without one.
pub(crate) fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Raises the limit of open descriptors to what the system allows this process; a failure changes nothing.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
}

/// What a connection has to say soon to keep its seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opens {
    /// Its HTTP/2 preface: clients come and go, and say who they are with each request.
    WithPreface,
    /// Who it is, in a message for this node: pings alone would keep the seats of other nodes for good.
    WithIntroduction,
}

/// The same listener with at most `most` connections open.
pub(crate) fn bounded(listener: Listener, port: &'static str, most: usize, opens: Opens) -> Listener {
    let address = listener.local_address.clone();
    let table = Arc::new(Table::new(most));
    let accepting = Accepting { listener, table, port, opens, failing: false, full: false };
    Listener::new(
        address,
        unfold(accepting, |mut accepting| async move {
            let connection = accepting.next().await?;
            Some((Ok(connection), accepting))
        }),
    )
}

struct Accepting {
    listener: Listener,
    table: Arc<Table>,
    port: &'static str,
    opens: Opens,
    /// Whether the last attempt failed: said once, not every time.
    failing: bool,
    /// Whether the last connection was refused: said once, not every time.
    full: bool,
}

impl Accepting {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            let connection = match self.listener.next().await? {
                Ok(connection) => connection,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(port = self.port, %error, "cannot accept connections for now");
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if std::mem::replace(&mut self.failing, false) {
                tracing::info!(port = self.port, "accepts connections again");
            }
            let Some(guard) = Table::admit(&self.table) else {
                if !std::mem::replace(&mut self.full, true) {
                    let most = self.table.most;
                    tracing::warn!(port = self.port, most, "all connections are in use; new ones are closed");
                }
                continue;
            };
            self.full = false;
            let remote = connection.connect_info().remote;
            let introduced = Introduced::default();
            let opening = Some(Opening {
                guard: guard.opening,
                time: Box::pin(sleep(OPENING_TIME)),
                read: 0,
                introduced: (self.opens == Opens::WithIntroduction).then(|| introduced.clone()),
            });
            let guarded = Guarded { inner: connection, opening, seat: guard.seat };
            return Some(Connection::new(guarded, remote).introduced_by(introduced));
        }
    }
}

/// The connections of one port.
struct Table {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Sockets that are open, those below and those being closed included.
    open: usize,
    /// Connections that have not said what they have to, oldest first; dropping the sender closes one.
    opening: BTreeMap<u64, oneshot::Sender<()>>,
    /// Told to close, and not closed yet.
    closing: usize,
}

struct Admitted {
    seat: Seat,
    opening: oneshot::Receiver<()>,
}

impl Table {
    fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for a new connection. When all are taken the oldest connection that said nothing yet is closed;
    /// without one there is no seat.
    fn admit(table: &Arc<Self>) -> Option<Admitted> {
        let mut state = table.state();
        if state.open - state.closing >= table.most {
            if state.closing >= CLOSING_CONNECTIONS {
                return None;
            }
            state.opening.pop_first()?;
            state.closing += 1;
        }
        state.open += 1;
        state.next += 1;
        let id = state.next;
        let (close, opening) = oneshot::channel();
        state.opening.insert(id, close);
        Some(Admitted { seat: Seat { table: Arc::clone(table), id, opened: false }, opening })
    }
}

/// A connection's seat, given back when it is closed.
struct Seat {
    table: Arc<Table>,
    id: u64,
    /// Whether it said what it has to.
    opened: bool,
}

impl Seat {
    /// It said what it has to; false when the connection was told to close just before.
    fn open(&mut self) -> bool {
        self.opened = self.table.state().opening.remove(&self.id).is_some();
        self.opened
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.table.state();
        state.open -= 1;
        if !self.opened && state.opening.remove(&self.id).is_none() {
            state.closing -= 1;
        }
    }
}

/// What ends a connection that does not say what it has to.
struct Opening {
    guard: oneshot::Receiver<()>,
    time: Pin<Box<Sleep>>,
    read: usize,
    /// Has to be told as well.
    introduced: Option<Introduced>,
}

impl Opening {
    fn is_over(&self) -> bool {
        self.read >= OPENING_BYTES && self.introduced.as_ref().is_none_or(Introduced::yet)
    }
}

struct Guarded {
    inner: Connection,
    opening: Option<Opening>,
    seat: Seat,
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(opening) = &mut this.opening else { return Pin::new(&mut this.inner).poll_read(cx, buf) };
        // It was introduced by what was read before.
        if opening.is_over() {
            this.opening = None;
            return match this.seat.open() {
                true => Pin::new(&mut this.inner).poll_read(cx, buf),
                false => Poll::Ready(Err(displaced())),
            };
        }
        if Pin::new(&mut opening.guard).poll(cx).is_ready() {
            return Poll::Ready(Err(displaced()));
        }
        if opening.time.as_mut().poll(cx).is_ready() {
            let why = match opening.read >= OPENING_BYTES {
                true => "it did not say in time whose connection it is",
                false => "the HTTP/2 preface did not come in time",
            };
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        opening.read += buf.filled().len() - before;
        if opening.is_over() {
            this.opening = None;
            if !this.seat.open() {
                return Poll::Ready(Err(displaced()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn displaced() -> io::Error {
    let why = "closed for newer connections before it said what it had to";
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_env::{Network, TcpNetwork};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const PREFACE: [u8; OPENING_BYTES] = [7; OPENING_BYTES];

    async fn bounded_to(most: usize) -> (Listener, String) {
        let listener = TcpNetwork.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address.clone();
        (bounded(listener, "test", most, Opens::WithPreface), address)
    }

    async fn closed(mut client: TcpStream) -> bool {
        matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_))
    }

    #[test]
    fn descriptors_for_storage_and_peers_come_first() {
        let ports = |wanted, limit| Ports::within(wanted, 5, limit);
        let peers = 5 * CONNECTIONS_PER_MEMBER;
        assert_eq!(ports(1_000, None), Ok(Ports { clients: 1_000, peers }));
        assert_eq!(ports(1_000, Some(1 << 20)), Ok(Ports { clients: 1_000, peers }));
        let left = 1_024 - RESERVED_DESCRIPTORS - peers;
        assert_eq!(ports(1_000, Some(1_024)), Ok(Ports { clients: left, peers }));
        let refused = ports(1_000, Some(64)).unwrap_err().to_string();
        assert!(refused.contains("CONFIG_INVALID") && refused.contains("ulimit -n"), "{refused}");
        assert_eq!(ports(3, None).map(|ports| ports.clients), Ok(3));
    }

    #[tokio::test]
    async fn a_full_port_closes_the_oldest_silent_connection_and_never_one_that_spoke() {
        let (mut listener, address) = bounded_to(3).await;
        let mut outside = Vec::new();
        let mut inside = Vec::new();
        for _ in 0..3 {
            outside.push(TcpStream::connect(&address).await.unwrap());
            inside.push(listener.next().await.unwrap().unwrap());
        }
        outside[0].write_all(&PREFACE).await.unwrap();
        inside[0].read_exact(&mut [0; OPENING_BYTES]).await.unwrap();
        // All seats are taken; the second was silent for longest.
        let mut third = TcpStream::connect(&address).await.unwrap();
        let mut newcomer = listener.next().await.unwrap().unwrap();
        let error = inside[1].read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(inside.remove(1));
        assert!(closed(outside.remove(1)).await);
        third.write_all(&PREFACE).await.unwrap();
        newcomer.read_exact(&mut [0; OPENING_BYTES]).await.unwrap();
        outside[1].write_all(&PREFACE).await.unwrap();
        inside[1].read_exact(&mut [0; OPENING_BYTES]).await.unwrap();
        // Now all have sent something: a newcomer is closed at once, until one leaves.
        let late = TcpStream::connect(&address).await.unwrap();
        let accepting = tokio::spawn(async move { listener.next().await.unwrap().unwrap() });
        assert!(closed(late).await);
        outside[0].write_all(b"x").await.unwrap();
        assert_eq!(inside[0].read_u8().await.unwrap(), b'x');
        drop(newcomer);
        let _again = TcpStream::connect(&address).await.unwrap();
        accepting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_speak_is_given_up() {
        let (mut silent, inside) = tokio::io::duplex(64);
        let incoming = futures_util::stream::iter([Ok(Connection::new(inside, None))]);
        let mut listener = bounded(Listener::new("x:1".into(), incoming), "test", 3, Opens::WithPreface);
        let mut inside = listener.next().await.unwrap().unwrap();
        silent.write_all(&PREFACE[1..]).await.unwrap();
        inside.read_exact(&mut [0; OPENING_BYTES - 1]).await.unwrap();
        assert_eq!(inside.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_fails_is_asked_again() {
        let failures = (0..3).map(|_| Err(io::Error::from_raw_os_error(24)));
        let (one, _other) = tokio::io::duplex(64);
        let incoming = futures_util::stream::iter(failures.chain([Ok(Connection::new(one, None))]));
        let mut listener = bounded(Listener::new("x:1".into(), incoming), "test", 3, Opens::WithPreface);
        assert!(listener.next().await.unwrap().is_ok());
        assert!(listener.next().await.is_none());
    }

    /// Pings keep a connection alive, and its seat is for another node.
    #[tokio::test(start_paused = true)]
    async fn a_connection_of_a_peer_says_soon_which_node_it_is() {
        for introduces in [false, true] {
            let (mut outside, inside) = tokio::io::duplex(1 << 10);
            let incoming = futures_util::stream::iter([Ok(Connection::new(inside, None))]);
            let listener = Listener::new("x:1".into(), incoming);
            let mut listener = bounded(listener, "test", 3, Opens::WithIntroduction);
            let mut inside = listener.next().await.unwrap().unwrap();
            outside.write_all(&PREFACE).await.unwrap();
            inside.read_exact(&mut [0; OPENING_BYTES]).await.unwrap();
            let mut last = Ok(());
            for second in 0..20 {
                if introduces && second == 1 {
                    inside.connect_info().introduced.now();
                }
                sleep(std::time::Duration::from_secs(1)).await;
                // As long as a ping.
                if outside.write_all(&[0; 17]).await.is_ok() {
                    last = inside.read_exact(&mut [0; 17]).await.map(drop);
                }
                if last.is_err() {
                    break;
                }
            }
            assert_eq!(
                last.map_err(|error| error.kind()).err(),
                (!introduces).then_some(io::ErrorKind::TimedOut)
            );
        }
    }

    #[tokio::test]
    async fn a_full_port_for_nodes_closes_the_oldest_that_has_not_said_which_it_is() {
        let listener = TcpNetwork.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address.clone();
        let mut listener = bounded(listener, "test", 2, Opens::WithIntroduction);
        let (mut outside, mut inside) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            outside.push(TcpStream::connect(&address).await.unwrap());
            inside.push(listener.next().await.unwrap().unwrap());
            let last = outside.len() - 1;
            outside[last].write_all(&PREFACE).await.unwrap();
            inside[last].read_exact(&mut [0; OPENING_BYTES]).await.unwrap();
        }
        inside[0].connect_info().introduced.now();
        outside[0].write_all(b"x").await.unwrap();
        assert_eq!(inside[0].read_u8().await.unwrap(), b'x');
        let _newcomer = TcpStream::connect(&address).await.unwrap();
        let _seated = listener.next().await.unwrap().unwrap();
        let error = inside[1].read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        outside[0].write_all(b"y").await.unwrap();
        assert_eq!(inside[0].read_u8().await.unwrap(), b'y');
    }
}

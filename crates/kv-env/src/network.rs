//! Sockets as a node sees them: it listens, it dials, it gets byte streams. TCP outside, simulated inside a
//! simulation.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, StreamExt, unfold};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tonic::transport::server::Connected;

/// Opens sockets.
pub trait Network: Send + Sync + 'static {
    /// Listens on `host:port`; port 0 lets the system choose.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>>;

    /// Connects to `host:port`. The caller sets the deadline.
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>>;
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// One connection.
pub struct Connection {
    inner: Box<dyn ByteStream>,
    info: ConnectionInfo,
}

/// How many bytes a connection has received so far. Clones count the same connection.
#[derive(Debug, Clone, Default)]
pub struct ReceivedBytes(Arc<Received>);

#[derive(Debug)]
struct Received {
    total: AtomicU64,
    /// The least count that someone waits for.
    awaited: AtomicU64,
    reached: Notify,
}

impl Default for Received {
    fn default() -> Self {
        Self { total: AtomicU64::new(0), awaited: AtomicU64::new(u64::MAX), reached: Notify::new() }
    }
}

impl ReceivedBytes {
    /// The count.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::SeqCst)
    }

    /// Resolves when the count is at least `total`. Bytes before that wake no one.
    pub async fn reach(&self, total: u64) {
        loop {
            let reached = self.0.reached.notified();
            tokio::pin!(reached);
            reached.as_mut().enable();
            // Before the look at the count, which is raised before the look at this.
            self.0.awaited.fetch_min(total, Ordering::SeqCst);
            if self.total() >= total {
                return;
            }
            reached.await;
        }
    }

    fn add(&self, bytes: u64) {
        let total = self.0.total.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if total >= self.0.awaited.load(Ordering::SeqCst) {
            // Who waits for more says so again.
            self.0.awaited.store(u64::MAX, Ordering::SeqCst);
            self.0.reached.notify_waiters();
        }
    }
}

/// Whether who is at the other end of a connection has said who it is. Clones speak of the same connection.
#[derive(Debug, Clone, Default)]
pub struct Introduced(Arc<AtomicBool>);

impl Introduced {
    /// It has.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn yet(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Connection {
    /// Wraps a byte stream; `remote` is for logs.
    pub fn new(inner: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, remote: Option<String>) -> Self {
        Self { inner: Box::new(inner), info: ConnectionInfo { remote, ..ConnectionInfo::default() } }
    }

    /// With this account of whether the other end was introduced: for a stream that looks at it.
    pub fn introduced_by(mut self, introduced: Introduced) -> Self {
        self.info.introduced = introduced;
        self
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("remote", &self.info.remote).finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let bytes = u64::try_from(buf.filled().len() - before).unwrap_or(u64::MAX);
        if bytes > 0 {
            self.info.received.add(bytes);
        }
        read
    }
}

impl AsyncWrite for Connection {
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

/// What the accepting side knows of the connection on which a request came.
#[derive(Debug, Clone, Default)]
pub struct ConnectionInfo {
    /// Who is at the other end, as far as the socket says; for logs.
    pub remote: Option<String>,
    /// What has arrived so far.
    pub received: ReceivedBytes,
    /// Whether it was said who that is, in words that the service on top understands.
    pub introduced: Introduced,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

/// Accepts connections, as a stream.
pub struct Listener {
    /// Where it listens, with the port that the system chose.
    pub local_address: String,
    incoming: BoxStream<'static, io::Result<Connection>>,
}

impl Listener {
    /// Wraps a stream of accepted connections.
    pub fn new(
        local_address: String,
        incoming: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    ) -> Self {
        Self { local_address, incoming: incoming.boxed() }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listener({})", self.local_address)
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_next_unpin(cx)
    }
}

/// TCP without delay for small frames.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let local = listener.local_addr()?.to_string();
            let incoming = unfold(listener, |listener| async move {
                let accepted = listener.accept().await.and_then(|(socket, remote)| {
                    socket.set_nodelay(true)?;
                    Ok(Connection::new(socket, Some(remote.to_string())))
                });
                Some((accepted, listener))
            });
            Ok(Listener::new(local, incoming))
        })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            Ok(Connection::new(socket, Some(address.to_owned())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_dialled_connection_reaches_its_listener() {
        let mut listener = TcpNetwork.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address.clone();
        let mut out = TcpNetwork.dial(&address).await.unwrap();
        let mut inside = listener.next().await.unwrap().unwrap();
        out.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        inside.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ping");
        assert!(inside.connect_info().remote.is_some());
        assert_eq!(inside.connect_info().received.total(), 4);
    }

    #[tokio::test]
    async fn a_busy_port_is_an_error() {
        let first = TcpNetwork.listen("127.0.0.1:0").await.unwrap();
        assert_eq!(
            TcpNetwork.listen(&first.local_address).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}

//! A proxy on one peer link: the only place where the network between nodes can be made to fail, without
//! root.
//!
//! A connection that node *i* opens to node *j* carries bytes both ways. Those that *i* sends obey the flow
//! of the direction *i -> j*, those that *j* sends the flow of *j -> i*; which of the two opened it does not
//! matter.
//!
//! **Swallow is a network partition, not a closed socket.** Connections stay open and fall silent; bytes,
//! ends and resets stay where they are, in bounded buffers, and arrive after the healing as TCP's
//! retransmissions would. A new connection is accepted (the kernel does that) and stays silent; if its opener
//! gives up meanwhile, it never happened.
//!
//! **Reset is the opposite: both ends are told, and neither learns what arrived.** A connection of a link
//! that is reset in either direction ends with a TCP reset on both sides, whatever it still held is gone, and
//! so ends every new one.
//!
//! **A flow that is set is in force.** Every byte that moves, moves inside [`Gate::pass`], which holds the
//! flow while a non-blocking call lasts; setting a flow waits for those. When `set` returns, no byte of the
//! old flow can follow.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::matrix::Flow;

/// Bytes moved at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction of one connection: what a delayed link holds.
const CHUNKS_IN_FLIGHT: usize = 256;
/// A slow link is paced in steps of this length, by their number in a second.
const SLOW_CHUNKS_PER_SECOND: u64 = 20;
/// Connections of one link; further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 128;
/// What a connection that is not made yet may have sent.
const MAX_EARLY_BYTES: usize = 64 << 10;
/// Longest wait for the real address to accept.
const DIAL_PATIENCE: Duration = Duration::from_secs(2);

/// The flow of one direction, as those who set it hold it.
#[derive(Debug)]
pub(crate) struct Valve(watch::Sender<Flow>);

impl Valve {
    /// Open.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Flow::Pass))
    }

    /// Sets the flow; it is in force when this returns. Says whether it changed.
    pub(crate) fn set(&self, flow: Flow) -> bool {
        if kv_types::mutant!(CutNotInstalled) && flow.blocks() {
            return true;
        }
        self.0.send_replace(flow) != flow
    }

    /// The flow in force.
    pub(crate) fn flow(&self) -> Flow {
        *self.0.borrow()
    }

    /// For those who obey it.
    pub(crate) fn gate(&self) -> Gate {
        Gate(self.0.subscribe())
    }
}

/// The flow of one direction, as those who obey it hold it.
#[derive(Debug, Clone)]
pub(crate) struct Gate(watch::Receiver<Flow>);

impl Gate {
    /// Waits until bytes may pass.
    async fn opened(&mut self) {
        self.becomes(|flow| !flow.blocks()).await;
    }

    /// Waits until connections are to be reset.
    async fn resets(&mut self) {
        self.becomes(Flow::resets).await;
    }

    async fn becomes(&mut self, what: impl Fn(Flow) -> bool) {
        if self.0.wait_for(|flow| what(*flow)).await.is_err() {
            std::future::pending().await // the lab is gone, and this task with it
        }
    }

    /// How many bytes may be read at once: on a slow link few, so that healing it frees all but these.
    fn chunk(&self) -> usize {
        match *self.0.borrow() {
            Flow::Slow { bytes_per_second } => usize::try_from(bytes_per_second / SLOW_CHUNKS_PER_SECOND)
                .unwrap_or(CHUNK_BYTES)
                .clamp(1, CHUNK_BYTES),
            _ => CHUNK_BYTES,
        }
    }

    /// Waits as long as a slow link needs for so many bytes, or until it is not slow any more.
    async fn carried(&mut self, bytes: usize) {
        let slow = *self.0.borrow_and_update();
        if let Flow::Slow { bytes_per_second } = slow {
            let takes = time_for(bytes, bytes_per_second);
            let _ = tokio::time::timeout(takes, self.0.wait_for(|flow| *flow != slow)).await;
        }
    }

    /// Makes one non-blocking call under the flow, or none if nothing may pass.
    fn pass<T>(&self, call: impl FnOnce() -> io::Result<T>) -> Option<io::Result<T>> {
        let flow = self.0.borrow();
        (!flow.blocks()).then(call)
    }

    /// How much later than now something read now shall arrive.
    fn lateness(&self) -> Duration {
        match *self.0.borrow() {
            Flow::Delay { ms, jitter_ms } => {
                let around = fastrand::u64(0..=jitter_ms.saturating_mul(2));
                Duration::from_millis(ms.saturating_add(around).saturating_sub(jitter_ms))
            }
            Flow::Pass | Flow::Swallow | Flow::Slow { .. } | Flow::Reset | Flow::Loss { .. } => {
                Duration::ZERO
            }
        }
    }

    /// The next bytes; empty at the end of the stream.
    async fn read(&mut self, source: &ReadHalf<'_>, buffer: &mut [u8]) -> io::Result<Bytes> {
        loop {
            self.opened().await;
            source.readable().await?;
            match self.pass(|| source.try_read(buffer)) {
                Some(Ok(count)) => {
                    return Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()));
                }
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Writes all of it.
    async fn write(&mut self, sink: &WriteHalf<'_>, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.opened().await;
            sink.writable().await?;
            match self.pass(|| sink.try_write(bytes)) {
                Some(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }
}

/// How long a link of this rate needs for so many bytes; a rate of nothing is one byte a second.
pub(crate) fn time_for(bytes: usize, bytes_per_second: u64) -> Duration {
    Duration::from_secs(bytes as u64) / u32::try_from(bytes_per_second).unwrap_or(u32::MAX).max(1)
}

/// A listener that one node dials in place of another's address. It keeps its socket as long as it lives.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a port of the system's choice and forwards to `target`; `there` is the flow of what the
    /// dialling node sends, `back` of what it is answered.
    pub(crate) async fn start(target: SocketAddr, there: Gate, back: Gate) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(accept(listener, target, there, back)) })
    }

    /// Where to dial.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort(); // and with it its connections
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, there: Gate, back: Gate) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((client, _)) => {
                    connections.spawn(carry(client, target, there.clone(), back.clone()));
                }
                // Out of descriptors, or the client is gone again: neither may end the proxy.
                Err(_) => tokio::task::yield_now().await,
            },
        }
    }
}

/// One connection, from its opening to its end on both sides.
async fn carry(client: TcpStream, target: SocketAddr, mut there: Gate, mut back: Gate) {
    let reset = {
        let (mut there, mut back) = (there.clone(), back.clone());
        async move {
            tokio::select! {
                biased;
                () = there.resets() => {}
                () = back.resets() => {}
            }
        }
    };
    tokio::pin!(reset);
    let mut client = client;
    let early = tokio::select! {
        biased;
        () = &mut reset => return tear(&client),
        early = until_it_can_be_made(&mut client, &mut there, &mut back) => early,
    };
    let Some(early) = early else { return };
    let dialled = tokio::select! {
        biased;
        () = &mut reset => return tear(&client),
        dialled = tokio::time::timeout(DIAL_PATIENCE, TcpStream::connect(target)) => dialled,
    };
    if let Ok(Ok(mut server)) = dialled {
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let pumps = async {
            let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
            tokio::try_join!(
                pump(there.clone(), early, from_client, to_server),
                pump(back.clone(), Bytes::new(), from_server, to_client),
            )
        };
        let ended = tokio::select! {
            biased;
            () = &mut reset => None,
            ended = pumps => Some(ended),
        };
        match ended {
            None => {
                tear(&server);
                tear(&client);
            }
            Some(Ok(_)) => {}
            // Both sockets stay open meanwhile, so that neither side learns of it too early.
            Some(Err(_)) => after_the_cut(&client, &mut there, &mut back, &mut reset).await,
        }
    } else {
        after_the_cut(&client, &mut there, &mut back, &mut reset).await;
    }
}

/// Refusals and resets travel like everything else: neither side learns of one across a cut.
async fn after_the_cut(
    client: &TcpStream,
    there: &mut Gate,
    back: &mut Gate,
    reset: impl Future<Output = ()>,
) {
    tokio::select! {
        biased;
        () = reset => tear(client),
        () = async {
            there.opened().await;
            back.opened().await;
        } => {}
    }
}

/// Makes the end of this socket a reset.
fn tear(socket: &TcpStream) {
    let _ = socket.set_zero_linger();
}

/// Making a connection takes an exchange, so both directions must be open. Until then what the opener sends
/// waits; none if it gave up.
async fn until_it_can_be_made(client: &mut TcpStream, there: &mut Gate, back: &mut Gate) -> Option<Bytes> {
    let mut early = Vec::new();
    loop {
        let both_open = async {
            there.opened().await;
            back.opened().await;
        };
        tokio::select! {
            biased;
            () = both_open => return Some(early.into()),
            count = client.read_buf(&mut early), if early.len() < MAX_EARLY_BYTES => {
                if !matches!(count, Ok(1..)) {
                    return None;
                }
            }
        }
    }
}

/// Moves the bytes of one direction, in order, each not before it is due, and then the end of the stream.
async fn pump(mut gate: Gate, early: Bytes, source: ReadHalf<'_>, mut sink: WriteHalf<'_>) -> io::Result<()> {
    let (sent, mut arriving) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_IN_FLIGHT);
    let mut entrance = gate.clone();
    let sending = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut due = Instant::now();
        let mut bytes = early;
        loop {
            if !bytes.is_empty() {
                entrance.carried(bytes.len()).await;
                due = due.max(Instant::now() + entrance.lateness());
                if sent.send((due, bytes)).await.is_err() {
                    return Ok(());
                }
            }
            let chunk = entrance.chunk();
            bytes = entrance.read(&source, buffer.get_mut(..chunk).unwrap_or_default()).await?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    };
    let receiving = async move {
        while let Some((due, bytes)) = arriving.recv().await {
            if due > Instant::now() {
                tokio::time::sleep_until(due).await; // even a moment that has passed costs it a millisecond
            }
            gate.write(&sink, &bytes).await?;
        }
        gate.opened().await;
        sink.shutdown().await
    };
    tokio::try_join!(sending, receiving).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// How long a silence is watched. Silence has no event to wait for.
    const SILENCE: Duration = Duration::from_millis(60);

    /// A proxy before a listener, and the valves of both directions.
    struct Bench {
        server: TcpListener,
        proxy: Proxy,
        there: Valve,
        back: Valve,
    }

    impl Bench {
        async fn new() -> Self {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (there, back) = (Valve::new(), Valve::new());
            let target = server.local_addr().unwrap();
            let proxy = Proxy::start(target, there.gate(), back.gate()).await.unwrap();
            Self { server, proxy, there, back }
        }

        async fn dial(&self) -> TcpStream {
            TcpStream::connect(self.proxy.address()).await.unwrap()
        }

        async fn accepted(&self) -> TcpStream {
            tokio::time::timeout(SOON, self.server.accept()).await.unwrap().unwrap().0
        }

        async fn pair(&self) -> (TcpStream, TcpStream) {
            (self.dial().await, self.accepted().await)
        }
    }

    async fn arrives(stream: &mut TcpStream, expected: &[u8]) {
        let mut buffer = vec![0; expected.len()];
        tokio::time::timeout(SOON, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer, expected);
    }

    async fn silent(stream: &mut TcpStream) {
        let mut buffer = [0];
        let read = tokio::time::timeout(SILENCE, stream.read(&mut buffer)).await;
        assert!(read.is_err(), "neither bytes nor an end were to arrive: {read:?}");
    }

    async fn ended(stream: &mut TcpStream) {
        let read = tokio::time::timeout(SOON, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways() {
        let bench = Bench::new().await;
        let (mut client, mut server) = bench.pair().await;
        client.write_all(b"question").await.unwrap();
        arrives(&mut server, b"question").await;
        server.write_all(b"answer").await.unwrap();
        arrives(&mut client, b"answer").await;
        let much = vec![7; 4 << 20];
        let (sent, ()) = tokio::join!(client.write_all(&much), arrives(&mut server, &much));
        sent.unwrap();
        drop(client);
        ended(&mut server).await;
    }

    #[tokio::test]
    async fn a_cut_is_silence_and_after_it_everything_arrives() {
        let bench = Bench::new().await;
        let (mut client, mut server) = bench.pair().await;
        assert!(bench.there.set(Flow::Swallow) && bench.back.set(Flow::Swallow));
        client.write_all(b"lost?").await.unwrap();
        server.write_all(b"too?").await.unwrap();
        silent(&mut client).await;
        silent(&mut server).await;
        bench.there.set(Flow::Pass);
        bench.back.set(Flow::Pass);
        arrives(&mut server, b"lost?").await;
        arrives(&mut client, b"too?").await;
    }

    #[tokio::test]
    async fn a_one_way_cut_lets_the_other_way_pass() {
        let bench = Bench::new().await;
        let (mut client, mut server) = bench.pair().await;
        bench.there.set(Flow::Swallow);
        server.write_all(b"still here").await.unwrap();
        arrives(&mut client, b"still here").await;
        client.write_all(b"me too").await.unwrap();
        silent(&mut server).await;
        bench.there.set(Flow::Pass);
        arrives(&mut server, b"me too").await;
    }

    #[tokio::test]
    async fn ends_and_resets_do_not_cross_a_cut() {
        let bench = Bench::new().await;
        let (client, mut server) = bench.pair().await;
        let (mut other, reset) = bench.pair().await;
        bench.there.set(Flow::Swallow);
        bench.back.set(Flow::Swallow);
        drop(client);
        reset.set_zero_linger().unwrap();
        drop(reset);
        silent(&mut server).await;
        silent(&mut other).await;
        bench.there.set(Flow::Pass);
        bench.back.set(Flow::Pass);
        ended(&mut server).await;
        ended(&mut other).await;
    }

    async fn is_reset(stream: &mut TcpStream) {
        let read = tokio::time::timeout(SOON, stream.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn reset_ends_old_and_new_connections_on_both_sides_and_healing_ends_that() {
        let bench = Bench::new().await;
        let (mut client, mut server) = bench.pair().await;
        let (mut waiting, mut held) = bench.pair().await;
        bench.back.set(Flow::Swallow);
        held.write_all(b"held back").await.unwrap();
        silent(&mut waiting).await;
        bench.there.set(Flow::Reset);
        for stream in [&mut client, &mut server, &mut waiting, &mut held] {
            is_reset(stream).await;
        }
        is_reset(&mut bench.dial().await).await;
        assert!(tokio::time::timeout(SILENCE, bench.server.accept()).await.is_err());
        bench.there.set(Flow::Pass);
        bench.back.set(Flow::Pass);
        let (mut client, mut server) = bench.pair().await;
        client.write_all(b"again").await.unwrap();
        arrives(&mut server, b"again").await;
    }

    #[tokio::test]
    async fn a_slow_link_keeps_its_rate_and_healing_frees_what_waits() {
        let bench = Bench::new().await;
        let (mut client, mut server) = bench.pair().await;
        bench.there.set(Flow::Slow { bytes_per_second: 2000 });
        let begun = Instant::now();
        client.write_all(&[5; 100_000]).await.unwrap();
        arrives(&mut server, &[5; 400]).await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(200) && took < SOON, "{took:?}");
        bench.there.set(Flow::Pass);
        arrives(&mut server, &[5; 100_000 - 400]).await;
        assert!(begun.elapsed() < SOON, "at that rate it takes 50 s");
    }

    #[tokio::test]
    async fn a_connection_opened_across_a_cut_waits_and_an_abandoned_one_never_happened() {
        let bench = Bench::new().await;
        bench.back.set(Flow::Swallow);
        let mut abandoned = bench.dial().await;
        abandoned.write_all(b"gone").await.unwrap();
        drop(abandoned);
        let mut client = bench.dial().await;
        client.write_all(b"early").await.unwrap();
        assert!(tokio::time::timeout(SILENCE, bench.server.accept()).await.is_err());
        bench.back.set(Flow::Pass);
        let mut server = bench.accepted().await;
        arrives(&mut server, b"early").await;
        assert!(tokio::time::timeout(SILENCE, bench.server.accept()).await.is_err());
    }

    #[tokio::test]
    async fn delay_is_late_and_in_order() {
        let bench = Bench::new().await;
        let (mut client, mut server) = bench.pair().await;
        bench.there.set(Flow::Delay { ms: 120, jitter_ms: 40 });
        let begun = Instant::now();
        for number in 0..50_u8 {
            client.write_all(&[number]).await.unwrap();
            tokio::task::yield_now().await;
        }
        arrives(&mut server, &(0..50).collect::<Vec<u8>>()).await;
        assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
        server.write_all(b"back").await.unwrap();
        arrives(&mut client, b"back").await;
    }

    #[tokio::test]
    async fn a_target_that_is_down_ends_the_connection_and_the_socket_stays() {
        let bench = Bench::new().await;
        let target = bench.server.local_addr().unwrap();
        drop(bench.server);
        let mut client = TcpStream::connect(bench.proxy.address()).await.unwrap();
        ended(&mut client).await;
        let back = TcpListener::bind(target).await.unwrap();
        let _client = TcpStream::connect(bench.proxy.address()).await.unwrap();
        tokio::time::timeout(SOON, back.accept()).await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_a_cut_is_set_nothing_follows() {
        let bench = Bench::new().await;
        let (client, mut server) = bench.pair().await;
        let (_unread, mut flood) = client.into_split();
        let flooding = tokio::spawn(async move { while flood.write_all(&[1; 1024]).await.is_ok() {} });
        arrives(&mut server, &[1; 4096]).await;
        bench.there.set(Flow::Swallow);
        // What had passed before is in the server's socket already; once that is drained, nothing more may
        // come.
        let drained = async {
            let mut buffer = vec![0; 1 << 20];
            while matches!(tokio::time::timeout(SILENCE, server.read(&mut buffer)).await, Ok(Ok(1..))) {}
        };
        tokio::time::timeout(SOON, drained).await.unwrap();
        silent(&mut server).await;
        flooding.abort();
    }
}

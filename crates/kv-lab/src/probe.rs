//! Whether a link works, asked over the link itself: an HTTP/2 ping through the proxy to the real node and
//! back. So a cut is not only installed but seen, and a healed link is not only believed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The client's preface, empty settings, and a ping with eight bytes of its own.
const QUESTION: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x06\x00\x00\x00\x00\x00quorate?";
/// Type of a ping frame.
const PING: u8 = 6;
/// Flag of its answer.
const ACK: u8 = 1;

/// How many bytes the question has: a slow link needs its time for them.
pub(crate) const QUESTION_BYTES: usize = QUESTION.len();

/// What became of a ping. It needs both directions of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Answered after so long.
    Answered(Duration),
    /// The connection was reset.
    Reset,
    /// It was refused, or the network said that there is no way, or the other side hung up.
    Refused,
    /// Nothing happened in time.
    Silent,
}

/// Pings through this address.
pub(crate) async fn ask(address: SocketAddr, patience: Duration) -> Seen {
    ask_over(TcpStream::connect(address), patience).await
}

/// Pings over a connection that is yet to be made.
pub(crate) async fn ask_over(
    connect: impl Future<Output = io::Result<TcpStream>>,
    patience: Duration,
) -> Seen {
    let begun = Instant::now();
    match tokio::time::timeout(patience, ping(connect)).await {
        Ok(Ok(())) => Seen::Answered(begun.elapsed()),
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Seen::Reset,
            _ => Seen::Refused,
        },
        Err(_) => Seen::Silent,
    }
}

async fn ping(connect: impl Future<Output = io::Result<TcpStream>>) -> io::Result<()> {
    let mut stream = connect.await?;
    stream.write_all(QUESTION).await?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let [high, middle, low, kind, flags, ..] = header;
        let length = u64::from(u32::from_be_bytes([0, high, middle, low]));
        if kind == PING && flags & ACK != 0 {
            return Ok(());
        }
        tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn only_an_answered_ping_counts() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let (answered, ()) = tokio::join!(ask(address, Duration::from_secs(10)), async {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut question = vec![0; QUESTION.len()];
            stream.read_exact(&mut question).await.unwrap();
            assert_eq!(question, QUESTION);
            // Settings with one entry, then the answer.
            stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64").await.unwrap();
            stream.write_all(b"\0\0\x08\x06\x01\0\0\0\0quorate?").await.unwrap();
        });
        assert!(matches!(answered, Seen::Answered(_)), "{answered:?}");
        let (seen, ()) = tokio::join!(ask(address, Duration::from_secs(10)), async {
            server.accept().await.unwrap().0.set_zero_linger().unwrap();
        });
        assert_eq!(seen, Seen::Reset);
        let seen = ask(address, Duration::from_millis(50)).await;
        assert_eq!(seen, Seen::Silent, "accepted by the kernel, never answered");
        drop(server);
        assert_eq!(ask(address, Duration::from_secs(10)).await, Seen::Refused);
    }
}

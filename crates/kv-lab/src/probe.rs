//! Whether a link works, asked over the link itself: an HTTP/2 ping through the proxy to the real node and back. So a
//! cut is not only installed but seen, and a healed link is not only believed.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The client's preface, empty settings, and a ping with eight bytes of its own.
const QUESTION: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x06\x00\x00\x00\x00\x00quorate?";
/// Type of a ping frame.
const PING: u8 = 6;
/// Flag of its answer.
const ACK: u8 = 1;

/// Whether a ping through this address is answered in time. It needs both directions of the link.
pub(crate) async fn answered(address: SocketAddr, patience: Duration) -> bool {
    tokio::time::timeout(patience, ping(address)).await.is_ok_and(|answer| answer.is_ok())
}

async fn ping(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
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
        let (answered, ()) = tokio::join!(answered(address, Duration::from_secs(10)), async {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut question = vec![0; QUESTION.len()];
            stream.read_exact(&mut question).await.unwrap();
            assert_eq!(question, QUESTION);
            // Settings with one entry, then the answer.
            stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64").await.unwrap();
            stream.write_all(b"\0\0\x08\x06\x01\0\0\0\0quorate?").await.unwrap();
        });
        assert!(answered);
        assert!(
            !super::answered(address, Duration::from_millis(50)).await,
            "accepted by the kernel, never answered"
        );
        drop(server);
        assert!(!super::answered(address, Duration::from_secs(10)).await);
    }
}

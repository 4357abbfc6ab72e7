//! A client on bare HTTP/2, which does what no client library would.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tonic::Status;

/// A bare connection with this window for answers.
pub async fn raw(address: &str, window: u32) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).max_concurrent_reset_streams(10_000);
    let (send, connection) = builder.handshake(socket).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    send.ready().await.unwrap()
}

/// Opens a stream; its body and its answer.
pub async fn open(
    send: &mut SendRequest<Bytes>,
    path: &str,
    timeout: Option<&str>,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = http::Request::post(format!("http://node{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    *send = send.clone().ready().await.unwrap();
    send.send_request(request.body(()).unwrap(), false).unwrap()
}

/// A message with its prefix, which may claim another length.
pub fn message(claimed: usize, body: &[u8]) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(claimed).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes.into()
}

pub fn whole(request: &impl Message) -> Bytes {
    message(request.encoded_len(), &request.encode_to_vec())
}

/// The status of a call, wherever it stands.
pub async fn status(answer: ResponseFuture) -> Status {
    let (head, mut body) = answer.await.unwrap().into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    drain(&mut body).await;
    Status::from_header_map(&body.trailers().await.unwrap().unwrap()).unwrap()
}

pub async fn drain(body: &mut RecvStream) {
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
}

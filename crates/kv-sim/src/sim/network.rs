//! Sockets inside the simulation: turmoil's TCP behind `kv_env::Network`, so that tonic, hyper and h2 run
//! unchanged and only the bytes between them are simulated.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use kv_env::{Connection, Listener, Network};
use turmoil::net::{TcpListener, TcpStream};

/// The simulated network. Addresses are `host:port` with the names of the simulation's hosts.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimNetwork;

impl Network for SimNetwork {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            let port = port.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            // A host listens on its own address; turmoil wants that written as all of them.
            let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).await?;
            let incoming = unfold(listener, |listener| async move {
                let accepted = listener.accept().await;
                let accepted =
                    accepted.map(|(socket, remote)| Connection::new(socket, Some(remote.to_string())));
                Some((accepted, listener))
            });
            Ok(Listener::new(address.to_owned(), incoming))
        })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let socket = TcpStream::connect(address).await?;
            Ok(Connection::new(socket, Some(address.to_owned())))
        })
    }
}

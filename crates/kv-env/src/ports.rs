//! Ports for labs and tests: free ones, found without ever listening on them. A socket that listens, even for
//! a moment, is inherited by each process that is being started then, and keeps its port busy until that
//! process runs its program.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::TcpSocket;

/// Ports that [`choose_port`] gives: below those that systems give to connections.
const CHOSEN: Range<u32> = 11_000..31_000;

/// Whether a node could listen on this port of loopback now.
pub fn port_is_free(port: u16) -> bool {
    let bound = TcpSocket::new_v4().and_then(|socket| {
        // As a listener has it: connections of the past do not keep a port busy.
        socket.set_reuseaddr(cfg!(unix))?;
        socket.bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())
    });
    bound.is_ok()
}

/// A free port that this process has not been given before; processes that run beside it begin elsewhere.
/// `None` after 20,000 ports.
pub fn choose_port() -> Option<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = CHOSEN.end - CHOSEN.start;
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        if next >= count {
            NEXT.store(count, Ordering::Relaxed);
            return None;
        }
        let at = CHOSEN.start + std::process::id().wrapping_mul(997).wrapping_add(next) % count;
        match u16::try_from(at) {
            Ok(port) if port_is_free(port) => return Some(port),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;
    use std::process::Command;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Ends the thread that starts processes, also when the test fails.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// Listening on the port instead, to see whether it is free, failed this one time in 400.
    #[test]
    fn a_chosen_port_can_be_listened_on_while_processes_are_started() {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    Command::new("true").status().unwrap();
                }
            });
            let _done = Done(&done);
            let mut given = BTreeSet::new();
            for _ in 0..4_000 {
                let port = choose_port().unwrap();
                assert!(CHOSEN.contains(&u32::from(port)) && given.insert(port), "{port}");
                let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
                assert!(!port_is_free(port), "{port}");
            }
        });
    }
}

//! Busy ports, found before anything starts, and named with their holder where the system shows it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use crate::LabError;

/// How far above the wanted port base a free one is looked for, in steps of 1000.
const ALTERNATIVES: u16 = 20;
/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// Client ports are `base + node`, peer ports `base + PEER_OFFSET + node`.
pub(crate) const PEER_OFFSET: u16 = 100;

/// Refuses a port base some port of which cannot be listened on.
pub(crate) fn check(base: u16, nodes: u64) -> Result<(), LabError> {
    let Some(port) = first_busy(base, nodes) else { return Ok(()) };
    let instead = (1..=ALTERNATIVES)
        .filter_map(|step| base.checked_add(step * 1000))
        .find(|base| first_busy(*base, nodes).is_none())
        .unwrap_or(base);
    Err(LabError::PortBusy { port, holder: holder(port), instead })
}

/// Port bases that are chosen by themselves: below the ports that systems give out, above those that people
/// know.
const CHOSEN: std::ops::Range<u16> = 12_000..25_000;
/// Their distance: room for clients and peers.
const CHOSEN_STEP: u16 = 200;

/// A port base that is this process's, among all that choose theirs this way, as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) base: u16,
    /// No node listens on the base itself: a process that does, owns the range.
    _owned: TcpListener,
}

/// Finds a range of free ports that no other lab has claimed.
pub(crate) fn claim(nodes: u64) -> Result<Claim, LabError> {
    let count = (CHOSEN.end - CHOSEN.start) / CHOSEN_STEP;
    let first = fastrand::u16(0..count);
    let bases = (0..count).map(|step| CHOSEN.start + (first + step) % count * CHOSEN_STEP);
    let mut claims = bases.filter_map(|base| {
        let _owned = TcpListener::bind((Ipv4Addr::LOCALHOST, base)).ok()?;
        first_busy(base, nodes).is_none().then_some(Claim { base, _owned })
    });
    claims.next().ok_or(LabError::PortBusy { port: CHOSEN.start, holder: None, instead: CHOSEN.end })
}

fn first_busy(base: u16, nodes: u64) -> Option<u16> {
    let nodes = u16::try_from(nodes).unwrap_or(PEER_OFFSET);
    let port = |offset: u16| base.saturating_add(offset);
    (1..=nodes)
        .flat_map(|node| [port(node), port(PEER_OFFSET + node)])
        .find(|port| !kv_env::port_is_free(*port))
}

/// The process that listens on a port, such as `nginx (process 812)`; best effort, Linux only.
fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, port))?;
    let socket = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let (path, name) = (process.path(), process.file_name());
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let holds = std::fs::read_dir(path.join("fd")).is_ok_and(|mut descriptors| {
            descriptors.any(|descriptor| {
                let target = descriptor.and_then(|descriptor| std::fs::read_link(descriptor.path()));
                target.is_ok_and(|target| target == Path::new(&socket))
            })
        });
        if holds {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    Some("a process of another user".into())
}

/// The inode of the socket that listens on the port, from the text of `/proc/net/tcp`.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        (local.ends_with(&suffix) && state == LISTENING).then(|| fields.nth(5)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1BBD 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0\n\
             1: 0100007F:1BBD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0\n";
        assert_eq!(listening_inode(table, 7101), Some(4242));
        assert_eq!(listening_inode(table, 7102), None);
    }

    #[test]
    fn claimed_ranges_are_free_and_each_has_one_owner() {
        let claims: Vec<_> = (0..20).map(|_| claim(9).unwrap()).collect();
        let bases: std::collections::BTreeSet<_> = claims.iter().map(|claim| claim.base).collect();
        assert_eq!(bases.len(), claims.len());
        assert!(bases.iter().all(|base| first_busy(*base, 9).is_none() && CHOSEN.contains(base)));
    }

    #[test]
    fn a_busy_port_is_named_with_its_holder_and_a_way_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = check(port - 1, 1).unwrap_err();
        let LabError::PortBusy { port: busy, holder, instead } = &error else { panic!("{error}") };
        assert_eq!(*busy, port);
        assert_ne!(*instead, port - 1);
        if cfg!(target_os = "linux") {
            let me = format!("(process {})", std::process::id());
            assert!(holder.as_ref().unwrap().ends_with(&me), "{holder:?}");
        }
        assert!(error.to_string().contains("--port-base"), "{error}");
    }
}

//! Whose data directory this is: the file `IDENTITY`, checked at every open.

use std::{fmt, path::Path};

use kv_types::{ClusterId, NodeId};

use crate::{
    disk::{self, Disk},
    error::StorageError,
};

const FILE: &str = "IDENTITY";
const VERSION: &str = "quorate data directory, format 1";

/// A node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node in it.
    pub node: NodeId,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

/// The identity on disk, if any.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, StorageError> {
    let path = dir.join(FILE);
    if !disk.exists(&path) {
        return Ok(None);
    }
    let file = disk.open(&path, false).map_err(StorageError::io("open IDENTITY"))?;
    let bytes = disk::read_all(&*file).map_err(StorageError::io("read IDENTITY"))?;
    let damaged = |what: &str| StorageError::CorruptFile { file: FILE.into(), what: what.into() };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("not text"))?;
    let (body, sum) = text.trim_end().rsplit_once("sum ").ok_or_else(|| damaged("no checksum"))?;
    if sum != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("wrong checksum"));
    }
    let mut lines = body.lines();
    if lines.next() != Some(VERSION) {
        return Err(damaged("unknown format version; use the release that wrote it"));
    }
    let mut field = |name: &str| lines.next().and_then(|l| l.strip_prefix(name)).map(str::trim);
    let cluster = field("cluster ").and_then(|v| v.parse().ok()).ok_or_else(|| damaged("no cluster id"))?;
    let node = field("node ").and_then(|v| v.parse().ok()).ok_or_else(|| damaged("no node id"))?;
    Ok(Some(Identity { cluster, node }))
}

/// Checks the owner of the directory, and signs a new one.
pub(crate) fn check(
    disk: &dyn Disk,
    dir: &Path,
    expected: Option<Identity>,
) -> Result<Option<Identity>, StorageError> {
    let found = read(disk, dir)?;
    match (found, expected) {
        (Some(found), Some(expected)) if found != expected => {
            Err(StorageError::ForeignDataDir { found: found.to_string(), expected: expected.to_string() })
        }
        (None, Some(expected)) => {
            let body = format!("{VERSION}\ncluster {}\nnode {}\n", expected.cluster, expected.node);
            let text = format!("{body}sum {:08x}\n", crc32c::crc32c(body.as_bytes()));
            disk::write_durably(disk, dir, FILE, text.as_bytes())
                .map_err(StorageError::io("write IDENTITY"))?;
            Ok(Some(expected))
        }
        (found, _) => Ok(found),
    }
}

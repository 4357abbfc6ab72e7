//! Whose folder it is: a lab replaces what is in its own, and nothing in any other. Its cluster file says so,
//! and where that was damaged, the files of the links beside it.

use std::io;
use std::path::Path;

use crate::LabError;

/// The first words of every file that a lab writes for its nodes.
pub(crate) const MARK: &str = "# Written by the lab";

/// What a cluster file of a lab says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earlier {
    pub(crate) cluster_id: String,
    pub(crate) nodes: u64,
    port_base: Option<u16>,
}

impl Earlier {
    /// `None` for a file that is not whole, or that no lab wrote.
    fn read(text: &str) -> Option<Self> {
        let file: toml::Table = text.starts_with(MARK).then(|| text.parse().ok())??;
        let nodes = file.get("node")?.as_array()?;
        let first = nodes.first()?.get("client_address")?.as_str()?;
        let port = first.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        Some(Self {
            cluster_id: file.get("cluster")?.get("id")?.as_str()?.to_owned(),
            nodes: nodes.len() as u64,
            port_base: port.and_then(|port| port.checked_sub(1)),
        })
    }
}

/// Nodes and port base of the lab whose data a folder has.
pub fn kept(dir: &Path) -> Option<(u64, u16)> {
    let earlier = earlier(dir).ok()??;
    Some((earlier.nodes, earlier.port_base?))
}

/// The lab whose data a folder has; none in one that is empty. `Damaged` where its cluster file cannot be
/// read, an error also in a folder that is no lab's.
pub(crate) fn earlier(dir: &Path) -> Result<Option<Earlier>, LabError> {
    own(dir)?;
    match text(dir)? {
        Some(text) => match Earlier::read(&text) {
            Some(earlier) => Ok(Some(earlier)),
            None => Err(LabError::Damaged { dir: dir.to_path_buf() }),
        },
        None if is_empty(dir)? => Ok(None),
        None => Err(LabError::Damaged { dir: dir.to_path_buf() }),
    }
}

/// Refuses a folder whose contents somebody else put there.
pub(crate) fn own(dir: &Path) -> Result<(), LabError> {
    let marked = || {
        let maps = std::fs::read_dir(dir.join("address-maps")).into_iter().flatten().flatten();
        maps.filter_map(|map| std::fs::read_to_string(map.path()).ok()).any(|map| map.starts_with(MARK))
    };
    let is_own = match text(dir)? {
        Some(text) if text.starts_with(MARK) => true,
        // A whole file without the mark was written by hand, perhaps over a copy of a lab's.
        Some(text) if text.parse::<toml::Table>().is_ok_and(|table| !table.is_empty()) => false,
        Some(_) => marked(),
        None => is_empty(dir)? || marked(),
    };
    match is_own {
        true => Ok(()),
        false => {
            let dir = dir.display();
            Err(LabError::Usage(format!("{dir} has files that no lab wrote: choose another folder")))
        }
    }
}

/// Refuses data of another number of nodes: it is not this lab's.
pub(crate) fn same_size(dir: &Path, earlier: &Earlier, wanted: u64) -> Result<(), LabError> {
    let had = earlier.nodes;
    if had == wanted { Ok(()) } else { Err(LabError::OtherNodes { dir: dir.to_path_buf(), had, wanted }) }
}

/// The cluster file, if there is one. What cannot be read is an error, not an absence.
fn text(dir: &Path) -> Result<Option<String>, LabError> {
    let path = dir.join("cluster.toml");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(unreadable(&path, &error)),
    }
}

/// Whether there is neither data nor a log.
fn is_empty(dir: &Path) -> Result<bool, LabError> {
    for folder in ["data", "logs"].map(|folder| dir.join(folder)) {
        match std::fs::read_dir(&folder) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Ok(false);
                }
            }
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(unreadable(&folder, &error)),
        }
    }
    Ok(true)
}

fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn unreadable(path: &Path, error: &io::Error) -> LabError {
    LabError::Usage(format!("{} cannot be read: {error}; nothing was changed", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const WHOLE: &str = "# Written by the lab.\n[cluster]\nid = \"00ff\"\n\n[[node]]\nid = \"n1\"\nclient_address = \"127.0.0.1:7301\"\n";

    #[test]
    fn a_damaged_cluster_file_is_told_from_a_folder_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, map) = (dir.path().join("cluster.toml"), dir.path().join("address-maps/n1.toml"));
        assert_eq!(earlier(dir.path()).unwrap(), None, "nothing is there");
        fs::create_dir_all(dir.path().join("address-maps")).unwrap();
        fs::create_dir_all(dir.path().join("data/n1")).unwrap();
        fs::write(&cluster, WHOLE).unwrap();
        assert_eq!(kept(dir.path()), Some((1, 7_300)));
        assert_eq!(earlier(dir.path()).unwrap().unwrap().cluster_id, "00ff");

        // What is left of the file says whose it was, or the files beside it do.
        fs::write(&map, "# Written by the lab: every link to a peer goes through a proxy.\n").unwrap();
        let torn = [&WHOLE.as_bytes()[..60], b"", b"\xff\xfe[[[", b"[cluster]\nid = \"00"];
        for text in torn.map(Some).into_iter().chain([None]) {
            match text {
                Some(text) => fs::write(&cluster, text).unwrap(),
                None => fs::remove_file(&cluster).unwrap(),
            }
            let damaged = earlier(dir.path());
            assert!(matches!(damaged, Err(LabError::Damaged { .. })), "{text:?}: {damaged:?}");
            assert!(own(dir.path()).is_ok(), "{text:?}: it may be begun anew");
            assert_eq!(kept(dir.path()), None);
        }
        // A whole file that somebody else wrote there counts for more than they do.
        fs::write(&cluster, "[cluster]\nid = \"00ff\"\n").unwrap();
        assert!(matches!(own(dir.path()), Err(LabError::Usage(_))));
        // What cannot be read is not taken for absent.
        fs::remove_file(&cluster).unwrap();
        fs::create_dir(&cluster).unwrap();
        let unread = earlier(dir.path()).unwrap_err();
        assert!(matches!(&unread, LabError::Usage(why) if why.contains("cannot be read")), "{unread}");
        fs::remove_dir(&cluster).unwrap();
        // Without them it is somebody else's, and stays.
        fs::remove_file(&map).unwrap();
        for text in [Some("[cluster]\nid = \"00ff\"\n"), None] {
            let written = text.map_or(Ok(()), |text| fs::write(&cluster, text));
            written.unwrap();
            assert!(matches!(earlier(dir.path()), Err(LabError::Usage(_))), "{text:?}");
            assert!(matches!(own(dir.path()), Err(LabError::Usage(_))), "{text:?}");
            let _ = fs::remove_file(&cluster);
        }
    }
}

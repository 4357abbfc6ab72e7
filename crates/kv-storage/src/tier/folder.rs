//! The folder of a tier on this machine's disk, and the file beside it that says which kind made it.
//!
//! The file is there, synced, before the tier is: a folder without it was made by another release.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Tier, TierError, TierSource, Watched,
    files::{failed, sync_folder},
    fjall, sled,
};
use crate::{
    disk::{self, Disk, RealDisk},
    limits,
};

/// The folder, in the data directory.
const FOLDER: &str = "tier";
/// The file beside it.
const FILE: &str = "TIER";
const VERSION: &str = "quorate tier, format 1";

/// Which library keeps the rows of the lower tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TierKind {
    /// fjall: a log-structured merge tree.
    #[default]
    Fjall,
    /// sled: a page store. Slower on new keys, and its memory follows the data.
    Sled,
}

impl TierKind {
    /// All of them.
    pub const ALL: [TierKind; 2] = [TierKind::Fjall, TierKind::Sled];

    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            TierKind::Fjall => "fjall",
            TierKind::Sled => "sled",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<TierKind> {
        TierKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for TierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Tiers of one kind in the folder `tier` of a data directory, each with a bound on how long a call may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct TierFolders {
    kind: TierKind,
}

impl TierFolders {
    /// Tiers of that kind.
    pub const fn new(kind: TierKind) -> TierFolders {
        TierFolders { kind }
    }
}

fn foreign(what: impl fmt::Display) -> TierError {
    TierError::Foreign(what.to_string())
}

/// The kind that made the tier of a directory, if there ever was one.
fn made_by(dir: &Path) -> Result<Option<TierKind>, TierError> {
    let path = dir.join(FILE);
    if !RealDisk.exists(&path) {
        return Ok(None);
    }
    let bytes = RealDisk.open(&path, false).and_then(|file| disk::read_all(&*file)).map_err(failed)?;
    let unreadable = |what: &str| {
        foreign(format!(
            "{}: {what}. It says which library made the tier beside it; put back the file that was there, or start this \
             node with an empty data directory",
            path.display()
        ))
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| unreadable("not text"))?;
    let (body, sum) = text.trim_end().rsplit_once("sum ").ok_or_else(|| unreadable("no checksum"))?;
    if sum != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
        return Err(unreadable("wrong checksum"));
    }
    let mut lines = body.lines();
    let version = lines.next().unwrap_or_default();
    if version != VERSION {
        return Err(foreign(format!(
            "{}: `{version}` is a format that this release does not know: start the release that wrote it",
            path.display()
        )));
    }
    let name = lines.next().and_then(|line| line.strip_prefix("kind ")).unwrap_or_default();
    let unknown = || {
        let more = "start the release that wrote it, or this node with an empty data directory";
        foreign(format!("{}: this release has no tier `{name}`: {more}", path.display()))
    };
    TierKind::named(name).map(Some).ok_or_else(unknown)
}

/// Whether the folder of a tier has anything in it.
fn has_tier(dir: &Path) -> bool {
    fs::read_dir(dir.join(FOLDER)).is_ok_and(|mut entries| entries.next().is_some())
}

/// Refuses a directory that another kind made, and signs one that has no tier yet.
fn claim(dir: &Path, kind: TierKind) -> Result<(), TierError> {
    match made_by(dir)? {
        Some(made) if made == kind => Ok(()),
        Some(made) => Err(foreign(format!(
            "the tier of this data directory was made by {made}, and {kind} is set: write `tier = \"{made}\"` under \
             [storage], or start this node with an empty data directory"
        ))),
        None if has_tier(dir) => Err(foreign(format!(
            "the data directory has a tier, but no file {FILE} that says which library made it: another release did. \
             Start that release, or this node with an empty data directory"
        ))),
        None => {
            let body = format!("{VERSION}\nkind {kind}\n");
            let text = format!("{body}sum {:08x}\n", crc32c::crc32c(body.as_bytes()));
            RealDisk.create_dir_all(dir).map_err(failed)?;
            disk::write_durably(&RealDisk, dir, FILE, text.as_bytes()).map_err(failed)?;
            let written = made_by(dir)?;
            assert_eq!(written, Some(kind), "what {FILE} says is what was written");
            Ok(())
        }
    }
}

impl TierSource for TierFolders {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        claim(dir, self.kind)?;
        let folder = dir.join(FOLDER);
        // The libraries would let others read it.
        RealDisk.create_dir_all(&folder).map_err(failed)?;
        let tier: Arc<dyn Tier> = match self.kind {
            TierKind::Fjall => Arc::new(fjall::open(&folder)?),
            TierKind::Sled => Arc::new(sled::open(&folder)?),
        };
        Ok(Arc::new(Watched::new(tier, limits::TIER_WAIT)?))
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        let tier = dir.join(FOLDER);
        if !tier.exists() {
            return Ok(());
        }
        let mut lost: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("tier.lost-"));
            if let Some(number) = number.and_then(|n| n.parse().ok()) {
                lost.push((number, path));
            }
        }
        lost.sort();
        let next = lost.last().map_or(1, |(n, _)| n + 1);
        fs::rename(&tier, dir.join(format!("tier.lost-{next}"))).map_err(failed)?;
        sync_folder(dir)?;
        let spare = (lost.len() + 1).saturating_sub(limits::KEEP_LOST_TIERS);
        for (_, path) in lost.into_iter().take(spare) {
            fs::remove_dir_all(path).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(dir: &Path, kind: TierKind) -> String {
        match TierFolders::new(kind).open(dir) {
            Err(TierError::Foreign(words)) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_other_kind_is_refused_with_what_to_type() {
        for (made, other) in [(TierKind::Fjall, TierKind::Sled), (TierKind::Sled, TierKind::Fjall)] {
            let dir = tempfile::tempdir().unwrap();
            drop(TierFolders::new(made).open(dir.path()).unwrap());
            let words = refusal(dir.path(), other);
            assert!(words.contains(&format!("write `tier = \"{made}\"` under [storage]")), "{words}");
            assert!(TierFolders::new(made).open(dir.path()).is_ok(), "nothing was changed by the refusal");
        }
    }

    #[test]
    fn a_tier_without_its_file_or_with_an_unknown_one_is_refused() {
        for kind in TierKind::ALL {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE);
            drop(TierFolders::new(kind).open(dir.path()).unwrap());
            let good = fs::read_to_string(&path).unwrap();
            fs::remove_file(&path).unwrap();
            for asked in TierKind::ALL {
                assert!(refusal(dir.path(), asked).contains("empty data directory"));
            }
            let signed = |body: &str| format!("{body}sum {:08x}\n", crc32c::crc32c(body.as_bytes()));
            for (text, words) in [
                (good.replace("sum ", "sum 0"), "wrong checksum"),
                (String::new(), "no checksum"),
                (signed("quorate tier, format 2\nkind fjall\n"), "start the release that wrote it"),
                (signed("quorate tier, format 1\nkind rocks\n"), "no tier `rocks`"),
            ] {
                fs::write(&path, text).unwrap();
                let found = refusal(dir.path(), kind);
                assert!(found.contains(words), "{found}");
            }
            fs::write(&path, good).unwrap();
            assert!(TierFolders::new(kind).open(dir.path()).is_ok());
        }
    }

    #[test]
    fn the_file_is_there_before_the_tier() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), TierKind::Sled).unwrap();
        assert!(!has_tier(dir.path()));
        assert_eq!(made_by(dir.path()), Ok(Some(TierKind::Sled)));
        assert!(refusal(dir.path(), TierKind::Fjall).contains("sled"));
    }
}

//! What both tiers on a disk ask of the file system, and what its refusals mean.

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::Path,
};

use super::TierError;

/// Too many open files, in the system and in the process.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// An error of a call that this crate made itself.
pub(super) fn failed(e: io::Error) -> TierError {
    TierError::Io(e.to_string())
}

/// An error that a library passes on. Refusals of the file system, which another start may not meet, are no
/// damage. Everything else (a short file, a missing one, a read error) is, though it is reported alike.
pub(super) fn passed_on(e: &io::Error) -> TierError {
    match e.kind() {
        ErrorKind::PermissionDenied
        | ErrorKind::StorageFull
        | ErrorKind::QuotaExceeded
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::OutOfMemory => TierError::Io(e.to_string()),
        _ if matches!(e.raw_os_error(), Some(EMFILE | ENFILE)) => TierError::Io(e.to_string()),
        _ => TierError::Damaged(e.to_string()),
    }
}

/// Makes the names of a folder durable.
pub(super) fn sync_folder(dir: &Path) -> Result<(), TierError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_damage() {
        let of = |errno| passed_on(&io::Error::from_raw_os_error(errno));
        for (errno, name) in
            [(28, "no space"), (122, "quota"), (30, "read-only"), (13, "permission"), (24, "files")]
        {
            assert!(matches!(of(errno), TierError::Io(_)), "{name}");
        }
        for (errno, name) in [(5, "input/output error"), (2, "missing file")] {
            assert!(matches!(of(errno), TierError::Damaged(_)), "{name}");
        }
        let short = io::Error::from(ErrorKind::UnexpectedEof);
        assert!(matches!(passed_on(&short), TierError::Damaged(_)));
    }
}

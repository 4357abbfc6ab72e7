//! Why a group's state machine stops.

use std::io;

use kv_storage::StorageError;
use kv_types::catalogue::FeatureLevel;

use crate::codec::CodecError;

/// Why a state machine cannot go on. Each of these stops its group.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The tables failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Something that was stored or committed does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A row that must be there is not.
    #[error("{what} is missing in the tables")]
    Lost {
        /// What is missing.
        what: &'static str,
    },
    /// The cluster uses what this program does not know.
    #[error(
        "the cluster is at {level}, and this version of the program supports up to {supported}: upgrade this node"
    )]
    TooOld {
        /// The cluster's.
        level: FeatureLevel,
        /// This program's.
        supported: FeatureLevel,
    },
    /// A task of the runtime failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<MachineError> for io::Error {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Io(error) => error,
            MachineError::Storage(error) => error.into(),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

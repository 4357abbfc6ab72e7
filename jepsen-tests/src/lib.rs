//! Scenarios against real nodes: cut anything, record everything, believe nothing unproven.
//!
//! [`scenario`] reads what is to happen, [`plan`] decides purely when and to whom, [`nemesis`] does it and
//! keeps the proof (a [`flood`] is one fault of it), [`run`] plays the phases and leaves what [`recorded`]
//! holds. [`verdict`] says what that means: `properties` and [`deaths`] judge what no history shows,
//! [`coverage`] whether enough happened, [`controls`] whether the alarms ring. [`files`] writes it down, with
//! the page of `page`. [`soak`] runs many.

pub mod check;
pub mod cli;
pub mod controls;
pub mod coverage;
pub mod deaths;
pub mod files;
pub mod flood;
pub mod judge_plan;
pub mod mutants;
pub mod nemesis;
pub mod observe;
pub mod options;
mod page;
pub mod plan;
mod properties;
pub mod recorded;
pub mod run;
pub mod scenario;
pub mod soak;
pub mod summary;
pub mod verdict;

use std::path::Path;

use kv_lab::LabError;
use scenario::Mistake;

/// Why the harness could not do its work. It says nothing about the store.
#[derive(Debug, thiserror::Error)]
pub enum Broke {
    /// A scenario or a recorded run that makes no sense.
    #[error("{0}")]
    Mistake(#[from] Mistake),
    /// The lab.
    #[error("{0}")]
    Lab(#[from] LabError),
    /// A file.
    #[error("cannot write or read {file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The cluster did not do what the harness itself needed.
    #[error("the cluster does not serve the harness: {0}")]
    Store(Box<kv_client::Error>),
    /// The history that was recorded makes no sense: an error of the recorder.
    #[error("the recorded history cannot be judged: {0}")]
    History(kv_check::history::Malformed),
}

impl Broke {
    /// The exit code that goes with it: 254 for what was asked wrongly, 255 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Mistake(_) | Self::Lab(LabError::Usage(_)) => 254,
            _ => 255,
        }
    }

    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = path.display().to_string();
        move |source| Self::File { file, source }
    }

    pub(crate) fn store(error: kv_client::Error) -> Self {
        Self::Store(Box::new(error))
    }

    pub(crate) fn history(malformed: kv_check::history::Malformed) -> Self {
        Self::History(malformed)
    }
}

//! What is found of a promise: the ruling, what it rests on, and the evidence against it.

use serde::{Deserialize, Serialize};

/// What is known about a promise. Of several, the greatest is that of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ruling {
    /// It was kept.
    Valid,
    /// It cannot be decided.
    Unknown,
    /// It was broken.
    Invalid,
}

impl Ruling {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Ruling::Valid => "valid",
            Ruling::Unknown => "unknown",
            Ruling::Invalid => "invalid",
        }
    }
}

impl std::fmt::Display for Ruling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One promise, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Property {
    /// What was promised, in words: `linearizable`, `no acknowledged write lost`.
    pub name: String,
    /// The namespace.
    pub ns: String,
    /// What judged it: `wgl`, `receipts`, `set-full`, `causal accounting`, ...
    pub checker: String,
    /// How many operations (or writes, reads, replicas) it looked at.
    pub examined: u64,
    /// The judgement.
    pub ruling: Ruling,
    /// What was found, in a line.
    pub detail: String,
    /// Where a promise was broken: the smallest part of the history that shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// The smallest failing part of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The key.
    pub key: String,
    /// Indices of the invocations, in order.
    pub indices: Vec<u64>,
    /// The part as people read it.
    pub text: String,
    /// When the first of its operations was called, nanoseconds.
    pub from: u64,
    /// When the last of them returned, nanoseconds.
    pub to: u64,
}

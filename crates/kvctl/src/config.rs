//! Contexts: which cluster is meant. `$XDG_CONFIG_HOME/kvctl/config.toml`; a flag beats the environment,
//! which beats the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::problem::Problem;

/// A cluster and how to reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Nodes to begin with.
    pub(crate) endpoints: Vec<String>,
    /// Namespace when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// Folder of the lab, when it is one: faults are allowed there and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lab: Option<PathBuf>,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The selected context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// All of them.
    #[serde(default, rename = "context")]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Config {
    /// Reads the file; one that is not there is empty.
    pub(crate) fn load(path: &Path) -> Result<Self, Problem> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(Problem::new(Exit::Usage, format!("cannot read {}: {error}", path.display())));
            }
        };
        toml::from_str(&text)
            .map_err(|error| Problem::usage(format!("{} makes no sense: {error}", path.display())))
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Problem> {
        let refused =
            |what: String| Problem::new(Exit::Refused, format!("cannot write {}: {what}", path.display()));
        let text = toml::to_string(self).map_err(|error| refused(error.to_string()))?;
        let fresh = path.with_extension(format!("toml.{}", std::process::id()));
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&fresh, text)?;
            fs::rename(&fresh, path)
        };
        write().map_err(|error: std::io::Error| refused(error.to_string()))
    }

    /// The context of that name: an error that lists those there are.
    pub(crate) fn context(&self, name: &str) -> Result<&Context, Problem> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "there are none yet".to_owned()
            } else {
                format!("known: {}", known.join(", "))
            };
            Problem::usage(format!("no context `{name}`; {known}"))
                .try_this("kvctl lab up", "starts a local cluster and selects it")
                .try_this("kvctl -e HOST:PORT ...", "talks to one node without a context")
        })
    }
}

/// Where the file is.
pub(crate) fn path() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .unwrap_or_else(|| PathBuf::from("."))
        .join("kvctl/config.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_survive_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/config.toml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
        let lab = Context {
            endpoints: vec!["127.0.0.1:7101".into()],
            namespace: None,
            lab: Some("/tmp/lab".into()),
        };
        let config = Config { current: Some("lab".into()), contexts: [("lab".to_owned(), lab)].into() };
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        assert!(config.context("prod").unwrap_err().message.contains("known: lab"));
        fs::write(&path, "currant = \"lab\"").unwrap();
        assert_eq!(Config::load(&path).unwrap_err().exit, Exit::Usage);
    }
}

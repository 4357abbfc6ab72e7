//! Contexts: which cluster is meant. `$XDG_CONFIG_HOME/kvctl/config.toml`; a flag beats the environment,
//! which beats the file.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::line::{Line, quoted};
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

/// Contexts that advice names, of more the first.
const MOST_ADVISED: usize = 3;

/// Longest file of contexts, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Version of the file: a later one is not understood, and not overwritten.
const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Version of the file; none is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u32>,
    /// The selected context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// All of them.
    #[serde(default, rename = "context")]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Config {
    /// Reads the file; one that is not there is empty. What stands in its place and is no text is an error
    /// that says what it is and what to type.
    pub(crate) fn load(path: &Path) -> Result<Self, Problem> {
        let text = match read(path)? {
            Some(text) => text,
            None => return Ok(Self::default()),
        };
        #[derive(Deserialize)]
        struct Head {
            version: Option<u64>,
        }
        let later = toml::from_str::<Head>(&text).ok().and_then(|head| head.version);
        let later = later.filter(|version| *version > u64::from(VERSION));
        if let Some(later) = later {
            let path = path.display();
            let message = format!(
                "{path} has version {later}, and this kvctl knows version {VERSION}: use a newer one"
            );
            return Err(Problem::usage(message));
        }
        toml::from_str(&text).map_err(|error| {
            let message = format!("{} makes no sense: {error}", path.display());
            damaged(path, message.trim(), "mend it, or move it away")
        })
    }

    /// Reads the file, changes it and writes it, one process after the other.
    pub(crate) fn change<T>(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let path = &behind_links(path)?;
        let refused = |error: std::io::Error| unwritten(path, &error.to_string());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| without_folder(folder, &error))?;
        }
        // Beside the file, which is replaced. The lock goes with the handle.
        let lock = fs::File::create(path.with_extension("lock")).map_err(refused)?;
        lock.lock().map_err(refused)?;
        let mut config = Self::load(path)?;
        let changed = change(&mut config)?;
        config.save(path)?;
        Ok(changed)
    }

    /// Writes the file, whole or not at all. Of a symbolic link that which it leads to: it stays a link. Who
    /// may read the file stays so.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Problem> {
        let path = &behind_links(path)?;
        let refused = |what: String| unwritten(path, &what);
        let versioned = Self { version: Some(VERSION), ..self.clone() };
        let text = toml::to_string(&versioned).map_err(|error| refused(error.to_string()))?;
        let fresh = path.with_extension(format!("toml.{}", std::process::id()));
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&fresh, text)?;
            if let Ok(found) = fs::metadata(path) {
                fs::set_permissions(&fresh, found.permissions())?;
            }
            fs::rename(&fresh, path)
        };
        write().map_err(|error: std::io::Error| refused(error.to_string()))
    }

    /// The selected context. None while there is no context at all; where there are some and none of them is
    /// selected an error: another cluster is never meant.
    pub(crate) fn selected(&self) -> Result<Option<(&String, &Context)>, Problem> {
        let Some(current) = &self.current else {
            return match self.contexts.is_empty() {
                true => Ok(None),
                false => Err(self.advised(Problem::usage("no context is selected"))),
            };
        };
        match self.contexts.get_key_value(current) {
            Some(found) => Ok(Some(found)),
            None => {
                let message = format!("context `{current}` is selected, and there is none of that name");
                Err(self.advised(Problem::usage(message)))
            }
        }
    }

    /// With the lines that select one of those there are.
    fn advised(&self, problem: Problem) -> Problem {
        let names = self.contexts.keys().take(MOST_ADVISED);
        let mut advised = names.fold(problem, |problem, name| {
            let select = Line::new(&["ctx", "use"]).operand("name", name);
            problem.try_this(select.to_string(), "selects it")
        });
        if self.contexts.len() > MOST_ADVISED {
            advised = advised.try_this("kvctl ctx list", "all of them");
        }
        match self.contexts.is_empty() {
            true => advised.try_this("kvctl lab up", "starts a local cluster and selects it"),
            false => advised,
        }
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
                .try_this("kvctl ctx list", "which there are")
                .try_this("kvctl lab up", "starts a local cluster and selects it")
        })
    }
}

/// Symbolic links that are followed one after the other, as the system does.
const MOST_LINKS: usize = 40;

/// The file that this path leads to, which need not be there.
fn behind_links(path: &Path) -> Result<PathBuf, Problem> {
    let mut at = path.to_owned();
    for _ in 0..MOST_LINKS {
        // What is no link, or not there, is the end of them; what else is wrong is said when it is opened.
        let Ok(next) = fs::read_link(&at) else { return Ok(at) };
        at = at.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(unwritten(path, &format!("more than {MOST_LINKS} symbolic links lead on from it")))
}

/// The text of the file; none if it is not there.
fn read(path: &Path) -> Result<Option<String>, Problem> {
    let shown = path.display();
    let kind = match fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(path, &error)),
    };
    if !kind.is_file() {
        let what = if kind.is_dir() { "a folder" } else { "no plain file" };
        let message = format!("{shown} is {what}, where the file of contexts belongs");
        return Err(damaged(path, &message, "move it away"));
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    match opened {
        Ok(_) if bytes.len() as u64 <= MAX_FILE_BYTES => {}
        Ok(_) => {
            let message = format!("{shown} has more than the {MAX_FILE_BYTES} bytes that contexts need");
            return Err(damaged(path, &message, "mend it, or move it away"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(path, &error)),
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count();
        let message = format!("{shown} is no text: line {line} holds a byte that is not UTF-8");
        damaged(path, &message, "mend it, or move it away")
    })
}

/// Something else is where the file of contexts belongs: what can be done with it, and the line.
fn damaged(path: &Path, message: &str, remedy: &str) -> Problem {
    let file = path.display().to_string();
    let away = format!("mv {} {}", quoted(&file), quoted(&format!("{file}.damaged")));
    Problem::usage(format!("{message}\nnothing was done; {remedy}: it holds the contexts and nothing else"))
        .try_this(away, "the contexts are forgotten; -e HOST:PORT needs none")
}

/// The system does not let it be read.
fn unread(path: &Path, error: &std::io::Error) -> Problem {
    let is_in_place = |above: &&Path| fs::metadata(above).is_ok_and(|found| !found.is_dir());
    if let Some(above) = path.ancestors().skip(1).find(is_in_place) {
        let message = format!("{} is no folder, where the one of the contexts belongs", above.display());
        if path.parent() == Some(above) {
            return damaged(above, &message, "move it away");
        }
        // Of what stands above that nothing is known: it may be a device.
        let look = format!("ls -ld {}", quoted(&above.display().to_string()));
        let remedy =
            "nothing was done; another folder is named by XDG_CONFIG_HOME; -e HOST:PORT needs no contexts";
        return Problem::usage(format!("{message}\n{remedy}")).try_this(look, "what is in its place");
    }
    let message = format!("the contexts in {} cannot be read: {error}", path.display());
    let look = format!("ls -ld {}", quoted(&path.display().to_string()));
    let remedy = "nothing was done; make it readable for you, or name a node: -e HOST:PORT needs no contexts";
    Problem::usage(format!("{message}\n{remedy}")).try_this(look, "whose it is")
}

/// The folder of the file is not there and cannot be made, as where a file has its name.
fn without_folder(folder: &Path, error: &std::io::Error) -> Problem {
    let message = format!("the folder of the contexts, {}, cannot be made: {error}", folder.display());
    let look = format!("ls -ld {}", quoted(&folder.display().to_string()));
    let remedy = "nothing was changed; another folder is named by XDG_CONFIG_HOME";
    Problem::new(Exit::Refused, format!("{message}\n{remedy}")).try_this(look, "what is in its place")
}

/// The file was not written, so that its contexts are as they were.
fn unwritten(path: &Path, why: &str) -> Problem {
    let folder = path.parent().unwrap_or(path).display().to_string();
    let message = format!("the contexts in {} cannot be written: {why}", path.display());
    let remedy = "they are as they were; another folder is named by XDG_CONFIG_HOME";
    Problem::new(Exit::Refused, format!("{message}\n{remedy}"))
        .try_this(format!("ls -ld {}", quoted(&folder)), "whose folder it is")
}

/// Refuses a name that a person could not type, or a terminal would not show as it is.
pub(crate) fn named(name: &str) -> Result<(), Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || name.starts_with(['.', '-']) || !name.chars().all(plain) {
        let message = "is no name for a context: up to 64 letters, digits, '-', '_' and '.', beginning with a letter or digit";
        return Err(Problem::usage(format!("`{}` {message}", name.escape_debug())));
    }
    Ok(())
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
        let config = Config {
            version: Some(VERSION),
            current: Some("lab".into()),
            contexts: [("lab".to_owned(), lab)].into(),
        };
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        assert!(config.context("prod").unwrap_err().message.contains("known: lab"));
        fs::write(&path, "currant = \"lab\"").unwrap();
        assert_eq!(Config::load(&path).unwrap_err().exit, Exit::Usage);
        // A later version is not overwritten, whatever is in it.
        let later = "version = 2\nnews = 1\n";
        fs::write(&path, later).unwrap();
        let refused = Config::change(&path, |_| Ok(())).unwrap_err();
        assert!(refused.message.contains("version 2"), "{}", refused.message);
        assert_eq!(fs::read_to_string(&path).unwrap(), later);
    }

    #[test]
    fn a_link_stays_one_and_what_it_leads_to_is_written() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (kept, path) =
            (folder.path().join("dotfiles/kvctl.toml"), folder.path().join("kvctl/config.toml"));
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Over a second one, and from where it stands.
        symlink("../dotfiles/kvctl.toml", folder.path().join("kvctl/own")).unwrap();
        symlink("own", &path).unwrap();
        let add = |name: &str| {
            Config::change(&path, |config| {
                config.contexts.insert(name.to_owned(), Context::default());
                Ok(())
            })
            .unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        };
        // It leads to nothing yet; then to what only its owner may read.
        add("first");
        assert!(fs::symlink_metadata(&kept).unwrap().is_file());
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o600)).unwrap();
        add("second");
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Config::load(&kept).unwrap().contexts.len(), 2);
        assert_eq!(Config::load(&path).unwrap(), Config::load(&kept).unwrap());
        // One that leads to itself leads nowhere.
        fs::remove_file(&path).unwrap();
        symlink("config.toml", &path).unwrap();
        let refused = Config::default().save(&path).unwrap_err();
        assert!(refused.message.contains("symbolic links"), "{}", refused.message);
    }

    #[test]
    fn changes_at_once_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let names: Vec<String> = (0..16).map(|n| format!("c{n}")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| {
                    Config::change(&path, |config| {
                        config.contexts.insert(name.clone(), Context::default());
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(Config::load(&path).unwrap().contexts.len(), names.len());
    }
}

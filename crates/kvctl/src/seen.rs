//! What `kvctl shell` remembers for `--seen`: the causal contexts of the keys that its lines read or wrote
//! last. A context is too long to be typed, and the shell has no redirection that could keep one in a file.
//! Each line is a program of its own, so they share a file, which goes when the shell ends.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kv_client::CausalContext;
use serde::{Deserialize, Serialize};

use crate::output::{base64, from_base64};

/// Where the shell says to its lines which file it is.
const FILE: &str = "KVCTL_SHELL_SEEN";
/// Keys that are remembered; of more, those that were seen last.
const MOST: usize = 64;

/// A key, and what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    namespace: String,
    key_b64: String,
    context_b64: String,
}

/// What the name of each memory begins with: a name that no lab can have.
const NAME: &str = ".shell-seen-";
/// How often a file is made again that another shell took for one that was left behind.
const TRIES: usize = 8;

/// The memory of one shell, whose file goes with it. Where a shell is killed its file stays, until another
/// one begins.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    /// Locked while the shell runs: the lock goes with its process, however that ends.
    _lock: fs::File,
}

impl Memory {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        let path = kv_lab::dir_of(&format!("{NAME}{}", std::process::id()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
            sweep(folder);
        }
        Self::at(path)
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        for _ in 0..TRIES {
            write(&path, &[])?;
            let lock = fs::File::open(&path)?;
            lock.lock()?;
            // Between the two another shell may have swept it away.
            let is_it = |there: fs::Metadata| there.ino() == lock.metadata().map_or(0, |own| own.ino());
            if fs::metadata(&path).is_ok_and(is_it) {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Hands it to a line.
    pub(crate) fn lend(&self, command: &mut std::process::Command) {
        command.env(FILE, &self.path);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the memories of shells that are gone. What cannot be looked at stays.
fn sweep(folder: &Path) {
    for found in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_memory = found.file_name().to_str().is_some_and(|name| name.starts_with(NAME));
        let opened = if is_memory { fs::File::open(found.path()).ok() } else { None };
        if opened.is_some_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(found.path());
        }
    }
}

/// Remembers what was seen of a key, if this is a line of a shell.
pub(crate) fn remember(namespace: &str, key: &[u8], context: &CausalContext) -> io::Result<()> {
    match std::env::var_os(FILE) {
        Some(file) => add(Path::new(&file), namespace, key, context),
        None => Ok(()),
    }
}

/// What was seen of a key last in this shell; an error outside of a shell.
pub(crate) fn recall(namespace: &str, key: &[u8]) -> io::Result<Option<CausalContext>> {
    let file = std::env::var_os(FILE).ok_or(io::ErrorKind::Unsupported)?;
    find(Path::new(&file), namespace, key)
}

fn add(file: &Path, namespace: &str, key: &[u8], context: &CausalContext) -> io::Result<()> {
    let seen = Seen { namespace: namespace.into(), key_b64: base64(key), context_b64: base64(&context.0) };
    let mut all = read(file)?;
    all.retain(|known| known.namespace != seen.namespace || known.key_b64 != seen.key_b64);
    all.push(seen);
    let surplus = all.len().saturating_sub(MOST);
    write(file, all.get(surplus..).unwrap_or_default())
}

fn find(file: &Path, namespace: &str, key: &[u8]) -> io::Result<Option<CausalContext>> {
    let key = base64(key);
    let mut all = read(file)?.into_iter();
    let seen = all.find(|known| known.namespace == namespace && known.key_b64 == key);
    Ok(seen.and_then(|seen| from_base64(&seen.context_b64)).map(|bytes| CausalContext(bytes.into())))
}

fn read(file: &Path) -> io::Result<Vec<Seen>> {
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

/// For its owner alone, as the history is.
fn write(file: &Path, all: &[Seen]) -> io::Result<()> {
    let mut options = fs::File::options();
    let file = options.create(true).write(true).truncate(true).mode(0o600).open(file)?;
    Ok(serde_json::to_writer(file, all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_that_was_killed_left_goes_with_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let running = Memory::at(file(".shell-seen-1")).unwrap();
        write(&file(".shell-seen-2"), &[]).unwrap();
        fs::write(file(".shell-history"), "get k\n").unwrap();
        sweep(folder.path());
        let there = |name: &str| file(name).exists();
        assert_eq!([".shell-seen-1", ".shell-seen-2", ".shell-history"].map(there), [true, false, true]);
        // Its lines write and read it meanwhile.
        add(&running.path, "cart", b"k", &CausalContext(vec![1].into())).unwrap();
        assert!(find(&running.path, "cart", b"k").unwrap().is_some());
        drop(running);
        assert!(!there(".shell-seen-1"));
    }

    #[test]
    fn what_was_seen_last_of_a_key_is_remembered_and_no_more_than_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seen");
        write(&file, &[]).unwrap();
        let context = |byte: u8| CausalContext(vec![byte].into());
        let find = |namespace: &str, key: &[u8]| find(&file, namespace, key).unwrap();
        assert_eq!(find("cart", b"k"), None);
        for (namespace, key, byte) in
            [("cart", &b"k"[..], 1), ("cart", b"\xff\n", 2), ("other", b"k", 3), ("cart", b"k", 4)]
        {
            add(&file, namespace, key, &context(byte)).unwrap();
        }
        assert_eq!(find("cart", b"k"), Some(context(4)));
        assert_eq!((find("cart", b"\xff\n"), find("other", b"k")), (Some(context(2)), Some(context(3))));
        for number in 0..MOST {
            add(&file, "cart", number.to_string().as_bytes(), &context(0)).unwrap();
        }
        assert_eq!((find("cart", b"k"), read(&file).unwrap().len()), (None, MOST));
        assert!(find("cart", b"0").is_some());
    }
}

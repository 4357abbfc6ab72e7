//! Cargo as the task runner sees it: what it knows about the workspace, and how it is called.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A call of the cargo that runs us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// What a command prints; its own complaint if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {name}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    String::from_utf8(output.stdout)
        .map_err(|error| format!("{name} printed something that is no text: {error}"))
}

/// What `cargo metadata` says.
pub(crate) struct Workspace {
    /// The folder of the top `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where cargo builds to; what we produce for people goes to `target/` of the root, wherever this is.
    pub(crate) target: PathBuf,
    /// Every package of the dependency tree, members included.
    pub(crate) packages: Vec<Package>,
}

/// One package of the dependency tree.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// Path of its manifest from the root, for members of the workspace.
    pub(crate) member: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency as a manifest states it.
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Only for its tests.
    pub(crate) dev: bool,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Workspace, String> {
        Workspace::parse(&output(&mut cargo(&["metadata", "--format-version", "1"]))?)
    }

    fn parse(text: &str) -> Result<Workspace, String> {
        let json: Value = serde_json::from_str(text).map_err(|error| format!("cargo metadata: {error}"))?;
        let root = PathBuf::from(string(&json, "workspace_root"));
        let members: Vec<&Value> = array(&json, "workspace_members").collect();
        let packages = array(&json, "packages").map(|package| {
            let member = package.get("id").is_some_and(|id| members.contains(&id));
            Package {
                name: string(package, "name"),
                version: string(package, "version"),
                license: package.get("license").and_then(Value::as_str).map(str::to_owned),
                member: member.then(|| relative(&string(package, "manifest_path"), &root)),
                dependencies: array(package, "dependencies")
                    .map(|dependency| Dependency {
                        name: string(dependency, "name"),
                        dev: string(dependency, "kind") == "dev",
                    })
                    .collect(),
            }
        });
        Ok(Workspace { packages: packages.collect(), target: string(&json, "target_directory").into(), root })
    }

    /// Every file that is or may become part of the repository, with its path from the root: what git tracks,
    /// and what it neither tracks nor ignores.
    pub(crate) fn files(&self) -> Result<Vec<String>, String> {
        let mut git = Command::new("git");
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&self.root);
        let listed = output(&mut git)?;
        let mut files: Vec<String> = listed.split_terminator('\0').map(str::to_owned).collect();
        files.retain(|file| self.root.join(file).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }
}

fn string(of: &Value, name: &str) -> String {
    of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn array<'a>(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    of.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn relative(path: &str, root: &Path) -> String {
    let path = Path::new(path);
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_understood() {
        let workspace = Workspace::parse(
            r#"{"workspace_root": "/r", "target_directory": "/t", "workspace_members": ["a"], "packages": [
                {"id": "a", "name": "kv-a", "version": "1.0.0", "manifest_path": "/r/crates/kv-a/Cargo.toml",
                 "license": "MIT", "dependencies": [{"name": "x", "kind": null}, {"name": "y", "kind": "dev"}]},
                {"id": "x", "name": "x", "version": "2.0.0", "manifest_path": "/registry/x", "license": null,
                 "dependencies": []}]}"#,
        )
        .unwrap();
        assert_eq!((workspace.root.to_str(), workspace.target.to_str()), (Some("/r"), Some("/t")));
        let [a, x] = workspace.packages.as_slice() else { panic!("two packages") };
        assert_eq!((a.member.as_deref(), x.member.as_deref()), (Some("crates/kv-a/Cargo.toml"), None));
        assert_eq!((a.license.as_deref(), x.license.as_deref()), (Some("MIT"), None));
        assert_eq!(
            a.dependencies.iter().map(|on| (on.name.as_str(), on.dev)).collect::<Vec<_>>(),
            [("x", false), ("y", true)]
        );
    }
}

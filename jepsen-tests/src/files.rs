//! What a run leaves in its folder. The scenario and the plan are written before anything starts, so that a
//! run that breaks can be replayed too; the history is on the disk before it is judged.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use kv_check::Event;

use crate::Broke;
use crate::options::RunOptions;
use crate::scenario::Scenario;
use crate::verdict::Verdict;

/// Says on its first line whose scenario a copy is.
pub const NAMED: &str = "# scenario: ";
/// What a run leaves; an earlier run's are removed, so that nothing in the folder is of another run.
const LEFT: [&str; 9] = [
    "history.jsonl",
    "history.edn",
    "summary.json",
    "report.html",
    "report.json",
    "faults.jsonl",
    "config.toml",
    "replay.txt",
    "nodes",
];

/// Makes the folder, with the scenario and the command that replays the run.
pub fn prepare(scenario: &Scenario, options: &RunOptions) -> Result<(), Broke> {
    let out = &options.out;
    fs::create_dir_all(out).map_err(Broke::file(out))?;
    for name in LEFT {
        let path = out.join(name);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Broke::file(&path)(error));
            }
            _ => {}
        }
    }
    let text = match scenario.text.starts_with(NAMED) {
        true => scenario.text.clone(),
        false => format!("{NAMED}{}\n{}", scenario.name, scenario.text),
    };
    write(&out.join("config.toml"), text.as_bytes())?;
    write(&out.join("replay.txt"), format!("jepsen-tests replay {}\n", out.display()).as_bytes())?;
    latest(out);
    Ok(())
}

/// Beside the runs of a scenario stands a link to the latest. It is a convenience: where it cannot be made,
/// nothing is lost.
fn latest(out: &Path) {
    let (Some(folder), Some(name)) = (out.parent(), out.file_name()) else { return };
    let link = folder.join("latest");
    if link.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
        return;
    }
    let _ = fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(name, &link);
}

/// Writes the history in both formats and waits until the disk has it.
pub fn write_history(out: &Path, history: &[Event]) -> Result<(), Broke> {
    let lines = out.join("history.jsonl");
    synced(&lines, |file| kv_check::history::write(file, history))?;
    synced(&out.join("history.edn"), |file| kv_check::format::edn::write(file, history))
}

/// Writes what a run came to.
pub fn finish(out: &Path, verdict: &Verdict) -> Result<(), Broke> {
    let nodes = out.join("nodes");
    fs::create_dir_all(&nodes).map_err(Broke::file(&nodes))?;
    for (node, log) in &verdict.logs {
        let copy = nodes.join(format!("{node}.log"));
        fs::copy(log, &copy).map_err(Broke::file(log))?;
    }
    let json = |value: serde_json::Result<Vec<u8>>| value.map_err(std::io::Error::other);
    let summary = out.join("summary.json");
    let text = json(serde_json::to_vec_pretty(&verdict.summary)).map_err(Broke::file(&summary))?;
    write(&summary, &text)?;
    write(&out.join("report.html"), kv_report::html(&verdict.report).as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Broke> {
    fs::write(path, bytes).map_err(Broke::file(path))
}

fn synced(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<(), Broke> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        fill(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()
    };
    write().map_err(Broke::file(path))
}

//! The public histories with known verdicts: all of them, by the tool as it is used, in every format.
//!
//! They are data of others and not in this repository. Without them the test says so and passes, except where
//! CI is set: there a missing folder is a failure.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};

use jepsen_tests::check::{self, CheckArgs, Failed, FormatName, ModelName};
use kv_check::format::{self, Format, edn};
use kv_check::linear::{self, Model, Options, Verdict};
use kv_check::{Event, history, operation};

/// Names the folder, where it is not beside the repository.
const FOLDER: &str = "QUORATE_VECTORS";

/// A row of the table of verdicts.
struct Vector {
    path: PathBuf,
    model: Model,
    linearizable: bool,
    /// Invocations, and completions by type.
    invoke: usize,
    completions: [usize; 3],
}

/// The vectors; none, with a message, if they are not here.
fn vectors() -> Option<Vec<Vector>> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/porcupine");
    let folder = std::env::var_os(FOLDER).map_or_else(beside, PathBuf::from);
    if !folder.is_dir() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no vectors: {} is missing; {FOLDER} names it",
            folder.display()
        );
        println!("skipped: {} is missing; {FOLDER} names the folder of the vectors", folder.display());
        return None;
    }
    let table = std::fs::read_to_string(folder.join("VERDICTS.tsv")).unwrap();
    let row = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        let count = |at: usize| columns[at].parse::<usize>().unwrap();
        Vector {
            path: folder.join(columns[0]),
            model: if columns[0].starts_with("kv/") { Model::Strings } else { Model::Register },
            linearizable: columns[1].parse().unwrap(),
            invoke: count(4),
            completions: [count(5), count(6), count(7)],
        }
    };
    Some(table.lines().skip(1).map(row).collect())
}

fn verdict(events: &[Event], model: Model) -> Verdict {
    linear::check(&operation::pair(events).unwrap(), &Options { model, ..Options::default() })
}

#[test]
fn all_public_verdicts_are_met_in_every_format() {
    let Some(vectors) = vectors() else { return };
    assert_eq!(vectors.len(), 54);
    for Vector { path, model, linearizable, invoke, completions } in vectors {
        let name = path.display();
        let bytes = std::fs::read(&path).unwrap();
        let events = format::read(&bytes, Some(Format::Porcupine)).unwrap();
        let operations = operation::pair(&events).unwrap();
        assert_eq!(operations.len(), invoke, "{name}: operations");
        let of = |kind| events.iter().filter(|event| event.kind == kind).count();
        use kv_check::EventType::{Fail, Info, Ok};
        // The table counts what was left open as info.
        let open = invoke - of(Ok) - of(Fail) - of(Info);
        assert_eq!([of(Ok), of(Fail), of(Info) + open], completions, "{name}: completions");

        let found = verdict(&events, model);
        assert_eq!(matches!(found, Verdict::Valid), linearizable, "{name}: {found:?}");
        assert!(!matches!(found, Verdict::Unknown { .. }), "{name}");
        if let Verdict::Invalid(_) = found {
            let keys = linear::by_key(&operations);
            let options = Options { model, ..Options::default() };
            let part = keys.values().find_map(|key| linear::shrink(key, &options, 200)).unwrap();
            assert!(part.operations.len() < operations.len(), "{name}: nothing was left out");
            assert!(
                matches!(linear::check(&part.operations, &options), Verdict::Invalid(_)),
                "{name}: the part is no violation"
            );
        }

        let (mut as_edn, mut as_json) = (Vec::new(), Vec::new());
        edn::write(&mut as_edn, &events).unwrap();
        history::write(&mut as_json, &events).unwrap();
        assert_eq!(format::read(&as_edn, None).unwrap(), events, "{name}: EDN");
        assert_eq!(format::read(&as_json, None).unwrap(), events, "{name}: JSON lines");
    }
}

#[test]
fn the_tool_prints_a_line_for_each_and_exits_by_the_worst() {
    let Some(vectors) = vectors() else { return };
    let run = |histories: Vec<PathBuf>, model| {
        let args = CheckArgs {
            histories,
            model,
            format: FormatName::Auto,
            failed: Failed::Strict,
            jobs: None,
            max_configurations: Options::default().max_configurations,
            available: Vec::new(),
            settled_ms: None,
            explain: false,
        };
        let mut out = Vec::new();
        let code = check::check(&args, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    };
    let logs = |verdicts: &[bool]| -> Vec<PathBuf> {
        let wanted =
            vectors.iter().filter(|v| v.model == Model::Register && verdicts.contains(&v.linearizable));
        wanted.map(|vector| vector.path.clone()).collect()
    };
    let (code, out) = run(logs(&[true, false]), None);
    assert_eq!(code, check::INVALID);
    assert_eq!(out.lines().count(), 51, "{out}");
    assert!(out.contains("50 histories: 40 invalid, 10 valid; 4177 operations"), "{out}");
    assert_eq!(run(logs(&[true]), Some(ModelName::CasRegister)).0, check::VALID);

    let texts: Vec<PathBuf> = vectors
        .iter()
        .filter(|v| v.model == Model::Strings && v.linearizable)
        .map(|v| v.path.clone())
        .collect();
    assert_eq!(texts.len(), 2);
    assert_eq!(run(texts, Some(ModelName::KvAppend)).0, check::VALID);

    let (code, out) = run(vec!["no-such-history".into()], None);
    assert_eq!(code, check::ARGUMENTS, "{out}");
    let (_, out) = run(logs(&[false]).into_iter().take(1).collect(), None);
    assert!(out.contains("no order explains these operations"), "{out}");
}

/// The budget holds for an optimised build; a debug build measures nothing.
#[test]
#[cfg(not(debug_assertions))]
fn the_etcd_logs_are_checked_within_fifty_milliseconds() {
    let Some(vectors) = vectors() else { return };
    let histories: Vec<_> = vectors
        .iter()
        .filter(|vector| vector.model == Model::Register)
        .map(|vector| {
            operation::pair(&format::read(&std::fs::read(&vector.path).unwrap(), None).unwrap()).unwrap()
        })
        .collect();
    let begun = tokio::time::Instant::now();
    for operations in &histories {
        linear::check(operations, &Options::default());
    }
    let took = begun.elapsed();
    println!("{} logs in {took:?}", histories.len());
    assert!(took.as_millis() <= 50, "{took:?}");
}

/// A reader of the output that has read enough is no reason to fail.
#[test]
fn a_closed_pipe_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut list = std::process::Command::new(env!("CARGO_BIN_EXE_jepsen-tests"));
    let output = list.arg("list").stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
}

//! `get`, `put`, `del`, `cas`. A pipe gets the bytes of the value and nothing else.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;
use kv_client::{
    Answer, Available, CausalContext, Client, Expect, Presence, Revision, Siblings, Swap, Versioned,
    WriteContext,
};
use kv_types::Mode;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::cli::{Cas, Del, Get, Put, WriteOptions};
use crate::exit::Exit;
use crate::output::{
    self, Format, base64, from_base64, object, put_bytes, readable, receipt_json, receipt_line,
};
use crate::problem::Problem;

/// Longest file that can hold a context, bytes: siblings of the largest size beside it.
const MAX_CONTEXT_FILE_BYTES: u64 = 256 << 20;

/// A client, a namespace, and its side of CAP.
struct Place {
    client: Client,
    namespace: String,
    mode: Mode,
}

impl Place {
    async fn find(app: &App) -> Result<Self, Problem> {
        let namespace = app.namespace()?;
        let client = app.client()?;
        let mode = app.lookup(&client, &namespace).await?.namespace.mode();
        Ok(Self { client, namespace, mode })
    }

    fn available(&self, options: &WriteOptions) -> Available {
        let mut handle = self.client.available(&self.namespace);
        if let Some(count) = options.w {
            handle = handle.writing(count);
        }
        if options.strict { handle.strict() } else { handle }
    }

    /// Options of available namespaces mean nothing to a strong one.
    fn refuse_options(&self, options: &[(&str, bool)]) -> Result<(), Problem> {
        match options.iter().find(|(_, given)| self.mode == Mode::Strong && *given) {
            None => Ok(()),
            Some((option, _)) => Err(Problem::usage(format!(
                "{option} belongs to available namespaces; {} is strong",
                self.namespace
            ))),
        }
    }

    fn refuse_write_options(&self, options: &WriteOptions) -> Result<(), Problem> {
        self.refuse_options(&[
            ("--causal", options.causal.is_some()),
            ("--blind", options.blind),
            ("-w", options.w.is_some()),
            ("--strict", options.strict),
        ])
    }

    fn json<T>(
        &self,
        key: &str,
        answer: &Answer<T>,
        fields: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Value {
        let mut whole =
            object([("namespace", json!(self.namespace)), ("mode", json!(self.mode.to_string()))]);
        put_bytes(&mut whole, "key", key.as_bytes());
        whole.extend(object(fields));
        whole.insert("receipt".into(), receipt_json(&answer.receipt));
        whole.insert("latency_ms".into(), json!(output::round(answer.latency.as_secs_f64() * 1e3, 3)));
        Value::Object(whole)
    }
}

pub(crate) async fn get(app: &App, args: &Get) -> Result<Exit, Problem> {
    let place = Place::find(app).await?;
    place.refuse_options(&[("-r", args.r.is_some()), ("--strict", args.strict), ("--all", args.all)])?;
    match place.mode {
        Mode::Strong => {
            let answer = place.client.strong(&place.namespace).get(&args.key).await?;
            verbose(app, &answer);
            strong_value(app, &place, &args.key, &answer)
        }
        Mode::Available => {
            let mut handle = place.client.available(&place.namespace);
            if let Some(count) = args.r {
                handle = handle.reading(count);
            }
            let handle = if args.strict { handle.strict() } else { handle };
            let answer = handle.get(&args.key).await?;
            verbose(app, &answer);
            siblings(app, &place, args, &answer)
        }
    }
}

fn strong_value(
    app: &App,
    place: &Place,
    key: &str,
    answer: &Answer<Option<Versioned>>,
) -> Result<Exit, Problem> {
    if app.out.is_json() {
        let mut fields = Map::new();
        if let Some(found) = &answer.value {
            put_bytes(&mut fields, "value", &found.value);
            fields.insert("revision".into(), found.revision.0.into());
        }
        let mut whole = place.json(key, answer, [("found", answer.value.is_some().into())]);
        if let Some(whole) = whole.as_object_mut() {
            whole.extend(fields);
        }
        app.out.json(&whole)?;
    } else if let Some(found) = &answer.value {
        write_value(app, &found.value)?;
    }
    Ok(if answer.value.is_some() { Exit::Done } else { absent(app, place, key) })
}

fn siblings(app: &App, place: &Place, args: &Get, answer: &Answer<Siblings>) -> Result<Exit, Problem> {
    let Siblings { presence, values, .. } = &answer.value;
    if app.out.is_json() {
        app.out.json(&siblings_json(place, &args.key, answer))?;
    }
    match (presence, values.as_slice()) {
        (Presence::Absent, _) => return Ok(absent(app, place, &args.key)),
        (Presence::NoKnowledge, _) => {
            let message = format!(
                "only fallbacks without a copy of {}/{} answered: this says nothing about the key",
                place.namespace, args.key
            );
            return Err(Problem::new(Exit::Unavailable, message)
                .try_this("kvctl cluster status", "which nodes are out of reach"));
        }
        _ if app.out.is_json() => {}
        (Presence::Found, [one]) => write_value(app, &one.value)?,
        (Presence::Found, several) if app.out.format == Format::Text && app.out.terminal && !args.all => {
            app.out.line(format!(
                "{} siblings (concurrent writes). To merge: kvctl get -n {ns} {key} -o json > ctx.json; kvctl put -n {ns} {key} --causal ctx.json VALUE",
                several.len(),
                ns = place.namespace,
                key = args.key
            ))?;
            for (letter, sibling) in ('a'..='z').cycle().zip(several) {
                app.out.line(format!(
                    "  [{letter}] {}   {:08x}:{}   {}   written by {}",
                    readable(&sibling.value),
                    sibling.incarnation.0 >> 32,
                    sibling.counter,
                    output::time_of_day(sibling.written_at_ms),
                    sibling.request_id
                ))?;
            }
        }
        (Presence::Found, several) if args.all => {
            for sibling in several {
                write_value(app, &sibling.value)?;
            }
        }
        (Presence::Found, several) => {
            let message = format!(
                "{}/{} has {} concurrent values and a pipe takes one",
                place.namespace,
                args.key,
                several.len()
            );
            return Err(Problem::new(Exit::No, message)
                .try_this(
                    format!("kvctl get -n {} {} -o json", place.namespace, args.key),
                    "all of them, and their context",
                )
                .try_this(
                    format!("kvctl get -n {} {} --all", place.namespace, args.key),
                    "one after the other",
                ));
        }
    }
    Ok(Exit::Done)
}

fn siblings_json(place: &Place, key: &str, answer: &Answer<Siblings>) -> Value {
    let values: Vec<Value> = answer
        .value
        .values
        .iter()
        .map(|sibling| {
            let mut fields = object([
                ("dot", json!(format!("{}:{}", sibling.incarnation, sibling.counter))),
                ("written_at_ms", json!(sibling.written_at_ms)),
                ("request_id", json!(sibling.request_id.to_string())),
            ]);
            put_bytes(&mut fields, "value", &sibling.value);
            Value::Object(fields)
        })
        .collect();
    let presence = match answer.value.presence {
        Presence::Found => "found",
        Presence::Absent => "absent",
        Presence::NoKnowledge => "no_knowledge",
    };
    let context = base64(&answer.value.context.0);
    place.json(
        key,
        answer,
        [
            ("presence", presence.into()),
            ("found", (answer.value.presence == Presence::Found).into()),
            ("siblings", values.into()),
            ("context_b64", context.into()),
        ],
    )
}

pub(crate) async fn put(app: &App, args: &Put) -> Result<Exit, Problem> {
    let place = Place::find(app).await?;
    place.refuse_write_options(&args.options)?;
    let value = value(&args.value).await?;
    match place.mode {
        Mode::Strong => {
            let answer = place.client.strong(&place.namespace).put(&args.key, value).await?;
            written(app, &place, &args.key, &answer, answer.value)
        }
        Mode::Available => {
            let context = context(&args.options).await?;
            let answer = place.available(&args.options).put(&args.key, value, context).await?;
            written_context(app, &place, &args.key, "OK", &answer)
        }
    }
}

pub(crate) async fn del(app: &App, args: &Del) -> Result<Exit, Problem> {
    let place = Place::find(app).await?;
    place.refuse_write_options(&args.options)?;
    match place.mode {
        Mode::Strong => {
            let answer = place.client.strong(&place.namespace).delete(&args.key).await?;
            verbose(app, &answer);
            if app.out.is_json() {
                let fields =
                    [("existed", answer.value.existed.into()), ("revision", answer.value.revision.0.into())];
                app.out.json(&place.json(&args.key, &answer, fields))?;
            } else if answer.value.existed {
                app.out.done(format!(
                    "deleted  {}/{}  revision {}",
                    place.namespace, args.key, answer.value.revision
                ))?;
            }
            Ok(if answer.value.existed { Exit::Done } else { absent(app, &place, &args.key) })
        }
        Mode::Available => {
            let context = context(&args.options).await?;
            let answer = place.available(&args.options).delete(&args.key, context).await?;
            written_context(app, &place, &args.key, "deleted", &answer)
        }
    }
}

pub(crate) async fn cas(app: &App, args: &Cas) -> Result<Exit, Problem> {
    let (namespace, client) = (app.namespace()?, app.client()?);
    // The server says what a namespace offers: no look-up, and the error is its own.
    let place = Place { client, namespace, mode: Mode::Strong };
    let expect = args.expect_revision.map_or(Expect::Absent, |revision| Expect::Revision(Revision(revision)));
    let value = value(&args.value).await?;
    let answer = place.client.strong(&place.namespace).compare_and_set(&args.key, expect, value).await?;
    match &answer.value {
        Swap::Swapped(revision) => written(app, &place, &args.key, &answer, *revision),
        Swap::Mismatch(found) => {
            verbose(app, &answer);
            if app.out.is_json() {
                let revision = found.as_ref().map(|found| found.revision.0);
                let fields = [("swapped", false.into()), ("revision", revision.into())];
                let mut whole = place.json(&args.key, &answer, fields);
                if let (Some(found), Some(whole)) = (found, whole.as_object_mut()) {
                    put_bytes(whole, "found", &found.value);
                }
                app.out.json(&whole)?;
            } else {
                let is = found
                    .as_ref()
                    .map_or("absent".to_owned(), |found| format!("at revision {}", found.revision));
                let expected = match expect {
                    Expect::Absent => "it to be absent".to_owned(),
                    Expect::Revision(revision) => revision.to_string(),
                };
                app.out.note(format!(
                    "mismatch: {}/{} is {is}, expected {expected}. Read it again before retrying.",
                    place.namespace, args.key
                ));
            }
            Ok(Exit::No)
        }
    }
}

fn written<T>(
    app: &App,
    place: &Place,
    key: &str,
    answer: &Answer<T>,
    revision: Revision,
) -> Result<Exit, Problem> {
    verbose(app, answer);
    if app.out.is_json() {
        app.out.json(&place.json(key, answer, [("revision", revision.0.into())]))?;
    } else {
        app.out.done(format!("OK  {}/{key}  revision {revision}", place.namespace))?;
    }
    Ok(Exit::Done)
}

fn written_context(
    app: &App,
    place: &Place,
    key: &str,
    word: &str,
    answer: &Answer<CausalContext>,
) -> Result<Exit, Problem> {
    verbose(app, answer);
    if app.out.is_json() {
        app.out.json(&place.json(key, answer, [("context_b64", base64(&answer.value.0).into())]))?;
    } else {
        let by = if answer.receipt.degraded.is_empty() { "" } else { "   (degraded: -v says how)" };
        app.out.done(format!("{word}  {}/{key}  at {}{by}", place.namespace, answer.receipt.served_by))?;
    }
    Ok(Exit::Done)
}

fn absent(app: &App, place: &Place, key: &str) -> Exit {
    if app.out.terminal && !app.out.is_json() {
        app.out.note(format!("not found: {}/{key}", place.namespace));
    }
    Exit::No
}

fn verbose<T>(app: &App, answer: &Answer<T>) {
    if app.out.verbose {
        app.out.note(receipt_line(&answer.receipt, answer.latency));
    }
}

fn write_value(app: &App, value: &[u8]) -> Result<(), Problem> {
    if app.out.format == Format::Raw || !app.out.terminal {
        app.out.bytes(value)?;
        return Ok(());
    }
    let text = readable(value);
    if text.as_bytes() != value {
        app.out.note("(escaped for the terminal; -o raw writes the bytes as they are)");
    }
    Ok(app.out.line(text)?)
}

/// A value from the command line or from standard input.
async fn value(argument: &str) -> Result<Bytes, Problem> {
    if argument != "-" {
        return Ok(Bytes::copy_from_slice(argument.as_bytes()));
    }
    // One byte more than fits is enough for the proper error.
    let limit = u64::try_from(kv_types::limits::MAX_VALUE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    Ok(read(Path::new("-"), limit).await?.into())
}

async fn context(options: &WriteOptions) -> Result<WriteContext, Problem> {
    match &options.causal {
        Some(file) => read_context(file).await.map(WriteContext::Causal),
        None if options.blind => Ok(WriteContext::Blind),
        None => Ok(WriteContext::Observed),
    }
}

/// The context in what `get -o json` wrote.
async fn read_context(file: &Path) -> Result<CausalContext, Problem> {
    let text = read(file, MAX_CONTEXT_FILE_BYTES).await?;
    let context = serde_json::from_slice::<Value>(&text).ok();
    let context = context.and_then(|whole| from_base64(whole.get("context_b64")?.as_str()?));
    context.map(|bytes| CausalContext(bytes.into())).ok_or_else(|| {
        Problem::usage(format!("{} holds no causal context", file.display()))
            .try_this("kvctl get -n NAMESPACE KEY -o json > ctx.json", "writes one")
    })
}

/// A file or, for `-`, standard input, on a thread that may wait: Ctrl-C must still be heard.
pub(crate) async fn read(file: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let path = file.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
        } else {
            fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        }
        Ok::<_, std::io::Error>(bytes)
    });
    let unreadable = |why: String| Problem::usage(format!("cannot read {}: {why}", file.display()));
    reading
        .await
        .map_err(|error| unreadable(error.to_string()))?
        .map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn contexts_travel_through_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ctx.json");
        fs::write(&file, format!("{{\"v\":1,\"context_b64\":\"{}\"}}", base64(&[1, 255, 3]))).unwrap();
        assert_eq!(read_context(&file).await.unwrap().0, [1, 255, 3][..]);
        fs::write(&file, "{}").unwrap();
        assert_eq!(read_context(&file).await.unwrap_err().exit, Exit::Usage);
        assert_eq!(read_context(Path::new("/nowhere")).await.unwrap_err().exit, Exit::Usage);
    }
}

//! `get`, `put`, `del`, `cas`. A pipe gets the bytes of the value and nothing else.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use bytes::Bytes;
use kv_client::{
    Answer, Available, CausalContext, Client, Expect, Presence, Removed, Revision, Sibling, Siblings, Strong,
    Swap, Versioned, WriteContext,
};
use kv_types::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_types::{Failure, Mode, Reason};
use serde_json::{Value, json};

use crate::app::App;
use crate::cli::{Again, Cas, Del, Get, KeyForm, Put, WriteOptions};
use crate::exit::Exit;
use crate::line::quoted;
use crate::output::{
    self, Format, base64, from_base64, object, on_a_line, put_bytes, readable, receipt_json, receipt_line,
};
use crate::problem::Problem;
use crate::seen;

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

    /// The same for a write that may have been sent before: what fails here says nothing of the first time.
    async fn find_for(app: &App, again: &Again) -> Result<Self, Problem> {
        Self::find(app).await.map_err(|problem| problem.of_resent(again.request_id))
    }

    fn available(&self, options: &WriteOptions) -> Available {
        let mut handle = self.client.available(&self.namespace);
        if let Some(count) = options.w {
            handle = handle.writing(count);
        }
        if let Some(id) = options.again.request_id {
            handle = handle.resending(id);
        }
        if options.strict { handle.strict() } else { handle }
    }

    fn strong(&self, again: &Again) -> Strong {
        let handle = self.client.strong(&self.namespace);
        match again.request_id {
            Some(id) => handle.resending(id),
            None => handle,
        }
    }

    /// Options of available namespaces mean nothing to a strong one. Each with its name in the definition.
    fn refuse_options(&self, app: &App, options: &[(&str, &str, bool)]) -> Result<(), Problem> {
        let mut given = options.iter().filter(|(.., given)| self.mode == Mode::Strong && *given);
        let Some((option, ..)) = given.next() else { return Ok(()) };
        let message = format!("{option} belongs to available namespaces; {} is strong", self.namespace);
        let without = options.iter().fold(app.line.clone(), |line, (_, id, _)| line.without(id));
        Err(Problem::usage(message)
            .try_this(without.to_string(), "as a strong namespace does it, with a majority")
            .try_this("kvctl help consistency", "what each mode offers"))
    }

    fn refuse_write_options(&self, app: &App, options: &WriteOptions) -> Result<(), Problem> {
        let given = [
            ("--causal", "causal", options.causal.is_some()),
            ("--seen", "seen", options.seen),
            ("--blind", "blind", options.blind),
            ("-w", "w", options.w.is_some()),
            ("--strict", "strict", options.strict),
        ];
        self.refuse_options(app, &given)
    }

    fn json<T>(
        &self,
        key: &[u8],
        answer: &Answer<T>,
        fields: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Value {
        let mut whole =
            object([("namespace", json!(self.namespace)), ("mode", json!(self.mode.to_string()))]);
        put_bytes(&mut whole, "key", key);
        whole.extend(object(fields));
        whole.insert("receipt".into(), receipt_json(&answer.receipt));
        whole.insert("latency_ms".into(), json!(output::round(answer.latency.as_secs_f64() * 1e3, 3)));
        Value::Object(whole)
    }
}

pub(crate) async fn get(app: &App, args: &Get) -> Result<Exit, Problem> {
    let key = key(app, &args.key, &args.form).await?;
    let place = Place::find(app).await?;
    let of_available = [
        ("-r", "r", args.r.is_some()),
        ("--strict", "strict", args.strict),
        ("--all", "all", args.all),
        ("-0", "null", args.null),
    ];
    place.refuse_options(app, &of_available)?;
    match place.mode {
        Mode::Strong => {
            let answer = place.client.strong(&place.namespace).get(&key).await?;
            verbose(app, &answer);
            strong_value(app, &place, &key, &answer)
        }
        Mode::Available => {
            let mut handle = place.client.available(&place.namespace);
            if let Some(count) = args.r {
                handle = handle.reading(count);
            }
            let handle = if args.strict { handle.strict() } else { handle };
            let answer = handle.get(&key).await?;
            verbose(app, &answer);
            let exit = siblings(app, &place, args, &key, &answer)?;
            // Only now: what was not shown was not seen, and `--seen` must not supersede it.
            remember(app, &place, &key, &answer.value.context);
            Ok(exit)
        }
    }
}

fn strong_value(
    app: &App,
    place: &Place,
    key: &[u8],
    answer: &Answer<Option<Versioned>>,
) -> Result<Exit, Problem> {
    if app.out.is_json() {
        let mut whole = place.json(key, answer, []);
        show_found(&mut whole, answer.value.as_ref());
        app.out.json(&whole)?;
    } else if let Some(found) = &answer.value {
        write_value(app, &found.value)?;
    }
    Ok(if answer.value.is_some() { Exit::Done } else { absent(app, place, key) })
}

/// What is there, in the same fields whatever asked: `found`, and if so `value` and `revision`.
fn show_found(whole: &mut Value, found: Option<&Versioned>) {
    let Some(fields) = whole.as_object_mut() else { return };
    fields.insert("found".into(), found.is_some().into());
    if let Some(found) = found {
        put_bytes(fields, "value", &found.value);
        fields.insert("revision".into(), found.revision.0.into());
    }
}

fn siblings(
    app: &App,
    place: &Place,
    args: &Get,
    key: &[u8],
    answer: &Answer<Siblings>,
) -> Result<Exit, Problem> {
    let Siblings { presence, values, .. } = &answer.value;
    if app.out.is_json() {
        app.out.json(&siblings_json(place, key, answer))?;
    }
    match (presence, values.as_slice()) {
        (Presence::Absent, _) => return Ok(absent(app, place, key)),
        (Presence::NoKnowledge, _) => {
            let message = format!(
                "only fallbacks without a copy of {} answered: this says nothing about the key",
                shown(&place.namespace, key)
            );
            return Err(Failure::new(Reason::QuorumNotMet, message).of_read().into());
        }
        _ if app.out.is_json() => {}
        (Presence::Found, [one]) if !args.all => write_value(app, &one.value)?,
        (Presence::Found, several) if app.out.format == Format::Text && app.out.terminal && !args.all => {
            app.out.line(format!("{} siblings (concurrent writes). To merge:", several.len()))?;
            for line in merging(app, &args.key) {
                app.out.line(format!("  {line}"))?;
            }
            for line in listed(several) {
                app.out.line(line)?;
            }
        }
        (Presence::Found, several) if args.all => {
            let shown = all_of(several, app.out.terminal, args.null);
            let as_they_are = shown == all_of(several, false, args.null);
            if !as_they_are {
                app.out.note("(each on a line, escaped for the terminal; into a pipe they go as they are)");
            }
            app.out.bytes(&shown)?;
        }
        (Presence::Found, several) => {
            let message = format!(
                "{} has {} concurrent values and a pipe takes one",
                shown(&place.namespace, key),
                several.len()
            );
            return Err(Problem::new(Exit::Siblings, message)
                .try_this(app.line.clone().with("-o", "json").to_string(), "all of them, and their context")
                .try_this(app.line.clone().flag("--all").to_string(), "each on a line of its own"));
        }
    }
    Ok(Exit::Done)
}

/// All values as `--all` writes them: into a pipe as they are, each with its end; on a terminal each on a
/// line of its own, in which no byte can do anything, whatever was asked for.
fn all_of(siblings: &[Sibling], terminal: bool, null: bool) -> Vec<u8> {
    let end = if null { 0 } else { b'\n' };
    let one = |sibling: &Sibling| match terminal {
        // A newline in one would look like the beginning of another one, and other bytes do more.
        true => [on_a_line(&sibling.value).as_bytes(), b"\n"].concat(),
        false => [&sibling.value[..], &[end]].concat(),
    };
    siblings.iter().flat_map(one).collect()
}

/// The lines that merge siblings, but for the value: in a shell no file is needed.
fn merging(app: &App, key: &str) -> Vec<String> {
    let put = app.line.other(&["put"]).operand("key", key);
    match app.out.is_in_shell() {
        true => vec![format!("{} VALUE", put.flag("--seen"))],
        false => {
            let get = app.line.clone().with("-o", "json");
            vec![format!("{get} > ctx.json"), format!("{} VALUE", put.with("--causal", "ctx.json"))]
        }
    }
}

/// A line for each sibling, with a label of its own.
fn listed(siblings: &[Sibling]) -> Vec<String> {
    let widest = label(siblings.len().saturating_sub(1)).len() + 2;
    let line = |(place, sibling): (usize, &Sibling)| {
        format!(
            "  {:<widest$} {}   {:08x}:{}   {}   written by {}",
            format!("[{}]", label(place)),
            on_a_line(&sibling.value),
            sibling.incarnation.0 >> 32,
            sibling.counter,
            output::time_of_day(sibling.written_at_ms),
            sibling.request_id
        )
    };
    siblings.iter().enumerate().map(line).collect()
}

/// `a` to `z`, then `aa`, `ab` and so on: no two places have the same.
pub(crate) fn label(place: usize) -> String {
    let letter = u8::try_from(place % 26).map_or('?', |step| char::from(b'a' + step));
    match (place / 26).checked_sub(1) {
        Some(above) => format!("{}{letter}", label(above)),
        None => letter.to_string(),
    }
}

fn siblings_json(place: &Place, key: &[u8], answer: &Answer<Siblings>) -> Value {
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
    let mut whole = place.json(
        key,
        answer,
        [
            ("presence", presence.into()),
            ("found", (answer.value.presence == Presence::Found).into()),
            ("siblings", values.into()),
            ("context_b64", context.into()),
        ],
    );
    // As in a strong namespace, where there is one.
    if let ([one], Some(fields)) = (answer.value.values.as_slice(), whole.as_object_mut()) {
        put_bytes(fields, "value", &one.value);
    }
    whole
}

pub(crate) async fn put(app: &App, args: &Put) -> Result<Exit, Problem> {
    let key = key(app, &args.key, &args.form).await?;
    let value = value(&args.value).await?;
    let place = Place::find_for(app, &args.options.again).await?;
    place.refuse_write_options(app, &args.options)?;
    match place.mode {
        Mode::Strong => {
            let answer = place.strong(&args.options.again).put(&key, value).await?;
            Ok(written(app, &place, &key, &answer, answer.value))
        }
        Mode::Available => {
            let context = context(app, &args.options, &place, &key).await?;
            let answer = place.available(&args.options).put(&key, value, context).await?;
            Ok(written_context(app, &place, &key, &answer))
        }
    }
}

pub(crate) async fn del(app: &App, args: &Del) -> Result<Exit, Problem> {
    let key = key(app, &args.key, &args.form).await?;
    let place = Place::find_for(app, &args.options.again).await?;
    place.refuse_write_options(app, &args.options)?;
    match place.mode {
        Mode::Strong => {
            let answer = place.strong(&args.options.again).delete(&key).await?;
            verbose(app, &answer);
            let name = shown(&place.namespace, &key);
            let said = if app.out.is_json() {
                let fields =
                    [("existed", answer.value.existed.into()), ("revision", answer.value.revision.0.into())];
                app.out.json(&place.json(&key, &answer, fields))
            } else if answer.value.existed {
                app.out.done(format!("deleted  {name}  revision {}", answer.value.revision))
            } else {
                app.out.done(format!("absent  {name}  there was nothing to delete"))
            };
            // It is gone either way; an available namespace could not tell.
            Ok(app.out.acknowledged(said))
        }
        Mode::Available => {
            let context = context(app, &args.options, &place, &key).await?;
            let answer = place.available(&args.options).delete(&key, context).await?;
            Ok(removed(app, &place, &key, &answer, args.options.blind))
        }
    }
}

pub(crate) async fn cas(app: &App, args: &Cas) -> Result<Exit, Problem> {
    let key = key(app, &args.key, &args.form).await?;
    let (namespace, client) = (app.namespace()?, app.client()?);
    // The server says what a namespace offers: no look-up, and the error is its own.
    let place = Place { client, namespace, mode: Mode::Strong };
    let expect = args.expect_revision.map_or(Expect::Absent, |revision| Expect::Revision(Revision(revision)));
    let value = value(&args.value).await?;
    let answer = place.strong(&args.again).compare_and_set(&key, expect, value).await?;
    match &answer.value {
        Swap::Swapped(revision) => Ok(written(app, &place, &key, &answer, *revision)),
        Swap::Mismatch(found) => {
            verbose(app, &answer);
            if app.out.is_json() {
                let mut whole = place.json(&key, &answer, [("swapped", false.into())]);
                show_found(&mut whole, found.as_ref());
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
                    "mismatch: {} is {is}, expected {expected}. Read it again before retrying.",
                    shown(&place.namespace, &key)
                ));
            }
            Ok(Exit::No)
        }
    }
}

fn written<T>(app: &App, place: &Place, key: &[u8], answer: &Answer<T>, revision: Revision) -> Exit {
    verbose(app, answer);
    let said = if app.out.is_json() {
        app.out.json(&place.json(key, answer, [("revision", revision.0.into())]))
    } else {
        app.out.done(format!("OK  {}  revision {revision}", shown(&place.namespace, key)))
    };
    app.out.acknowledged(said)
}

fn written_context(app: &App, place: &Place, key: &[u8], answer: &Answer<CausalContext>) -> Exit {
    verbose(app, answer);
    remember(app, place, key, &answer.value);
    let said = if app.out.is_json() {
        app.out.json(&place.json(key, answer, [("context_b64", base64(&answer.value.0).into())]))
    } else {
        let name = shown(&place.namespace, key);
        app.out.done(format!("OK  {name}  at {}", at(answer)))
    };
    app.out.acknowledged(said)
}

/// A delete of an available namespace says no more than was seen: no node knows all of a key.
fn removed(app: &App, place: &Place, key: &[u8], answer: &Answer<Removed>, blind: bool) -> Exit {
    verbose(app, answer);
    let Removed { context, saw_value } = &answer.value;
    remember(app, place, key, context);
    let said = if app.out.is_json() {
        let fields = [("existed", json!(saw_value)), ("context_b64", base64(&context.0).into())];
        app.out.json(&place.json(key, answer, fields))
    } else {
        let (name, at) = (shown(&place.namespace, key), at(answer));
        app.out.done(match saw_value {
            Some(true) => format!("deleted  {name}  at {at}"),
            Some(false) => format!("absent  {name}  no value was seen to delete; noted at {at}"),
            None if blind => format!("noted  {name}  at {at}   (blind: it takes no value away)"),
            None => format!("deleted  {name}  at {at}   (what was seen before; anything newer stays)"),
        })
    };
    app.out.acknowledged(said)
}

/// The node that took a write, and how it was less than was promised, if it was.
fn at<T>(answer: &Answer<T>) -> String {
    let less = output::less(&answer.receipt).map_or(String::new(), |how| format!("   (degraded: {how})"));
    format!("{}{less}", answer.receipt.served_by)
}

/// A key as a person may see it: nothing in it moves the cursor.
fn shown(namespace: &str, key: &[u8]) -> String {
    format!("{namespace}/{}", on_a_line(key))
}

fn absent(app: &App, place: &Place, key: &[u8]) -> Exit {
    if app.out.terminal && !app.out.is_json() {
        app.out.note(format!("not found: {}", shown(&place.namespace, key)));
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
        if app.out.is_in_shell() && app.out.format != Format::Raw && value.last() != Some(&b'\n') {
            // What the next line writes is another value.
            app.out.bytes(b"\n")?;
        }
        return Ok(());
    }
    let text = readable(value);
    if text.as_bytes() != value {
        app.out.note("(escaped for the terminal; -o raw writes the bytes as they are)");
    }
    Ok(app.out.line(text)?)
}

/// The key that is meant, as it was written. One that standard input held is not there to be read again:
/// lines that are advised name it.
pub(crate) async fn key(app: &App, written: &str, form: &KeyForm) -> Result<Vec<u8>, Problem> {
    let key = bytes_of_key(written, form).await?;
    if form.key_file && written == "-" {
        app.line.learn_key(&key);
    }
    Ok(key)
}

async fn bytes_of_key(written: &str, form: &KeyForm) -> Result<Vec<u8>, Problem> {
    if form.key_file {
        // One byte more than fits is enough for the proper error.
        let limit = u64::try_from(MAX_KEY_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        return read(Path::new(written), limit).await;
    }
    if !form.key_hex {
        return Ok(written.as_bytes().to_vec());
    }
    let digits: Vec<u8> =
        written.bytes().filter_map(|c| char::from(c).to_digit(16)?.try_into().ok()).collect();
    if digits.len() != written.len() || !digits.len().is_multiple_of(2) {
        let message = format!("`{}` is not pairs of hexadecimal digits", on_a_line(written.as_bytes()));
        return Err(Problem::usage(message));
    }
    Ok(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

/// A value from the command line or from standard input.
async fn value(argument: &str) -> Result<Bytes, Problem> {
    if argument != "-" {
        return Ok(Bytes::copy_from_slice(argument.as_bytes()));
    }
    // One byte more than fits is enough for the proper error.
    let limit = u64::try_from(MAX_VALUE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let value = read(Path::new("-"), limit).await?;
    if value.len() > MAX_VALUE_BYTES {
        let message =
            format!("standard input has more than the {MAX_VALUE_BYTES} bytes that a value may have");
        return Err(Failure::new(Reason::LimitValue, message).into());
    }
    Ok(value.into())
}

async fn context(
    app: &App,
    options: &WriteOptions,
    place: &Place,
    key: &[u8],
) -> Result<WriteContext, Problem> {
    match &options.causal {
        Some(file) => {
            let context = read_context(file).await.map_err(|problem| {
                let get = app.line.other(&["get"]).operand("key", app.line.get("key").unwrap_or_default());
                problem.try_this(format!("{} > ctx.json", get.with("-o", "json")), "writes one")
            });
            context.map(WriteContext::Causal)
        }
        None if options.seen => match seen::recall(&place.namespace, key) {
            Ok(Some(context)) => Ok(WriteContext::Causal(context)),
            unseen => Err(not_seen(app, place, key, unseen.err())),
        },
        None if options.blind => Ok(WriteContext::Blind),
        None => Ok(WriteContext::Observed),
    }
}

/// Why there is nothing that `--seen` could mean.
fn not_seen(app: &App, place: &Place, key: &[u8], error: Option<std::io::Error>) -> Problem {
    let name = shown(&place.namespace, key);
    let get = app.line.other(&["get"]).operand("key", app.line.get("key").unwrap_or_default());
    match error {
        None => Problem::usage(format!("{name} was not read in this shell yet: --seen has nothing to supersede"))
            .try_this(get.to_string(), "then the same again"),
        Some(error) if error.kind() == std::io::ErrorKind::Unsupported => Problem::usage(
            "--seen is what the last `get` in `kvctl shell` saw; outside of it a file keeps that: --causal FILE",
        )
        .try_this(format!("{} > ctx.json", get.with("-o", "json")), "then --causal ctx.json"),
        Some(error) => Problem::new(Exit::Refused, format!("what this shell saw of {name} cannot be read: {error}")),
    }
}

/// Keeps what was seen of a key for the lines of a shell that follow.
fn remember(app: &App, place: &Place, key: &[u8], context: &CausalContext) {
    if let Err(error) = seen::remember(&place.namespace, key, context) {
        app.out.note(format!("--seen will not know of this: {error}"));
    }
}

/// The context in what `get -o json` wrote.
async fn read_context(file: &Path) -> Result<CausalContext, Problem> {
    let text = read(file, MAX_CONTEXT_FILE_BYTES).await?;
    let context = serde_json::from_slice::<Value>(&text).ok();
    let context = context.and_then(|whole| from_base64(whole.get("context_b64")?.as_str()?));
    context.map(|bytes| CausalContext(bytes.into())).ok_or_else(|| {
        let message = "holds no causal context: what `get -o json` says of the key has one; nothing was sent";
        Problem::usage(format!("{} {message}", file.display()))
    })
}

/// A file or, for `-`, standard input, of which so many bytes are read at most.
pub(crate) async fn read(file: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let whole = move |reader: Box<dyn Read>| {
        let mut bytes = Vec::new();
        reader.take(limit).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    reading(file, whole).await
}

/// What this makes of a file or, for `-`, of standard input, on a thread that may wait: Ctrl-C must still be
/// heard.
pub(crate) async fn reading<T: Send + 'static>(
    file: &Path,
    make: impl FnOnce(Box<dyn Read>) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let path = file.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        if path != Path::new("-") {
            let opened = fs::File::open(path)?;
            if opened.metadata()?.is_dir() {
                return Err(std::io::ErrorKind::IsADirectory.into());
            }
            return make(Box::new(opened));
        }
        if is_nothing(Path::new("/dev/stdin")) {
            let closed = "it is closed, or /dev/null; an empty value is written as ''";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, closed));
        }
        make(Box::new(std::io::stdin().lock()))
    });
    let made = made.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    made.map_err(|error| unreadable(file, &error))
}

/// A file that was named, and cannot be read: what is wrong with it, and the line that shows it.
fn unreadable(file: &Path, error: &std::io::Error) -> Problem {
    if file == Path::new("-") {
        return Problem::usage(format!("cannot read standard input: {error}"));
    }
    let name = file.display();
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file {name}"),
        std::io::ErrorKind::IsADirectory => format!("{name} is a folder, and a file is meant"),
        std::io::ErrorKind::PermissionDenied => format!("{name} may not be read by this user"),
        _ => format!("cannot read {name}: {error}"),
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let look = match error.kind() {
        std::io::ErrorKind::NotFound => folder,
        _ => file,
    };
    let look = format!("ls -ld {}", quoted(&look.display().to_string()));
    Problem::usage(format!("{message}: nothing was sent")).try_this(look, "what is there")
}

/// Whether this is the device that has nothing to read, which also stands for an input that was closed.
fn is_nothing(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| (found.file_type(), found.rdev())).ok();
    let nothing = device(Path::new("/dev/null"));
    nothing.is_some_and(|(kind, _)| kind.is_char_device()) && device(path) == nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_on_one_line() {
        assert_eq!(shown("cart", b"user:42"), "cart/user:42");
        assert_eq!(shown("cart", b"a\nOK  cart/b\x1b[2J"), "cart/a\\nOK  cart/b\\x1b[2J");
    }

    #[test]
    fn siblings_have_labels_of_their_own() {
        let named = [0, 25, 26, 27, 51, 52, 701, 702].map(label);
        assert_eq!(named, ["a", "z", "aa", "ab", "az", "ba", "zz", "aaa"]);
        let sibling = |counter| Sibling {
            value: Bytes::from_static(b"x"),
            incarnation: kv_types::Incarnation(1 << 32),
            counter,
            written_at_ms: 0,
            request_id: kv_types::RequestId::default(),
        };
        let most = u64::try_from(kv_types::limits::MAX_SIBLINGS).unwrap();
        let lines = listed(&(1..=most).map(sibling).collect::<Vec<_>>());
        let labels: std::collections::BTreeSet<_> = lines.iter().map(|line| &line[..6]).collect();
        assert_eq!(labels.len(), lines.len());
        assert_eq!((&lines[0][..8], &lines[26][..8]), ("  [a]  x", "  [aa] x"));
        let few = listed(&[sibling(1), sibling(2)]);
        assert_eq!(few[1], "  [b] x   00000001:2   00:00:00   written by 00000000:0");
        // No value can look like the line of another one.
        let forged = Bytes::from_static(b"x\n  [b] y   00000001:2");
        let line = listed(&[Sibling { value: forged, ..sibling(1) }]).remove(0);
        assert!(line.starts_with("  [a] x\\n  [b] y   00000001:2   ") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn no_byte_of_a_sibling_reaches_a_terminal_as_it_is() {
        let sibling = |value: &'static [u8]| Sibling {
            value: Bytes::from_static(value),
            incarnation: kv_types::Incarnation(1 << 32),
            counter: 1,
            written_at_ms: 0,
            request_id: kv_types::RequestId::default(),
        };
        let two = [sibling(b"a\nb"), sibling(b"\x1b[2J\xff")];
        assert_eq!(all_of(&two, false, false), b"a\nb\n\x1b[2J\xff\n");
        assert_eq!(all_of(&two, false, true), b"a\nb\0\x1b[2J\xff\0");
        for null in [false, true] {
            assert_eq!(all_of(&two, true, null), b"a\\nb\n\\x1b[2J\\xff\n", "{null}");
        }
    }

    #[tokio::test]
    async fn keys_are_any_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, [0, 255, 10]).unwrap();
        let form = |key_hex, key_file| KeyForm { key_hex, key_file };
        assert_eq!(bytes_of_key("00ff", &form(false, false)).await.unwrap(), b"00ff");
        assert_eq!(bytes_of_key("00fF0a", &form(true, false)).await.unwrap(), [0, 255, 10]);
        assert_eq!(
            bytes_of_key(&file.display().to_string(), &form(false, true)).await.unwrap(),
            [0, 255, 10]
        );
        for wrong in ["0", "0g", "+1", "é"] {
            assert_eq!(
                bytes_of_key(wrong, &form(true, false)).await.unwrap_err().exit,
                Exit::Usage,
                "{wrong}"
            );
        }
        assert_eq!(bytes_of_key("/nowhere", &form(false, true)).await.unwrap_err().exit, Exit::Usage);
    }

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

//! Contexts: which cluster is meant.

use serde_json::json;

use crate::app::{App, DEFAULT_ENDPOINT};
use crate::cli::Ctx;
use crate::config::{Config, Context, named};
use crate::exit::Exit;
use crate::fold::fold;
use crate::line::Line;
use crate::output::{on_a_line, table};
use crate::problem::Problem;

pub(crate) async fn run(app: &App, command: &Ctx) -> Result<Exit, Problem> {
    match command {
        Ctx::List => list(app),
        Ctx::Use { name } => {
            Config::change(&app.config_path, |config| {
                config.context(name)?;
                config.current = Some(name.clone());
                Ok(())
            })?;
            let done = done(app, name, "is selected");
            warn_of_environment(app, name);
            done
        }
        Ctx::Add { name } => add(app, name),
        Ctx::Remove { name } => remove(app, name).await,
        Ctx::Show => show(app),
    }
}

fn done(app: &App, name: &str, what: &str) -> Result<Exit, Problem> {
    if app.out.is_json() {
        app.out.json(&json!({ "context": name, "is": what }))?;
    } else {
        app.out.done(format!("context `{name}` {what}"))?;
    }
    Ok(Exit::Done)
}

/// Writes a context down. One that is there already is not replaced.
fn add(app: &App, name: &str) -> Result<Exit, Problem> {
    named(name)?;
    let endpoints = app.global.endpoints.clone();
    if endpoints.is_empty() {
        let message = format!("where is the cluster `{name}`? name a node or several with -e HOST:PORT");
        let line = app.line.clone().with("-e", DEFAULT_ENDPOINT).to_string();
        return Err(Problem::usage(message).try_this(line, "a node of this machine, as an example"));
    }
    kv_client::Client::connect(kv_client::ClientOptions::new(endpoints.clone()))
        .map_err(|error| Problem::usage(error.failure().message.clone()))?;
    let context = Context { endpoints, namespace: app.global.namespace.clone(), lab: None };
    Config::change(&app.config_path, |config| {
        if config.contexts.contains_key(name) {
            let taken = Problem::usage(format!("there is a context `{name}` already"));
            return Err(
                taken.try_this(Line::new(&["ctx", "remove"]).operand("name", name).to_string(), "removes it")
            );
        }
        config.contexts.insert(name.to_owned(), context);
        config.current = Some(name.to_owned());
        Ok(())
    })?;
    let done = done(app, name, "is added and selected");
    warn_of_environment(app, name);
    done
}

/// What is set in the environment beats what is selected in the file: until it is taken away, the one that
/// was selected is not the one that is meant.
pub(crate) fn warn_of_environment(app: &App, selected: &str) {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint = set("KVCTL_ENDPOINT").map(|nodes| ("KVCTL_ENDPOINT", nodes));
    let context = set("KVCTL_CONTEXT").filter(|name| name != selected).map(|name| ("KVCTL_CONTEXT", name));
    let Some((variable, value)) = endpoint.or(context) else { return };
    let value = on_a_line(value.as_bytes());
    app.out.warn(match app.out.is_in_shell() {
        true => format!(
            "this shell was told {value}, and its lines still mean that: end it, or say -c {selected} on them"
        ),
        false => format!(
            "{variable}={value} is set and beats what is selected, so `{selected}` is not used yet: unset {variable}"
        ),
    });
}

/// Forgets a context. A lab that runs would be out of reach.
async fn remove(app: &App, name: &str) -> Result<Exit, Problem> {
    if let Some(dir) = &app.config()?.context(name)?.lab
        && kv_lab::runs(dir).await
    {
        let down = Line::new(&["lab", "down"]).with("--name", name).to_string();
        return Err(Problem::usage(format!("the lab `{name}` runs")).try_this(down, "stops it first"));
    }
    let was_selected = app.config()?.current.as_deref() == Some(name);
    Config::change(&app.config_path, |config| {
        config.context(name)?;
        config.contexts.remove(name);
        config.current.take_if(|current| current == name);
        Ok(())
    })?;
    let config = app.config()?;
    if app.out.is_json() {
        app.out.json(&json!({ "context": name, "is": "is removed", "selected": config.current }))?;
        return Ok(Exit::Done);
    }
    app.out.done(format!("context `{name}` is removed"))?;
    match config.contexts.keys().next() {
        Some(other) if was_selected && config.current.is_none() => {
            let select = Line::new(&["ctx", "use"]).operand("name", other).to_string();
            app.out.note(format!("it was the one selected, and none is now. To select one: {select}"));
        }
        None if was_selected => app.out.note("it was the one selected, and there is no other"),
        _ => {}
    }
    Ok(Exit::Done)
}

fn list(app: &App) -> Result<Exit, Problem> {
    let config = app.config()?;
    let selected = |name: &String| config.current.as_ref() == Some(name);
    if let Err(problem) = config.selected() {
        let line = problem.tries.first().map_or("kvctl ctx use NAME", |(line, _)| line.as_str());
        app.out.warn(format!("{}: {line}", problem.message));
    }
    if app.out.is_json() {
        for (name, context) in &config.contexts {
            app.out.json(&json!({
                "context": name, "selected": selected(name), "endpoints": context.endpoints, "lab": context.lab.is_some(),
            }))?;
        }
        return Ok(Exit::Done);
    }
    if config.contexts.is_empty() {
        app.out.note("no contexts yet: `kvctl lab up` writes one, and so does `kvctl ctx add`");
        return Ok(Exit::Done);
    }
    let rows = config.contexts.iter().map(|(name, context)| {
        let lab = if context.lab.is_some() { "LAB" } else { "" };
        vec![
            if selected(name) { "*" } else { "" }.into(),
            name.clone(),
            context.endpoints.join(" "),
            lab.into(),
        ]
    });
    app.out.line(table(&["", "context", "endpoints", ""], rows))?;
    Ok(Exit::Done)
}

fn show(app: &App) -> Result<Exit, Problem> {
    let target = app.target()?;
    let why = match (&target.context, app.global.endpoints.is_empty()) {
        (_, false) => "named by -e or KVCTL_ENDPOINT",
        (Some(_), _) if app.global.context.is_some() => "named by -c or KVCTL_CONTEXT",
        (Some(_), _) => "selected in the file",
        (None, _) => "nothing is selected: the first node of a lab on its usual ports",
    };
    if app.out.is_json() {
        app.out.json(&json!({
            "context": target.context, "endpoints": target.endpoints, "namespace": target.namespace,
            "pinned": target.pinned, "lab": target.lab, "why": why, "file": app.config_path,
        }))?;
    } else {
        let name = target.context.as_deref().unwrap_or("-");
        app.out.line(format!("context    {name}   ({why})"))?;
        let pinned = if target.pinned { "   (this node and no other)" } else { "" };
        app.out.line(fold(&format!("endpoints  {}{pinned}", target.endpoints.join(" "))))?;
        app.out.line(format!("namespace  {}", target.namespace.as_deref().unwrap_or("-")))?;
        app.out
            .line(format!("lab        {}", target.lab.map_or("-".into(), |dir| dir.display().to_string())))?;
        app.out.line(format!("file       {}", app.config_path.display()))?;
    }
    Ok(Exit::Done)
}

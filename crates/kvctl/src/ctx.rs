//! Contexts: which cluster is meant.

use serde_json::json;

use crate::app::App;
use crate::cli::Ctx;
use crate::exit::Exit;
use crate::output::table;
use crate::problem::Problem;

pub(crate) fn run(app: &App, command: &Ctx) -> Result<Exit, Problem> {
    match command {
        Ctx::List => list(app),
        Ctx::Use { name } => {
            let mut config = app.config()?;
            config.context(name)?;
            config.current = Some(name.clone());
            config.save(&app.config_path)?;
            app.out.done(format!("context `{name}` is selected"))?;
            Ok(Exit::Done)
        }
        Ctx::Show => show(app),
    }
}

fn list(app: &App) -> Result<Exit, Problem> {
    let config = app.config()?;
    let selected = |name: &String| config.current.as_ref() == Some(name);
    if app.out.is_json() {
        for (name, context) in &config.contexts {
            app.out.json(&json!({
                "context": name, "selected": selected(name), "endpoints": context.endpoints, "lab": context.lab.is_some(),
            }))?;
        }
        return Ok(Exit::Done);
    }
    if config.contexts.is_empty() {
        app.out.note("no contexts yet: `kvctl lab up` writes one");
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
        app.out.line(format!("endpoints  {}{pinned}", target.endpoints.join(" ")))?;
        app.out.line(format!("namespace  {}", target.namespace.as_deref().unwrap_or("-")))?;
        app.out
            .line(format!("lab        {}", target.lab.map_or("-".into(), |dir| dir.display().to_string())))?;
        app.out.line(format!("file       {}", app.config_path.display()))?;
    }
    Ok(Exit::Done)
}

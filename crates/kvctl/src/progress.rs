//! What is waited for, said on a terminal while nothing else is: a command that is silent for seconds looks
//! as if it hung. Into a pipe, as JSON and with `-q` nothing is said.

use std::cell::Cell;
use std::time::Duration;

use kv_client::{Client, ClientOptions};
use tokio::time::{Instant, sleep};

use crate::app::App;
use crate::views::views;

/// What takes no longer than this is not spoken of.
const FIRST: Duration = Duration::from_millis(700);
/// How often the line is written anew.
const EVERY: Duration = Duration::from_secs(1);
/// The same on a terminal that cannot take a line back.
const SELDOM: Duration = Duration::from_secs(5);
/// How long a node has to say that it is there.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest line: one that is broken by the terminal cannot be taken back.
const WIDTH: usize = 78;

/// Does the work, and meanwhile says what it is.
pub(crate) async fn while_waiting<T>(app: &App, what: &str, work: impl Future<Output = T>) -> T {
    speaking(app, what, || async { String::new() }, work).await
}

/// The same for a change that the whole cluster has to take part in: the nodes that do not answer are named.
pub(crate) async fn while_all_agree<T>(app: &App, what: &str, work: impl Future<Output = T>) -> T {
    speaking(app, what, || missing(app), work).await
}

/// `more` is what can be added each time that the line is written.
async fn speaking<T, M: Future<Output = String>>(
    app: &App,
    what: &str,
    more: impl Fn() -> M,
    work: impl Future<Output = T>,
) -> T {
    if !app.out.shows_progress() {
        return work.await;
    }
    let (begun, spoken) = (Instant::now(), Cell::new(false));
    let speak = async {
        sleep(FIRST).await;
        loop {
            let line = format!("waiting {} s until {what}{}", begun.elapsed().as_secs(), more().await);
            app.out.passing(&line.chars().take(WIDTH).collect::<String>());
            spoken.set(true);
            sleep(if app.out.redraws() { EVERY } else { SELDOM }).await;
        }
    };
    let done = tokio::select! {
        biased;
        done = work => done,
        never = speak => match never {},
    };
    if spoken.get() && app.out.redraws() {
        app.out.passing("");
    }
    done
}

/// The members that do not answer here, in words.
async fn missing(app: &App) -> String {
    let asked = async {
        let client = Client::connect(ClientOptions { read_timeout: PATIENCE, ..app.options().ok()? }).ok()?;
        let topology = client.admin().topology().await.ok()?;
        Some(views(&client, &topology).await)
    };
    let views = asked.await.unwrap_or_default();
    let silent = views.iter().filter(|(_, view)| view.is_none()).map(|(node, _)| node.to_string());
    let silent: Vec<String> = silent.collect();
    match silent.as_slice() {
        [] => String::new(),
        [one] => format!("; {one} does not answer"),
        several => format!("; {} do not answer", several.join(" ")),
    }
}

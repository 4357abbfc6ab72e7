//! `kvctl shell`: the same commands one after the other, with history and completion. Each line is run as a
//! program of its own, so that it prints and ends as it does when it is typed without the shell.

mod complete;
mod menu;

use std::borrow::Cow;
use std::fs;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use kv_lab::EndSignal;
use kv_types::{Failure, NamespaceName, Reason};
use reedline::{
    Completer, Emacs, FileBackedHistory, KeyCode, KeyModifiers, Prompt, PromptEditMode, PromptHistorySearch,
    Reedline, ReedlineEvent, ReedlineMenu, Signal, Span, Suggestion, default_emacs_keybindings,
};
use rustix::process::{Pid, Signal as Posix, kill_process};
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;
use tokio::signal::unix::{Signal as Interrupts, SignalKind, signal};

use crate::app::App;
use crate::definition::definition;
use crate::exit::Exit;
use crate::line::Line;
use crate::ns::deleted_until;
use crate::output::{Color, FAILED_USE, Format, SHELL_LINE, on_a_line};
use crate::problem::Problem;
use crate::seen::Memory;
use crate::shell::complete::{Names, offers};
use crate::shell::menu::Choice;

/// Lines of history that are kept.
const MAX_HISTORY: usize = 1_000;
/// Longest line of a script, bytes: the largest value, and room for its command.
const MAX_LINE_BYTES: u64 = (kv_types::limits::MAX_VALUE_BYTES as u64) + (64 << 10);
/// How long the names for completion may take.
const LEARN_WITHIN: Duration = Duration::from_millis(200);
/// How long it may take to find out whether there is a namespace.
const CHOOSE_WITHIN: Duration = Duration::from_secs(2);
/// How long a script whose reader has gone has to say that it is at its end.
const END_OF_SCRIPT: Duration = Duration::from_millis(200);

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    End,
    /// Another namespace for what follows.
    Use(String),
    /// A command and its arguments.
    Run(Vec<String>),
    /// Why it cannot be read.
    Wrong(&'static str),
}

fn step(line: &str) -> Step {
    let Some(words) = shlex::split(line) else { return Step::Wrong("a quote is not closed") };
    let words: Vec<String> = words.into_iter().skip_while(|word| word == "kvctl").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Step::Nothing,
        ["exit" | "quit"] => Step::End,
        ["use", namespace] => Step::Use((*namespace).to_owned()),
        ["use", ..] => Step::Wrong("write `use NAMESPACE`"),
        ["shell", ..] => Step::Wrong("this is the shell"),
        _ => Step::Run(words),
    }
}

/// Whether a line that makes no sense was to select a namespace.
fn is_use(line: &str) -> bool {
    line.split_whitespace().find(|word| *word != "kvctl") == Some("use")
}

pub(crate) async fn run(app: &App) -> Result<Exit, Problem> {
    // From here on Ctrl-C ends a command and not the shell of a person. A script ends with it.
    let mut signals = Signals { interrupts: signal(SignalKind::interrupt())?, terminations: None };
    let memory = match Memory::new() {
        Ok(memory) => Some(memory),
        Err(error) => {
            app.out.warn(format!("without a memory for --seen: {error}"));
            None
        }
    };
    let mut shell =
        Shell { app, namespace: app.namespace().ok(), failed_use: None, names: Arc::default(), memory };
    if !std::io::stdin().is_terminal() {
        signals.terminations = Some(signal(SignalKind::terminate())?);
        return shell.script(&mut signals).await;
    }
    let mut editor = match app.out.speaks_to_terminal() && app.out.redraws() {
        true => Some(editor(app, &shell.names)?),
        false => None,
    };
    let completes = if editor.is_some() { "Tab completes, " } else { "" };
    let kept = if editor.is_some() { "; a line that begins with a blank is not kept" } else { "" };
    app.out.note(format!("{completes}`use NAMESPACE` chooses, `help` explains, `exit` ends{kept}"));
    shell.learn().await;
    loop {
        let Some(line) = shell.ask(&mut editor)? else { return Ok(Exit::Done) };
        match shell.read(&line) {
            Step::End => return Ok(Exit::Done),
            other => {
                shell.take(other, &mut signals, Stdio::inherit(), 0).await?;
            }
        }
    }
}

/// What asks the shell to end.
struct Signals {
    interrupts: Interrupts,
    /// Heard by a script alone.
    terminations: Option<Interrupts>,
}

impl Signals {
    async fn next(&mut self) -> EndSignal {
        let terminated = async {
            match &mut self.terminations {
                Some(terminations) => terminations.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(()) = self.interrupts.recv() => EndSignal::Interrupt,
            Some(()) = terminated => EndSignal::Terminate,
            else => std::future::pending().await,
        }
    }
}

/// Tells a command of a script what the shell was asked: where the signal came from no terminal, only the
/// shell has heard it.
fn tell(child: &tokio::process::Child, asked: EndSignal) {
    let what = if asked == EndSignal::Terminate { Posix::TERM } else { Posix::INT };
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // One that has ended meanwhile needs no word.
    if let Some(id) = id {
        let _ = kill_process(id, what);
    }
}

struct Shell<'a> {
    app: &'a App,
    namespace: Option<String>,
    /// The `use` that failed last, until another one selects a namespace: what follows was written for the
    /// one that was named, and must not meet another.
    failed_use: Option<String>,
    names: Arc<Mutex<Names>>,
    memory: Option<Memory>,
}

impl Shell<'_> {
    /// The next line that a person types; `None` at the end. A terminal in which the editor fails, as where
    /// the cursor cannot be found, is read line by line from then on.
    fn ask(&self, editor: &mut Option<Reedline>) -> Result<Option<String>, Problem> {
        let asking = Asking(self.place());
        while let Some(known) = editor {
            match tokio::task::block_in_place(|| known.read_line(&asking)) {
                Ok(Signal::Success(line)) => return Ok(Some(line)),
                Ok(Signal::CtrlC) => {}
                Ok(_) => return Ok(None),
                Err(error) => {
                    let without = "this terminal takes no editor of lines";
                    self.app.out.note(format!("{without} ({error}): without history and completion"));
                    *editor = None;
                }
            }
        }
        // There is nowhere left to report that this cannot be written.
        let _ = write!(std::io::stderr(), "{}> ", asking.0);
        next_line()
    }

    /// Lines from a pipe or a file. All are run, unless their reader has gone (141); the exit code is that of
    /// the last one that failed.
    async fn script(&mut self, signals: &mut Signals) -> Result<Exit, Problem> {
        let mut ended = Exit::Done;
        let unread = unread();
        tokio::pin!(unread);
        for number in 1.. {
            // On a thread of its own: what writes the script may never write the next line.
            let mut reading = tokio::task::spawn_blocking(next_line);
            let read = tokio::select! {
                biased;
                asked = signals.next() => return Ok(Exit::of_signal(asked)),
                () = &mut unread => {
                    // A script at its end says so at once; of any other, lines were not run.
                    let next = tokio::time::timeout(END_OF_SCRIPT, reading).await;
                    return Ok(if matches!(next, Ok(Ok(Ok(None)))) { ended } else { Exit::Unread });
                }
                read = &mut reading => read,
            };
            let line = read.unwrap_or_else(|error| Err(Problem::new(Exit::Refused, error.to_string())));
            let text = match line {
                Ok(Some(text)) => text,
                Ok(None) => break,
                Err(mut problem) => {
                    problem.message = format!("line {number}: {}", problem.message);
                    return Err(problem);
                }
            };
            let step = self.read(&text);
            match step {
                Step::End => break,
                other => match self.take(other, signals, Stdio::null(), number).await? {
                    Exit::Done => {}
                    Exit::Unread => return Ok(Exit::Unread),
                    ended if ended.is_of_signal() => return Ok(ended),
                    failed => ended = failed,
                },
            }
        }
        Ok(ended)
    }

    /// What a line asks for. One that was to select a namespace, and makes no sense, selects none.
    fn read(&mut self, line: &str) -> Step {
        let step = step(line);
        if matches!(step, Step::Wrong(_)) && is_use(line) {
            self.select_none(on_a_line(line.trim().as_bytes()));
        }
        step
    }

    /// Does what a line asks for; `number` is its place in a script, 0 where there is none.
    async fn take(
        &mut self,
        step: Step,
        signals: &mut Signals,
        input: Stdio,
        number: u64,
    ) -> Result<Exit, Problem> {
        match step {
            Step::Nothing | Step::End => Ok(Exit::Done),
            Step::Wrong(why) => {
                self.app.out.at_line(number).problem(&Problem::usage(why));
                Ok(Exit::Usage)
            }
            Step::Use(namespace) => match self.choose(namespace.clone()).await {
                Ok(()) => Ok(Exit::Done),
                Err(problem) => {
                    self.select_none(format!("use {}", on_a_line(namespace.as_bytes())));
                    self.app.out.at_line(number).problem(&problem);
                    Ok(problem.exit)
                }
            },
            Step::Run(words) => {
                let mut command = self.command(&words);
                command.env(SHELL_LINE, number.to_string()).stdin(input);
                let mut child = tokio::process::Command::from(command).spawn()?;
                let (is_script, mut end) = (number > 0, None);
                let ended = loop {
                    tokio::select! {
                        ended = child.wait() => break ended?,
                        asked = signals.next() => if is_script && end.is_none() {
                            end = Some(asked);
                            tell(&child, asked);
                        }
                        // To a person's command the terminal says it, and that decides what it means.
                    }
                };
                if let Some(asked) = end {
                    return Ok(Exit::of_signal(asked));
                }
                if std::io::stdin().is_terminal() {
                    self.learn().await;
                }
                Ok(Exit::from_code(ended.code()))
            }
        }
    }

    /// Another namespace for what follows, if there is one of that name. Where no node says whether there is,
    /// it is taken all the same.
    async fn choose(&mut self, name: String) -> Result<(), Problem> {
        NamespaceName::new(name.clone()).map_err(|failure| Problem::usage(failure.message))?;
        let looking = async { self.app.lookup(&self.app.client()?, &name).await };
        let found = match tokio::time::timeout(CHOOSE_WITHIN, looking).await {
            Ok(found) => found,
            Err(_) => Err(Problem::new(Exit::Unavailable, "no node answers in time")),
        };
        match found {
            Ok(info) => {
                if let Some(until) = deleted_until(&info) {
                    self.app.out.note(format!("`{name}` is {until}"));
                }
            }
            Err(problem) if problem.failure.as_ref().is_some_and(|failure| is_unknown(failure)) => {
                let list = self.app.line.other(&["ns", "list"]).without("namespace").to_string();
                return Err(Problem { of_read: true, ..problem.try_this(list, "which there are") });
            }
            Err(problem) => {
                let why = problem.message.lines().next().unwrap_or_default();
                self.app.out.note(format!("`{name}` is taken without knowing whether there is one: {why}"));
            }
        }
        (self.namespace, self.failed_use) = (Some(name), None);
        Ok(())
    }

    fn select_none(&mut self, failed: String) {
        (self.namespace, self.failed_use) = (None, Some(failed));
    }

    /// The program itself with these words. What the shell was told is in the environment, where a word of
    /// the line beats it.
    fn command(&self, words: &[String]) -> std::process::Command {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("kvctl"));
        let mut command = std::process::Command::new(program);
        let global = &self.app.global;
        // These two are in no environment.
        command.args(global.quiet.then_some("-q"));
        command.args((0..global.verbose).map(|_| "-v")).args(words);
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                command.env(name, value);
            }
        };
        set("KVCTL_NAMESPACE", self.namespace.clone());
        set(FAILED_USE, self.failed_use.clone());
        set("KVCTL_CONTEXT", global.context.clone());
        set("KVCTL_ENDPOINT", (!global.endpoints.is_empty()).then(|| global.endpoints.join(",")));
        let timeout = global.timeout.map(|timeout| humantime::format_duration(timeout).to_string());
        set("KVCTL_TIMEOUT", timeout.map(|text| text.replace(' ', "")));
        if let Some(memory) = &self.memory {
            memory.lend(&mut command);
        }
        if self.failed_use.is_some() {
            command.env_remove("KVCTL_NAMESPACE");
        }
        // What was said to the shell beats what is set outside of it, also where it is what is usual.
        let chosen = [said(global.output, Format::Text), said(global.color, Color::Auto)];
        for (name, word) in ["KVCTL_OUTPUT", "KVCTL_COLOR"].into_iter().zip(chosen) {
            match word {
                Some(word) => command.env(name, word),
                None => command.env_remove(name),
            };
        }
        if names_a_context(words) {
            command.env_remove("KVCTL_ENDPOINT");
        }
        command
    }

    /// What the prompt says: the cluster and the namespace that are meant.
    fn place(&self) -> String {
        let target = self.app.target().ok();
        let cluster = target.and_then(|target| target.context.or_else(|| target.endpoints.first().cloned()));
        let cluster = cluster.unwrap_or_else(|| "?".into());
        match &self.namespace {
            Some(namespace) => format!("{cluster}/{namespace}"),
            None => cluster,
        }
    }

    /// Learns the names that there are now, if a node says them soon; otherwise those of before stay.
    async fn learn(&self) {
        let contexts = self.app.config().map(|config| config.contexts.into_keys().collect());
        if let Ok(contexts) = contexts {
            lock(&self.names).contexts = contexts;
        }
        let Ok(client) = self.app.client() else { return };
        let Ok(Ok(topology)) = tokio::time::timeout(LEARN_WITHIN, client.admin().topology()).await else {
            return;
        };
        let mut names = lock(&self.names);
        names.namespaces = topology.namespaces.into_keys().collect();
        names.nodes = topology.members.keys().map(ToString::to_string).collect();
    }
}

/// Resolves when no one reads standard output any more, as after `| head -1`; never where that cannot be
/// seen, as of a file.
async fn unread() {
    let copy = std::io::stdout().as_fd().try_clone_to_owned().map(fs::File::from);
    // It is watched and never written to: that it would block does not matter.
    let watched = copy.and_then(Sender::from_file_unchecked);
    let closed = match &watched {
        Ok(watched) => watched.ready(Interest::ERROR).await.is_ok(),
        Err(_) => false,
    };
    if !closed {
        std::future::pending::<()>().await;
    }
}

/// The word for what was chosen; none for what is usual.
fn said<T: ValueEnum + PartialEq>(chosen: T, usual: T) -> Option<String> {
    let word = chosen.to_possible_value().map(|value| value.get_name().to_owned());
    word.filter(|_| chosen != usual)
}

/// The next line of standard input; `None` at the end of it. Lines of a file may end as on Windows.
fn next_line() -> Result<Option<String>, Problem> {
    let line = tokio::task::block_in_place(|| {
        let mut line = Vec::new();
        std::io::stdin().lock().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        Ok::<_, std::io::Error>(line)
    })?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') && line.len() as u64 >= MAX_LINE_BYTES {
        return Err(Problem::usage(format!("a line has more than {MAX_LINE_BYTES} bytes")));
    }
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let text = String::from_utf8(text.to_vec());
    text.map(Some).map_err(|_| {
        Problem::usage("a line is not text: keys are written with --key-hex, other values come from files")
    })
}

fn is_unknown(failure: &Failure) -> bool {
    failure.reason == Reason::NamespaceUnknown
}

/// Whether a line says itself which cluster it is for.
fn names_a_context(words: &[String]) -> bool {
    let definition = definition();
    let words = std::iter::once("kvctl").chain(words.iter().map(String::as_str));
    let matches = definition.clone().try_get_matches_from(words);
    matches.is_ok_and(|matches| Line::given(&definition, &matches, false).has("context"))
}

fn editor(app: &App, names: &Arc<Mutex<Names>>) -> Result<Reedline, Problem> {
    let mut keys = default_emacs_keybindings();
    let complete = vec![ReedlineEvent::Menu(menu::NAME.into()), ReedlineEvent::MenuNext];
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(complete));
    let words = Words { root: definition(), names: Arc::clone(names) };
    let editor = Reedline::create()
        .with_ansi_colors(app.out.has_color())
        .with_completer(Box::new(words))
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(Choice::new())))
        // The only word that may follow needs no choice, and no Enter of its own.
        .with_quick_completions(true)
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_history_exclusion_prefix(Some(" ".into()));
    Ok(match history() {
        Ok(history) => editor.with_history(Box::new(history)),
        Err(error) => {
            app.out.warn(format!("without the history of before: {error}"));
            editor
        }
    })
}

/// Lines hold values, which are for their owner alone.
fn history() -> Result<FileBackedHistory, String> {
    // A name that no lab can have.
    let file = kv_lab::dir_of(".shell-history");
    let made = || {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::File::options().create(true).append(true).mode(0o600).open(&file)
    };
    made().map_err(|error: std::io::Error| format!("{}: {error}", file.display()))?;
    FileBackedHistory::with_file(MAX_HISTORY, file).map_err(|error| error.to_string())
}

/// Completion for the editor of lines.
struct Words {
    root: clap::Command,
    names: Arc<Mutex<Names>>,
}

impl Completer for Words {
    fn complete(&mut self, line: &str, pos: usize) -> Vec<Suggestion> {
        let before = line.get(..pos).unwrap_or(line);
        let (start, found) = offers(&self.root, &lock(&self.names), before);
        let suggestion = |offer: complete::Offer| Suggestion {
            value: offer.word,
            description: Some(offer.about).filter(|about| !about.is_empty()),
            span: Span { start, end: before.len() },
            append_whitespace: true,
            ..Suggestion::default()
        };
        found.into_iter().map(suggestion).collect()
    }
}

/// The prompt: which cluster, which namespace.
struct Asking(String);

impl Prompt for Asking {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed(". ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_a_shell_reads_them() {
        let run = |words: &[&str]| Step::Run(words.iter().map(|&word| word.to_owned()).collect());
        assert_eq!(step("put -n bank 'a b' \"it's\""), run(&["put", "-n", "bank", "a b", "it's"]));
        assert_eq!(step("kvctl get k"), run(&["get", "k"]));
        assert_eq!(step("  # a remark"), Step::Nothing);
        assert_eq!(step(""), Step::Nothing);
        assert_eq!(step("use cart"), Step::Use("cart".into()));
        assert_eq!((step("exit"), step("quit")), (Step::End, Step::End));
        for wrong in ["put 'k", "use", "use a b", "shell"] {
            assert!(matches!(step(wrong), Step::Wrong(_)), "{wrong}");
        }
    }

    #[test]
    fn a_line_may_be_for_another_cluster() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(names_a_context(&words("get -c prod -n bank k")));
        assert!(!names_a_context(&words("get -n bank k")));
        assert!(!names_a_context(&words("put -n bank -- -c k")));
    }
}

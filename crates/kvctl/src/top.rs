//! `kvctl top`: the cluster as each node sees it, a read of every namespace at every node, and the faults in
//! force, drawn anew every second. The driver of [`sight`], what is known, and [`screen`], how it looks.

mod screen;
mod sight;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::IsTerminal as _;
use std::time::Duration;

use kv_client::{Client, ClientOptions};
use kv_types::{Mode, NodeId};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Row, Span, Text};
use ratatui::widgets::Paragraph;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::app::App;
use crate::cli::Top;
use crate::exit::Exit;
use crate::fold::WIDTH;
use crate::problem::Problem;
use crate::views::views;
use screen::{Piece, Tone};
use sight::{Probed, Sight};

/// Time of one probe, and of what a node is asked about itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// Pictures are at least so far apart.
const SOONEST: Duration = Duration::from_millis(100);
/// The key that is read; whether it is there does not matter.
const PROBE_KEY: &str = "kvctl top";
/// Namespaces that are probed.
const NAMESPACES: usize = 8;

pub(crate) async fn run(app: &App, args: &Top) -> Result<Exit, Problem> {
    let mut looker = Looker::new(app)?;
    let draws = std::io::stdout().is_terminal() && app.out.redraws();
    if args.once || app.out.is_json() || !draws {
        if !args.once && app.out.terminal {
            app.out.note("this terminal cannot be drawn over (TERM): one picture");
        }
        let sight = looker.look(app).await?;
        if app.out.is_json() {
            app.out.json(&sight.json())?;
        } else {
            for line in screen::draw(&sight, WIDTH, usize::MAX, false) {
                let text: String = line.into_iter().map(|piece| piece.text).collect();
                app.out.line(text.trim_end())?;
            }
        }
        return Ok(Exit::Done);
    }
    let mut terminal = ratatui::try_init()?;
    let _drawn = Drawn;
    watch(app, args, &mut looker, &mut terminal).await.map(|()| Exit::Done)
}

/// Gives the terminal back as it was, also where a signal ends the drawing.
struct Drawn;

impl Drop for Drawn {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws until somebody has seen enough.
async fn watch(
    app: &App,
    args: &Top,
    looker: &mut Looker,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Problem> {
    let mut keys = keys();
    let mut every = interval(args.every.max(SOONEST));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown: Option<Sight> = None;
    loop {
        tokio::select! {
            biased;
            key = keys.recv() => match key {
                Some(Key::Redraw) => {}
                Some(Key::End) | None => return Ok(()),
            },
            _ = every.tick() => match looker.look(app).await {
                Ok(sight) => shown = Some(sight),
                // The last picture stays, with what is wrong above it.
                Err(problem) => match &mut shown {
                    Some(sight) => sight.trouble = Some(problem.message),
                    None => return Err(problem),
                },
            },
        }
        if let Some(sight) = &shown {
            terminal.draw(|frame| {
                let (width, height) = (frame.area().width.into(), frame.area().height.into());
                let lines = screen::draw(sight, width, height, true);
                let rows = lines.into_iter().map(|line| row(line, app.out.has_color()));
                frame.render_widget(Paragraph::new(Text::from_iter(rows)), frame.area());
            })?;
        }
    }
}

fn row(line: Vec<Piece>, color: bool) -> Row<'static> {
    let style = |tone| match tone {
        Tone::Plain => Style::new(),
        Tone::Head => Style::new().add_modifier(Modifier::BOLD),
        _ if !color => Style::new(),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Bad => Style::new().fg(Color::Red),
        Tone::Unsure => Style::new().fg(Color::Yellow),
    };
    Row::from_iter(line.into_iter().map(|piece| Span::styled(piece.text, style(piece.tone))))
}

/// What was typed.
enum Key {
    Redraw,
    End,
}

/// Keys, read on a thread of their own: it ends with the process.
fn keys() -> mpsc::Receiver<Key> {
    let (send, keys) = mpsc::channel(8);
    std::thread::spawn(move || {
        loop {
            let key = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => Key::End,
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::End,
                    _ => continue,
                },
                Ok(Event::Resize(..)) => Key::Redraw,
                Ok(_) => continue,
                Err(_) => Key::End,
            };
            let end = matches!(key, Key::End);
            if send.blocking_send(key).is_err() || end {
                return;
            }
        }
    });
    keys
}

/// Asks the nodes, and remembers what they answered to the probes of the last minute.
struct Looker {
    client: Client,
    /// A client for each node that asks it and no other.
    pinned: BTreeMap<NodeId, Client>,
    probes: sight::Probes,
}

impl Looker {
    fn new(app: &App) -> Result<Self, Problem> {
        Ok(Self { client: app.client()?, pinned: BTreeMap::new(), probes: sight::Probes::default() })
    }

    async fn look(&mut self, app: &App) -> Result<Sight, Problem> {
        let topology = self.client.admin().topology().await?;
        for member in topology.members.values() {
            if let Entry::Vacant(free) = self.pinned.entry(member.id) {
                let pinned = ClientOptions::pinned(member.client_address.clone());
                let options = ClientOptions { attempts: 1, read_timeout: PATIENCE, ..pinned };
                free.insert(Client::connect(options)?);
            }
        }
        let names: Vec<(String, Mode)> = topology
            .namespaces
            .iter()
            .filter(|(_, info)| info.namespace.deletion.is_none())
            .take(NAMESPACES)
            .map(|(name, info)| (name.clone(), info.namespace.mode()))
            .collect();
        let probes = names.iter().flat_map(|(name, mode)| {
            self.pinned.iter().map(move |(node, client)| async move {
                (name.clone(), *node, probe(client, name, *mode).await)
            })
        });
        let (views, probed, faults) = tokio::join!(
            views(&self.client, &topology),
            futures_util::future::join_all(probes),
            crate::cluster::lab_line(app)
        );
        self.probes.add(probed);
        Ok(Sight::new(&topology, views, names, &self.probes, faults))
    }
}

/// Reads a key at one node, and no other.
async fn probe(client: &Client, namespace: &str, mode: Mode) -> Probed {
    let begun = Instant::now();
    let answered = match mode {
        Mode::Strong => client.strong(namespace).get(PROBE_KEY).await.map(|_| ()),
        Mode::Available => client.available(namespace).get(PROBE_KEY).await.map(|_| ()),
    };
    match answered {
        Ok(()) => Probed::Answered(begun.elapsed()),
        Err(error) => Probed::Refused(error.reason()),
    }
}

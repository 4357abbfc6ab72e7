//! A lab in the background and how to talk to it: a supervisor process, a Unix socket in the lab's folder,
//! one JSON line for a request and one for its reply. The folder is the lab's name; nothing else has to be
//! known to find it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{self, Lab, LabOptions};
use crate::installed::Installed;
use crate::matrix::{Direction, Fault, Faults, Flow, NodeName};
use crate::process::Proof;
use crate::{LabError, interrupted};

/// Longest request or reply, bytes.
const MAX_LINE_BYTES: u64 = 256 << 10;
/// Conversations at once.
const MAX_CONVERSATIONS: usize = 32;
/// Longest wait for a reply: a restart waits for its node.
const REPLY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for the process that runs a lab to say that it is there, before anything is asked of it.
const THERE_WITHIN: Duration = Duration::from_secs(3);
/// Longest wait for the last replies when a lab ends.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);
/// Longest wait for a lab to serve.
const UP_WITHIN: Duration = Duration::from_secs(90);
/// Longest wait for the process that runs a lab to be gone after its last reply.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often a lab that starts, or ends, is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Faults in force at once, each as it was asked for.
const MAX_FAULTS: usize = 64;
/// Longest path of a Unix socket, bytes (`sun_path` with its end).
const MAX_SOCKET_PATH: usize = 107;

/// What can be asked of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Whether it is there: answered at once, whatever else is under way.
    Hello,
    /// Who runs, and what is broken.
    Status,
    /// Adds a network partition to the faults in force.
    Partition {
        /// The groups.
        groups: Vec<Vec<NodeName>>,
        /// Heal by itself after so long.
        for_ms: Option<u64>,
    },
    /// Cuts one node off from the others, beside the faults in force.
    Isolate {
        /// The node.
        node: NodeName,
        /// Heal by itself after so long.
        for_ms: Option<u64>,
    },
    /// Adds a one-way cut.
    Cut {
        /// Its bytes do not arrive
        from: NodeName,
        /// here.
        to: NodeName,
        /// Heal by itself after so long.
        for_ms: Option<u64>,
    },
    /// Adds a one-way delay.
    Delay {
        /// Its bytes arrive late
        from: NodeName,
        /// here.
        to: NodeName,
        /// So late,
        ms: u64,
        /// give or take.
        jitter_ms: u64,
        /// Heal by itself after so long.
        for_ms: Option<u64>,
    },
    /// Adds a flow of any kind on one direction.
    Flow {
        /// From here
        from: NodeName,
        /// to there.
        to: NodeName,
        /// What happens to the bytes.
        flow: Flow,
        /// Heal by itself after so long.
        for_ms: Option<u64>,
    },
    /// Ends all faults.
    Heal,
    /// The faults in force.
    List,
    /// Kills a node.
    Kill {
        /// The node.
        node: NodeName,
    },
    /// Starts a node again.
    Restart {
        /// The node.
        node: NodeName,
        /// On an empty disk, as if it had lost its own.
        #[serde(default)]
        empty: bool,
    },
    /// Makes a node stand still.
    Pause {
        /// The node.
        node: NodeName,
    },
    /// Lets it go on.
    Resume {
        /// The node.
        node: NodeName,
    },
    /// Ends the lab.
    Down,
}

/// What a lab replies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Who runs, and what is broken.
    Status(Status),
    /// A change of faults, in force and probed.
    Installed(Installed),
    /// What was done to a process, and what shows it.
    Process(Proof),
    /// The faults in force.
    Faults {
        /// Those of the network.
        faults: Vec<InForce>,
        /// Nodes that stand still.
        paused: Vec<NodeName>,
    },
    /// As asked.
    Done,
    /// Not as asked; [`ask`] makes an error of it.
    Error {
        /// Why.
        message: String,
        /// The exit code that goes with it.
        exit_code: u8,
    },
}

/// What happens on one direction, and what will when that ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The flow in force.
    #[serde(flatten)]
    pub fault: Fault,
    /// When it ends by itself, from now.
    pub ends_in_ms: Option<u64>,
    /// What was asked for there too, in the order in which it was asked for.
    pub beneath: Vec<Flow>,
}

/// A lab as its supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor.
    pub pid: u32,
    /// The lab's folder.
    pub dir: PathBuf,
    /// Its ports.
    pub port_base: u16,
    /// Its nodes.
    pub nodes: Vec<NodeView>,
    /// The faults in force.
    pub faults: Vec<Fault>,
    /// How long there have been any.
    pub faults_for_ms: Option<u64>,
}

/// A node as its supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: NodeName,
    /// Where clients reach it.
    pub client_address: String,
    /// Where peers would reach it without the proxies.
    pub peer_address: String,
    /// Whether its process runs.
    pub up: bool,
    /// Its process.
    pub pid: Option<u32>,
    /// Whether it stands still.
    #[serde(default)]
    pub paused: bool,
}

/// The folder of the lab of this name: in `quorate` in the user's state folder.
pub fn dir_of(name: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("quorate")
        .join(name)
}

/// What would keep a lab from starting, as far as it can be seen before.
pub async fn check(options: &LabOptions) -> Result<(), LabError> {
    refuse_second(&options.dir).await?;
    cluster::check(options)
}

/// Starts a lab in the background; returns when it serves. `supervise` is a command whose process calls
/// [`supervise`] with the same options.
pub async fn launch(options: &LabOptions, supervise: std::process::Command) -> Result<Status, LabError> {
    // From here on: one that comes between two steps must not leave nodes behind.
    let end = interrupted();
    tokio::pin!(end);
    check(options).await?;
    drop(alone(&options.dir).await?);
    let system = |what: &str| LabError::system(format!("cannot {what} in {}", options.dir.display()));
    fs::create_dir_all(&options.dir).map_err(system("create the lab"))?;
    let log = options.dir.join("supervisor.log");
    let _ = fs::remove_file(&log); // of the lab before
    let out = cluster::open_log(&log).map_err(system("write supervisor.log"))?;
    let err = out.try_clone().map_err(system("write supervisor.log"))?;
    let mut supervise = supervise;
    supervise.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    let mut command = tokio::process::Command::from(supervise);
    let mut child = command.spawn().map_err(system("start a supervisor"))?;
    let deadline = Instant::now() + UP_WITHIN;
    loop {
        let serves = ask(&options.dir, Request::Status).await;
        let asked_to_end = end.as_mut().now_or_never();
        if let (Ok(Reply::Status(status)), None) = (serves, asked_to_end) {
            return Ok(status);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let message = fs::read_to_string(&log).unwrap_or_default();
            let message = message.trim().trim_start_matches("error: ").to_owned();
            let exit_code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(5);
            return Err(LabError::Refused { message, exit_code });
        }
        let late = Instant::now() > deadline;
        let stopped = match asked_to_end {
            Some(signal) => Some(signal),
            None => tokio::select! {
                biased;
                signal = &mut end => Some(signal),
                () = tokio::time::sleep(POLL) => None,
            },
        };
        if late || stopped.is_some() {
            let _ = child.kill().await; // its nodes end with it
            return Err(match stopped {
                Some(signal) => LabError::Interrupted(signal),
                None => LabError::TooSlow {
                    what: "the start of the lab".into(),
                    seconds: UP_WITHIN.as_secs(),
                    hint: format!("; see {}", log.display()),
                },
            });
        }
    }
}

/// Asks the lab in this folder. `Silent` if its process does not even say that it is there.
pub async fn ask(dir: &Path, request: Request) -> Result<Reply, LabError> {
    there(dir).await?;
    let stream = connect(dir).await?;
    match tokio::time::timeout(REPLY_WITHIN, talk(stream, &request)).await {
        Ok(Ok(Reply::Error { message, exit_code })) => Err(LabError::Refused { message, exit_code }),
        Ok(Ok(reply)) => Ok(reply),
        // Another one asked it to end too, and it has.
        Ok(Err(_)) if request == Request::Down && connect(dir).await.is_err() => Ok(Reply::Done),
        Ok(Err(source)) => Err(LabError::System { what: "the supervisor broke off".into(), source }),
        Err(_) => Err(LabError::TooSlow {
            what: "the supervisor's reply".into(),
            seconds: REPLY_WITHIN.as_secs(),
            hint: String::new(),
        }),
    }
}

/// Whether a lab runs in this folder, also one whose process is stopped.
pub async fn runs(dir: &Path) -> bool {
    connect(dir).await.is_ok()
}

async fn connect(dir: &Path) -> Result<UnixStream, LabError> {
    let socket = socket_path(dir)?;
    UnixStream::connect(&socket).await.map_err(|_| LabError::NotRunning { dir: dir.to_path_buf() })
}

/// One request, one reply.
async fn talk(mut stream: UnixStream, request: &Request) -> std::io::Result<Reply> {
    stream.write_all(&line(request)?).await?;
    let mut reply = Vec::new();
    BufReader::new(stream).take(MAX_LINE_BYTES).read_until(b'\n', &mut reply).await?;
    serde_json::from_slice(&reply).map_err(std::io::Error::from)
}

/// A process that was stopped accepts connections all the same. Whatever this one says, it says something.
async fn there(dir: &Path) -> Result<(), LabError> {
    let stream = connect(dir).await?;
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    match tokio::time::timeout(THERE_WITHIN, talk(stream, &Request::Hello)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(LabError::Silent { dir: dir.to_path_buf(), pid, seconds: THERE_WITHIN.as_secs() }),
    }
}

/// Runs a lab in this process until it is asked to end, or interrupted. Nothing is left behind but logs and
/// data.
pub async fn supervise(options: LabOptions) -> Result<(), LabError> {
    refuse_second(&options.dir).await?;
    let _alone = alone(&options.dir).await?;
    let end = interrupted();
    tokio::pin!(end);
    let lab = tokio::select! {
        biased;
        signal = &mut end => return Err(LabError::Interrupted(signal)),
        lab = Lab::start(options) => Arc::new(lab?),
    };
    let (down, mut asked_down) = mpsc::channel(1);
    let supervisor = Arc::new(Supervisor { lab: lab.clone(), asked: Mutex::default(), down });
    let socket = Socket::bind(&lab.options().dir)?;
    let mut conversations = JoinSet::new();
    let farewell = loop {
        tokio::select! {
            biased;
            _ = &mut end => break None,
            Some(farewell) = asked_down.recv() => break Some(farewell),
            Some(_) = conversations.join_next() => {}
            accepted = socket.listener.accept(), if conversations.len() < MAX_CONVERSATIONS => {
                if let Ok((stream, _)) = accepted {
                    conversations.spawn(supervisor.clone().converse(stream));
                }
            }
        }
    };
    lab.stop().await;
    drop(socket);
    if let Some(farewell) = farewell {
        let _ = farewell.send(());
        // The client that asked is told; others may be half-way through a request and are not waited for.
        let _ = tokio::time::timeout(FAREWELL_WITHIN, conversations.join_all()).await;
    }
    Ok(())
}

/// The faults that were asked for, one beside the other.
#[derive(Default)]
struct Asked {
    next: u64,
    faults: BTreeMap<u64, Faults>,
    /// When those end that end by themselves.
    timed: BTreeMap<u64, Instant>,
}

impl Asked {
    /// Adds one that ends by itself, or not. Asked for once more, or with another figure, it takes the place
    /// of the earlier one, which is returned with its number; but only for good: one that ends by itself ends
    /// nothing but itself, and the earlier one is there after it.
    ///
    /// Errors: as many as may be are in force.
    fn put(&mut self, faults: Faults, ends: bool) -> Result<(u64, Option<(u64, Faults)>), LabError> {
        let same = |(id, earlier): (&u64, &Faults)| {
            (!ends && !self.timed.contains_key(id) && earlier.is_about_the_same(&faults)).then_some(*id)
        };
        let same = self.faults.iter().find_map(same);
        if self.faults.len() >= MAX_FAULTS + usize::from(same.is_some()) {
            return Err(LabError::Usage(format!("{MAX_FAULTS} faults are in force: heal them first")));
        }
        let earlier = same.and_then(|id| self.faults.remove_entry(&id));
        let id = self.next;
        self.next += 1;
        self.faults.insert(id, faults);
        Ok((id, earlier))
    }

    /// What they come to together.
    fn together(&self) -> Faults {
        self.faults.values().fold(Faults::none(), |all, faults| all.and(faults))
    }

    /// Each direction on which something is in force, until when, and what lies beneath.
    fn list(&self, now: Instant) -> Vec<InForce> {
        let together = self.together().list();
        together.into_iter().map(|fault| self.in_force(fault, now)).collect()
    }

    fn in_force(&self, fault: Fault, now: Instant) -> InForce {
        let way = Direction::new(fault.from.0, fault.to.0);
        let there = self.faults.iter().map(|(id, faults)| (id, faults.flow(way)));
        let there = there.filter(|(_, flow)| *flow != Flow::Pass);
        let (same, beneath): (Vec<_>, Vec<_>) = there.partition(|(_, flow)| *flow == fault.flow);
        // The same twice ends with the later one, and one that does not end by itself is the latest.
        let ends: Option<Vec<Instant>> = same.iter().map(|(id, _)| self.timed.get(id).copied()).collect();
        let ends = ends.and_then(|ends| ends.into_iter().max());
        let left = |end: Instant| u64::try_from(end.duration_since(now).as_millis()).unwrap_or(u64::MAX);
        InForce {
            fault,
            ends_in_ms: ends.map(left),
            beneath: beneath.into_iter().map(|(_, flow)| flow).collect(),
        }
    }
}

struct Supervisor {
    lab: Arc<Lab>,
    asked: Mutex<Asked>,
    down: mpsc::Sender<oneshot::Sender<()>>,
}

impl Supervisor {
    /// One request, one reply.
    async fn converse(self: Arc<Self>, mut stream: UnixStream) {
        let (reader, mut writer) = stream.split();
        let mut request = Vec::new();
        let mut reader = BufReader::new(reader).take(MAX_LINE_BYTES);
        let read = tokio::time::timeout(REPLY_WITHIN, reader.read_until(b'\n', &mut request));
        if !matches!(read.await, Ok(Ok(1..))) {
            return;
        }
        let reply = match serde_json::from_slice(&request) {
            Ok(request) => self.serve(request).await,
            Err(error) => Err(LabError::Usage(format!("not a request: {error}"))),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Error {
            message: error.to_string(),
            exit_code: error.exit_code(),
        });
        if let Ok(line) = line(&reply) {
            let _ = writer.write_all(&line).await;
        }
    }

    async fn serve(self: &Arc<Self>, request: Request) -> Result<Reply, LabError> {
        let lab = &self.lab;
        let one = |from: NodeName, to: NodeName, flow| Faults::none().with(from.0, to.0, flow);
        let (faults, for_ms) = match request {
            Request::Hello => return Ok(Reply::Done),
            Request::Status => return Ok(Reply::Status(self.status().await)),
            Request::List => {
                let faults = self.asked.lock().await.list(Instant::now());
                let paused = lab.paused().await.into_iter().map(NodeName).collect();
                return Ok(Reply::Faults { faults, paused });
            }
            Request::Kill { node } => return lab.kill(node.0).await.map(Reply::Process),
            Request::Restart { node, empty: false } => return lab.restart(node.0).await.map(Reply::Process),
            Request::Restart { node, empty: true } => {
                let [_, started] = lab.restart_empty(node.0).await?;
                return Ok(Reply::Process(started));
            }
            Request::Pause { node } => return lab.pause(node.0).await.map(Reply::Process),
            Request::Resume { node } => return lab.resume(node.0).await.map(Reply::Process),
            Request::Down => {
                let (farewell, stopped) = oneshot::channel();
                let _ = self.down.send(farewell).await;
                let _ = stopped.await;
                return Ok(Reply::Done);
            }
            Request::Heal => {
                let mut asked = self.asked.lock().await;
                let healed = lab.heal().await?;
                asked.faults.clear();
                return Ok(Reply::Installed(healed));
            }
            Request::Partition { groups, for_ms } => {
                let names = |group: Vec<NodeName>| group.into_iter().map(|name| name.0).collect();
                let groups: Vec<Vec<_>> = groups.into_iter().map(names).collect();
                (Faults::partition(&groups), for_ms)
            }
            Request::Isolate { node, for_ms } => (Faults::isolate(node.0, &lab.nodes()), for_ms),
            Request::Cut { from, to, for_ms } => (one(from, to, Flow::Swallow), for_ms),
            Request::Flow { from, to, flow, for_ms } => (one(from, to, flow), for_ms),
            Request::Delay { from, to, ms, jitter_ms, for_ms } => {
                (one(from, to, Flow::Delay { ms, jitter_ms }), for_ms)
            }
        };
        self.add(faults, for_ms).await.map(Reply::Installed)
    }

    /// Puts faults in force beside those that are; with a time, these end by themselves.
    async fn add(self: &Arc<Self>, faults: Faults, for_ms: Option<u64>) -> Result<Installed, LabError> {
        faults.check(&self.lab.nodes())?;
        let mut asked = self.asked.lock().await;
        let (id, earlier) = asked.put(faults, for_ms.is_some())?;
        let installed = match self.lab.install(asked.together()).await {
            Ok(installed) => installed,
            Err(error) => {
                asked.faults.remove(&id);
                asked.faults.extend(earlier);
                return Err(error);
            }
        };
        if let Some(ms) = for_ms {
            let end = Instant::now() + Duration::from_millis(ms);
            asked.timed.insert(id, end);
            let supervisor = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep_until(end).await;
                let mut asked = supervisor.asked.lock().await;
                asked.timed.remove(&id);
                if asked.faults.remove(&id).is_some() {
                    // Cannot fail: every node of every fault is known.
                    let _ = supervisor.lab.install(asked.together()).await;
                }
            });
        }
        Ok(installed)
    }

    async fn status(&self) -> Status {
        let lab = &self.lab;
        let (running, (faults, since)) = (lab.running().await, lab.faults().await);
        let paused = lab.paused().await;
        let view = |node| NodeView {
            node: NodeName(node),
            client_address: lab.client_address(node),
            peer_address: lab.peer_address(node),
            up: running.contains_key(&node),
            pid: running.get(&node).copied(),
            paused: paused.contains(&node),
        };
        Status {
            pid: std::process::id(),
            dir: lab.options().dir.clone(),
            port_base: lab.options().port_base,
            nodes: lab.nodes().into_iter().map(view).collect(),
            faults: faults.list(),
            faults_for_ms: since.map(|since| since.elapsed().as_millis() as u64),
        }
    }
}

/// The lab's socket; its file goes when it goes.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn bind(dir: &Path) -> Result<Self, LabError> {
        let path = socket_path(dir)?;
        let _ = fs::remove_file(&path); // of a supervisor that was killed: it does not answer
        let bind = || {
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(LabError::system(format!("cannot listen on {}", path.display())))?;
        Ok(Self { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn socket_path(dir: &Path) -> Result<PathBuf, LabError> {
    let path = dir.join("control.sock");
    match path.as_os_str().len() > MAX_SOCKET_PATH {
        true => Err(LabError::Usage(format!(
            "{} is too long for a Unix socket: choose a shorter folder",
            path.display()
        ))),
        false => Ok(path),
    }
}

/// The process that has this starts the lab, or runs it. One that answered `Down`, or was killed, has it for
/// a moment longer and is waited for; one that serves is not.
async fn alone(dir: &Path) -> Result<fs::File, LabError> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        if let Some(lock) = try_alone(dir)? {
            return Ok(lock);
        }
        refuse_second(dir).await?;
        if Instant::now() >= deadline {
            let message =
                format!("the lab in {} is being started, or stopped, by another process", dir.display());
            return Err(LabError::Usage(message));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// None while another process has it.
fn try_alone(dir: &Path) -> Result<Option<fs::File>, LabError> {
    let refused = || LabError::system(format!("cannot lock {}", dir.display()));
    fs::create_dir_all(dir).map_err(refused())?;
    let lock = fs::File::create(dir.join("supervisor.lock")).map_err(refused())?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(refused()(error)),
    }
}

async fn refuse_second(dir: &Path) -> Result<(), LabError> {
    match ask(dir, Request::Status).await {
        Ok(Reply::Status(status)) => {
            Err(LabError::AlreadyRunning { dir: dir.to_path_buf(), pid: status.pid })
        }
        Err(LabError::NotRunning { .. }) => Ok(()),
        Ok(_) => Err(LabError::Usage(format!("{}: another program answers there", dir.display()))),
        Err(error) => Err(error),
    }
}

fn line(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::NodeId;

    #[tokio::test]
    async fn requests_and_replies_survive_the_wire() {
        let name = |text: &str| text.parse::<NodeName>().unwrap();
        let request =
            Request::Partition { groups: vec![vec![name("n1")], vec![name("n2")]], for_ms: Some(5) };
        let text = String::from_utf8(line(&request).unwrap()).unwrap();
        assert_eq!(text, "{\"request\":\"partition\",\"groups\":[[\"n1\"],[\"n2\"]],\"for_ms\":5}\n");
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let reply =
            Reply::Installed(Installed { links: 12, probes: 12, as_expected: 11, ..Installed::default() });
        assert_eq!(serde_json::from_slice::<Reply>(&line(&reply).unwrap()).unwrap(), reply);
    }

    #[tokio::test(start_paused = true)]
    async fn one_process_starts_a_lab_when_the_last_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = alone(dir.path()).await.unwrap();
        let began = Instant::now();
        assert!(matches!(alone(dir.path()).await, Err(LabError::Usage(_))));
        assert!(began.elapsed() >= GONE_WITHIN);
        let (second, ()) = tokio::join!(alone(dir.path()), async {
            tokio::time::sleep(GONE_WITHIN / 2).await;
            drop(first);
        });
        second.unwrap();
    }

    #[tokio::test]
    async fn files_of_somebody_else_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let options = LabOptions { port_base: 0, ..LabOptions::new(dir.path()) };
        check(&options).await.unwrap();
        fs::create_dir_all(dir.path().join("data/sub")).unwrap();
        let refused = check(&options).await.unwrap_err();
        assert!(refused.to_string().contains("no lab wrote"), "{refused}");
        let file = dir.path().join("cluster.toml");
        fs::write(&file, "[cluster]\n").unwrap();
        assert!(check(&options).await.is_err());
        let whole = "# Written by the lab.\n[cluster]\nid = \"1\"\n[[node]]\nclient_address = \"127.0.0.1:7301\"\n[[node]]\n";
        fs::write(&file, whole).unwrap();
        check(&options).await.unwrap();
        assert_eq!(crate::folder::kept(dir.path()), Some((2, 7_300)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_says_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let _stopped = UnixListener::bind(socket_path(dir.path()).unwrap()).unwrap();
        for request in [Request::Status, Request::Heal, Request::Down] {
            let began = Instant::now();
            let silent = ask(dir.path(), request).await.unwrap_err();
            let says = silent.to_string();
            assert!(matches!(silent, LabError::Silent { .. }) && silent.exit_code() == 3, "{says}");
            let go_on = format!("\n  try: kill -CONT {}", std::process::id());
            assert!(says.contains("does not answer within 3 s") && says.ends_with(&go_on), "{says}");
            assert!(began.elapsed() < THERE_WITHIN * 2, "{says}");
        }
    }

    #[test]
    fn faults_are_beside_one_another() {
        let [n1, n2, n3] = [1, 2, 3].map(NodeId);
        let mut asked = Asked::default();
        asked.faults.insert(0, Faults::partition(&[vec![n1], vec![n2, n3]]));
        asked.faults.insert(1, Faults::none().with(n2, n3, Flow::Slow { bytes_per_second: 1 }));
        asked.faults.insert(2, Faults::none().with(n1, n2, Flow::Delay { ms: 1, jitter_ms: 0 }));
        let together = asked.together();
        let flow = |from, to| together.flow(crate::Direction::new(from, to));
        assert_eq!(flow(n1, n2), Flow::Swallow, "what nothing passes is not merely late");
        assert_eq!(flow(n2, n3), Flow::Slow { bytes_per_second: 1 });
        assert_eq!(flow(n3, n2), Flow::Pass);
        asked.faults.remove(&0);
        assert_eq!(asked.together().list().len(), 2);
    }

    /// As `fault partition` and then the same with `--for 5s`.
    #[test]
    fn one_that_ends_by_itself_ends_no_other() {
        let [n1, n2] = [1, 2].map(NodeId);
        let cut = || Faults::partition(&[vec![n1], vec![n2]]);
        let slow = |bytes_per_second| Faults::none().with(n1, n2, Flow::Slow { bytes_per_second });
        let flow = |asked: &Asked| asked.together().flow(Direction::new(n1, n2));
        let mut asked = Asked::default();
        let (first, _) = asked.put(cut(), false).unwrap();
        let (timed, earlier) = asked.put(cut(), true).unwrap();
        assert_eq!((asked.faults.len(), earlier), (2, None));
        asked.faults.remove(&timed);
        assert!(asked.faults.contains_key(&first) && flow(&asked) == Flow::Swallow);
        // For good it takes the place of the earlier one; of another figure for a while it is beside it.
        let (second, earlier) = asked.put(cut(), false).unwrap();
        assert_eq!((asked.faults.len(), earlier), (1, Some((first, cut()))));
        asked.faults.remove(&second);
        asked.put(slow(1_000), false).unwrap();
        let (timed, _) = asked.put(slow(50), true).unwrap();
        assert_eq!(flow(&asked), Flow::Slow { bytes_per_second: 50 });
        asked.timed.insert(timed, Instant::now());
        // Nor is it replaced by one that stays.
        asked.put(slow(70), false).unwrap();
        assert_eq!((asked.faults.len(), flow(&asked)), (2, Flow::Slow { bytes_per_second: 70 }));
        asked.faults.remove(&timed);
        assert_eq!(flow(&asked), Flow::Slow { bytes_per_second: 70 });
        // At the bound one more is refused, and one that takes a place is not.
        while asked.faults.len() < MAX_FAULTS {
            asked.put(cut(), true).unwrap();
        }
        assert!(matches!(asked.put(cut(), true), Err(LabError::Usage(_))));
        asked.put(slow(80), false).unwrap();
        assert_eq!(asked.faults.len(), MAX_FAULTS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_listed_says_how_long_and_what_is_beneath() {
        let [n1, n2] = [1, 2].map(NodeId);
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let late = Flow::Delay { ms: 5, jitter_ms: 0 };
        let mut asked = Asked::default();
        asked.faults.insert(0, Faults::none().with(n1, n2, late));
        asked.faults.insert(1, Faults::partition(&[vec![n1], vec![n2]]));
        asked.faults.insert(2, Faults::partition(&[vec![n1], vec![n2]]));
        asked.timed.extend([(1, now + 9 * second), (2, now + 7 * second)]);
        let said = |asked: &Asked| {
            let list = asked.list(now + second);
            list.into_iter()
                .map(|found| (found.fault.flow, found.ends_in_ms, found.beneath))
                .collect::<Vec<_>>()
        };
        let cut = Flow::Swallow;
        assert_eq!(said(&asked), [(cut, Some(8_000), vec![late]), (cut, Some(8_000), Vec::new())]);
        asked.timed.remove(&1);
        assert_eq!(said(&asked)[0], (cut, None, vec![late]), "one of the two does not end");
        asked.faults.retain(|id, _| *id == 0);
        assert_eq!(said(&asked), [(late, None, Vec::new())]);
    }

    #[tokio::test]
    async fn no_lab_is_said_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask(dir.path(), Request::Status).await.unwrap_err();
        assert!(matches!(error, LabError::NotRunning { .. }) && error.exit_code() == 3, "{error}");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(ask(&long, Request::Status).await, Err(LabError::Usage(_))));
    }

    #[tokio::test]
    async fn a_supervisor_that_fails_to_start_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut failing = std::process::Command::new("sh");
        failing.args(["-c", "echo 'error: port 7101 is busy' >&2; exit 2"]);
        let options = LabOptions { port_base: 0, ..LabOptions::new(dir.path()) };
        let error = launch(&options, failing).await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("port 7101 is busy", 2));
    }
}

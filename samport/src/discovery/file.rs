//! `--provider file`: backends from a TOML file that is followed.
//!
//! ```toml
//! [[backend]]
//! name = "web-1"             # the address, if left out
//! address = "10.0.0.2:8080"  # without a port: the one of -p
//! weight = 2                 # 1, if left out
//! listen = 80                # or "53/udp"; every -p, if left out
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::standing::Standing;
use super::static_::Address;
use crate::allow::Networks;
use crate::health::spec::Config;
use crate::model::{Candidate, Condition, Snapshot, Wishes};
use crate::ports::{Listen, PortSpec};

/// Writers touch a file several times in a row; this long after the first touch it is read.
const SETTLE: Duration = Duration::from_millis(5);

/// What the file provider is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file.
    pub path: PathBuf,
    /// How long a backend that has left the file is still offered, as draining.
    pub drain: Duration,
    /// `--health`.
    pub health: Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    backend: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    address: FileAddress,
    weight: Option<u32>,
    listen: Option<Listen>,
}

/// Parsed while the file is read, so that an error knows its line and column.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct FileAddress(Address);

impl TryFrom<String> for FileAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: anyhow::Error| format!("{error:#}"))
    }
}

/// Reads the file, which must be good, and follows it from then on.
pub(super) async fn start(
    options: Options,
    ports: Vec<PortSpec>,
    standing: Arc<Standing>,
) -> Result<watch::Receiver<Snapshot>> {
    // Watched before it is read: a change in between is not lost.
    let (wake, touches) = mpsc::channel(1);
    let path = options.path.clone();
    // Its thread inherits from the one that starts it, and is to have no more privileges than the others.
    let watcher = spawn_blocking(move || watch_folder(&path, wake)).await??;
    let text = read(&options.path)?;
    let current = parse(&text, &ports, &options.health)
        .with_context(|| options.path.display().to_string())?;
    let (sender, receiver) = watch::channel(Snapshot { candidates: current.clone() });
    standing.synced();
    let follower = Follower {
        options,
        ports,
        text,
        unreadable: false,
        current,
        leaving: Vec::new(),
        sender,
        standing,
    };
    tokio::spawn(async move {
        follower.follow(touches).await;
        drop(watcher);
    });
    Ok(receiver)
}

/// Watches the folder, not the file: editors and deployments put a new file in the old one's place.
fn watch_folder(path: &Path, wake: mpsc::Sender<()>) -> Result<notify::RecommendedWatcher> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| changes(event.kind)) {
            // A full channel already says that there is something to read.
            let _ = wake.try_send(());
        }
    })?;
    watcher
        .watch(folder, RecursiveMode::NonRecursive)
        .with_context(|| format!("watch {} for changes", folder.display()))?;
    Ok(watcher)
}

/// Whether a file may have changed. Reading it is an event too, and would wake us forever.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn parse(text: &str, ports: &[PortSpec], health: &Config) -> Result<Vec<Candidate>> {
    let document: Document = toml::from_str(text)?;
    let mut seen = BTreeSet::new();
    let mut candidates = Vec::new();
    for entry in &document.backend {
        for spec in listens(entry, ports)? {
            let candidate = candidate(entry, spec, health);
            let endpoint = candidate.endpoint;
            if !seen.insert((spec.listen, endpoint)) {
                let port = spec.listen.brief();
                bail!("backend {endpoint} is given twice for port {port}; keep one");
            }
            candidates.push(candidate);
        }
    }
    super::sort(&mut candidates);
    Ok(candidates)
}

/// The ports of the host that a backend stands behind.
fn listens(entry: &Entry, ports: &[PortSpec]) -> Result<Vec<PortSpec>> {
    let address = entry.address.0;
    match entry.listen {
        None if ports.is_empty() => bail!("backend {address}: give -p PORT, or listen = PORT here"),
        None => Ok(ports.to_vec()),
        Some(listen) if ports.is_empty() => Ok(vec![PortSpec { listen, target: None }]),
        Some(listen) => match ports.iter().find(|spec| spec.listen == listen) {
            Some(spec) => Ok(vec![*spec]),
            None => bail!("backend {address}: no -p opens port {0}; add -p {0}", listen.brief()),
        },
    }
}

fn candidate(entry: &Entry, spec: PortSpec, health: &Config) -> Candidate {
    let address = entry.address.0;
    let name = entry.name.clone().unwrap_or_else(|| address.to_string());
    Candidate {
        id: name.clone(),
        name,
        listen: spec.listen,
        endpoint: address.endpoint(spec),
        weight: entry.weight.unwrap_or(1),
        drain: None,
        condition: health.of_listed(spec.listen.protocol),
        allow: Networks::new(),
        wishes: Wishes::default(),
        place: None,
        started: None,
    }
}

struct Follower {
    options: Options,
    ports: Vec<PortSpec>,
    /// The last text read, good or bad: what is bad is complained about once.
    text: String,
    /// Whether it could not be read the last time, which is told once too.
    unreadable: bool,
    current: Vec<Candidate>,
    /// Candidates that have left the file, and until when they are offered.
    leaving: Vec<(Candidate, Instant)>,
    sender: watch::Sender<Snapshot>,
    standing: Arc<Standing>,
}

impl Follower {
    async fn follow(mut self, mut touches: mpsc::Receiver<()>) {
        loop {
            let next_leave = self.leaving.iter().map(|(_, until)| *until).min();
            tokio::select! {
                () = self.sender.closed() => return,
                touch = touches.recv() => match touch {
                    Some(()) => {
                        sleep(SETTLE).await;
                        self.reread();
                    }
                    None => return,
                },
                () = sleep_until(next_leave.unwrap_or_else(Instant::now)), if next_leave.is_some() => {}
            }
            self.publish(Instant::now());
        }
    }

    fn reread(&mut self) {
        let text = match read(&self.options.path) {
            Ok(text) => text,
            // Between an editor's unlink and its rename there is no file for a moment: if it stays
            // away, that is no reason to take backends out of service.
            Err(error) => {
                self.standing.lost();
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::warn!("{error:#}; its backends stay as they were");
                }
                return;
            }
        };
        let is_back = std::mem::take(&mut self.unreadable);
        if text == self.text {
            if is_back {
                self.standing.synced();
            }
            return;
        }
        self.standing.happened();
        match parse(&text, &self.ports, &self.options.health) {
            Ok(candidates) => {
                self.standing.synced();
                self.replace(candidates, Instant::now());
            }
            Err(error) => {
                self.standing.lost();
                tracing::error!(
                    "{}: {}; its backends stay as they were",
                    self.options.path.display(),
                    format!("{error:#}").trim_end()
                );
            }
        }
        self.text = text;
    }

    fn replace(&mut self, candidates: Vec<Candidate>, now: Instant) {
        let until = now + self.options.drain;
        let old = std::mem::replace(&mut self.current, candidates);
        self.leaving.extend(
            old.into_iter().map(|candidate| {
                (Candidate { condition: Condition::Draining, ..candidate }, until)
            }),
        );
        let current = &self.current;
        self.leaving.retain(|(old, _)| {
            !current.iter().any(|new| (new.listen, new.endpoint) == (old.listen, old.endpoint))
        });
    }

    fn publish(&mut self, now: Instant) {
        self.leaving.retain(|(_, until)| *until > now);
        let leaving = self.leaving.iter().map(|(candidate, _)| candidate);
        let mut candidates: Vec<_> = self.current.iter().chain(leaving).cloned().collect();
        super::sort(&mut candidates);
        super::publish(&self.sender, Snapshot { candidates });
    }
}

#[cfg(test)]
mod tests;

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

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ProviderSettings;
use super::ProviderStatus;
use super::static_::Address;
use crate::model::allow::Networks;
use crate::model::check::Config;
use crate::model::ports::{Listen, PortSpec};
use crate::model::{Candidate, Egress, ServiceHints, Snapshot};
use crate::system::escape;
use crate::system::file_watch::FileWatch;
use crate::system::leaving::Leaving;
use crate::system::resyncs::Resyncs;

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
    path: PathBuf,
    ports: Vec<PortSpec>,
    terms: watch::Receiver<ProviderSettings>,
    status: Arc<ProviderStatus>,
    resyncs: &Resyncs,
) -> Result<watch::Receiver<Snapshot>> {
    // Watched before it is read: a change in between is not lost.
    let watch = FileWatch::start(&path, resyncs).await?;
    let text = read(&path)?;
    let current =
        parse(&text, &ports, &terms.borrow().health).with_context(|| path.display().to_string())?;
    let generation = terms.borrow().generation;
    let (sender, receiver) = watch::channel(Snapshot { candidates: current.clone(), generation });
    status.synced();
    let follower = Follower {
        path,
        ports,
        terms,
        text,
        unreadable: false,
        current,
        generation,
        leaving: Leaving::default(),
        sender,
        status,
    };
    tokio::spawn(follower.follow(watch));
    Ok(receiver)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
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
    let name = entry.name.as_ref().map(|name| escape::line(name).into_owned());
    let name = name.unwrap_or_else(|| address.to_string());
    Candidate {
        id: name.clone(),
        name,
        listen: spec.listen,
        endpoint: address.endpoint(spec),
        weight: entry.weight.unwrap_or(1),
        drain: None,
        condition: health.of_listed(spec.listen.protocol),
        allow: Networks::new(),
        hints: ServiceHints::default(),
        place: None,
        egress: Egress::default(),
        started: None,
    }
}

struct Follower {
    path: PathBuf,
    ports: Vec<PortSpec>,
    terms: watch::Receiver<ProviderSettings>,
    /// The last text read, good or bad: what is bad is complained about once.
    text: String,
    /// Whether it could not be read the last time, which is told once too.
    unreadable: bool,
    current: Vec<Candidate>,
    /// Which terms they are offered on.
    generation: u64,
    /// Candidates that have left the file.
    leaving: Leaving,
    sender: watch::Sender<Snapshot>,
    status: Arc<ProviderStatus>,
}

impl Follower {
    async fn follow(mut self, mut watch: FileWatch) {
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                () = watch.touched() => self.reread(),
                Ok(()) = self.terms.changed() => self.judge_anew(),
                () = self.leaving.next() => {}
            }
            self.publish(Instant::now());
        }
    }

    /// Whose health is known by something else now.
    fn judge_anew(&mut self) {
        let ProviderSettings { health, generation, .. } = self.terms.borrow_and_update().clone();
        self.generation = generation;
        for candidate in &mut self.current {
            candidate.condition = health.of_listed(candidate.listen.protocol);
        }
    }

    fn reread(&mut self) {
        let text = match read(&self.path) {
            Ok(text) => text,
            // Between an editor's unlink and its rename there is no file for a moment: if it stays
            // away, that is no reason to take backends out of service.
            Err(error) => {
                self.status.lost();
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::warn!("{error:#}; its backends stay as they were");
                }
                return;
            }
        };
        let is_back = std::mem::take(&mut self.unreadable);
        if text == self.text {
            if is_back {
                self.status.synced();
            }
            return;
        }
        self.status.happened();
        let health = self.terms.borrow().health.clone();
        match parse(&text, &self.ports, &health) {
            Ok(candidates) => {
                self.status.synced();
                self.replace(candidates, Instant::now());
            }
            Err(error) => {
                self.status.lost();
                tracing::error!(
                    "{}: {}; its backends stay as they were",
                    self.path.display(),
                    format!("{error:#}").trim_end()
                );
            }
        }
        self.text = text;
    }

    fn replace(&mut self, candidates: Vec<Candidate>, now: Instant) {
        let until = now + self.terms.borrow().drain;
        let old = std::mem::replace(&mut self.current, candidates);
        self.leaving.replace(old, &self.current, until);
    }

    fn publish(&mut self, now: Instant) {
        self.leaving.pass(now);
        let candidates = self.leaving.and(&self.current);
        super::publish(&self.sender, Snapshot { candidates, generation: self.generation });
    }
}

#[cfg(test)]
mod tests;

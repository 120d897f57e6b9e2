//! Is a new backend listening yet? A container's start says nothing about its server's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::model::{Candidate, Site};

/// Between two attempts: at first nothing a person would notice, then nothing a server would.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(1);
/// When the user is told that a backend is still silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is probed: a container that is started again under the same name and address is another.
pub type Target = (String, SocketAddr, Option<Site>);

/// The target of a candidate.
#[must_use]
pub fn target(candidate: &Candidate) -> Target {
    (candidate.id.clone(), candidate.endpoint, candidate.place)
}

/// Probes candidates until each has accepted one TCP connection.
pub struct Probes {
    running: BTreeMap<Target, JoinHandle<()>>,
    answered: BTreeSet<Target>,
    report: mpsc::UnboundedSender<Target>,
    reports: mpsc::UnboundedReceiver<Target>,
}

impl Default for Probes {
    fn default() -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        Self { running: BTreeMap::new(), answered: BTreeSet::new(), report, reports }
    }
}

impl Probes {
    /// Whether a candidate has answered; starts asking it if nobody has.
    pub fn has_answered(&mut self, candidate: &Candidate) -> bool {
        let target = target(candidate);
        if self.answered.contains(&target) {
            return true;
        }
        let report = self.report.clone();
        self.running.entry(target.clone()).or_insert_with(|| {
            tokio::spawn(async move {
                until_it_answers(&target).await;
                // The receiver lives as long as the probes do.
                let _ = report.send(target);
            })
        });
        false
    }

    /// Waits until another candidate has answered.
    pub async fn next(&mut self) {
        if let Some(target) = self.reports.recv().await {
            self.running.remove(&target);
            self.answered.insert(target);
        }
    }

    /// Forgets whatever is not among `candidates`.
    pub fn keep_only(&mut self, candidates: &[Candidate]) {
        let wanted: Vec<_> = candidates.iter().map(target).collect();
        self.answered.retain(|target| wanted.contains(target));
        self.running.retain(|target, probe| {
            let keep = wanted.contains(target);
            if !keep {
                probe.abort();
            }
            keep
        });
    }
}

async fn until_it_answers((name, endpoint, _): &Target) {
    let since = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    while !answers(*endpoint).await {
        if !told && since.elapsed() > PATIENCE {
            tracing::warn!(
                "{name} does not answer on {endpoint} yet; it gets no traffic until it does"
            );
            told = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

async fn answers(endpoint: SocketAddr) -> bool {
    matches!(tokio::time::timeout(ATTEMPT, TcpStream::connect(endpoint)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Condition;
    use crate::ports::Listen;

    fn candidate(endpoint: SocketAddr) -> Candidate {
        Candidate {
            id: "web-1".into(),
            name: "web-1".into(),
            listen: Listen::tcp(80),
            endpoint,
            weight: 1,
            drain: None,
            condition: Condition::ProbeFirst,
            allow: BTreeSet::new(),
            place: None,
            started: None,
        }
    }

    #[tokio::test]
    async fn a_server_that_comes_late_is_noticed() {
        let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = reserved.local_addr().unwrap();
        drop(reserved);
        let candidate = candidate(endpoint);
        let mut probes = Probes::default();
        assert!(!probes.has_answered(&candidate));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!probes.has_answered(&candidate));
        let _server = std::net::TcpListener::bind(endpoint).unwrap();
        probes.next().await;
        assert!(probes.has_answered(&candidate));
        probes.keep_only(&[]);
        assert!(!probes.has_answered(&candidate));
    }
}

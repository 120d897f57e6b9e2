//! Whether backends may serve: what the engine says of them, and checks of our own. A container's start
//! says nothing about its server's, and a server that has started may fail.
//!
//! A backend that starts is asked quickly until it has passed `rise` checks: it gets no traffic before.
//! From then on it is asked at the interval, and `fall` failures in a row make it unhealthy: new flows go
//! to others, its own go on, and `rise` passed checks bring it back. Checks are connections from this
//! machine straight to the backend's own address: samport neither balances nor counts them as flows. They
//! cost one connection per backend and interval.
//!
//! When connections of several clients have failed, a backend is asked once more, whether it is checked at an
//! interval or not: see [`evidence`].

mod ask;
pub mod evidence;
mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use samport_common::wire::protocol::Protocol;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use self::ask::Finding;
use self::progress::{CheckInterval, Phase, Progress};
use crate::model::check::{Check, Method, Rhythm};
use crate::model::target::{Target, target};
use crate::model::{Candidate, Condition, State};

/// When the user is told that a backend that starts is still not healthy.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The health of all candidates.
pub struct HealthChecks {
    watched: BTreeMap<Target, Watched>,
    /// What another samport has found out, until we know better.
    assumed: BTreeMap<(String, SocketAddr), Phase>,
    /// TCP backends that are not checked at an interval, but may be asked when there is evidence.
    on_evidence: BTreeSet<Target>,
    watches: u64,
    report: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
}

/// What is known of a target.
struct Watched {
    /// Tells reports about it from those of a watch before.
    number: u64,
    check: Check,
    phase: Phase,
    /// Why it is unhealthy.
    failure: Option<String>,
    /// Ends a pause between two checks.
    alarm: Arc<Notify>,
    /// None while it drains: a result would change nothing.
    task: Option<JoinHandle<()>>,
}

/// A target's phase has changed.
struct Report {
    target: Target,
    number: u64,
    phase: Phase,
    failure: Option<String>,
}

impl Default for HealthChecks {
    fn default() -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let (watched, assumed) = (BTreeMap::new(), BTreeMap::new());
        let on_evidence = BTreeSet::new();
        Self { watched, assumed, on_evidence, watches: 0, report, reports }
    }
}

impl HealthChecks {
    /// Where a candidate is in its life; starts checking it if it is to be checked.
    pub fn state(&mut self, candidate: &Candidate) -> State {
        if candidate.condition == Condition::Ready && candidate.listen.protocol == Protocol::Tcp {
            self.on_evidence.insert(target(candidate));
        } else {
            self.on_evidence.remove(&target(candidate));
        }
        match &candidate.condition {
            Condition::Ready | Condition::Unchecked => State::Active,
            Condition::Starting => State::Starting,
            Condition::Unhealthy => State::Unhealthy,
            Condition::Draining => State::Draining,
            Condition::Checked(check) => match self.watch(candidate, check) {
                Phase::Starting => State::Starting,
                Phase::Healthy => State::Active,
                Phase::Unhealthy => State::Unhealthy,
            },
        }
    }

    /// Takes a backend that serves already for healthy, or for unhealthy, until a check says otherwise.
    pub fn assume(&mut self, id: String, endpoint: SocketAddr, healthy: bool) {
        let phase = if healthy { Phase::Healthy } else { Phase::Unhealthy };
        self.assumed.insert((id, endpoint), phase);
    }

    /// Why the candidate with this id and endpoint is unhealthy, if we have found out ourselves.
    #[must_use]
    pub fn failure(&self, id: &str, endpoint: SocketAddr) -> Option<&str> {
        let of_it = |((own, at, _), _): &(&Target, &Watched)| own == id && *at == endpoint;
        self.watched.iter().find(of_it)?.1.failure.as_deref()
    }

    /// Checks whoever answers on this endpoint now, not at its interval: somebody has a reason to think
    /// that it fails.
    pub fn check_now(&self, endpoint: SocketAddr) {
        for ((_, at, _), watched) in &self.watched {
            if *at == endpoint {
                watched.alarm.notify_one();
            }
        }
    }

    /// The same for all.
    pub fn check_all_now(&self) {
        for watched in self.watched.values() {
            watched.alarm.notify_one();
        }
    }

    /// What whoever answers on this endpoint is asked when there is evidence that it fails. `None` if we may not
    /// or cannot ask.
    #[must_use]
    pub fn check_on_evidence(&self, endpoint: SocketAddr) -> Option<Check> {
        let is_checked =
            |((_, at, _), watched): &(&Target, &Watched)| *at == endpoint && watched.task.is_some();
        if let Some((_, watched)) = self.watched.iter().find(is_checked) {
            return Some(watched.check.clone());
        }
        let may_be_asked = self.on_evidence.iter().any(|(_, at, _)| *at == endpoint);
        may_be_asked.then(|| Check { method: Method::Tcp, rhythm: Rhythm::default() })
    }

    /// Waits until a candidate's state has changed, and takes in what is known of others by then.
    pub async fn changed(&mut self) {
        while let Some(report) = self.reports.recv().await {
            let mut has_changed = self.take(report);
            while let Ok(report) = self.reports.try_recv() {
                has_changed |= self.take(report);
            }
            if has_changed {
                return;
            }
        }
    }

    fn take(&mut self, report: Report) -> bool {
        let watched = self.watched.get_mut(&report.target);
        let Some(watched) = watched.filter(|watched| watched.number == report.number) else {
            return false;
        };
        watched.phase = report.phase;
        watched.failure = report.failure;
        true
    }

    /// Forgets whatever is not among `candidates`, and leaves those that drain alone.
    pub fn keep_only(&mut self, candidates: &[Candidate]) {
        let is_checked =
            |candidate: &&Candidate| matches!(candidate.condition, Condition::Checked(_));
        let wanted: BTreeSet<_> = candidates.iter().map(target).collect();
        let checked: BTreeSet<_> = candidates.iter().filter(is_checked).map(target).collect();
        self.watched.retain(|target, _| wanted.contains(target));
        self.on_evidence.retain(|target| wanted.contains(target));
        for (target, watched) in &mut self.watched {
            if !checked.contains(target) {
                watched.rest();
            }
        }
    }

    fn watch(&mut self, candidate: &Candidate, check: &Check) -> Phase {
        let (target, name) = (target(candidate), &candidate.name);
        let assumed = self.assumed.remove(&(target.0.clone(), target.1));
        let watched = self.watched.entry(target.clone()).or_insert_with(|| Watched {
            number: 0,
            check: check.clone(),
            phase: assumed.unwrap_or(Phase::Starting),
            failure: None,
            alarm: Arc::default(),
            task: None,
        });
        if watched.check != *check {
            watched.rest();
            watched.check = check.clone();
        }
        if watched.task.is_none() {
            self.watches += 1;
            watched.number = self.watches;
            let watch = Watch {
                target,
                name: name.to_owned(),
                number: watched.number,
                check: check.clone(),
                alarm: Arc::clone(&watched.alarm),
                report: self.report.clone(),
            };
            watched.task = Some(tokio::spawn(watch.follow(watched.phase)));
        }
        watched.phase
    }
}

impl Watched {
    fn rest(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.rest();
    }
}

/// The task that checks one target.
struct Watch {
    target: Target,
    /// For messages.
    name: String,
    number: u64,
    check: Check,
    alarm: Arc<Notify>,
    report: mpsc::UnboundedSender<Report>,
}

impl Watch {
    async fn follow(self, phase: Phase) {
        let (name, endpoint) = (&self.name, self.target.1);
        let rhythm = &self.check.rhythm;
        let mut progress = Progress::at(phase);
        let mut pace = CheckInterval::new();
        let mut deadline = Some(Instant::now() + TIMEOUT);
        let mut is_blind = false;
        loop {
            let failure = match ask::ask(endpoint, &self.check).await {
                Finding::Well => None,
                Finding::Failing(why) => Some(why),
                Finding::Unknown(why) => {
                    // It stays what it is.
                    if !std::mem::replace(&mut is_blind, true) {
                        tracing::warn!(
                            "{name} cannot be checked on {endpoint}: {why} (on this machine); it stays as it is"
                        );
                    }
                    self.rest(pace.pause(progress, rhythm, fastrand::f64()), &mut pace).await;
                    continue;
                }
            };
            is_blind = false;
            if progress.take(failure.is_none(), rhythm) {
                self.tell(progress.phase(), failure);
            } else if let Some(why) = failure
                && progress.phase() == Phase::Starting
                && deadline.take_if(|until| *until < Instant::now()).is_some()
            {
                tracing::warn!(
                    "{name} is not healthy on {endpoint} yet: {why}; it gets no traffic until it is"
                );
            }
            self.rest(pace.pause(progress, rhythm, fastrand::f64()), &mut pace).await;
        }
    }

    /// Waits for the next check.
    async fn rest(&self, pause: Duration, pace: &mut CheckInterval) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.alarm.notified() => pace.alarm(),
        }
    }

    fn tell(&self, phase: Phase, failure: Option<String>) {
        let fall = self.check.rhythm.fall;
        let failure =
            failure.map(|why| if fall > 1 { format!("{why} ({fall} times)") } else { why });
        let (target, number) = (self.target.clone(), self.number);
        // The receiver lives as long as the watches do.
        let _ = self.report.send(Report { target, number, phase, failure });
    }
}

#[cfg(test)]
mod tests;

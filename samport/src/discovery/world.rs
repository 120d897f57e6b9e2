//! What is known of the engine's containers: events and answers go in, questions and snapshots
//! come out. It does not touch the engine, so that every order of things can be tested.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::container::{ContainerView, Policy, offer};
use super::events::{Event, Notice, signal};
use super::labels;
use super::locate::Located;
use super::published;
use crate::model::{Candidate, Snapshot};

/// How often a container without an address is asked again, at 10 ms, 20 ms, …: 630 ms in all.
const ADDRESS_TRIES: u32 = 6;
const FIRST_TRY: Duration = Duration::from_millis(10);
/// When a question that failed is asked again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Something to be done by whoever holds the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Task {
    /// Inspect the container after a delay, and hand back an [`Answer`].
    Inspect { question: Question, delay: Duration },
    /// Call [`World::drain_is_over`] when the time to drain has passed: the container's own, or the run's.
    AwaitDrain { id: String, number: u64, drain: Option<Duration> },
}

/// A question that is under way. Only the answer to the newest one about a container counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question {
    pub(super) id: String,
    number: u64,
    /// How many of its kind were in vain.
    tries: u32,
}

/// What came of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) outcome: Outcome,
}

/// The engine's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Found(Box<ContainerView>, Located),
    /// There is no such container.
    Gone,
    /// No answer that could be used; why, in words.
    Failed(String),
}

#[derive(Default)]
struct Container {
    /// Number of the newest question.
    asked: u64,
    /// Whether any question has been answered, well or not.
    answered: bool,
    view: Option<ContainerView>,
    located: Located,
    started: Option<SystemTime>,
    /// Number of the stop signal that it is draining for.
    stopping: Option<u64>,
    /// Whether it has had the time to drain: if it still runs, it is not stopping after all.
    drained: bool,
}

/// All containers that run, or may run: those not meant to be served too, because a rename or a
/// new network may change that.
pub(super) struct World {
    policy: Arc<Policy>,
    containers: BTreeMap<String, Container>,
    numbers: u64,
    /// The sentences the user has been told, by container.
    told: BTreeMap<String, HashSet<String>>,
}

impl World {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        Self { policy, containers: BTreeMap::new(), numbers: 0, told: BTreeMap::new() }
    }

    /// Judges containers by another policy from now on. Where one is was asked only if it was offered: who is
    /// newly offered, or in another network, is asked first.
    pub(super) fn go_by(&mut self, policy: Arc<Policy>) -> Vec<Task> {
        let old = std::mem::replace(&mut self.policy, policy);
        let mut ask = Vec::new();
        for (id, container) in &mut self.containers {
            let network = |policy: &Policy| {
                let offer = offer(container.view.as_ref()?, policy).ok()?;
                (!offer.candidates.is_empty()).then_some(offer.network)
            };
            let (was, is) = (network(&old), network(&self.policy));
            if is.is_none() || was != is {
                ask.push(id.clone());
            }
            if is.is_some() && was != is {
                container.view = None;
            }
        }
        ask.into_iter().map(|id| self.ask(id)).collect()
    }

    /// Whether a container runs, as far as is known.
    pub(super) fn runs(&self, id: &str) -> bool {
        self.containers.contains_key(id)
    }

    /// Takes over the list of running containers. Those that are missing from it are gone; the
    /// others stay as they are until they are answered.
    pub(super) fn listed(&mut self, running: Vec<String>) -> Vec<Task> {
        let listed: HashSet<_> = running.iter().collect();
        self.containers.retain(|id, _| listed.contains(id));
        running.into_iter().map(|id| self.ask(id)).collect()
    }

    /// Takes in an event.
    pub(super) fn happened(&mut self, notice: Notice) -> Option<Task> {
        let Notice { id, at, event } = notice;
        if event == Event::Started {
            // A new run: nothing known of the one before holds, and its address may be another's.
            let container = Container { started: at, ..Container::default() };
            self.containers.insert(id.clone(), container);
            return Some(self.ask(id));
        }
        if matches!(event, Event::Died | Event::Removed) {
            self.containers.remove(&id);
            if event == Event::Removed {
                self.told.remove(&id);
            }
            return None;
        }
        let container = self.containers.get_mut(&id)?;
        if let Event::Signalled(number) = event {
            return stops(container.view.as_ref(), number).then(|| self.stopping(id));
        }
        if let Event::LeftNetwork(name) = &event
            && container.is_served_in(name, &self.policy)
        {
            // Its address may be another container's at once.
            container.view = None;
        }
        // What the event itself says is taken at once; the question brings the rest.
        if let Some(view) = container.view.as_mut() {
            match event {
                Event::Paused(paused) => view.paused = paused,
                Event::HealthChanged(Some(health)) => view.health = Some(health),
                _ => {}
            }
        }
        Some(self.ask(id))
    }

    /// Takes in the answer to a question.
    pub(super) fn answered(&mut self, answer: Answer) -> Option<Task> {
        let Answer { question, outcome } = answer;
        let container = self.containers.get_mut(&question.id)?;
        if container.asked != question.number {
            return None;
        }
        container.answered = true;
        match outcome {
            Outcome::Found(view, located) if view.running => {
                container.learn(*view, located);
                self.warn_of_published(&question.id);
                self.judge(question)
            }
            Outcome::Found(..) | Outcome::Gone => {
                self.containers.remove(&question.id);
                None
            }
            Outcome::Failed(why) => {
                let sentence = format!("container {:.12} cannot be inspected: {why}", question.id);
                self.tell(&question.id, &sentence);
                Some(Task::Inspect { question, delay: AFTER_FAILURE })
            }
        }
    }

    /// A stop signal was sent, and the time to drain has passed: has it stopped?
    pub(super) fn drain_is_over(&mut self, id: String, number: u64) -> Option<Task> {
        let container = self.containers.get_mut(&id)?;
        if container.stopping != Some(number) {
            return None;
        }
        container.drained = true;
        Some(self.ask(id))
    }

    /// Whether every container has been answered at least once.
    pub(super) fn is_settled(&self) -> bool {
        self.containers.values().all(|container| container.answered)
    }

    /// What is offered now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut candidates: Vec<Candidate> = Vec::new();
        for container in self.containers.values() {
            let Some(offer) = container.view.as_ref().and_then(|v| offer(v, &self.policy).ok())
            else {
                continue;
            };
            let (located, started) = (container.located, container.started);
            candidates.extend(offer.candidates.into_iter().filter_map(|c| {
                let endpoint = located.endpoint(c.endpoint)?;
                Some(Candidate { endpoint, place: located.site, started, ..c })
            }));
        }
        super::sort(&mut candidates);
        Snapshot { candidates }
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn ask(&mut self, id: String) -> Task {
        let number = self.next_number();
        self.containers.entry(id.clone()).or_default().asked = number;
        let question = Question { id, number, tries: 0 };
        Task::Inspect { question, delay: Duration::ZERO }
    }

    fn stopping(&mut self, id: String) -> Task {
        let number = self.next_number();
        let container = self.containers.entry(id.clone()).or_default();
        container.stopping = Some(number);
        container.drained = false;
        let mut drain = None;
        if let Some(view) = container.view.as_mut() {
            view.stopping = true;
            drain = labels::drain(&view.labels);
        }
        Task::AwaitDrain { id, number, drain }
    }

    /// Tells the user what keeps a container out, and asks again if that may pass by itself.
    fn judge(&mut self, mut question: Question) -> Option<Task> {
        let view = self.containers.get(&question.id)?.view.as_ref()?;
        match offer(view, &self.policy) {
            Ok(offer) => {
                for warning in offer.warnings {
                    self.tell(&question.id, &warning);
                }
                None
            }
            Err(rejection) if rejection.passing && question.tries < ADDRESS_TRIES => {
                let delay = FIRST_TRY * 2u32.pow(question.tries);
                question.tries += 1;
                Some(Task::Inspect { question, delay })
            }
            Err(rejection) => {
                self.tell(&question.id, &rejection.to_string());
                None
            }
        }
    }

    /// Tells the user of ports that a container publishes although they are served. Of ports that only
    /// labels name, whoever was there before us had them first.
    fn warn_of_published(&mut self, id: &str) {
        let Some(Container { view: Some(view), started, .. }) = self.containers.get(id) else {
            return;
        };
        if view.published.is_empty() {
            return;
        }
        let mut served: Vec<_> = self.policy.ports.iter().map(|spec| spec.listen).collect();
        if started.is_some() {
            served.extend(self.snapshot().candidates.iter().map(|candidate| candidate.listen));
        }
        for warning in published::warnings(&view.name, view.published.iter(), &served) {
            self.tell(id, &warning);
        }
    }

    fn tell(&mut self, id: &str, sentence: &str) {
        if self.told.entry(id.to_owned()).or_default().insert(sentence.to_owned()) {
            tracing::warn!("{sentence}");
        }
    }
}

impl Container {
    fn is_served_in(&self, network: &str, policy: &Policy) -> bool {
        let Some(view) = &self.view else { return false };
        offer(view, policy).is_ok_and(|offer| view.networks.get(network) == Some(&offer.network))
    }

    fn learn(&mut self, mut view: ContainerView, located: Located) {
        let known = self.view.as_ref();
        if known.is_some_and(|known| known.started_at != view.started_at) {
            // It was started again while nobody told us.
            self.started = None;
            self.stopping = None;
        }
        if self.drained {
            self.stopping = None;
        }
        view.stopping = self.stopping.is_some();
        self.view = Some(view);
        self.located = located;
    }
}

/// Whether a signal is one that stops this container: not those by which it is told to read its
/// configuration again.
fn stops(view: Option<&ContainerView>, number: i32) -> bool {
    let own = view.and_then(|view| view.stop_signal.as_deref()).and_then(signal);
    number == libc::SIGKILL || number == own.unwrap_or(libc::SIGTERM)
}

#[cfg(test)]
mod tests;

//! What is known of the engine's containers: events and answers go in, questions and snapshots
//! come out. It does not touch the engine, so that every order of things can be tested.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::container::{ContainerView, Offer, Policy, Rejection, ServedIn, offer};
use super::events::{Event, Notice, signal};
use super::labels;
use super::locate::Located;
use super::published;
use crate::model::Candidate;
use crate::system::escape;

/// How often a container without an address is asked again, at 10 ms, 20 ms, …: 630 ms in all.
const ADDRESS_TRIES: u32 = 6;
const FIRST_TRY: Duration = Duration::from_millis(10);
/// When a question that failed is asked again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Answers about a container that are out of date when they come, before one is taken in all the same: something
/// happens to it all the time.
const STALE_ANSWERS: u32 = 3;

/// Something to be done by whoever holds the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Task {
    /// Inspect the container, and hand back an [`InspectResult`]. One at a time for a container.
    Inspect(Question),
    /// Call [`ContainerStore::ask_again`] after a delay.
    AskAgain { question: Question, delay: Duration },
    /// Call [`ContainerStore::drain_is_over`] when the time to drain has passed: the container's own, or the run's.
    AwaitDrain { id: String, number: u64, drain: Option<Duration> },
}

/// A question about a container. Only the answer to the newest one counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question {
    pub(super) id: String,
    /// Where the container is served so far.
    pub(super) served: Option<ServedIn>,
    number: u64,
    /// How many of its kind have failed.
    tries: u32,
}

/// What came of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct InspectResult {
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

/// A container in the engine's list of those that run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Listed {
    pub(super) id: String,
    /// What the list says of it, as far as it matters: who has other marks than the last time is asked about.
    pub(super) marks: String,
}

#[derive(Default)]
struct Container {
    /// Number of the newest question.
    asked: u64,
    /// Answers to questions before this one are about another run of it, or another network.
    not_before: u64,
    /// Answers in a row that were out of date when they came.
    stale: u32,
    /// What the engine's list has said of it.
    marks: Option<String>,
    /// Whether any question has been answered, well or not.
    answered: bool,
    /// Whether it is to be asked about before it can be judged by the policy.
    unjudged: bool,
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
pub(super) struct ContainerStore {
    policy: Arc<Policy>,
    containers: BTreeMap<String, Container>,
    /// Where containers are served, or were before they stopped.
    served: BTreeMap<String, ServedIn>,
    /// Containers that are being inspected, whatever has become of them meanwhile.
    asked: HashSet<String>,
    /// Containers of which it is waited for that they have had the time to drain.
    awaited: HashSet<String>,
    numbers: u64,
    /// The sentences the user has been told, by container.
    told: BTreeMap<String, HashSet<String>>,
}

impl ContainerStore {
    /// A world without containers; `served` is where the samport before has served some.
    pub(super) fn new(policy: Arc<Policy>, served: BTreeMap<String, ServedIn>) -> Self {
        let (containers, told) = (BTreeMap::new(), BTreeMap::new());
        let (asked, awaited) = (HashSet::new(), HashSet::new());
        Self { policy, containers, served, asked, awaited, numbers: 0, told }
    }

    /// Judges containers by another policy from now on. Where one is was asked only if it was offered: who is
    /// newly offered, or in another network, is asked first.
    pub(super) fn go_by(&mut self, policy: Arc<Policy>) -> Vec<Task> {
        let old = std::mem::replace(&mut self.policy, policy);
        let mut ask = Vec::new();
        for (id, container) in &mut self.containers {
            let served = self.served.get(id);
            let network = |policy: &Policy| {
                let offer = offer(container.view.as_ref()?, policy, served).ok()?;
                (!offer.candidates.is_empty()).then_some(offer.network)
            };
            let (was, is) = (network(&old), network(&self.policy));
            if is.is_none() || was != is {
                ask.push(id.clone());
            }
            if is.is_some() && was != is {
                container.view = None;
            }
            if is.is_none() || was != is {
                (container.unjudged, container.not_before) = (true, self.numbers + 1);
            }
        }
        ask.into_iter().filter_map(|id| self.ask(id)).collect()
    }

    /// Whether a container runs, as far as is known.
    pub(super) fn runs(&self, id: &str) -> bool {
        self.containers.contains_key(id)
    }

    /// The number of the newest question: what is listed from now on was asked for after it.
    pub(super) const fn now(&self) -> u64 {
        self.numbers
    }

    /// Takes over the list of running containers that was asked for at `since`. Those that are missing from it are
    /// gone, unless something has happened to them after that; the others stay as they are until they are answered.
    /// All are asked about if anything may have been missed, otherwise those of whom the list says something new.
    pub(super) fn listed(&mut self, running: Vec<Listed>, since: u64, all: bool) -> Vec<Task> {
        let listed: HashSet<_> = running.iter().map(|one| &one.id).collect();
        self.containers.retain(|id, container| listed.contains(id) || container.asked > since);
        let mut tasks = Vec::new();
        for Listed { id, marks } in running {
            let marks = Some(marks);
            let is_known =
                self.containers.get(&id).is_some_and(|container| container.marks == marks);
            if !is_known || all {
                tasks.extend(self.ask(id.clone()));
            }
            self.containers.entry(id).or_default().marks = marks;
        }
        tasks
    }

    /// Takes in an event.
    pub(super) fn happened(&mut self, notice: Notice) -> Option<Task> {
        let Notice { id, at, event } = notice;
        if event == Event::Started {
            // A new run: nothing known of the one before holds, and its address may be another's.
            let not_before = self.numbers + 1;
            let container = Container { started: at, not_before, ..Container::default() };
            self.containers.insert(id.clone(), container);
            return self.ask(id);
        }
        if matches!(event, Event::Died | Event::Removed) {
            self.containers.remove(&id);
            if event == Event::Removed {
                self.told.remove(&id);
                self.served.remove(&id);
            }
            return None;
        }
        let container = self.containers.get_mut(&id)?;
        if let Event::Signalled(number) = event {
            return stops(container.view.as_ref(), number).then(|| self.stopping(id))?;
        }
        if let Event::LeftNetwork(name) = &event
            && container.is_served_in(name, &self.policy, self.served.get(&id))
        {
            // Its address may be another container's immediately.
            container.view = None;
            container.not_before = self.numbers + 1;
        }
        // What the event itself says is taken immediately; the question brings the rest.
        if let Some(view) = container.view.as_mut() {
            match event {
                Event::Paused(paused) => view.paused = paused,
                Event::HealthChanged(Some(health)) => view.health = Some(health),
                _ => {}
            }
        }
        self.ask(id)
    }

    /// Takes in the answer to a question.
    pub(super) fn answered(&mut self, answer: InspectResult) -> Option<Task> {
        let InspectResult { question, outcome } = answer;
        self.asked.remove(&question.id);
        let container = self.containers.get_mut(&question.id)?;
        if container.asked == question.number {
            container.stale = 0;
            return self.take_in(question, outcome);
        }
        container.stale += 1;
        let id = question.id.clone();
        if question.number >= container.not_before && container.stale >= STALE_ANSWERS {
            container.stale = 0;
            // It is asked about again in any case.
            let _ = self.take_in(question, outcome);
        }
        self.containers.contains_key(&id).then(|| self.ask(id))?
    }

    /// A question is to be asked again that was not answered well, unless there is a newer one.
    pub(super) fn ask_again(&mut self, question: Question) -> Option<Task> {
        let container = self.containers.get(&question.id)?;
        let is_newest = container.asked == question.number;
        (is_newest && self.asked.insert(question.id.clone())).then_some(Task::Inspect(question))
    }

    fn take_in(&mut self, question: Question, outcome: Outcome) -> Option<Task> {
        let container = self.containers.get_mut(&question.id)?;
        (container.answered, container.unjudged) = (true, false);
        match outcome {
            Outcome::Found(view, located) if view.running => {
                container.learn(*view, located);
                self.remember_network(&question.id);
                self.warn_of_published(&question.id);
                self.classify(question)
            }
            Outcome::Found(..) | Outcome::Gone => {
                self.containers.remove(&question.id);
                None
            }
            Outcome::Failed(why) => {
                let sentence = format!("container {:.12} cannot be inspected: {why}", question.id);
                self.tell(&question.id, &sentence);
                Some(Task::AskAgain { question, delay: AFTER_FAILURE })
            }
        }
    }

    /// A stop signal was sent, and the time to drain has passed: has it stopped?
    pub(super) fn drain_is_over(&mut self, id: String, number: u64) -> Option<Task> {
        self.awaited.remove(&id);
        let container = self.containers.get_mut(&id)?;
        match container.stopping? {
            newest if newest == number => {
                container.drained = true;
                self.ask(id)
            }
            // It was sent another one meanwhile.
            newest => self.await_drain(id, newest),
        }
    }

    /// Whether every container has been answered at least once.
    pub(super) fn is_settled(&self) -> bool {
        self.containers.values().all(|container| container.answered)
    }

    /// Whether what is offered is what the policy says of every container.
    pub(super) fn is_judged(&self) -> bool {
        self.containers.values().all(|container| !container.unjudged)
    }

    /// What is offered now.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (id, container) in &self.containers {
            let Some(Ok(offer)) = self.offer_of(id) else { continue };
            candidates.extend(located(offer, &container.located, container.started));
        }
        super::sort(&mut candidates);
        candidates
    }

    /// What a container offers, if it is known well enough.
    fn offer_of(&self, id: &str) -> Option<Result<Offer, Rejection>> {
        let view = self.containers.get(id)?.view.as_ref()?;
        Some(offer(view, &self.policy, self.served.get(id)))
    }

    /// Where a container is served now it is served as long as it can be.
    fn remember_network(&mut self, id: &str) {
        let Some(Ok(offer)) = self.offer_of(id) else { return };
        if offer.candidates.is_empty() || offer.network_name.is_none() {
            return;
        }
        let addresses = offer.network.addresses().collect();
        self.served.insert(id.to_owned(), ServedIn { network: offer.network_name, addresses });
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Asks about a container; if it is being inspected already, after that.
    fn ask(&mut self, id: String) -> Option<Task> {
        let number = self.next_number();
        self.containers.entry(id.clone()).or_default().asked = number;
        if !self.asked.insert(id.clone()) {
            return None;
        }
        let served = self.served.get(&id).cloned();
        Some(Task::Inspect(Question { id, served, number, tries: 0 }))
    }

    fn stopping(&mut self, id: String) -> Option<Task> {
        let number = self.next_number();
        let container = self.containers.entry(id.clone()).or_default();
        container.stopping = Some(number);
        container.drained = false;
        if let Some(view) = container.view.as_mut() {
            view.stopping = true;
        }
        self.await_drain(id, number)
    }

    /// Waits for the end of a container's time to drain, once for all of its signals.
    fn await_drain(&mut self, id: String, number: u64) -> Option<Task> {
        if !self.awaited.insert(id.clone()) {
            return None;
        }
        let view = self.containers.get(&id).and_then(|container| container.view.as_ref());
        let drain = view.and_then(|view| labels::drain(&view.labels));
        Some(Task::AwaitDrain { id, number, drain })
    }

    /// Tells the user what keeps a container out, and asks again if that may pass by itself.
    fn classify(&mut self, mut question: Question) -> Option<Task> {
        match self.offer_of(&question.id)? {
            Ok(offer) => {
                for warning in offer.warnings {
                    self.tell(&question.id, &warning);
                }
                None
            }
            Err(rejection) if rejection.passing && question.tries < ADDRESS_TRIES => {
                let delay = FIRST_TRY * 2u32.pow(question.tries);
                question.tries += 1;
                Some(Task::AskAgain { question, delay })
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
            served.extend(self.candidates().iter().map(|candidate| candidate.listen));
        }
        for warning in published::warnings(&view.name, view.published.iter(), &served) {
            self.tell(id, &warning);
        }
    }

    fn tell(&mut self, id: &str, sentence: &str) {
        if self.told.entry(id.to_owned()).or_default().insert(sentence.to_owned()) {
            tracing::warn!("{}", escape::line(sentence));
        }
    }
}

impl Container {
    fn is_served_in(&self, network: &str, policy: &Policy, served: Option<&ServedIn>) -> bool {
        let Some(view) = &self.view else { return false };
        offer(view, policy, served)
            .is_ok_and(|offer| offer.network_name.as_deref() == Some(network))
    }

    fn learn(&mut self, mut view: ContainerView, located: Located) {
        let known = self.view.as_ref();
        if known.is_some_and(|known| known.started_at != view.started_at) {
            // It was started again without an event.
            self.started = None;
            self.stopping = None;
            self.drained = false;
        }
        if self.drained && self.stopping.take().is_some() {
            tracing::warn!(
                "{} was sent its stop signal and still runs after the time to drain: it serves again",
                view.name
            );
        }
        view.stopping = self.stopping.is_some();
        self.view = Some(view);
        self.located = located;
    }
}

/// What is offered, where it is to be found.
pub(super) fn located(
    offer: Offer,
    at: &Located,
    started: Option<SystemTime>,
) -> impl Iterator<Item = Candidate> {
    offer.candidates.into_iter().filter_map(move |candidate| {
        let endpoint = at.endpoint(candidate.endpoint)?;
        let egress = at.egress_of(endpoint);
        Some(Candidate { endpoint, place: at.reach, egress, started, ..candidate })
    })
}

/// Whether a signal is one that stops this container: not those by which it is told to read its
/// configuration again.
fn stops(view: Option<&ContainerView>, number: i32) -> bool {
    let own = view.and_then(|view| view.stop_signal.as_deref()).and_then(signal);
    number == libc::SIGKILL || number == own.unwrap_or(libc::SIGTERM)
}

#[cfg(test)]
mod tests;

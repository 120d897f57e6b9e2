//! `--provider docker` and `--provider podman`: follows the containers of an engine that speaks Docker's
//! API.
//!
//! Events are subscribed to before containers are listed, so that nothing falls in between. Each
//! container is then inspected in a separate task; `ContainerStore` puts answers and events in order.
//!
//! An engine drops events without a word when they are not read in time, so containers are listed again at an interval
//! too, and after everything by which something may have been missed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerSummary, EventMessage};
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptions,
};
use futures_util::StreamExt as _;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ProviderSettings;
use super::ProviderStatus;
use super::container::{ContainerView, Policy, ServedIn, offer};
use super::container_store::{ContainerStore, InspectResult, Outcome, Question, Task};
use super::endpoint::{Endpoint, Engine, Unreachable, words};
use super::events::{self, Notice};
use super::inspect;
use super::listing::{Listing, listed};
use super::locate::{self, Located};
use super::published;
use crate::model::Snapshot;
use crate::model::ports::PortSpec;
use crate::system::leaving::Leaving;
use crate::system::resyncs::{Gap, Resyncs};

/// Longest wait for the answers that open a session.
const OPENING: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Inspections at one time: each has its own connection.
const INSPECTIONS: usize = 32;
/// Events that wait for us. If there are more, all containers are listed again instead.
const WAITING: usize = 4_096;
/// Events that are acted on at a time.
const BATCH: usize = 512;

/// What the provider is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whose containers.
    pub engine: Engine,
    /// `--endpoint`, as given.
    pub endpoint: Option<String>,
}

/// Where the engine is.
pub(super) fn endpoint(options: &Options) -> Result<Endpoint> {
    let variable = std::env::var(options.engine.variable()).ok();
    Endpoint::find(options.engine, options.endpoint.as_deref(), variable.as_deref())
}

/// What the background tasks tell the watcher. There is one inspection at a time of a container, and one list: so
/// much may wait.
enum Message {
    /// The containers that run, of a list that was asked for at `since`.
    Listed {
        session: u64,
        since: u64,
        running: Result<Vec<ContainerSummary>, Error>,
    },
    AskAgain(Question),
    /// The event stream of this session is over; why, in words.
    Lost {
        session: u64,
        why: String,
    },
    Answer(InspectResult),
    DrainIsOver {
        id: String,
        number: u64,
    },
}

type Inbox = mpsc::UnboundedSender<Message>;

/// Starts to follow the engine, and returns when every running container has been looked at.
pub(super) async fn start(
    options: Options,
    ports: Vec<PortSpec>,
    terms: watch::Receiver<ProviderSettings>,
    status: Arc<ProviderStatus>,
    served: BTreeMap<String, ServedIn>,
    resyncs: Resyncs,
) -> Result<watch::Receiver<Snapshot>> {
    let engine = options.engine;
    let endpoint = endpoint(&options)?;
    let policy = Arc::new(policy(ports, &terms.borrow()));
    let generation = terms.borrow().generation;
    let (inbox, messages) = mpsc::unbounded_channel();
    let (told, notices) = mpsc::channel(WAITING);
    let told = NoticeSender { notices: told, is_full: Arc::default(), status: Arc::clone(&status) };
    let (snapshots, receiver) = watch::channel(Snapshot::default());
    let opened = Session::open(&endpoint, 1, &inbox, &told).await;
    let (session, running) = opened.map_err(|error| Unreachable::new(engine, &endpoint, &error))?;
    published::refuse(&policy.ports, &running)?;
    let mut watcher = Watcher {
        engine,
        endpoint,
        terms,
        taken: generation,
        in_force: generation,
        leaving: Leaving::default(),
        store: ContainerStore::new(Arc::clone(&policy), served),
        policy,
        session,
        retry: FIRST_RETRY,
        inspections: Arc::new(Semaphore::new(INSPECTIONS)),
        inbox,
        messages,
        told,
        notices,
        listing: Listing::default(),
        snapshots,
        status,
        pauses: resyncs.pauses(),
        resyncs,
    };
    watcher.adopt(running);
    while !watcher.store.is_settled() {
        watcher.step().await;
    }
    watcher.publish();
    tokio::spawn(watcher.follow());
    Ok(receiver)
}

/// One connection to the engine, from the subscription to events to their end.
struct Session {
    number: u64,
    client: Docker,
    opened: Instant,
    events: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.events.abort();
    }
}

impl Session {
    /// Connects, subscribes, and lists the running containers.
    async fn open(
        endpoint: &Endpoint,
        number: u64,
        inbox: &Inbox,
        told: &NoticeSender,
    ) -> Result<(Self, Vec<ContainerSummary>), Error> {
        let client = endpoint.client()?;
        in_time(client.ping()).await?;
        let events = tokio::spawn(forward(client.clone(), number, inbox.clone(), told.clone()));
        let session = Self { number, client, opened: Instant::now(), events };
        let listed = in_time(session.client.list_containers(None::<ListContainersOptions>)).await?;
        Ok((session, listed))
    }
}

pub(super) async fn in_time<T>(
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(OPENING, question).await.unwrap_or(Err(Error::RequestTimeoutError))
}

/// Where events go.
#[derive(Clone)]
struct NoticeSender {
    notices: mpsc::Sender<Notice>,
    /// Whether there was no room for one.
    is_full: Arc<AtomicBool>,
    status: Arc<ProviderStatus>,
}

impl NoticeSender {
    /// Hands an event on. The stream is read on in any case: the engine drops what is not read, and does not say so.
    fn hand_on(&self, event: EventMessage) {
        self.status.happened();
        let notice = events::read(event);
        tracing::trace!(?notice, "event");
        if let Some(Err(TrySendError::Full(_))) = notice.map(|notice| self.notices.try_send(notice))
        {
            self.is_full.store(true, Relaxed);
        }
    }
}

/// Hands on all events from now until the stream ends.
async fn forward(client: Docker, session: u64, inbox: Inbox, told: NoticeSender) {
    // The engine answers before it has subscribed us; with `since` it also sends what happened
    // meanwhile.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let kinds = HashMap::from([("type", vec!["container", "network"])]);
    let options = EventsOptionsBuilder::new().since(&since).filters(&kinds).build();
    let mut stream = client.events(Some(options));
    let why = loop {
        match stream.next().await {
            Some(Ok(event)) => told.hand_on(event),
            Some(Err(error)) => break words(&error),
            None => break "it closed the stream of events".to_owned(),
        }
    };
    // It is not received only if the watcher is gone.
    let _ = inbox.send(Message::Lost { session, why });
}

/// What containers are judged by.
fn policy(ports: Vec<PortSpec>, terms: &ProviderSettings) -> Policy {
    let ProviderSettings { filters, health, label_ports, .. } = terms.clone();
    Policy { ports, filters, health, label_ports }
}

struct Watcher {
    engine: Engine,
    endpoint: Endpoint,
    terms: watch::Receiver<ProviderSettings>,
    /// The generation of the newest terms that were taken.
    taken: u64,
    /// The one that every container is offered on.
    in_force: u64,
    /// Candidates that are meant no longer, on the terms that hold now.
    leaving: Leaving,
    policy: Arc<Policy>,
    store: ContainerStore,
    session: Session,
    /// How long to wait before the next session.
    retry: Duration,
    inspections: Arc<Semaphore>,
    inbox: Inbox,
    messages: mpsc::UnboundedReceiver<Message>,
    told: NoticeSender,
    notices: mpsc::Receiver<Notice>,
    listing: Listing,
    snapshots: watch::Sender<Snapshot>,
    status: Arc<ProviderStatus>,
    pauses: watch::Receiver<u64>,
    resyncs: Resyncs,
}

impl Watcher {
    async fn follow(mut self) {
        let snapshots = self.snapshots.clone();
        tokio::select! {
            () = snapshots.closed() => {}
            () = async {
                loop {
                    self.step().await;
                    self.publish();
                }
            } => {}
        }
    }

    /// Waits for something to happen and acts on it.
    async fn step(&mut self) {
        let mut batch = Vec::new();
        tokio::select! {
            // We hold senders ourselves: there is always another message.
            Some(message) = self.messages.recv() => self.take(message).await,
            _ = self.notices.recv_many(&mut batch, BATCH) => {
                for notice in batch {
                    let task = self.store.happened(notice);
                    self.carry_out(task);
                }
            }
            Ok(()) = self.terms.changed() => self.take_terms(),
            () = self.leaving.next() => {}
            () = sleep_until(self.listing.due), if !self.listing.is_running => self.list(false),
            Ok(()) = self.pauses.changed() => self.list(true),
        }
        if self.told.is_full.swap(false, Relaxed) {
            let name = self.engine.name();
            tracing::debug!(
                "more events of {name} than room for them; all containers are listed again"
            );
            self.resyncs.count(Gap::Engine);
            self.list(true);
        }
        self.leaving.pass(Instant::now());
        let store = &self.store;
        self.leaving.keep_only(|candidate| store.runs(&candidate.id));
        if self.store.is_judged() {
            self.in_force = self.taken;
        }
    }

    /// Whom the new terms do not mean any more drains.
    fn take_terms(&mut self) {
        let terms = self.terms.borrow_and_update().clone();
        self.taken = terms.generation;
        let policy = Arc::new(policy(self.policy.ports.clone(), &terms));
        if policy == self.policy {
            return;
        }
        self.policy = Arc::clone(&policy);
        let before = self.store.candidates();
        let tasks = self.store.go_by(policy);
        self.carry_out(tasks);
        let after = self.store.candidates();
        self.leaving.replace(before, &after, Instant::now() + terms.drain);
    }

    async fn take(&mut self, message: Message) {
        let task = match message {
            Message::Answer(answer) => self.store.answered(answer),
            Message::AskAgain(question) => self.store.ask_again(question),
            Message::Listed { session, since, running } => {
                if session == self.session.number {
                    self.take_list(since, running).await;
                }
                None
            }
            Message::DrainIsOver { id, number } => self.store.drain_is_over(id, number),
            Message::Lost { session, why } if session == self.session.number => {
                self.reconnect(&why).await;
                None
            }
            Message::Lost { .. } => None,
        };
        self.carry_out(task);
    }

    /// Takes in the events that have been told of.
    fn take_waiting(&mut self) {
        for _ in 0..WAITING {
            let Ok(notice) = self.notices.try_recv() else { return };
            let task = self.store.happened(notice);
            self.carry_out(task);
        }
    }

    /// Has the containers listed again; as soon as the list that is under way is there, if there is one.
    fn list(&mut self, after_gap: bool) {
        if self.listing.is_running {
            self.listing.again |= after_gap;
            return;
        }
        self.listing = Listing { is_running: true, after_gap, ..Listing::default() };
        let (client, inbox) = (self.session.client.clone(), self.inbox.clone());
        let (session, since) = (self.session.number, self.store.now());
        tokio::spawn(async move {
            let running = in_time(client.list_containers(None::<ListContainersOptions>)).await;
            // It is not received only if the watcher is gone.
            let _ = inbox.send(Message::Listed { session, since, running });
        });
    }

    async fn take_list(&mut self, since: u64, running: Result<Vec<ContainerSummary>, Error>) {
        let Listing { after_gap, again, .. } = std::mem::take(&mut self.listing);
        match running {
            Ok(running) => {
                self.status.synced();
                // Some of them have happened before it was made.
                self.take_waiting();
                let tasks = self.store.listed(listed(running), since, after_gap);
                self.carry_out(tasks);
                if again {
                    self.list(true);
                }
            }
            // Its events may have gone silent without an end: from a machine that is away, or a process that hangs.
            Err(error) => self.reconnect(&words(&error)).await,
        }
    }

    fn publish(&self) {
        let candidates = self.leaving.and(&self.store.candidates());
        super::publish(&self.snapshots, Snapshot { candidates, generation: self.in_force });
    }

    /// Takes over the list of a new session.
    fn adopt(&mut self, running: Vec<ContainerSummary>) {
        self.status.synced();
        self.listing = Listing::default();
        let since = self.store.now();
        let tasks = self.store.listed(listed(running), since, true);
        self.carry_out(tasks);
    }

    /// Opens new sessions until one holds. What is offered stays as it is meanwhile.
    async fn reconnect(&mut self, why: &str) {
        self.status.lost();
        self.resyncs.count(Gap::Engine);
        self.session.events.abort();
        self.take_waiting();
        let (engine, endpoint) = (self.engine, self.endpoint.clone());
        let name = engine.name();
        tracing::warn!(
            "lost {name} at {endpoint} ({why}); its containers stay as they were until it is back"
        );
        // An engine that answers and hangs up immediately is not to be asked 20 times a second.
        if self.session.opened.elapsed() > 5 * LAST_RETRY {
            self.retry = FIRST_RETRY;
        }
        loop {
            sleep(self.retry).await;
            self.retry = (self.retry * 2).min(LAST_RETRY);
            match Session::open(&endpoint, self.session.number + 1, &self.inbox, &self.told).await {
                Ok((session, running)) => {
                    self.session = session;
                    tracing::info!("{name} at {endpoint} is back");
                    self.adopt(running);
                    return;
                }
                Err(error) => tracing::debug!("{}", Unreachable::new(engine, &endpoint, &error)),
            }
        }
    }

    /// Starts what the world wants done; the outcomes come back as messages.
    fn carry_out(&self, tasks: impl IntoIterator<Item = Task>) {
        for task in tasks {
            self.start(task);
        }
    }

    fn start(&self, task: Task) {
        let inbox = self.inbox.clone();
        match task {
            Task::AwaitDrain { id, number, drain } => {
                let drain = drain.unwrap_or(self.terms.borrow().drain);
                tokio::spawn(async move {
                    sleep(drain).await;
                    let _ = inbox.send(Message::DrainIsOver { id, number });
                });
            }
            Task::AskAgain { question, delay } => {
                tokio::spawn(async move {
                    sleep(delay).await;
                    let _ = inbox.send(Message::AskAgain(question));
                });
            }
            Task::Inspect(question) => {
                let inspector = Inspector {
                    client: self.session.client.clone(),
                    policy: Arc::clone(&self.policy),
                    is_local: self.endpoint.is_local(),
                };
                let permits = Arc::clone(&self.inspections);
                tokio::spawn(async move {
                    let _permit = permits.acquire().await;
                    let outcome = inspector.look(&question.id, question.served.as_ref()).await;
                    let _ = inbox.send(Message::Answer(InspectResult { question, outcome }));
                });
            }
        }
    }
}

/// Asks the engine about one container, and the kernel about its veth.
pub(super) struct Inspector {
    pub(super) client: Docker,
    pub(super) policy: Arc<Policy>,
    pub(super) is_local: bool,
}

impl Inspector {
    pub(super) async fn look(&self, id: &str, served: Option<&ServedIn>) -> Outcome {
        let answer = self.client.inspect_container(id, None::<InspectContainerOptions>);
        match in_time(answer).await {
            Ok(answer) => {
                let view = inspect::view(answer);
                let located = self.locate(&view, served).await.unwrap_or_default();
                Outcome::Found(Box::new(view), located)
            }
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Outcome::Gone,
            Err(error) => Outcome::Failed(words(&error)),
        }
    }

    /// Another machine's process ids mean nothing here; and who is not served needs no place.
    async fn locate(&self, view: &ContainerView, served: Option<&ServedIn>) -> Option<Located> {
        let pid = view.pid.filter(|_| self.is_local)?;
        let offer = offer(view, &self.policy, served).ok()?;
        if offer.candidates.is_empty() {
            return None;
        }
        Some(locate::find(pid, offer.network).await)
    }
}

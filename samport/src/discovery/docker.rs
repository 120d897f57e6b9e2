//! `--provider docker` and `--provider podman`: follows the containers of an engine that speaks Docker's
//! API.
//!
//! Events are subscribed to before containers are listed, so that nothing falls in between. Each
//! container is then inspected in a task of its own; `World` puts answers and events in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerSummary, EventMessage};
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptions,
};
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Terms;
use super::container::{ContainerView, Policy, offer};
use super::endpoint::{Endpoint, Engine, Unreachable, words};
use super::events;
use super::inspect;
use super::leaving::Leaving;
use super::locate::{self, Located};
use super::published;
use super::standing::Standing;
use super::world::{Answer, Outcome, Task, World};
use crate::model::Snapshot;
use crate::ports::PortSpec;

/// Longest wait for the answers that open a session.
const OPENING: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Inspections at one time: each has a connection of its own.
const INSPECTIONS: usize = 32;

/// What the provider is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whose containers.
    pub engine: Engine,
    /// `--endpoint`, as given.
    pub endpoint: Option<String>,
}

/// What the background tasks tell the watcher.
enum Message {
    Event(EventMessage),
    /// The event stream of this session is over; why, in words.
    Lost {
        session: u64,
        why: String,
    },
    Answer(Answer),
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
    terms: watch::Receiver<Terms>,
    standing: Arc<Standing>,
) -> Result<watch::Receiver<Snapshot>> {
    let engine = options.engine;
    let variable = std::env::var(engine.variable()).ok();
    let endpoint = Endpoint::find(engine, options.endpoint.as_deref(), variable.as_deref())?;
    let policy = Arc::new(policy(ports, &terms.borrow()));
    let (inbox, messages) = mpsc::unbounded_channel();
    let (snapshots, receiver) = watch::channel(Snapshot::default());
    let opened = Session::open(&endpoint, 1, &inbox).await;
    let (session, running) = opened.map_err(|error| Unreachable::new(engine, &endpoint, &error))?;
    published::refuse(&policy.ports, &running)?;
    let mut watcher = Watcher {
        engine,
        endpoint,
        terms,
        leaving: Leaving::default(),
        world: World::new(Arc::clone(&policy)),
        policy,
        session,
        retry: FIRST_RETRY,
        inspections: Arc::new(Semaphore::new(INSPECTIONS)),
        inbox,
        messages,
        snapshots,
        standing,
    };
    watcher.adopt(running);
    while !watcher.world.is_settled() {
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
    ) -> Result<(Self, Vec<ContainerSummary>), Error> {
        let client = endpoint.client()?;
        in_time(client.ping()).await?;
        let events = tokio::spawn(forward(client.clone(), number, inbox.clone()));
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

/// Hands on all events from now until the stream ends.
async fn forward(client: Docker, session: u64, inbox: Inbox) {
    // The engine answers before it has subscribed us; with `since` it also sends what happened
    // meanwhile.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let kinds = HashMap::from([("type", vec!["container", "network"])]);
    let options = EventsOptionsBuilder::new().since(&since).filters(&kinds).build();
    let mut stream = client.events(Some(options));
    let why = loop {
        let message = match stream.next().await {
            Some(Ok(event)) => Message::Event(event),
            Some(Err(error)) => break words(&error),
            None => break "it closed the stream of events".to_owned(),
        };
        if inbox.send(message).is_err() {
            return;
        }
    };
    // Nobody receives it only if the watcher is gone.
    let _ = inbox.send(Message::Lost { session, why });
}

/// What containers are judged by.
fn policy(ports: Vec<PortSpec>, terms: &Terms) -> Policy {
    Policy { ports, filters: terms.filters.clone(), health: terms.health.clone() }
}

struct Watcher {
    engine: Engine,
    endpoint: Endpoint,
    terms: watch::Receiver<Terms>,
    /// Candidates that are meant no longer, on the terms that hold now.
    leaving: Leaving,
    policy: Arc<Policy>,
    world: World,
    session: Session,
    /// How long to wait before the next session.
    retry: Duration,
    inspections: Arc<Semaphore>,
    inbox: Inbox,
    messages: mpsc::UnboundedReceiver<Message>,
    snapshots: watch::Sender<Snapshot>,
    standing: Arc<Standing>,
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

    /// Waits for one thing to happen and acts on it.
    async fn step(&mut self) {
        tokio::select! {
            // We hold a sender ourselves: there is always another message.
            Some(message) = self.messages.recv() => self.take(message).await,
            Ok(()) = self.terms.changed() => self.take_terms(),
            () = self.leaving.next() => {}
        }
        self.leaving.pass(Instant::now());
        let world = &self.world;
        self.leaving.keep_only(|candidate| world.runs(&candidate.id));
    }

    /// Whom the new terms do not mean any more drains.
    fn take_terms(&mut self) {
        let terms = self.terms.borrow_and_update().clone();
        let policy = Arc::new(policy(self.policy.ports.clone(), &terms));
        if policy == self.policy {
            return;
        }
        self.policy = Arc::clone(&policy);
        let before = self.world.snapshot().candidates;
        for task in self.world.go_by(policy) {
            self.carry_out(task);
        }
        let after = self.world.snapshot().candidates;
        self.leaving.replace(before, &after, Instant::now() + terms.drain);
    }

    async fn take(&mut self, message: Message) {
        let task = match message {
            Message::Event(event) => {
                self.standing.happened();
                let notice = events::read(event);
                tracing::trace!(?notice, "event");
                notice.and_then(|notice| self.world.happened(notice))
            }
            Message::Answer(answer) => self.world.answered(answer),
            Message::DrainIsOver { id, number } => self.world.drain_is_over(id, number),
            Message::Lost { session, why } if session == self.session.number => {
                self.reconnect(&why).await;
                None
            }
            Message::Lost { .. } => None,
        };
        if let Some(task) = task {
            self.carry_out(task);
        }
    }

    fn publish(&self) {
        let candidates = self.leaving.and(&self.world.snapshot().candidates);
        super::publish(&self.snapshots, Snapshot { candidates });
    }

    fn adopt(&mut self, running: Vec<ContainerSummary>) {
        self.standing.synced();
        let ids = running.into_iter().filter_map(|container| container.id).collect();
        for task in self.world.listed(ids) {
            self.carry_out(task);
        }
    }

    /// Opens new sessions until one holds. What is offered stays as it is meanwhile.
    async fn reconnect(&mut self, why: &str) {
        self.standing.lost();
        let (engine, endpoint) = (self.engine, self.endpoint.clone());
        let name = engine.name();
        tracing::warn!(
            "lost {name} at {endpoint} ({why}); its containers stay as they were until it is back"
        );
        // An engine that answers and hangs up at once is not to be asked 20 times a second.
        if self.session.opened.elapsed() > 5 * LAST_RETRY {
            self.retry = FIRST_RETRY;
        }
        loop {
            sleep(self.retry).await;
            self.retry = (self.retry * 2).min(LAST_RETRY);
            match Session::open(&endpoint, self.session.number + 1, &self.inbox).await {
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

    /// Starts what the world wants done; the outcome comes back as a message.
    fn carry_out(&self, task: Task) {
        let inbox = self.inbox.clone();
        match task {
            Task::AwaitDrain { id, number, drain } => {
                let drain = drain.unwrap_or(self.terms.borrow().drain);
                tokio::spawn(async move {
                    sleep(drain).await;
                    let _ = inbox.send(Message::DrainIsOver { id, number });
                });
            }
            Task::Inspect { question, delay } => {
                let inspector = Inspector {
                    client: self.session.client.clone(),
                    policy: Arc::clone(&self.policy),
                    is_local: self.endpoint.is_local(),
                };
                let permits = Arc::clone(&self.inspections);
                tokio::spawn(async move {
                    if !delay.is_zero() {
                        sleep(delay).await;
                    }
                    let _permit = permits.acquire().await;
                    let outcome = inspector.look(&question.id).await;
                    let _ = inbox.send(Message::Answer(Answer { question, outcome }));
                });
            }
        }
    }
}

/// Asks the engine about one container, and the kernel about its veth.
struct Inspector {
    client: Docker,
    policy: Arc<Policy>,
    is_local: bool,
}

impl Inspector {
    async fn look(&self, id: &str) -> Outcome {
        match self.client.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(answer) => {
                let view = inspect::view(answer);
                let located = self.locate(&view).await.unwrap_or_default();
                Outcome::Found(Box::new(view), located)
            }
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Outcome::Gone,
            Err(error) => Outcome::Failed(words(&error)),
        }
    }

    /// Another machine's process ids mean nothing here; and who is not served needs no place.
    async fn locate(&self, view: &ContainerView) -> Option<Located> {
        let pid = view.pid.filter(|_| self.is_local)?;
        let offer = offer(view, &self.policy).ok()?;
        if offer.candidates.is_empty() {
            return None;
        }
        Some(locate::find(pid, offer.network).await)
    }
}

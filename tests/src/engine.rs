//! What speaks Docker's API and runs nothing: a real engine's own work would be measured with ours, and
//! nobody would know to the microsecond when an event was sent.

use std::io::{self, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine_wire::{EVENTS_HEAD, answer, chunk, event, lock, parts_of, read_head};

/// How long a subscriber is waited for.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A container that somebody else runs.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// A process in its network namespace.
    pub pid: u32,
    /// Its address in its only network.
    pub address: std::net::IpAddr,
    /// Its MAC there.
    pub mac: String,
    /// Its labels.
    pub labels: &'static [(&'static str, &'static str)],
    id: String,
}

/// The engine. Its socket goes with it.
pub struct Engine {
    shared: Arc<Shared>,
    socket: PathBuf,
    _folder: TempDir,
}

#[derive(Default)]
struct Shared {
    running: Mutex<Vec<Container>>,
    subscribers: Mutex<Vec<UnixStream>>,
    /// When containers were last listed.
    listed: Mutex<Option<Instant>>,
    /// When one was last asked about.
    inspected: Mutex<Option<Instant>>,
    /// How often any was.
    inspections: AtomicU64,
    /// How often containers were listed.
    lists: AtomicU64,
    /// Containers so far: no two have the same id.
    made: AtomicU64,
}

impl Container {
    /// One that is served on port 80.
    pub fn new(name: &str, pid: u32, address: std::net::IpAddr, mac: &str) -> Self {
        let labels = &[("samport.port", "80")];
        Self { name: name.to_owned(), pid, address, mac: mac.to_owned(), labels, id: String::new() }
    }

    /// The same with other labels.
    #[must_use]
    pub fn labelled(self, labels: &'static [(&'static str, &'static str)]) -> Self {
        Self { labels, ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> Value {
        json!({ "Id": self.id, "Names": [format!("/{}", self.name)], "State": "running" })
    }

    fn details(&self) -> Value {
        let labels: serde_json::Map<_, _> =
            self.labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        json!({
            "Id": self.id,
            "Name": format!("/{}", self.name),
            "State": { "Running": true, "Pid": self.pid, "StartedAt": self.id },
            "Config": { "Image": "bench", "Labels": labels },
            "HostConfig": { "NetworkMode": "default" },
            "NetworkSettings": { "Networks": { "bridge": {
                "IPAddress": self.address.to_string(), "MacAddress": self.mac,
            } } },
        })
    }
}

impl Engine {
    /// One without containers.
    pub fn start() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("samport-engine-").tempdir_in("/tmp")?;
        let socket = folder.path().join("d.sock");
        let listener = UnixListener::bind(&socket)?;
        let shared = Arc::new(Shared::default());
        let answering = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&answering);
                // Who hangs up does so to end.
                thread::spawn(move || drop(shared.answer(client)));
            }
        });
        Ok(Self { shared, socket, _folder: folder })
    }

    /// What goes after `--endpoint`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Containers run; nobody is told.
    pub fn has(&self, containers: impl IntoIterator<Item = Container>) {
        for container in containers {
            self.shared.add(container);
        }
    }

    /// A container starts; when its event was sent.
    pub fn starts(&self, container: &Container) -> Instant {
        let id = self.shared.add(container.clone());
        self.shared.tell(&id, "start", &[])
    }

    /// A container is sent SIGTERM; when the event of it was sent.
    pub fn kills(&self, name: &str) -> Instant {
        self.shared.tell(&self.shared.id_of(name), "kill", &[("signal", "15")])
    }

    /// A container has ended; when its event was sent.
    pub fn ends(&self, name: &str) -> Instant {
        let id = self.shared.id_of(name);
        lock(&self.shared.running).retain(|one| one.id != id);
        let at = self.shared.tell(&id, "die", &[]);
        self.shared.tell(&id, "destroy", &[]);
        at
    }

    /// A container has ended, and nobody is told: Docker's engine drops events that are not read in time.
    pub fn loses(&self, name: &str) {
        let id = self.shared.id_of(name);
        lock(&self.shared.running).retain(|one| one.id != id);
    }

    /// A container is changed so many times; each time an event says so.
    pub fn changes(&self, name: &str, times: usize) {
        let id = self.shared.id_of(name);
        let chunk = chunk(&event(&id, "update", &[]));
        for part in (0..times).collect::<Vec<_>>().chunks(100) {
            let chunks = chunk.repeat(part.len());
            lock(&self.shared.subscribers).retain_mut(|to| to.write_all(&chunks).is_ok());
        }
    }

    /// How often a container was asked about, and how often containers were listed.
    #[must_use]
    pub fn questions(&self) -> [u64; 2] {
        [&self.shared.inspections, &self.shared.lists].map(|count| count.load(Ordering::Relaxed))
    }

    /// When containers were last asked for.
    pub fn listed(&self) -> Option<Instant> {
        *lock(&self.shared.listed)
    }

    /// When a container was last asked about.
    pub fn inspected(&self) -> Option<Instant> {
        *lock(&self.shared.inspected)
    }
}

impl Shared {
    fn add(&self, container: Container) -> String {
        let id = format!("{:064x}", self.made.fetch_add(1, Ordering::Relaxed) + 1);
        lock(&self.running).push(Container { id: id.clone(), ..container });
        id
    }

    fn id_of(&self, name: &str) -> String {
        let running = lock(&self.running);
        let found = running.iter().find(|one| one.name == name);
        found.map_or_else(|| panic!("no container {name} runs"), |one| one.id.clone())
    }

    fn tell(&self, id: &str, action: &str, attributes: &[(&str, &str)]) -> Instant {
        let begin = Instant::now();
        while lock(&self.subscribers).is_empty() {
            assert!(begin.elapsed() < TIMEOUT, "nobody asks for events");
            thread::sleep(Duration::from_millis(1));
        }
        let chunk = chunk(&event(id, action, attributes));
        let at = Instant::now();
        lock(&self.subscribers).retain_mut(|to| to.write_all(&chunk).is_ok());
        at
    }

    fn answer(&self, mut client: UnixStream) -> io::Result<()> {
        let head = read_head(&mut client)?;
        let parts = parts_of(&head);
        match &parts[..] {
            ["_ping"] => client.write_all(answer("200 OK", "text/plain", "OK").as_bytes()),
            ["events"] => {
                client.write_all(EVENTS_HEAD)?;
                lock(&self.subscribers).push(client);
                Ok(())
            }
            ["containers", "json"] => {
                *lock(&self.listed) = Some(Instant::now());
                self.lists.fetch_add(1, Ordering::Relaxed);
                let all: Vec<_> = lock(&self.running).iter().map(Container::summary).collect();
                client.write_all(
                    answer("200 OK", "application/json", &json!(all).to_string()).as_bytes(),
                )
            }
            ["containers", id, "json"] => {
                *lock(&self.inspected) = Some(Instant::now());
                self.inspections.fetch_add(1, Ordering::Relaxed);
                let found = lock(&self.running).iter().find(|one| one.id == *id).cloned();
                let (status, body) = match found {
                    Some(container) => ("200 OK", container.details()),
                    None => ("404 Not Found", json!({ "message": "No such container" })),
                };
                client.write_all(answer(status, "application/json", &body.to_string()).as_bytes())
            }
            _ => {
                let body = json!({ "message": format!("{} is not measured", parts.join("/")) })
                    .to_string();
                client.write_all(answer("404 Not Found", "application/json", &body).as_bytes())
            }
        }
    }
}

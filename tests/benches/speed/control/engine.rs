//! What speaks Docker's API and runs nothing: a real engine's own work would be measured with ours, and
//! nobody would know to the microsecond when an event was sent.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a subscriber is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A container that somebody else runs.
#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    /// A process in its network namespace.
    pub pid: u32,
    pub address: std::net::IpAddr,
    pub mac: String,
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
    /// Containers so far: no two have the same id.
    made: AtomicU64,
}

impl Container {
    pub fn new(name: &str, pid: u32, address: std::net::IpAddr, mac: &str) -> Self {
        let labels = &[("samport.port", "80")];
        Self { name: name.to_owned(), pid, address, mac: mac.to_owned(), labels, id: String::new() }
    }

    /// The same with other labels.
    pub fn labelled(self, labels: &'static [(&'static str, &'static str)]) -> Self {
        Self { labels, ..self }
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
            assert!(begin.elapsed() < PATIENCE, "nobody asks for events");
            thread::sleep(Duration::from_millis(1));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let attributes: serde_json::Map<_, _> =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let event = json!({
            "Type": "container", "Action": action, "scope": "local",
            "time": now.as_secs(), "timeNano": u64::try_from(now.as_nanos()).unwrap_or(0),
            "Actor": { "ID": id, "Attributes": attributes },
        });
        let line = format!("{event}\n");
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        let at = Instant::now();
        lock(&self.subscribers).retain_mut(|to| to.write_all(chunk.as_bytes()).is_ok());
        at
    }

    fn answer(&self, mut client: UnixStream) -> io::Result<()> {
        let head = read_head(&mut client)?;
        let target = head.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let parts = match &parts[..] {
            [version, rest @ ..] if version.starts_with("v1.") => rest,
            all => all,
        };
        match parts {
            ["_ping"] => say(&mut client, "200 OK", "text/plain", "OK"),
            ["events"] => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                            Transfer-Encoding: chunked\r\n\r\n";
                client.write_all(head.as_bytes())?;
                lock(&self.subscribers).push(client);
                Ok(())
            }
            ["containers", "json"] => {
                *lock(&self.listed) = Some(Instant::now());
                let all: Vec<_> = lock(&self.running).iter().map(Container::summary).collect();
                say(&mut client, "200 OK", "application/json", &json!(all).to_string())
            }
            ["containers", id, "json"] => {
                *lock(&self.inspected) = Some(Instant::now());
                let found = lock(&self.running).iter().find(|one| one.id == *id).cloned();
                let (status, body) = match found {
                    Some(container) => ("200 OK", container.details()),
                    None => ("404 Not Found", json!({ "message": "No such container" })),
                };
                say(&mut client, status, "application/json", &body.to_string())
            }
            _ => {
                let body = json!({ "message": format!("{path} is not measured") }).to_string();
                say(&mut client, "404 Not Found", "application/json", &body)
            }
        }
    }
}

fn say(client: &mut UnixStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let message = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    client.write_all(message.as_bytes())
}

fn read_head(client: &mut UnixStream) -> io::Result<String> {
    let (mut head, mut buffer) = (Vec::new(), [0; 4_096]);
    // What is asked for by GET has nothing after its head.
    while !head.ends_with(b"\r\n\r\n") {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..length]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

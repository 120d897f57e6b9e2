//! An engine that speaks Docker's API and runs nothing: it says what a test wants it to say, and answers as badly as
//! a test wants it to.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine_wire::{EVENTS_HEAD, answer, chunk, event, lock, parts_of, read_head};
use crate::eventually;

/// Between two bytes of an answer that drips.
const DRIP: Duration = Duration::from_millis(5);

/// How it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behavior {
    /// As an engine does.
    Well,
    /// Not at all, with the connection open.
    Hang,
    /// With bytes that are no HTTP.
    Garbage,
    /// With HTTP whose body is no JSON.
    NoJson,
    /// With a part of the answer, and then the end.
    Truncate,
    /// Byte by byte.
    Drip,
    /// With the end of the connection.
    HangUp,
    /// With status 500.
    Fail,
}

impl Behavior {
    /// All that are no good answer.
    pub const BAD: [Self; 6] =
        [Self::Hang, Self::Garbage, Self::NoJson, Self::Truncate, Self::HangUp, Self::Fail];
}

/// A container, as the engine describes it.
#[derive(Clone, Debug)]
pub struct Container {
    name: String,
    address: IpAddr,
    ipv6: Option<IpAddr>,
    labels: BTreeMap<String, String>,
    image: String,
    id: String,
}

impl Container {
    /// A container with these labels that is somewhere on the lab's bridge.
    #[must_use]
    pub fn new(name: &str, address: IpAddr, labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let (labels, image) = (labels.collect(), "app:1".to_owned());
        Self { name: name.to_owned(), address, ipv6: None, labels, image, id: String::new() }
    }

    /// The same with an IPv6 address too.
    #[must_use]
    pub fn with_ipv6(self, address: IpAddr) -> Self {
        Self { ipv6: Some(address), ..self }
    }

    /// The same from another image.
    #[must_use]
    pub fn of_image(self, image: &str) -> Self {
        Self { image: image.to_owned(), ..self }
    }

    fn summary(&self) -> Value {
        json!({
            "Id": self.id,
            "Names": [format!("/{}", self.name)],
            "State": "running",
            "Labels": self.labels,
        })
    }

    fn details(&self) -> Value {
        json!({
            "Id": self.id,
            "Name": format!("/{}", self.name),
            "State": { "Running": true, "StartedAt": self.id },
            "Config": { "Image": self.image, "Labels": self.labels },
            "HostConfig": { "NetworkMode": "default" },
            "NetworkSettings": { "Networks": { "bridge": {
                "IPAddress": self.address.to_string(),
                "GlobalIPv6Address": self.ipv6.map(|ip| ip.to_string()).unwrap_or_default(),
            } } },
        })
    }
}

/// The engine. Its socket goes with it.
#[derive(Debug)]
pub struct FakeEngine {
    shared: Arc<Shared>,
    socket: PathBuf,
    _folder: TempDir,
}

#[derive(Debug)]
struct Shared {
    behavior: Mutex<Behavior>,
    running: Mutex<Vec<Container>>,
    subscribers: Mutex<Vec<UnixStream>>,
    /// Clients that wait for an answer for ever.
    hanging: Mutex<Vec<UnixStream>>,
    /// Beginning of the names of containers about which it says nothing; empty for none.
    hangs_on: Mutex<String>,
    /// Questions that were answered badly.
    bad_answers: AtomicU64,
    /// Containers so far: no two have the same id.
    made: AtomicU64,
}

impl FakeEngine {
    /// Starts one without containers.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("samport-fake-").tempdir().unwrap();
        let socket = folder.path().join("d.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            behavior: Mutex::new(Behavior::Well),
            running: Mutex::default(),
            subscribers: Mutex::default(),
            hanging: Mutex::default(),
            hangs_on: Mutex::default(),
            bad_answers: AtomicU64::new(0),
            made: AtomicU64::new(0),
        });
        let answering = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&answering);
                // Whoever hangs up in the middle has ended.
                thread::spawn(move || drop(shared.answer(client)));
            }
        });
        Self { shared, socket, _folder: folder }
    }

    /// What goes after `--endpoint`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How it answers from now on; whoever waits for an answer waits no longer.
    pub fn answer(&self, behavior: Behavior) {
        *lock(&self.shared.behavior) = behavior;
        lock(&self.shared.hanging).clear();
    }

    /// Questions about containers whose name begins so get no answer from now on; whoever waits for one waits no
    /// longer.
    pub fn hang_on(&self, prefix: &str) {
        prefix.clone_into(&mut lock(&self.shared.hangs_on));
        lock(&self.shared.hanging).clear();
    }

    /// Questions that were answered badly so far.
    #[must_use]
    pub fn bad_answers(&self) -> u64 {
        self.shared.bad_answers.load(Relaxed)
    }

    /// A container starts; whoever follows the events is told, if anybody does.
    pub fn starts(&self, container: Container) {
        let id = self.shared.add(container);
        self.shared.tell_followers(&id, "start");
    }

    /// A container ends; whoever follows the events is told, if anybody does.
    pub fn stops(&self, name: &str) {
        let id = self.loses(name);
        for action in ["die", "destroy"] {
            self.shared.tell_followers(&id, action);
        }
    }

    /// Ends the streams of events.
    pub fn end_events(&self) {
        for stream in lock(&self.shared.subscribers).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Containers run, and nobody is told.
    pub fn has(&self, containers: impl IntoIterator<Item = Container>) {
        for container in containers {
            self.shared.add(container);
        }
    }

    /// The id of a container that runs; panics if there is none of that name.
    #[must_use]
    pub fn id_of(&self, name: &str) -> String {
        self.shared.id_of(name)
    }

    /// A container starts, and whoever follows the events is told.
    pub fn runs(&self, container: Container) {
        let id = self.shared.add(container);
        self.shared.tell(&id, "start");
    }

    /// A container ends, and nobody is told.
    pub fn loses(&self, name: &str) -> String {
        let id = self.shared.id_of(name);
        lock(&self.shared.running).retain(|one| one.id != id);
        id
    }

    /// A container ends, and whoever follows the events is told.
    pub fn ends(&self, name: &str) {
        let id = self.loses(name);
        for action in ["die", "destroy"] {
            self.shared.tell(&id, action);
        }
    }
}

impl Shared {
    fn add(&self, container: Container) -> String {
        let id = format!("{:064x}", self.made.fetch_add(1, Relaxed) + 1);
        lock(&self.running).push(Container { id: id.clone(), ..container });
        id
    }

    fn id_of(&self, name: &str) -> String {
        let running = lock(&self.running);
        let found = running.iter().find(|one| one.name == name);
        found.map_or_else(|| panic!("no container {name} runs"), |one| one.id.clone())
    }

    fn tell(&self, id: &str, action: &str) {
        eventually("somebody follows the events", || {
            (!lock(&self.subscribers).is_empty()).then_some(())
        });
        self.tell_followers(id, action);
    }

    fn tell_followers(&self, id: &str, action: &str) {
        let chunk = chunk(&event(id, action, &[]));
        lock(&self.subscribers).retain_mut(|to| to.write_all(&chunk).is_ok());
    }

    fn answer(&self, mut client: UnixStream) -> io::Result<()> {
        let head = read_head(&mut client)?;
        let parts = parts_of(&head);
        let behavior = if self.hangs_on(&parts) { Behavior::Hang } else { *lock(&self.behavior) };
        if parts[..] == ["events"] && behavior == Behavior::Well {
            client.write_all(EVENTS_HEAD)?;
            lock(&self.subscribers).push(client);
            return Ok(());
        }
        let (status, body) = self.say(&parts);
        let whole = http(status, &body);
        if !matches!(behavior, Behavior::Well | Behavior::Drip) {
            self.bad_answers.fetch_add(1, Relaxed);
        }
        match behavior {
            Behavior::Well => client.write_all(whole.as_bytes()),
            Behavior::Drip => whole.as_bytes().iter().try_for_each(|byte| {
                thread::sleep(DRIP);
                client.write_all(&[*byte])
            }),
            Behavior::Hang => {
                lock(&self.hanging).push(client);
                Ok(())
            }
            Behavior::Garbage => {
                client.write_all(&[0xff, 0, 0x1b, b'[', b'2', b'J', b'\n'].repeat(100))
            }
            Behavior::NoJson => client.write_all(http("200 OK", "<html>\u{1b}[31m").as_bytes()),
            Behavior::Truncate => client.write_all(&whole.as_bytes()[..whole.len() * 2 / 3]),
            Behavior::HangUp => Ok(()),
            Behavior::Fail => {
                let body = json!({ "message": "it \u{1b}[31mburns" }).to_string();
                client.write_all(http("500 Internal Server Error", &body).as_bytes())
            }
        }
    }

    fn hangs_on(&self, parts: &[&str]) -> bool {
        let ["containers", id, "json"] = parts else { return false };
        let prefix = lock(&self.hangs_on).clone();
        let running = lock(&self.running);
        let of_it = running.iter().find(|one| one.id == *id);
        !prefix.is_empty() && of_it.is_some_and(|one| one.name.starts_with(&prefix))
    }

    fn say(&self, parts: &[&str]) -> (&'static str, String) {
        match parts {
            ["_ping"] => ("200 OK", "OK".to_owned()),
            ["version"] => ("200 OK", json!({ "Version": "29.0.0" }).to_string()),
            ["info"] => ("200 OK", json!({}).to_string()),
            ["containers", "json"] => {
                let all: Vec<_> = lock(&self.running).iter().map(Container::summary).collect();
                ("200 OK", json!(all).to_string())
            }
            ["containers", id, "json"] => {
                let found = lock(&self.running).iter().find(|one| one.id == *id).cloned();
                match found {
                    Some(container) => ("200 OK", container.details().to_string()),
                    None => {
                        ("404 Not Found", json!({ "message": "No such container" }).to_string())
                    }
                }
            }
            _ => ("404 Not Found", json!({ "message": "page not found" }).to_string()),
        }
    }
}

fn http(status: &str, body: &str) -> String {
    answer(status, "application/json", body)
}

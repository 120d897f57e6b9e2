//! A thousand clients of UDP with fixed ports that send all the time, while their backends fail.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use samport::lab::Backend;
use samport_tests::datagrams::Echo;
use samport_tests::served::TARGET;
use samport_tests::{Lab, eventually};
use serde_json::Value;

use crate::datagrams::Datagrams;

/// Clients of the service that loses backends.
const CLIENTS: usize = 1_000;
/// Clients of another service with the same addresses and ports of their own.
const OTHERS: usize = 50;
/// How often each sends.
const EVERY: Duration = Duration::from_millis(50);
/// The other service's port, and where its backend listens.
const OTHER: u16 = 81;
const OTHER_TARGET: u16 = 9_091;

/// What a client knows.
#[derive(Clone, Default)]
struct Known {
    /// Who has answered last.
    name: String,
    /// When.
    answered: Option<Instant>,
    /// How often another one answered than before.
    moves: u32,
}

struct Client {
    socket: UdpSocket,
    known: Mutex<Known>,
}

impl Client {
    fn new(front: SocketAddr, port: u16) -> Self {
        let any = if front.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind(SocketAddr::new(any.parse().unwrap(), port)).unwrap();
        socket.connect(front).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, known: Mutex::default() }
    }

    /// Reads the answers there are and sends another question.
    fn go_on(&self) {
        let mut buffer = [0; 64];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let name = std::str::from_utf8(&buffer[..length]).unwrap();
                    let mut known = self.known.lock().unwrap();
                    if known.name != name {
                        known.moves += u32::from(known.answered.is_some());
                        name.clone_into(&mut known.name);
                    }
                    known.answered = Some(Instant::now());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // An error of ICMP: the next question is the answer to that.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => panic!("{error}"),
            }
        }
        match self.socket.send(b"who?") {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn known(&self) -> Known {
        self.known.lock().unwrap().clone()
    }
}

/// Waits until all who had this backend have an answer of another one, and says how long that took.
fn wait_until_left(clients: &[Client], name: &str, since: Instant, what: &str) {
    let affected: Vec<_> = clients.iter().filter(|client| client.known().name == name).collect();
    assert!(affected.len() > CLIENTS / 20, "{} of {name}", affected.len());
    eventually(what, || {
        let left = |client: &&Client| client.known().name != name;
        affected.iter().all(left).then_some(())
    });
    println!("{what}: {} clients, all with others after {:?}", affected.len(), since.elapsed());
}

/// The backends of both services, these of the first.
fn listed(lab: &Lab, names: &[&str]) -> String {
    let mut text = String::new();
    for backend in lab.backends() {
        let name = backend.name();
        let mut add = |address: SocketAddr, listen: &str| {
            let _ = writeln!(
                text,
                "[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\nlisten = \"{listen}\""
            );
        };
        for at in [Backend::v4, Backend::v6] {
            if names.contains(&name) {
                add(at(backend, TARGET), "80/udp");
                add(at(backend, TARGET), "80/tcp");
            }
            add(at(backend, OTHER_TARGET), "81/udp");
        }
    }
    text
}

/// Waits until each service has its own backends.
fn wait_until_apart(datagrams: &Datagrams) {
    eventually("the services are apart", || {
        let status = datagrams.served.status();
        let is_right = |backend: &Value| {
            let end = if backend["port"] == "81/udp" { ":9091" } else { ":9090" };
            backend["endpoint"].as_str().is_some_and(|endpoint| endpoint.ends_with(end))
        };
        status.backends().iter().all(is_right).then_some(())
    });
}

#[test]
fn a_thousand_clients_of_udp_are_served_while_their_backends_fail() {
    const OPTIONS: [&str; 10] = [
        "-p",
        "81:9091/udp",
        "--health",
        "http:9090/health",
        "--health-interval",
        "200ms",
        "--health-timeout",
        "1s",
        "--drain",
        "2s",
    ];
    let datagrams = Datagrams::start(Lab::builder().backends(4), &OPTIONS, Echo::bind);
    let backends = datagrams.served.lab.backends().iter();
    let other = |one: &Backend| one.namespace().run(|| Echo::bind("other", OTHER_TARGET)).unwrap();
    let _others: Vec<_> = backends.map(other).collect();
    let lab = &datagrams.served.lab;
    datagrams.served.file.write_text(&listed(lab, &["web-1", "web-2", "web-3", "web-4"]));
    wait_until_apart(&datagrams);
    let [v4, v6] = datagrams.served.fronts();
    let clients: Vec<_> = datagrams.on_client(|| {
        let front = |number: usize| if number.is_multiple_of(2) { v4 } else { v6 };
        let port = |number: usize| u16::try_from(20_000 + number).unwrap();
        (0..CLIENTS).map(|number| Client::new(front(number), port(number))).collect()
    });
    let others: Vec<_> = datagrams.on_client(|| {
        let front = SocketAddr::new(v4.ip(), OTHER);
        let port = |number: usize| u16::try_from(30_000 + number).unwrap();
        (0..OTHERS).map(|number| Client::new(front, port(number))).collect()
    });
    let stop = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let begin = Instant::now();
                clients.iter().chain(&others).for_each(Client::go_on);
                sleep(EVERY.saturating_sub(begin.elapsed()));
            }
        });
        // Also if something below panics.
        let _stop = Stop(&stop);
        eventually("all are served", || {
            clients
                .iter()
                .chain(&others)
                .all(|client| client.known().answered.is_some())
                .then_some(())
        });

        let since = Instant::now();
        datagrams.served.lab.backends()[0].namespace().batch("link set eth0 down\n").unwrap();
        wait_until_left(&clients, "web-1", since, "a backend has died without a word");
        let since = Instant::now();
        datagrams.served.servers[1].set_health(500);
        wait_until_left(&clients, "web-2", since, "a backend is unhealthy");
        let since = Instant::now();
        datagrams
            .served
            .file
            .write_text(&listed(&datagrams.served.lab, &["web-1", "web-2", "web-4"]));
        wait_until_left(&clients, "web-3", since, "a backend has drained for 2 s");
    });
    for client in &clients {
        let known = client.known();
        assert_eq!(known.name, "web-4");
        // Away from each that has failed, and not more often.
        assert!(known.moves <= 3, "{}", known.moves);
    }
    for other in &others {
        let known = other.known();
        assert_eq!((known.name.as_str(), known.moves), ("other", 0));
    }
}

/// Ends the clients.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

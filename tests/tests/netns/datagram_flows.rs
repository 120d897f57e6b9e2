//! When a flow of datagrams leaves its backend: never by silence, and at once when the backend cannot have it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::Duration;

use samport_tests::datagrams::{Echo, ask_connected, ask_to, client};
use samport_tests::socket::ask_on;
use samport_tests::{Lab, TIMEOUT, eventually};

use crate::datagrams::{Datagrams, WAYS, connected};

/// A check of the page of each backend's server, often.
const OFTEN: [&str; 6] =
    ["--health", "http:/health", "--health-interval", "100ms", "--health-timeout", "1s"];

/// Backends whose kernels send as many errors of ICMP as there is reason for.
fn outspoken(backends: u8, options: &[&str]) -> Datagrams {
    let datagrams = Datagrams::start(Lab::builder().backends(backends), options, Echo::bind);
    for backend in datagrams.served.lab.backends() {
        for of in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
            backend.namespace().sysctl(of, "0").unwrap();
        }
    }
    datagrams
}

/// Who answers the next datagram of a socket, sent again as long as there is no answer; how often it was sent.
fn ask_again(socket: &UdpSocket) -> (String, u32) {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    let name = eventually("an answer", || {
        sent += 1;
        match ask_connected(socket) {
            Ok((name, _)) => Some(name),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("told after {sent} datagrams: {error}"),
        }
    });
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    (name, sent)
}

fn names(sockets: &[UdpSocket]) -> Vec<String> {
    sockets.iter().map(|socket| ask_connected(socket).unwrap().0).collect()
}

/// A connection stays where it is; the next datagram of a client goes to a healthy backend, and stays there.
#[test]
fn datagrams_leave_a_backend_that_is_unhealthy_and_connections_do_not() {
    let mut datagrams = Datagrams::start(Lab::builder().backends(3), &OFTEN, Echo::bind);
    for front in datagrams.served.fronts() {
        let sockets: Vec<_> = datagrams.on_client(|| (0..60).map(|_| connected(front)).collect());
        let before = datagrams.on_client(|| names(&sockets));
        assert!(before.iter().any(|name| name == "web-2"), "{before:?}");
        let stream = datagrams.on_client(|| connection_to("web-2", front));

        datagrams.served.servers[1].set_health(500);
        datagrams.served.change(("-", "web-2", "unhealthy: answered 500"), |_| ());
        let during = eventually("its clients are others'", || {
            let now = datagrams.on_client(|| names(&sockets));
            (!now.iter().any(|name| name == "web-2")).then_some(now)
        });
        for (was, is) in before.iter().zip(&during) {
            assert!(was == "web-2" || was == is, "{was} is healthy, and {is} answered");
        }
        assert_eq!(ask_on(&stream, "/").unwrap().backend, "web-2", "its connection goes on");

        datagrams.served.servers[1].set_health(200);
        datagrams.served.change(("+", "web-2", "healthy again"), |_| ());
        assert_eq!(
            datagrams.on_client(|| names(&sockets)),
            during,
            "nobody moves without a reason"
        );
    }
}

/// Sockets of the host that are not connected leave it too.
#[test]
fn datagrams_of_the_host_leave_a_backend_that_is_unhealthy() {
    let mut datagrams = Datagrams::start(Lab::builder().backends(3), &OFTEN, Echo::bind);
    let fronts = datagrams.served.fronts();
    let names = |lab: &Lab, sockets: &[UdpSocket], front| -> Vec<String> {
        lab.host().run(|| sockets.iter().map(|one| ask_to(one, front).unwrap().0).collect())
    };
    for front in fronts {
        let sockets: Vec<_> =
            datagrams.served.lab.host().run(|| (0..40).map(|_| client(front).unwrap()).collect());
        let before = names(&datagrams.served.lab, &sockets, front);
        assert!(before.iter().any(|name| name == "web-2"), "{before:?}");
        datagrams.served.servers[1].set_health(500);
        datagrams.served.change(("-", "web-2", "unhealthy: answered 500"), |_| ());
        let during = eventually("its clients are others'", || {
            let now = names(&datagrams.served.lab, &sockets, front);
            (!now.iter().any(|name| name == "web-2")).then_some(now)
        });
        for (was, is) in before.iter().zip(&during) {
            assert!(was == "web-2" || was == is, "{was} is healthy, and {is} answered");
        }
        datagrams.served.servers[1].set_health(200);
        datagrams.served.change(("+", "web-2", "healthy again"), |_| ());
    }
}

/// Where nobody is healthy, datagrams stay where they are: better than from one to the other each time.
#[test]
fn datagrams_stay_while_nobody_is_healthy() {
    let mut datagrams = Datagrams::start(Lab::builder().backends(2), &OFTEN, Echo::bind);
    let front = datagrams.served.lab.front(80);
    let sockets: Vec<_> = datagrams.on_client(|| (0..20).map(|_| connected(front)).collect());
    let before = datagrams.on_client(|| names(&sockets));
    for (index, name) in ["web-1", "web-2"].into_iter().enumerate() {
        datagrams.served.servers[index].set_health(500);
        datagrams.served.change(("-", name, "unhealthy: answered 500"), |_| ());
    }
    let all = || datagrams.on_client(|| names(&sockets));
    let during = all();
    assert_eq!(during, all());
    assert!(during.iter().zip(&before).any(|(is, was)| is == was));
}

fn connection_to(name: &str, front: SocketAddr) -> TcpStream {
    eventually(&format!("a connection to {name}"), || {
        let stream = TcpStream::connect(front).unwrap();
        (ask_on(&stream, "/").unwrap().backend == name).then_some(stream)
    })
}

/// Row C1: a client with a fixed port whose backend's program has ended is another's with its next datagram; nobody
/// tells it before all have refused it, and nobody else moves.
#[test]
fn datagrams_leave_a_backend_that_has_refused_one() {
    for way in WAYS {
        let mut datagrams = outspoken(3, &["--forward", way]);
        for front in datagrams.served.fronts() {
            let sockets: Vec<_> =
                datagrams.on_client(|| (0..40).map(|_| connected(front)).collect());
            let before = datagrams.on_client(|| names(&sockets));
            datagrams.stop_echo("web-1");
            let after: Vec<_> = datagrams.on_client(|| sockets.iter().map(ask_again).collect());
            let mut moved = 0;
            for (was, (is, sent)) in before.iter().zip(&after) {
                assert_ne!(is, "web-1");
                if was == "web-1" {
                    assert_eq!(*sent, 2, "{way} {front}: one refused, the next one answered");
                    moved += 1;
                } else {
                    assert_eq!((is, *sent), (was, 1), "{way} {front}");
                }
            }
            assert!(moved > 0, "{before:?}");
            let is_same = |(name, _): &(String, u32)| name.clone();
            let again = datagrams.on_client(|| names(&sockets));
            assert_eq!(again, after.iter().map(is_same).collect::<Vec<_>>(), "for good");
            datagrams.start_echo("web-1");
        }
        assert!(datagrams.served.status().verdict("refusal-held") > 0, "{way}");
    }
}

/// Case 40: when all have refused a flow, its client is told, and the round begins again.
#[test]
fn a_client_is_told_when_all_backends_have_refused_its_datagrams() {
    const BACKENDS: u8 = 3;
    let mut datagrams = outspoken(BACKENDS, &[]);
    for name in ["web-1", "web-2", "web-3"] {
        datagrams.stop_echo(name);
    }
    for front in datagrams.served.fronts() {
        for _ in 0..5 {
            let socket = datagrams.on_client(|| connected(front));
            for round in 0..2 {
                let sent = datagrams.on_client(|| sent_until_told(&socket));
                assert_eq!(sent, u32::from(BACKENDS), "{front}, round {round}");
            }
        }
    }
    // And it is served as soon as one is back.
    datagrams.start_echo("web-2");
    let front = datagrams.served.lab.front(80);
    let socket = datagrams.on_client(|| connected(front));
    let (name, _) = datagrams.on_client(|| ask_again(&socket));
    assert_eq!(name, "web-2");
}

/// How many datagrams a socket has sent when it is told that nobody listens.
fn sent_until_told(socket: &UdpSocket) -> u32 {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    eventually("an error", || {
        sent += 1;
        match ask_connected(socket).unwrap_err().kind() {
            ErrorKind::WouldBlock => None,
            ErrorKind::ConnectionRefused => Some(sent),
            other => panic!("{other}"),
        }
    })
}

/// Silence says nothing: many a protocol never answers.
#[test]
fn datagrams_stay_with_a_backend_that_never_answers() {
    let (heard, receiver) = channel();
    let silent = |name: &str, port| Echo::silent(name, port, heard.clone());
    let datagrams = Datagrams::start(Lab::builder().backends(3), &[], silent);
    let front = datagrams.served.lab.front(80);
    let sockets: Vec<_> = datagrams.on_client(|| (0..12u8).map(|_| connected(front)).collect());
    let mut at: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for _ in 0..4 {
        for (number, socket) in (0u8..).zip(&sockets) {
            socket.send(&[number]).unwrap();
        }
        for _ in &sockets {
            let (name, number) = receiver.recv_timeout(TIMEOUT).unwrap();
            assert_eq!(*at.entry(number).or_insert_with(|| name.clone()), name);
        }
        // Longer than after what a connection's silence counts.
        sleep(Duration::from_millis(950));
    }
}

/// Silence has the backend checked at once, and what the check says counts.
#[test]
fn a_backend_that_does_not_answer_datagrams_is_checked() {
    let (heard, _receiver) = channel();
    let silent = |name: &str, port| Echo::silent(name, port, heard.clone());
    let once = ["--health", "http:/health", "--health-interval", "1h"];
    let datagrams = Datagrams::start(Lab::builder().backends(2), &once, silent);
    datagrams.served.servers[1].set_health(500);
    let front = datagrams.served.lab.front(80);
    let sockets: Vec<_> = datagrams.on_client(|| (0..12).map(|_| connected(front)).collect());
    let is_unhealthy = || datagrams.served.states_of("web-2").contains(&"unhealthy".to_owned());
    eventually("web-2 is found to be unhealthy", || {
        for socket in &sockets {
            assert_eq!(socket.send(b"?").unwrap(), 1);
        }
        sleep(Duration::from_millis(200));
        is_unhealthy().then_some(())
    });
}

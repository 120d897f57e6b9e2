//! Flows that nobody uses any more.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use samport::lab::{Backend, Lab};
use samport_tests::datagrams::{ask_to, client};
use samport_tests::socket::{ask_on, connect_from};

use crate::inside::Inside;

/// Longer than a time-out of two seconds, rounded up to two ticks of 1.07 s, and one more tick.
const AFTER: Duration = Duration::from_millis(3_600);
/// Clients, each with its own port: that all of them are given their old backend by chance happens
/// once in 2^40 times.
const CLIENTS: u16 = 40;
/// Local ports outside of the range the kernel takes others from.
const FIRST_PORT: u16 = 21_000;

fn start(options: &[&str]) -> Inside {
    Inside::start(Lab::builder().backends(2), options)
}

/// Opens a connection from each port and leaves without a word: the client's end is closed without
/// FIN or RST, as by a machine that has lost its power.
fn ask_from_ports(inside: &Inside, front: SocketAddr) -> Vec<String> {
    let client = inside.lab().client();
    let answers = client.run(|| {
        let ask = |port| {
            let stream = connect_from(port, front).unwrap_or_else(|e| panic!("port {port}: {e}"));
            let answer = ask_on(&stream, "/").unwrap();
            (stream, answer.backend)
        };
        (FIRST_PORT..FIRST_PORT + CLIENTS).map(ask).collect::<Vec<_>>()
    });
    let (streams, backends): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    // Nothing of it gets out.
    client.ip(&["link", "set", "eth0", "down"]).unwrap();
    for stream in &streams {
        rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
    }
    drop(streams);
    client
        .batch(
            "link set eth0 up\n\
             addr replace 2001:db8:1::2/64 dev eth0 nodad\n\
             route replace default via 192.0.2.1\n\
             route replace ::/0 via 2001:db8:1::1\n",
        )
        .unwrap();
    backends
}

/// Case 29, with a client that has vanished: after the time-out a SYN from its port is a new connection,
/// to a backend chosen anew.
#[test]
fn a_connection_idle_for_longer_than_the_timeout_is_forgotten() {
    let inside = start(&["--tcp-timeout", "2s"]);
    for front in inside.served.fronts() {
        let before = ask_from_ports(&inside, front);
        thread::sleep(AFTER);
        let challenged = challenges(inside.lab());
        let after = ask_from_ports(&inside, front);
        assert_ne!(before, after, "{front}: nobody was given another backend");
        // Without the time-out all of them would meet their old connection.
        assert!(challenges(inside.lab()) - challenged < CLIENTS.into(), "{front}");
    }
}

/// Case 31: within the time-out the SYN goes to the old backend, which knows what to say to it: there may
/// be a client that has sent it by mistake, or somebody who would like to take over its connection.
#[test]
fn a_connection_idle_for_shorter_than_the_timeout_is_remembered() {
    let inside = start(&[]);
    for front in inside.served.fronts() {
        ask_from_ports(&inside, front);
        thread::sleep(AFTER);
        let challenged = challenges(inside.lab());
        ask_from_ports(&inside, front);
        let challenged = challenges(inside.lab()) - challenged;
        assert!(challenged >= CLIENTS.into(), "{front}: {challenged} SYNs came to their backends");
    }
}

/// How many SYNs the backends have got for a connection that they have already.
fn challenges(lab: &Lab) -> usize {
    let of_backend = |backend: &Backend| -> usize {
        let path = "/proc/thread-self/net/netstat";
        let text = backend.namespace().run(|| std::fs::read_to_string(path)).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
        let mut both = names.split(' ').zip(numbers.split(' '));
        both.find(|(name, _)| *name == "TCPSYNChallenge").unwrap().1.parse().unwrap()
    };
    lab.backends().iter().map(of_backend).sum()
}

/// Case 35: UDP sticky until timeout.
#[test]
fn a_udp_client_keeps_its_backend_until_it_was_silent_for_the_timeout() {
    let inside = start(&["--udp-timeout", "2s"]);
    for front in inside.served.fronts() {
        let sockets: Vec<_> = inside
            .lab()
            .client()
            .run(|| (0..CLIENTS).map(|_| client(front).unwrap()).collect::<Vec<_>>());
        let ask = || {
            let name = |socket| ask_to(socket, front).unwrap().0;
            sockets.iter().map(name).collect::<Vec<_>>()
        };
        let before = ask();
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 2, "both backends are in use");
        // Each question begins the time anew.
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(600));
            assert_eq!(ask(), before, "{front}");
        }
        thread::sleep(AFTER);
        assert_ne!(ask(), before, "{front}: nobody was given another backend");
    }
}

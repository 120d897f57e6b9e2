//! What the host and its containers begin themselves from ports that are served: the answers are theirs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use samport::lab::{Bridge, CLIENT_V4, CLIENT_V6, Namespace, output_of};
use samport_tests::datagrams::{Echo, ask_connected, ask_to};
use samport_tests::socket::{ask_on, connect_from};
use samport_tests::{HOST_V4, HOST_V6, Lab, Server, TIMEOUT, eventually};
use serde_json::Value;

use crate::datagrams::{Datagrams, connected};

/// A port of the usual `ip_local_port_range` that is served.
const SERVED: u16 = 50_051;
/// Where the server outside listens.
const OUTSIDE: u16 = 5_300;
/// As many exchanges as the issue that this is about was reported with.
const EXCHANGES: u32 = 10_000;

fn outside(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(CLIENT_V4.into(), port), SocketAddr::new(CLIENT_V6.into(), port)]
}

fn host(v6: bool) -> IpAddr {
    if v6 { HOST_V6.into() } else { HOST_V4.into() }
}

fn any(v6: bool, port: u16) -> SocketAddr {
    let addr: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(addr, port)
}

fn bound(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(to).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Hides the containers behind the host's address, as engines do.
fn masquerade(lab: &Lab) {
    for tables in ["iptables", "ip6tables"] {
        let mut command = lab.host().command(tables);
        let rule = ["-w", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"];
        output_of(command.args(rule)).unwrap();
    }
}

/// Backends that answer datagrams with their names at `-p 80:9090/udp` and `ports`, and a server outside.
fn start(ports: &[&str]) -> (Datagrams, Echo) {
    let options: Vec<_> = ports.iter().flat_map(|port| ["-p", port]).collect();
    let builder = Lab::builder().backends(3);
    let datagrams = Datagrams::start(builder, &options, Echo::bind);
    let echo = datagrams.on_client(|| Echo::bind("outside", OUTSIDE)).unwrap();
    (datagrams, echo)
}

/// The service goes on, with all backends, for a client that was not asked anything.
fn assert_served(datagrams: &Datagrams, port: u16) {
    let front = SocketAddr::new(HOST_V4.into(), port);
    for name in ["web-1", "web-2", "web-3"] {
        datagrams.on_client(|| {
            eventually(name, || {
                (ask_connected(&connected(front)).unwrap().0 == name).then_some(())
            });
        });
    }
}

/// Row C3: a question of the host from a port that is also served, by a socket that is connected and by one that is not.
#[test]
fn the_hosts_own_questions_from_a_served_port_are_answered() {
    let (datagrams, _outside) = start(&["50051:9090/udp"]);
    datagrams.served.lab.host().run(|| {
        for server in outside(OUTSIDE) {
            let socket = bound(any(server.is_ipv6(), SERVED));
            for _ in 0..EXCHANGES {
                assert_eq!(ask_to(&socket, server).unwrap(), ("outside".to_owned(), server));
            }
            drop(socket);
            let socket = bound(SocketAddr::new(host(server.is_ipv6()), SERVED));
            socket.connect(server).unwrap();
            for _ in 0..EXCHANGES {
                assert_eq!(ask_connected(&socket).unwrap().0, "outside");
            }
        }
    });
    assert_served(&datagrams, SERVED);
    assert!(datagrams.served.status().verdict("outbound-answer") >= u64::from(4 * EXCHANGES));
}

/// XDP opens no flow for them either.
#[test]
fn the_hosts_own_questions_are_answered_past_xdp() {
    let options = ["--hook", "xdp", "--xdp-mode", "generic"];
    // XDP leaves checksums that a device is to finish to tc.
    let builder = Lab::builder().backends(3).tx_offload_off();
    let datagrams = Datagrams::start(builder, &options, Echo::bind);
    let _outside = datagrams.on_client(|| Echo::bind("outside", OUTSIDE)).unwrap();
    datagrams.served.lab.host().run(|| {
        for server in outside(OUTSIDE) {
            let socket = bound(any(server.is_ipv6(), 80));
            for _ in 0..1_000 {
                assert_eq!(ask_to(&socket, server).unwrap(), ("outside".to_owned(), server));
            }
        }
    });
    assert_served(&datagrams, 80);
    let status = datagrams.served.status();
    assert!(status.verdict("forward-xdp") > 0, "{status:?}");
    assert!(status.verdict("outbound-answer") >= 2_000, "{status:?}");
}

/// The same, for a socket that was connected before samport was there, and says nothing more.
#[test]
fn an_answer_to_a_connected_socket_is_its_own_though_its_question_was_not_seen() {
    let (datagrams, _outside) = start(&[]);
    let lab = &datagrams.served.lab;
    for server in outside(OUTSIDE + 1) {
        let asker = lab.host().run(|| {
            let socket = bound(SocketAddr::new(host(server.is_ipv6()), 80));
            socket.connect(server).unwrap();
            socket
        });
        let from = datagrams.on_client(|| bound(any(server.is_ipv6(), OUTSIDE + 1)));
        from.send_to(b"late", asker.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(asker.recv(&mut buffer).unwrap(), 4);
    }
}

/// A resolver's sockets, each with a port that the kernel chooses: some get the served one.
#[test]
fn questions_from_ports_that_the_kernel_chooses_are_answered() {
    let (datagrams, _outside) = start(&["50051:9090/udp"]);
    let lab = &datagrams.served.lab;
    lab.host().sysctl("net/ipv4/ip_local_port_range", "50050 50053").unwrap();
    let by_served = lab.host().run(|| {
        let mut by_served = 0;
        for number in 0..EXCHANGES {
            let server = outside(OUTSIDE)[number as usize % 2];
            let socket = bound(any(server.is_ipv6(), 0));
            by_served += u32::from(socket.local_addr().unwrap().port() == SERVED);
            let asked = if number % 4 < 2 {
                ask_to(&socket, server)
            } else {
                socket.connect(server).unwrap();
                ask_connected(&socket)
            };
            assert_eq!(asked.unwrap(), ("outside".to_owned(), server));
        }
        by_served
    });
    assert!(by_served > EXCHANGES / 20, "{by_served} from the served port");
    assert_served(&datagrams, SERVED);
}

/// Row C3: clients of time servers, which ask from the port that they ask, in containers that serve nothing.
#[test]
fn questions_of_other_containers_from_a_served_port_are_answered() {
    const NTP: u16 = 123;
    let (mut datagrams, _outside) = start(&["123:9090/udp"]);
    let _server = datagrams.on_client(|| Echo::bind("time", NTP)).unwrap();
    masquerade(&datagrams.served.lab);
    for bridge in [Bridge::Backends, Bridge::Other] {
        datagrams.served.lab.add_container(bridge).unwrap();
    }
    let lab = &datagrams.served.lab;
    for guest in lab.containers() {
        guest.namespace().run(|| {
            for server in outside(NTP) {
                let socket = bound(any(server.is_ipv6(), NTP));
                for _ in 0..EXCHANGES / 2 {
                    assert_eq!(ask_to(&socket, server).unwrap(), ("time".to_owned(), server));
                }
            }
        });
    }
    assert_served(&datagrams, NTP);
}

/// Something that serves and asks with one socket: a question is answered with a name, an answer is handed on.
struct GameServer {
    namespace: String,
    socket: UdpSocket,
}

impl GameServer {
    fn start(datagrams: &mut Datagrams, name: &str) -> Self {
        datagrams.stop_echo(name);
        let backends = datagrams.served.lab.backends();
        let backend = backends.iter().find(|backend| backend.name() == name).unwrap();
        let socket = backend.namespace().run(|| bound(any(true, 9_090)));
        Self { namespace: name.to_owned(), socket }
    }

    /// Registers at a server outside, answering clients meanwhile; who has confirmed it.
    fn register(&self, at: SocketAddr) -> String {
        let at = match at.ip() {
            IpAddr::V4(addr) => SocketAddr::new(addr.to_ipv6_mapped().into(), at.port()),
            IpAddr::V6(_) => at,
        };
        self.socket.send_to(b"register", at).unwrap();
        let mut buffer = [0; 64];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).unwrap();
            if from == at {
                return String::from_utf8(buffer[..length].to_vec()).unwrap();
            }
            self.socket.send_to(self.namespace.as_bytes(), from).unwrap();
        }
    }
}

/// Row C2: servers that register at a master server from the port they serve at, and its calls come back to them.
#[test]
fn a_backend_that_asks_from_its_served_port_is_answered() {
    let (mut datagrams, _outside) = start(&["9090:9090/udp"]);
    masquerade(&datagrams.served.lab);
    let games = ["web-1", "web-2"].map(|name| GameServer::start(&mut datagrams, name));
    let masters = datagrams.on_client(|| {
        [Echo::bind("master-1", OUTSIDE + 1).unwrap(), Echo::bind("master-2", OUTSIDE + 2).unwrap()]
    });
    for number in 0..EXCHANGES {
        // Both at one master, and each at its own.
        for (index, game) in (1..).zip(&games) {
            let v6 = usize::from(number % 2 == 1);
            assert_eq!(game.register(outside(OUTSIDE)[v6]), "outside");
            assert_eq!(game.register(outside(OUTSIDE + index)[v6]), format!("master-{index}"));
        }
    }
    drop(masters);

    // A call from the master itself, to the address it has seen.
    for server in outside(OUTSIDE + 1) {
        let master = datagrams.on_client(|| bound(any(server.is_ipv6(), OUTSIDE + 1)));
        let front = SocketAddr::new(host(server.is_ipv6()), 9_090);
        for _ in 0..100 {
            master.send_to(b"call", front).unwrap();
            let mut buffer = [0; 16];
            let (length, from) = games[0].socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from.port()), (&b"call"[..], OUTSIDE + 1));
        }
    }
}

/// Without masquerading nothing answers to the host's address, and a client that a container has asked from elsewhere
/// is served as any other.
#[test]
fn a_client_that_was_asked_from_another_address_is_served() {
    let (mut datagrams, _outside) = start(&[]);
    datagrams.served.lab.add_container(Bridge::Other).unwrap();
    let lab = &datagrams.served.lab;
    let front = lab.front(80);
    let client = datagrams.on_client(|| bound(any(false, 4_444)));
    lab.containers()[0].namespace().run(|| {
        let socket = bound(any(false, 80));
        socket.send_to(b"hello", (CLIENT_V4, 4_444)).unwrap();
    });
    let mut buffer = [0; 16];
    let (_, from) = client.recv_from(&mut buffer).unwrap();
    assert_ne!(from.ip(), front.ip());
    assert!(ask_to(&client, front).unwrap().0.starts_with("web-"));
}

/// A client keeps its backend when the host sends it something from the served port as well.
#[test]
fn a_client_that_has_a_flow_keeps_it() {
    let (datagrams, _outside) = start(&[]);
    let lab = &datagrams.served.lab;
    let client = datagrams.on_client(|| connected(lab.front(80)));
    let name = ask_connected(&client).unwrap().0;
    lab.host().run(|| {
        let socket = bound(any(false, 80));
        socket.send_to(b"host", client.local_addr().unwrap()).unwrap();
    });
    let mut buffer = [0; 16];
    assert_eq!(client.recv(&mut buffer).unwrap(), 4);
    for _ in 0..10 {
        assert_eq!(ask_connected(&client).unwrap().0, name);
    }
}

/// Who was asked is a client like others when that is long ago.
#[test]
fn who_was_asked_is_a_client_later() {
    let builder = Lab::builder().backends(3);
    let datagrams = Datagrams::start(builder, &["--udp-timeout", "2s"], Echo::bind);
    let lab = &datagrams.served.lab;
    let client = datagrams.on_client(|| bound(any(false, 4_444)));
    let asker = lab.host().run(|| bound(any(false, 80)));
    asker.send_to(b"who?", (CLIENT_V4, 4_444)).unwrap();
    let mut buffer = [0; 16];
    let (_, from) = client.recv_from(&mut buffer).unwrap();
    client.send_to(b"I", from).unwrap();
    assert_eq!(asker.recv(&mut buffer).unwrap(), 1);
    drop(asker);
    client.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    let name = eventually("it is served", || ask_to(&client, lab.front(80)).ok()).0;
    assert!(name.starts_with("web-"), "{name}");
}

/// Connections too, where a service takes segments from the middle of one.
#[test]
fn connections_from_a_served_port_of_a_service_by_hash_are_their_own() {
    let options = ["-p", "50051:9090", "--balance", "maglev"];
    let mut datagrams = Datagrams::start(Lab::builder().backends(2), &options, Echo::bind);
    masquerade(&datagrams.served.lab);
    datagrams.served.lab.add_container(Bridge::Other).unwrap();
    let lab = &datagrams.served.lab;
    let server = lab.client().run(|| Server::bind("outside", OUTSIDE)).unwrap();
    let ask_all = |namespace: &Namespace| {
        namespace.run(|| {
            for to in outside(OUTSIDE) {
                let stream = connect_from(SERVED, to).unwrap();
                for _ in 0..100 {
                    assert_eq!(ask_on(&stream, "/").unwrap().backend, "outside");
                }
            }
        });
    };
    ask_all(lab.host());
    ask_all(lab.containers()[0].namespace());
    drop(server);
    assert!(lab.get(lab.front(SERVED), "/").unwrap().backend.starts_with("web-"));
}

/// What `samport explain` predicts of a packet from there to here, by name.
fn predicted(datagrams: &Datagrams, from: SocketAddr, to: SocketAddr, options: &[&str]) -> String {
    let order = ["explain", &from.to_string(), &to.to_string(), "-o", "json"];
    let said = datagrams.served.order(&[&order, options].concat());
    let document: Value = serde_json::from_str(&said).unwrap();
    match document["verdict"].as_str() {
        Some(verdict) => verdict.to_owned(),
        None => document["fate"].as_str().unwrap().to_owned(),
    }
}

/// How often the kernel has taken a packet for an answer.
fn answers(datagrams: &Datagrams) -> u64 {
    datagrams.served.status().verdict("outbound-answer")
}

#[test]
fn explain_predicts_whose_a_datagram_is() {
    let builder = Lab::builder().backends(3);
    let options = ["--udp-unanswered-timeout", "4s", "--udp-timeout", "4s"];
    let datagrams = Datagrams::start(builder, &options, Echo::bind);
    let lab = &datagrams.served.lab;
    for remote in outside(4_444) {
        let near = SocketAddr::new(host(remote.is_ipv6()), 80);
        let client = datagrams.on_client(|| bound(any(remote.is_ipv6(), 4_444)));
        let predict = || predicted(&datagrams, remote, near, &["--udp"]);
        assert_eq!(predict(), "forward", "nothing was begun");
        // Seen as it left, by a socket that is not connected.
        let asker = lab.host().run(|| bound(any(remote.is_ipv6(), 80)));
        let before = answers(&datagrams);
        asker.send_to(b"who?", remote).unwrap();
        assert_eq!(predict(), "outbound-answer");
        client.send_to(b"I", near).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(asker.recv(&mut buffer).unwrap(), 1);
        assert_eq!(answers(&datagrams), before + 1);
        // Another port of the same machine has been asked nothing.
        let beside = SocketAddr::new(remote.ip(), 4_445);
        assert_eq!(predicted(&datagrams, beside, near, &["--udp"]), "forward");
        drop(asker);
        eventually("it is forgotten", || (predict() == "forward").then_some(()));
        client.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
        client.send_to(b"me", near).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        // The four bytes of its own question have been received, or who has answered.
        let length =
            if &buffer[..length] == b"who?" { client.recv(&mut buffer).unwrap() } else { length };
        assert!(buffer[..length].starts_with(b"web-"), "{:?}", &buffer[..length]);
        assert_eq!(answers(&datagrams), before + 1);
        assert_eq!(predict(), "forward", "it has a flow");
    }
}

/// A socket that was connected before samport was there has sent nothing that was seen.
#[test]
fn explain_knows_a_connected_socket_whose_question_was_not_seen() {
    let (datagrams, _outside) = start(&[]);
    let lab = &datagrams.served.lab;
    for remote in outside(4_444) {
        let near = SocketAddr::new(host(remote.is_ipv6()), 80);
        let asker = lab.host().run(|| {
            let socket = bound(near);
            socket.connect(remote).unwrap();
            socket
        });
        let before = answers(&datagrams);
        assert_eq!(predicted(&datagrams, remote, near, &["--udp"]), "outbound-answer");
        let client = datagrams.on_client(|| bound(any(remote.is_ipv6(), 4_444)));
        client.send_to(b"late", near).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(asker.recv(&mut buffer).unwrap(), 4);
        assert_eq!(answers(&datagrams), before + 1);
        // Of TCP nothing was begun.
        assert_eq!(predicted(&datagrams, remote, near, &[]), "forward");
    }
}

#[test]
fn explain_predicts_whose_a_segment_is_where_a_service_chooses_by_hash() {
    let options = ["-p", "50051:9090", "--balance", "maglev"];
    let datagrams = Datagrams::start(Lab::builder().backends(2), &options, Echo::bind);
    let lab = &datagrams.served.lab;
    let _server = lab.client().run(|| Server::bind("outside", OUTSIDE)).unwrap();
    for remote in outside(OUTSIDE) {
        let near = SocketAddr::new(host(remote.is_ipv6()), SERVED);
        assert_eq!(predicted(&datagrams, remote, near, &[]), "forward", "nothing was begun");
        let stream = lab.host().run(|| connect_from(SERVED, remote).unwrap());
        let before = answers(&datagrams);
        assert_eq!(predicted(&datagrams, remote, near, &[]), "outbound-answer");
        assert_eq!(ask_on(&stream, "/").unwrap().backend, "outside");
        assert!(answers(&datagrams) > before);
    }
}

//! Clients in containers: on the backends' bridge, on another one, and the backends themselves.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use samport::lab::{Backend, Bridge, Builder, Namespace, output_of};
use samport_tests::datagrams::{Echo, ask_to, ask_whom};
use samport_tests::load::{Connection, Tally, get};
use samport_tests::served::{LISTEN, Served, TARGET};
use samport_tests::socket::{ask_on, connect_from};
use samport_tests::{HOST_V4, HOST_V6, Lab, TIMEOUT, require_root};

/// Questions to each address by each protocol.
const QUESTIONS: u32 = 12;

/// A lab whose backends answer TCP and UDP, with a container on either bridge.
pub struct Inside {
    pub served: Served,
    echoes: Vec<Echo>,
}

impl Inside {
    pub fn start(builder: Builder, options: &[&str]) -> Self {
        Self::start_tuned(builder, options, |_| ())
    }

    /// The same, with something done to the lab before samport starts.
    pub fn start_tuned(builder: Builder, options: &[&str], tune: impl FnOnce(&Lab)) -> Self {
        require_root();
        let mut lab = builder.build().unwrap();
        lab.add_container(Bridge::Backends).unwrap();
        lab.add_container(Bridge::Other).unwrap();
        tune(&lab);
        let echo = |backend: &Backend| {
            backend.namespace().run(|| Echo::bind(backend.name(), TARGET)).unwrap()
        };
        let echoes = lab.backends().iter().map(echo).collect();
        let udp = format!("{LISTEN}:{TARGET}/udp");
        let served = Served::start(lab, &[&["-p", &udp], options].concat());
        Self { served, echoes }
    }

    pub fn lab(&self) -> &Lab {
        &self.served.lab
    }

    pub fn verdict(&self, name: &str) -> u64 {
        self.served.status().verdict(name)
    }

    pub fn neighbour(&self) -> &Backend {
        &self.lab().containers()[0]
    }

    pub fn stranger(&self) -> &Backend {
        &self.lab().containers()[1]
    }
}

/// What a container may dial: the host's address and those of both bridges.
pub fn addresses() -> Vec<SocketAddr> {
    let bridges = [Bridge::Backends, Bridge::Other];
    let gateways = bridges.iter().flat_map(|on| [on.v4(1).into(), on.v6(1).into()]);
    let own = [IpAddr::from(HOST_V4), HOST_V6.into()];
    own.into_iter().chain(gateways).map(|ip| SocketAddr::new(ip, LISTEN)).collect()
}

/// Asks over TCP and UDP from a namespace, and panics unless backends answer that saw the client's own
/// address; `own` is the client's name if it is a backend, which sees what it has dialled.
pub fn assert_served(client: &Namespace, own: Option<&str>, fronts: &[SocketAddr]) -> Tally {
    client.run(|| {
        let mut tally = Tally::default();
        for front in fronts {
            for _ in 0..QUESTIONS {
                let answer = get(*front, "/").unwrap_or_else(|e| panic!("TCP to {front}: {e}"));
                let seen = [answer.client, answer.local_addr];
                check_seen(*front, own, &answer.backend, seen);
                tally.add(&answer.backend);
                let (name, seen) =
                    ask_whom(*front).unwrap_or_else(|e| panic!("UDP to {front}: {e}"));
                check_seen(*front, own, &name, seen);
                tally.add(&name);
            }
            let mut connection = Connection::open(*front).unwrap();
            assert!(connection.get("/bytes/1000000").unwrap().is_pattern(), "{front}");
            assert_eq!(connection.post(1_000_000).unwrap().status, 200, "{front}");
        }
        tally
    })
}

fn check_seen(front: SocketAddr, own: Option<&str>, by: &str, [seen, real]: [SocketAddr; 2]) {
    let expected = match own {
        Some(own) if own == by => SocketAddr::new(front.ip(), real.port()),
        _ => real,
    };
    assert_eq!(seen, expected, "{by} was asked by {real} through {front}");
}

fn both(tally: &Tally) {
    assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{tally}");
}

fn two() -> Builder {
    Lab::builder().backends(2)
}

/// Case 67: From the same bridge.
#[test]
fn a_container_on_the_backends_bridge_is_served_at_every_address_of_the_host() {
    let inside = Inside::start(two(), &[]);
    both(&assert_served(inside.neighbour().namespace(), None, &addresses()));
}

/// Case 67: From another bridge.
#[test]
fn a_container_on_another_bridge_is_served_at_every_address_of_the_host() {
    let inside = Inside::start(two(), &[]);
    both(&assert_served(inside.stranger().namespace(), None, &addresses()));
}

/// Case 66: also when it is a backend and picks itself, or the other one.
#[test]
fn backends_that_dial_the_host_get_each_other_and_themselves() {
    let inside = Inside::start(two(), &[]);
    for backend in inside.lab().backends() {
        both(&assert_served(backend.namespace(), Some(backend.name()), &addresses()));
    }
}

/// Case 66: the only backend.
#[test]
fn the_only_backend_dials_the_host_and_gets_itself() {
    let inside = Inside::start(Lab::builder(), &[]);
    let backend = &inside.lab().backends()[0];
    assert_served(backend.namespace(), Some(backend.name()), &addresses());
}

/// Cases 66, 67 and 73: past the firewall, both ways, for all of them.
#[test]
fn containers_are_served_where_the_firewall_forwards_nothing_and_it_sees_no_packet() {
    for options in [&[][..], &["--forward", "neigh"]] {
        let inside = Inside::start_tuned(two().docker_like_firewall(), options, watch_firewall);
        for container in inside.lab().containers() {
            both(&assert_served(container.namespace(), None, &addresses()));
        }
        for backend in inside.lab().backends() {
            both(&assert_served(backend.namespace(), Some(backend.name()), &addresses()));
        }
        let host = inside.lab().host();
        for tables in ["iptables-save", "ip6tables-save"] {
            let saved = output_of(host.command(tables).args(["-c", "-t", "raw"])).unwrap();
            let ours = saved.lines().filter(|line| line.contains("--ports 80,9090"));
            let seen: Vec<_> = ours.filter(|line| !line.starts_with("[0:0]")).collect();
            assert!(seen.is_empty(), "{options:?}: the firewall saw {seen:?}");
        }
        let tracked = host.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
        let tracked = tracked.unwrap();
        let ours: Vec<_> = tracked.lines().filter(|line| line.contains("port=9090")).collect();
        assert!(ours.is_empty(), "{options:?}: conntrack knows {ours:?}");
    }
}

/// Rules that count the packets of the service, and one that needs conntrack.
fn watch_firewall(lab: &Lab) {
    for tables in ["iptables", "ip6tables"] {
        for protocol in ["tcp", "udp"] {
            let rule = ["-w", "-t", "raw", "-A", "PREROUTING", "-p", protocol];
            let ports = ["-m", "multiport", "--ports", "80,9090"];
            output_of(lab.host().command(tables).args(rule).args(ports)).unwrap();
        }
        // On, it shows the firewall also what only crosses the bridge towards us.
        let bridge = format!("net/bridge/bridge-nf-call-{tables}");
        lab.host().sysctl(&bridge, "0").unwrap();
        let policy = ["-w", "-P", "FORWARD", "DROP"];
        output_of(lab.host().command(tables).args(policy)).unwrap();
        let track = ["-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"];
        output_of(lab.host().command(tables).args(track)).unwrap();
    }
}

/// Case 11, for addresses of the host that are not for everybody.
#[test]
fn outside_clients_are_not_served_at_addresses_of_the_hosts_inside() {
    let inside = Inside::start(two(), &[]);
    let before = inside.verdict("not-ours");
    let gateways = addresses()
        .into_iter()
        .filter(|front| ![IpAddr::from(HOST_V4), HOST_V6.into()].contains(&front.ip()));
    for front in gateways {
        inside.lab().client().run(|| {
            let error = TcpStream::connect_timeout(&front, TIMEOUT).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{front}");
            assert_eq!(ask_whom(front).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
    }
    assert!(inside.verdict("not-ours") >= before + 8, "four addresses, two protocols");
    assert_eq!(inside.served.status().sum("packets_in"), 0);
}

/// Case 11, for datagrams: what passes through to the same port elsewhere.
#[test]
fn datagrams_through_the_host_to_the_same_port_elsewhere_are_not_ours() {
    let inside = Inside::start(two(), &["-p", "9090:9090/udp"]);
    let lab = inside.lab();
    let elsewhere = |container: &Backend| [container.v4(TARGET), container.v6(TARGET)];
    let _echo = inside.stranger().namespace().run(|| Echo::bind("app-2", TARGET)).unwrap();
    for from in [lab.client(), inside.neighbour().namespace(), lab.backends()[0].namespace()] {
        for address in elsewhere(inside.stranger()) {
            let (name, [seen, real]) = from.run(|| ask_whom(address)).unwrap();
            assert_eq!((&*name, seen), ("app-2", real));
        }
    }
    assert_eq!(inside.served.status().sum("packets_in"), 0);
}

/// Case 11, inside: a container that asks another by its own address gets
/// that one, whatever is served on the port.
#[test]
fn containers_that_dial_each_other_are_not_balanced() {
    let inside = Inside::start(two(), &["-p", "9090:9090", "-p", "9090:9090/udp"]);
    let backends = inside.lab().backends();
    for client in backends.iter().chain(inside.lab().containers()) {
        for backend in backends.iter().filter(|backend| backend.name() != client.name()) {
            for address in [backend.v4(TARGET), backend.v6(TARGET)] {
                client.namespace().run(|| {
                    let answer = get(address, "/").unwrap();
                    assert_eq!(
                        (&*answer.backend, answer.client),
                        (backend.name(), answer.local_addr)
                    );
                    assert_eq!(ask_whom(address).unwrap().0, backend.name());
                });
            }
        }
    }
}

/// Case 40, for containers: a datagram to a port that nobody listens on.
#[test]
fn containers_learn_that_a_backend_does_not_listen() {
    let mut inside = Inside::start(two(), &[]);
    inside.echoes.clear();
    // What web-1 asks is not to come back to itself.
    inside.served.change(("~", "web-1", "weight 0"), |file| file.set_weight("web-1", 0));
    let lab = inside.lab();
    for client in lab.backends()[..1].iter().chain(lab.containers()) {
        for front in addresses() {
            client.namespace().run(|| refused(client.name(), front));
        }
    }
    assert!(inside.verdict("icmp-reply") > 0);
}

/// Asks, and expects to be told at once. Once only: such errors are few by the kernel's own limit.
fn refused(who: &str, front: SocketAddr) {
    let socket = samport_tests::datagrams::client(front).unwrap();
    socket.connect(front).unwrap();
    socket.send(b"who?").unwrap();
    let error = socket.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{who} to {front}");
}

/// A backend that has dialled itself sees, in place of its own address, the one of the host that it has
/// dialled. The host's own clients come from there too, and may use the same port afterwards.
#[test]
fn a_port_that_a_backend_has_dialled_itself_from_serves_the_host_too() {
    const PORTS: std::ops::Range<u16> = 20_000..20_010;
    let inside = Inside::start(Lab::builder().backends(1), &[]);
    let backend = &inside.lab().backends()[0];
    for gateway in [Bridge::Backends.v4(1).into(), IpAddr::from(Bridge::Backends.v6(1))] {
        let front = SocketAddr::new(gateway, LISTEN);
        for (namespace, who) in [(backend.namespace(), "itself"), (inside.lab().host(), "the host")]
        {
            namespace.run(|| {
                for port in PORTS {
                    let stream = connect_from(port, front).unwrap_or_else(|e| {
                        panic!("TCP from port {port} of {who} to {front}: {e}")
                    });
                    ask_on(&stream, "/")
                        .unwrap_or_else(|e| panic!("{port} of {who} to {front}: {e}"));
                    drop(stream);
                    let any = if front.is_ipv4() { "0.0.0.0" } else { "::" };
                    let socket = UdpSocket::bind((any, port)).unwrap();
                    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
                    ask_to(&socket, front).unwrap_or_else(|e| {
                        panic!("UDP from port {port} of {who} to {front}: {e}")
                    });
                }
            });
        }
    }
}

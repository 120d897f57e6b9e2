//! Clients on the host itself.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use samport_tests::bpf::Map;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::datagrams::{Echo, ask_connected, ask_to, client};
use samport_tests::load::{Connection, Tally, get};
use samport_tests::served::{LISTEN, Served, Status, TARGET, text};
use samport_tests::{HOST_V4, HOST_V6, Server};

use crate::lab;

pub const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), LISTEN);
pub const LOCALHOST_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), LISTEN);

/// A lab whose backends also answer datagrams, behind samport.
pub struct Local {
    pub served: Served,
    _echoes: Vec<Echo>,
}

impl Local {
    pub fn start(backends: u8, options: &[&str]) -> Self {
        let options = [&["-p", "80:9090/udp"], options].concat();
        let served = Served::start(lab(backends), &options);
        let echo = |backend: &samport::lab::Backend| {
            backend.namespace().run(|| Echo::bind(backend.name(), TARGET)).unwrap()
        };
        let echoes = served.lab.backends().iter().map(echo).collect();
        Self { served, _echoes: echoes }
    }

    /// Does something in the host.
    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.served.lab.host().run(work)
    }

    /// The name of who answers a datagram must be of a backend.
    pub fn assert_backend(&self, name: &str) {
        let mut backends = self.served.lab.backends().iter();
        assert!(backends.any(|backend| backend.name() == name), "{name:?} is no backend");
    }

    fn remove(&mut self, name: &str) {
        self.served.change(("-", name, "gone"), |file| file.remove(name));
    }

    pub fn verdict(&self, name: &str) -> u64 {
        self.served.status().verdict(name)
    }
}

/// Every address of the host, and what a socket for IPv6 calls two of them.
fn addresses() -> Vec<SocketAddr> {
    let bridge = [IpAddr::from([172, 30, 0, 1]), "2001:db8:2::1".parse().unwrap()];
    let mapped = [Ipv4Addr::LOCALHOST, HOST_V4].map(|ip| ip.to_ipv6_mapped().into());
    let own = [HOST_V4.into(), HOST_V6.into(), LOCALHOST.ip(), LOCALHOST_V6.ip()];
    let all = own.into_iter().chain(bridge).chain(mapped);
    all.map(|ip| SocketAddr::new(ip, LISTEN)).collect()
}

/// Case 65: 127.0.0.1, ::1 and the host's addresses from the host.
#[test]
fn connections_from_the_host_to_every_address_of_its_own_reach_the_backends() {
    let local = Local::start(2, &[]);
    for address in addresses() {
        let tally = local.on_host(|| {
            let mut tally = Tally::default();
            for _ in 0..30 {
                let answer = get(address, "/").unwrap_or_else(|e| panic!("{address}: {e}"));
                // The client's end is its real one.
                assert_eq!(
                    answer.client.ip().to_canonical(),
                    answer.local_addr.ip().to_canonical()
                );
                tally.add(&answer.backend);
            }
            tally
        });
        // That one of the two gets none of thirty happens once in 500 million times.
        assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{address}: {tally}");
        assert_eq!(tally.of("web-1") + tally.of("web-2"), 30, "{address}: {tally}");
    }
    let connections = 30 * addresses().len() as u64;
    assert_eq!(local.verdict("local-forward"), connections);
    assert_eq!(local.served.status().sum("flows"), connections);
}

/// Case 65: 1 MB each way.
#[test]
fn a_connection_from_the_host_carries_what_is_sent() {
    let local = Local::start(1, &[]);
    for address in [LOCALHOST, LOCALHOST_V6] {
        local.on_host(|| {
            let mut connection = Connection::open(address).unwrap();
            assert!(connection.get("/bytes/1000000").unwrap().is_pattern());
            assert_eq!(connection.post(1_000_000).unwrap().status, 200);
        });
    }
}

/// Cases 65 and 68: datagrams too, and who sends the answer is who was asked.
#[test]
fn datagrams_from_the_host_to_every_address_of_its_own_reach_the_backends() {
    let local = Local::start(2, &[]);
    for address in addresses() {
        let (connected, unconnected) = local.on_host(|| {
            let one = client(address).unwrap();
            one.connect(address).unwrap();
            let connected = ask_connected(&one).unwrap();
            assert_eq!(one.peer_addr().unwrap(), address);
            (connected, ask_to(&client(address).unwrap(), address).unwrap())
        });
        for (name, from) in [connected, unconnected] {
            local.assert_backend(&name);
            assert_eq!(from, address);
        }
    }
    let sockets = 2 * addresses().len() as u64;
    assert_eq!(local.verdict("local-forward"), sockets);
    assert_eq!(local.served.status().sum("flows"), sockets);
}

/// To the kernel, "any" as a destination is loopback.
#[test]
fn the_unspecified_address_is_localhost() {
    let local = Local::start(1, &[]);
    for (any, localhost) in [("0.0.0.0:80", LOCALHOST), ("[::]:80", LOCALHOST_V6)] {
        let any: SocketAddr = any.parse().unwrap();
        local.on_host(|| {
            let stream = TcpStream::connect(any).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), localhost);
            let (name, from) = ask_to(&client(any).unwrap(), any).unwrap();
            assert_eq!((name.as_str(), from), ("web-1", localhost));
        });
    }
}

/// Case 68: getpeername shows what was dialled.
#[test]
fn the_other_end_of_a_connection_is_what_was_dialled() {
    let local = Local::start(2, &[]);
    for address in addresses() {
        local.on_host(|| {
            let stream = TcpStream::connect(address).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
        });
    }
    // What samport did not send there is told the truth.
    let direct = local.served.lab.backends()[0].v4(TARGET);
    let peer = local.on_host(|| TcpStream::connect(direct).unwrap().peer_addr().unwrap());
    assert_eq!(peer, direct);
}

/// Case 68: recvmsg rewrites only senders that the socket was sent to.
#[test]
fn a_datagram_of_a_backend_that_was_not_asked_has_its_own_sender() {
    let local = Local::start(1, &[]);
    let direct = local.served.lab.backends()[0].v4(TARGET);
    local.on_host(|| {
        let socket = client(direct).unwrap();
        assert_eq!(ask_to(&socket, direct).unwrap().1, direct);
        // Once this socket has dialled the service, that is what the backend is to it.
        assert_eq!(ask_to(&socket, LOCALHOST).unwrap().1, LOCALHOST);
        assert_eq!(ask_to(&client(direct).unwrap(), direct).unwrap().1, direct);
    });
}

/// Case 69: A container's own 127.0.0.1 is not touched.
#[test]
fn a_containers_own_localhost_is_its_own() {
    let local = Local::start(2, &[]);
    let container = local.served.lab.backends()[0].namespace();
    for address in [LOCALHOST, LOCALHOST_V6] {
        let error = container.run(|| TcpStream::connect(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    let _own = container.run(|| Server::bind("own", LISTEN)).unwrap();
    let _own_datagrams = container.run(|| Echo::bind("own", LISTEN)).unwrap();
    for address in [LOCALHOST, LOCALHOST_V6] {
        container.run(|| {
            assert_eq!(get(address, "/").unwrap().backend, "own");
            assert_eq!(
                ask_to(&client(address).unwrap(), address).unwrap(),
                ("own".into(), address)
            );
        });
    }
    for verdict in ["local-forward", "local-restored", "local-no-backend"] {
        assert_eq!(local.verdict(verdict), 0, "{verdict}");
    }
}

#[test]
fn no_local_leaves_the_host_to_itself() {
    let local = Local::start(1, &["--no-local"]);
    for address in [LOCALHOST, LOCALHOST_V6, SocketAddr::new(HOST_V4.into(), LISTEN)] {
        let error = local.on_host(|| TcpStream::connect(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(local.served.status().0["local"], false);
    let lines = local.served.daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains("not served")), "{lines:?}");
}

#[test]
fn weights_count_for_the_host_too() {
    let mut local = Local::start(2, &["--drain", "1"]);
    local.served.change(("~", "web-1", "weight 0"), |file| file.set_weight("web-1", 0));
    local.on_host(|| {
        for _ in 0..20 {
            assert_eq!(get(LOCALHOST, "/").unwrap().backend, "web-2");
            assert_eq!(ask_to(&client(LOCALHOST).unwrap(), LOCALHOST).unwrap().0, "web-2");
        }
    });
}

/// A backend that goes takes connected sockets with it, instead of leaving them to wait for it.
#[test]
fn connections_of_the_host_to_a_backend_that_goes_are_ended() {
    let mut local = Local::start(2, &["--drain", "1"]);
    for address in [LOCALHOST, LOCALHOST_V6, mapped_localhost()] {
        let name = format!("web-{}", local.served.lab.backends().len());
        let addresses = local.served.addresses_of(&name);
        let on = |wanted: &str| loop {
            let mut connection = Connection::open(address).unwrap();
            if connection.get("/").unwrap().backend == wanted {
                break connection;
            }
        };
        let (to_it, mut to_other) = local.on_host(|| (on(&name), on("web-1")));
        let direct = local.on_host(|| TcpStream::connect(addresses[0])).unwrap();
        local.remove(&name);
        let error = to_it.stream().read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{address}");
        // Nobody else's: those of other backends, and those samport did not send there.
        assert_eq!(local.on_host(|| to_other.get("/")).unwrap().backend, "web-1");
        direct.set_nonblocking(true).unwrap();
        assert_eq!((&direct).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(local.on_host(|| get(address, "/")).unwrap().backend, "web-1");

        let (name, addresses) = local.served.add_backend();
        local.served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    }
}

/// moby#8795, cilium#48244: connected datagram sockets do not stay with a backend that is gone.
#[test]
fn a_connected_datagram_socket_of_a_backend_that_goes_gets_an_error_and_may_connect_again() {
    let mut local = Local::start(2, &["--drain", "1"]);
    let mut sockets: Vec<_> = [LOCALHOST, LOCALHOST_V6, mapped_localhost()]
        .into_iter()
        .map(|address| {
            let on_web_2 = || loop {
                let socket = client(address).unwrap();
                socket.connect(address).unwrap();
                if ask_connected(&socket).unwrap().0 == "web-2" {
                    break socket;
                }
            };
            (address, local.on_host(on_web_2))
        })
        .collect();
    local.remove("web-2");
    for (address, socket) in &mut sockets {
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{address}");
        local.on_host(|| {
            socket.connect(*address).unwrap();
            assert_eq!(ask_connected(socket).unwrap(), ("web-1".into(), *address));
        });
    }
}

/// An unconnected socket stays with its backend while that serves, and goes to another one by itself.
#[test]
fn datagrams_of_an_unconnected_socket_stay_with_a_backend_until_it_goes() {
    let mut local = Local::start(2, &["--drain", "1"]);
    for (address, gone) in [(LOCALHOST, "web-1"), (LOCALHOST_V6, "web-2")] {
        let socket = local.on_host(|| {
            loop {
                let socket = client(address).unwrap();
                if ask_to(&socket, address).unwrap().0 == gone {
                    break socket;
                }
            }
        });
        let flows = local.served.status().sum("flows");
        for _ in 0..20 {
            assert_eq!(ask_to(&socket, address).unwrap(), (gone.into(), address));
        }
        assert_eq!(local.served.status().sum("flows"), flows);
        local.remove(gone);
        let (name, from) = ask_to(&socket, address).unwrap();
        assert!(name != gone && from == address, "{name} {from}");
        let addresses = local.served.addresses_of(gone);
        local.served.change(("+", gone, ""), |file| file.add_all(gone, addresses));
    }
}

/// A connected socket that names the same address in a datagram stays with its backend: it would
/// hear no other.
#[test]
fn a_connected_socket_that_names_the_address_again_stays_with_its_backend() {
    let local = Local::start(2, &[]);
    for _ in 0..10 {
        local.on_host(|| {
            let socket = client(LOCALHOST).unwrap();
            socket.connect(LOCALHOST).unwrap();
            let (first, _) = ask_connected(&socket).unwrap();
            assert_eq!(ask_to(&socket, LOCALHOST).unwrap(), (first, LOCALHOST));
        });
    }
}

/// What is bound to a loopback address cannot talk to a container; it talks to the host itself.
#[test]
fn a_socket_bound_to_localhost_reaches_the_hosts_own_server() {
    let local = Local::start(1, &[]);
    for address in [LOCALHOST, LOCALHOST_V6] {
        local.on_host(|| {
            let _own = TcpListener::bind(address).unwrap();
            let _datagrams = UdpSocket::bind(address).unwrap();
            let from = SocketAddr::new(address.ip(), 0);
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let stream = socket(family, SocketType::STREAM, None).unwrap();
            bind(&stream, &from).unwrap();
            connect(&stream, &address).unwrap();
            assert_eq!(TcpStream::from(stream).peer_addr().unwrap(), address);
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(b"?", address).unwrap();
        });
    }
    assert_eq!(local.verdict("local-bound-elsewhere"), 4);
    assert_eq!(local.verdict("local-forward"), 0);
}

/// Case 59, from the host: without a backend the host answers itself, which is at once.
#[test]
fn without_a_backend_the_host_is_refused_at_once() {
    let lab = lab(0);
    let file = Backends::none();
    let _daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80,80/udp", "--file", file.path()]);
    for address in [LOCALHOST, LOCALHOST_V6, lab.front(LISTEN), lab.front_v6(LISTEN)] {
        let error = lab.host().run(|| TcpStream::connect(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        lab.host().run(|| {
            let socket = client(address).unwrap();
            socket.connect(address).unwrap();
            let error = ask_connected(&socket).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        });
    }
    let status = Status::all_in(lab.host()).remove(0);
    assert_eq!(status.verdict("local-no-backend"), 8);
}

#[test]
fn a_server_that_was_on_localhost_before_stays_there() {
    let lab = lab(1);
    let own = lab.host().run(|| TcpListener::bind(LOCALHOST)).unwrap();
    let served = Served::start(lab, &[]);
    let host = served.lab.host();
    host.run(|| {
        let client = TcpStream::connect(LOCALHOST).unwrap();
        let (_, who) = own.accept().unwrap();
        assert_eq!(who, client.local_addr().unwrap());
    });
    assert_eq!(host.run(|| get(LOCALHOST_V6, "/")).unwrap().backend, "web-1");
    assert_eq!(host.run(|| get(served.lab.front(LISTEN), "/")).unwrap().backend, "web-1");
}

/// samport asks the backends themselves whether they answer, and takes no part of their load.
#[test]
fn samports_own_probe_goes_where_it_is_meant_to() {
    let mut local = Local::start(1, &[]);
    let (name, addresses) = local.served.add_backend();
    local.served.change(("+", &name, ""), |file| file.add_all(&name, addresses));
    assert_eq!(local.verdict("local-forward"), 0);
    assert_eq!(local.served.status().sum("flows"), 0);
}

/// Case 86, for local clients: each has its hooks.
#[test]
fn two_samports_serve_the_host_side_by_side() {
    let local = Local::start(1, &[]);
    let backend = local.served.lab.backends()[0].v4(TARGET).to_string();
    let args = ["-i", "eth0", "-p", "81", "--backend", &backend];
    let other = Daemon::start(&local.served.lab, &args);
    let second = SocketAddr::new(LOCALHOST.ip(), 81);
    local.on_host(|| {
        assert_eq!(get(LOCALHOST, "/").unwrap().backend, "web-1");
        assert_eq!(TcpStream::connect(second).unwrap().peer_addr().unwrap(), second);
        assert_eq!(get(second, "/").unwrap().backend, "web-1");
    });
    other.stop();
    local.on_host(|| {
        let error = TcpStream::connect(second).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(get(LOCALHOST, "/").unwrap().backend, "web-1");
    });
}

/// A connection kept for long must not lose its entry to many short ones.
#[test]
fn nothing_is_remembered_of_connected_sockets_that_are_closed() {
    let local = Local::start(1, &[]);
    let status = local.served.status().0;
    let pins = Path::new("/sys/fs/bpf/samport").join(text(&status, "name"));
    let entries = |map: &str| Map::open(&pins.join(map)).unwrap().values().unwrap().len();
    let remembered = || [entries("map_LOCAL_PEERS"), entries("map_LOCAL_CHOICES")];
    let open = local.on_host(|| {
        addresses()
            .into_iter()
            .map(|address| {
                let socket = client(address).unwrap();
                socket.connect(address).unwrap();
                (TcpStream::connect(address).unwrap(), socket)
            })
            .collect::<Vec<_>>()
    });
    assert_eq!(remembered(), [2 * open.len(), open.len()]);
    drop(open);
    assert_eq!(remembered(), [0, 0]);
}

fn mapped_localhost() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), LISTEN)
}

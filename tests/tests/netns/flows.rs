//! One connection, one backend.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use samport::lab::{Backend, CLIENT_V4, CLIENT_V6, Namespace, output_of};
use samport_tests::daemon::Daemon;
use samport_tests::datagrams::{ask_to, client};
use samport_tests::frames::{ends_of, to_mac};
use samport_tests::load::Connection;
use samport_tests::packet::Segment;
use samport_tests::raw::{Sniffer, mac, send};
use samport_tests::served::{LISTEN, Served, Status, TARGET};
use samport_tests::socket::{ask_on, connect_from};
use samport_tests::{HOST_V4, HOST_V6, Lab, eventually, require_root};

use crate::lab;

/// Local ports of clients, outside of the range the kernel takes others from.
const FIRST_PORT: u16 = 20_000;

/// `iptables` or `ip6tables`, and a suffix like `-save`, in a namespace.
fn firewall(namespace: &Namespace, v6: bool, suffix: &str) -> Command {
    namespace.command(format!("{}{suffix}", if v6 { "ip6tables" } else { "iptables" }))
}

/// Lets a backend drop the SYNs of these client ports and count them.
fn drop_syns(backend: &Backend, v6: bool, ports: &[u16]) {
    let rule = |port| format!("-A INPUT -p tcp --syn --sport {port} -j DROP\n");
    let rules: String = ports.iter().map(rule).collect();
    let mut restore = firewall(backend.namespace(), v6, "-restore");
    let mut child = restore.arg("-w").stdin(Stdio::piped()).spawn().unwrap();
    write!(child.stdin.take().unwrap(), "*filter\n{rules}COMMIT\n").unwrap();
    assert!(child.wait().unwrap().success());
}

/// How many SYNs a backend has dropped, by client port.
fn dropped_syns(backend: &Backend, v6: bool) -> BTreeMap<u16, u64> {
    let saved = output_of(firewall(backend.namespace(), v6, "-save").arg("-c")).unwrap();
    // [2:120] -A INPUT -p tcp -m tcp --sport 20000 --tcp-flags …
    let rule = |line: &str| {
        let packets = line.strip_prefix('[')?.split(':').next()?.parse().ok()?;
        let port = line.split("--sport ").nth(1)?.split(' ').next()?.parse().ok()?;
        Some((port, packets))
    };
    saved.lines().filter_map(rule).collect()
}

/// Case 24: SYN retransmit: same backend, where a silent one is not to be exchanged for another.
#[test]
fn a_syn_sent_again_goes_to_the_same_backend() {
    let served = Served::start(lab(4), &["--connect-failover", "off"]);
    let backends = served.lab.backends();
    let ports: Vec<u16> = (FIRST_PORT..FIRST_PORT + 12).collect();
    for front in served.fronts() {
        let v6 = front.is_ipv6();
        for backend in backends {
            drop_syns(backend, v6, &ports);
        }
        let ask = |port| move || ask_on(&connect_from(port, front)?, "/");
        let clients: Vec<_> =
            ports.iter().map(|port| (*port, served.lab.client().spawn(ask(*port)))).collect();

        eventually("every client sends its SYN a second time", || {
            let counts = backends.iter().map(|backend| dropped_syns(backend, v6));
            let mut sums: BTreeMap<u16, u64> = BTreeMap::new();
            counts.flatten().for_each(|(port, count)| *sums.entry(port).or_default() += count);
            ports.iter().all(|port| sums.get(port) >= Some(&2)).then_some(())
        });
        let counts: Vec<_> = backends.iter().map(|backend| dropped_syns(backend, v6)).collect();
        for backend in backends {
            output_of(firewall(backend.namespace(), v6, "").args(["-w", "-F", "INPUT"])).unwrap();
        }
        for (port, client) in clients {
            let by_backend: Vec<_> = counts.iter().map(|of| of[&port]).collect();
            let chosen: Vec<_> = (0..4).filter(|index| by_backend[*index] > 0).collect();
            assert_eq!(chosen.len(), 1, "SYNs of port {port}: {by_backend:?}");
            // The SYN after those goes there too, and the connection comes about.
            let answer = client.join().unwrap().unwrap();
            assert_eq!(answer.backend, backends[chosen[0]].name());
        }
    }
}

/// Case 30: Mid-flow miss is never spread: the host's stack answers with a RST.
#[test]
fn a_connection_nobody_remembers_is_reset_and_not_given_to_a_backend() {
    let served = Served::start(lab(2), &[]);
    let mut connections: Vec<_> = served.lab.client().run(|| {
        let open = |front: &SocketAddr| Connection::open(*front).unwrap();
        served.fronts().iter().map(open).collect()
    });
    for connection in &mut connections {
        assert_eq!(connection.get("/").unwrap().status, 200);
    }
    let served = served.restart(&[]);
    for mut connection in connections {
        let error = connection.get("/").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let status = served.status();
    assert!(status.verdict("mid-flow-miss") >= 2);
    assert_eq!((status.sum("flows"), status.sum("packets_in")), (0, 0));
}

/// Opens a connection from the same port to each destination, asks on all of them in turns, and
/// returns who answered.
fn ask_at_once(lab: &Lab, port: u16, destinations: &[SocketAddr]) -> Vec<String> {
    lab.client().run(|| {
        let connect = |to: &SocketAddr| {
            connect_from(port, *to).unwrap_or_else(|e| panic!("from port {port} to {to}: {e}"))
        };
        let streams: Vec<_> = destinations.iter().map(connect).collect();
        let ask = || {
            let ask = |stream| {
                let answer = ask_on(stream, "/").unwrap_or_else(|e| panic!("port {port}: {e}"));
                assert_eq!(answer.client.port(), port);
                answer.backend
            };
            streams.iter().map(ask).collect::<Vec<_>>()
        };
        let first = ask();
        assert_eq!(ask(), first, "who answers has changed");
        first
    })
}

/// Case 32: The same client port through two VIPs: both work.
#[test]
fn one_client_port_reaches_two_addresses_of_a_service_at_once() {
    require_root();
    let second_v4 = std::net::Ipv4Addr::new(192, 0, 2, 100);
    let second_v6: std::net::Ipv6Addr = "2001:db8:1::100".parse().unwrap();
    let builder = Lab::builder().backends(2).vip(second_v4).vip(second_v6);
    let served = Served::start(builder.build().unwrap(), &[]);
    let v4 = [HOST_V4, second_v4].map(|ip| SocketAddr::new(ip.into(), LISTEN));
    let v6 = [HOST_V6, second_v6].map(|ip| SocketAddr::new(ip.into(), LISTEN));
    for port in FIRST_PORT..FIRST_PORT + 40 {
        for destinations in [v4, v6] {
            let backends = ask_at_once(&served.lab, port, &destinations);
            // At one backend the two could not be told apart.
            assert_ne!(backends[0], backends[1], "port {port}");
        }
    }
}

/// A10: SYNs in a client's name to four addresses of the host take all that its port may be used for at a time, and
/// none of them is in its way: its own SYN, to a fifth, is served. It is sent once more if its backend has one of the
/// others, which the client's reset ends.
#[test]
fn syns_in_a_clients_name_to_other_addresses_keep_its_port_from_none() {
    require_root();
    let v4 = [100, 101, 102, 103].map(|last| IpAddr::from([192, 0, 2, last]));
    let v6 =
        [0x100, 0x101, 0x102, 0x103].map(|last| IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, last]));
    let builder = v4
        .iter()
        .chain(&v6)
        .fold(Lab::builder().backends(5).tx_offload_off(), |lab, vip| lab.vip(*vip));
    let served = Served::start(builder.build().unwrap(), &[]);
    let (host, client) = (served.lab.host(), served.lab.client());
    let host_mac = mac(host, "eth0");
    // The client would end with resets what it has not begun: as if it were not there yet.
    for front in served.fronts() {
        let ip = front.ip().to_string();
        let drop = ["-w", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "!", "-d", &ip];
        output_of(firewall(client, front.is_ipv6(), "").args(drop).args(["-j", "DROP"])).unwrap();
    }
    let sniffer = Sniffer::start(host, "eth0");
    for (front, vips) in served.fronts().into_iter().zip([v4, v6]) {
        let own: IpAddr = if front.is_ipv4() { CLIENT_V4.into() } else { CLIENT_V6.into() };
        for port in FIRST_PORT..FIRST_PORT + 20 {
            let source = SocketAddr::new(own, port);
            let syn = |vip| Segment::syn(source, SocketAddr::new(vip, LISTEN)).frame();
            let syns = vips.map(|vip| to_mac(syn(vip), host_mac));
            send(client, "eth0", &syns);
            client
                .run(|| ask_on(&connect_from(port, front)?, "/"))
                .unwrap_or_else(|e| panic!("from {source} to {front}: {e}"));
            let frames = sniffer.frames();
            let to_front = frames.iter().filter(|frame| ends_of(frame) == Some([source, front]));
            let syns = to_front.filter(|frame| Segment::read(frame).tcp.syn).count();
            assert!(syns <= 2, "{syns} SYNs of {source} to {front}");
        }
    }
}

/// Case 32, for datagrams: one socket asks at both addresses in turns.
#[test]
fn one_udp_port_reaches_two_addresses_of_a_service_at_once() {
    let second: [std::net::IpAddr; 2] =
        [[192, 0, 2, 100].into(), "2001:db8:1::100".parse().unwrap()];
    let builder = Lab::builder().backends(2).vip(second[0]).vip(second[1]);
    let inside = crate::inside::Inside::start(builder, &[]);
    for (front, second) in inside.served.fronts().into_iter().zip(second) {
        let destinations = [front, SocketAddr::new(second, LISTEN)];
        for _ in 0..40 {
            inside.lab().client().run(|| {
                let socket = client(front).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let ask = || {
                    destinations.map(|to| {
                        // A busy machine may lose a datagram, but not three.
                        let answer = (0..3).find_map(|_| ask_to(&socket, to).ok());
                        let (name, from) = answer.unwrap_or_else(|| panic!("{to} is silent"));
                        assert_eq!(from, to);
                        name
                    })
                };
                let first = ask();
                // At one backend the two could not be told apart.
                assert_ne!(first[0], first[1]);
                assert_eq!(ask(), first);
            });
        }
    }
}

/// Case 32, with two ports of the host that lead to the same port of the same backends.
#[test]
fn one_client_port_reaches_two_ports_that_lead_to_the_same_backends() {
    let lab = lab(2);
    let _servers = lab.serve(TARGET).unwrap();
    let file = samport_tests::daemon::Backends::dual(&lab, TARGET);
    let args = ["-i", "eth0", "-p", "80:9090", "-p", "81:9090", "--file", file.path()];
    let _daemon = Daemon::start(&lab, &args);
    for port in FIRST_PORT..FIRST_PORT + 40 {
        for destinations in [[lab.front(80), lab.front(81)], [lab.front_v6(80), lab.front_v6(81)]] {
            let backends = ask_at_once(&lab, port, &destinations);
            assert_ne!(backends[0], backends[1], "port {port}");
        }
    }
}

/// Case 32, one after the other: connections that are over are in nobody's way. Whoever uses a client's port
/// next, at whatever port of the host, is served at once.
#[test]
fn a_client_port_is_free_for_another_service_of_a_backend_when_its_connection_is_over() {
    const AGAIN: u16 = 100;
    let lab = lab(1);
    let _servers = lab.serve(TARGET).unwrap();
    let file = samport_tests::daemon::Backends::dual(&lab, TARGET);
    let ports = ["-p", "80:9090", "-p", "81:9090", "-p", "82:9090"];
    let args = [&["-i", "eth0", "--file", file.path()], &ports[..]].concat();
    let _daemon = Daemon::start(&lab, &args);
    let close: fn(&TcpStream) -> io::Result<()> = close;
    // What is closed the client's kernel remembers: not twice to the same.
    let rounds = [80, 81, 82].map(|port| (port, FIRST_PORT, close)).into_iter();
    let rounds = rounds.chain([80, 81, 80, 82].map(|port| (port, FIRST_PORT + AGAIN, reset as _)));
    let both =
        |(port, first, end)| [lab.front(port), lab.front_v6(port)].map(|front| (front, first, end));
    let rounds: Vec<_> = rounds.flat_map(both).collect();
    for (front, first, end) in &rounds {
        lab.client().run(|| {
            for port in *first..first + AGAIN {
                let asked = connect_from(port, *front).and_then(|stream| {
                    ask_on(&stream, "/")?;
                    end(&stream)
                });
                asked.unwrap_or_else(|e| panic!("port {port} to {front}: {e}"));
            }
        });
    }
    // Nor had any of them to ask twice.
    let status = Status::all_in(lab.host()).remove(0);
    assert_eq!(status.verdict("flow-ambiguous"), 0);
    assert_eq!(status.sum("flows"), u64::from(AGAIN) * rounds.len() as u64);
}

/// The client says that it has finished, then the server does.
fn close(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(stream.read(&mut [0])?, 0, "the server finishes too");
    Ok(())
}

fn reset(stream: &TcpStream) -> io::Result<()> {
    Ok(set_socket_linger(stream, Some(Duration::ZERO))?)
}

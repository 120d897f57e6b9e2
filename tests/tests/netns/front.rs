//! What is served: addresses, interfaces and ports, and what is not.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use samport_tests::daemon::{Backends, Daemon, samport};
use samport_tests::load::{Connection, ask, get};
use samport_tests::served::{
    LISTEN, Served, TARGET, fronts_of_second, second_client, wait_for_answer,
};
use samport_tests::{HOST_V4, Lab, Server, TIMEOUT, eventually};

use crate::lab;

/// Case 11: Transit traffic to the same port number is not ours.
#[test]
fn traffic_through_the_host_to_the_same_port_elsewhere_is_not_ours() {
    let mut lab = lab(2);
    let file = Backends::dual(&lab, LISTEN);
    // Not in the file: a machine behind the host that has a server of its own on port 80.
    lab.add_backend().unwrap();
    let _servers = lab.serve(LISTEN).unwrap();
    let port = LISTEN.to_string();
    let _daemon = Daemon::start(&lab, &["-i", "eth0", "-p", &port, "--file", file.path()]);
    for backend in lab.backends() {
        // Also one that is a backend answers under its own address.
        for address in [backend.v4(LISTEN), backend.v6(LISTEN)] {
            assert_eq!(ask(&lab, address, 30).of(backend.name()), 30, "{address}");
        }
    }
    for front in [lab.front(LISTEN), lab.front_v6(LISTEN)] {
        assert_eq!(ask(&lab, front, 30).of("web-3"), 0);
    }
}

/// Case 3, with sockets: the host's other ports are the host's.
#[test]
fn the_hosts_other_ports_are_its_own() {
    let served = Served::start(lab(1), &[]);
    let _own = served.lab.host().run(|| Server::bind("host", 81)).unwrap();
    for front in [served.lab.front(81), served.lab.front_v6(81)] {
        assert_eq!(ask(&served.lab, front, 10).of("host"), 10);
    }
}

/// Case 4: TCP and UDP on one port are independent.
#[test]
fn udp_on_a_port_that_is_balanced_for_tcp_is_the_hosts_own() {
    let served = Served::start(lab(1), &[]);
    let any = (Ipv6Addr::UNSPECIFIED, LISTEN);
    let own = served.lab.host().run(|| UdpSocket::bind(any)).unwrap();
    own.set_read_timeout(Some(TIMEOUT)).unwrap();
    for front in served.fronts() {
        let client = served.lab.client().run(|| UdpSocket::bind("[::]:0")).unwrap();
        // The socket speaks IPv6; an IPv4 address goes in its mapped form.
        let ip = match front.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        client.send_to(b"ping", (ip, LISTEN)).unwrap();
        let mut buffer = [0; 16];
        let (length, _) = own.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"ping", "{front}");
        assert_eq!(ask(&served.lab, front, 10).total(), 10);
    }
}

/// Waits until an address refuses connections at once.
fn wait_for_refusal(lab: &Lab, address: SocketAddr) {
    eventually(&format!("{address} refuses connections"), || {
        let error = lab.get(address, "/").err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
}

#[test]
fn an_address_is_served_when_it_comes_and_no_longer_when_it_goes() {
    let served = Served::start(lab(2), &[]);
    // The client gets there by its default route, whichever interface has the address.
    for address in ["198.51.100.1", "2001:db8:9::1"] {
        let ip: IpAddr = address.parse().unwrap();
        let front = SocketAddr::new(ip, LISTEN);
        let host = served.lab.host();
        host.ip(&["addr", "add", address, "dev", "eth0"]).unwrap();
        wait_for_answer(&served.lab, front);
        assert_eq!(ask(&served.lab, front, 20).total(), 20);
        // On lo it is still the host's, but of no interface that is served.
        host.ip(&["addr", "del", address, "dev", "eth0"]).unwrap();
        host.ip(&["addr", "add", address, "dev", "lo"]).unwrap();
        wait_for_refusal(&served.lab, front);
        for front in served.fronts() {
            assert_eq!(ask(&served.lab, front, 20).total(), 20);
        }
    }
}

#[test]
fn several_interfaces_are_served_each_to_its_own_clients() {
    let lab = lab(2);
    let second = second_client(&lab);
    let served = Served::start(lab, &["-i", "eth1"]);
    for front in served.fronts().into_iter().chain(fronts_of_second()) {
        // Either client dials the addresses of both interfaces.
        assert_eq!(ask(&served.lab, front, 20).total(), 20);
        for _ in 0..20 {
            let answer = second.run(|| get(front, "/")).unwrap();
            assert_eq!(answer.client, answer.local_addr);
        }
    }
    second.run(|| {
        let mut connection = Connection::open(fronts_of_second()[0]).unwrap();
        assert!(connection.get("/bytes/1000000").unwrap().is_pattern());
    });
}

#[test]
fn an_interface_that_was_not_named_is_not_served() {
    let lab = lab(1);
    let second = second_client(&lab);
    let served = Served::start(lab, &[]);
    for front in served.fronts().into_iter().chain(fronts_of_second()) {
        let error = second.run(|| get(front, "/")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{front}");
    }
    assert_eq!(ask(&served.lab, served.fronts()[0], 5).total(), 5);
}

#[test]
fn an_interface_that_goes_and_comes_back_is_served_again() {
    let lab = lab(2);
    let second = second_client(&lab);
    let served = Served::start(lab, &["-i", "eth1"]);
    served.lab.host().ip(&["link", "del", "eth1"]).unwrap();
    served.daemon.wait_for_line("eth1 is gone", TIMEOUT);
    assert_eq!(ask(&served.lab, served.fronts()[0], 20).total(), 20);
    drop(second);
    let third = second_client(&served.lab);
    for front in fronts_of_second() {
        eventually("the new interface is served", || third.run(|| get(front, "/")).ok());
    }
}

#[test]
fn several_ports_lead_to_different_ports_of_the_backends() {
    let lab = lab(2);
    let _first = lab.serve(9090).unwrap();
    let serve = |port: u16| {
        let bind = |backend: &samport::lab::Backend| {
            let name = format!("{}:{port}", backend.name());
            backend.namespace().run(|| Server::bind(&name, port)).unwrap()
        };
        lab.backends().iter().map(bind).collect::<Vec<_>>()
    };
    let _second = serve(9091);
    let addresses = lab.backends().iter().map(|one| one.v4(0).ip().to_string());
    let backends: Vec<_> = addresses.flat_map(|ip| ["--backend".to_owned(), ip]).collect();
    let mut args = vec!["-i", "eth0", "-p", "80:9090", "-p", "8080:9091/tcp"];
    args.extend(backends.iter().map(String::as_str));
    let _daemon = Daemon::start(&lab, &args);
    let tally = ask(&lab, lab.front(80), 50);
    assert_eq!(tally.of("web-1") + tally.of("web-2"), 50, "{tally}");
    let tally = ask(&lab, lab.front(8080), 50);
    assert_eq!(tally.of("web-1:9091") + tally.of("web-2:9091"), 50, "{tally}");
}

/// A backend serves clients of its own family only, and harms nobody else.
#[test]
fn an_ipv6_backend_behind_an_ipv4_front_gets_nothing_and_harms_nothing() {
    let lab = lab(2);
    let _servers = lab.serve(TARGET).unwrap();
    lab.host().ip(&["-6", "addr", "flush", "dev", "eth0"]).unwrap();
    let (v4, v6) =
        (lab.backends()[0].v4(TARGET).to_string(), lab.backends()[1].v6(TARGET).to_string());
    let args = ["-i", "eth0", "-p", "80", "--backend", &v4, "--backend", &v6];
    let daemon = Daemon::start(&lab, &args);
    assert_eq!(ask(&lab, SocketAddr::new(HOST_V4.into(), 80), 50).of("web-1"), 50);
    daemon.stop();
    assert!(samport(lab.host(), &["version"]).status.success());
}

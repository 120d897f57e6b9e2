//! Containers that are connected in another way than by a bridge.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};

use samport::lab::CLIENT_V4;
use samport_tests::attacker::{FORGED, is_forged};
use samport_tests::datagrams::{Echo, ask_to, client};
use samport_tests::docker::Dockerd;
use samport_tests::frames::{datagram, ends_of};
use samport_tests::load::{Connection, ask, get};
use samport_tests::raw::{self, Sniffer, Socket};
use samport_tests::served::{Status, second_client};
use samport_tests::{HOST_V4, HOST_V6, TIMEOUT, eventually};

use crate::{
    LABEL, ask_front, engine, engine_of, front, heard, load, names, serve, start_samport,
    wait_for_more, wait_until_gone, wait_until_serving,
};

/// Makes the macvlan network `lan` on an interface of the engine's host.
fn make_lan(docker: &Dockerd, parent: &str) {
    let parent = format!("parent={parent}");
    let v4 = ["--subnet", "192.0.2.0/24", "--gateway", "192.0.2.254"];
    let v6 = ["--ipv6", "--subnet", "2001:db8:1::/64", "--gateway", "2001:db8:1::fe"];
    let create = ["network", "create", "-d", "macvlan", "-o", &parent];
    docker.cli(&[&create[..], &v4, &v6, &["lan"]].concat());
}

fn run_on_lan(docker: &Dockerd, last: u8, options: &[&str]) {
    let (name, v4) = (format!("lan-{last}"), format!("192.0.2.{last}"));
    let v6 = format!("2001:db8:1::{last}");
    let place = ["--network", "lan", "--ip", &v4, "--ip6", &v6];
    docker.run_server(&name, &[&place[..], options].concat());
}

/// Who answers that many requests of the calling thread's network namespace.
pub fn answers(address: SocketAddr, requests: u32) -> BTreeSet<String> {
    let ask = |number| get(address, "/").unwrap_or_else(|e| panic!("{number} to {address}: {e}"));
    (0..requests).map(|number| ask(number).backend).collect()
}

/// Case 75: macvlan containers serve clients from outside, beside one on a bridge; clients on the
/// machine itself, which cannot reach them, get the other one.
#[test]
fn macvlan_containers_serve_whoever_comes_in_by_their_parent() {
    let docker = engine();
    make_lan(&docker, "eth0");
    let ports = ["--label", "samport.ports=80:9090,53:9053/udp"];
    run_on_lan(&docker, 71, &ports);
    run_on_lan(&docker, 72, &LABEL);
    docker.run_server("bridged", &LABEL);
    docker.run_server("guest", &[]);
    let samport = start_samport(&docker, &["-p", "80:9090", "-p", "53:9053/udp"]);
    heard(&samport, 0, &["+ lan-71 192.0.2.71:9090 ", " by macvlan"]);
    heard(&samport, 0, &["+ lan-71 [2001:db8:1::71]:9090 ", " by macvlan"]);
    heard(&samport, 0, &["lan-71 is in a macvlan network", "HEALTHCHECK"]);
    wait_until_serving(&samport, 0, "bridged");
    let lab = docker.lab();
    // What is not asked whether it listens may not do so yet.
    eventually("all listen", || {
        let all = lab.client().run(|| (0..40).all(|_| get(front(&docker), "/").is_ok()));
        all.then_some(())
    });
    assert_eq!(names(&ask_front(&docker, 90)), ["bridged", "lan-71", "lan-72"]);
    assert_eq!(names(&ask(lab, lab.front_v6(80), 60)), ["lan-71", "lan-72"]);

    let _echo = docker.inside("lan-71", || Echo::bind("lan-71", 9053)).unwrap();
    for to in [lab.front(53), lab.front_v6(53)] {
        let answer = lab.client().run(|| ask_to(&client(to)?, to)).unwrap();
        assert_eq!(answer, ("lan-71".to_owned(), to));
    }
    // More than a segment, both ways.
    for to in [lab.front(80), lab.front_v6(80)] {
        for _ in 0..6 {
            let mut connection = lab.client().run(|| Connection::open(to)).unwrap();
            let pattern = connection.get("/bytes/2000000").unwrap();
            assert!(pattern.is_pattern() && pattern.body.len() == 2_000_000);
            connection.post(2_000_000).unwrap();
        }
    }

    let own = ["127.0.0.1:80".parse().unwrap(), SocketAddr::new(HOST_V4.into(), 80)];
    for address in own {
        let who = lab.host().run(|| answers(address, 60));
        assert_eq!(who, ["bridged".to_owned()].into(), "{address} from the host");
    }
    let who = docker.inside("guest", || answers(front(&docker), 60));
    assert_eq!(who, ["bridged".to_owned()].into(), "from a container");

    let status = Status::all_in(lab.host()).remove(0);
    assert!(status.verdict("forward-child") > 0 && status.verdict("reply-stack") > 0);
    docker.cli(&["rm", "-f", "lan-71"]);
    wait_until_gone(&samport, 0, "lan-71");
    assert_eq!(names(&ask_front(&docker, 60)), ["bridged", "lan-72"]);
    samport.stop();
}

/// Case 75: who comes in by another interface is not sent to a child it cannot reach.
#[test]
fn a_macvlan_network_of_an_interface_that_is_not_served_is_named() {
    let docker = engine_of(&["bridged"]);
    let _second = second_client(docker.lab());
    make_lan(&docker, "eth1");
    run_on_lan(&docker, 71, &LABEL);
    let samport = serve(&docker, &["bridged"]);
    heard(&samport, 0, &["lan-71 is not served", "macvlan network is on eth1", "-i"]);
    assert_eq!(names(&ask_front(&docker, 30)), ["bridged"]);
    samport.stop();
}

/// Case 70: a container on the host's network, which serves on another of the host's ports.
#[test]
fn a_container_on_the_hosts_network_serves_beside_one_on_a_bridge() {
    let docker = engine();
    let host = ["--network", "host", "-e", "PORT=6060", "-e", "LINGER_MS=1000"];
    let ports = ["--label", "samport.ports=80:6060,53:9053/udp"];
    docker.run_server("at-home", &[&host[..], &ports].concat());
    docker.run_server("bridged", &["--label", "samport.ports=80:9090"]);
    docker.run_server("guest", &[]);
    let clash = ["--network", "host", "-e", "PORT=7070", "--label", "samport.port=80"];
    docker.run_server("clash", &clash);
    let samport = start_samport(&docker, &["-p", "80", "-p", "53/udp"]);
    heard(&samport, 0, &["\"clash\" is not served", "port 80 is for samport", "samport.target="]);
    heard(&samport, 0, &["+ at-home 192.0.2.1:6060 ", " by stack"]);
    heard(&samport, 0, &["+ at-home [2001:db8:1::1]:6060 ", " by stack"]);
    wait_until_serving(&samport, 0, "bridged");
    let lab = docker.lab();
    let both: BTreeSet<_> = ["at-home", "bridged"].map(String::from).into();
    assert_eq!(names(&ask_front(&docker, 60)), ["at-home", "bridged"]);
    assert_eq!(names(&ask(lab, lab.front_v6(80), 20)), ["at-home"]);

    let _echo = lab.host().run(|| Echo::bind("at-home", 9053)).unwrap();
    for to in [lab.front(53), lab.front_v6(53)] {
        let answer = lab.client().run(|| ask_to(&client(to)?, to)).unwrap();
        assert_eq!(answer, ("at-home".to_owned(), to));
    }
    // Clients on the machine itself, and containers: on a bridge, and one that is a backend.
    for ip in ["127.0.0.1".parse().unwrap(), HOST_V4.into()] {
        assert_eq!(lab.host().run(|| answers(SocketAddr::new(ip, 80), 40)), both, "{ip}");
    }
    for ip in ["::1".parse().unwrap(), HOST_V6.into()] {
        let only = ["at-home".to_owned()].into();
        assert_eq!(lab.host().run(|| answers(SocketAddr::new(ip, 80), 10)), only, "{ip}");
    }
    for container in ["guest", "bridged"] {
        let who = docker.inside(container, || answers(front(&docker), 40));
        assert_eq!(who, both, "from {container}");
    }

    let load = load(&docker);
    wait_for_more(&load);
    let mark = samport.mark();
    docker.cli(&["stop", "-t", "8", "at-home"]);
    wait_until_gone(&samport, mark, "at-home");
    wait_for_more(&load);
    docker.cli(&["start", "at-home"]);
    wait_until_serving(&samport, mark, "at-home");
    wait_for_more(&load);
    load.stop().assert_no_failure();
    assert_eq!(names(&ask_front(&docker, 60)), ["at-home", "bridged"]);
    samport.stop();
}

/// What all children of a parent send leaves by the parent: the MAC says which of them it is.
#[test]
fn a_macvlan_container_answers_in_no_others_name() {
    let docker = engine();
    make_lan(&docker, "eth0");
    let ports = ["--label", "samport.ports=53:9053/udp"];
    run_on_lan(&docker, 71, &ports);
    run_on_lan(&docker, 72, &ports);
    let samport = start_samport(&docker, &["-p", "53:9053/udp"]);
    for name in ["lan-71", "lan-72"] {
        heard(&samport, 0, &[&format!("+ {name} "), " by macvlan"]);
    }
    let echo = |name: &str| docker.inside(name, || Echo::bind(name, 9053)).unwrap();
    let _echoes = ["lan-71", "lan-72"].map(echo);
    let lab = docker.lab();
    let (front, client_mac) = (lab.front(53), raw::mac(lab.client(), "eth0"));
    let mut sockets = (0..100).map(|_| {
        lab.client().run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            let (name, _) = ask_to(&socket, front).unwrap();
            (socket, name)
        })
    });
    let (socket, _) = sockets.find(|(_, name)| name == "lan-71").expect("one in two is");
    let own = SocketAddr::new(CLIENT_V4.into(), socket.local_addr().unwrap().port());
    let sniffer = Sniffer::start(lab.client(), "eth0");
    docker.inside("lan-72", || {
        let mut frame = datagram("192.0.2.71:9053".parse().unwrap(), own, FORGED);
        frame[..6].copy_from_slice(&client_mac);
        Socket::open("eth0").unwrap().send(&frame).unwrap();
    });
    let frame = eventually("the forged answer leaves the host", || {
        sniffer.frames().into_iter().find(|frame| is_forged(frame))
    });
    let [from, _] = ends_of(&frame).unwrap();
    assert_eq!(from, "192.0.2.71:9053".parse().unwrap(), "not as the service's own");
    samport.stop();
}

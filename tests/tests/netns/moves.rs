//! Backends that no engine has located: where they are found, and that they are followed when their addresses move.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use samport::lab::{Backend, Bridge, CLIENT_V4, Namespace, output_of};
use samport_tests::daemon::Daemon;
use samport_tests::datagrams::{Echo, ask_to, client};
use samport_tests::load::{ask, get};
use samport_tests::served::TARGET;
use samport_tests::{HOST_V4, Lab, Server, TIMEOUT, eventually};

use crate::lab;

/// The addresses that move, as those of a failover pair.
fn shared() -> [IpAddr; 2] {
    [Bridge::Backends.v4(200).into(), Bridge::Backends.v6(0x200).into()]
}

fn take(holder: &Namespace, addr: IpAddr) {
    let length = if addr.is_ipv4() { 24 } else { 64 };
    let mut args = vec![
        "addr".to_owned(),
        "add".into(),
        format!("{addr}/{length}"),
        "dev".into(),
        "eth0".into(),
    ];
    args.extend(addr.is_ipv6().then(|| "nodad".to_owned()));
    holder.ip(&args.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
}

fn give_up(holder: &Namespace, addr: IpAddr) {
    let length = if addr.is_ipv4() { 24 } else { 64 };
    holder.ip(&["addr", "del", &format!("{addr}/{length}"), "dev", "eth0"]).unwrap();
}

/// Makes the host hear who has an address, as whoever takes one over announces it.
fn announce(holder: &Namespace, addr: IpAddr) {
    let host: IpAddr =
        if addr.is_ipv4() { Bridge::Backends.v4(1).into() } else { Bridge::Backends.v6(1).into() };
    // So that it asks for the host's MAC, and tells its own with that.
    holder.ip(&["neigh", "flush", "dev", "eth0"]).unwrap();
    holder.run(|| {
        let socket = UdpSocket::bind((addr, 0)).unwrap();
        socket.send_to(&[], (host, 9)).unwrap();
    });
}

fn mac_of(backend: &Backend) -> String {
    let link = output_of(backend.namespace().command("ip").args(["-o", "link", "show", "eth0"]));
    let link = link.unwrap();
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("a MAC").to_owned()
}

fn set_mac(backend: &Backend, mac: &str) {
    backend.namespace().ip(&["link", "set", "dev", "eth0", "address", mac]).unwrap();
}

/// Two containers, the first of which has the addresses that move, behind samport.
struct Pair {
    daemon: Daemon,
    _servers: Vec<Server>,
    _echoes: Vec<Echo>,
    lab: Lab,
}

impl Pair {
    fn start(forward: &str) -> Self {
        let lab = lab(2);
        let servers = lab.serve(TARGET).unwrap();
        let echo = |one: &Backend| one.namespace().run(|| Echo::bind(one.name(), TARGET)).unwrap();
        let echoes = lab.backends().iter().map(echo).collect();
        for addr in shared() {
            take(lab.backends()[0].namespace(), addr);
        }
        let [v4, v6] = shared().map(|addr| addr.to_string());
        let ports = ["-i", "eth0", "-p", "80:9090", "-p", "80:9090/udp"];
        let args = ["--backend", &v4, "--backend", &v6];
        let daemon =
            Daemon::start(&lab, &[&ports[..], &args[..], &["--forward", forward]].concat());
        let pair = Self { daemon, _servers: servers, _echoes: echoes, lab };
        for front in pair.fronts() {
            assert_eq!(ask(&pair.lab, front, 20).of("web-1"), 20, "{front}");
        }
        pair
    }

    fn fronts(&self) -> [SocketAddr; 2] {
        [self.lab.front(80), self.lab.front_v6(80)]
    }

    /// Moves the addresses and waits until the other container answers.
    fn hand_over(&self, from: usize, to: usize) {
        let [from, to] = [from, to].map(|index| &self.lab.backends()[index]);
        for (addr, front) in shared().into_iter().zip(self.fronts()) {
            give_up(from.namespace(), addr);
            take(to.namespace(), addr);
            eventually(&format!("{} answers at {front}", to.name()), || {
                announce(to.namespace(), addr);
                let answer = self.lab.client().run(|| get(front, "/")).ok()?;
                (answer.backend == to.name()).then_some(())
            });
            assert_eq!(ask(&self.lab, front, 20).of(to.name()), 20, "{front}");
        }
    }
}

/// A failover pair (VRRP): the address has another MAC now. There and back again.
#[test]
fn an_address_that_another_container_takes_over_is_followed() {
    let pair = Pair::start("auto");
    for addr in shared() {
        let line = pair.daemon.wait_for_line(&format!("+ {addr}"), TIMEOUT);
        assert!(line.text.contains("by peer"), "{}", line.text);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        pair.hand_over(from, to);
    }
}

/// Of datagrams nothing tells that they meet with silence, as SYNs do that are sent again: what the host hears of its
/// neighbours is enough.
#[test]
fn datagrams_follow_an_address_that_moves() {
    let pair = Pair::start("auto");
    let [first, second] = [0, 1].map(|index| &pair.lab.backends()[index]);
    for (addr, front) in shared().into_iter().zip(pair.fronts()) {
        give_up(first.namespace(), addr);
        take(second.namespace(), addr);
        eventually(&format!("{} answers at {front}", second.name()), || {
            announce(second.namespace(), addr);
            let (name, _) = pair.lab.client().run(|| {
                let socket = client(front).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                ask_to(&socket, front).ok()
            })?;
            (name == second.name()).then_some(())
        });
    }
}

/// The same by the neighbour table, where only the replies' device is known: they are recognised by the new one.
#[test]
fn replies_of_an_address_that_moved_are_recognised() {
    Pair::start("neigh").hand_over(0, 1);
}

/// A container that is made anew with the same address and the same MAC (LXC): only the bridge learns that it is
/// behind another port.
#[test]
fn a_mac_that_comes_back_behind_another_veth_is_followed() {
    let pair = Pair::start("auto");
    let [first, second] = [0, 1].map(|index| &pair.lab.backends()[index]);
    let (mac, other) = (mac_of(first), mac_of(second));
    set_mac(first, "02:00:00:00:be:ef");
    set_mac(second, &mac);
    pair.hand_over(0, 1);
    set_mac(second, &other);
    set_mac(first, &mac);
    pair.hand_over(1, 0);
}

/// A host whose uplink is a veth, as that of a container, and whose backend is on the far side of it: what is sent
/// there goes by the neighbour table.
#[test]
fn an_interface_that_clients_come_in_by_is_nobodys_veth() {
    let mut lab = lab(0);
    lab.add_container(Bridge::Other).unwrap();
    let _server = lab.client().run(|| Server::bind("far", TARGET)).unwrap();
    let backend = CLIENT_V4.to_string();
    let args = ["-i", "eth0", "-p", "80:9090", "--backend", &backend];
    let daemon = Daemon::start(&lab, &args);
    let line = daemon.wait_for_line(&format!("+ {CLIENT_V4}"), TIMEOUT);
    assert!(line.text.contains("by neigh"), "{}", line.text);
    let front: SocketAddr = (HOST_V4, 80).into();
    let container = lab.containers()[0].namespace();
    let answer = container.run(|| get(front, "/")).unwrap();
    assert_eq!((answer.backend.as_str(), answer.client), ("far", answer.local_addr));
    assert_eq!(
        lab.host().run(|| get((Ipv4Addr::LOCALHOST, 80).into(), "/")).unwrap().backend,
        "far"
    );
}

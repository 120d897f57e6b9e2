//! Who may be served.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use samport::lab::{Lab, Namespace};
use samport_tests::datagrams::{ask_whom, client};
use samport_tests::load::get;
use samport_tests::served::second_client;

use crate::inside::{Inside, addresses};

/// How long a client waits that is not served: its packets are dropped.
const SILENCE: Duration = Duration::from_millis(300);

/// A lab with `eth1` served too, to another client.
fn start(allow: &[&str]) -> (Inside, Namespace) {
    let mut second = None;
    let allow = allow.iter().flat_map(|net| ["--allow", net]);
    let options: Vec<_> = ["-i", "eth1"].into_iter().chain(allow).collect();
    let inside = Inside::start_tuned(Lab::builder().backends(2), &options, |lab| {
        second = Some(second_client(lab));
    });
    (inside, second.unwrap())
}

fn assert_served(from: &Namespace, front: SocketAddr) {
    from.run(|| {
        for _ in 0..5 {
            let answer = get(front, "/").unwrap_or_else(|e| panic!("TCP to {front}: {e}"));
            assert_eq!(answer.client, answer.local_addr);
            let (_, [seen, real]) = ask_whom(front).unwrap_or_else(|e| panic!("UDP {front}: {e}"));
            assert_eq!(seen, real);
        }
    });
}

fn assert_dropped(inside: &Inside, from: &Namespace, front: SocketAddr) {
    let before = inside.verdict("not-allowed");
    from.run(|| {
        let error = TcpStream::connect_timeout(&front, SILENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "TCP to {front}: {error}");
        let socket = client(front).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket.connect(front).unwrap();
        socket.send(b"who?").unwrap();
        let error = socket.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "UDP to {front}: {error}");
    });
    assert!(inside.verdict("not-allowed") >= before + 2, "both are counted");
}

/// Case 82: Allow-list: clients in it are served, others are dropped and counted.
#[test]
fn clients_in_the_allow_list_are_served_and_others_dropped() {
    let (inside, second) = start(&["192.0.2.0/24", "2001:db8:1::2"]);
    for front in inside.served.fronts() {
        assert_served(inside.lab().client(), front);
        assert_dropped(&inside, &second, front);
    }
}

/// Case 82: a list of IPv4 networks alone says that nobody is served over IPv6, and the other way round.
#[test]
fn an_allow_list_of_one_family_serves_nobody_over_the_other() {
    for (allow, v6) in [("0.0.0.0/0", false), ("::/0", true)] {
        let (inside, second) = start(&[allow]);
        for front in inside.served.fronts() {
            for from in [inside.lab().client(), &second] {
                if front.is_ipv6() == v6 {
                    assert_served(from, front);
                } else {
                    assert_dropped(&inside, from, front);
                }
            }
        }
    }
}

/// Case 82: the host's own processes are not subject to the list; its containers are.
#[test]
fn the_host_itself_is_served_whatever_the_allow_list_says_and_its_containers_are_not() {
    let (inside, _second) = start(&["192.0.2.0/24", "2001:db8:1::/64", "172.31.0.0/24"]);
    let lab = inside.lab();
    let local = ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let local = local.map(|ip| SocketAddr::new(ip, samport_tests::served::LISTEN));
    for front in addresses().into_iter().chain(local) {
        lab.host().run(|| {
            get(front, "/").unwrap_or_else(|e| panic!("TCP to {front} on the host: {e}"));
            ask_whom(front).unwrap_or_else(|e| panic!("UDP to {front} on the host: {e}"));
        });
    }
    for front in addresses() {
        // On br1; its IPv4 network is in the list.
        if front.is_ipv4() {
            assert_served(inside.stranger().namespace(), front);
        } else {
            assert_dropped(&inside, inside.stranger().namespace(), front);
        }
        assert_dropped(&inside, inside.neighbour().namespace(), front);
        assert_dropped(&inside, lab.backends()[0].namespace(), front);
    }
}

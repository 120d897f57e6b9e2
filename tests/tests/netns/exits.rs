//! By which interface replies leave: the client's own as long as a route to it does, else as the kernel's routes say.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use samport_tests::datagrams::{Echo, ask_until_answered, mirrored};
use samport_tests::served::LISTEN;
use samport_tests::socket::{ask_on, connect_between};
use samport_tests::{Lab, TIMEOUT, eventually};

use crate::datagrams::{Datagrams, WAYS};
use crate::sources::{
    FAR, add_second_link, assert_far_served, set_rp_filter, start_with_two_links,
};

/// Two links between client and host, and an address is known and told at its own interface only.
fn tune(lab: &Lab) {
    set_rp_filter(lab.host(), "0");
    set_rp_filter(lab.client(), "0");
    lab.client().sysctl("net/ipv4/conf/all/arp_ignore", "1").unwrap();
    lab.client().sysctl("net/ipv4/conf/all/arp_announce", "2").unwrap();
}

/// [`FAR`] is reached by the second link only.
fn route_by_second(lab: &Lab) {
    lab.host()
        .batch(
            "route replace 10.9.0.0/24 via 198.51.100.2 dev eth1\n\
             route replace 2001:db8:9::/64 via 2001:db8:3::2 dev eth1\n",
        )
        .unwrap();
}

/// Row B4: clients come in by the first interface and are reached by the second only.
#[test]
fn replies_leave_by_another_interface_if_no_route_leads_out_of_the_clients() {
    let inside = start_with_two_links(|lab| {
        tune(lab);
        route_by_second(lab);
    });
    assert_far_served(inside.lab().client(), &inside.served.fronts());
}

/// Row B4: datagrams in fragments too, whichever way the backend is reached.
#[test]
fn replies_in_fragments_leave_by_another_interface_too() {
    for way in WAYS {
        let lab = Lab::builder().backends(2).build().unwrap();
        add_second_link(&lab);
        tune(&lab);
        route_by_second(&lab);
        let datagrams = Datagrams::start_in(lab, &["-i", "eth1", "--forward", way], Echo::mirror);
        let lab = &datagrams.served.lab;
        lab.client().run(|| {
            for (own, front) in FAR.iter().zip([lab.front(LISTEN), lab.front_v6(LISTEN)]) {
                let own: IpAddr = own.parse().unwrap();
                let socket = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                socket.connect(front).unwrap();
                for length in [100, 8_192, 1_473] {
                    let (question, what) = (vec![7; length], format!("{way} {front} {length}"));
                    // The first ones may be lost while the kernel asks for the gateway.
                    let answer = ask_until_answered(&socket, &question, &what);
                    let name = String::from_utf8_lossy(&answer[..5]).into_owned();
                    assert!(answer == mirrored(&name, &question), "{what}");
                }
            }
        });
    }
}

/// A connection goes on when the route to its client moves to the other link, and when it moves back.
#[test]
fn open_connections_follow_the_route_to_their_client() {
    let by_first = |lab: &Lab| {
        lab.host()
            .batch(
                "route replace 10.9.0.0/24 via 192.0.2.2 dev eth0\n\
                 route replace 2001:db8:9::/64 via 2001:db8:1::2 dev eth0\n",
            )
            .unwrap();
    };
    let inside = start_with_two_links(|lab| {
        tune(lab);
        by_first(lab);
    });
    let lab = inside.lab();
    let streams: Vec<_> = FAR
        .iter()
        .zip(inside.served.fronts())
        .map(|(own, front)| {
            let own = SocketAddr::new(own.parse().unwrap(), 0);
            lab.client().run(|| connect_between(own, front).unwrap())
        })
        .collect();
    let ask = || {
        for stream in &streams {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            assert_eq!(ask_on(stream, "/bytes/100000").unwrap().body.len(), 100_000);
        }
    };
    ask();
    for _ in 0..2 {
        lab.host().batch("route del 2001:db8:9::/64\n").unwrap();
        route_by_second(lab);
        ask();
        lab.host().batch("route del 2001:db8:9::/64\n").unwrap();
        by_first(lab);
        ask();
    }
}

/// A client that nothing leads to, and one whose gateway is not there: each reply is counted by its name.
#[test]
fn replies_that_cannot_arrive_are_counted() {
    let inside = start_with_two_links(tune);
    let lab = inside.lab();
    let send = |own: &str, front: SocketAddr| {
        lab.client().run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(own.parse().unwrap(), 0)).unwrap();
            socket.send_to(b"?", front).unwrap();
        });
    };
    let [far, far6] = FAR;
    let [front, front6] = inside.served.fronts();
    let counted = |name: &str, own: &str, front| {
        let before = inside.verdict(name);
        eventually(&format!("{name} for {own}"), || {
            send(own, front);
            (inside.verdict(name) > before).then_some(())
        });
    };
    counted("reply-no-route", far6, front6);
    // Taken for a neighbour.
    counted("reply-unresolved", far, front);
    let dead = "route add 10.9.0.0/24 via 198.51.100.77 dev eth1\n\
                route add 2001:db8:9::/64 via fe80::77 dev eth1\n";
    lab.host().batch(dead).unwrap();
    counted("reply-unresolved", far, front);
    counted("reply-unresolved", far6, front6);
}

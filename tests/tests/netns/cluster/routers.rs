//! Routers between two hosts, with a link that carries less than either end's device.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use samport::lab::cluster::{Host, Options, Routers};
use samport_tests::datagrams::{Echo, client, mirrored};
use samport_tests::eventually;
use samport_tests::load::Connection;
use samport_tests::served::{LISTEN, Status, TARGET};

use super::{LENGTH, Nodes};
use crate::sizes::set_df;

/// What the link between the routers carries, in bytes.
const LINK: u32 = 1_400;
/// A datagram that fits in the client's MTU and in the link's, but not in the tunnel through it.
const DATAGRAM: usize = 1_372;

/// What this host has found that the path to the other one carries, if anything.
fn path_mtu(host: &Host) -> Option<u64> {
    Status::only_in(host.namespace()).nodes()[0]["path_mtu"].as_u64()
}

/// What becomes of a datagram: it arrives, and all of the answer, or its sender is told that it is too large.
fn outcome(front: SocketAddr, df: bool, length: usize) -> &'static str {
    let what = format!("{length} bytes for {front}, DF {df}");
    let socket = client(front).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    set_df(&socket, front.is_ipv6(), df);
    socket.connect(front).unwrap();
    let question: Vec<u8> = (0..=250).cycle().take(length).collect();
    let mut answer = vec![0; 65_536];
    eventually(&what, || match socket.send(&question).and_then(|_| socket.recv(&mut answer)) {
        Ok(received) => {
            assert!(answer[..received] == mirrored("n2-web-1", &question), "{what}");
            Some("whole")
        }
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Some("told"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{what}: {error}"),
    })
}

/// Whatever the client sends through the tunnel arrives, or it is told.
fn assert_all_arrives(routers: Routers) {
    let options = Options { hosts: 2, backends: 1, routers: Some(routers), ..Options::default() };
    let nodes = Nodes::start(options);
    let backend = &nodes.host(2).backends()[0];
    let _echo = backend.namespace().run(|| Echo::mirror("n2-web-1", TARGET)).unwrap();
    nodes.without_containers(1);
    // Where the routers are silent it is found by halves, the first of which are more than the link carries.
    for most in [1_499, u64::from(LINK)] {
        for host in nodes.cluster.hosts() {
            eventually(&format!("{} finds {most} bytes or less", host.name()), || {
                path_mtu(host).filter(|mtu| *mtu <= most && (most > 1_400 || *mtu == most))
            });
        }
    }
    nodes.cluster.client().run(|| {
        for front in nodes.host(1).fronts(LISTEN) {
            let mut connection = Connection::open(front).unwrap();
            let answer = connection.get(&format!("/bytes/{LENGTH}")).unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, LENGTH), "{front}");
            assert!(answer.is_pattern(), "{front}: other bytes have come back");
            assert_eq!(answer.backend, "n2-web-1");
            assert_eq!(connection.post(LENGTH).unwrap().text(), format!("ok {LENGTH}"), "{front}");
            for length in [DATAGRAM, 1_400] {
                assert_eq!(outcome(front, true, length), "told", "{front}, {length} bytes");
                assert_eq!(outcome(front, false, length), "whole", "{front}, {length} bytes");
            }
        }
    });
    for (host, other) in [(1, 2), (2, 1)].map(|(one, other)| (nodes.host(one), nodes.host(other))) {
        assert_eq!(path_mtu(host), Some(LINK.into()), "{} finds another size", host.name());
        // Whether the kernel was told by a router.
        let route = host.namespace().ip(&["route", "get", &other.v4().to_string()]).unwrap();
        assert_eq!(route.contains(&format!("mtu {LINK}")), !routers.are_silent, "{route}");
    }
}

#[test]
fn all_arrives_through_a_link_that_carries_less_and_routers_that_say_so() {
    assert_all_arrives(Routers { mtu: LINK, are_silent: false });
}

#[test]
fn all_arrives_through_a_link_that_carries_less_and_silent_routers() {
    assert_all_arrives(Routers { mtu: LINK, are_silent: true });
}

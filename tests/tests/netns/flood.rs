//! A flood of SYNs, a full table, and flows that are driven out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use samport::lab::Namespace;
use samport_tests::bpf::Map;
use samport_tests::flood::Flood;
use samport_tests::load::ask;
use samport_tests::open_connections::OpenConnection;
use samport_tests::packet::Segment;
use samport_tests::raw;
use samport_tests::served::{LISTEN, Served, second_client};
use samport_tests::socket::connect_from;
use samport_tests::{HOST_V4, HOST_V6, eventually};

use crate::lab;

/// Connections held through each front.
const KEPT: usize = 20;
/// Forged SYNs that make a flood of some seconds.
const FLOOD: u64 = 100_000;

/// A SYN of nobody, over either family in turns.
fn forged(number: u32, host_mac: [u8; 6]) -> Vec<u8> {
    let [_, a, b, c] = number.to_be_bytes();
    let port = 1_024 + (number % 60_000) as u16;
    let (source, host): (IpAddr, IpAddr) = if number.is_multiple_of(2) {
        (Ipv4Addr::new(198, 18 + a % 2, b, c).into(), HOST_V4.into())
    } else {
        let low = u16::from_be_bytes([b, c]);
        (IpAddr::from([0x2001, 0xdb8, 0xbad, 0, 0, 0, a.into(), low]), HOST_V6.into())
    };
    let mut syn = Segment::syn(SocketAddr::new(source, port), SocketAddr::new(host, LISTEN));
    syn.destination_mac = host_mac;
    syn.frame()
}

/// Some connections through either front.
fn open(served: &Served, each: usize) -> Vec<OpenConnection> {
    OpenConnection::open(served.lab.client(), &served.fronts(), each)
}

/// Case 83: SYN flood from another namespace: what is established goes on, what is new is served, and
/// the table is not exhausted.
#[test]
fn a_flood_of_syns_drives_nobody_out() {
    let lab = lab(2);
    let second = second_client(&lab);
    // As by a default route. Without, each forged address would be a neighbour of its own, and the
    // kernel has one table of these (1,024) for all namespaces.
    let routes = "route add 198.18.0.0/15 via 198.51.100.2 dev eth1\n\
                  route add 2001:db8:bad::/48 via 2001:db8:3::2 dev eth1\n";
    lab.host().batch(routes).unwrap();
    let small = ["-i", "eth1", "--flows", "4096", "--syn-flood", "200"];
    let served = Served::start(lab, &small);
    // Idle ones would be the first to go from a table that is full.
    let mut idle = open(&served, KEPT);
    let mut busy = open(&served, KEPT);
    assert_eq!(served.status().verdict("forward-flood"), 0);

    let host_mac = raw::mac(served.lab.host(), "eth1");
    let flood = Flood::start(&second, u64::MAX, move |number| forged(number, host_mac));
    let mut sent = 0;
    while sent < FLOOD {
        sent += FLOOD / 10;
        flood.wait_for(sent);
        for front in served.fronts() {
            assert_eq!(ask(&served.lab, front, 5).total(), 5);
        }
        busy.iter_mut().for_each(OpenConnection::check);
    }
    let mut during = open(&served, KEPT);
    during.iter_mut().for_each(OpenConnection::check);
    let sent = flood.stop();
    let status = served.status();
    let flooded = status.verdict("forward-flood");
    assert!(flooded > sent / 2, "{flooded} of {sent} were taken for a flood");

    for kept in [&mut idle, &mut busy, &mut during] {
        kept.iter_mut().for_each(OpenConnection::check);
    }
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 50).total(), 50);
    }
    // The flood's end is noticed: new connections go to the real table again.
    eventually("connections are no longer taken for a flood", || {
        let before = served.status().verdict("forward-flood");
        assert_eq!(ask(&served.lab, served.fronts()[0], 10).total(), 10);
        (served.status().verdict("forward-flood") == before).then_some(())
    });
}

/// Case 33: Table full: new connections still served. Case 34: Eviction storm: active flows keep their
/// backend.
#[test]
fn a_full_table_serves_new_connections_and_keeps_those_that_are_used() {
    let served = Served::start(lab(2), &["--flows", "1024", "--syn-flood", "1000000"]);
    let mut busy = open(&served, KEPT);
    let fronts = served.fronts();
    let misses = served.status().verdict("mid-flow-miss");
    for _ in 0..30 {
        for front in fronts {
            assert_eq!(ask(&served.lab, front, 50).total(), 50);
        }
        busy.iter_mut().for_each(OpenConnection::check);
    }
    let status = served.status();
    assert!(status.sum("flows") > 3_000);
    assert_eq!(status.verdict("flow-insert-failed"), 0);
    assert_eq!(status.verdict("mid-flow-miss"), misses);
}

/// Case 37: An entry evicted mid-connection: the client gets an RST at its next packet, never silence.
#[test]
fn a_connection_whose_entry_is_gone_is_reset_at_its_next_packet() {
    let served = Served::start(lab(2), &[]);
    let mut kept = open(&served, 3);
    let forgotten = forget_all(served.lab.host());
    assert_eq!(forgotten, 6);
    for OpenConnection { connection, backend } in &mut kept {
        let error = connection.get("/").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{backend}: {error}");
    }
    assert!(served.status().verdict("mid-flow-miss") >= 6);
    // The same ports, at once: new connections.
    for (OpenConnection { connection, .. }, front) in
        kept.iter().zip(served.fronts().map(|f| [f; 3]).concat())
    {
        let port = connection.local_addr().port();
        served.lab.client().run(|| connect_from(port, front)).unwrap();
    }
}

/// Deletes every flow of the instance in a namespace, and says how many there were.
fn forget_all(host: &Namespace) -> usize {
    let suffix = format!("@{}", samport_tests::served::inode(host));
    let folders = std::fs::read_dir("/sys/fs/bpf/samport").unwrap();
    let folders = folders.map(|entry| entry.unwrap().path());
    let own: Vec<_> = folders.filter(|path| path.to_string_lossy().ends_with(&suffix)).collect();
    let [folder] = &own[..] else { panic!("one instance in {own:?}") };
    let clear = |map| Map::open(&folder.join(map)).and_then(|map| map.clear()).unwrap();
    ["map_FLOWS4", "map_FLOWS6"].into_iter().map(clear).sum()
}

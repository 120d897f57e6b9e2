//! How backends are chosen.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use samport::plan::Policy;
use samport_common::choose::Balance;
use samport_common::verdict::Verdict;
use samport_tests::packet::Segment;

use crate::REDIRECT;
use crate::bench::{BACKENDS, Bench, CLIENT, VIP};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A client of this network and port.
fn client(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], port))
}

fn bench(balance: Balance) -> Bench {
    let mut bench = Bench::new();
    bench.with_policy(VIP, 0, 2, Policy { balance, ..Policy::default() });
    bench
}

impl Bench {
    fn dial(&mut self, client: SocketAddr) -> SocketAddr {
        self.forward(&Segment::syn(client, address(VIP)))
    }
}

/// Case 45: round-robin is exact.
#[test]
fn round_robin_takes_turns() {
    let mut bench = bench(Balance::RoundRobin);
    let mut chosen: Vec<_> = (40_000..40_100).map(|port| bench.dial(client(2, port))).collect();
    for pair in chosen.chunks(2) {
        assert_ne!(pair[0], pair[1], "{chosen:?}");
    }
    chosen.dedup();
    assert_eq!(chosen.len(), 100, "one after the other");
    // A SYN sent again is nobody's turn.
    let again = client(2, 40_099);
    let last = bench.dial(again);
    assert_eq!(bench.dial(again), last);
    assert_ne!(bench.dial(client(2, 40_100)), last);
}

#[test]
fn a_source_hash_goes_by_the_address_alone() {
    let mut bench = bench(Balance::SourceHash);
    let mut shares = BTreeMap::<SocketAddr, u32>::new();
    for host in 1..=100 {
        let chosen = bench.dial(client(host, 40_000));
        for port in 40_001..40_005 {
            assert_eq!(bench.dial(client(host, port)), chosen);
        }
        *shares.entry(chosen).or_default() += 1;
    }
    // 5 σ of 100 fair coins.
    assert!(shares.values().all(|share| (25..=75).contains(share)), "{shares:?}");
}

#[test]
fn maglev_goes_by_address_and_port_and_finds_a_forgotten_connection_again() {
    let chosen = |bench: &mut Bench| -> Vec<_> {
        (40_000..40_100).map(|port| bench.dial(client(2, port))).collect()
    };
    let first = chosen(&mut bench(Balance::Maglev));
    let mut later = bench(Balance::Maglev);
    // Nothing is known there of these connections, which are open already.
    for (port, backend) in (40_000..40_100).zip(&first) {
        let data = Segment::ack(client(2, port), address(VIP), b"more");
        assert_eq!(later.forward(&data), *backend);
    }
    let to_first = first.iter().filter(|backend| **backend == address(BACKENDS[0])).count();
    assert!((25..=75).contains(&to_first), "{to_first} of 100");
}

/// Case 52: least-conn avoids the loaded backend.
#[test]
fn least_conn_goes_to_whom_has_fewer_open() {
    let mut bench = bench(Balance::LeastConn);
    bench.set_table(80, false, 0, &[1, 1]);
    for port in 40_000..40_050 {
        assert_eq!(bench.dial(client(2, port)), address(BACKENDS[0]));
    }
    bench.set_table(80, false, 0, &[1, 2]);
    let mut to_second = 0;
    for port in 40_050..40_090 {
        to_second += u32::from(bench.dial(client(2, port)) == address(BACKENDS[1]));
    }
    // Of two draws both name the loaded one every fourth time: 30 of 40 expected, σ below 3.
    assert!(to_second > 15, "{to_second} of 40");
    // Those that end free their backend.
    for port in 40_000..40_050 {
        let accepts = Segment::syn_ack(address(BACKENDS[0]), client(2, port));
        bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
        let mut reset = Segment::ack(client(2, port), address(VIP), b"").numbered(1_001, 1_001);
        reset.tcp.rst = true;
        bench.forward(&reset);
    }
    assert_eq!(bench.open_flows(1) + bench.open_flows(2), 40);
}

/// Case 51: a client's address stays with its backend, for a time, while that takes new flows.
#[test]
fn affinity_holds_while_its_backend_takes_new_flows() {
    let mut bench = Bench::new();
    bench.with_policy(VIP, 0, 2, Policy { affinity: 60, ..Policy::default() });
    let mut shares = BTreeMap::<SocketAddr, u32>::new();
    for host in 1..=40 {
        let chosen = bench.dial(client(host, 40_000));
        for port in 40_001..40_010 {
            assert_eq!(bench.dial(client(host, port)), chosen, "{host}");
        }
        *shares.entry(chosen).or_default() += 1;
    }
    assert_eq!(shares.len(), 2, "{shares:?}");
    let first = address(CLIENT);
    let stays = bench.dial(first);
    let index = BACKENDS.iter().position(|backend| address(backend) == stays).unwrap();
    let (gone, other) = if index == 0 { (1, 2) } else { (2, 1) };
    bench.set_table(80, false, 0, &[other, other]);
    bench.retire(gone);
    let next = bench.dial(SocketAddr::new(first.ip(), 50_000));
    assert_ne!(next, stays, "it is gone");
    assert_eq!(bench.dial(SocketAddr::new(first.ip(), 50_001)), next);
}

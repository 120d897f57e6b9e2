//! Who is told that nobody is there, and who is spared it: resets of our own, and connect failover.

use std::net::{IpAddr, SocketAddr};

use etherparse::TcpHeader;
use samport::plan::{BackendId, Policy};
use samport_common::verdict::Verdict;
use samport_tests::frames::{IPV4_LEN, icmp, quote};
use samport_tests::packet::Segment;

use crate::bench::{BACKENDS, Bench, CLIENT, CLIENT6, VIP, VIP6, at_host};
use crate::{DROP, REDIRECT};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Client, VIP, the index of one of its backends and of the other.
const FAMILIES: [(&str, &str, usize, usize); 2] = [(CLIENT, VIP, 0, 1), (CLIENT6, VIP6, 2, 3)];

/// The reset that answers a segment, as it leaves by the way it came.
fn answer_to(segment: &Segment, acknowledgement: u32, sequence: u32) -> Segment {
    let mut reset = Segment::new(segment.destination, segment.source);
    (reset.source_mac, reset.destination_mac) = (segment.destination_mac, segment.source_mac);
    reset.hops = 64;
    reset.traffic_class = segment.traffic_class;
    reset.tcp = TcpHeader::new(reset.tcp.source_port, reset.tcp.destination_port, sequence, 0);
    reset.tcp.rst = true;
    reset.tcp.ack = acknowledgement != 0;
    reset.tcp.acknowledgment_number = acknowledgement;
    reset
}

/// Case 59: without a backend a connection is refused at once, IPv4 and IPv6.
#[test]
fn without_a_backend_a_syn_is_answered_with_a_reset() {
    for (client, vip, ..) in FAMILIES {
        let mut bench = Bench::new();
        bench.empty_the_table();
        let syn = at_host(Segment::syn(address(client), address(vip)));
        let out = bench.expect("samport_forward", &syn.frame(), Verdict::NoBackendReset, REDIRECT);
        let expected = answer_to(&syn, syn.tcp.sequence_number + 1, 0);
        assert_eq!(Segment::read(&out), expected);
        assert_eq!(out, expected.frame(), "checksums");
    }
}

#[test]
fn a_service_that_keeps_silent_without_a_backend_drops() {
    let mut bench = Bench::new();
    bench.with_policy(VIP, 0, 0, Policy { drop: true, ..Policy::default() });
    let syn = at_host(Segment::syn(address(CLIENT), address(VIP)));
    bench.expect("samport_forward", &syn.frame(), Verdict::NoBackendDrop, DROP);
}

/// Case 56: the next packet of a connection whose backend is gone is answered with a reset that the
/// client takes.
#[test]
fn a_connection_whose_backend_is_gone_is_reset_at_its_next_packet() {
    for (client, vip, index, _) in FAMILIES {
        let mut bench = Bench::new();
        bench.only(1, 3);
        bench.forward(&Segment::syn(address(client), address(vip)));
        bench.retire(u32::try_from(index + 1).unwrap());
        let mut data = at_host(Segment::ack(address(client), address(vip), b"GET / HTTP/1.1"));
        let out = bench.expect("samport_forward", &data.frame(), Verdict::GoneReset, REDIRECT);
        assert_eq!(out, answer_to(&data, 0, data.tcp.acknowledgment_number).frame());
        data.tcp.rst = true;
        bench.expect_untouched("samport_forward", &data.frame(), Verdict::BackendGone);
    }
}

fn refusal(backend: usize, client: &str) -> Segment {
    let mut reset = Segment::ack(address(BACKENDS[backend]), address(client), b"");
    reset.tcp.rst = true;
    reset
}

/// Case 63: a refusal is held back while there is another backend, which gets the client's next SYN.
#[test]
fn a_refusal_is_held_back_and_the_next_syn_goes_to_another_backend() {
    for (client, vip, one, other) in FAMILIES {
        let mut bench = Bench::new();
        let syn = Segment::syn(address(client), address(vip));
        let first = bench.forward(&syn);
        let (refuses, takes) =
            if first == address(BACKENDS[one]) { (one, other) } else { (other, one) };
        let reset = refusal(refuses, client).frame();
        bench.expect("samport_reverse", &reset, Verdict::RefusalHeld, DROP);
        // Whatever it says now is about a connection that is another's.
        bench.expect("samport_reverse", &reset, Verdict::LateAnswer, DROP);
        assert_eq!(bench.forward(&syn), address(BACKENDS[takes]));
        bench.expect("samport_reverse", &reset, Verdict::LateAnswer, DROP);
        let mut accepts = Segment::ack(address(BACKENDS[takes]), address(client), b"");
        accepts.tcp.syn = true;
        bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
        bench.expect("samport_reverse", &reset, Verdict::LateAnswer, DROP);
        assert_eq!(
            bench.forward(&Segment::ack(address(client), address(vip), b"x")).ip(),
            address(BACKENDS[takes]).ip()
        );
        // One connection that has failed makes nobody avoid the backend, its own client's others neither. It did
        // once, and whoever forged packets took all backends from everybody.
        let refusing = address(BACKENDS[refuses]);
        let chosen = (41_000..41_040).map(|port| {
            let client = SocketAddr::new(address(client).ip(), port);
            bench.forward(&Segment::syn(client, address(vip)))
        });
        let (to_it, to_other): (Vec<_>, Vec<_>) = chosen.partition(|to| *to == refusing);
        assert!(!to_it.is_empty() && !to_other.is_empty(), "{to_it:?} {to_other:?}");
    }
}

/// A backend that a check has confirmed to fail is avoided until it takes a connection.
#[test]
fn a_suspect_is_avoided_until_it_takes_a_connection() {
    for (client, vip, one, other) in FAMILIES {
        let mut bench = Bench::new();
        let (suspect, good) = (address(BACKENDS[one]), address(BACKENDS[other]));
        let index = u32::try_from(one + 1).unwrap();
        let syn = |port| Segment::syn(SocketAddr::new(address(client).ip(), port), address(vip));
        // A connection that is being opened already.
        let opening = (40_000..40_040).find(|port| bench.forward(&syn(*port)) == suspect);
        let opening = SocketAddr::new(address(client).ip(), opening.unwrap());
        let id = BackendId { index, generation: 1 };
        let first = bench.dataplane.confirm(id).unwrap();
        assert_eq!(first.map(|time| time.as_secs()), Some(10));
        for port in 41_000..41_040 {
            assert_eq!(bench.forward(&syn(port)), good);
        }
        let second = bench.dataplane.confirm(id).unwrap();
        assert_eq!(second.map(|time| time.as_secs()), Some(21), "it has taken none in between");
        assert_eq!(bench.dataplane.confirm(BackendId { generation: 2, ..id }).unwrap(), None);

        let mut accepts = Segment::ack(suspect, opening, b"");
        accepts.tcp.syn = true;
        bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
        assert!((42_000..42_040).any(|port| bench.forward(&syn(port)) == suspect));
        let third = bench.dataplane.confirm(id).unwrap();
        assert_eq!(third.map(|time| time.as_secs()), Some(10), "it begins anew");
    }
}

/// A reset that does not acknowledge the SYN refuses nothing: no client believes it.
#[test]
fn a_reset_without_an_acknowledgement_is_no_refusal() {
    for (client, vip, one, _) in FAMILIES {
        let mut bench = Bench::new();
        bench.only(1, 3);
        bench.forward(&Segment::syn(address(client), address(vip)));
        let mut reset = refusal(one, client);
        reset.tcp.ack = false;
        reset.tcp.acknowledgment_number = 0;
        bench.expect("samport_reverse", &reset.frame(), Verdict::Reply, REDIRECT);
        assert_eq!(bench.stats(u32::try_from(one + 1).unwrap()).refused, 0);
    }
}

/// What becomes of a SYN with these options when its backend refuses: counted as refused, and as evidence only if
/// it is a plain one.
#[test]
fn a_refused_syn_that_asks_for_one_certain_peer_is_no_evidence() {
    const JOIN: [u8; 12] = [30, 12, 0x10, 1, 0, 0, 0, 1, 0, 0, 0, 2];
    const PLAIN: [u8; 4] = [2, 4, 5, 0xb4];
    for (options, for_one_peer) in [(&PLAIN[..], 0), (&JOIN, 1)] {
        for (client, vip, one, other) in FAMILIES {
            let mut bench = Bench::new();
            let mut syn = Segment::syn(address(client), address(vip));
            syn.tcp.set_options_raw(options).unwrap();
            let first = bench.forward(&syn);
            let refuses = if first == address(BACKENDS[one]) { one } else { other };
            let id = u32::try_from(refuses + 1).unwrap();
            let reset = refusal(refuses, client).frame();
            bench.expect("samport_reverse", &reset, Verdict::RefusalHeld, DROP);
            assert_ne!(bench.forward(&syn), first);
            let stats = bench.stats(id);
            assert_eq!((stats.refused, stats.for_one_peer), (1, for_one_peer), "{options:?}");
            assert_eq!((stats.silent, stats.unreachable), (0, 0));
            let clients = bench.evidence(id).clients;
            let count = clients.iter().filter(|one| **one != 0).count() as u64;
            assert_eq!(count, 1 - for_one_peer, "{options:?}: {clients:?}");

            // It is none any more once the backend has taken a connection, be it anybody's.
            let other = |port| SocketAddr::new(address(client).ip(), port);
            let taken = (41_000..41_040)
                .map(other)
                .find(|from| bench.forward(&Segment::syn(*from, address(vip))) == first);
            let mut accepts = Segment::ack(first, taken.unwrap(), b"");
            accepts.tcp.syn = true;
            bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
            assert_eq!(bench.evidence(id).clients, [0; 3]);
        }
    }
}

/// An ICMP error that says that a SYN has not reached its backend is counted, and no evidence.
#[test]
fn an_unreachable_backend_is_counted_and_no_evidence() {
    let far = IpAddr::from([172, 30, 0, 1]);
    let mut bench = Bench::new();
    bench.only(1, 3);
    let syn = Segment::syn(address(CLIENT), address(VIP));
    bench.forward(&syn);
    let sent = Segment { destination: address(BACKENDS[0]), ..syn };
    let mut error = |kind| {
        let ends = (far, address(CLIENT).ip());
        let frame = icmp(ends, kind, [0; 4], quote(&sent.frame(), IPV4_LEN + 8));
        bench.expect("samport_reverse", &frame, Verdict::IcmpReply, REDIRECT);
        (bench.stats(1).unreachable, bench.evidence(1).clients)
    };
    // Fragmentation needed, and time exceeded, say something else.
    assert_eq!(error((3, 4)), (0, [0; 3]));
    assert_eq!(error((11, 0)), (0, [0; 3]));
    assert_eq!(error((3, 3)), (1, [0; 3]));
    assert_eq!(error((3, 13)), (2, [0; 3]));
}

#[test]
fn the_last_refusal_goes_through() {
    for (client, vip, one, other) in FAMILIES {
        let mut bench = Bench::new();
        let syn = Segment::syn(address(client), address(vip));
        let first = bench.forward(&syn);
        let (first, second) =
            if first == address(BACKENDS[one]) { (one, other) } else { (other, one) };
        bench.expect(
            "samport_reverse",
            &refusal(first, client).frame(),
            Verdict::RefusalHeld,
            DROP,
        );
        assert_eq!(bench.forward(&syn), address(BACKENDS[second]));
        let last = refusal(second, client);
        let out = bench.expect("samport_reverse", &last.frame(), Verdict::Reply, REDIRECT);
        assert_eq!(out, Segment { source: address(vip), ..last }.frame());
    }
}

#[test]
fn without_failover_the_first_refusal_goes_through() {
    let mut bench = Bench::new();
    bench.with_policy(VIP, 0, 2, Policy { failover: false, ..Policy::default() });
    let syn = Segment::syn(address(CLIENT), address(VIP));
    let first = bench.forward(&syn);
    let index = BACKENDS.iter().position(|backend| address(backend) == first).unwrap();
    bench.expect("samport_reverse", &refusal(index, CLIENT).frame(), Verdict::Reply, REDIRECT);
}

/// A reset in the middle of a connection is the backend's own word.
#[test]
fn a_reset_after_the_handshake_goes_through() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    bench.forward(&Segment::syn(address(CLIENT), address(VIP)));
    let mut accepts = Segment::ack(address(BACKENDS[0]), address(CLIENT), b"");
    accepts.tcp.syn = true;
    bench.expect("samport_reverse", &accepts.frame(), Verdict::Reply, REDIRECT);
    bench.expect("samport_reverse", &refusal(0, CLIENT).frame(), Verdict::Reply, REDIRECT);
}

//! Who is told that nobody is there, and who is spared it: resets of our own, and connect failover.

use std::net::SocketAddr;

use etherparse::TcpHeader;
use samport::plan::Policy;
use samport_common::verdict::Verdict;
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
        // Others are spared the one that has failed.
        for port in 41_000..41_020 {
            let client = SocketAddr::new(address(client).ip(), port);
            assert_eq!(
                bench.forward(&Segment::syn(client, address(vip))),
                address(BACKENDS[takes])
            );
        }
    }
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

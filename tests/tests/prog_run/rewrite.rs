//! What becomes of the bytes.

use std::net::SocketAddr;

use etherparse::{Ipv4Header, Ipv4Options};
use samport_common::verdict::Verdict;
use samport_tests::packet::Segment;

use crate::REDIRECT;
use crate::bench::{BACKENDS, Bench, CLIENT, CLIENT6, VIP, VIP6, at_host, mac};

/// A client, the VIP it dials and the id of the only backend, for each family.
const FAMILIES: [(&str, &str, u32); 2] = [(CLIENT, VIP, 1), (CLIENT6, VIP6, 3)];

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn endpoint(index: u32) -> SocketAddr {
    address(BACKENDS[index as usize - 1])
}

/// Cases 12 and 13: TCP over IPv4 and IPv6: addresses, MAC and both checksums exact.
#[test]
fn a_syn_is_rewritten_exactly() {
    for (client, vip, index) in FAMILIES {
        let mut bench = Bench::new();
        bench.only(1, 3);
        let mut sent = at_host(Segment::syn(address(client), address(vip)));
        sent.payload = b"early data".to_vec();
        let out = bench.expect("samport_forward", &sent.frame(), Verdict::ForwardPeer, REDIRECT);
        let expected =
            Segment { destination: endpoint(index), destination_mac: mac(index), ..sent };
        assert_eq!(Segment::read(&out), expected);
        assert_eq!(out, expected.frame(), "byte for byte");
    }
}

/// Case 14: port unchanged: only the address changes.
#[test]
fn a_backend_on_the_same_port_keeps_the_port() {
    for (client, vip, index) in FAMILIES {
        let mut bench = Bench::new();
        bench.only(1, 3);
        let same_port = SocketAddr::new(endpoint(index).ip(), 80);
        bench.set_backend(index, &same_port.to_string(), 80, 1, false);
        let sent = at_host(Segment::syn(address(client), address(vip)));
        let out = bench.expect("samport_forward", &sent.frame(), Verdict::ForwardPeer, REDIRECT);
        let expected = Segment { destination: same_port, destination_mac: mac(index), ..sent };
        assert_eq!(out, expected.frame());
    }
}

/// Case 17: a reply gets VIP and port back.
#[test]
fn a_reply_comes_from_what_the_client_dialled() {
    for (client, vip, index) in FAMILIES {
        for program in ["samport_reverse", "samport_egress"] {
            let (verdict, action) = match program {
                "samport_reverse" => (Verdict::Reply, REDIRECT),
                _ => (Verdict::ReplyStack, crate::UNSPEC),
            };
            let mut bench = Bench::new();
            bench.only(1, 3);
            bench.forward(&Segment::syn(address(client), address(vip)));
            let reply = Segment::ack(endpoint(index), address(client), b"Hello");
            let out = bench.expect(program, &reply.frame(), verdict, action);
            assert_eq!(out, Segment { source: address(vip), ..reply }.frame());
        }
    }
}

#[test]
fn what_a_backend_sends_of_its_own_accord_is_left_alone() {
    for (client, vip, index) in FAMILIES {
        let mut bench = Bench::new();
        bench.only(1, 3);
        bench.forward(&Segment::syn(address(client), address(vip)));
        let other_port = SocketAddr::new(endpoint(index).ip(), 5_000);
        let other_client = SocketAddr::new(address(client).ip(), 40_001);
        for own in [
            Segment::syn(other_port, address(client)),
            Segment::ack(endpoint(index), other_client, b""),
            Segment::ack(endpoint(index + 1), address(client), b""),
        ] {
            bench.expect_untouched("samport_reverse", &own.frame(), Verdict::NotAReply);
        }
    }
}

/// Cases 21 and 22: TTL, DSCP and ECN stay: samport is one hop with the machine it runs on.
#[test]
fn hop_limit_and_traffic_class_stay() {
    for (client, vip, index) in FAMILIES {
        let mut bench = Bench::new();
        bench.only(1, 3);
        let sent = Segment {
            hops: 3,
            traffic_class: 0b1011_1001,
            ..at_host(Segment::syn(address(client), address(vip)))
        };
        let out = bench.expect("samport_forward", &sent.frame(), Verdict::ForwardPeer, REDIRECT);
        let expected =
            Segment { destination: endpoint(index), destination_mac: mac(index), ..sent };
        assert_eq!(Segment::read(&out), expected);

        let reply = Segment {
            hops: 63,
            traffic_class: 3,
            ..Segment::ack(endpoint(index), address(client), b"")
        };
        let out = bench.expect("samport_reverse", &reply.frame(), Verdict::Reply, REDIRECT);
        assert_eq!(Segment::read(&out), Segment { source: address(vip), ..reply });
    }
}

/// Case 7: IPv4 options.
#[test]
fn ip_options_move_the_ports() {
    let mut bench = Bench::new();
    bench.only(1, 3);
    let sent = at_host(Segment::syn(address(CLIENT), address(VIP)));
    for words in [1, 5, 10] {
        let frame = with_options(&sent.frame(), words);
        let out = bench.expect("samport_forward", &frame, Verdict::ForwardPeer, REDIRECT);
        let expected =
            Segment { destination: endpoint(1), destination_mac: mac(1), ..sent.clone() };
        assert_eq!(out, with_options(&expected.frame(), words), "{words} words");

        let reply = Segment::ack(endpoint(1), address(CLIENT), b"Hello");
        let out = bench.expect(
            "samport_reverse",
            &with_options(&reply.frame(), words),
            Verdict::Reply,
            REDIRECT,
        );
        let expected = Segment { source: address(VIP), ..reply };
        assert_eq!(out, with_options(&expected.frame(), words), "{words} words");
    }
}

/// Case 8: IPv6 extension headers.
#[test]
fn extension_headers_move_the_ports() {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    for chain in [&[HOP_BY_HOP][..], &[DESTINATION], &[HOP_BY_HOP, ROUTING, DESTINATION]] {
        let mut bench = Bench::new();
        bench.only(1, 3);
        let sent = at_host(Segment::syn(address(CLIENT6), address(VIP6)));
        let frame = with_extensions(&sent.frame(), chain);
        let out = bench.expect("samport_forward", &frame, Verdict::ForwardPeer, REDIRECT);
        let expected = Segment { destination: endpoint(3), destination_mac: mac(3), ..sent };
        assert_eq!(out, with_extensions(&expected.frame(), chain), "{chain:?}");

        let reply = Segment::ack(endpoint(3), address(CLIENT6), b"Hello");
        let frame = with_extensions(&reply.frame(), chain);
        let out = bench.expect("samport_reverse", &frame, Verdict::Reply, REDIRECT);
        let expected = Segment { source: address(VIP6), ..reply };
        assert_eq!(out, with_extensions(&expected.frame(), chain), "{chain:?}");
    }
}

/// The frame with `words` words of no-operation options in its IPv4 header.
fn with_options(frame: &[u8], words: u8) -> Vec<u8> {
    const ETHERNET: usize = 14;
    let (mut header, rest) = Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
    let added = usize::from(words) * 4;
    header.options = Ipv4Options::try_from(&vec![1; added][..]).unwrap();
    header.total_len += u16::try_from(added).unwrap();
    header.header_checksum = header.calc_header_checksum();
    [&frame[..ETHERNET], &header.to_bytes()[..], rest].concat()
}

/// The frame with 8-byte extension headers of these kinds behind its IPv6 header.
fn with_extensions(frame: &[u8], chain: &[u8]) -> Vec<u8> {
    const IPV6: usize = 14;
    const BEHIND: usize = IPV6 + 40;
    const TCP: u8 = 6;
    let mut frame = frame.to_vec();
    let length = u16::from_be_bytes([frame[IPV6 + 4], frame[IPV6 + 5]]);
    let length = length + 8 * u16::try_from(chain.len()).unwrap();
    frame[IPV6 + 4..IPV6 + 6].copy_from_slice(&length.to_be_bytes());
    frame[IPV6 + 6] = chain[0];
    let mut headers = Vec::new();
    for next in chain[1..].iter().chain([&TCP]) {
        // Next header, no further units, and PadN over the other six bytes.
        headers.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
    }
    frame.splice(BEHIND..BEHIND, headers);
    frame
}

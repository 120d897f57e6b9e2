//! ICMP errors.

use std::net::{IpAddr, SocketAddr};

use samport_common::verdict::Verdict;
use samport_tests::frames::{
    ICMP_LEN, IP, IPV4_LEN, IPV6_LEN, datagram, fragments, icmp, quote, to_mac,
};
use samport_tests::packet::Segment;

use crate::REDIRECT;
use crate::bench::{Bench, at_host, mac};
use crate::datagrams::{FAMILIES, addressed, l4};

/// Errors of ICMP: fragmentation needed with an MTU of 1,400, port unreachable, time exceeded,
/// parameter problem.
const ERRORS_V4: [((u8, u8), [u8; 4]); 4] =
    [((3, 4), [0, 0, 5, 0x78]), ((3, 3), [0; 4]), ((11, 0), [0; 4]), ((12, 0), [20, 0, 0, 0])];
/// Errors of ICMPv6: packet too big, port unreachable, time exceeded, parameter problem.
const ERRORS_V6: [((u8, u8), [u8; 4]); 4] =
    [((2, 0), [0, 0, 5, 0x78]), ((1, 4), [0; 4]), ((3, 0), [0; 4]), ((4, 0), [0, 0, 0, 6])];

fn errors(v6: bool) -> [((u8, u8), [u8; 4]); 4] {
    if v6 { ERRORS_V6 } else { ERRORS_V4 }
}

fn router(v6: bool) -> IpAddr {
    if v6 { "2001:db8:ffff::1".parse().unwrap() } else { "203.0.113.1".parse().unwrap() }
}

/// A frame over TCP or UDP from one end to the other.
fn frame(tcp: bool, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    if tcp { at_host(Segment::ack(from, to, payload)).frame() } else { datagram(from, to, payload) }
}

/// Makes a flow known.
fn open(bench: &mut Bench, tcp: bool, client: SocketAddr, vip: SocketAddr) {
    let first =
        if tcp { at_host(Segment::syn(client, vip)).frame() } else { datagram(client, vip, b"?") };
    bench.open(&first);
}

/// How much of a packet is quoted: the 8 bytes behind IP that RFC 792 asks for, a whole TCP header,
/// an odd number, everything.
fn lengths(v6: bool) -> [usize; 4] {
    let ip = if v6 { IPV6_LEN } else { IPV4_LEN };
    [ip + 8, ip + 20, ip + 31, 1_200]
}

/// Cases 38 and 39, in exact bytes: an error about a reply reaches the backend with its own address in
/// the quoted packet, and all checksums right.
#[test]
fn an_error_about_a_reply_is_translated_exactly_for_the_backend() {
    for tcp in [false, true] {
        let mut bench = Bench::with_datagrams();
        for (client, vip, backend, index) in FAMILIES.map(addressed) {
            open(&mut bench, tcp, client, vip);
            let (v6, index) = (vip.is_ipv6(), if tcp { index - 4 } else { index });
            let payload = [0x5a; 701];
            for ((kind, word), length) in
                errors(v6).into_iter().flat_map(|error| lengths(v6).map(|length| (error, length)))
            {
                let error = |from: SocketAddr| {
                    let reply = frame(tcp, from, client, &payload);
                    icmp((router(v6), from.ip()), kind, word, quote(&reply, length))
                };
                let out =
                    bench.expect("samport_forward", &error(vip), Verdict::IcmpForward, REDIRECT);
                assert_eq!(out, to_mac(error(backend), mac(index)), "{kind:?} {length} {vip}");
            }
        }
    }
}

/// Case 40, in exact bytes: an error about a client's packet reaches the client with the VIP in it.
#[test]
fn an_error_about_a_clients_packet_is_translated_exactly_for_the_client() {
    for tcp in [false, true] {
        for program in ["samport_reverse", "samport_device"] {
            let mut bench = Bench::with_datagrams();
            for (client, vip, backend, _) in FAMILIES.map(addressed) {
                open(&mut bench, tcp, client, vip);
                let v6 = vip.is_ipv6();
                for ((kind, word), length) in errors(v6)
                    .into_iter()
                    .flat_map(|error| lengths(v6).map(|length| (error, length)))
                {
                    let error = |to: SocketAddr| {
                        let sent = frame(tcp, client, to, b"a question of some length, and odd.");
                        icmp((to.ip(), client.ip()), kind, word, quote(&sent, length))
                    };
                    let out = bench.expect(program, &error(backend), Verdict::IcmpReply, REDIRECT);
                    assert_eq!(out, error(vip), "{program} {kind:?} {length} {vip}");
                }
            }
        }
    }
}

/// Case 15, in what an error quotes.
#[test]
fn a_quoted_datagram_without_a_checksum_stays_without_one() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        open(&mut bench, false, client, vip);
        let error = |from: SocketAddr| {
            let mut reply = datagram(from, client, b"an answer");
            let at = l4(&reply) + 6;
            reply[at..at + 2].fill(0);
            icmp((router(vip.is_ipv6()), from.ip()), (3, 0), [0; 4], quote(&reply, 100))
        };
        let out = bench.expect("samport_forward", &error(vip), Verdict::IcmpForward, REDIRECT);
        assert_eq!(out, to_mac(error(backend), mac(index)));
    }
}

/// An error about the first fragment of a reply, which IPv6 quotes with its fragment header.
#[test]
fn an_error_about_a_fragment_is_translated() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        open(&mut bench, false, client, vip);
        let error = |from: SocketAddr| {
            let reply = &fragments(&datagram(from, client, &[7; 2_000]), 9, 1_024)[0];
            icmp((router(vip.is_ipv6()), from.ip()), (3, 1), [0; 4], quote(reply, 600))
        };
        let out = bench.expect("samport_forward", &error(vip), Verdict::IcmpForward, REDIRECT);
        assert_eq!(out, to_mac(error(backend), mac(index)));
    }
}

/// Case 41: unrelated ICMP passes byte for byte.
#[test]
fn icmp_that_concerns_no_flow_passes_untouched() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, _) in FAMILIES.map(addressed) {
        open(&mut bench, false, client, vip);
        let v6 = vip.is_ipv6();
        let ends = (router(v6), vip.ip());
        let (echoes, redirect): (_, (u8, u8)) =
            if v6 { ([(128, 0), (129, 0)], (137, 0)) } else { ([(8, 0), (0, 0)], (5, 1)) };
        let reply = datagram(vip, client, b"answer");
        let mut frames: Vec<_> =
            echoes.map(|kind| icmp(ends, kind, [1, 2, 3, 4], quote(&reply, 100))).into();
        frames.push(icmp(ends, redirect, [0; 4], quote(&reply, 100)));

        let unreachable = if v6 { (1, 4) } else { (3, 3) };
        let mut about = |frame: &[u8], length| {
            frames.push(icmp(ends, unreachable, [0; 4], quote(frame, length)));
        };
        // Another client, another port of it, another service, another address, another protocol.
        about(&datagram(vip, SocketAddr::new(client.ip(), 40_001), b"x"), 100);
        about(&datagram(vip, SocketAddr::new(backend.ip(), client.port()), b"x"), 100);
        about(&datagram(SocketAddr::new(vip.ip(), 443), client, b"x"), 100);
        about(&frame(true, vip, client, b"x"), 100);
        // The quoted packet was sent by somebody else than the one who is told of it.
        about(&datagram(backend, client, b"x"), 100);
        about(&datagram(client, vip, b"x"), 100);
        // A later fragment, and quotes that are cut off everywhere before the ports' end.
        about(&fragments(&datagram(vip, client, &[7; 2_000]), 9, 1_024)[1], 100);
        let ports_end = l4(&reply) - IP + 4;
        for length in 0..ports_end {
            about(&reply, length);
        }
        for frame in frames {
            bench.expect_untouched("samport_forward", &frame, Verdict::IcmpOther);
            bench.expect_untouched("samport_egress", &frame, Verdict::IcmpOther);
            bench.expect_untouched("samport_reverse", &frame, Verdict::IcmpOther);
        }
    }
}

/// Case 41: what is cut off within ICMP's own header, or has no ICMP header at all.
#[test]
fn icmp_that_is_cut_off_passes_untouched() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, ..) in FAMILIES.map(addressed) {
        open(&mut bench, false, client, vip);
        let kind = if vip.is_ipv6() { (1, 4) } else { (3, 3) };
        let reply = datagram(vip, client, b"answer");
        let error = icmp((router(vip.is_ipv6()), vip.ip()), kind, [0; 4], quote(&reply, 100));
        for length in l4(&error)..=l4(&error) + ICMP_LEN {
            let cut = &error[..length];
            let (ran, counted) = bench.run("samport_forward", cut);
            assert_eq!((ran.action, &ran.bytes[..]), (crate::UNSPEC, cut), "{length} bytes");
            assert!(
                matches!(counted[..], [Verdict::Truncated | Verdict::IcmpOther]),
                "{length} bytes: {counted:?}"
            );
        }
    }
}

/// An error in a frame for somebody else is only overheard.
#[test]
fn errors_for_other_machines_pass() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, ..) in FAMILIES.map(addressed) {
        open(&mut bench, false, client, vip);
        let kind = if vip.is_ipv6() { (1, 4) } else { (3, 3) };
        let reply = datagram(vip, client, b"answer");
        let error = icmp((router(vip.is_ipv6()), vip.ip()), kind, [0; 4], quote(&reply, 100));
        let overheard = to_mac(error, [2, 0, 0, 0, 0, 9]);
        bench.expect_untouched("samport_forward", &overheard, Verdict::OtherHost);
    }
}

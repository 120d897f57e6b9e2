use proptest::prelude::*;

use super::*;
use crate::family::{Family, V4, V6};
use crate::packet::{self, L3};

fn node(addr: [u8; 16], own: [u8; 16], mtu: u32) -> Node {
    Node {
        addr,
        own,
        ifindex: 2,
        mtu,
        port: 6_080u16.to_be_bytes(),
        in_use: 1,
        own_drains: 0,
        pad: [0; 4],
    }
}

fn v4(mtu: u32) -> Node {
    node(V4::to_mapped([192, 0, 2, 2]), V4::to_mapped([192, 0, 2, 1]), mtu)
}

fn v6(mtu: u32) -> Node {
    let addr = |last| [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    node(addr(2), addr(1), mtu)
}

/// The frame that the kernel's programs make of an IP packet.
fn wrapped(node: &Node, inner: &[u8], hash: u32) -> Vec<u8> {
    let mut frame = vec![0; ethernet::LEN];
    let tos = tos([inner[0], inner[1]]);
    if node.is_ipv6() {
        frame.extend(outer_v6(inner.len(), tos));
        frame.extend(node.own);
        frame.extend(node.addr);
    } else {
        frame.extend(outer_v4(node, inner.len(), tos));
    }
    frame.extend(outer_udp(node, inner.len(), hash));
    frame.extend(inner);
    frame
}

/// The packet inside of a frame of the tunnel, with the addresses and ports of the outer one.
fn unwrapped<P: Family>(frame: &[u8]) -> (Packet<P::Addr>, Option<Payload>, &[u8]) {
    let outer = packet::parse::<P, _>(frame).expect("the outer headers are whole");
    let inner = &frame[L3 + outer_len(outer.l4)..];
    (outer, Payload::of(inner[0]), inner)
}

/// An IPv4 packet with a TCP header with these options.
fn syn(options: &[u8]) -> Vec<u8> {
    let data_offset = u8::try_from((tcp::MIN_LEN + options.len()) / 4).unwrap() << 4;
    let mut tcp = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, data_offset, 2, 0xff, 0xff];
    tcp.extend([0; 4]);
    tcp.extend(options);
    let total = u16::try_from(ipv4::MIN_LEN + tcp.len()).unwrap().to_be_bytes();
    let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol::TCP, 0, 0];
    ip.extend([203, 0, 113, 9, 192, 0, 2, 1]);
    ip.extend(tcp);
    ip
}

fn clamped(node: &Node, options: &[u8]) -> Option<u16> {
    let mut frame = vec![0; ethernet::LEN];
    frame.extend(syn(options));
    let packet = packet::parse::<V4, _>(&frame[..]).unwrap();
    let clamp = clamp(&frame[..], &packet, node, ipv4::MIN_LEN)?;
    let sum = |frame: &[u8]| checksum::compute(&frame[packet.l4..], 0);
    let updated = checksum::update(sum(&frame), clamp.csum_diff);
    frame[clamp.at..clamp.at + 2].copy_from_slice(&clamp.size);
    assert_eq!(updated, sum(&frame), "{options:?}");
    Some(u16::from_be_bytes(clamp.size))
}

#[test]
fn a_maximum_segment_size_is_what_fits_through_the_tunnel() {
    let mss = |size: u16| [2, 4, size.to_be_bytes()[0], size.to_be_bytes()[1]];
    // 1,500 bytes less 28 of the tunnel and 40 of the packet's own headers.
    assert_eq!(clamped(&v4(1_500), &mss(1_460)), Some(1_432));
    assert_eq!(clamped(&v6(1_500), &mss(1_460)), Some(1_412));
    assert_eq!(clamped(&v4(1_500), &mss(1_432)), None);
    assert_eq!(clamped(&v4(1_500), &mss(536)), None);
    assert_eq!(clamped(&v4(9_000), &mss(1_460)), None);
    assert_eq!(clamped(&v4(1_400), &[&[1, 1, 4, 2][..], &mss(1_460)].concat()), Some(1_332));
    assert_eq!(clamped(&v4(1_400), &[&[1][..], &mss(1_460), &[4, 2, 1]].concat()), Some(1_332));
    // An end of options, options that go on for ever, and none.
    assert_eq!(clamped(&v4(1_500), &[&[0, 1, 1, 1][..], &mss(1_460)].concat()), None);
    assert_eq!(clamped(&v4(1_500), &[8, 0, 0, 0]), None);
    assert_eq!(clamped(&v4(1_500), &[]), None);
    assert_eq!(clamped(&v4(1_500), &[1, 1, 2, 4]), None);
}

#[test]
fn what_fits_is_counted_by_segments() {
    let node = v4(1_500);
    assert!(fits(&node, 1_472, 0, 0) && !fits(&node, 1_473, 0, 0));
    assert!(fits(&node, 64_000, 1_432, 40) && !fits(&node, 64_000, 1_433, 40));
    assert_eq!((inner_mtu(&node), inner_mtu(&v6(1_500)), inner_mtu(&v4(0))), (1_472, 1_452, 0));
}

#[test]
fn only_ip_packets_and_control_messages_are_anything() {
    for first in 0..=u8::MAX {
        let expected = match first >> 4 {
            4 => Some(Payload::Ipv4),
            6 => Some(Payload::Ipv6),
            2 => Some(Payload::Control),
            _ => None,
        };
        assert_eq!(Payload::of(first), expected, "{first:#x}");
    }
}

#[test]
fn a_length_that_does_not_fit_is_none() {
    let (node, zero) = (v4(1_500), [0; 2]);
    assert_eq!(outer_v4(&node, 65_536, 0)[2..4], zero);
    assert_eq!(outer_udp(&node, 65_536, 0)[4..6], zero);
}

/// A probe from a node, as it comes in, and the frame it is answered with.
fn answered<P: Family>(node: &Node, message: &[u8]) -> Option<Vec<u8>> {
    answered_by::<P>(node, message, false)
}

fn answered_by<P: Family>(node: &Node, message: &[u8], drains: bool) -> Option<Vec<u8>> {
    let mut frame = wrapped(node, &[&[0x45][..], &vec![0; message.len() - 1]].concat(), 7);
    let len = frame.len();
    frame[len - message.len()..].copy_from_slice(message);
    let packet = packet::parse::<P, _>(&frame[..]).unwrap();
    let answer = answer::<P, _>(&frame[..], &packet, drains)?;
    frame.truncate(answer.frame_len);
    frame[answer.length_at..answer.length_at + 2].copy_from_slice(&answer.length);
    if let Some(at) = P::CHECKSUM {
        let field = frame[L3 + at..L3 + at + 2].try_into().unwrap();
        let after = checksum::update(field, answer.csum_diff);
        frame[L3 + at..L3 + at + 2].copy_from_slice(&after);
    }
    let addr = size_of::<P::Addr>();
    let (source, destination) = (L3 + P::SOURCE, L3 + P::DESTINATION);
    let (from, to) =
        (frame[source..source + addr].to_vec(), frame[destination..destination + addr].to_vec());
    frame[source..source + addr].copy_from_slice(&to);
    frame[destination..destination + addr].copy_from_slice(&from);
    frame[packet.l4..packet.l4 + 8].copy_from_slice(&answer.udp);
    frame[packet.l4 + 8..packet.l4 + 10].copy_from_slice(&answer.control);
    Some(frame)
}

#[test]
fn a_probe_is_answered_by_its_head_turned_round() {
    let small: Vec<u8> = [&[0x20, 1, 0, 0][..], &(1..=12).collect::<Vec<u8>>()].concat();
    let large = [&small[..], &[0; 1_000]].concat();
    for message in [&small, &large] {
        let frame = answered::<V4>(&v4(1_500), message).unwrap();
        let packet = packet::parse::<V4, _>(&frame[..]).unwrap();
        assert_eq!((packet.source.addr, packet.destination.addr), ([192, 0, 2, 2], [192, 0, 2, 1]));
        assert_eq!(packet.source.port, 6_080u16.to_be_bytes());
        assert_eq!(checksum::compute(&frame[L3..L3 + ipv4::MIN_LEN], 0), [0, 0]);
        assert_eq!(frame[frame.len() - 16..frame.len() - 12], [0x20, 2, 0, 0]);
        assert_eq!((&frame[frame.len() - 12..], packet.length), (&small[4..], 24));

        let frame = answered::<V6>(&v6(1_500), message).unwrap();
        let packet = packet::parse::<V6, _>(&frame[..]).unwrap();
        assert_eq!((packet.source.addr, packet.length), (v6(0).addr, 24));
        let sums = (V6::csum(&packet.source.addr), V6::csum(&packet.destination.addr));
        let pseudo = checksum::pseudo_header(sums.0, sums.1, protocol::UDP, 24u16.to_be());
        assert_eq!(checksum::compute(&frame[packet.l4..], pseudo.into()), [0, 0]);
    }
    // Of one that is drained.
    let frame = answered_by::<V6>(&v6(1_500), &small, true).unwrap();
    let packet = packet::parse::<V6, _>(&frame[..]).unwrap();
    let sums = (V6::csum(&packet.source.addr), V6::csum(&packet.destination.addr));
    let pseudo = checksum::pseudo_header(sums.0, sums.1, protocol::UDP, 24u16.to_be());
    assert_eq!(checksum::compute(&frame[packet.l4..], pseudo.into()), [0, 0]);
    assert_eq!(frame[frame.len() - 16..frame.len() - 12], [0x20, 3, 0, 0]);
    // An answer, another control message, and one that is cut off.
    let mut answer = small.clone();
    answer[1] = 2;
    let mut other = small.clone();
    other[0] = 0x21;
    for message in [&answer[..], &other, &small[..15]] {
        assert_eq!(answered::<V4>(&v4(1_500), message), None);
    }
}

proptest! {
    /// What comes out of the tunnel is what went in, and the outer headers are those of a datagram from this node to that.
    #[test]
    fn unwrapping_gives_back_what_was_wrapped(
        version in prop::sample::select(&[4u8, 6][..]),
        rest in prop::collection::vec(any::<u8>(), 19..1_400),
        hash: u32,
        is_outer_v6: bool,
    ) {
        let mut inner = vec![version << 4 | rest[0] & 0xf];
        inner.extend(rest);
        let node = if is_outer_v6 { v6(1_500) } else { v4(1_500) };
        let frame = wrapped(&node, &inner, hash);
        prop_assert_eq!(frame.len(), ethernet::LEN + overhead(&node) + inner.len());
        let (addresses, ports, payload, out) = if is_outer_v6 {
            let (outer, payload, out) = unwrapped::<V6>(&frame);
            ((outer.source.addr, outer.destination.addr), (outer.source.port, outer.destination.port), payload, out)
        } else {
            let (outer, payload, out) = unwrapped::<V4>(&frame);
            let addresses = (V4::to_mapped(outer.source.addr), V4::to_mapped(outer.destination.addr));
            prop_assert_eq!(checksum::compute(&frame[L3..L3 + ipv4::MIN_LEN], 0), [0, 0]);
            // It may not be made into fragments, and no router marks congestion in it.
            prop_assert_eq!((frame[L3 + 6], frame[L3 + 1] & ECN), (0x40, 0));
            (addresses, (outer.source.port, outer.destination.port), payload, out)
        };
        prop_assert_eq!(out, &inner[..]);
        prop_assert_eq!(payload, Some(if version == 4 { Payload::Ipv4 } else { Payload::Ipv6 }));
        prop_assert_eq!(addresses, (node.own, node.addr));
        prop_assert_eq!(ports.1, node.port);
        prop_assert!(u16::from_be_bytes(ports.0) >= LEAST_SOURCE_PORT);
    }

    /// Whatever the options are, nothing else is ever taken for the maximum segment size.
    #[test]
    fn only_the_maximum_segment_size_is_clamped(mut options in prop::collection::vec(any::<u8>(), 0..40)) {
        options.truncate(options.len() / 4 * 4);
        if clamped(&v4(1_500), &options).is_some() {
            prop_assert!(options.windows(2).any(|pair| pair == [2, 4]));
        }
    }
}

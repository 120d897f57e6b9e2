//! Target `encap`: the bytes are what there is to know of a node (its family, its MTU), a flow's hash, and a frame.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use samport_common::encap::{self, ANSWER, ANSWER_LEN, CONTROL, DRAINING, Payload, QUESTION};
use samport_common::family::{Family, V4, V6};
use samport_common::layout::Node;
use samport_common::packet::{self, L3, Packet};
use samport_common::wire::protocol::Protocol;
use samport_common::wire::{ethernet, tcp, udp};

use crate::sum;

/// Ends of the tunnel, in documentation networks.
const OWN: [u8; 4] = [192, 0, 2, 1];
const OTHER: [u8; 4] = [192, 0, 2, 2];
/// 2001:db8::/112
const NETWORK: [u8; 12] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0];
const PORT: u16 = 6_080;

/// An IP packet comes out of the tunnel as it went in, and what it was in is a datagram to the node. Whatever bytes a frame
/// of the tunnel has, nothing in it is found that is not there: no probe, no packet, no maximum segment size.
pub fn check(bytes: &[u8]) {
    let Some(([family, m0, m1, hash @ ..], frame)) = bytes.split_first_chunk::<7>() else { return };
    let node = node(family & 1 != 0, u16::from_be_bytes([*m0, *m1]).into());
    let packet = frame.get(ethernet::LEN..).unwrap_or(frame);
    round_trip(&node, packet, u32::from_ne_bytes(*hash));
    from_anybody::<V4>(&node, frame);
    from_anybody::<V6>(&node, frame);
}

fn node(is_ipv6: bool, mtu: u32) -> Node {
    let long = |addr: [u8; 4]| [&NETWORK[..], &addr].concat().try_into().expect("16 bytes");
    let end = |addr| if is_ipv6 { long(addr) } else { V4::to_mapped(addr) };
    let (addr, own) = (end(OTHER), end(OWN));
    Node {
        addr,
        own,
        ifindex: 2,
        mtu,
        port: PORT.to_be_bytes(),
        in_use: 1,
        own_drains: 0,
        pad: [0; 4],
    }
}

fn round_trip(node: &Node, inner: &[u8], hash: u32) {
    let &[first, second, ..] = inner else { return };
    let version = match first >> 4 {
        4 => Payload::Ipv4,
        6 => Payload::Ipv6,
        _ => return,
    };
    let tos = encap::tos([first, second]);
    let mut frame = vec![0; ethernet::LEN];
    let ether_type = if node.is_ipv6() { V6::ETHER_TYPE } else { V4::ETHER_TYPE };
    frame[ethernet::TYPE].copy_from_slice(&ether_type);
    if node.is_ipv6() {
        frame.extend(encap::outer_v6(inner.len(), tos));
        frame.extend([node.own, node.addr].concat());
    } else {
        frame.extend(encap::outer_v4(node, inner.len(), tos));
    }
    frame.extend(encap::outer_udp(node, inner.len(), hash));
    frame.extend(inner);

    assert_eq!(frame.len(), L3 + encap::overhead(node) + inner.len());
    let out = if node.is_ipv6() { unwrapped::<V6>(&frame) } else { unwrapped::<V4>(&frame) };
    assert_eq!(out, Some((version, inner)));
    datagram_is_the_nodes(node, &frame, tos, inner);
}

/// What `tunnel::unwrap` of the kernel's programs finds in a frame.
fn unwrapped<P: Family>(frame: &[u8]) -> Option<(Payload, &[u8])> {
    let outer = packet::parse::<P, _>(frame).ok()?;
    let inner = frame.get(L3 + encap::outer_len(outer.l4)..)?;
    Some((Payload::of(*inner.first()?)?, inner))
}

/// Another parser says the same of it.
fn datagram_is_the_nodes(node: &Node, frame: &[u8], tos: u8, inner: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("headers that are whole");
    let (source, destination, class) = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            assert_eq!(sum::csum(&[header.slice()]), 0xffff);
            assert!(header.dont_fragment());
            let class = header.dcp().value() << 2 | header.ecn().value();
            (V4::to_mapped(header.source()), V4::to_mapped(header.destination()), class)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source(), header.destination(), header.traffic_class())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((source, destination), (node.own, node.addr));
    // Routers mark no congestion in it.
    assert_eq!(class, tos & !0b11);
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("{:?}", sliced.transport) };
    assert_eq!((udp.destination_port(), udp.checksum()), (PORT, 0));
    assert!(udp.source_port() >= 0xc000);
    assert_eq!(udp.payload(), inner);
}

/// A frame of the tunnel that may have been made by anybody.
fn from_anybody<P: Family>(node: &Node, frame: &[u8]) {
    if let Some((payload, inner)) = unwrapped::<P>(frame) {
        let first = match payload {
            Payload::Ipv4 => 4,
            Payload::Ipv6 => 6,
            Payload::Control => 2,
        };
        assert_eq!(inner[0] >> 4, first);
    }
    let Ok(packet) = packet::parse::<P, _>(frame) else { return };
    match packet.protocol {
        Protocol::Udp => probe_is_one::<P>(frame, &packet),
        Protocol::Tcp => segment_size_is_one::<P>(node, frame, &packet),
    }
}

/// Only questions are answered, by themselves; and no answer is.
fn probe_is_one<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) {
    let at = packet.l4 + udp::LEN;
    let drains = frame.len() % 2 == 1;
    let Some(answer) = encap::answer::<P, _>(frame, packet, drains) else {
        let message = frame.get(at..at + ANSWER_LEN);
        assert!(message.is_none_or(|message| message[..2] != [CONTROL, QUESTION]));
        return;
    };
    assert_eq!(frame[at..at + 2], [CONTROL, QUESTION]);
    assert_eq!(answer.frame_len, at + ANSWER_LEN);
    let mut turned = frame[..answer.frame_len].to_vec();
    let length = &mut turned[answer.length_at..answer.length_at + 2];
    let before: [u8; 2] = length.try_into().expect("two bytes");
    length.copy_from_slice(&answer.length);
    if let Some(checksum_at) = P::CHECKSUM {
        let field: [u8; 2] =
            turned[L3 + checksum_at..L3 + checksum_at + 2].try_into().expect("two");
        let updated = samport_common::checksum::update(field, answer.csum_diff);
        assert_same_sum(updated, sum::moved(field, &before, &answer.length));
    }
    turned[packet.l4..at].copy_from_slice(&answer.udp);
    turned[at..at + 2].copy_from_slice(&answer.control);
    assert_eq!(answer.control, [CONTROL, if drains { DRAINING } else { ANSWER }]);
    assert_eq!(answer.udp[..4], [packet.destination.port, packet.source.port].concat());
    let turned = &turned[..];
    let again = packet::parse::<P, _>(turned).expect("what was parsed before, shorter");
    assert_eq!(encap::answer::<P, _>(turned, &again, drains), None);
}

/// What is made smaller stands in the options, as a maximum segment size.
fn segment_size_is_one<P: Family>(node: &Node, frame: &[u8], packet: &Packet<P::Addr>) {
    let Some(clamp) = encap::clamp(frame, packet, node, P::HEADER_LEN) else { return };
    let options = packet.l4 + tcp::MIN_LEN;
    let end = packet.l4 + usize::from(frame[packet.l4 + tcp::DATA_OFFSET] >> 4) * 4;
    assert!(clamp.at >= options + 2 && clamp.at + 2 <= end, "{clamp:?}");
    assert_eq!(frame[clamp.at - 2..clamp.at], [2, 4]);
    let before = u16::from_be_bytes([frame[clamp.at], frame[clamp.at + 1]]);
    let after = u16::from_be_bytes(clamp.size);
    assert!(after < before);
    let headers = u32::try_from(P::HEADER_LEN + tcp::MIN_LEN).expect("60 at most");
    assert_eq!(u32::from(after), encap::inner_mtu(node).saturating_sub(headers));
    // As a segment that begins with these two words, at an even or an odd place.
    let mut words = [0; 4];
    let at = (clamp.at - packet.l4) & 1;
    words[at..at + 2].copy_from_slice(&before.to_be_bytes());
    let mut new = words;
    new[at..at + 2].copy_from_slice(&clamp.size);
    let updated = samport_common::checksum::update([0x12, 0x34], clamp.csum_diff);
    assert_same_sum(updated, sum::moved([0x12, 0x34], &words, &new));
}

/// Zero has two forms in ones' complement.
fn assert_same_sum(one: [u8; 2], other: [u8; 2]) {
    let form = |sum| if sum == [0xff; 2] { [0; 2] } else { sum };
    assert_eq!(form(one), form(other));
}

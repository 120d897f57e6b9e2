//! Target `rewrite`: the bytes are the new endpoint (16 of an address, 2 of a port), one that says
//! which end it replaces, and a frame.

use samport_common::family::{Family, V4, V6};
use samport_common::flow::Endpoint;
use samport_common::frame::Frame as _;
use samport_common::packet::{self, Packet};
use samport_common::rewrite::{self, End};
use samport_common::wire::{ethernet, protocol, tcp};

use crate::sum::sum;

/// A rewritten packet is the one that would have been built for the new endpoint, and rewriting it
/// back gives the packet that came; one with a wrong checksum keeps a wrong one.
pub fn check(bytes: &[u8]) {
    let Some((to, bytes)) = bytes.split_first_chunk::<18>() else { return };
    let Some((end, frame)) = bytes.split_first() else { return };
    let end = if end & 1 == 0 { End::Destination } else { End::Source };
    match frame.read(ethernet::TYPE.start) {
        Some(ethernet::IPV4) => family::<V4>(frame, end, to),
        Some(ethernet::IPV6) => family::<V6>(frame, end, to),
        _ => {}
    }
}

fn family<P: Family>(frame: &[u8], end: End, to: &[u8; 18]) {
    let Ok(packet) = packet::parse::<P, _>(frame) else { return };
    let [address @ .., p0, p1] = to;
    let to = Endpoint { addr: P::narrow(address), port: [*p0, *p1] };

    let damaged = rewritten::<P>(frame, &packet, end, to);
    assert_eq!(is_right::<P>(frame, &packet), is_right::<P>(&damaged, &packet));

    let original = with_right_checksums::<P>(frame, &packet);
    let there = rewritten::<P>(&original, &packet, end, to);
    let mut built = original.clone();
    put::<P>(&mut built, &packet, end, to);
    assert_eq!(there, with_right_checksums::<P>(&built, &packet), "{packet:?}, {end:?}: {to:?}");

    let packet_there = packet::parse::<P, _>(&there[..]).expect("what was rewritten parses");
    let (from, now) = match end {
        End::Source => (packet.source, packet_there.source),
        End::Destination => (packet.destination, packet_there.destination),
    };
    assert_eq!(now, to);
    assert_eq!(rewritten::<P>(&there, &packet_there, end, from), original);
}

fn rewritten<P: Family>(
    frame: &[u8],
    packet: &Packet<P::Addr>,
    end: End,
    to: Endpoint<P::Addr>,
) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let rewrite = rewrite::plan::<P>(packet, end, to);
    rewrite::apply(&mut frame, &rewrite).expect("a parsed packet has room for its rewrite");
    frame
}

/// Puts an endpoint into a frame, checksums aside.
fn put<P: Family>(frame: &mut [u8], packet: &Packet<P::Addr>, end: End, to: Endpoint<P::Addr>) {
    let (address, port) = match end {
        End::Source => (P::SOURCE, tcp::SOURCE_PORT),
        End::Destination => (P::DESTINATION, tcp::DESTINATION_PORT),
    };
    let len = size_of::<P::Addr>();
    frame[packet.l3 + address..][..len].copy_from_slice(&P::widen(to.addr)[16 - len..]);
    frame[packet.l4 + port.start..][..2].copy_from_slice(&to.port);
}

/// The frame with both checksums computed from scratch.
fn with_right_checksums<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(offset) = P::CHECKSUM {
        let at = packet.l3 + offset;
        frame[at..at + 2].fill(0);
        let checksum = !header_sum::<P>(&frame, packet);
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    let at = packet.l4 + tcp::CHECKSUM.start;
    frame[at..at + 2].fill(0);
    let checksum = !segment_sum::<P>(&frame, packet);
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// Whether a receiver would accept both checksums.
fn is_right<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) -> bool {
    header_sum::<P>(frame, packet) == 0xffff && segment_sum::<P>(frame, packet) == 0xffff
}

/// The sum of the IP header, or that of a right one where IP has none.
fn header_sum<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) -> u16 {
    match P::CHECKSUM {
        Some(_) => sum(&[&frame[packet.l3..packet.l4]]),
        None => 0xffff,
    }
}

/// The sum over pseudo-header and segment. Where the segment ends does not matter as long as it is
/// the same place every time: it is the frame's end, whatever the length fields say.
fn segment_sum<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) -> u16 {
    let segment = &frame[packet.l4..];
    let address = |offset| &frame[packet.l3 + offset..][..size_of::<P::Addr>()];
    let length = u32::try_from(segment.len()).expect("a short frame").to_be_bytes();
    let protocol = [0, protocol::TCP];
    sum(&[address(P::SOURCE), address(P::DESTINATION), &protocol, &length, segment])
}

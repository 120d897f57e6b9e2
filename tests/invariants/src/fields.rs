//! Writing into frames, and their checksums from scratch.

use samport_common::family::{Address, Family};
use samport_common::flow::Endpoint;
use samport_common::packet::{L3, Packet};
use samport_common::rewrite::End;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::{icmp, ipv4, ipv6, tcp, udp};

use crate::sum::csum;

/// What a receiver says to a checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    Right,
    Wrong,
    /// The sender has computed none.
    None,
}

impl Checksum {
    fn of(sum: u16) -> Self {
        if sum == 0xffff { Self::Right } else { Self::Wrong }
    }
}

pub fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Puts an address at one end of the IP header at `l3`.
pub fn put_address<P: Family>(frame: &mut [u8], l3: usize, end: End, addr: P::Addr) {
    let offset = match end {
        End::Source => P::SOURCE,
        End::Destination => P::DESTINATION,
    };
    put(frame, l3 + offset, bytes::<P>(&P::to_mapped(addr)));
}

/// Puts an endpoint at one end of a packet, checksums aside.
pub fn put_endpoint<P: Family>(
    frame: &mut [u8],
    packet: &Packet<P::Addr>,
    end: End,
    to: Endpoint<P::Addr>,
) {
    put_address::<P>(frame, packet.l3, end, to.addr);
    let port = match end {
        End::Source => tcp::SOURCE_PORT,
        End::Destination => tcp::DESTINATION_PORT,
    };
    put(frame, packet.l4 + port.start, &to.port);
}

/// An address's own bytes in its 16-byte form.
pub fn bytes<P: Family>(wide: &[u8; 16]) -> &[u8] {
    &wide[16 - size_of::<P::Addr>()..]
}

/// Where the IP packet at `l3` ends: behind it there may be padding. The end of the frame where the
/// length field says nothing or promises more.
pub fn end<P: Family>(frame: &[u8], l3: usize) -> usize {
    let (field, of_header) = match P::CHECKSUM {
        Some(_) => (ipv4::TOTAL_LEN, 0),
        None => (ipv6::PAYLOAD_LEN, ipv6::LEN),
    };
    let length =
        usize::from(u16::from_be_bytes([frame[l3 + field.start], frame[l3 + field.start + 1]]));
    if length == 0 { frame.len() } else { frame.len().min(l3 + of_header + length) }
}

/// The checksum of the IP header at `l3`; right where there is none.
pub fn header<P: Family>(frame: &[u8], l3: usize) -> Checksum {
    match P::CHECKSUM {
        Some(_) => Checksum::of(csum(&[header_bytes(frame, l3)])),
        None => Checksum::Right,
    }
}

pub fn correct_header<P: Family>(frame: &mut [u8], l3: usize) {
    if let Some(offset) = P::CHECKSUM {
        put(frame, l3 + offset, &[0; 2]);
        let checksum = !csum(&[header_bytes(frame, l3)]);
        put(frame, l3 + offset, &checksum.to_be_bytes());
    }
}

/// The IPv4 header at `l3`; the options of a later fragment, at which nobody looks, may be cut off.
fn header_bytes(frame: &[u8], l3: usize) -> &[u8] {
    let end = l3 + usize::from(frame[l3] & 0x0f) * 4;
    &frame[l3..end.min(frame.len())]
}

/// Where a packet's transport checksum stands.
pub fn transport_at<A: Address>(packet: &Packet<A>) -> usize {
    packet.l4
        + match packet.protocol {
            Protocol::Tcp => tcp::CHECKSUM.start,
            Protocol::Udp => udp::CHECKSUM.start,
        }
}

/// The transport checksum of a packet that is not quoted.
pub fn transport<P: Family>(frame: &[u8], packet: &Packet<P::Addr>) -> Checksum {
    let at = transport_at(packet);
    if packet.protocol == Protocol::Udp && frame[at..at + 2] == [0; 2] {
        return Checksum::None;
    }
    Checksum::of(covered::<P>(frame, packet.l4, packet.protocol.number()))
}

pub fn correct_transport<P: Family>(frame: &mut [u8], packet: &Packet<P::Addr>) {
    let at = transport_at(packet);
    put(frame, at, &[0; 2]);
    let checksum = !covered::<P>(frame, packet.l4, packet.protocol.number());
    put(frame, at, &form(packet.protocol, checksum.to_be_bytes()));
}

/// The form in which a protocol sends a checksum: zero means none in UDP (RFC 768).
pub fn form(protocol: Protocol, checksum: [u8; 2]) -> [u8; 2] {
    match (protocol, checksum) {
        (Protocol::Udp, [0, 0]) => [0xff; 2],
        (Protocol::Tcp, [0xff, 0xff]) => [0; 2],
        _ => checksum,
    }
}

/// The checksum of the ICMP message at `at`.
pub fn message<P: Family>(frame: &[u8], at: usize) -> Checksum {
    Checksum::of(message_sum::<P>(frame, at))
}

pub fn correct_message<P: Family>(frame: &mut [u8], at: usize) {
    let field = at + icmp::CHECKSUM.start;
    put(frame, field, &[0; 2]);
    let checksum = !message_sum::<P>(frame, at);
    put(frame, field, &checksum.to_be_bytes());
}

fn message_sum<P: Family>(frame: &[u8], at: usize) -> u16 {
    match P::CHECKSUM {
        Some(_) => csum(&[&frame[at..end::<P>(frame, L3)]]),
        None => covered::<P>(frame, at, P::ICMP),
    }
}

/// The sum over the pseudo-header and what follows at `l4`.
fn covered<P: Family>(frame: &[u8], l4: usize, protocol: u8) -> u16 {
    let payload = &frame[l4..end::<P>(frame, L3)];
    let address = |offset| &frame[L3 + offset..][..size_of::<P::Addr>()];
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    csum(&[address(P::SOURCE), address(P::DESTINATION), &[0, protocol], &length, payload])
}

//! From bytes to a validated packet: where its headers are, who talks to whom.

use crate::conntrack::Segment;
use crate::family::{Address, Family};
use crate::flow::Endpoint;
use crate::frame::Frame;
use crate::verdict::Verdict;
use crate::wire::protocol::{self, Protocol};
use crate::wire::{ethernet, icmp, ipv4, ipv6, tcp, udp};

/// The IP layer of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layers<A> {
    /// Offset of what follows IP and its extensions, in bytes from the start of the frame.
    pub l4: usize,
    /// IP protocol number of what stands there: TCP, UDP, or the family's ICMP.
    pub protocol: u8,
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Which part of a datagram the packet is.
    pub part: Part,
    /// Bytes from `l4` to the end of the IP packet, by the IP header; 0 if that does not say.
    pub length: u16,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which carries the ports; with the datagram's identification.
    First(u32),
    /// Another fragment: what stands at `l4` is in the middle of the payload.
    Later(u32),
}

/// A TCP segment or UDP datagram we can do something with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<A: Address> {
    /// Offset of the IP header, in bytes from the start of the frame.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// What the transport header is.
    pub protocol: Protocol,
    /// Sender.
    pub source: Endpoint<A>,
    /// Receiver.
    pub destination: Endpoint<A>,
    /// TCP flags; none for UDP.
    pub flags: tcp::Flags,
    /// All of a datagram, or its first fragment.
    pub part: Part,
    /// Bytes of transport header and payload, by the IP header; 0 if that does not say.
    pub length: u16,
}

/// Above every offset of a header that is looked at: twice, for the packet that an ICMP error
/// quotes, 14 and 40 bytes and six extension headers of at most 2,048. All bits set, to be a mask.
pub const MAX_OFFSET: usize = 0x7fff;
const _: () = assert!(MAX_OFFSET > 2 * (14 + 40 + ipv6::MAX_EXTENSIONS * 2_048));

/// Why a packet is not simply a [`Packet`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// Nothing can be done with it: it leaves by this verdict.
    Leave(Verdict),
    /// ICMP: see [`parse_error`].
    Icmp,
    /// The first fragment of a datagram: see [`parse_first`].
    First,
    /// A later fragment: see [`parse_later`].
    Later,
}

/// What all fragments of one datagram have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentId<A: Address> {
    /// Sender.
    pub source: A,
    /// Receiver.
    pub destination: A,
    /// The datagram's identification.
    pub id: u32,
    /// The IP protocol number in IPv4; 0 in IPv6, where fragments may differ in it (RFC 8200,
    /// section 4.5).
    pub protocol: u8,
}

/// An ICMP error, and the packet it quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError<A: Address> {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the ICMP header.
    pub icmp: usize,
    /// Who reports.
    pub reporter: A,
    /// Who is told: the sender of the quoted packet.
    pub told: A,
    /// The beginning of the quoted packet. Its transport header may be cut off behind the ports.
    pub quoted: Packet<A>,
}

/// Offset of the IP header: right behind an untagged Ethernet header.
pub const L3: usize = ethernet::LEN;

/// Parses a frame whose `EtherType` has already said which family it is.
///
/// # Errors
/// What else the packet is.
#[inline(always)]
pub fn parse<P: Family, F: Frame + ?Sized>(frame: &F) -> Result<Packet<P::Addr>, Special> {
    let layers = P::layers(frame, L3).map_err(Special::Leave)?;
    match layers.part {
        Part::Whole => {}
        Part::First(_) => return Err(Special::First),
        Part::Later(_) => return Err(Special::Later),
    }
    if layers.protocol == P::ICMP {
        return Err(Special::Icmp);
    }
    transport(frame, L3, &layers).map_err(Special::Leave)
}

/// [`parse`] that takes a first fragment too: it can be treated like a whole packet, if what is done
/// with it is remembered for the others.
///
/// # Errors
/// What else the packet is.
#[inline(always)]
pub fn parse_first<P: Family, F: Frame + ?Sized>(frame: &F) -> Result<Packet<P::Addr>, Special> {
    let layers = P::layers(frame, L3).map_err(Special::Leave)?;
    if matches!(layers.part, Part::Later(_)) {
        return Err(Special::Later);
    }
    if layers.protocol == P::ICMP {
        return Err(Special::Icmp);
    }
    transport(frame, L3, &layers).map_err(Special::Leave)
}

/// Parses a later fragment, of which only the addresses can be looked at.
///
/// # Errors
/// The verdict the packet leaves by.
#[inline(always)]
pub fn parse_later<P: Family, F: Frame + ?Sized>(
    frame: &F,
) -> Result<FragmentId<P::Addr>, Verdict> {
    let layers = P::layers(frame, L3)?;
    match layers.part {
        Part::Later(id) => {
            let Layers { source, destination, protocol, .. } = layers;
            Ok(fragment_id::<P>(source, destination, protocol, id))
        }
        Part::First(_) | Part::Whole => Err(Verdict::Malformed),
    }
}

/// What a first fragment is part of; `None` for a whole packet.
#[must_use]
#[inline(always)]
pub fn first_of<P: Family>(packet: &Packet<P::Addr>) -> Option<FragmentId<P::Addr>> {
    match packet.part {
        Part::First(id) => {
            let (source, destination) = (packet.source.addr, packet.destination.addr);
            Some(fragment_id::<P>(source, destination, packet.protocol.number(), id))
        }
        Part::Whole | Part::Later(_) => None,
    }
}

#[inline(always)]
fn fragment_id<P: Family>(
    source: P::Addr,
    destination: P::Addr,
    protocol: u8,
    id: u32,
) -> FragmentId<P::Addr> {
    let protocol = if P::FRAGMENTS_BY_PROTOCOL { protocol } else { 0 };
    FragmentId { source, destination, id, protocol }
}

/// Parses what [`parse`] has called ICMP.
///
/// # Errors
/// The verdict the packet leaves by; [`Verdict::IcmpOther`] for whatever is no error about a TCP
/// segment or a UDP datagram.
#[inline(always)]
pub fn parse_error<P: Family, F: Frame + ?Sized>(frame: &F) -> Result<IcmpError<P::Addr>, Verdict> {
    let outer = P::layers(frame, L3)?;
    // The other fragments of an error could not be sent after it.
    if outer.protocol != P::ICMP || !matches!(outer.part, Part::Whole) {
        return Err(Verdict::IcmpOther);
    }
    let icmp = frame.reconsider(outer.l4);
    let [kind, _] = frame.read(icmp).ok_or(Verdict::Truncated)?;
    if !P::is_icmp_error(kind) {
        return Err(Verdict::IcmpOther);
    }
    let l3 = icmp + icmp::LEN;
    // A quoted packet may be cut off anywhere: then it is the host's business, not malformed.
    let Ok(inner) = P::layers(frame, l3) else { return Err(Verdict::IcmpOther) };
    let Some(protocol) = Protocol::from_number(inner.protocol) else {
        return Err(Verdict::IcmpOther);
    };
    if matches!(inner.part, Part::Later(_)) {
        return Err(Verdict::IcmpOther);
    }
    let l4 = frame.reconsider(inner.l4);
    let [s0, s1, d0, d1] = frame.read(l4).ok_or(Verdict::IcmpOther)?;
    let quoted = Packet {
        l3,
        l4,
        protocol,
        source: Endpoint { addr: inner.source, port: [s0, s1] },
        destination: Endpoint { addr: inner.destination, port: [d0, d1] },
        flags: tcp::Flags(0),
        part: inner.part,
        length: inner.length,
    };
    Ok(IcmpError { l3: L3, icmp, reporter: outer.source, told: outer.destination, quoted })
}

/// Reads the transport header behind the layers.
#[inline(always)]
fn transport<A: Address, F: Frame + ?Sized>(
    frame: &F,
    l3: usize,
    layers: &Layers<A>,
) -> Result<Packet<A>, Verdict> {
    let l4 = layers.l4;
    let (protocol, ports, flags) = match layers.protocol {
        protocol::TCP => {
            let header: [u8; tcp::MIN_LEN] = frame.read(l4).ok_or(Verdict::Truncated)?;
            let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, data_offset, flags, ..] = header;
            if usize::from(data_offset >> 4) * 4 < tcp::MIN_LEN {
                return Err(Verdict::Malformed);
            }
            (Protocol::Tcp, [s0, s1, d0, d1], tcp::Flags(flags))
        }
        protocol::UDP => {
            let header: [u8; udp::LEN] = frame.read(l4).ok_or(Verdict::Truncated)?;
            let [s0, s1, d0, d1, ..] = header;
            (Protocol::Udp, [s0, s1, d0, d1], tcp::Flags(0))
        }
        _ => return Err(Verdict::OtherProtocol),
    };
    let [s0, s1, d0, d1] = ports;
    Ok(Packet {
        l3,
        l4,
        protocol,
        source: Endpoint { addr: layers.source, port: [s0, s1] },
        destination: Endpoint { addr: layers.destination, port: [d0, d1] },
        flags,
        part: layers.part,
        length: layers.length,
    })
}

/// What a packet says of its connection: for TCP read from its header, which the parser has seen to be there.
#[must_use]
#[inline(always)]
pub fn segment<A: Address, F: Frame + ?Sized>(frame: &F, packet: &Packet<A>) -> Segment {
    let flags = packet.flags;
    // It is below that anyway: older verifiers want it said where they have not seen it.
    match (packet.protocol, frame.read(packet.l4 & MAX_OFFSET)) {
        (Protocol::Tcp, Some([_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, data_offset])) => {
            Segment {
                flags,
                sequence: u32::from_be_bytes([s0, s1, s2, s3]),
                acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
                payload: packet.length.saturating_sub(u16::from(data_offset >> 4) * 4),
            }
        }
        _ => Segment { flags, ..Segment::default() },
    }
}

/// Least bytes a transport header has, or `None` for protocols no service can have.
#[inline(always)]
const fn least_len(number: u8, icmp: u8) -> Option<usize> {
    match number {
        protocol::TCP => Some(tcp::MIN_LEN),
        protocol::UDP => Some(udp::LEN),
        other if other == icmp => Some(icmp::LEN),
        _ => None,
    }
}

/// [`Family::layers`] of IPv4.
#[inline(always)]
pub(crate) fn ipv4_layers<F: Frame + ?Sized>(
    frame: &F,
    l3: usize,
) -> Result<Layers<[u8; 4]>, Verdict> {
    let header: [u8; ipv4::MIN_LEN] = frame.read(l3).ok_or(Verdict::Truncated)?;
    let [version_ihl, _, t0, t1, i0, i1, f0, f1, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        header;
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < ipv4::MIN_LEN {
        return Err(Verdict::Malformed);
    }
    let least = least_len(proto, protocol::ICMP).ok_or(Verdict::OtherProtocol)?;
    let fragment = u16::from_be_bytes([f0, f1]);
    let id = u32::from(u16::from_be_bytes([i0, i1]));
    let part = if fragment & ipv4::FRAGMENT_MASK == 0 {
        Part::Whole
    } else if fragment & ipv4::OFFSET_MASK == 0 {
        Part::First(id)
    } else {
        Part::Later(id)
    };
    // 0 is a packet too large for the field, merged by receive offload (BIG TCP).
    let total = u16::from_be_bytes([t0, t1]);
    // Of a later fragment nothing but the header is known.
    let least = if matches!(part, Part::Later(_)) { 0 } else { least };
    if total != 0 && usize::from(total) < header_len + least {
        return Err(Verdict::Malformed);
    }
    Ok(Layers {
        l4: l3 + header_len,
        protocol: proto,
        source: [s0, s1, s2, s3],
        destination: [d0, d1, d2, d3],
        part,
        length: total.saturating_sub(u16::from(version_ihl & 0x0f) * 4),
    })
}

/// [`Family::layers`] of IPv6.
#[inline(always)]
pub(crate) fn ipv6_layers<F: Frame + ?Sized>(
    frame: &F,
    l3: usize,
) -> Result<Layers<[u8; 16]>, Verdict> {
    let header: [u8; 8] = frame.read(l3).ok_or(Verdict::Truncated)?;
    let [version, _, _, _, p0, p1, next, _] = header;
    if version >> 4 != 6 {
        return Err(Verdict::Malformed);
    }
    let source = frame.read(l3 + ipv6::SOURCE.start).ok_or(Verdict::Truncated)?;
    let destination = frame.read(l3 + ipv6::DESTINATION.start).ok_or(Verdict::Truncated)?;
    let first = l3 + ipv6::LEN;
    let (l4, proto, part) = match least_len(next, protocol::ICMP6) {
        Some(_) => (first, next, Part::Whole),
        None => skip_extensions(frame, first, next)?,
    };
    // 0 is a jumbogram or a packet merged by receive offload.
    let payload = usize::from(u16::from_be_bytes([p0, p1]));
    if !matches!(part, Part::Later(_)) {
        let least = least_len(proto, protocol::ICMP6).ok_or(Verdict::OtherProtocol)?;
        if payload != 0 && payload + first < l4 + least {
            return Err(Verdict::Malformed);
        }
    }
    let length = u16::try_from((payload + first).saturating_sub(l4)).unwrap_or(0);
    Ok(Layers { l4, protocol: proto, source, destination, part, length })
}

/// Walks the extension headers from `offset` on: where the transport header begins, its protocol,
/// and which part of a datagram this is. It ends at the fragment header of a later fragment.
#[inline(always)]
fn skip_extensions<F: Frame + ?Sized>(
    frame: &F,
    mut offset: usize,
    mut next: u8,
) -> Result<(usize, u8, Part), Verdict> {
    let mut part = Part::Whole;
    for _ in 0..ipv6::MAX_EXTENSIONS {
        let length = match next {
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION_OPTIONS => {
                let [following, units] = frame.read(offset).ok_or(Verdict::Truncated)?;
                next = following;
                (usize::from(units) + 1) * 8
            }
            ipv6::AUTHENTICATION => {
                let [following, words] = frame.read(offset).ok_or(Verdict::Truncated)?;
                next = following;
                (usize::from(words) + 2) * 4
            }
            ipv6::FRAGMENT => {
                let [following, _, o0, o1, i0, i1, i2, i3] =
                    frame.read(offset).ok_or(Verdict::Truncated)?;
                let (place, id) =
                    (u16::from_be_bytes([o0, o1]), u32::from_be_bytes([i0, i1, i2, i3]));
                next = following;
                if place & ipv6::OFFSET_MASK != 0 {
                    // What follows is payload: the kind of its header is only the first's to say.
                    return Ok((offset + ipv6::FRAGMENT_LEN, next, Part::Later(id)));
                }
                if place & ipv6::FRAGMENT_MASK != 0 {
                    part = Part::First(id);
                }
                ipv6::FRAGMENT_LEN
            }
            _ => return Ok((offset, next, part)),
        };
        offset += length;
    }
    Ok((offset, next, part))
}

#[cfg(test)]
mod tests;

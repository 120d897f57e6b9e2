//! From bytes to a validated packet: where its headers are, who talks to whom.

use crate::family::{Address, Family};
use crate::flow::Endpoint;
use crate::frame::Frame;
use crate::verdict::Verdict;
use crate::wire::{ethernet, ipv4, ipv6, protocol, tcp};

/// The IP layer of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layers<A> {
    /// Offset of the transport header, in bytes from the start of the frame.
    pub l4: usize,
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
}

/// A TCP segment we can do something with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<A: Address> {
    /// Offset of the IP header, in bytes from the start of the frame.
    pub l3: usize,
    /// Offset of the TCP header.
    pub l4: usize,
    /// Sender.
    pub source: Endpoint<A>,
    /// Receiver.
    pub destination: Endpoint<A>,
    /// TCP flags.
    pub flags: tcp::Flags,
}

/// Offset of the IP header: right behind an untagged Ethernet header.
pub const L3: usize = ethernet::LEN;

/// Parses a frame whose `EtherType` has already said which family it is.
///
/// # Errors
/// The verdict a packet that is no valid TCP segment leaves by.
#[inline(always)]
pub fn parse<P: Family, F: Frame + ?Sized>(frame: &F) -> Result<Packet<P::Addr>, Verdict> {
    let Layers { l4, source, destination } = P::layers(frame, L3)?;
    let header: [u8; tcp::MIN_LEN] = frame.read(l4).ok_or(Verdict::Truncated)?;
    let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, data_offset, flags, ..] = header;
    if usize::from(data_offset >> 4) * 4 < tcp::MIN_LEN {
        return Err(Verdict::Malformed);
    }
    Ok(Packet {
        l3: L3,
        l4,
        source: Endpoint { addr: source, port: [s0, s1] },
        destination: Endpoint { addr: destination, port: [d0, d1] },
        flags: tcp::Flags(flags),
    })
}

/// [`Family::layers`] of IPv4.
#[inline(always)]
pub(crate) fn ipv4_layers<F: Frame + ?Sized>(
    frame: &F,
    l3: usize,
) -> Result<Layers<[u8; 4]>, Verdict> {
    let header: [u8; ipv4::MIN_LEN] = frame.read(l3).ok_or(Verdict::Truncated)?;
    let [version_ihl, _, t0, t1, _, _, f0, f1, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        header;
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < ipv4::MIN_LEN {
        return Err(Verdict::Malformed);
    }
    if proto != protocol::TCP {
        return Err(Verdict::NotTcp);
    }
    // MF plus offset: later fragments carry no ports, and a first one alone decides nothing yet.
    if u16::from_be_bytes([f0, f1]) & ipv4::FRAGMENT_MASK != 0 {
        return Err(Verdict::Fragment);
    }
    // 0 is a packet too large for the field, merged by receive offload (BIG TCP).
    let total = usize::from(u16::from_be_bytes([t0, t1]));
    if total != 0 && total < header_len + tcp::MIN_LEN {
        return Err(Verdict::Malformed);
    }
    Ok(Layers { l4: l3 + header_len, source: [s0, s1, s2, s3], destination: [d0, d1, d2, d3] })
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
    let l4 = if next == protocol::TCP {
        l3 + ipv6::LEN
    } else {
        skip_extensions(frame, l3 + ipv6::LEN, next)?
    };
    // 0 is a jumbogram or a packet merged by receive offload.
    let payload = usize::from(u16::from_be_bytes([p0, p1]));
    if payload != 0 && payload + l3 + ipv6::LEN < l4 + tcp::MIN_LEN {
        return Err(Verdict::Malformed);
    }
    Ok(Layers { l4, source, destination })
}

/// Walks the extension headers from `offset` on and returns where TCP begins.
#[inline(always)]
fn skip_extensions<F: Frame + ?Sized>(
    frame: &F,
    mut offset: usize,
    mut next: u8,
) -> Result<usize, Verdict> {
    for _ in 0..ipv6::MAX_EXTENSIONS {
        let length = match next {
            protocol::TCP => return Ok(offset),
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
                let [following, _, o0, o1] = frame.read(offset).ok_or(Verdict::Truncated)?;
                if u16::from_be_bytes([o0, o1]) & ipv6::FRAGMENT_MASK != 0 {
                    return Err(Verdict::Fragment);
                }
                next = following;
                ipv6::FRAGMENT_LEN
            }
            _ => return Err(Verdict::NotTcp),
        };
        offset += length;
    }
    if next == protocol::TCP { Ok(offset) } else { Err(Verdict::NotTcp) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn v4_syn() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [198, 51, 100, 7], 64)
            .tcp(40_000, 80, 1, 1_000)
            .syn()
            .write(&mut bytes, b"")
            .unwrap();
        bytes
    }

    fn v6_syn() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .tcp(40_000, 80, 1, 1_000)
            .syn()
            .write(&mut bytes, b"")
            .unwrap();
        bytes
    }

    /// Puts `extension` (already ending in the next header's bytes) between IPv6 and TCP.
    fn with_extension(kind: u8, extension: &[u8]) -> Vec<u8> {
        let mut bytes = v6_syn();
        bytes[L3 + ipv6::NEXT_HEADER] = kind;
        let payload = u16::try_from(20 + extension.len()).unwrap();
        bytes[L3 + ipv6::PAYLOAD_LEN.start..][..2].copy_from_slice(&payload.to_be_bytes());
        bytes.splice(L3 + ipv6::LEN..L3 + ipv6::LEN, extension.iter().copied());
        bytes
    }

    #[test]
    fn a_plain_syn_is_understood() {
        let packet = parse::<V4, _>(&v4_syn()[..]).unwrap();
        assert_eq!(packet.l4, 34);
        assert_eq!(packet.source, Endpoint { addr: [192, 0, 2, 1], port: 40_000u16.to_be_bytes() });
        assert_eq!(packet.destination, Endpoint { addr: [198, 51, 100, 7], port: [0, 80] });
        assert!(packet.flags.opens());
        let packet = parse::<V6, _>(&v6_syn()[..]).unwrap();
        assert_eq!((packet.l4, packet.destination.port), (54, [0, 80]));
    }

    /// Case 6: IHL < 5, truncated L4, lying lengths: no rewrite, no crash.
    #[test]
    fn headers_that_lie_are_left_alone() {
        let mut short_ihl = v4_syn();
        short_ihl[L3] = 0x44;
        assert_eq!(parse::<V4, _>(&short_ihl[..]), Err(Verdict::Malformed));

        let mut wrong_version = v4_syn();
        wrong_version[L3] = 0x65;
        assert_eq!(parse::<V4, _>(&wrong_version[..]), Err(Verdict::Malformed));

        let mut short_total = v4_syn();
        short_total[L3 + ipv4::TOTAL_LEN.start..][..2].copy_from_slice(&39u16.to_be_bytes());
        assert_eq!(parse::<V4, _>(&short_total[..]), Err(Verdict::Malformed));

        let mut short_payload = v6_syn();
        short_payload[L3 + ipv6::PAYLOAD_LEN.start..][..2].copy_from_slice(&19u16.to_be_bytes());
        assert_eq!(parse::<V6, _>(&short_payload[..]), Err(Verdict::Malformed));

        let mut short_tcp = v4_syn();
        short_tcp[34 + tcp::DATA_OFFSET] = 0x40;
        assert_eq!(parse::<V4, _>(&short_tcp[..]), Err(Verdict::Malformed));

        let whole = v4_syn();
        for len in L3..whole.len() {
            assert_eq!(parse::<V4, _>(&whole[..len]), Err(Verdict::Truncated), "{len} bytes");
        }
    }

    #[test]
    fn fragments_are_named() {
        for field in [[0x20, 0x00], [0x00, 0x01], [0x20, 0xb9]] {
            let mut bytes = v4_syn();
            bytes[L3 + ipv4::FRAGMENT.start..][..2].copy_from_slice(&field);
            assert_eq!(parse::<V4, _>(&bytes[..]), Err(Verdict::Fragment));
        }
        let mut dont_fragment = v4_syn();
        dont_fragment[L3 + ipv4::FRAGMENT.start] = 0x40;
        assert!(parse::<V4, _>(&dont_fragment[..]).is_ok());

        let fragment = with_extension(ipv6::FRAGMENT, &[protocol::TCP, 0, 0, 1, 0, 0, 0, 7]);
        assert_eq!(parse::<V6, _>(&fragment[..]), Err(Verdict::Fragment));
        let atomic = with_extension(ipv6::FRAGMENT, &[protocol::TCP, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(parse::<V6, _>(&atomic[..]).map(|p| p.l4), Ok(62));
    }

    #[test]
    fn options_and_extension_headers_move_the_ports() {
        let mut bytes = v4_syn();
        bytes[L3] = 0x47;
        bytes[L3 + 3] += 8;
        bytes.splice(34..34, [1; 8]);
        let packet = parse::<V4, _>(&bytes[..]).unwrap();
        assert_eq!((packet.l4, packet.destination.port), (42, [0, 80]));

        let mut options = vec![protocol::TCP, 1];
        options.resize(16, 0);
        let packet = parse::<V6, _>(&with_extension(ipv6::HOP_BY_HOP, &options)[..]).unwrap();
        assert_eq!((packet.l4, packet.destination.port), (70, [0, 80]));

        let mut authentication = vec![protocol::TCP, 4];
        authentication.resize(24, 0);
        let packet =
            parse::<V6, _>(&with_extension(ipv6::AUTHENTICATION, &authentication)[..]).unwrap();
        assert_eq!((packet.l4, packet.destination.port), (78, [0, 80]));
    }

    #[test]
    fn a_chain_of_extensions_ends() {
        let endless: Vec<u8> =
            [ipv6::HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(ipv6::MAX_EXTENSIONS + 1);
        assert_eq!(
            parse::<V6, _>(&with_extension(ipv6::HOP_BY_HOP, &endless)[..]),
            Err(Verdict::NotTcp)
        );
    }

    #[test]
    fn other_protocols_are_not_ours() {
        let mut udp = v4_syn();
        udp[L3 + ipv4::PROTOCOL] = protocol::UDP;
        assert_eq!(parse::<V4, _>(&udp[..]), Err(Verdict::NotTcp));
        let mut icmp6 = v6_syn();
        icmp6[L3 + ipv6::NEXT_HEADER] = 58;
        assert_eq!(parse::<V6, _>(&icmp6[..]), Err(Verdict::NotTcp));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<V4, _>(&bytes[..]);
            if let Ok(packet) = parse::<V6, _>(&bytes[..]) {
                prop_assert!(packet.l4 + tcp::MIN_LEN <= bytes.len());
            }
        }

        #[test]
        fn any_damage_to_a_syn_parses_without_a_crash(at in 0usize..54, to in any::<u8>(), cut in 0usize..60) {
            let mut bytes = v4_syn();
            bytes[at] = to;
            bytes.truncate(cut.max(1));
            if let Ok(packet) = parse::<V4, _>(&bytes[..]) {
                prop_assert!(packet.l4 + tcp::MIN_LEN <= bytes.len());
            }
        }
    }
}

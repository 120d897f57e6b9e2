//! Datagrams, ICMP errors and fragments as exact bytes, written by etherparse or byte by byte: nothing
//! here is shared with what is tested.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ipv4Header, NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};

/// The source of all frames.
pub const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Where IP begins.
pub const IP: usize = 14;
/// Length of the IPv4 header.
pub const IPV4_LEN: usize = 20;
/// Length of the IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Length of ICMP's header.
pub const ICMP_LEN: usize = 8;
/// Where the checksum stands in TCP.
pub const TCP_CHECKSUM: usize = 16;
/// Where the checksum stands in UDP.
pub const UDP_CHECKSUM: usize = 6;

/// UDP in a frame for the loopback device, which test runs happen on, with right checksums.
#[must_use]
pub fn datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(SOURCE_MAC, [0; 6]);
    let packet = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{source} and {destination} are of two families"),
    };
    let mut frame = Vec::new();
    let packet = packet.udp(source.port(), destination.port());
    packet.write(&mut frame, payload).expect("write a frame");
    frame
}

/// An ICMP message of the addresses' family: type and code, the second word of its header, and what
/// follows. Checksums are right.
#[must_use]
pub fn icmp(
    (source, destination): (IpAddr, IpAddr),
    (kind, code): (u8, u8),
    word: [u8; 4],
    rest: &[u8],
) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(SOURCE_MAC, [0; 6]);
    let mut frame = Vec::new();
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 60)
            .icmpv4_raw(kind, code, word)
            .write(&mut frame, rest),
        (IpAddr::V6(from), IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 60)
            .icmpv6_raw(kind, code, word)
            .write(&mut frame, rest),
        _ => panic!("{source} and {destination} are of two families"),
    }
    .expect("write a frame");
    frame
}

/// What an ICMP error quotes of a frame: that many bytes from the IP header on, or all there are.
#[must_use]
pub fn quote(frame: &[u8], length: usize) -> &[u8] {
    &frame[IP..frame.len().min(IP + length)]
}

/// The frame for another MAC.
#[must_use]
pub fn to_mac(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

/// Whether a frame's `EtherType` is IPv6.
#[must_use]
pub fn is_v6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// The frame with a TCP or UDP checksum that is another one; without IP options.
#[must_use]
pub fn with_wrong_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    const PROTOCOL_TCP: u8 = 6;
    let (header, protocol) = if is_v6(&frame) { (IPV6_LEN, 6) } else { (IPV4_LEN, 9) };
    let at = if frame[IP + protocol] == PROTOCOL_TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    frame[IP + header + at] ^= 0x55;
    frame
}

/// Source and destination of a TCP segment or a datagram of UDP.
#[must_use]
pub fn ends_of(frame: &[u8]) -> Option<[SocketAddr; 2]> {
    let packet = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let addresses: [IpAddr; 2] = match packet.net? {
        NetHeaders::Ipv4(ip, _) => [ip.source.into(), ip.destination.into()],
        NetHeaders::Ipv6(ip, _) => [ip.source.into(), ip.destination.into()],
        NetHeaders::Arp(_) => return None,
    };
    let ports = match packet.transport? {
        TransportHeader::Tcp(tcp) => [tcp.source_port, tcp.destination_port],
        TransportHeader::Udp(udp) => [udp.source_port, udp.destination_port],
        _ => return None,
    };
    Some([0, 1].map(|end| SocketAddr::new(addresses[end], ports[end])))
}

/// Cuts a frame without IP options into fragments with `size` bytes each of what follows IP, a
/// multiple of 8.
#[must_use]
pub fn fragments(frame: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    assert_eq!(size % 8, 0, "offsets count in 8 bytes");
    let header = if is_v6(frame) { IPV6_LEN } else { IPV4_LEN };
    let pieces: Vec<_> = frame[IP + header..].chunks(size).collect();
    let cut = |(index, piece): (usize, &&[u8])| {
        let (offset, more) = (index * size, index + 1 < pieces.len());
        if is_v6(frame) {
            fragment_v6(frame, id, (offset, more), piece)
        } else {
            fragment_v4(frame, id, (offset, more), piece)
        }
    };
    pieces.iter().enumerate().map(cut).collect()
}

fn fragment_v4(frame: &[u8], id: u16, (offset, more): (usize, bool), piece: &[u8]) -> Vec<u8> {
    let (mut header, _) = Ipv4Header::from_slice(&frame[IP..]).expect("an IPv4 header");
    (header.identification, header.more_fragments, header.dont_fragment) = (id, more, false);
    let units = u16::try_from(offset / 8).expect("64 KB at most");
    header.fragment_offset = units.try_into().expect("13 bits");
    header.total_len = u16::try_from(IPV4_LEN + piece.len()).expect("64 KB at most");
    header.header_checksum = header.calc_header_checksum();
    [&frame[..IP], &header.to_bytes()[..], piece].concat()
}

fn fragment_v6(frame: &[u8], id: u16, (offset, more): (usize, bool), piece: &[u8]) -> Vec<u8> {
    const FRAGMENT: u8 = 44;
    let mut header = frame[IP..IP + IPV6_LEN].to_vec();
    let length = u16::try_from(8 + piece.len()).expect("64 KB at most");
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let next = std::mem::replace(&mut header[6], FRAGMENT);
    let place = u16::try_from(offset).expect("64 KB at most") | u16::from(more);
    let mut extension = vec![next, 0];
    extension.extend(place.to_be_bytes());
    extension.extend((0xabcd_0000 | u32::from(id)).to_be_bytes());
    [&frame[..IP], &header, &extension, piece].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_checksum_is_all_that_changes() {
        for (source, destination) in
            [("192.0.2.2:4000", "192.0.2.1:80"), ("[2001:db8::2]:4000", "[2001:db8::1]:80")]
        {
            let ends = [source, destination].map(|end| end.parse().unwrap());
            let segment = crate::packet::Segment::syn(ends[0], ends[1]).frame();
            for (right, at) in
                [(segment, TCP_CHECKSUM), (datagram(ends[0], ends[1], b"?"), UDP_CHECKSUM)]
            {
                let wrong = with_wrong_checksum(right.clone());
                let header = if is_v6(&right) { IPV6_LEN } else { IPV4_LEN };
                let differs: Vec<_> = (0..right.len()).filter(|i| right[*i] != wrong[*i]).collect();
                assert_eq!(differs, [IP + header + at]);
                assert_eq!(ends_of(&wrong), Some(ends));
            }
        }
    }

    #[test]
    fn fragments_together_are_the_whole() {
        for (source, destination) in
            [("192.0.2.2:4000", "192.0.2.1:80"), ("[2001:db8::2]:4000", "[2001:db8::1]:80")]
        {
            let payload: Vec<u8> = (0..=255).cycle().take(3_000).collect();
            let whole = datagram(source.parse().unwrap(), destination.parse().unwrap(), &payload);
            let begin = IP + if is_v6(&whole) { IPV6_LEN } else { IPV4_LEN };
            let behind = begin + if is_v6(&whole) { 8 } else { 0 };
            let cut = fragments(&whole, 7, 1_024);
            assert_eq!(cut.len(), 3);
            let joined: Vec<u8> = cut.iter().flat_map(|one| &one[behind..]).copied().collect();
            assert_eq!(joined, whole[begin..]);
        }
    }
}

//! TCP segments as exact bytes, for programs run on single packets.
//!
//! etherparse writes and reads them, which shares no code with what is tested.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpDscp, IpEcn, IpHeaders, Ipv4Header, Ipv6Header, LinkExtHeader, LinkHeader, NetHeaders,
    PacketBuilder, PacketHeaders, TcpHeader, TransportHeader, VlanId, ip_number,
};

/// A TCP segment in an Ethernet frame. What is written can be compared with what comes back:
/// `assert_eq!(Segment::read(&out), Segment { destination, ..sent })`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The frame's source.
    pub source_mac: [u8; 6],
    /// The frame's destination.
    pub destination_mac: [u8; 6],
    /// VLAN id of a tag within the frame.
    pub vlan: Option<u16>,
    /// Sender.
    pub source: SocketAddr,
    /// Receiver, of the same family.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// DSCP in the upper six bits, ECN in the lower two.
    pub traffic_class: u8,
    /// Flags, numbers and options. Its ports and its checksum are zero here: the ports are those
    /// above, the checksum is always right.
    pub tcp: TcpHeader,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// A segment without flags and payload.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            vlan: None,
            source,
            destination,
            hops: 64,
            traffic_class: 0,
            tcp: TcpHeader::new(0, 0, 1_000, 64_240),
            payload: Vec::new(),
        }
    }

    /// The first segment of a connection.
    #[must_use]
    pub fn syn(source: SocketAddr, destination: SocketAddr) -> Self {
        let mut segment = Self::new(source, destination);
        segment.tcp.syn = true;
        segment
    }

    /// A segment in the middle of a connection, with a payload or without.
    #[must_use]
    pub fn ack(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Self {
        let mut segment = Self::new(source, destination);
        segment.tcp.ack = true;
        segment.tcp.acknowledgment_number = 5_000;
        segment.payload = payload.to_vec();
        segment
    }

    /// The same with these numbers.
    #[must_use]
    pub fn numbered(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.tcp.sequence_number = sequence;
        self.tcp.acknowledgment_number = acknowledgement;
        self
    }

    /// The answer to a SYN of [`Self::syn`], with the same number.
    #[must_use]
    pub fn syn_ack(source: SocketAddr, destination: SocketAddr) -> Self {
        let mut segment = Self::ack(source, destination, b"").numbered(1_000, 1_001);
        segment.tcp.syn = true;
        segment
    }

    /// The frame, with right lengths and checksums.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let ip = self.ip_header();
        let mut tcp = self.tcp.clone();
        (tcp.source_port, tcp.destination_port) = (self.source.port(), self.destination.port());
        let link = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        let packet = match self.vlan {
            Some(id) => link.single_vlan(VlanId::try_new(id).expect("12 bits")).ip(ip),
            None => link.ip(ip),
        };
        let mut frame = Vec::new();
        packet.tcp_header(tcp).write(&mut frame, &self.payload).expect("write a frame");
        frame
    }

    fn ip_header(&self) -> IpHeaders {
        let protocol = ip_number::TCP;
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let mut ip = Ipv4Header::new(0, self.hops, protocol, source, destination)
                    .expect("an empty payload fits");
                ip.dscp = IpDscp::try_new(self.traffic_class >> 2).expect("6 bits");
                ip.ecn = IpEcn::try_new(self.traffic_class & 3).expect("2 bits");
                IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    traffic_class: self.traffic_class,
                    next_header: protocol,
                    hop_limit: self.hops,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(ip, etherparse::Ipv6Extensions::default())
            }
            _ => panic!("{} and {} are of two families", self.source, self.destination),
        }
    }

    /// Reads a frame; panics unless it is a TCP segment with right checksums.
    #[must_use]
    pub fn read(frame: &[u8]) -> Self {
        let packet = PacketHeaders::from_ethernet_slice(frame).expect("a frame that can be read");
        let Some(LinkHeader::Ethernet2(link)) = packet.link else { panic!("no Ethernet header") };
        let Some(TransportHeader::Tcp(tcp)) = packet.transport else { panic!("no TCP header") };
        let payload = packet.payload.slice();
        let (source, destination, hops, traffic_class, checksum) = match packet.net {
            Some(NetHeaders::Ipv4(ip, _)) => {
                assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IPv4 header checksum");
                let class = ip.dscp.value() << 2 | ip.ecn.value();
                let checksum = tcp.calc_checksum_ipv4(&ip, payload);
                (ip.source.into(), ip.destination.into(), ip.time_to_live, class, checksum)
            }
            Some(NetHeaders::Ipv6(ip, _)) => {
                let checksum = tcp.calc_checksum_ipv6(&ip, payload);
                (ip.source.into(), ip.destination.into(), ip.hop_limit, ip.traffic_class, checksum)
            }
            _ => panic!("no IP header"),
        };
        assert_eq!(Ok(tcp.checksum), checksum, "TCP checksum");
        let vlan = packet.link_exts.iter().find_map(|header| match header {
            LinkExtHeader::Vlan(vlan) => Some(vlan.vlan_id.value()),
            LinkExtHeader::Macsec(_) => None,
        });
        Self {
            source_mac: link.source,
            destination_mac: link.destination,
            vlan,
            source: SocketAddr::new(source, tcp.source_port),
            destination: SocketAddr::new(destination, tcp.destination_port),
            hops,
            traffic_class,
            payload: payload.to_vec(),
            tcp: TcpHeader { source_port: 0, destination_port: 0, checksum: 0, ..tcp },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (source, destination) in
            [("192.0.2.2:40000", "192.0.2.1:80"), ("[2001:db8:1::2]:40000", "[2001:db8:1::1]:80")]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let syn = Segment { traffic_class: 0xb9, ..Segment::syn(source, destination) };
            let data = Segment { vlan: Some(7), ..Segment::ack(source, destination, b"hello") };
            for segment in [syn, data] {
                assert_eq!(Segment::read(&segment.frame()), segment);
            }
        }
    }

    #[test]
    #[should_panic(expected = "TCP checksum")]
    fn a_wrong_checksum_is_not_accepted() {
        let segment = Segment::ack(
            "192.0.2.2:40000".parse().unwrap(),
            "192.0.2.1:80".parse().unwrap(),
            b"hello",
        );
        let mut frame = segment.frame();
        *frame.last_mut().unwrap() ^= 1;
        let _ = Segment::read(&frame);
    }
}

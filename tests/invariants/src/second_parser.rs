//! A second parser, which shares no code with ours: etherparse.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use samport_common::family::Family;
use samport_common::packet::L3;
use samport_common::wire::protocol::Protocol;
use samport_common::wire::{ethernet, ipv6};

/// What etherparse takes a packet for.
#[derive(Debug)]
pub enum Reading {
    /// A whole TCP segment or UDP datagram, whose header is at this offset.
    Whole(Protocol, usize),
    Fragment,
}

/// What etherparse takes the packet behind an Ethernet header for. It is stricter than we are, so that
/// nothing is no opinion.
pub fn read<P: Family>(frame: &[u8]) -> Option<Reading> {
    let packet = SlicedPacket::from_ip(frame.get(L3..)?).ok()?;
    let is_fragment = packet.is_ip_payload_fragmented();
    let headers = match packet.net? {
        // An authentication header is another protocol to us.
        NetSlice::Ipv4(ip) if P::ETHER_TYPE == ethernet::IPV4 && ip.extensions().auth.is_none() => {
            ip.header().slice().len()
        }
        NetSlice::Ipv6(ip) if P::ETHER_TYPE == ethernet::IPV6 => {
            let extensions = ip.extensions();
            if extensions.clone().into_iter().count() > ipv6::MAX_EXTENSIONS {
                return None;
            }
            ipv6::LEN + extensions.slice().len()
        }
        _ => return None,
    };
    match packet.transport {
        _ if is_fragment => Some(Reading::Fragment),
        Some(TransportSlice::Tcp(_)) => Some(Reading::Whole(Protocol::Tcp, L3 + headers)),
        Some(TransportSlice::Udp(_)) => Some(Reading::Whole(Protocol::Udp, L3 + headers)),
        _ => None,
    }
}

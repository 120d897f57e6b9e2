//! What is changed in a packet, as data; and the applier the host compares the kernel's with.

use crate::checksum;
use crate::family::Family;
use crate::flow::Endpoint;
use crate::packet::Packet;
use crate::wire::tcp;

/// Which end of a packet is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The reply's sender: backend to VIP.
    Source,
    /// The client's receiver: VIP to backend.
    Destination,
}

/// A change of one endpoint, ready to be applied: offsets from the start of the frame, new bytes,
/// and what each change adds to the ones' complement sums. TTL, DSCP and ECN stay: samport is one
/// hop with the machine it runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<P: Family> {
    /// Where the address stands.
    pub addr_at: usize,
    /// What stands there afterwards.
    pub addr: P::Addr,
    /// Where the port stands.
    pub port_at: usize,
    /// What stands there afterwards.
    pub port: [u8; 2],
    /// Where the IP header's own checksum stands (IPv4).
    pub l3_checksum_at: Option<usize>,
    /// Where the TCP checksum stands.
    pub l4_checksum_at: usize,
    /// Change of the address; for both checksums, since TCP's covers the pseudo-header.
    pub addr_difference: u32,
    /// Change of the port; for the TCP checksum. 0 when the port stays.
    pub port_difference: u32,
}

/// Plans replacing one end of a packet by `to`.
#[must_use]
#[inline(always)]
pub fn plan<P: Family>(packet: &Packet<P::Addr>, end: End, to: Endpoint<P::Addr>) -> Rewrite<P> {
    let (from, addr_offset, port_offset) = match end {
        End::Source => (packet.source, P::SOURCE, tcp::SOURCE_PORT.start),
        End::Destination => (packet.destination, P::DESTINATION, tcp::DESTINATION_PORT.start),
    };
    let port_difference =
        if from.port == to.port { 0 } else { checksum::difference(&from.port, &to.port) };
    Rewrite {
        addr_at: packet.l3 + addr_offset,
        addr: to.addr,
        port_at: packet.l4 + port_offset,
        port: to.port,
        l3_checksum_at: P::CHECKSUM.map(|offset| packet.l3 + offset),
        l4_checksum_at: packet.l4 + tcp::CHECKSUM.start,
        addr_difference: P::difference(&from.addr, &to.addr),
        port_difference,
    }
}

/// Applies a rewrite to a frame with complete checksums. `None` if the frame is too short, in which
/// case it may be half rewritten.
#[must_use]
pub fn apply<P: Family>(frame: &mut [u8], rewrite: &Rewrite<P>) -> Option<()> {
    use zerocopy::IntoBytes as _;

    let addr = rewrite.addr.as_bytes();
    frame.get_mut(rewrite.addr_at..)?.get_mut(..addr.len())?.copy_from_slice(addr);
    frame.get_mut(rewrite.port_at..)?.get_mut(..2)?.copy_from_slice(&rewrite.port);
    if let Some(at) = rewrite.l3_checksum_at {
        let field = frame.get_mut(at..)?.first_chunk_mut()?;
        *field = checksum::update(*field, rewrite.addr_difference);
    }
    let field = frame.get_mut(rewrite.l4_checksum_at..)?.first_chunk_mut()?;
    *field = checksum::update(*field, rewrite.addr_difference + rewrite.port_difference);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use crate::packet::parse;
    use crate::wire::ethernet;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn build<P: Family>(
        source: Endpoint<P::Addr>,
        destination: Endpoint<P::Addr>,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (s, d) = (P::widen(source.addr), P::widen(destination.addr));
        let ip = if P::ETHER_TYPE == ethernet::IPV4 {
            ethernet.ipv4(V4::narrow(&s), V4::narrow(&d), 61)
        } else {
            ethernet.ipv6(s, d, 61)
        };
        ip.tcp(u16::from_be_bytes(source.port), u16::from_be_bytes(destination.port), 7, 512)
            .ack(9)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn v4() -> impl Strategy<Value = Endpoint<[u8; 4]>> {
        any::<([u8; 4], [u8; 2])>().prop_map(|(addr, port)| Endpoint { addr, port })
    }

    fn v6() -> impl Strategy<Value = Endpoint<[u8; 16]>> {
        any::<([u8; 16], [u8; 2])>().prop_map(|(addr, port)| Endpoint { addr, port })
    }

    /// Rewriting a frame gives what building it for the other address would have given, and
    /// rewriting it back gives the frame that came.
    fn check<P: Family + PartialEq + core::fmt::Debug>(
        client: Endpoint<P::Addr>,
        vip: Endpoint<P::Addr>,
        backend: Endpoint<P::Addr>,
        payload: &[u8],
    ) -> Result<(), TestCaseError> {
        let original = build::<P>(client, vip, payload);
        let mut frame = original.clone();
        let packet = parse::<P, _>(&frame[..]).unwrap();
        apply(&mut frame, &plan::<P>(&packet, End::Destination, backend)).unwrap();
        prop_assert_eq!(&frame, &build::<P>(client, backend, payload));

        let packet = parse::<P, _>(&frame[..]).unwrap();
        apply(&mut frame, &plan::<P>(&packet, End::Destination, vip)).unwrap();
        prop_assert_eq!(&frame, &original);

        let mut reply = build::<P>(backend, client, payload);
        let packet = parse::<P, _>(&reply[..]).unwrap();
        apply(&mut reply, &plan::<P>(&packet, End::Source, vip)).unwrap();
        prop_assert_eq!(reply, build::<P>(vip, client, payload));
        Ok(())
    }

    proptest! {
        #[test]
        fn a_rewritten_v4_frame_equals_one_built_anew(client in v4(), vip in v4(), backend in v4(), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            check::<V4>(client, vip, backend, &payload)?;
        }

        #[test]
        fn a_rewritten_v6_frame_equals_one_built_anew(client in v6(), vip in v6(), backend in v6(), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            check::<V6>(client, vip, backend, &payload)?;
        }
    }

    #[test]
    fn a_frame_too_short_for_its_plan_is_reported() {
        let end = |last| Endpoint { addr: [10, 0, 0, last], port: [0, 80] };
        let frame = build::<V4>(end(1), end(2), b"");
        let packet = parse::<V4, _>(&frame[..]).unwrap();
        let rewrite = plan::<V4>(&packet, End::Destination, end(3));
        assert_eq!(apply(&mut frame[..50].to_vec(), &rewrite), None);
    }
}

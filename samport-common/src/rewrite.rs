//! What is changed in a packet, as data; and the applier the host compares the kernel's with.

use crate::checksum;
use crate::family::Family;
use crate::flow::Endpoint;
use crate::packet::{FragmentId, IcmpError, L3, MAX_OFFSET, Packet};
use crate::wire::protocol::Protocol;
use crate::wire::{icmp, tcp, udp};

/// Which end of a packet is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The reply's sender: backend to VIP.
    Source,
    /// The client's receiver: VIP to backend.
    Destination,
}

/// A change of an address in an IP header, ready to be applied: offsets from the start of the frame,
/// new bytes, and what the change adds to a ones' complement sum. TTL, DSCP and ECN stay: samport is
/// one hop with the machine it runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readdress<P: Family> {
    /// Where the address stands.
    pub addr_at: usize,
    /// What stands there afterwards.
    pub addr: P::Addr,
    /// Where the IP header's own checksum stands (IPv4).
    pub l3_checksum_at: Option<usize>,
    /// Change of the address; for every checksum that covers it.
    pub addr_csum_diff: u32,
}

/// A change of one endpoint of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<P: Family> {
    /// The address; the transport checksum covers it in the pseudo-header.
    pub ip: Readdress<P>,
    /// Where the port stands.
    pub port_at: usize,
    /// What stands there afterwards.
    pub port: [u8; 2],
    /// Where the transport checksum stands.
    pub l4_checksum_at: usize,
    /// Whether a transport checksum of zero means that there is none (UDP).
    pub zero_is_none: bool,
    /// Change of the port; for the transport checksum. 0 when the port stays.
    pub port_csum_diff: u32,
    /// The sum of the pseudo-header before the change, in 16 bits; [`UNKNOWN`] added if it is not known.
    pub pseudo_header: u32,
}

/// A change of an ICMP error: one endpoint of the packet it quotes, and the other end of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpRewrite<P: Family> {
    /// The error's own address.
    pub outer: Readdress<P>,
    /// The quoted packet's endpoint. Its transport checksum may lie behind the end of the quote.
    pub quoted: Rewrite<P>,
    /// Where ICMP's checksum stands.
    pub checksum_at: usize,
}

/// In [`Rewrite::pseudo_header`]. A number and no option: that would be one more thing that the verifier
/// does not know to go with another.
const UNKNOWN: u32 = 1 << 16;

impl<P: Family> Readdress<P> {
    /// The same change with its offsets bounded in a way that the verifier sees, for a plan about a
    /// packet that has come through the kernel's memory. No offset that a parser gives is larger.
    #[must_use]
    #[inline(always)]
    pub fn bounded(mut self) -> Self {
        self.addr_at &= MAX_OFFSET;
        self.l3_checksum_at = self.l3_checksum_at.map(|at| at & MAX_OFFSET);
        self
    }
}

impl<P: Family> Rewrite<P> {
    /// As [`Readdress::bounded`].
    #[must_use]
    #[inline(always)]
    pub fn bounded(mut self) -> Self {
        self.ip = self.ip.bounded();
        self.port_at &= MAX_OFFSET;
        self.l4_checksum_at &= MAX_OFFSET;
        self
    }

    /// The same change of a packet whose other end was changed since it was planned.
    #[must_use]
    #[inline(always)]
    pub fn after_another(mut self) -> Self {
        self.pseudo_header = UNKNOWN;
        self
    }
}

/// Plans replacing the address at one end of the IP header at `l3`.
#[must_use]
#[inline(always)]
fn readdress<P: Family>(l3: usize, end: End, from: P::Addr, to: P::Addr) -> Readdress<P> {
    let offset = match end {
        End::Source => P::SOURCE,
        End::Destination => P::DESTINATION,
    };
    Readdress {
        addr_at: l3 + offset,
        addr: to,
        l3_checksum_at: P::CHECKSUM.map(|offset| l3 + offset),
        addr_csum_diff: P::csum_diff(&from, &to),
    }
}

/// The sum of a packet's pseudo-header, or [`UNKNOWN`].
#[inline(always)]
fn pseudo_header<P: Family>(packet: &Packet<P::Addr>) -> u32 {
    let (source, destination) = (P::csum(&packet.source.addr), P::csum(&packet.destination.addr));
    let protocol = packet.protocol.number();
    let sum = checksum::pseudo_header(source, destination, protocol, packet.length);
    u32::from(sum) | if packet.length == 0 { UNKNOWN } else { 0 }
}

/// Where a packet's transport checksum stands.
#[must_use]
#[inline(always)]
pub fn checksum_at<A: crate::family::Address>(packet: &Packet<A>) -> usize {
    let offset = match packet.protocol {
        Protocol::Tcp => tcp::CHECKSUM.start,
        Protocol::Udp => udp::CHECKSUM.start,
    };
    packet.l4 + offset
}

/// [`may_be_unfinished`] of a packet before anything is planned.
#[must_use]
#[inline(always)]
pub fn may_come_unfinished<P: Family>(packet: &Packet<P::Addr>, field: [u8; 2]) -> bool {
    may_be(pseudo_header::<P>(packet), field)
}

/// Plans replacing one end of a packet by `to`.
#[must_use]
#[inline(always)]
pub fn plan<P: Family>(packet: &Packet<P::Addr>, end: End, to: Endpoint<P::Addr>) -> Rewrite<P> {
    // TCP and UDP begin with the same two ports.
    let (from, port_offset) = match end {
        End::Source => (packet.source, tcp::SOURCE_PORT.start),
        End::Destination => (packet.destination, tcp::DESTINATION_PORT.start),
    };
    let zero_is_none = matches!(packet.protocol, Protocol::Udp);
    let port_csum_diff =
        if from.port == to.port { 0 } else { checksum::csum_diff(&from.port, &to.port) };
    let pseudo_header = pseudo_header::<P>(packet);
    Rewrite {
        ip: readdress(packet.l3, end, from.addr, to.addr),
        port_at: packet.l4 + port_offset,
        port: to.port,
        l4_checksum_at: checksum_at(packet),
        zero_is_none,
        port_csum_diff,
        pseudo_header,
    }
}

/// Plans replacing the address at one end of a later fragment, which has no ports and whose
/// checksum is in the first.
#[must_use]
#[inline(always)]
pub fn plan_later<P: Family>(
    fragment: &FragmentId<P::Addr>,
    end: End,
    to: P::Addr,
) -> Readdress<P> {
    let from = match end {
        End::Source => fragment.source,
        End::Destination => fragment.destination,
    };
    readdress(L3, end, from, to)
}

/// Plans an ICMP error's way on. `end` is the end of the *error* that is replaced: the destination on
/// the way to a backend, the source on the way to a client. In the quoted packet, which went the
/// other way, it is the other end.
#[must_use]
#[inline(always)]
pub fn plan_error<P: Family>(
    error: &IcmpError<P::Addr>,
    end: End,
    to: Endpoint<P::Addr>,
) -> IcmpRewrite<P> {
    let (from, other) = match end {
        End::Source => (error.reporter, End::Destination),
        End::Destination => (error.told, End::Source),
    };
    IcmpRewrite {
        outer: readdress(error.l3, end, from, to.addr),
        quoted: plan(&error.quoted, other, to),
        checksum_at: error.icmp + icmp::CHECKSUM.start,
    }
}

/// Applies a new address. `None` if the frame is too short.
#[must_use]
pub fn apply_address<P: Family>(frame: &mut [u8], change: &Readdress<P>) -> Option<()> {
    use zerocopy::IntoBytes as _;

    let addr = change.addr.as_bytes();
    frame.get_mut(change.addr_at..)?.get_mut(..addr.len())?.copy_from_slice(addr);
    if let Some(at) = change.l3_checksum_at {
        let field = frame.get_mut(at..)?.first_chunk_mut()?;
        *field = checksum::update(*field, change.addr_csum_diff);
    }
    Some(())
}

/// Applies a rewrite to a frame with complete checksums. `None` if the frame is too short, in which
/// case it may be half rewritten.
#[must_use]
pub fn apply<P: Family>(frame: &mut [u8], rewrite: &Rewrite<P>) -> Option<()> {
    apply_address(frame, &rewrite.ip)?;
    frame.get_mut(rewrite.port_at..)?.first_chunk_mut::<2>()?.copy_from_slice(&rewrite.port);
    let field = frame.get_mut(rewrite.l4_checksum_at..)?.first_chunk_mut()?;
    *field = updated(rewrite, *field);
    Some(())
}

/// Applies an ICMP error's rewrite, as [`apply`] does.
#[must_use]
pub fn apply_error<P: Family>(frame: &mut [u8], rewrite: &IcmpRewrite<P>) -> Option<()> {
    let quoted = &rewrite.quoted;
    let mut csum_diff = quoted.ip.addr_csum_diff + quoted.port_csum_diff;
    if let Some(at) = quoted.ip.l3_checksum_at {
        let before: [u8; 2] = *frame.get(at..)?.first_chunk()?;
        let after = checksum::update(before, quoted.ip.addr_csum_diff);
        csum_diff += checksum::csum_diff(&before, &after);
    }
    apply_address(frame, &quoted.ip)?;
    frame.get_mut(quoted.port_at..)?.first_chunk_mut::<2>()?.copy_from_slice(&quoted.port);
    // Cut off behind the ports, as RFC 792 allows: then there is nothing to update.
    if let Some(field) = frame.get_mut(quoted.l4_checksum_at..).and_then(|f| f.first_chunk_mut()) {
        let (before, after) = (*field, updated(quoted, *field));
        csum_diff += checksum::csum_diff(&before, &after);
        *field = after;
    }
    apply_address(frame, &rewrite.outer)?;
    if P::ICMP_COVERS_ADDRESSES {
        csum_diff += rewrite.outer.addr_csum_diff;
    }
    let field = frame.get_mut(rewrite.checksum_at..)?.first_chunk_mut()?;
    *field = checksum::update(*field, csum_diff);
    Some(())
}

/// Whether the transport checksum before a rewrite may be one that a device, or offload further on, is
/// still to finish. If it is none for sure, [`updated`] is right; otherwise only the kernel can tell.
#[must_use]
#[inline(always)]
pub fn may_be_unfinished<P: Family>(rewrite: &Rewrite<P>, field: [u8; 2]) -> bool {
    may_be(rewrite.pseudo_header, field)
}

#[inline(always)]
fn may_be(pseudo_header: u32, field: [u8; 2]) -> bool {
    let [low, high, unknown, _] = pseudo_header.to_le_bytes();
    unknown != 0 || checksum::is_unfinished(field, u16::from_le_bytes([low, high]))
}

/// The transport checksum after a rewrite.
#[must_use]
#[inline(always)]
pub fn updated<P: Family>(rewrite: &Rewrite<P>, field: [u8; 2]) -> [u8; 2] {
    if rewrite.zero_is_none && field == [0; 2] {
        return field;
    }
    let field = checksum::update(field, rewrite.ip.addr_csum_diff + rewrite.port_csum_diff);
    // The other form of zero, because zero itself would mean that there is no checksum (RFC 768).
    if rewrite.zero_is_none && field == [0; 2] { [0xff; 2] } else { field }
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
        let (s, d) = (P::to_mapped(source.addr), P::to_mapped(destination.addr));
        let ip = if P::ETHER_TYPE == ethernet::IPV4 {
            ethernet.ipv4(V4::from_mapped(&s), V4::from_mapped(&d), 61)
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

    /// The sum of the pseudo-header, from its bytes: what a sender leaves for a device to finish.
    fn unfinished(frame: &[u8], v6: bool) -> [u8; 2] {
        let ip = &frame[ethernet::LEN..];
        let mut bytes = if v6 { ip[8..40].to_vec() } else { ip[12..20].to_vec() };
        let l4 = if v6 { 40 } else { 20 };
        bytes.extend([0, 6]);
        bytes.extend(u16::try_from(ip.len() - l4).unwrap().to_be_bytes());
        checksum::compute(&bytes, 0).map(|byte| !byte)
    }

    proptest! {
        /// A checksum that may be unfinished is never taken for one that is finished. The other way round
        /// costs time, and is rare.
        #[test]
        fn what_is_unfinished_is_known(client in v4(), vip in v4(), client6 in v6(), vip6 in v6(), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut frame = build::<V4>(client, vip, &payload);
            let field = unfinished(&frame, false);
            frame[50..52].copy_from_slice(&field);
            let packet = parse::<V4, _>(&frame[..]).unwrap();
            for end in [End::Source, End::Destination] {
                prop_assert!(may_be_unfinished(&plan::<V4>(&packet, end, vip), field));
                // Of the two forms of zero, senders may leave either.
                if field == [0; 2] || field == [0xff; 2] {
                    prop_assert!(may_be_unfinished(&plan::<V4>(&packet, end, vip), field.map(|byte| !byte)));
                }
                let other = (u16::from_ne_bytes(field) ^ 0x0100).to_ne_bytes();
                prop_assert!(!may_be_unfinished(&plan::<V4>(&packet, end, vip), other));
                prop_assert!(may_be_unfinished(&plan::<V4>(&packet, end, vip).after_another(), other));
            }
            let mut frame = build::<V6>(client6, vip6, &payload);
            let field = unfinished(&frame, true);
            frame[70..72].copy_from_slice(&field);
            let packet = parse::<V6, _>(&frame[..]).unwrap();
            prop_assert!(may_be_unfinished(&plan::<V6>(&packet, End::Source, vip6), field));
            prop_assert!(may_come_unfinished::<V6>(&packet, field));
        }
    }

    #[test]
    fn a_packet_whose_length_is_not_known_may_always_be_unfinished() {
        let end = |last| Endpoint { addr: [10, 0, 0, last], port: [0, 80] };
        let mut frame = build::<V4>(end(1), end(2), b"");
        frame[16..18].copy_from_slice(&[0, 0]);
        let packet = parse::<V4, _>(&frame[..]).unwrap();
        let rewrite = plan::<V4>(&packet, End::Destination, end(3));
        assert!((0..=u16::MAX).all(|field| may_be_unfinished(&rewrite, field.to_ne_bytes())));
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

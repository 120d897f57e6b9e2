//! The tunnel between nodes: an IP packet, unchanged, in a UDP datagram. Pure.
//!
//! It is Generic UDP Encapsulation, variant 1 (draft-ietf-intarea-gue, section 3.3): an IP packet stands right behind the
//! UDP header, and its first two bits, those of its version, say so. Variant 0 with the C bit set is a control message:
//! the nodes' probes.

use crate::checksum;
use crate::family::{Address, Family};
use crate::frame::Frame;
use crate::layout::Node;
use crate::packet::Packet;
use crate::wire::{ethernet, icmp, ipv4, ipv6, protocol, tcp, udp};

/// What the tunnel adds in front of a packet over IPv4: the IPv4 and the UDP header.
pub const OUTER_V4: usize = ipv4::MIN_LEN + udp::LEN;
/// The same over IPv6.
pub const OUTER_V6: usize = ipv6::LEN + udp::LEN;

/// Hop limit of the outer packet: Linux's default.
const HOPS: u8 = 64;
/// The part of the type of service, or traffic class, that routers mark congestion in (RFC 3168). The outer packet has it
/// zero: then routers drop where they would mark, and no mark can be lost (RFC 6040, section 4.3, compatibility mode).
const ECN: u8 = 0b11;
/// Least source port: the dynamic ones (RFC 6335), of which a flow's hash selects one, so that network cards and routers
/// tell flows apart.
const LEAST_SOURCE_PORT: u16 = 0xc000;

/// What stands behind the outer UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// An IPv4 packet.
    Ipv4,
    /// An IPv6 packet.
    Ipv6,
    /// A control message.
    Control,
}

impl Payload {
    /// What this first byte begins; `None` for what no node sends.
    #[must_use]
    #[inline(always)]
    pub const fn of(first: u8) -> Option<Self> {
        match first >> 4 {
            4 => Some(Self::Ipv4),
            6 => Some(Self::Ipv6),
            // Version 0, the C bit, and the first bit of a length of options that nobody sends.
            2 => Some(Self::Control),
            _ => None,
        }
    }
}

/// A probe's answer: the probe itself, turned round and cut. Offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Length of the frame afterwards.
    pub frame_len: usize,
    /// Where the IP header's length stands.
    pub length_at: usize,
    /// What is to stand there.
    pub length: [u8; 2],
    /// What that adds to the IP header's checksum, if it has one.
    pub csum_diff: u32,
    /// The UDP header.
    pub udp: [u8; udp::LEN],
    /// The first bytes of the message.
    pub control: [u8; 2],
}

/// First byte of a probe and of its answer: variant 0 of GUE, a control message without options.
pub const CONTROL: u8 = 0x20;
/// The second byte, the control type: of a probe.
pub const QUESTION: u8 = 1;
/// The same of its answer.
pub const ANSWER: u8 = 2;
/// The same of the answer of a node that is to get no new connections.
pub const DRAINING: u8 = 3;
/// Bytes of an answer behind the UDP header: the header of GUE (4), a sequence number (4) and a nonce (8).
pub const ANSWER_LEN: usize = 16;

/// The answer to a probe that stands behind the UDP header of this packet; `None` for any other message: nobody answers
/// an answer. `drains` says whether the one who answers is to get no new connections.
#[must_use]
#[inline(always)]
pub fn answer<P: Family, F: Frame + ?Sized>(
    frame: &F,
    packet: &Packet<P::Addr>,
    drains: bool,
) -> Option<Answer> {
    let at = packet.l4 + udp::LEN;
    let message: [u8; ANSWER_LEN] = frame.read(at)?;
    let [control, kind, rest @ ..] = message;
    if control != CONTROL || kind != QUESTION {
        return None;
    }
    let kind = if drains { DRAINING } else { ANSWER };
    let length_at = packet.l3 + P::of_two([ipv4::TOTAL_LEN.start, ipv6::PAYLOAD_LEN.start]);
    let length_at = frame.reconsider(length_at);
    let before: [u8; 2] = frame.read(length_at)?;
    let counted_from = packet.l3 + P::of_two([0, ipv6::LEN]);
    let length = length((at + ANSWER_LEN).saturating_sub(counted_from));
    let ([s0, s1], [d0, d1]) = (packet.destination.port, packet.source.port);
    let [l0, l1] = self::length(udp::LEN + ANSWER_LEN);
    // Not over IPv4, which may do without.
    let [c0, c1] = if P::CHECKSUM.is_some() {
        [0; 2]
    } else {
        let addresses = (P::csum(&packet.source.addr), P::csum(&packet.destination.addr));
        let length = u16::from_ne_bytes([l0, l1]);
        let pseudo = checksum::pseudo_header(addresses.0, addresses.1, protocol::UDP, length);
        let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13] = rest;
        #[rustfmt::skip]
        let covered: [u8; udp::LEN + ANSWER_LEN] = [
            s0, s1, d0, d1, l0, l1, 0, 0,
            CONTROL, kind, r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13,
        ];
        let sum = checksum::fold(u32::from(pseudo) + u32::from(checksum::csum(&covered)));
        if sum == u16::MAX { [0xff; 2] } else { (!sum).to_ne_bytes() }
    };
    Some(Answer {
        frame_len: at + ANSWER_LEN,
        length_at,
        length,
        csum_diff: checksum::csum_diff(&before, &length),
        udp: [s0, s1, d0, d1, l0, l1, c0, c1],
        control: [CONTROL, kind],
    })
}

/// What the tunnel to a node adds in front of a packet, in bytes.
#[must_use]
#[inline(always)]
pub fn overhead(node: &Node) -> usize {
    if node.is_ipv6() { OUTER_V6 } else { OUTER_V4 }
}

/// The source port of the outer packet, for a flow with this hash; network order.
#[must_use]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the lower half is as good as any")]
pub const fn source_port(hash: u32) -> [u8; 2] {
    (hash as u16 | LEAST_SOURCE_PORT).to_be_bytes()
}

/// What a field of 16 bits says of a length: 0 if that does not fit, as of a packet that offload cuts later, and whose
/// segments get lengths of their own.
#[inline(always)]
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(0).to_be_bytes()
}

/// The IPv4 header of a packet to a node: `inner_len` is the length of the IP packet inside, `tos` its type of service or
/// traffic class. [`outer_udp`] follows.
#[must_use]
#[inline(always)]
pub fn outer_v4(node: &Node, inner_len: usize, tos: u8) -> [u8; ipv4::MIN_LEN] {
    let [.., s0, s1, s2, s3] = node.own;
    let [.., d0, d1, d2, d3] = node.addr;
    let total = length(OUTER_V4 + inner_len);
    let (own, addr) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    header_v4(tos & !ECN, total, ipv4::DONT_FRAGMENT, protocol::UDP, own, addr)
}

/// The first 8 bytes of the IPv6 header of a packet to a node; its addresses are [`Node::own`] and [`Node::addr`], and
/// [`outer_udp`] follows.
#[must_use]
#[inline(always)]
pub fn outer_v6(inner_len: usize, tos: u8) -> [u8; ipv6::SOURCE.start] {
    let tos = tos & !ECN;
    let [l0, l1] = length(udp::LEN + inner_len);
    [0x60 | tos >> 4, tos << 4, 0, 0, l0, l1, protocol::UDP, HOPS]
}

/// The UDP header of a packet to a node, for a flow with this hash. It has no checksum, which tunnels may do without over
/// IPv6 too (RFC 6935): the packet inside has its own.
#[must_use]
#[inline(always)]
pub fn outer_udp(node: &Node, inner_len: usize, hash: u32) -> [u8; udp::LEN] {
    let ([s0, s1], [d0, d1]) = (source_port(hash), node.port);
    let [l0, l1] = length(udp::LEN + inner_len);
    [s0, s1, d0, d1, l0, l1, 0, 0]
}

/// An IPv4 header without options, and its checksum.
#[inline(always)]
fn header_v4(
    tos: u8,
    [t0, t1]: [u8; 2],
    fragment: u16,
    protocol: u8,
    [s0, s1, s2, s3]: [u8; 4],
    [d0, d1, d2, d3]: [u8; 4],
) -> [u8; ipv4::MIN_LEN] {
    let [f0, f1] = fragment.to_be_bytes();
    #[rustfmt::skip]
    let with = |[c0, c1]: [u8; 2]| [
        0x45, tos, t0, t1, 0, 0, f0, f1, HOPS, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3,
    ];
    with((!checksum::csum(&with([0; 2]))).to_ne_bytes())
}

/// The type of service, or traffic class, of an IP packet by its first two bytes.
#[must_use]
#[inline(always)]
pub const fn tos([first, second]: [u8; 2]) -> u8 {
    if first >> 4 == 6 { first << 4 | second >> 4 } else { second }
}

/// Whether a packet fits through the tunnel to a node: `len` is its length without the Ethernet header, `gso_size` the
/// payload of each of the segments that offload makes of it, 0 for none, and `headers` what each of them begins with.
#[must_use]
#[inline(always)]
pub fn fits(node: &Node, len: u32, gso_size: u32, headers: u32) -> bool {
    let largest = if gso_size == 0 { len } else { headers + gso_size };
    largest as usize + overhead(node) <= node.mtu as usize
}

/// The largest packet that fits through the tunnel to a node: what its sender is told.
#[must_use]
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "48 at most")]
pub fn inner_mtu(node: &Node) -> u32 {
    node.mtu.saturating_sub(overhead(node) as u32)
}

/// Bytes of the packet that an error quotes behind its IP header: all of a TCP header without options, or of a UDP header
/// and what follows it.
pub const QUOTED: usize = tcp::MIN_LEN;

/// The header of an ICMP error that tells the sender of a packet over IPv4 what size fits (RFC 1191, section 4), its
/// checksum complete; `quoted` is the sum of the words of what follows.
#[must_use]
#[inline(always)]
pub fn too_big_v4(node: &Node, quoted: u16) -> [u8; icmp::LEN] {
    /// Destination unreachable: fragmentation needed.
    const KIND: [u8; 2] = [3, 4];
    let [m0, m1] = u16::try_from(inner_mtu(node)).unwrap_or(u16::MAX).to_be_bytes();
    let header = [KIND[0], KIND[1], 0, 0, 0, 0, m0, m1];
    let [c0, c1] = complement(checksum::csum(&header), quoted, 0);
    [KIND[0], KIND[1], c0, c1, 0, 0, m0, m1]
}

/// The same over IPv6 (RFC 4443, section 3.2). `pseudo` is the sum of the pseudo-header, which ICMP covers there.
#[must_use]
#[inline(always)]
pub fn too_big_v6(node: &Node, quoted: u16, pseudo: u16) -> [u8; icmp::LEN] {
    /// Packet too big.
    const KIND: [u8; 2] = [2, 0];
    let [m0, m1, m2, m3] = inner_mtu(node).to_be_bytes();
    let header = [KIND[0], KIND[1], 0, 0, m0, m1, m2, m3];
    let [c0, c1] = complement(checksum::csum(&header), quoted, pseudo);
    [KIND[0], KIND[1], c0, c1, m0, m1, m2, m3]
}

/// The checksum field of what has these sums.
#[inline(always)]
fn complement(one: u16, other: u16, third: u16) -> [u8; 2] {
    (!checksum::fold(u32::from(one) + u32::from(other) + u32::from(third))).to_ne_bytes()
}

/// The IPv4 header of an error to the sender of a packet, from where that has sent it.
#[must_use]
#[inline(always)]
pub fn error_v4(from: [u8; 4], to: [u8; 4]) -> [u8; ipv4::MIN_LEN] {
    header_v4(0, length(2 * ipv4::MIN_LEN + icmp::LEN + QUOTED), 0, protocol::ICMP, from, to)
}

/// Bytes of an ICMP message of IPv6 that quotes so much.
#[allow(clippy::cast_possible_truncation, reason = "68")]
pub const ERROR_V6: u16 = (icmp::LEN + ipv6::LEN + QUOTED) as u16;

/// The first 8 bytes of the IPv6 header of such an error; the addresses follow.
#[must_use]
#[inline(always)]
pub fn error_v6() -> [u8; ipv6::SOURCE.start] {
    let [l0, l1] = ERROR_V6.to_be_bytes();
    [0x60, 0, 0, 0, l0, l1, protocol::ICMP6, HOPS]
}

/// Options of a TCP header that are looked at until its maximum segment size is found: nearly all stacks have it first.
const MAX_OPTIONS: usize = 6;
/// Kinds of options (RFC 9293, section 3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// A maximum segment size that is larger than the tunnel takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clamp {
    /// Where it stands in the frame, in bytes.
    pub at: usize,
    /// What it is to be.
    pub size: [u8; 2],
    /// What that adds to the ones' complement sum of the segment.
    pub csum_diff: u32,
}

impl Clamp {
    #[inline(always)]
    fn new(at: usize, l4: usize, before: [u8; 2], size: [u8; 2]) -> Self {
        let csum_diff = checksum::csum_diff(&before, &size);
        // At an odd place its bytes belong to two words.
        let is_odd = (at - l4) & 1 != 0;
        let csum_diff = if is_odd { swap(csum_diff) } else { csum_diff };
        Self { at, size, csum_diff }
    }
}

/// The sum of the same bytes, each in the other half of its word (RFC 1071, section 2 B).
#[inline(always)]
fn swap(csum_diff: u32) -> u32 {
    u32::from(checksum::fold(csum_diff).swap_bytes())
}

/// The maximum segment size of a SYN, if segments of that size would not fit through the tunnel to a node. `header_len` is
/// the length of the IP header that segments of the connection have.
#[must_use]
#[inline(always)]
pub fn clamp<A: Address, F: Frame + ?Sized>(
    frame: &F,
    packet: &Packet<A>,
    node: &Node,
    header_len: usize,
) -> Option<Clamp> {
    let [data_offset, _] = frame.read(packet.l4 + tcp::DATA_OFFSET)?;
    let end = packet.l4 + usize::from(data_offset >> 4) * 4;
    let mut at = packet.l4 + tcp::MIN_LEN;
    for _ in 0..MAX_OPTIONS {
        at = frame.reconsider(at);
        if at + 4 > end {
            return None;
        }
        let [kind, len, s0, s1] = frame.read(at)?;
        match kind {
            END => return None,
            NO_OPERATION => at += 1,
            MAXIMUM_SEGMENT_SIZE if len == 4 => {
                let limit = inner_mtu(node).saturating_sub(ip_and_tcp(header_len));
                let limit = u16::try_from(limit).unwrap_or(u16::MAX);
                return if u16::from_be_bytes([s0, s1]) > limit {
                    Some(Clamp::new(at + 2, packet.l4, [s0, s1], limit.to_be_bytes()))
                } else {
                    None
                };
            }
            _ if len < 2 => return None,
            _ => at += usize::from(len),
        }
    }
    None
}

/// Bytes of an IP header of this length and a TCP header without options.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "60 at most")]
const fn ip_and_tcp(header_len: usize) -> u32 {
    (header_len + tcp::MIN_LEN) as u32
}

/// Bytes of a frame of the tunnel before the packet inside, without the Ethernet header; `l4` is the offset of the outer
/// UDP header.
#[must_use]
#[inline(always)]
pub const fn outer_len(l4: usize) -> usize {
    (l4 + udp::LEN).saturating_sub(ethernet::LEN)
}

#[cfg(test)]
mod tests;

//! IPv4 and IPv6 behind one trait, so that every path exists once.

use core::fmt::Debug;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::Frame;
use crate::packet::{self, Layers};
use crate::verdict::Verdict;
use crate::wire::{ethernet, icmp, ipv4, ipv6, protocol};

/// An address that stands in map keys: plain bytes in network order, no padding, no alignment.
pub trait Address:
    Copy + Eq + Debug + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + 'static
{
}

impl Address for [u8; 4] {}
impl Address for [u8; 16] {}

/// One version of IP.
pub trait Family: Copy + 'static {
    /// Its addresses, network order.
    type Addr: Address;

    /// Its `EtherType`, network order.
    const ETHER_TYPE: [u8; 2];
    /// Length of its header without options or extensions.
    const HEADER_LEN: usize;
    /// Where the source address stands in its header.
    const SOURCE: usize;
    /// Where the destination address stands in its header.
    const DESTINATION: usize;
    /// Where its own header checksum stands, if it has one.
    const CHECKSUM: Option<usize>;
    /// IP protocol number of its ICMP.
    const ICMP: u8;
    /// Whether ICMP's checksum covers the addresses.
    const ICMP_COVERS_ADDRESSES: bool;
    /// Whether fragments of one datagram have the same protocol number.
    const FRAGMENTS_BY_PROTOCOL: bool;

    /// Finds the transport header and the addresses of the packet whose IP header begins at `l3`.
    fn layers<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Layers<Self::Addr>, Verdict>;

    /// The address in the 16-byte form that map values hold (IPv4 as `::ffff:a.b.c.d`, RFC 4291).
    fn to_mapped(addr: Self::Addr) -> [u8; 16];

    /// The address out of its 16-byte form.
    fn from_mapped(wide: &[u8; 16]) -> Self::Addr;

    /// What replacing `from` by `to` adds to a ones' complement sum.
    fn csum_diff(from: &Self::Addr, to: &Self::Addr) -> u32;

    /// The sum of an address's words, folded.
    fn csum(addr: &Self::Addr) -> u16;

    /// Its own of two values, of which the first is for IPv4.
    fn of_two<T: Copy>(both: [T; 2]) -> T;

    /// Whether an ICMP type is an error that quotes the packet it is about.
    fn is_icmp_error(kind: u8) -> bool;

    /// Whether an ICMP type and code say that the packet it is about cannot be delivered.
    fn is_icmp_unreachable(kind: u8, code: u8) -> bool;

    /// Whether no host may send from this address, whatever its routes: loopback, multicast, broadcast,
    /// unspecified. The list is that of `ip_route_input_slow` (net/ipv4/route.c) and of `ip6_rcv_core`
    /// (net/ipv6/ip6_input.c).
    fn is_never_a_source(addr: &Self::Addr) -> bool;

    /// Whether the address is valid on one link only (IPv6, fe80::/10). Link-local addresses of IPv4 have
    /// ordinary routes.
    fn is_link_local(addr: &Self::Addr) -> bool;
}

/// IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = [u8; 4];

    const ETHER_TYPE: [u8; 2] = ethernet::IPV4;
    const HEADER_LEN: usize = ipv4::MIN_LEN;
    const SOURCE: usize = ipv4::SOURCE.start;
    const DESTINATION: usize = ipv4::DESTINATION.start;
    const CHECKSUM: Option<usize> = Some(ipv4::CHECKSUM.start);
    const ICMP: u8 = protocol::ICMP;
    const ICMP_COVERS_ADDRESSES: bool = false;
    const FRAGMENTS_BY_PROTOCOL: bool = true;

    #[inline(always)]
    fn layers<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Layers<[u8; 4]>, Verdict> {
        packet::ipv4_layers(frame, l3)
    }

    #[inline(always)]
    fn to_mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn from_mapped(wide: &[u8; 16]) -> [u8; 4] {
        let [.., a, b, c, d] = *wide;
        [a, b, c, d]
    }

    #[inline(always)]
    fn csum_diff(from: &[u8; 4], to: &[u8; 4]) -> u32 {
        crate::checksum::csum_diff(from, to)
    }

    #[inline(always)]
    fn csum(addr: &[u8; 4]) -> u16 {
        crate::checksum::csum(addr)
    }

    #[inline(always)]
    fn of_two<T: Copy>([v4, _]: [T; 2]) -> T {
        v4
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        icmp::is_error(kind)
    }

    #[inline(always)]
    fn is_icmp_unreachable(kind: u8, code: u8) -> bool {
        icmp::is_unreachable(kind, code)
    }

    #[inline(always)]
    fn is_never_a_source(addr: &[u8; 4]) -> bool {
        let [first, ..] = *addr;
        matches!(first, 0 | 127 | 224..=239) || *addr == [255; 4]
    }

    #[inline(always)]
    fn is_link_local(_: &[u8; 4]) -> bool {
        false
    }
}

impl Family for V6 {
    type Addr = [u8; 16];

    const ETHER_TYPE: [u8; 2] = ethernet::IPV6;
    const HEADER_LEN: usize = ipv6::LEN;
    const SOURCE: usize = ipv6::SOURCE.start;
    const DESTINATION: usize = ipv6::DESTINATION.start;
    const CHECKSUM: Option<usize> = None;
    const ICMP: u8 = protocol::ICMP6;
    const ICMP_COVERS_ADDRESSES: bool = true;
    const FRAGMENTS_BY_PROTOCOL: bool = false;

    #[inline(always)]
    fn layers<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Layers<[u8; 16]>, Verdict> {
        packet::ipv6_layers(frame, l3)
    }

    #[inline(always)]
    fn to_mapped(addr: [u8; 16]) -> [u8; 16] {
        addr
    }

    #[inline(always)]
    fn from_mapped(wide: &[u8; 16]) -> [u8; 16] {
        *wide
    }

    #[inline(always)]
    fn csum_diff(from: &[u8; 16], to: &[u8; 16]) -> u32 {
        crate::checksum::csum_diff(from, to)
    }

    #[inline(always)]
    fn csum(addr: &[u8; 16]) -> u16 {
        crate::checksum::csum(addr)
    }

    #[inline(always)]
    fn of_two<T: Copy>([_, v6]: [T; 2]) -> T {
        v6
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        icmp::is_error_v6(kind)
    }

    #[inline(always)]
    fn is_icmp_unreachable(kind: u8, _code: u8) -> bool {
        icmp::is_unreachable_v6(kind)
    }

    #[inline(always)]
    fn is_never_a_source(addr: &[u8; 16]) -> bool {
        // By words, as the kernel does: byte by byte would take too much of the programs' stack.
        let [a, b, c, d]: [u32; 4] = zerocopy::transmute!(*addr);
        let (a, c, d) = (u32::from_be(a), u32::from_be(c), u32::from_be(d));
        // Unspecified, loopback, and IPv4 addresses in their mapped form (RFC 4291, section 2.5).
        let is_reserved = a == 0 && b == 0 && (c == 0xffff || (c == 0 && d <= 1));
        is_reserved || a >> 24 == 0xff
    }

    #[inline(always)]
    fn is_link_local(addr: &[u8; 16]) -> bool {
        crate::sock_lb::is_link_local(addr)
    }
}

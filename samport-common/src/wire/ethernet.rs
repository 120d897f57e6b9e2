//! Ethernet II.

use core::ops::Range;

/// Length of the header without VLAN tags.
pub const LEN: usize = 14;
/// Destination address.
pub const DESTINATION: Range<usize> = 0..6;
/// Source address.
pub const SOURCE: Range<usize> = 6..12;
/// `EtherType`.
pub const TYPE: Range<usize> = 12..14;

/// `EtherType` of IPv4, in network order.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// `EtherType` of IPv6, in network order.
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// `EtherType` of an IEEE 802.1Q tag, in network order.
pub const VLAN: [u8; 2] = [0x81, 0x00];
/// `EtherType` of an IEEE 802.1ad service tag, in network order.
pub const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];

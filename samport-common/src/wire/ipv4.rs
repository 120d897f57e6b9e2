//! IPv4 (RFC 791).

use core::ops::Range;

/// Length of the header without options.
pub const MIN_LEN: usize = 20;
/// Total length of the datagram, header included.
pub const TOTAL_LEN: Range<usize> = 2..4;
/// Flags and fragment offset.
pub const FRAGMENT: Range<usize> = 6..8;
/// Hop limit, and the protocol behind it.
pub const TTL_AND_PROTOCOL: Range<usize> = 8..10;
/// Protocol of the payload.
pub const PROTOCOL: usize = 9;
/// Header checksum.
pub const CHECKSUM: Range<usize> = 10..12;
/// Source address.
pub const SOURCE: Range<usize> = 12..16;
/// Destination address.
pub const DESTINATION: Range<usize> = 16..20;

/// DF: nobody on the way may make fragments of the datagram.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// MF plus the offset's 13 bits: any of them set means the datagram is a fragment.
pub const FRAGMENT_MASK: u16 = 0x3fff;
/// The offset's 13 bits: any of them set means that another fragment carries the ports.
pub const OFFSET_MASK: u16 = 0x1fff;

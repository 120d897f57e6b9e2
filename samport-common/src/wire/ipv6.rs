//! IPv6 (RFC 8200) and the extension headers a transport header may stand behind.

use core::ops::Range;

/// Length of the fixed header.
pub const LEN: usize = 40;
/// Length of what follows the fixed header.
pub const PAYLOAD_LEN: Range<usize> = 4..6;
/// Type of what follows the fixed header.
pub const NEXT_HEADER: usize = 6;
/// The same with the hop limit behind it.
pub const NEXT_HEADER_AND_HOPS: Range<usize> = 6..8;
/// Source address.
pub const SOURCE: Range<usize> = 8..24;
/// Destination address.
pub const DESTINATION: Range<usize> = 24..40;

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// Destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

/// Length of the fragment header.
pub const FRAGMENT_LEN: usize = 8;
/// Offset and the M flag of the fragment header: any of them set means a real fragment. An
/// "atomic" fragment (RFC 6946) has none and is a whole datagram.
pub const FRAGMENT_MASK: u16 = 0xfff9;
/// The offset's 13 bits alone: any of them set means that another fragment carries the ports.
pub const OFFSET_MASK: u16 = 0xfff8;
/// Extension headers walked before a packet is left alone. RFC 8200 allows each of the five kinds
/// once (destination options twice); real traffic has one or two.
pub const MAX_EXTENSIONS: usize = 6;

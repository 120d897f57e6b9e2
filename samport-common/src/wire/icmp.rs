//! ICMP (RFC 792) and ICMPv6 (RFC 4443), as far as errors about other packets go.

use core::ops::Range;

/// Length of an error's header; the packet it is about follows.
pub const LEN: usize = 8;
/// Checksum.
pub const CHECKSUM: Range<usize> = 2..4;

/// Whether an ICMP type is an error that quotes the packet it is about: destination unreachable,
/// source quench, time exceeded, parameter problem. A redirect quotes one too, but is for the
/// neighbours of the router that sends it.
#[must_use]
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 11 | 12)
}

/// Whether an error says that the packet it is about cannot be delivered: destination unreachable, but for the
/// code that only says that the packet is too big (RFC 792).
#[must_use]
#[inline(always)]
pub const fn is_unreachable(kind: u8, code: u8) -> bool {
    kind == 3 && code != 4
}

/// The same for ICMPv6, where too big is a type of its own.
#[must_use]
#[inline(always)]
pub const fn is_unreachable_v6(kind: u8) -> bool {
    kind == 1
}

/// Whether an ICMPv6 type is an error that quotes the packet it is about: unreachable, too big, time exceeded, parameter problem (1–4).
#[must_use]
#[inline(always)]
pub const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

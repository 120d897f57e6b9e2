//! UDP (RFC 768).

use core::ops::Range;

/// Length of the header.
pub const LEN: usize = 8;
/// Checksum; zero says that the sender has computed none.
pub const CHECKSUM: Range<usize> = 6..8;

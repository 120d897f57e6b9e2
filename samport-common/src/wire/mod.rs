//! Named offsets and values of the headers we read. Offsets are in bytes from the header's start.

pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
}

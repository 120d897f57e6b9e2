//! TCP (RFC 9293).

use core::ops::Range;

/// Length of the header without options.
pub const MIN_LEN: usize = 20;
/// Source port.
pub const SOURCE_PORT: Range<usize> = 0..2;
/// Destination port.
pub const DESTINATION_PORT: Range<usize> = 2..4;
/// Acknowledgement number.
pub const ACKNOWLEDGEMENT: Range<usize> = 8..12;
/// Data offset: the header's length in 32-bit words, in the upper half.
pub const DATA_OFFSET: usize = 12;
/// Flags.
pub const FLAGS: usize = 13;
/// Checksum.
pub const CHECKSUM: Range<usize> = 16..18;

/// The flags byte of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts a connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;

    const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// Whether the segment belongs to a handshake.
    #[must_use]
    pub const fn syn(self) -> bool {
        self.has(Self::SYN)
    }

    /// Whether the sender has finished.
    #[must_use]
    pub const fn fin(self) -> bool {
        self.has(Self::FIN)
    }

    /// Whether the segment aborts its connection.
    #[must_use]
    pub const fn rst(self) -> bool {
        self.has(Self::RST)
    }

    /// Whether the acknowledgement number counts.
    #[must_use]
    pub const fn ack(self) -> bool {
        self.has(Self::ACK)
    }

    /// Whether this segment asks for a new connection: SYN alone. SYN with FIN or RST is no
    /// legitimate opening, SYN with ACK is an answer to one.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// Whether this segment accepts a connection: SYN and ACK.
    #[must_use]
    pub const fn accepts(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN | Self::ACK
    }
}

//! Named offsets and values of the headers we read. Offsets are in bytes from the header's start.

pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Internet Control Message Protocol for IPv4.
    pub const ICMP: u8 = 1;
    /// Internet Control Message Protocol for IPv6.
    pub const ICMP6: u8 = 58;

    /// A protocol that services can have.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    #[repr(u8)]
    pub enum Protocol {
        /// Connections.
        Tcp = TCP,
        /// Datagrams.
        Udp = UDP,
    }

    impl Protocol {
        /// All of them.
        pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

        /// The IP protocol number.
        #[must_use]
        #[inline(always)]
        pub const fn number(self) -> u8 {
            self as u8
        }

        /// The protocol with this number, if services can have it.
        #[must_use]
        #[inline(always)]
        pub const fn from_number(number: u8) -> Option<Self> {
            match number {
                TCP => Some(Self::Tcp),
                UDP => Some(Self::Udp),
                _ => None,
            }
        }

        /// The name users write: `tcp` or `udp`.
        #[must_use]
        pub const fn name(self) -> &'static str {
            match self {
                Self::Tcp => "tcp",
                Self::Udp => "udp",
            }
        }
    }
}

//! What is known of a port before any table is asked.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow::ServiceId;
use crate::wire::protocol::Protocol;

/// Words of `PORTS`: one bit for each of the 65,536 ports of TCP, then of UDP.
pub const PORT_WORDS: u32 = 2 * 65_536 / 64;

/// The bit of `PORTS` that stands for a port of a protocol: word `bit / 64`, bit `bit % 64` of it.
#[must_use]
#[inline(always)]
pub const fn port_bit(protocol: Protocol, port: u16) -> u32 {
    let base = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 65_536,
    };
    base + port as u32
}

/// Value of `PORT_CACHE`, at [`port_bit`]: what a port stands for, over IPv4 and over IPv6. 8 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CachedPort {
    /// What all frontends on this port belong to: a [`PortService`].
    pub listens: [u16; 2],
    /// What all backends that answer from this port belong to: a [`PortService`].
    pub answers: [u16; 2],
}

/// What a port stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortService {
    /// Nothing of ours.
    None,
    /// One service: packets of its open flows need no other look-up of it.
    One(ServiceId),
    /// Only the hash tables can tell.
    Several,
}

impl PortService {
    /// As a map holds it: 0, one more than the service's id, or the largest number.
    #[must_use]
    pub const fn encode(self) -> u16 {
        match self {
            Self::None => 0,
            Self::One(service) => service.get() + 1,
            Self::Several => u16::MAX,
        }
    }

    /// Total decoder: a number that is none is [`PortService::Several`], with which nothing is lost.
    #[must_use]
    #[inline(always)]
    pub const fn decode(number: u16) -> Self {
        match number.checked_sub(1) {
            None => Self::None,
            Some(id) => match ServiceId::new(id) {
                Some(service) => Self::One(service),
                None => Self::Several,
            },
        }
    }
}

/// Entries of `PORT_CACHE`.
pub const PORT_CACHE_LEN: u32 = 2 * 65_536;

const _: () = assert!(size_of::<CachedPort>() == 8);

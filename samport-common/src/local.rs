//! Clients on the machine itself: what is remembered of their sockets, and which of them can reach a
//! backend at all.
//!
//! Addresses are in their 16-byte form here (IPv4 as `::ffff:a.b.c.d`, RFC 4291), because a socket
//! for IPv6 may talk IPv4 and the kernel then names its peers that way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::layout::{Backend, Life, Via};

/// Connected sockets whose dialled address is remembered, until they are closed.
pub const MAX_LOCAL_PEERS: u32 = 65_536;
/// Datagram sockets and backends of which the dialled address is remembered.
pub const MAX_LOCAL_SENDERS: u32 = 16_384;
/// Datagram sockets and addresses whose backend is remembered.
pub const MAX_LOCAL_CHOICES: u32 = 16_384;

/// Key of `LOCAL_PEERS` and `LOCAL_SENDERS` (a socket and its backend) and of `LOCAL_CHOICES` (a
/// socket and what it dialled): 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketKey {
    /// The kernel's number of the socket, never used twice.
    pub cookie: u64,
    /// Address in its 16-byte form.
    pub addr: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 6],
}

impl SocketKey {
    /// The key of a socket and an endpoint.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, addr: [u8; 16], port: [u8; 2]) -> Self {
        Self { cookie, addr, port, pad: [0; 6] }
    }
}

/// Value of `LOCAL_CHOICES`: a backend in one of its lives, 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Chosen {
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// Its generation when it was chosen.
    pub generation: u32,
}

/// Value of `LOCAL_PEERS` and `LOCAL_SENDERS`: what a socket dialled and who it got, 28 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Dialled {
    /// Address in its 16-byte form.
    pub addr: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// Who it got.
    pub chosen: Chosen,
}

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<Dialled>() == 28);

/// `::ffff:0.0.0.0`: what stands before the 32 bits of an IPv4 address.
const MAPPED: u128 = 0xffff << 32;
/// `::ffff:127.0.0.1`.
const LOOPBACK_V4: u128 = MAPPED | 0x7f00_0001;
/// `::1`.
const LOOPBACK_V6: u128 = 1;

/// Whether it is an IPv4 address.
#[must_use]
#[inline(always)]
pub const fn is_ipv4(wide: &[u8; 16]) -> bool {
    u128::from_be_bytes(*wide) >> 32 == MAPPED >> 32
}

/// The address a connection to this one goes to: to the kernel, "any" as a destination is loopback
/// (`curl 0.0.0.0`).
#[must_use]
#[inline(always)]
pub const fn destination(wide: [u8; 16]) -> [u8; 16] {
    match u128::from_be_bytes(wide) {
        MAPPED => LOOPBACK_V4.to_be_bytes(),
        0 => LOOPBACK_V6.to_be_bytes(),
        _ => wide,
    }
}

/// Whether a socket with this source (all zero if it has none yet), tied to this device (0 if to
/// none), must stay on the machine: what it sends could not reach a container, or the container
/// could not answer.
#[must_use]
#[inline(always)]
pub const fn stays_here(source: &[u8; 16], device: u32) -> bool {
    let source = u128::from_be_bytes(*source);
    // 127.0.0.0/8 (RFC 1122, section 3.2.1.3) and ::1.
    device != 0 || source >> 24 == LOOPBACK_V4 >> 24 || source == LOOPBACK_V6
}

/// Whether it is an IPv6 link-local address. A datagram to one is tied to its interface before we
/// see it.
#[must_use]
#[inline(always)]
pub fn is_link_local(wide: &[u8; 16]) -> bool {
    let [a, b, ..] = *wide;
    a == 0xfe && b & 0xc0 == 0x80
}

/// Whether a backend may get a new socket of this machine: if it serves, and is no macvlan child, which
/// this machine cannot reach by itself.
#[must_use]
#[inline(always)]
pub const fn takes(backend: &Backend) -> bool {
    Life::from_byte(backend.life).serves() && !matches!(Via::from_byte(backend.via), Via::Child)
}

/// Whether a backend is still the one that was chosen.
#[must_use]
#[inline(always)]
pub const fn keeps(backend: &Backend, chosen: &Chosen) -> bool {
    takes(backend) && backend.generation == chosen.generation
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    fn wide(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn ipv4_is_told_from_ipv6() {
        assert!(is_ipv4(&wide("::ffff:127.0.0.1")) && is_ipv4(&wide("::ffff:0.0.0.0")));
        for other in ["::", "::1", "::127.0.0.1", "2001:db8::ffff:7f00:1", "64:ff9b::1.2.3.4"] {
            assert!(!is_ipv4(&wide(other)), "{other}");
        }
    }

    #[test]
    fn any_as_a_destination_is_loopback() {
        assert_eq!(destination(wide("::")), wide("::1"));
        assert_eq!(destination(wide("::ffff:0.0.0.0")), wide("::ffff:127.0.0.1"));
        for other in ["::1", "::ffff:127.0.0.1", "::ffff:192.0.2.1", "2001:db8::"] {
            assert_eq!(destination(wide(other)), wide(other));
        }
    }

    #[test]
    fn a_loopback_source_or_a_device_keeps_a_socket_here() {
        for source in ["::1", "::ffff:127.0.0.1", "::ffff:127.1.2.3"] {
            assert!(stays_here(&wide(source), 0), "{source}");
        }
        for source in ["::", "::ffff:0.0.0.0", "::ffff:192.0.2.1", "2001:db8::1", "::2"] {
            assert!(!stays_here(&wide(source), 0), "{source}");
            assert!(stays_here(&wide(source), 3), "{source}");
        }
    }

    #[test]
    fn link_local_addresses_are_known() {
        assert!(is_link_local(&wide("fe80::1")) && is_link_local(&wide("febf::1")));
        assert!(!is_link_local(&wide("fec0::1")) && !is_link_local(&wide("::ffff:169.254.0.1")));
    }

    #[test]
    fn a_backend_is_kept_in_one_life_only() {
        let backend = |life: Life, generation| Backend {
            addr: [0; 16],
            port: [0; 2],
            mac: [0; 6],
            ifindex: 0,
            generation,
            weight: 1,
            life: life as u8,
            via: 0,
            shared: 0,
            takes_frames: 0,
        };
        let chosen = Chosen { backend: 1, generation: 7 };
        assert!(keeps(&backend(Life::Serving, 7), &chosen));
        assert!(!keeps(&backend(Life::Serving, 8), &chosen));
        assert!(!keeps(&backend(Life::Down, 7), &chosen));
        assert!(!takes(&backend(Life::Unset, 7)));
        let child = Backend { via: Via::Child as u8, ..backend(Life::Serving, 7) };
        assert!(!takes(&child), "this machine cannot reach its macvlan children");
    }
}

//! Clients on the machine itself: what is remembered of their sockets, which of them can reach a
//! backend at all, and what has become of their connections.
//!
//! Addresses are in their 16-byte form here (IPv4 as `::ffff:a.b.c.d`, RFC 4291), because a socket
//! for IPv6 may talk IPv4 and the kernel then names its peers that way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::failover;
use crate::layout::{Backend, BackendState, ForwardMode};
use crate::wire::protocol::Protocol;

/// Connected sockets whose dialled address is remembered, until they are closed.
pub const MAX_LOCAL_PEERS: u32 = 65_536;
/// Datagram sockets and backends of which the dialled address is remembered.
pub const MAX_LOCAL_SENDERS: u32 = 16_384;
/// Datagram sockets and addresses whose backend is remembered.
pub const MAX_LOCAL_CHOICES: u32 = 16_384;

/// Key of `LOCAL_SENDERS` (a socket and its backend) and of `LOCAL_CHOICES` (a socket and what it
/// dialled): 32 bytes.
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

/// Value of `LOCAL_SENDERS`: what a socket dialled and who it got, 28 bytes.
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

/// Value of `LOCAL_PEERS`, by the socket's cookie: who a connected socket dialled, and the other end it
/// was given. 48 bytes.
///
/// The cookie alone is the key: the kernel takes the other end away from a socket whose connection has failed,
/// and its close must find this all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connected {
    /// What it dialled, and who it got.
    pub dialled: Dialled,
    /// The backend's address in its 16-byte form.
    pub addr: [u8; 16],
    /// The backend's port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

impl Connected {
    /// Whether this is the socket's other end.
    #[must_use]
    #[inline(always)]
    pub fn is_with(&self, addr: &[u8; 16], port: [u8; 2]) -> bool {
        self.port == port && self.addr == *addr
    }
}

const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<Dialled>() == 28);
const _: () = assert!(size_of::<Connected>() == 48);

/// States of TCP sockets (`net/tcp_states.h`).
pub mod tcp_state {
    /// Open.
    pub const ESTABLISHED: u32 = 1;
    /// A SYN was sent and not answered yet.
    pub const SYN_SENT: u32 = 2;
    /// Closed, or never opened.
    pub const CLOSE: u32 = 7;
}

/// What a change of a TCP socket's state says of its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing.
    Pending,
    /// The backend has taken it.
    Accepted,
    /// The backend has refused it.
    Refused,
    /// It has failed after retransmissions of the SYN, of each of which the kernel has told.
    TimedOut,
    /// It was open, and is over.
    Ended,
}

impl Outcome {
    /// What it says that a socket goes from one state into another, after so many retransmissions.
    #[must_use]
    #[inline(always)]
    pub const fn of(from: u32, to: u32, retransmissions: u32) -> Self {
        match (from, to) {
            (tcp_state::SYN_SENT, tcp_state::ESTABLISHED) => Self::Accepted,
            (tcp_state::SYN_SENT, tcp_state::CLOSE) if retransmissions == 0 => Self::Refused,
            (tcp_state::SYN_SENT, tcp_state::CLOSE) => Self::TimedOut,
            (_, tcp_state::CLOSE) => Self::Ended,
            _ => Self::Pending,
        }
    }

    /// Whether the connection counts as open no more.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Refused | Self::TimedOut | Self::Ended)
    }
}

/// `::ffff:0.0.0.0`: what stands before the 32 bits of an IPv4 address.
const MAPPED: u128 = 0xffff << 32;
/// `::ffff:127.0.0.1`.
const LOOPBACK_V4: u128 = MAPPED | 0x7f00_0001;
/// `::1`.
const LOOPBACK_V6: u128 = 1;

/// The address that stands for the machine's own clients, of both families, where services go by a client's
/// address: they are one client. No packet has it as its source.
pub const CLIENT_ADDR: [u8; 16] = LOOPBACK_V4.to_be_bytes();
/// What tells them from other clients as evidence.
pub const CLIENT: u32 = failover::fingerprint(CLIENT_ADDR);

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

/// The address whose services stand for this one's, where nobody serves or listens on it itself: all of 127.0.0.0/8
/// is this machine (RFC 1122, section 3.2.1.3), and Debian calls it 127.0.1.1 in `/etc/hosts`.
#[must_use]
#[inline(always)]
pub const fn stand_in(dialled: &[u8; 16]) -> Option<[u8; 16]> {
    let addr = u128::from_be_bytes(*dialled);
    if addr >> 24 == LOOPBACK_V4 >> 24 && addr != LOOPBACK_V4 {
        Some(LOOPBACK_V4.to_be_bytes())
    } else {
        None
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
    BackendState::from_byte(backend.state).serves()
        && !matches!(ForwardMode::from_byte(backend.forward_mode), ForwardMode::Child)
}

/// Whether the next datagram goes to the backend that was chosen: it is still the same, and not unhealthy while others are
/// not.
#[must_use]
#[inline(always)]
pub const fn keeps(backend: &Backend, chosen: &Chosen) -> bool {
    takes(backend)
        && BackendState::from_byte(backend.state).keeps(Protocol::Udp)
        && backend.generation == chosen.generation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DeviceSet;
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
    fn all_of_127_0_0_0_8_is_127_0_0_1() {
        for other in ["::ffff:127.0.1.1", "::ffff:127.0.0.0", "::ffff:127.255.255.255"] {
            assert_eq!(stand_in(&wide(other)), Some(wide("::ffff:127.0.0.1")), "{other}");
        }
        for none in
            ["::ffff:127.0.0.1", "::ffff:126.0.0.1", "::ffff:128.0.0.1", "::1", "::127.0.1.1"]
        {
            assert_eq!(stand_in(&wide(none)), None, "{none}");
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
    fn a_connection_is_over_when_its_socket_is_closed_and_refused_if_it_was_never_open() {
        use tcp_state::{CLOSE, ESTABLISHED, SYN_SENT};
        const FIN_WAIT1: u32 = 4;
        for (from, to, retransmissions, expected, is_over) in [
            (CLOSE, SYN_SENT, 0, Outcome::Pending, false),
            (SYN_SENT, ESTABLISHED, 2, Outcome::Accepted, false),
            (SYN_SENT, CLOSE, 0, Outcome::Refused, true),
            (SYN_SENT, CLOSE, 3, Outcome::TimedOut, true),
            (ESTABLISHED, FIN_WAIT1, 0, Outcome::Pending, false),
            (ESTABLISHED, CLOSE, 0, Outcome::Ended, true),
            (FIN_WAIT1, CLOSE, 1, Outcome::Ended, true),
        ] {
            let outcome = Outcome::of(from, to, retransmissions);
            assert_eq!((outcome, outcome.is_over()), (expected, is_over), "{from} to {to}");
        }
    }

    #[test]
    fn a_connected_socket_has_one_other_end() {
        let chosen = Chosen { backend: 1, generation: 7 };
        let dialled = Dialled { addr: wide("::1"), port: [0, 80], pad: [0; 2], chosen };
        let one = Connected { dialled, addr: wide("2001:db8::2"), port: [0, 81], pad: [0; 2] };
        assert!(one.is_with(&wide("2001:db8::2"), [0, 81]));
        assert!(!one.is_with(&wide("2001:db8::2"), [0, 80]));
        assert!(!one.is_with(&wide("::1"), [0, 81]));
    }

    #[test]
    fn a_backend_is_kept_in_one_life_only() {
        let backend = |state: BackendState, generation| Backend {
            addr: [0; 16],
            port: [0; 2],
            mac: [0; 6],
            ifindex: 0,
            generation,
            weight: 1,
            state: state as u8,
            forward_mode: 0,
            shared: 0,
            takes_frames: 0,
            answers_on: DeviceSet::NONE,
        };
        let chosen = Chosen { backend: 1, generation: 7 };
        assert!(keeps(&backend(BackendState::Serving, 7), &chosen));
        assert!(!keeps(&backend(BackendState::Serving, 8), &chosen));
        assert!(!keeps(&backend(BackendState::Down, 7), &chosen));
        assert!(!keeps(&backend(BackendState::Unhealthy, 7), &chosen));
        assert!(!takes(&backend(BackendState::Unset, 7)));
        let child =
            Backend { forward_mode: ForwardMode::Child as u8, ..backend(BackendState::Serving, 7) };
        assert!(!takes(&child), "this machine cannot reach its macvlan children");
    }
}

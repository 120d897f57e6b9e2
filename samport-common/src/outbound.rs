//! What the host or a container has begun itself, from an address and port that are served: answers to it are no
//! clients' packets.
//!
//! The kernel chooses source ports from `ip_local_port_range`, and masquerading keeps a container's own where it can:
//! either may be a port that is served.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::conntrack::State;
use crate::family::Address;
use crate::flow::Endpoint;
use crate::wire::protocol::Protocol;
use crate::wire::tcp::Flags;

/// Key of `OUTBOUND4` and `OUTBOUND6`: 16 and 40 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct OutboundKey<A: Address> {
    /// Who was sent something.
    pub remote: Endpoint<A>,
    /// From where: an address and port that are served.
    pub local: Endpoint<A>,
    /// IP's number of the protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl<A: Address> OutboundKey<A> {
    /// What `local` has begun with `remote`.
    #[must_use]
    #[inline(always)]
    pub fn new(local: Endpoint<A>, remote: Endpoint<A>, protocol: Protocol) -> Self {
        Self { remote, local, protocol: protocol.number(), pad: [0; 3] }
    }
}

/// Value of `OUTBOUND4` and `OUTBOUND6`: 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Outbound {
    /// When its last packet passed, in either direction, in ticks.
    pub seen_tick: u32,
    /// Whether it was answered: 0 or 1.
    pub answered: u32,
}

impl Outbound {
    /// The state of a flow that is forgotten after the same time: the kernel's own connection tracking makes the same
    /// difference.
    #[must_use]
    #[inline(always)]
    pub const fn state(self, protocol: Protocol) -> State {
        match (protocol, self.answered) {
            (Protocol::Tcp, _) => State::Established,
            (Protocol::Udp, 0) => State::Unanswered,
            (Protocol::Udp, _) => State::Answered,
        }
    }

    /// Whether it is remembered still; `timeout` is that of its [`state`](Self::state), in ticks.
    #[must_use]
    #[inline(always)]
    pub const fn is_alive(self, now_tick: u32, timeout: u32) -> bool {
        now_tick.saturating_sub(self.seen_tick) <= timeout
    }
}

/// Whether a packet that would open a flow may be an answer to what was begun here. A client's SYN is none.
#[must_use]
#[inline(always)]
pub const fn may_be_answer(protocol: Protocol, flags: Flags) -> bool {
    match protocol {
        Protocol::Tcp => !flags.opens(),
        Protocol::Udp => true,
    }
}

/// Whether a service takes packets for new flows that may be answers: all datagrams, and by hash segments from the
/// middle of a connection.
#[must_use]
#[inline(always)]
pub const fn is_of_concern(protocol: Protocol, is_by_hash: bool) -> bool {
    is_by_hash || matches!(protocol, Protocol::Udp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_protocol_tell_two_from_each_other() {
        let near = Endpoint { addr: [192, 0, 2, 1], port: [0, 53] };
        let far = Endpoint { addr: [198, 51, 100, 7], port: [0, 80] };
        let key = OutboundKey::new(near, far, Protocol::Udp);
        assert_ne!(key, OutboundKey::new(far, near, Protocol::Udp));
        assert_ne!(key, OutboundKey::new(near, far, Protocol::Tcp));
        assert_eq!(size_of_val(&key), 16);
        assert_eq!(size_of::<OutboundKey<[u8; 16]>>(), 40);
    }

    #[test]
    fn it_is_remembered_as_long_as_a_flow_of_its_kind() {
        let asked = Outbound { seen_tick: 100, answered: 0 };
        let answered = Outbound { answered: 1, ..asked };
        assert_eq!(asked.state(Protocol::Udp), State::Unanswered);
        assert_eq!(answered.state(Protocol::Udp), State::Answered);
        assert_eq!(asked.state(Protocol::Tcp), State::Established);
        assert!(asked.is_alive(130, 30) && !asked.is_alive(131, 30));
        // Another CPU's clock is behind.
        assert!(asked.is_alive(99, 0));
    }

    #[test]
    fn a_syn_answers_nothing_and_every_datagram_may() {
        assert!(!may_be_answer(Protocol::Tcp, Flags(Flags::SYN)));
        for flags in [Flags(Flags::SYN | Flags::ACK), Flags(Flags::ACK)] {
            assert!(may_be_answer(Protocol::Tcp, flags));
        }
        assert!(may_be_answer(Protocol::Udp, Flags(0)));
        assert!(!is_of_concern(Protocol::Tcp, false) && is_of_concern(Protocol::Tcp, true));
        assert!(is_of_concern(Protocol::Udp, false));
    }
}

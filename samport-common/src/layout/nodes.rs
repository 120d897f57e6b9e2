//! What is known of the other nodes of a cluster.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most other nodes: an index of `NODES` is below it.
pub const MAX_NODES: u32 = 256;

/// Value of `NODES`, by the node's index: 48 bytes. An index stays a node's for as long as it is known: flows name it.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Node {
    /// Where its end of the tunnel is, in its 16-byte form.
    pub addr: [u8; 16],
    /// This machine's end of the tunnel to it: likewise.
    pub own: [u8; 16],
    /// The device that the route to it leads out of.
    pub ifindex: u32,
    /// The largest IP packet that gets to it, in bytes.
    pub mtu: u32,
    /// The UDP port of its end of the tunnel, network order.
    pub port: [u8; 2],
    /// 1 if the index is in use.
    pub in_use: u8,
    /// 1 if this machine is to get no new connections from it: answers to its probes say so.
    pub own_drains: u8,
    /// Zero.
    pub pad: [u8; 4],
}

impl Node {
    /// Whether the index is in use.
    #[must_use]
    #[inline(always)]
    pub const fn is_in_use(&self) -> bool {
        self.in_use != 0
    }

    /// Whether it is told to send this machine no new connections.
    #[must_use]
    #[inline(always)]
    pub const fn own_drains(&self) -> bool {
        self.own_drains != 0
    }

    /// Whether its end of the tunnel has an IPv6 address.
    #[must_use]
    #[inline(always)]
    pub fn is_ipv6(&self) -> bool {
        let [first, .., _, _, _, _, _, _] = self.addr;
        // `::ffff:a.b.c.d` begins with zeros, and no address of a machine does.
        first != 0
    }
}

const _: () = assert!(size_of::<Node>() == 48);

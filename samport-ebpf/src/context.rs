//! What a program knows of a packet besides its bytes.

use samport_common::frame::Frame;
use samport_common::packet::Packet;
use samport_common::wire::protocol::Protocol;

use crate::maps::Tables;
use crate::skb::Ends;
use crate::source::FibLookup;

/// A packet on one of the kernel's hooks.
pub trait Context: Frame {
    /// Length of the whole packet in bytes, Ethernet header included.
    fn len(&self) -> u32;

    /// Index of the device we are attached to.
    fn ifindex(&self) -> u32;

    /// Asks the kernel for a route (`bpf_fib_lookup`): a `BPF_FIB_LKUP_RET_*`, or a negative errno.
    fn fib_lookup(&self, question: *mut FibLookup, flags: u32) -> i64;

    /// The marks of a flow that the packet opens, or [`REFUSED`](samport_common::source::REFUSED) for its
    /// source.
    fn source_marks<P: Tables>(&self, packet: &Packet<P::Addr>) -> u32;

    /// The number of the [`Move`](samport_common::source::Move) for the packet, of a flow with these marks and
    /// this way, when it has come in by another device.
    fn source_move<P: Tables>(&self, packet: &Packet<P::Addr>, reply_path: u32, flow: u32) -> u32;

    /// Whether the packet, which would open a flow, answers what the host or a container has begun itself.
    fn answers_outbound<P: Tables>(&self, packet: &Packet<P::Addr>) -> bool;

    /// Whether a socket of this machine is connected between these ends. One that only listens is not.
    fn has_connection<A>(&self, protocol: Protocol, ends: &Ends<A>) -> bool;

    /// How many selections for this packet have failed.
    fn attempt(&self) -> u32;

    /// Whether the frame is addressed to this machine.
    fn is_for_host(&self) -> bool;

    /// The index of the node that a packet comes from, at [`Hook::Tunnel`].
    fn node(&self) -> u32;

    /// Brings headers into the part we can read. False if they were there already: then the packet
    /// really ends where reading stopped.
    fn pull_headers(&self) -> bool;
}

/// Where a program is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Ingress of an interface that outside clients come in by.
    Interface = 1,
    /// Ingress of a bridge: what containers send to the host itself.
    Bridge = 2,
    /// Ingress of the host's side of a backend's veth.
    Container = 3,
    /// Ingress of another device that backends answer on.
    Device = 4,
    /// Egress of an interface or a bridge: replies that come through the host's stack.
    Egress = 5,
    /// Ingress of an interface, of what was inside of a packet of the tunnel.
    Tunnel = 6,
}

impl Hook {
    /// Total decoder: an unknown number is [`Hook::Interface`], which may do the least.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            2 => Self::Bridge,
            3 => Self::Container,
            4 => Self::Device,
            5 => Self::Egress,
            6 => Self::Tunnel,
            _ => Self::Interface,
        }
    }
}

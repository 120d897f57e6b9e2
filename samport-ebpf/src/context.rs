//! What a program knows of a packet besides its bytes.

use samport_common::frame::Frame;

/// A packet on one of the kernel's hooks.
pub trait Context: Frame {
    /// Length of the whole packet in bytes, Ethernet header included.
    fn len(&self) -> u32;

    /// Index of the device we are attached to.
    fn ifindex(&self) -> u32;

    /// How many draws for this packet were in vain.
    fn attempt(&self) -> u32;

    /// Whether the frame is addressed to this machine.
    fn is_for_host(&self) -> bool;

    /// Brings headers into the part we can read. False if they were there already: then the packet
    /// really ends where reading stopped.
    fn pull_headers(&self) -> bool;
}

/// Where a program sits.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Seat {
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
}

impl Seat {
    /// Total decoder: an unknown number is [`Seat::Interface`], which may do the least.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            2 => Self::Bridge,
            3 => Self::Container,
            4 => Self::Device,
            5 => Self::Egress,
            _ => Self::Interface,
        }
    }
}

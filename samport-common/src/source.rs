//! Whether a packet's source address can belong to where the packet comes from. Pure.
//!
//! samport runs before the kernel's reverse-path filter (`fib_validate_source` in net/ipv4/fib_frontend.c) and
//! takes packets past it, so it does that part itself: when a flow is opened, and when a packet of an open
//! flow comes in by another device.

use crate::family::Family;
use crate::flow::marks;
use crate::layout::{DeviceInfo, DeviceSet};

/// Which side of the host a device with a hook of samport's is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Side {
    /// Outside clients come in by it (`-i`).
    External = 1,
    /// Containers of this host are behind it.
    Internal = 2,
}

impl Side {
    /// The side a map holds; `None` for a device without a hook.
    #[must_use]
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::External),
            2 => Some(Self::Internal),
            _ => None,
        }
    }
}

/// What is known of a source address without asking for routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// It is the host's own.
    OfHost,
    /// It belongs to the device the packet came in by.
    Here,
    /// It belongs to another device.
    Elsewhere,
}

impl Known {
    /// What a value of `SOURCES4` or `SOURCES6` says of a packet that came in by this device.
    #[must_use]
    #[inline(always)]
    pub fn of(devices: Option<&DeviceSet>, ifindex: u32) -> Self {
        match devices {
            None => Self::Nothing,
            Some(devices) if devices.is_empty() => Self::OfHost,
            Some(devices) if devices.contains(ifindex) => Self::Here,
            Some(_) => Self::Elsewhere,
        }
    }
}

/// Where a packet is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    /// At ingress of an interface that outside clients come in by.
    Interface,
    /// At ingress of a bridge of containers.
    Bridge,
    /// At ingress of the host's side of a container's veth.
    Container,
    /// It has come out of the tunnel: the node that has sent it has validated its source.
    Tunnel,
}

/// The next machine on a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop {
    /// The destination itself.
    OnLink,
    /// A gateway, and what is known of its address at the device of the hook.
    Gateway(Known),
}

/// Where the route back to a source leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// That cannot be told: forwarding is off, or the route is of a kind that the look-up does not handle.
    Unknown,
    /// There is none, or it is no unicast route.
    None,
    /// Out of the device with this index.
    Via(u32, NextHop),
}

impl Route {
    /// What `bpf_fib_lookup` has answered (`BPF_FIB_LKUP_RET_*` in linux/bpf.h), with the device and the next
    /// hop it has filled in. Since Linux 5.11 it does that as soon as there is a route, also without a
    /// neighbour.
    #[must_use]
    #[inline(always)]
    pub fn of_fib_lookup(answer: i64, ifindex: u32, next_hop: impl FnOnce() -> NextHop) -> Self {
        const SUCCESS: i64 = 0;
        const BLACKHOLE: i64 = 1;
        const NOT_FORWARDED: i64 = 4;
        const NO_NEIGHBOUR: i64 = 7;
        const FRAGMENTATION_NEEDED: i64 = 8;
        match answer {
            SUCCESS | NO_NEIGHBOUR | FRAGMENTATION_NEEDED => Self::Via(ifindex, next_hop()),
            // Blackhole, unreachable, prohibited; and no route, or one of the host itself.
            BLACKHOLE..=NOT_FORWARDED => Self::None,
            // Forwarding is off (5), a tunnel without a device (6), or an error.
            _ => Self::Unknown,
        }
    }
}

/// Which route back is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// That of a reply: from the service's address, which policy rules may go by.
    Service,
    /// That of a packet from no address in particular.
    Anywhere,
}

/// How a packet has come in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The hook that sees it.
    pub ingress: Ingress,
    /// The device of that hook.
    pub ifindex: u32,
    /// What is known of that device.
    pub device: DeviceInfo,
}

/// `rp_filter` of strict reverse-path filtering.
pub const STRICT: u8 = 1;

impl Arrival {
    /// Whether a route out of this device leads back to where the packet has come from.
    #[inline(always)]
    const fn is_by(&self, ifindex: u32) -> bool {
        ifindex == self.ifindex || ifindex == self.device.master
    }

    /// The `rp_filter` that applies: IPv6 has none.
    #[inline(always)]
    fn rp_filter<P: Family>(&self) -> u8 {
        P::of_two([self.device.rp_filter, 0])
    }
}

/// What a packet's source is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Validity {
    /// It cannot belong to where the packet comes from.
    Refused,
    /// It may, but nothing says that it does: there is no telling of routes, or every link has this address.
    Unproven,
    /// It does, as far as the host knows.
    Proven,
}

impl Validity {
    #[inline(always)]
    const fn of(is_valid: bool) -> Self {
        if is_valid { Self::Proven } else { Self::Refused }
    }

    /// The marks of a flow that such a packet opens on this side, or [`REFUSED`].
    #[must_use]
    #[inline(always)]
    pub const fn marks(self, side: Side) -> u32 {
        let internal = if matches!(side, Side::Internal) { marks::INTERNAL } else { 0 };
        match self {
            Self::Refused => REFUSED,
            Self::Unproven => (internal | marks::UNPROVEN) as u32,
            Self::Proven => internal as u32,
        }
    }
}

/// What stands in the place of a flow's [`marks`] for a packet that must not open it.
pub const REFUSED: u32 = 1 << 16;

/// Judges the source of a packet that has come in so.
///
/// `route` looks up a route back to the source, `device_of` what is known of a device with a hook. They are
/// asked only if it matters.
#[must_use]
#[inline(always)]
pub fn validate<P: Family>(
    source: &P::Addr,
    known: Known,
    arrival: &Arrival,
    route: impl Fn(From) -> Route,
    device_of: impl Fn(u32) -> Option<DeviceInfo>,
) -> Validity {
    if P::is_never_a_source(source) {
        return Validity::Refused;
    }
    let is_from_tunnel = matches!(arrival.ingress, Ingress::Tunnel);
    match known {
        Known::OfHost => return Validity::Refused,
        // Containers of other nodes have the addresses of this one's.
        _ if is_from_tunnel => return Validity::Proven,
        Known::Elsewhere => return Validity::Refused,
        Known::Here => return Validity::Proven,
        Known::Nothing => {}
    }
    if P::is_link_local(source) {
        return Validity::Unproven;
    }
    let is_outside = matches!(arrival.ingress, Ingress::Interface);
    // A rule may lead replies elsewhere than what a container itself is routed by. A loop, so that the kernel's
    // programs ask in one place.
    let mut validity = Validity::Refused;
    for from in [From::Service, From::Anywhere] {
        let route = route(from);
        validity = if is_outside {
            outside::<P>(arrival, route, &device_of)
        } else {
            inside::<P>(arrival, route, &device_of)
        };
        if is_outside || !matches!(validity, Validity::Refused) {
            break;
        }
    }
    validity
}

/// Outside, the kernel's own filter counts, and no packet has the address of something inside.
#[inline(always)]
fn outside<P: Family>(
    arrival: &Arrival,
    route: Route,
    device_of: impl Fn(u32) -> Option<DeviceInfo>,
) -> Validity {
    match route {
        // Whoever cannot tell drops nothing.
        Route::Unknown => Validity::Unproven,
        Route::None => Validity::of(arrival.rp_filter::<P>() == 0),
        Route::Via(ifindex, _) if arrival.is_by(ifindex) => Validity::Proven,
        Route::Via(ifindex, _) => {
            let other = device_of(ifindex);
            let is_inside = other.is_some_and(|other| other.is_internal());
            // The look-up names one of several next hops; the kernel's filter takes all of them.
            let is_one_of_several = arrival.device.is_multipath::<P>()
                && other.is_none_or(|other| other.is_multipath::<P>());
            let is_strict = arrival.rp_filter::<P>() == STRICT && !is_one_of_several;
            Validity::of(!is_inside && !is_strict)
        }
    }
}

/// Inside, the route must lead back there, whatever the kernel's filter is set to.
#[inline(always)]
fn inside<P: Family>(
    arrival: &Arrival,
    route: Route,
    device_of: impl Fn(u32) -> Option<DeviceInfo>,
) -> Validity {
    match route {
        Route::Unknown => Validity::Unproven,
        Route::None => Validity::Refused,
        Route::Via(ifindex, next_hop) if arrival.is_by(ifindex) => match next_hop {
            NextHop::OnLink | NextHop::Gateway(Known::Here) => Validity::Proven,
            NextHop::Gateway(Known::Elsewhere) => Validity::Refused,
            // A port of an outside bridge: the gateway is the outside's, unless it is known for the container's.
            NextHop::Gateway(Known::Nothing | Known::OfHost) => {
                let master = device_of(arrival.device.master);
                let is_outside = master.is_some_and(|master| master.is_external());
                Validity::of(!(is_outside && matches!(arrival.ingress, Ingress::Container)))
            }
        },
        Route::Via(ifindex, _) => {
            let other = device_of(ifindex);
            Validity::of(
                arrival.device.is_multipath::<P>()
                    && other.is_some_and(|other| other.is_internal() && other.is_multipath::<P>()),
            )
        }
    }
}

/// A packet of an open flow that has come in by another device than the flow's.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, all of which are asked")]
pub struct Detour {
    /// The side of the flow's client.
    pub from: Side,
    /// The side of the device.
    pub to: Side,
    /// What the packet's source is worth there.
    pub validity: Validity,
    /// Whether that source is valid on one link only.
    pub is_link_local: bool,
    /// Whether the flow was opened by a packet whose source was [`Validity::Unproven`].
    pub is_unproven: bool,
    /// Whether the packet opens a flow.
    pub opens: bool,
    /// Whether the flow's device still has a hook.
    pub is_old_device_hooked: bool,
    /// Whether the flow's device is a container's veth, and this one a bridge.
    pub is_from_veth_to_bridge: bool,
}

/// What becomes of such a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Move {
    /// It is refused.
    Refuse = 0,
    /// It goes on in the flow, whose replies stay where they are.
    Stay = 1,
    /// It goes on in the flow, and replies follow it.
    Follow = 2,
    /// It opens a flow in this one's place.
    Reopen = 3,
}

impl Move {
    /// Total decoder: an unknown number is [`Move::Refuse`].
    #[must_use]
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Stay,
            2 => Self::Follow,
            3 => Self::Reopen,
            _ => Self::Refuse,
        }
    }
}

impl Detour {
    /// Decides.
    ///
    /// A flow never moves between outside and inside: no container takes over the connection of an outside
    /// client, nor the other way round. But a flow that a container has opened with a source that is not proven
    /// to be its own makes way for a client from outside. Inside a flow moves if the device before has no hook
    /// any more, or from a veth to a bridge, where the address leads to its owner: while a container that has
    /// open connections becomes a backend, both its bridge and its veth lead to it.
    #[must_use]
    #[inline(always)]
    pub const fn decide(self) -> Move {
        match (self.from, self.to) {
            _ if matches!(self.validity, Validity::Refused) => Move::Refuse,
            (Side::Internal, Side::External) if self.is_unproven && self.opens => Move::Reopen,
            (Side::External, Side::Internal) | (Side::Internal, Side::External) => Move::Refuse,
            _ if self.is_link_local => Move::Refuse,
            (Side::Internal, Side::Internal)
                if self.is_old_device_hooked && !self.is_from_veth_to_bridge =>
            {
                Move::Stay
            }
            (Side::External, Side::External) | (Side::Internal, Side::Internal) => Move::Follow,
        }
    }
}

#[cfg(test)]
mod tests;

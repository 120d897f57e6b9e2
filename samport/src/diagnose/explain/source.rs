//! Whether a packet's source can belong to where the packet comes from: the kernel programs' questions
//! (`samport-ebpf/src/source.rs`), answered by what was gathered. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use samport_common::family::{Family, V4, V6};
use samport_common::layout::{DeviceInfo, DeviceSet};
use samport_common::source::{
    self, Arrival, Detour, From, Ingress, Known, Move, NextHop, Route, Side, Validity,
};
use samport_common::wire::protocol::Protocol;
use samport_common::wire::tcp::Flags;

use super::{EntryDevice, Facts, Remembered};

/// What the kernel programs validate a packet's source by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceFacts {
    /// What is known of the device it comes in by.
    pub device: DeviceInfo,
    /// The devices its address belongs to: none if it is the host's own; `None` if that is not known.
    pub belongs_to: Option<DeviceSet>,
    /// Whether its address is a broadcast address of the host's networks.
    pub is_broadcast: bool,
    /// Where the routes back to it lead: that of a reply of the service, and that of a packet from no address in
    /// particular.
    pub routes: [Route; 2],
    /// The devices its address belongs to, that the route leads to, and that its flow came in by.
    pub devices: BTreeMap<u32, SourceDevice>,
}

/// Another device that matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceDevice {
    /// Its name.
    pub name: String,
    /// What the programs know of it; `None` without a hook.
    pub info: Option<DeviceInfo>,
}

impl Default for SourceFacts {
    /// Nothing is known, and nothing held against it.
    fn default() -> Self {
        Self {
            device: DeviceInfo::default(),
            belongs_to: None,
            is_broadcast: false,
            routes: [Route::Unknown; 2],
            devices: BTreeMap::new(),
        }
    }
}

impl SourceFacts {
    fn side_of(&self, ifindex: u32) -> Option<Side> {
        self.info_of(ifindex).and_then(|info| Side::from_byte(info.side))
    }

    fn info_of(&self, ifindex: u32) -> Option<DeviceInfo> {
        self.devices.get(&ifindex).and_then(|device| device.info)
    }

    fn name_of(&self, ifindex: u32) -> &str {
        self.devices.get(&ifindex).map_or("a device that is gone", |device| &device.name)
    }

    fn known(&self, ifindex: u32) -> Known {
        Known::of(self.belongs_to.as_ref(), ifindex)
    }
}

/// A source that is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Whether the packet belongs to a flow that exists, rather than opening one.
    pub is_of_flow: bool,
    /// The device it comes in by.
    pub device: String,
    /// In words.
    pub why: String,
}

/// Whether the packet's source can belong to where the packet comes from.
pub(super) fn is_valid(facts: &Facts, door: &EntryDevice) -> bool {
    validity(facts, door) != Validity::Refused
}

/// The side of the host that packets come in from there.
fn side(facts: &Facts, door: &EntryDevice) -> Side {
    let of_veth = || Side::from_byte(facts.source.device.side).filter(|_| door.is_container);
    if door.is_outer { Side::External } else { of_veth().unwrap_or(Side::Internal) }
}

fn validity(facts: &Facts, door: &EntryDevice) -> Validity {
    match facts.question.client.ip() {
        IpAddr::V4(ip) => validity_in::<V4>(ip.octets(), facts, door),
        IpAddr::V6(ip) => validity_in::<V6>(ip.octets(), facts, door),
    }
}

fn validity_in<P: Family>(addr: P::Addr, facts: &Facts, door: &EntryDevice) -> Validity {
    let Facts { source, .. } = facts;
    let ingress = if door.from_node.is_some() {
        Ingress::Tunnel
    } else if door.is_outer {
        Ingress::Interface
    } else if door.is_container {
        Ingress::Container
    } else {
        Ingress::Bridge
    };
    let arrival = Arrival { ingress, ifindex: door.ifindex, device: source.device };
    let [of_service, of_anywhere] = source.routes;
    source::validate::<P>(
        &addr,
        source.known(door.ifindex),
        &arrival,
        |from| match from {
            From::Service => of_service,
            From::Anywhere => of_anywhere,
        },
        |ifindex| source.info_of(ifindex),
    )
}

/// What becomes of the next packet of a flow, which may have come in by another device before.
pub(super) fn moves(facts: &Facts, door: &EntryDevice, flow: &Remembered, flags: Flags) -> Move {
    if flow.reply_path == door.reply_path() {
        return Move::Stay;
    }
    Detour {
        from: flow.side,
        to: side(facts, door),
        validity: validity(facts, door),
        is_link_local: is_link_local(facts.question.client.ip()),
        is_unproven: flow.is_unproven,
        opens: facts.question.protocol == Protocol::Udp || flags.opens(),
        is_old_device_hooked: facts.source.side_of(flow.reply_path.ifindex()).is_some(),
        is_from_veth_to_bridge: flow.reply_path.is_container()
            && !door.is_outer
            && !door.is_container,
    }
    .decide()
}

/// What to say of a flow whose packets come in by another device from now on.
pub(super) fn note_of(
    facts: &Facts,
    door: &EntryDevice,
    flow: &Remembered,
    moved: Move,
) -> Option<String> {
    let before = facts.source.name_of(flow.reply_path.ifindex());
    match moved {
        Move::Follow => Some(format!("replies follow the flow from {before} to {}", door.name)),
        Move::Stay if flow.reply_path != door.reply_path() => {
            Some(format!("replies still leave by {before}, where the flow was opened"))
        }
        Move::Stay | Move::Refuse | Move::Reopen => None,
    }
}

/// A packet that would open a flow, and may not.
pub(super) fn refused(facts: &Facts, door: &EntryDevice) -> Refused {
    Refused { is_of_flow: false, device: door.name.clone(), why: why_invalid(facts, door) }
}

/// A packet of a flow that does not move here.
pub(super) fn refused_by_flow(facts: &Facts, door: &EntryDevice, flow: &Remembered) -> Refused {
    let before = facts.source.name_of(flow.reply_path.ifindex());
    let why = match (flow.side, side(facts, door)) {
        (Side::External, Side::Internal) => {
            format!("the flow is an outside client's, which came in by {before}")
        }
        (Side::Internal, Side::External) => {
            format!("the flow is a container's, which came in by {before}")
        }
        _ if !is_valid(facts, door) => why_invalid(facts, door),
        _ => {
            let ip = facts.question.client.ip();
            format!("{ip} is link-local, and the flow came in by {before}")
        }
    };
    Refused { is_of_flow: true, device: door.name.clone(), why }
}

/// Why a source is not valid: the first of the reasons of [`source::is_valid`] that applies.
fn why_invalid(facts: &Facts, door: &EntryDevice) -> String {
    let (ip, source) = (facts.question.client.ip(), &facts.source);
    if let Some(kind) = kind_of(ip) {
        return format!("{ip} is {kind}, which is never a source");
    }
    match source.known(door.ifindex) {
        Known::OfHost if source.is_broadcast => {
            return format!("{ip} is a broadcast address of this host's networks");
        }
        Known::OfHost => return format!("{ip} is this host's own address"),
        Known::Elsewhere => return format!("{ip} belongs to {}", owners(source)),
        Known::Here | Known::Nothing => {}
    }
    let [route, _] = source.routes;
    let why = match route {
        Route::Via(ifindex, NextHop::Gateway(_))
            if ifindex == door.ifindex || ifindex == source.device.master =>
        {
            format!(
                "the route back to {ip} leads to another machine behind {}",
                source.name_of(ifindex)
            )
        }
        Route::Via(ifindex, _) => {
            format!("the route back to {ip} leads to {}", source.name_of(ifindex))
        }
        Route::None | Route::Unknown => format!("there is no route back to {ip}"),
    };
    let is_inside = matches!(route, Route::Via(ifindex, _)
        if source.side_of(ifindex) == Some(Side::Internal));
    match (door.is_outer, source.device.rp_filter) {
        (true, rp_filter) if !is_inside && ip.is_ipv4() => {
            format!("{why}, and rp_filter is {rp_filter}")
        }
        _ => why,
    }
}

/// Names of the devices the address belongs to.
fn owners(source: &SourceFacts) -> String {
    let devices = source.belongs_to.unwrap_or_default();
    let names = devices.iter().map(|one| source.name_of(one));
    names.collect::<Vec<_>>().join(", ")
}

/// What an address is that no host sends from.
fn kind_of(ip: IpAddr) -> Option<&'static str> {
    let is_never = match ip {
        IpAddr::V4(ip) => V4::is_never_a_source(&ip.octets()),
        IpAddr::V6(ip) => V6::is_never_a_source(&ip.octets()),
    };
    is_never.then_some(match ip {
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address",
        _ => "an unspecified address",
    })
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => V4::is_link_local(&ip.octets()),
        IpAddr::V6(ip) => V6::is_link_local(&ip.octets()),
    }
}

//! What the kernel programs must know to validate sources: devices with a hook, and addresses that belong to
//! one device or to the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use samport_common::layout::{DeviceInfo, DeviceSet};
use samport_common::source::Side;

use super::change::{Desired, Route};

/// Every device with a program at its ingress, and its side. Where only replies of other machines come in, it
/// has none.
pub(super) fn devices(desired: &Desired) -> BTreeMap<u32, DeviceInfo> {
    let known = |ifindex: u32| desired.devices.get(&ifindex).copied().unwrap_or_default();
    let replies = desired.backends.keys().filter_map(|key| match key.route {
        Route::Neighbour { answers_on, .. } => Some((answers_on, None)),
        _ => None,
    });
    let bridges = desired.bridges.iter().map(|on| (*on, Some(Side::Internal)));
    let veths = desired.backends.iter().flat_map(|(key, share)| share.veths(key.route));
    let veths = veths.map(|veth| {
        // The port of a bridge that outside clients come in by: they are on one segment.
        let is_outside = desired.interfaces.contains(&known(veth).master);
        (veth, Some(if is_outside { Side::External } else { Side::Internal }))
    });
    // An interface of `-i` may be a veth itself, with backends behind it: outside all the same.
    let outside = desired.interfaces.iter().map(|on| (*on, Some(Side::External)));
    let sides: BTreeMap<_, _> = replies.chain(bridges).chain(veths).chain(outside).collect();
    let of = |(ifindex, side): (u32, Option<Side>)| {
        (ifindex, DeviceInfo { side: side.map_or(0, |side| side as u8), ..known(ifindex) })
    };
    sides.into_iter().map(of).collect()
}

/// The host's own addresses, and those of containers that serve: no route says which of a bridge's containers
/// an address belongs to.
pub(super) fn sources(desired: &Desired) -> BTreeMap<IpAddr, DeviceSet> {
    let mut devices: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
    for (key, share) in desired.backends.iter().filter(|(key, _)| is_behind_veth(key.route)) {
        devices.entry(key.endpoint.ip()).or_default().extend(share.veths(key.route));
    }
    let mut sources: BTreeMap<_, DeviceSet> =
        devices.into_iter().map(|(addr, on)| (addr, on.into_iter().collect())).collect();
    sources.extend(desired.own.iter().map(|addr| (*addr, DeviceSet::NONE)));
    sources
}

/// Whether its packets go to a backend by a veth.
const fn is_behind_veth(route: Route) -> bool {
    match route {
        Route::Peer(_) => true,
        Route::Neighbour { ifindex, answers_on } => answers_on != ifindex,
        Route::Stack | Route::Child(_) | Route::Node(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::change::{BackendKey, Share};
    use super::*;
    use crate::model::ports::Listen;
    use crate::model::{HostDevice, State};

    const VETH: u32 = 9;

    fn with(address: &str, route: Route, answers_on: u32) -> Desired {
        let endpoint = SocketAddr::new(address.parse().unwrap(), 9_090);
        let key = BackendKey { listen: Listen::tcp(80), id: "web".into(), endpoint, route };
        let answers_on = DeviceSet::from_iter([answers_on]);
        let (name, state, leaves_by) = ("web".into(), State::Active, Vec::new());
        let route_back = None;
        let share =
            Share { name, weight: 1, group: None, state, answers_on, leaves_by, route_back };
        Desired {
            backends: [(key, share)].into(),
            interfaces: [2].into(),
            bridges: [5].into(),
            ..Desired::default()
        }
    }

    fn peer(ifindex: u32) -> Route {
        Route::Peer(HostDevice { ifindex, mac: [1; 6], polls: false })
    }

    fn sides(desired: &Desired) -> Vec<(u32, Option<Side>)> {
        devices(desired).into_iter().map(|(on, info)| (on, Side::from_byte(info.side))).collect()
    }

    #[test]
    fn interfaces_are_outside_and_bridges_and_veths_inside() {
        let (outside, inside) = (Some(Side::External), Some(Side::Internal));
        let desired = with("172.17.0.2", peer(VETH), VETH);
        assert_eq!(sides(&desired), [(2, outside), (5, inside), (VETH, inside)]);
        let neighbour = Route::Neighbour { ifindex: 5, answers_on: VETH };
        assert_eq!(sides(&with("172.17.0.2", neighbour, VETH)), sides(&desired));
        // An uplink that is a veth, with a backend on its segment.
        assert_eq!(sides(&with("192.0.2.9", peer(2), 2)), [(2, outside), (5, inside)]);
        // Another machine, by the device that leads there.
        let routed = Route::Neighbour { ifindex: 4, answers_on: 4 };
        assert_eq!(sides(&with("10.9.0.2", routed, 4)), [(2, outside), (4, None), (5, inside)]);
    }

    /// Clients and containers of one bridge are on one segment, whichever port they come in by.
    #[test]
    fn a_port_of_an_outside_bridge_is_outside() {
        let mut desired = with("192.0.2.9", peer(VETH), VETH);
        desired.devices = [(VETH, DeviceInfo { master: 2, ..DeviceInfo::default() })].into();
        let (outside, inside) = (Some(Side::External), Some(Side::Internal));
        assert_eq!(sides(&desired), [(2, outside), (5, inside), (VETH, outside)]);
    }

    #[test]
    fn an_address_behind_two_veths_belongs_to_both() {
        let mut desired = with("172.17.0.2", peer(VETH), VETH);
        desired.backends.extend(with("172.17.0.2", peer(VETH + 1), VETH + 1).backends);
        let both = DeviceSet::from_iter([VETH, VETH + 1]);
        assert_eq!(sources(&desired)[&IpAddr::from([172, 17, 0, 2])], both);
    }

    /// A container answers by whichever of its links its routes lead to.
    #[test]
    fn every_veth_of_a_container_is_inside_and_has_its_address() {
        let mut desired = with("172.17.0.2", peer(VETH), VETH);
        let answers_on = DeviceSet::from_iter([VETH + 1, VETH, DeviceSet::HOST]);
        for share in desired.backends.values_mut() {
            share.answers_on = answers_on;
        }
        let (outside, inside) = (Some(Side::External), Some(Side::Internal));
        assert_eq!(sides(&desired), [(2, outside), (5, inside), (VETH, inside), (10, inside)]);
        let both = DeviceSet::from_iter([VETH, VETH + 1]);
        assert_eq!(sources(&desired)[&IpAddr::from([172, 17, 0, 2])], both);
    }

    #[test]
    fn what_is_known_of_a_device_goes_with_its_side() {
        let mut desired = with("172.17.0.2", peer(VETH), VETH);
        let known = DeviceInfo { master: 5, rp_filter: 2, ..DeviceInfo::default() };
        desired.devices = [(VETH, known), (77, known)].into();
        let devices = devices(&desired);
        assert_eq!(devices[&VETH], DeviceInfo { side: Side::Internal as u8, ..known });
        assert!(!devices.contains_key(&77), "it has no hook");
    }

    #[test]
    fn a_containers_address_belongs_to_its_veth_and_the_hosts_own_to_nothing() {
        let mut desired = with("172.17.0.2", peer(VETH), VETH);
        desired.own = [[192, 0, 2, 1], [192, 0, 2, 255]].map(IpAddr::from).into();
        let sources = sources(&desired);
        assert_eq!(sources[&IpAddr::from([172, 17, 0, 2])], DeviceSet::from_iter([VETH]));
        assert!(sources[&IpAddr::from([192, 0, 2, 1])].is_empty());
        assert!(sources[&IpAddr::from([192, 0, 2, 255])].is_empty());
        assert_eq!(sources.len(), 3);
    }

    /// Of these the routes say where packets may come from: by several ways, perhaps.
    #[test]
    fn an_address_behind_no_veth_is_tied_to_no_device() {
        let child = Route::Child(HostDevice { ifindex: 2, mac: [1; 6], polls: false });
        for route in [Route::Stack, child, Route::Neighbour { ifindex: 4, answers_on: 4 }] {
            assert!(sources(&with("10.9.0.2", route, 4)).is_empty(), "{route:?}");
        }
    }
}

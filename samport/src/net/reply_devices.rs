//! The devices a backend's replies come in by. A container answers by whichever of its links its routes lead to, so
//! these are all links between its network namespace and this machine. Pure.

use std::collections::BTreeMap;

use samport_common::layout::DeviceSet;

use crate::model::{Egress, HostDevice, Reach};
use crate::net::netlink::Devices;
use crate::plan::Route;

/// The veths of this machine by the network namespace that their other ends are in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Namespaces(BTreeMap<i32, Vec<u32>>);

impl Namespaces {
    /// Those of these devices, but for the interfaces clients come in by.
    #[must_use]
    pub fn of(devices: &Devices, interfaces: &[String]) -> Self {
        let mut by_number: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
        for device in devices.values() {
            if let Some(number) = device.peer_namespace
                && device.is_veth
                && !interfaces.contains(&device.name)
            {
                by_number.entry(number).or_default().push(device.ifindex);
            }
        }
        Self(by_number)
    }

    /// All veths that lead to where this one leads.
    fn beside<'a>(&'a self, veth: u32, devices: &Devices) -> impl Iterator<Item = u32> + use<'a> {
        let number = devices.get(&veth).and_then(|device| device.peer_namespace);
        number.and_then(|number| self.0.get(&number)).into_iter().flatten().copied()
    }
}

/// Where replies are recognised.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReplyDevices {
    /// The devices they may come in by, the usual one first.
    pub answers_on: DeviceSet,
    /// The parents of macvlan links they may leave by.
    pub leaves_by: Vec<u32>,
    /// Devices beyond the most that are watched.
    pub left_out: Vec<u32>,
}

/// Where the replies of a backend with this route are recognised. `device` is the one that the kernel's own route to
/// it leads to, if that was asked for.
#[must_use]
pub fn reply_devices(
    route: Route,
    device: Option<u32>,
    reach: Option<Reach>,
    egress: &Egress,
    devices: &Devices,
    namespaces: &Namespaces,
) -> ReplyDevices {
    let is_veth = |ifindex: u32| devices.get(&ifindex).is_some_and(|device| device.is_veth);
    let beside = |veth: u32| -> Vec<u32> {
        let known = egress.veths.iter().copied().filter(|ifindex| is_veth(*ifindex));
        namespaces.beside(veth, devices).chain(known).collect()
    };
    let (own, others) = match (route, reach) {
        (Route::Peer(HostDevice { ifindex: veth, .. }), _) => (Some(veth), beside(veth)),
        (Route::Neighbour { answers_on, .. }, _) if is_veth(answers_on) => {
            (Some(answers_on), beside(answers_on))
        }
        (Route::Neighbour { answers_on, .. }, _) => (Some(answers_on), Vec::new()),
        (Route::Child(_), _) => {
            let veths = egress.veths.iter().copied().filter(|ifindex| is_veth(*ifindex));
            (Some(DeviceSet::HOST), veths.collect())
        }
        // Up there they come out of the bridge.
        (Route::Stack, Some(Reach::Veth(place))) => {
            let master = |veth: u32| devices.get(&veth).and_then(|device| device.master);
            let veths = beside(place.ifindex).into_iter();
            (device, veths.map(|veth| master(veth).unwrap_or(veth)).collect())
        }
        (Route::Stack | Route::Node(_), _) => return all_of(device, Vec::new()),
    };
    let parents = egress.parents.iter().copied().filter(|parent| devices.contains_key(parent));
    let leaves_by: Vec<u32> = parents.collect();
    // What a macvlan child sends leaves by its parent as if the host had sent it.
    let host = (!leaves_by.is_empty()).then_some(DeviceSet::HOST);
    let usual = match egress.default_device {
        Some(parent) if leaves_by.contains(&parent) => host,
        Some(ifindex) if others.contains(&ifindex) => Some(ifindex),
        _ => None,
    };
    let in_order = usual.into_iter().chain(own).chain(others).chain(host);
    ReplyDevices { leaves_by, ..all_of(None, in_order.collect()) }
}

/// Each of them once, as far as there is room.
fn all_of(first: Option<u32>, others: Vec<u32>) -> ReplyDevices {
    let mut found: Vec<u32> = Vec::new();
    for ifindex in first.into_iter().chain(others) {
        if !found.contains(&ifindex) {
            found.push(ifindex);
        }
    }
    let left_out = found.split_off(found.len().min(DeviceSet::MAX));
    ReplyDevices { answers_on: found.into_iter().collect(), leaves_by: Vec::new(), left_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netlink::Device;

    const BRIDGE: u32 = 3;

    /// `eth0`, a bridge, and veths into numbered namespaces: 10 and 11 into one, 20 and up into another.
    fn devices() -> Devices {
        let device = |ifindex: u32, is_veth, peer_namespace| Device {
            is_veth,
            is_bridge: ifindex == BRIDGE,
            master: (is_veth && ifindex > 5).then_some(BRIDGE + ifindex % 2),
            peer_namespace,
            ..Device::named(ifindex, &format!("dev{ifindex}"))
        };
        let veths = [(10, 7), (11, 7)].into_iter().chain((20..30).map(|ifindex| (ifindex, 8)));
        let veths = veths.map(|(ifindex, number)| device(ifindex, true, Some(number)));
        // An interface clients come in by, from the same namespace.
        let outer = [device(2, true, Some(7)), device(BRIDGE, false, None)];
        veths.chain(outer).map(|device| (device.ifindex, device)).collect()
    }

    fn peer(ifindex: u32) -> Route {
        Route::Peer(place(ifindex))
    }

    fn place(ifindex: u32) -> HostDevice {
        HostDevice { ifindex, mac: [2; 6], polls: false }
    }

    fn of(
        route: Route,
        device: Option<u32>,
        reach: Option<Reach>,
        egress: &Egress,
    ) -> ReplyDevices {
        let devices = devices();
        let namespaces = Namespaces::of(&devices, &["dev2".to_owned()]);
        reply_devices(route, device, reach, egress, &devices, &namespaces)
    }

    fn set(devices: &[u32]) -> DeviceSet {
        devices.iter().copied().collect()
    }

    #[test]
    fn replies_come_by_every_veth_of_the_namespace_and_usually_by_that_of_the_default_route() {
        let neighbour = Route::Neighbour { ifindex: BRIDGE, answers_on: 11 };
        let unknown = Egress::default();
        for (route, egress, expected) in [
            (peer(10), &unknown, [10, 11]),
            (peer(11), &unknown, [11, 10]),
            (neighbour, &unknown, [11, 10]),
            (peer(10), &Egress { default_device: Some(11), ..Egress::default() }, [11, 10]),
            // It is gone, or another's.
            (peer(10), &Egress { default_device: Some(12), ..Egress::default() }, [10, 11]),
        ] {
            let found = of(route, None, None, egress);
            assert_eq!(found, ReplyDevices { answers_on: set(&expected), ..found.clone() });
            assert!(found.left_out.is_empty() && found.leaves_by.is_empty());
        }
    }

    #[test]
    fn another_machine_and_the_host_answer_by_the_device_that_leads_there() {
        let neighbour = Route::Neighbour { ifindex: BRIDGE, answers_on: BRIDGE };
        let egress = Egress::default();
        assert_eq!(of(neighbour, Some(BRIDGE), None, &egress).answers_on, set(&[BRIDGE]));
        assert_eq!(of(Route::Stack, Some(1), Some(Reach::Host), &egress).answers_on, set(&[1]));
        assert!(of(Route::Stack, None, None, &egress).answers_on.is_empty());
    }

    #[test]
    fn through_the_stack_replies_come_out_of_the_bridge_of_each_veth() {
        let reach = Some(Reach::Veth(place(10)));
        let found = of(Route::Stack, Some(BRIDGE), reach, &Egress::default());
        assert_eq!(found.answers_on, set(&[BRIDGE, BRIDGE + 1]));
    }

    #[test]
    fn a_container_with_macvlan_links_answers_by_their_parents_too() {
        let mut egress = Egress { parents: vec![2], ..Egress::default() };
        let found = of(peer(10), None, None, &egress);
        assert_eq!((found.answers_on, &found.leaves_by[..]), (set(&[10, 11, 1]), &[2][..]));
        egress.default_device = Some(2);
        assert_eq!(of(peer(10), None, None, &egress).answers_on, set(&[1, 10, 11]));
        // Served by its macvlan link, and its default route leads by a veth.
        let child = Route::Child(place(2));
        egress = Egress { default_device: Some(11), veths: vec![11, 77], ..egress };
        let found = of(child, None, Some(Reach::Macvlan(place(2))), &egress);
        assert_eq!((found.answers_on, &found.leaves_by[..]), (set(&[11, 1]), &[2][..]));
        // Its parent is gone.
        egress = Egress { parents: vec![99], ..Egress::default() };
        assert_eq!(of(peer(10), None, None, &egress).answers_on, set(&[10, 11]));
    }

    #[test]
    fn of_more_links_than_there_is_room_for_the_usual_and_its_own_are_watched() {
        let egress = Egress { default_device: Some(29), ..Egress::default() };
        let found = of(peer(28), None, None, &egress);
        assert_eq!(found.answers_on, set(&[29, 28, 20, 21, 22, 23, 24, 25]));
        assert_eq!(found.left_out, [26, 27]);
    }
}

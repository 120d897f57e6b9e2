//! What a candidate's [`Reach`] means on this machine: which address a container in the host's own
//! network answers on, and which candidates cannot be reached at all. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::model::{Candidate, Condition, HostDevice, Reach, Snapshot};
use crate::net::frontends::is_link_local;
use crate::net::netlink::Devices;

/// The candidates as they can be served from these interfaces, and sentences for the user about what
/// is left out or different.
#[must_use]
pub fn settle(
    snapshot: &Snapshot,
    devices: &Devices,
    interfaces: &[String],
) -> (Snapshot, Vec<String>) {
    let own = own_addresses(devices, interfaces);
    let mut notes = BTreeSet::new();
    let mut candidates = Vec::new();
    let mut without_address: BTreeMap<&str, &str> = BTreeMap::new();
    for candidate in &snapshot.candidates {
        let mut settled = candidate.clone();
        let name = candidate.name.as_str();
        let trouble = match candidate.place {
            Some(Reach::Host) => {
                let family = usize::from(candidate.endpoint.is_ipv6());
                let Some(address) = own[family] else {
                    without_address.insert(name, &candidate.id);
                    continue;
                };
                settled.endpoint = SocketAddr::new(address, candidate.endpoint.port());
                None
            }
            Some(Reach::Macvlan(place)) => {
                if matches!(candidate.condition, Condition::Checked(_)) {
                    settled.condition = Condition::Unchecked;
                    notes.insert(format!(
                        "{name} is in a macvlan network, where this machine itself cannot ask it \
                         how it is: it serves immediately, unless it has a HEALTHCHECK; clients on \
                         this machine and in its bridge networks get other backends only"
                    ));
                }
                if settled.condition == Condition::Ready {
                    settled.condition = Condition::Unchecked;
                }
                parent_trouble(place, devices, interfaces)
            }
            Some(Reach::Ipvlan) => Some(
                "it is in an ipvlan network, which samport cannot serve; use macvlan or a bridge"
                    .to_owned(),
            ),
            Some(Reach::Elsewhere) => Some(
                "its network ends in another network namespace than samport's (rootless Podman, or an \
                 engine inside of a container); run the container rootful, or samport beside its engine"
                    .to_owned(),
            ),
            None if candidate.endpoint.ip().is_unspecified() => Some(
                "it was started with --network host, but that host is not the network namespace samport \
                 runs in; run samport there"
                    .to_owned(),
            ),
            Some(Reach::Veth(_) | Reach::Node(_)) | None => None,
        };
        settled.egress.leads_out = leads_out(candidate, devices, interfaces);
        if trouble.is_none() && settled.egress.leads_out == Some(false) {
            notes.insert(no_way_back(name, candidate.endpoint.is_ipv6()));
        }
        match trouble {
            None => candidates.push(settled),
            Some(trouble) => {
                notes.insert(format!("{name} is not served: {trouble}"));
            }
        }
    }
    for (name, id) in without_address {
        if candidates.iter().all(|candidate| candidate.id != id) {
            notes.insert(format!(
                "{name} is not served: it was started with --network host, and {} has no address to \
                 reach it by",
                interfaces.join(", ")
            ));
        }
    }
    (Snapshot { candidates, ..*snapshot }, notes.into_iter().collect())
}

/// The message about a container whose answers reach no client outside of this machine.
pub(crate) fn no_way_back(name: &str, v6: bool) -> String {
    let family = if v6 { "IPv6" } else { "IPv4" };
    format!(
        "{name} has no {family} route to clients outside of this machine, which get no answer from it: its network \
         is internal, or it has no default route; connect it to a network with a gateway, too, or give it a route \
         (clients on this machine are served)"
    )
}

/// Whether a candidate's routes lead out of its networks, if that is known and matters: outside clients may be on
/// its own segment.
pub(crate) fn leads_out(
    candidate: &Candidate,
    devices: &Devices,
    interfaces: &[String],
) -> Option<bool> {
    let Some(Reach::Veth(place)) = candidate.place else { return None };
    let master = devices.get(&place.ifindex).and_then(|device| device.master);
    let bridge = master.and_then(|master| devices.get(&master));
    let is_outer = |name: &String| interfaces.contains(name);
    let is_on_segment = bridge.is_some_and(|bridge| is_outer(&bridge.name))
        || devices.get(&place.ifindex).is_some_and(|device| is_outer(&device.name));
    // Without such an address no outside client gets here.
    let is_served =
        own_addresses(devices, interfaces)[usize::from(candidate.endpoint.is_ipv6())].is_some();
    candidate.egress.leads_out.filter(|_| !is_on_segment && is_served)
}

/// By family, IPv4 first, the first address of the interfaces clients come in by.
fn own_addresses(devices: &Devices, interfaces: &[String]) -> [Option<IpAddr>; 2] {
    let of = |name: &String| devices.values().find(|device| device.name == *name);
    let all = || {
        let addresses = interfaces.iter().filter_map(of).flat_map(|device| &device.addresses);
        addresses.copied().filter(|addr| !is_link_local(*addr))
    };
    [all().find(IpAddr::is_ipv4), all().find(IpAddr::is_ipv6)]
}

/// Why a macvlan child of this parent cannot be served, if it cannot.
fn parent_trouble(place: HostDevice, devices: &Devices, interfaces: &[String]) -> Option<String> {
    let parent = devices.get(&place.ifindex).map_or("a device that is gone", |d| d.name.as_str());
    let served = interfaces.iter().any(|name| name == parent);
    (!served).then(|| {
        format!(
            "its macvlan network is on {parent}, and only clients that come in there can reach it; \
             serve that interface with -i, or take a bridge network"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::{Config, Method};
    use crate::model::ports::Listen;
    use crate::model::{Egress, ServiceHints};
    use crate::net::netlink::Device;

    fn devices() -> Devices {
        let device = |ifindex, name: &str, addresses: &[&str]| Device {
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            ..Device::named(ifindex, name)
        };
        [
            device(1, "lo", &["127.0.0.1", "::1"]),
            device(2, "eth0", &["192.0.2.1", "192.0.2.9", "fe80::1", "2001:db8::1"]),
            device(3, "eth1", &["198.51.100.1"]),
            Device { master: Some(2), ..device(7, "veth7", &[]) },
        ]
        .into_iter()
        .map(|device| (device.ifindex, device))
        .collect()
    }

    fn candidate(endpoint: &str, place: Option<Reach>) -> Candidate {
        Candidate {
            id: "c1".into(),
            name: "web".into(),
            listen: Listen::tcp(80),
            endpoint: endpoint.parse().unwrap(),
            weight: 1,
            drain: None,
            condition: Config::default().checked(Method::Tcp),
            allow: BTreeSet::new(),
            hints: ServiceHints::default(),
            place,
            egress: Egress::default(),
            started: None,
        }
    }

    fn settled(candidates: &[Candidate], interfaces: &[&str]) -> (Vec<String>, String) {
        let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let snapshot = Snapshot { candidates: candidates.to_vec(), generation: 0 };
        let (snapshot, notes) = settle(&snapshot, &devices(), &interfaces);
        let endpoints = snapshot.candidates.iter().map(|c| c.endpoint.to_string()).collect();
        (endpoints, notes.join("\n"))
    }

    #[test]
    fn a_container_on_the_hosts_network_has_the_first_address_of_each_family() {
        let both = ["0.0.0.0:9090", "[::]:9090"].map(|at| candidate(at, Some(Reach::Host)));
        let (endpoints, notes) = settled(&both, &["eth0", "eth1"]);
        assert_eq!(endpoints, ["192.0.2.1:9090", "[2001:db8::1]:9090"]);
        assert_eq!(notes, "");
        let (endpoints, notes) = settled(&both, &["eth1"]);
        assert_eq!(endpoints, ["198.51.100.1:9090"]);
        assert_eq!(notes, "", "one family is enough");
        let (endpoints, notes) = settled(&both, &["eth7"]);
        assert!(endpoints.is_empty() && notes.contains("eth7 has no address"), "{notes}");
        let (endpoints, notes) = settled(&[candidate("0.0.0.0:9090", None)], &["eth0"]);
        assert!(endpoints.is_empty() && notes.contains("not the network namespace"), "{notes}");
    }

    #[test]
    fn a_macvlan_child_is_served_from_its_parent_without_being_asked() {
        let child = candidate(
            "192.0.2.77:80",
            Some(Reach::Macvlan(HostDevice { ifindex: 2, mac: [2; 6], polls: false })),
        );
        let snapshot = Snapshot { candidates: vec![child.clone()], generation: 0 };
        let (served, notes) = settle(&snapshot, &devices(), &["eth0".to_owned()]);
        assert_eq!(served.candidates[0].condition, Condition::Unchecked);
        assert!(notes[0].contains("cannot ask it"), "{notes:?}");
        let (endpoints, notes) = settled(&[child], &["eth1"]);
        assert!(endpoints.is_empty() && notes.contains("macvlan network is on eth0"), "{notes}");
    }

    /// Case 87: a network without a gateway, or a container without a default route.
    #[test]
    fn a_container_without_a_route_back_is_named_and_served() {
        let place = HostDevice { ifindex: 9, mac: [2; 6], polls: false };
        let of = |endpoint: &str, reach, leads_out, interfaces: &[&str]| {
            let egress = Egress { leads_out, ..Egress::default() };
            let one = Candidate { egress, ..candidate(endpoint, Some(reach)) };
            settled(&[one], interfaces)
        };
        let veth = Reach::Veth(place);
        for (endpoint, reach, leads_out, interfaces, is_said) in [
            ("10.0.0.2:80", veth, Some(false), &["eth0"][..], true),
            ("10.0.0.2:80", veth, Some(true), &["eth0"], false),
            ("10.0.0.2:80", veth, None, &["eth0"], false),
            ("[2001:db8:9::2]:80", veth, Some(false), &["eth0"], true),
            // No client comes in there by IPv6.
            ("[2001:db8:9::2]:80", veth, Some(false), &["eth1"], false),
            // Clients are on its own segment.
            (
                "192.0.2.7:80",
                Reach::Veth(HostDevice { ifindex: 2, ..place }),
                Some(false),
                &["eth0"],
                false,
            ),
            (
                "192.0.2.7:80",
                Reach::Veth(HostDevice { ifindex: 7, ..place }),
                Some(false),
                &["eth0"],
                false,
            ),
            (
                "192.0.2.7:80",
                Reach::Macvlan(HostDevice { ifindex: 2, ..place }),
                Some(false),
                &["eth0"],
                false,
            ),
        ] {
            let (endpoints, notes) = of(endpoint, reach, leads_out, interfaces);
            assert_eq!(endpoints, [endpoint]);
            let has_said = notes.contains("web has no IPv") && notes.contains("; connect it");
            assert_eq!(has_said, is_said, "{endpoint} {reach:?} {leads_out:?}: {notes}");
        }
    }

    /// Case 87: rootless Podman, seen by where its containers' interfaces end.
    #[test]
    fn what_cannot_be_reached_is_named() {
        for (reach, expected) in [(Reach::Ipvlan, "ipvlan"), (Reach::Elsewhere, "rootless Podman")]
        {
            let (endpoints, notes) = settled(&[candidate("10.0.0.2:80", Some(reach))], &["eth0"]);
            assert!(endpoints.is_empty() && notes.contains(expected), "{notes}");
        }
        let veth = Reach::Veth(HostDevice { ifindex: 9, mac: [2; 6], polls: false });
        for place in [None, Some(veth)] {
            let (endpoints, notes) = settled(&[candidate("10.0.0.2:80", place)], &["eth0"]);
            assert_eq!((endpoints.len(), notes.as_str()), (1, ""));
        }
    }
}

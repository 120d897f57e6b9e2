//! What a candidate's [`Site`] means on this machine: which address a container in the host's own
//! network answers on, and which candidates cannot be reached at all. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::frontends::is_link_local;
use crate::model::{Condition, Place, Site, Snapshot};
use crate::netlink::Devices;

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
            Some(Site::Host) => {
                let family = usize::from(candidate.endpoint.is_ipv6());
                let Some(address) = own[family] else {
                    without_address.insert(name, &candidate.id);
                    continue;
                };
                settled.endpoint = SocketAddr::new(address, candidate.endpoint.port());
                None
            }
            Some(Site::Macvlan(place)) => {
                if matches!(candidate.condition, Condition::Checked(_)) {
                    settled.condition = Condition::Ready;
                    notes.insert(format!(
                        "{name} is in a macvlan network, where this machine itself cannot ask it \
                         how it is: it serves at once, unless it has a HEALTHCHECK; clients on \
                         this machine and in its bridge networks get other backends only"
                    ));
                }
                parent_trouble(place, devices, interfaces)
            }
            Some(Site::Ipvlan) => Some(
                "it is in an ipvlan network, which samport cannot serve; use macvlan or a bridge"
                    .to_owned(),
            ),
            Some(Site::Elsewhere) => Some(
                "its network ends in another network namespace than samport's (rootless Podman, or an \
                 engine inside of a container); run the container rootful, or samport beside its engine"
                    .to_owned(),
            ),
            None if candidate.endpoint.ip().is_unspecified() => Some(
                "it was started with --network host, but that host is not the network namespace samport \
                 runs in; run samport there"
                    .to_owned(),
            ),
            Some(Site::Veth(_)) | None => None,
        };
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
    (Snapshot { candidates }, notes.into_iter().collect())
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
fn parent_trouble(place: Place, devices: &Devices, interfaces: &[String]) -> Option<String> {
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
    use crate::health::spec::{Config, Method};
    use crate::model::{Candidate, Wishes};
    use crate::netlink::Device;
    use crate::ports::Listen;

    fn devices() -> Devices {
        let device = |ifindex, name: &str, addresses: &[&str]| Device {
            ifindex,
            name: name.to_owned(),
            is_veth: false,
            is_bridge: false,
            is_ethernet: true,
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
        };
        [
            device(1, "lo", &["127.0.0.1", "::1"]),
            device(2, "eth0", &["192.0.2.1", "192.0.2.9", "fe80::1", "2001:db8::1"]),
            device(3, "eth1", &["198.51.100.1"]),
        ]
        .into_iter()
        .map(|device| (device.ifindex, device))
        .collect()
    }

    fn candidate(endpoint: &str, place: Option<Site>) -> Candidate {
        Candidate {
            id: "c1".into(),
            name: "web".into(),
            listen: Listen::tcp(80),
            endpoint: endpoint.parse().unwrap(),
            weight: 1,
            drain: None,
            condition: Config::default().checked(Method::Tcp),
            allow: BTreeSet::new(),
            wishes: Wishes::default(),
            place,
            started: None,
        }
    }

    fn settled(candidates: &[Candidate], interfaces: &[&str]) -> (Vec<String>, String) {
        let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let snapshot = Snapshot { candidates: candidates.to_vec() };
        let (snapshot, notes) = settle(&snapshot, &devices(), &interfaces);
        let endpoints = snapshot.candidates.iter().map(|c| c.endpoint.to_string()).collect();
        (endpoints, notes.join("\n"))
    }

    #[test]
    fn a_container_on_the_hosts_network_has_the_first_address_of_each_family() {
        let both = ["0.0.0.0:9090", "[::]:9090"].map(|at| candidate(at, Some(Site::Host)));
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
            Some(Site::Macvlan(Place { ifindex: 2, mac: [2; 6], polls: false })),
        );
        let snapshot = Snapshot { candidates: vec![child.clone()] };
        let (served, notes) = settle(&snapshot, &devices(), &["eth0".to_owned()]);
        assert_eq!(served.candidates[0].condition, Condition::Ready);
        assert!(notes[0].contains("cannot ask it"), "{notes:?}");
        let (endpoints, notes) = settled(&[child], &["eth1"]);
        assert!(endpoints.is_empty() && notes.contains("macvlan network is on eth0"), "{notes}");
    }

    /// Case 87: rootless Podman, seen by where its containers' interfaces end.
    #[test]
    fn what_cannot_be_reached_is_named() {
        for (site, expected) in [(Site::Ipvlan, "ipvlan"), (Site::Elsewhere, "rootless Podman")] {
            let (endpoints, notes) = settled(&[candidate("10.0.0.2:80", Some(site))], &["eth0"]);
            assert!(endpoints.is_empty() && notes.contains(expected), "{notes}");
        }
        let veth = Site::Veth(Place { ifindex: 9, mac: [2; 6], polls: false });
        for place in [None, Some(veth)] {
            let (endpoints, notes) = settled(&[candidate("10.0.0.2:80", place)], &["eth0"]);
            assert_eq!((endpoints.len(), notes.as_str()), (1, ""));
        }
    }
}

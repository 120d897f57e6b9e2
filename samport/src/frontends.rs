//! Which addresses of this machine are served, and to whom. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use samport_common::layout::{MAX_FRONTENDS, Scope};

use crate::netlink::Devices;

/// The addresses to be served.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Addresses {
    /// Each, and to whom.
    pub served: BTreeMap<IpAddr, Scope>,
    /// How many others there is no room for, by family: IPv4, IPv6.
    pub left_out: [usize; 2],
}

/// The addresses of the interfaces clients come in by for everybody, all others of this machine for
/// those inside it; as many of these as `ports` ports leave room for.
#[must_use]
pub fn addresses(devices: &Devices, interfaces: &[String], ports: usize) -> Addresses {
    let (outer, others): (Vec<_>, Vec<_>) =
        devices.values().partition(|device| interfaces.contains(&device.name));
    let everybody: BTreeSet<IpAddr> =
        outer.iter().flat_map(|device| device.addresses.iter().copied()).collect();
    let inside: BTreeSet<IpAddr> = others
        .iter()
        .flat_map(|device| device.addresses.iter().copied())
        .filter(|addr| !is_link_local(*addr) && !everybody.contains(addr))
        .collect();
    // What every program expects comes first, where there is no room for all.
    let local = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let inside = local.into_iter().chain(inside.into_iter().filter(|addr| !local.contains(addr)));

    let mut addresses = Addresses::default();
    let mut room = [MAX_FRONTENDS as usize / ports.max(1); 2];
    for addr in everybody {
        let room = &mut room[usize::from(addr.is_ipv6())];
        *room = room.saturating_sub(1);
        addresses.served.insert(addr, Scope::Everybody);
    }
    for addr in inside {
        let family = usize::from(addr.is_ipv6());
        if room[family] == 0 {
            addresses.left_out[family] += 1;
        } else {
            room[family] -= 1;
            addresses.served.entry(addr).or_insert(Scope::Inside);
        }
    }
    addresses
}

impl Addresses {
    /// What is left out, in words, if anything is.
    #[must_use]
    pub fn complaint(&self, ports: usize) -> Option<String> {
        let families = ["IPv4", "IPv6"].into_iter().zip(self.left_out);
        let missing: Vec<_> = families
            .filter(|(_, count)| *count > 0)
            .map(|(family, count)| format!("{count} {family}"))
            .collect();
        (!missing.is_empty()).then(|| {
            format!(
                "{} addresses of this machine are not served to clients inside it: addresses times \
                 ports ({ports}) may be {MAX_FRONTENDS} of each family; the addresses of the -i \
                 interfaces go first",
                missing.join(" and ")
            )
        })
    }
}

/// An address that may be on many links at once, and says nothing without one.
pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Device;

    fn devices(list: &[(&str, &[&str])]) -> Devices {
        let device = |(ifindex, (name, addresses)): (u32, &(&str, &[&str]))| Device {
            ifindex,
            name: (*name).to_owned(),
            is_veth: false,
            is_bridge: false,
            is_ethernet: true,
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
        };
        (1..).zip(list).map(device).map(|device| (device.ifindex, device)).collect()
    }

    fn of(list: &[(&str, &[&str])]) -> Vec<(String, Scope)> {
        let found = addresses(&devices(list), &["eth0".to_owned()], 2);
        assert_eq!(found.left_out, [0, 0]);
        found.served.into_iter().map(|(addr, scope)| (addr.to_string(), scope)).collect()
    }

    fn expected(everybody: &[&str], inside: &[&str]) -> Vec<(String, Scope)> {
        let with = |list: &[&str], scope| -> Vec<(IpAddr, Scope)> {
            list.iter().map(|addr| (addr.parse().unwrap(), scope)).collect()
        };
        let all = [with(everybody, Scope::Everybody), with(inside, Scope::Inside)].concat();
        let all: BTreeMap<_, _> = all.into_iter().collect();
        all.into_iter().map(|(addr, scope)| (addr.to_string(), scope)).collect()
    }

    #[test]
    fn the_interfaces_addresses_are_everybodys_and_the_others_are_for_those_inside() {
        let devices: [(&str, &[&str]); 3] = [
            ("lo", &["127.0.0.1", "127.0.0.2", "::1"]),
            ("eth0", &["192.0.2.1", "2001:db8::1", "fe80::1"]),
            ("docker0", &["172.17.0.1", "fd00::1", "fe80::2"]),
        ];
        let everybody = ["192.0.2.1", "2001:db8::1", "fe80::1"];
        let inside = ["127.0.0.1", "127.0.0.2", "::1", "172.17.0.1", "fd00::1"];
        assert_eq!(of(&devices), expected(&everybody, &inside));
    }

    #[test]
    fn an_address_on_both_is_everybodys_and_this_machines_own_is_always_there() {
        assert_eq!(
            of(&[("eth0", &["192.0.2.1"]), ("eth1", &["192.0.2.1", "10.0.0.1"])]),
            expected(&["192.0.2.1"], &["127.0.0.1", "::1", "10.0.0.1"])
        );
        assert_eq!(of(&[]), expected(&[], &["127.0.0.1", "::1"]));
    }

    #[test]
    fn where_there_is_no_room_everybodys_addresses_win() {
        let many = |from: u8, count: u16| -> BTreeSet<IpAddr> {
            (0..count).map(|n| [10, from, n.to_be_bytes()[0], n.to_be_bytes()[1]].into()).collect()
        };
        let mut devices = devices(&[("eth0", &[]), ("docker0", &["172.17.0.1", "fd00::1"])]);
        devices.get_mut(&1).unwrap().addresses = many(1, 2_046);
        let full = addresses(&devices, &["eth0".to_owned()], 2);
        assert_eq!((full.left_out, full.complaint(2)), ([0, 0], None));

        devices.get_mut(&2).unwrap().addresses.extend(many(2, 100));
        let found = addresses(&devices, &["eth0".to_owned()], 2);
        assert_eq!(found.left_out, [100, 0]);
        let served = |scope| found.served.values().filter(|served| **served == scope).count();
        // Of the other family everything is served, and 127.0.0.1 and one more of this one.
        assert_eq!((served(Scope::Everybody), served(Scope::Inside)), (2_046, 4));
        assert!(found.served.contains_key(&IpAddr::from([127, 0, 0, 1])));
        let complaint = found.complaint(2).unwrap();
        assert!(complaint.starts_with("100 IPv4 addresses of this machine"), "{complaint}");
        assert!(complaint.contains("4096"), "{complaint}");

        devices.get_mut(&1).unwrap().addresses = many(1, 2_049);
        let found = addresses(&devices, &["eth0".to_owned()], 2);
        assert!(!found.served.contains_key(&IpAddr::from([127, 0, 0, 1])));
        assert_eq!(found.left_out, [102, 0], "the plan refuses what is left");
    }
}

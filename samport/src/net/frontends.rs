//! Which addresses of this machine are served, and to whom. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use samport_common::layout::{MAX_FRONTENDS, Scope};

use crate::model::ports::Listen;
use crate::net::netlink::Devices;
use crate::system::exit::{Exit, coded};

/// What each port is served on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fronts {
    /// The addresses of each port, and to whom.
    pub on: BTreeMap<Listen, BTreeMap<IpAddr, Scope>>,
    /// What is not served, in words.
    pub complaints: Vec<String>,
}

/// Gives each port its addresses: its own, if the machine has that, or else all that no other service of
/// the port is given.
#[must_use]
pub fn assign(devices: &Devices, interfaces: &[String], listens: &BTreeSet<Listen>) -> Fronts {
    let given = listens.iter().filter(|listen| listen.addr.is_some()).count();
    let everywhere = listens.len() - given;
    let room = (MAX_FRONTENDS as usize).saturating_sub(given) / everywhere.max(1);
    let addresses = addresses(devices, interfaces, room);
    let mut fronts = Fronts::default();
    if everywhere > 0 {
        fronts.complaints.extend(addresses.complaint(everywhere));
        fronts.complaints.extend(addresses.outer_complaint(everywhere));
    }
    for listen in listens {
        let on = match listen.addr {
            Some(addr) => {
                scope_of(devices, interfaces, addr).map(|scope| (addr, scope)).into_iter().collect()
            }
            None => addresses.without_given(*listen, listens),
        };
        if listen.addr.is_some() && on.is_empty() {
            fronts.complaints.push(format!(
                "{} is not served: no interface of this machine has that address; it is served when one \
                 gets it",
                listen.brief()
            ));
        }
        fronts.on.insert(*listen, on);
    }
    fronts
}

/// How many addresses every port is served on to everybody, by family: IPv4, IPv6.
#[must_use]
pub fn outer_addresses(devices: &Devices, interfaces: &[String]) -> [usize; 2] {
    let outer = devices.values().filter(|device| interfaces.contains(&device.name));
    let all: BTreeSet<IpAddr> = outer.flat_map(|device| device.addresses.iter().copied()).collect();
    let v6 = all.iter().filter(|addr| addr.is_ipv6()).count();
    [all.len() - v6, v6]
}

/// Whether clients may come by these interfaces over IPv6.
#[must_use]
pub fn serve_ipv6(interfaces: &[String], devices: &Devices) -> bool {
    let served = devices.values().filter(|device| interfaces.contains(&device.name));
    let mut addresses = served.flat_map(|device| &device.addresses);
    addresses.any(|addr| addr.is_ipv6() && !is_link_local(*addr))
}

/// Whether there is room for all ports of `-p` on all addresses that clients dial.
///
/// # Errors
/// Says how many that would be.
pub fn check_room(
    devices: &Devices,
    interfaces: &[String],
    listens: &BTreeSet<Listen>,
) -> Result<()> {
    let everywhere = listens.iter().filter(|listen| listen.addr.is_none()).count();
    for (addresses, family) in
        outer_addresses(devices, interfaces).into_iter().zip(["IPv4", "IPv6"])
    {
        let places = everywhere * addresses;
        if places > MAX_FRONTENDS as usize {
            let message = format!(
                "{everywhere} ports on all their {family} addresses are {places} places to serve, more than \
                 the {MAX_FRONTENDS} there is room for; serve fewer ports, or fewer interfaces"
            );
            return Err(coded(Exit::Failure, message));
        }
    }
    Ok(())
}

/// To whom an address is served, if it is one of this machine's.
fn scope_of(devices: &Devices, interfaces: &[String], addr: IpAddr) -> Option<Scope> {
    let mut holders = devices.values().filter(|device| device.addresses.contains(&addr)).peekable();
    let inside = addr.is_loopback() || holders.peek().is_some() && !is_link_local(addr);
    if holders.any(|device| interfaces.contains(&device.name)) {
        return Some(Scope::External);
    }
    inside.then_some(Scope::Internal)
}

/// The addresses to be served.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Addresses {
    /// Each, and to whom.
    served: BTreeMap<IpAddr, Scope>,
    /// How many others there is no room for, by family: IPv4, IPv6.
    left_out: [usize; 2],
    /// Those of them that are everybody's.
    outer_left_out: BTreeSet<IpAddr>,
}

/// The addresses of the interfaces clients come in by for everybody, all others of this machine for
/// those inside it; as many of these as there is room for.
fn addresses(devices: &Devices, interfaces: &[String], room: usize) -> Addresses {
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
    let mut room = [room; 2];
    for addr in everybody {
        let family = usize::from(addr.is_ipv6());
        if room[family] == 0 {
            addresses.outer_left_out.insert(addr);
        } else {
            room[family] -= 1;
            addresses.served.insert(addr, Scope::External);
        }
    }
    for addr in inside {
        let family = usize::from(addr.is_ipv6());
        if room[family] == 0 {
            addresses.left_out[family] += 1;
        } else {
            room[family] -= 1;
            addresses.served.entry(addr).or_insert(Scope::Internal);
        }
    }
    addresses
}

impl Addresses {
    /// Those of a port that its other services are not given.
    fn without_given(&self, listen: Listen, listens: &BTreeSet<Listen>) -> BTreeMap<IpAddr, Scope> {
        let all = self.served.iter().map(|(addr, scope)| (*addr, *scope));
        all.filter(|(addr, _)| !listens.contains(&listen.at(*addr))).collect()
    }

    /// What of everybody's is left out, in words, if anything is.
    fn outer_complaint(&self, ports: usize) -> Option<String> {
        let (first, last) = (self.outer_left_out.first()?, self.outer_left_out.last()?);
        let count = self.outer_left_out.len();
        let which = if count == 1 { first.to_string() } else { format!("{first} to {last}") };
        Some(format!(
            "{count} addresses of the -i interfaces are not served ({which}): addresses times ports ({ports}) may \
             be {MAX_FRONTENDS} of each family; serve fewer ports, or fewer interfaces"
        ))
    }

    /// What of those inside is left out, in words, if anything is.
    fn complaint(&self, ports: usize) -> Option<String> {
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

/// An address that may be on many links, and says nothing without one.
pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netlink::Device;

    fn devices(list: &[(&str, &[&str])]) -> Devices {
        let device = |(ifindex, (name, addresses)): (u32, &(&str, &[&str]))| Device {
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            ..Device::named(ifindex, name)
        };
        (1..).zip(list).map(device).map(|device| (device.ifindex, device)).collect()
    }

    fn of(list: &[(&str, &[&str])]) -> Vec<(String, Scope)> {
        let found = addresses(&devices(list), &["eth0".to_owned()], 2_048);
        assert_eq!(found.left_out, [0, 0]);
        found.served.into_iter().map(|(addr, scope)| (addr.to_string(), scope)).collect()
    }

    fn expected(everybody: &[&str], inside: &[&str]) -> Vec<(String, Scope)> {
        let with = |list: &[&str], scope| -> Vec<(IpAddr, Scope)> {
            list.iter().map(|addr| (addr.parse().unwrap(), scope)).collect()
        };
        let all = [with(everybody, Scope::External), with(inside, Scope::Internal)].concat();
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
        let full = addresses(&devices, &["eth0".to_owned()], 2_048);
        assert_eq!((full.left_out, full.complaint(2)), ([0, 0], None));

        devices.get_mut(&2).unwrap().addresses.extend(many(2, 100));
        let found = addresses(&devices, &["eth0".to_owned()], 2_048);
        assert_eq!(found.left_out, [100, 0]);
        let served = |scope| found.served.values().filter(|served| **served == scope).count();
        // Of the other family everything is served, and 127.0.0.1 and one more of this one.
        assert_eq!((served(Scope::External), served(Scope::Internal)), (2_046, 4));
        assert!(found.served.contains_key(&IpAddr::from([127, 0, 0, 1])));
        let complaint = found.complaint(2).unwrap();
        assert!(complaint.starts_with("100 IPv4 addresses of this machine"), "{complaint}");
        assert!(complaint.contains("4096"), "{complaint}");

        devices.get_mut(&1).unwrap().addresses = many(1, 2_049);
        let found = addresses(&devices, &["eth0".to_owned()], 2_048);
        assert!(!found.served.contains_key(&IpAddr::from([127, 0, 0, 1])));
        assert_eq!((found.left_out, served_to_all(&found)), ([102, 0], 2_048));
        let complaint = found.outer_complaint(2).unwrap();
        assert!(complaint.contains("1 addresses") && complaint.contains("10.1.8.0"), "{complaint}");
    }

    fn served_to_all(found: &Addresses) -> usize {
        found.served.values().filter(|scope| **scope == Scope::External).count()
    }

    #[test]
    fn more_addresses_times_ports_than_the_kernel_holds_are_refused_at_the_start() {
        let mut devices = devices(&[("eth0", &["2001:db8::1"])]);
        let many = |count: u16| {
            (0..count).map(|n| IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]))
        };
        let (interfaces, listens) = (["eth0".to_owned()], ["80", "443", "10.1.0.1:80"]);
        let listens = listens.map(|text| text.parse().unwrap()).into();
        devices.get_mut(&1).unwrap().addresses.extend(many(2_048));
        assert_eq!(outer_addresses(&devices, &interfaces), [2_048, 1]);
        check_room(&devices, &interfaces, &listens).unwrap();
        devices.get_mut(&1).unwrap().addresses.extend(many(2_049));
        let error = check_room(&devices, &interfaces, &listens).unwrap_err().to_string();
        assert!(error.contains("2 ports on all their IPv4 addresses are 4098"), "{error}");
    }

    fn shown(fronts: &Fronts) -> Vec<String> {
        let one = |listen: &Listen, (addr, scope): (&IpAddr, &Scope)| {
            let everybody = if *scope == Scope::External { " to everybody" } else { "" };
            format!("{} on {addr}{everybody}", listen.brief())
        };
        fronts.on.iter().flat_map(|(listen, on)| on.iter().map(|to| one(listen, to))).collect()
    }

    #[test]
    fn an_address_that_is_given_is_taken_from_the_port_everywhere() {
        let devices = devices(&[
            ("eth0", &["192.0.2.1", "192.0.2.7", "2001:db8::7", "fe80::1"]),
            ("br0", &["10.0.0.1", "fe80::2"]),
        ]);
        let listens = ["80", "192.0.2.7:80", "[2001:db8::7]:80/udp", "127.0.0.9:80", "10.0.0.1:81"];
        let listens = listens.map(|text| text.parse().unwrap()).into();
        let fronts = assign(&devices, &["eth0".to_owned()], &listens);
        assert_eq!(fronts.complaints, [""; 0]);
        let mut on = shown(&fronts);
        on.sort();
        assert_eq!(
            on,
            [
                "10.0.0.1:81 on 10.0.0.1",
                "127.0.0.9:80 on 127.0.0.9",
                "192.0.2.7:80 on 192.0.2.7 to everybody",
                "80 on 10.0.0.1",
                "80 on 127.0.0.1",
                "80 on 192.0.2.1 to everybody",
                "80 on 2001:db8::7 to everybody",
                "80 on ::1",
                "80 on fe80::1 to everybody",
                "[2001:db8::7]:80/udp on 2001:db8::7 to everybody",
            ]
        );
    }

    #[test]
    fn an_address_the_machine_has_not_is_waited_for_and_named() {
        let listens = ["192.0.2.9:80", "[fe80::2]:80"].map(|text| text.parse().unwrap()).into();
        let interfaces = ["eth0".to_owned()];
        let fronts =
            assign(&devices(&[("eth0", &[]), ("br0", &["fe80::2"])]), &interfaces, &listens);
        assert_eq!(shown(&fronts), [""; 0]);
        assert_eq!((fronts.on.len(), fronts.complaints.len()), (2, 2));
        assert!(fronts.complaints[0].starts_with("192.0.2.9:80 is not served"), "{fronts:?}");
        let later = assign(&devices(&[("eth0", &["192.0.2.9", "fe80::2"])]), &interfaces, &listens);
        assert_eq!(shown(&later).len(), 2);
        assert_eq!(later.complaints, [""; 0]);
    }

    #[test]
    fn a_given_address_takes_the_room_of_one_place() {
        let mut devices = devices(&[("eth0", &[])]);
        let many = (0..4_100_u16).map(|n| [10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]].into());
        devices.get_mut(&1).unwrap().addresses = many.collect();
        let listens =
            ["80", "10.1.0.1:80", "10.1.0.2:443"].map(|text| text.parse().unwrap()).into();
        let fronts = assign(&devices, &["eth1".to_owned()], &listens);
        let places: usize =
            fronts.on.values().flat_map(BTreeMap::keys).filter(|a| a.is_ipv4()).count();
        assert!((4_090..=MAX_FRONTENDS as usize).contains(&places), "{places}");
        assert_eq!(fronts.complaints.len(), 1);
        let alone = ["10.1.0.1:80"].map(|text| text.parse().unwrap()).into();
        assert_eq!(assign(&devices, &["eth1".to_owned()], &alone).complaints, [""; 0]);
    }
}

//! The other samports of this machine. Two that serve one port on different interfaces both mean the
//! machine's other addresses too: each of these is served by one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use samport_common::layout::Scope;

use crate::model::ports::Listen;
use crate::net::netlink::Devices;
use crate::system::instance::{self, Record};

/// Those that run, by name.
#[derive(Default)]
pub struct Peers(BTreeMap<String, Record>);

impl Peers {
    /// Those that run in a network namespace, but for the one of this name.
    #[must_use]
    pub fn running(name: &str, namespace: u64) -> Self {
        let others = instance::known().into_iter().filter(|other| other != name);
        let records = others.filter_map(|other| {
            let record = instance::read_record(&other).ok()?;
            (record.namespace == namespace && instance::is_running(&other))
                .then_some((other, record))
        });
        Self(records.collect())
    }

    /// Who keeps a port on the addresses inside of the machine that belong to no instance in particular: who had
    /// them first, or, of two that took them at the same time, the first by name.
    #[must_use]
    pub fn owner(&self, listen: Listen, us: &str, ours: &BTreeSet<Listen>) -> Option<(&str, u32)> {
        let comes_first = |name: &String| !ours.contains(&listen) || name.as_str() < us;
        let mut owners = self
            .0
            .iter()
            .filter(|(name, record)| record.inside.contains(&listen) && comes_first(name));
        owners.next().map(|(name, record)| (name.as_str(), record.pid))
    }

    /// Whether an address is another's by itself: it is given to it with the port, or is one of its
    /// interfaces', where it serves the port for everybody.
    #[must_use]
    pub fn owns(&self, listen: Listen, addr: IpAddr, scope: Scope, devices: &Devices) -> bool {
        self.0.values().any(|record| {
            record.ports.contains(&listen.at(addr))
                || scope == Scope::Internal
                    && record.ports.contains(&listen)
                    && is_on(&record.interfaces, addr, devices)
        })
    }
}

fn is_on(interfaces: &[String], addr: IpAddr, devices: &Devices) -> bool {
    devices
        .values()
        .any(|device| interfaces.contains(&device.name) && device.addresses.contains(&addr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netlink::Device;

    const WEB: Listen = Listen::tcp(80);

    fn peers(list: &[(&str, &[Listen], &[Listen])]) -> Peers {
        let record = |(name, ports, inside): &(&str, &[Listen], &[Listen])| {
            let (ports, inside) = (ports.to_vec(), inside.iter().copied().collect());
            let interfaces = vec!["eth1".to_owned()];
            ((*name).to_owned(), Record { pid: 7, interfaces, ports, inside, ..Record::default() })
        };
        Peers(list.iter().map(record).collect())
    }

    #[test]
    fn who_was_first_keeps_the_inside_and_of_two_at_once_the_first_by_name() {
        let others = peers(&[("b", &[WEB], &[WEB]), ("c", &[WEB], &[])]);
        assert_eq!(others.owner(WEB, "a", &[].into()), Some(("b", 7)));
        assert_eq!(others.owner(WEB, "d", &[].into()), Some(("b", 7)));
        assert_eq!(others.owner(WEB, "a", &[WEB].into()), None);
        assert_eq!(others.owner(WEB, "d", &[WEB].into()), Some(("b", 7)));
        assert_eq!(others.owner(Listen::udp(80), "d", &[].into()), None);
    }

    #[test]
    fn addresses_of_anothers_interfaces_and_those_given_to_it_are_its_own() {
        let addr = |text: &str| -> IpAddr { text.parse().unwrap() };
        let device = |ifindex, name: &str, on: &str| {
            (ifindex, Device { addresses: [addr(on)].into(), ..Device::named(ifindex, name) })
        };
        let devices = [device(1, "eth1", "10.0.0.1"), device(2, "br0", "10.1.0.1")].into();
        let given = Listen::tcp(443).at(addr("10.1.0.1"));
        let others = peers(&[("b", &[WEB, given], &[])]);
        let owns = |listen, on, scope| others.owns(listen, addr(on), scope, &devices);
        assert!(owns(WEB, "10.0.0.1", Scope::Internal));
        assert!(!owns(WEB, "10.0.0.1", Scope::External), "both have the address outside");
        assert!(!owns(WEB, "10.1.0.1", Scope::Internal));
        assert!(!owns(Listen::udp(80), "10.0.0.1", Scope::Internal));
        assert!(owns(Listen::tcp(443), "10.1.0.1", Scope::Internal));
        assert!(owns(Listen::tcp(443), "10.1.0.1", Scope::External));
        assert!(!owns(Listen::tcp(443), "10.0.0.1", Scope::Internal));
    }
}

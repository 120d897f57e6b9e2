//! What ports stand for: what spares the programs a look-up for each packet of an open flow.
//!
//! All of it follows from `SERVICES` and `REV_NAT`, and is never more than these say: whatever a port no
//! longer stands for is taken away before they change, and its new meaning is written after.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use samport_common::flow::ServiceId;
use samport_common::layout::{CachedPort, PortService, ReverseNat, Service, port_bit, service};
use samport_common::wire::protocol::Protocol;

use super::maps::MapCell;
use crate::model::ports::Listen;
use crate::plan::Source;

/// A port of a protocol, and whether it is meant over IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Port {
    bit: u32,
    v6: bool,
}

impl Port {
    fn new(protocol: Protocol, port: u16, ip: IpAddr) -> Self {
        Self { bit: port_bit(protocol, port), v6: ip.is_ipv6() }
    }
}

/// What stands on each port, and the services it belongs to; `None` for what only the long way knows.
#[derive(Debug)]
struct Uses<K> {
    ports: HashMap<Port, Used<K>>,
}

#[derive(Debug)]
struct Used<K> {
    by: BTreeMap<K, Vec<Option<u16>>>,
    /// How many there are of each service: a port may have ten thousand.
    counts: BTreeMap<Option<u16>, usize>,
}

impl<K: Ord> Uses<K> {
    fn new() -> Self {
        Self { ports: HashMap::new() }
    }

    /// Says what stands at a place of a port now; nothing if `services` is empty.
    fn set(&mut self, port: Port, place: K, services: Vec<Option<u16>>) {
        let used = self
            .ports
            .entry(port)
            .or_insert_with(|| Used { by: BTreeMap::new(), counts: BTreeMap::new() });
        for service in &services {
            *used.counts.entry(*service).or_default() += 1;
        }
        let before = if services.is_empty() {
            used.by.remove(&place)
        } else {
            used.by.insert(place, services)
        };
        for service in before.into_iter().flatten() {
            if let Some(count) = used.counts.get_mut(&service) {
                *count -= 1;
                if *count == 0 {
                    used.counts.remove(&service);
                }
            }
        }
        if used.by.is_empty() {
            self.ports.remove(&port);
        }
    }

    fn stands(&self, port: Port) -> PortService {
        let mut services = self.ports.get(&port).into_iter().flat_map(|used| used.counts.keys());
        match (services.next(), services.next()) {
            (None, _) => PortService::None,
            (Some(Some(only)), None) => {
                ServiceId::new(*only).map_or(PortService::Several, PortService::One)
            }
            (Some(_), _) => PortService::Several,
        }
    }
}

/// The shortcuts, and what they are made of.
pub(super) struct PortCache {
    map: Array<MapData, MapCell<CachedPort>>,
    listens: Uses<IpAddr>,
    answers: Uses<Source>,
}

impl PortCache {
    /// None yet.
    pub(super) fn new(map: Array<MapData, MapCell<CachedPort>>) -> Self {
        Self { map, listens: Uses::new(), answers: Uses::new() }
    }

    /// A frontend is there, is another's, or goes (`None`); `change` makes it so.
    pub(super) fn frontend(
        &mut self,
        addr: IpAddr,
        on: Listen,
        to: Option<&Service>,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let port = Port::new(on.protocol, on.port, addr);
        let service = to.map(|to| (to.flags & service::RESTRICTED == 0).then_some(to.id));
        let before = self.listens.stands(port);
        self.listens.set(port, addr, service.into_iter().collect());
        let after = self.listens.stands(port);
        self.around(port, before, after, |cached_port| &mut cached_port.listens, change)
    }

    /// A backend's endpoint is these services', or no service's any more; `change` makes it so.
    pub(super) fn reverse_nat(
        &mut self,
        of: Source,
        reverse_nat: Option<&ReverseNat>,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let port = Port::new(of.protocol, of.endpoint.port(), of.endpoint.ip());
        let reverse_nat = reverse_nat.into_iter().flat_map(|o| o.of.iter().take(o.len as usize));
        let services = reverse_nat.map(|entry| Some(entry.service)).collect();
        let before = self.answers.stands(port);
        self.answers.set(port, of, services);
        let after = self.answers.stands(port);
        self.around(port, before, after, |cached_port| &mut cached_port.answers, change)
    }

    fn around(
        &mut self,
        port: Port,
        before: PortService,
        after: PortService,
        which: impl Fn(&mut CachedPort) -> &mut [u16; 2],
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let meanwhile = match (before, after) {
            (before, after) if before == after => return change(),
            (_, PortService::None) | (PortService::None, _) => PortService::None,
            (_, _) => PortService::Several,
        };
        if before != meanwhile {
            self.write(port, &which, meanwhile)?;
        }
        change()?;
        if after != meanwhile {
            self.write(port, &which, after)?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        port: Port,
        which: impl Fn(&mut CachedPort) -> &mut [u16; 2],
        stands: PortService,
    ) -> Result<()> {
        let MapCell(mut cached_port) = self.map.get(&port.bit, 0).context("read PORT_CACHE")?;
        which(&mut cached_port)[usize::from(port.v6)] = stands.encode();
        self.map.set(port.bit, MapCell(cached_port), 0).context("write PORT_CACHE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u16) -> Port {
        Port::new(Protocol::Tcp, port, [192, 0, 2, 1].into())
    }

    fn only(id: u16) -> PortService {
        PortService::One(ServiceId::new(id).unwrap())
    }

    #[test]
    fn a_port_stands_for_a_service_while_it_is_the_only_one() {
        let mut uses = Uses::new();
        assert_eq!(uses.stands(port(80)), PortService::None);
        uses.set(port(80), "a", vec![Some(0)]);
        uses.set(port(80), "b", vec![Some(0)]);
        assert_eq!(uses.stands(port(80)), only(0));
        assert_eq!(uses.stands(port(81)), PortService::None);
        uses.set(port(80), "c", vec![Some(7)]);
        assert_eq!(uses.stands(port(80)), PortService::Several);
        uses.set(port(80), "a", vec![]);
        uses.set(port(80), "b", vec![Some(7)]);
        assert_eq!(uses.stands(port(80)), only(7));
        uses.set(port(80), "b", vec![]);
        uses.set(port(80), "c", vec![]);
        assert_eq!(uses.stands(port(80)), PortService::None);
        assert!(uses.ports.is_empty());
    }

    #[test]
    fn what_only_the_long_way_knows_has_no_shortcut() {
        let mut uses = Uses::new();
        uses.set(port(80), "a", vec![Some(1)]);
        uses.set(port(80), "b", vec![None]);
        assert_eq!(uses.stands(port(80)), PortService::Several);
        uses.set(port(80), "a", vec![]);
        assert_eq!(uses.stands(port(80)), PortService::Several);
        uses.set(port(80), "b", vec![Some(1), Some(2)]);
        assert_eq!(uses.stands(port(80)), PortService::Several, "one place of two services");
    }

    #[test]
    fn families_and_protocols_are_apart() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let mut uses = Uses::new();
        uses.set(port(80), "a", vec![Some(1)]);
        uses.set(Port::new(Protocol::Tcp, 80, v6), "b", vec![Some(2)]);
        uses.set(Port::new(Protocol::Udp, 80, v6), "c", vec![Some(3)]);
        assert_eq!(uses.stands(port(80)), only(1));
        assert_eq!(uses.stands(Port::new(Protocol::Tcp, 80, v6)), only(2));
    }

    #[test]
    fn what_a_map_holds_says_what_was_put_in() {
        for id in [0, 1, ServiceId::LIMIT - 1] {
            assert_eq!(PortService::decode(only(id).encode()), only(id));
        }
        for stands in [PortService::None, PortService::Several] {
            assert_eq!(PortService::decode(stands.encode()), stands);
        }
        assert_eq!(PortService::decode(ServiceId::LIMIT + 1), PortService::Several);
    }
}

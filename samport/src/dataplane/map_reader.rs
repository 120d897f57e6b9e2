//! Reading what an instance would do with a packet, also one that was killed: single entries of its pinned
//! maps.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData};
use samport_common::choose::{self, Load};
use samport_common::conntrack::TICK_SHIFT;
use samport_common::family::{Address, V4, V6};
use samport_common::flow::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Flow, FlowKey, ProbeSlot, ServiceId,
};
use samport_common::layout::{
    Backend, BackendLoad, DeviceInfo, DeviceSet, Evidence, Node, Service, Slots, Suspicion,
};
use samport_common::outbound::{Outbound, OutboundKey};
use samport_common::seed::Seed;
use samport_common::wire::protocol::Protocol;

use super::batch::HashTable;
use super::maps::{MapCell, open};
use super::{allowed, flows, pins, seed};
use crate::model::encode::wide;

/// What is known of a backend's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// What the kernel sends there.
    pub backend: Backend,
    /// How busy it is.
    pub load: Load,
    /// Until when new flows avoid it, in ticks.
    pub suspect_until: u32,
    /// The connections it has failed lately.
    pub evidence: Evidence,
}

/// The maps of one instance.
pub struct Answers {
    instance: String,
    backends: Array<MapData, MapCell<Backend>>,
    backend_load: Array<MapData, MapCell<BackendLoad>>,
    suspects: Array<MapData, MapCell<Suspicion>>,
    evidence: Array<MapData, MapCell<Evidence>>,
    open_correction: Array<MapData, u64>,
    /// The kernel programs' clock, when this was opened.
    pub now_ns: u64,
}

impl Answers {
    /// Opens the maps of an instance.
    pub fn open(instance: &str) -> Result<Self> {
        Ok(Self {
            instance: instance.to_owned(),
            backends: array(instance, "BACKENDS")?,
            backend_load: array(instance, "BACKEND_LOAD")?,
            suspects: array(instance, "SUSPECTS")?,
            evidence: array(instance, "EVIDENCE")?,
            open_correction: array(instance, "OPEN_CORRECTION")?,
            now_ns: flows::now_ns(),
        })
    }

    /// The clock in ticks.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "2³² ticks are 146 years")]
    pub const fn now_tick(&self) -> u32 {
        (self.now_ns >> TICK_SHIFT) as u32
    }

    /// The service at an address and port.
    pub fn service(&self, at: SocketAddr, protocol: Protocol) -> Result<Option<Service>> {
        Ok(match at.ip() {
            IpAddr::V4(ip) => self
                .table::<EndpointKey<[u8; 4]>, Service>("SERVICES4")?
                .get(&EndpointKey::new(endpoint(ip.octets(), at.port()), protocol.number())),
            IpAddr::V6(ip) => self
                .table::<EndpointKey<[u8; 16]>, Service>("SERVICES6")?
                .get(&EndpointKey::new(endpoint(ip.octets(), at.port()), protocol.number())),
        })
    }

    /// The service whose table has only backends of this machine, if other nodes have it too: for what comes out of the
    /// tunnel, and for containers.
    pub fn local_service(&self, at: SocketAddr, protocol: Protocol) -> Result<Option<Service>> {
        let unspecified: IpAddr = match at {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.service(SocketAddr::new(unspecified, at.port()), protocol)
    }

    /// The node at an address, and its index.
    pub fn node(&self, addr: IpAddr) -> Result<Option<(u32, Node)>> {
        let Some(index) = self.table::<[u8; 16], u32>("NODE_IDS")?.get(&wide(addr)) else {
            return Ok(None);
        };
        let nodes: Array<MapData, MapCell<Node>> = array(&self.instance, "NODES")?;
        let MapCell(node) = nodes.get(&index, 0).context("read NODES")?;
        Ok(node.is_in_use().then_some((index, node)))
    }

    /// Every address and port that is served, of one family.
    pub fn served(&self, v6: bool) -> Result<BTreeSet<(SocketAddr, Protocol)>> {
        let mut served = BTreeSet::new();
        let mut add = |at: SocketAddr, protocol| {
            served.extend(Protocol::from_number(protocol).map(|protocol| (at, protocol)));
        };
        if v6 {
            self.table::<EndpointKey<[u8; 16]>, Service>("SERVICES6")?
                .for_each(|key, _| add(flows::v6(key.endpoint), key.protocol))
                .context("read SERVICES6")?;
        } else {
            self.table::<EndpointKey<[u8; 4]>, Service>("SERVICES4")?
                .for_each(|key, _| add(flows::v4(key.endpoint), key.protocol))
                .context("read SERVICES4")?;
        }
        Ok(served)
    }

    /// The backends in the slots of a service's table.
    pub fn slots(&self, service: &Service) -> Result<Vec<u32>> {
        let Slots { base, len, .. } = Slots::from_bits(service.slots);
        let table: Array<MapData, u32> = array(&self.instance, "TABLE")?;
        let slots = (base..base.saturating_add(len)).map(|slot| table.get(&slot, 0));
        slots.collect::<Result<_, _>>().context("read TABLE")
    }

    /// What is known of a backend.
    pub fn backend(&self, id: u32) -> Result<Known> {
        let MapCell(backend) = self.backends.get(&id, 0).context("read BACKENDS")?;
        let MapCell(condition) = self.backend_load.get(&id, 0).context("read BACKEND_LOAD")?;
        let open =
            open(&condition, self.open_correction.get(&id, 0).context("read OPEN_CORRECTION")?);
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        let load = Load { open, weight: backend.weight };
        let MapCell(suspicion) = self.suspects.get(&id, 0).context("read SUSPECTS")?;
        let MapCell(evidence) = self.evidence.get(&id, 0).context("read EVIDENCE")?;
        Ok(Known { backend, load, suspect_until: suspicion.until, evidence })
    }

    /// All that a client's port has at a service, in the order the programs look, the table for those that find no room last.
    pub fn flows(&self, client: SocketAddr, service: ServiceId) -> Result<Vec<Flow>> {
        match client.ip() {
            IpAddr::V4(ip) => self.flows_in(
                ["FLOWS4", "OVERFLOW4"],
                endpoint(ip.octets(), client.port()),
                service,
            ),
            IpAddr::V6(ip) => self.flows_in(
                ["FLOWS6", "OVERFLOW6"],
                endpoint(ip.octets(), client.port()),
                service,
            ),
        }
    }

    fn flows_in<A: Address>(
        &self,
        [map, flood]: [&str; 2],
        client: Endpoint<A>,
        service: ServiceId,
    ) -> Result<Vec<Flow>> {
        let table = self.table::<FlowKey<A>, Flow>(map)?;
        let found =
            ProbeSlot::ALL.map(|probe_slot| table.get(&FlowKey::new(client, service, probe_slot)));
        let flood = self.table::<FlowKey<A>, Flow>(flood)?;
        let flood = flood.get(&FlowKey::new(client, service, ProbeSlot::FIRST));
        Ok(found.into_iter().chain([flood]).flatten().collect())
    }

    /// The backend that a client's address got last.
    pub fn affinity(&self, client: IpAddr, service: ServiceId) -> Result<Option<Affinity>> {
        let number = service.get().to_ne_bytes();
        Ok(match client {
            IpAddr::V4(ip) => self
                .table::<AffinityKey<[u8; 4]>, Affinity>("AFFINITY4")?
                .get(&AffinityKey { client: ip.octets(), service: number, pad: [0; 2] }),
            IpAddr::V6(ip) => self
                .table::<AffinityKey<[u8; 16]>, Affinity>("AFFINITY6")?
                .get(&AffinityKey { client: ip.octets(), service: number, pad: [0; 2] }),
        })
    }

    /// What the host or a container has begun with a remote end from a local one that is served; `None` in an instance
    /// of a version that remembers nothing of it.
    pub fn outbound(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        protocol: Protocol,
    ) -> Result<Option<Outbound>> {
        let map = if local.is_ipv4() { "OUTBOUND4" } else { "OUTBOUND6" };
        if !pins::map_of(&self.instance, map).exists() {
            return Ok(None);
        }
        Ok(match (local.ip(), remote.ip()) {
            (IpAddr::V4(near), IpAddr::V4(far)) => {
                let near = endpoint(near.octets(), local.port());
                let far = endpoint(far.octets(), remote.port());
                self.table::<OutboundKey<[u8; 4]>, Outbound>(map)?
                    .get(&OutboundKey::new(near, far, protocol))
            }
            (IpAddr::V6(near), IpAddr::V6(far)) => {
                let near = endpoint(near.octets(), local.port());
                let far = endpoint(far.octets(), remote.port());
                self.table::<OutboundKey<[u8; 16]>, Outbound>(map)?
                    .get(&OutboundKey::new(near, far, protocol))
            }
            _ => None,
        })
    }

    /// Whether a client is in one of the networks a restricted service takes.
    pub fn allows(&self, service: ServiceId, client: IpAddr) -> Result<bool> {
        match client {
            IpAddr::V4(ip) => self.is_in::<6>("ALLOWED4", &allowed::key(service, ip.octets(), 32)),
            IpAddr::V6(ip) => {
                self.is_in::<18>("ALLOWED6", &allowed::key(service, ip.octets(), 128))
            }
        }
    }

    fn is_in<const DATA: usize>(&self, map: &str, key: &Key<[u8; DATA]>) -> Result<bool>
    where
        [u8; DATA]: aya::Pod,
    {
        let trie: LpmTrie<MapData, [u8; DATA], u8> =
            LpmTrie::try_from(Map::LpmTrie(pins::open(&pins::map_of(&self.instance, map))?))
                .with_context(|| format!("{map} has another type"))?;
        Ok(trie.get(key, 0).is_ok())
    }

    /// What sources of packets that come in by a device are validated by; `None` if it has no hook.
    pub fn device(&self, ifindex: u32) -> Result<Option<DeviceInfo>> {
        Ok(self.table::<u32, DeviceInfo>("DEVICES")?.get(&ifindex))
    }

    /// The devices that packets from an address may come in by: none if it is the host's own, `None` if
    /// the routes say so.
    pub fn source_devices(&self, addr: IpAddr) -> Result<Option<DeviceSet>> {
        Ok(match addr {
            IpAddr::V4(ip) => self.table::<[u8; 4], DeviceSet>("SOURCES4")?.get(&ip.octets()),
            IpAddr::V6(ip) => self.table::<[u8; 16], DeviceSet>("SOURCES6")?.get(&ip.octets()),
        })
    }

    /// What the programs' choices by hash are keyed by; `None` if they know no seed.
    pub fn hash_seed(&self) -> Result<Option<Seed>> {
        seed::of(&self.instance)
    }

    /// The number of a service's next turn.
    pub fn turn(&self, service: ServiceId) -> Result<u64> {
        let rr_counters: Array<MapData, u64> = array(&self.instance, "RR_COUNTERS")?;
        rr_counters.get(&u32::from(service.get()), 0).context("read RR_COUNTERS")
    }

    fn table<K, V>(&self, map: &str) -> Result<HashTable<K, V>>
    where
        K: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + Copy,
        V: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + Copy,
    {
        HashTable::open(&pins::map_of(&self.instance, map))
    }
}

/// A client as its hash, with its port or without.
#[must_use]
pub fn hash(seed: &Seed, client: SocketAddr, with_port: bool) -> u32 {
    let port = client.port();
    match client.ip() {
        IpAddr::V4(ip) => choose::hash::<V4>(seed, &endpoint(ip.octets(), port), with_port),
        IpAddr::V6(ip) => choose::hash::<V6>(seed, &endpoint(ip.octets(), port), with_port),
    }
}

const fn endpoint<A: Address>(addr: A, port: u16) -> Endpoint<A> {
    Endpoint { addr, port: port.to_be_bytes() }
}

fn array<T: aya::Pod>(instance: &str, map: &str) -> Result<Array<MapData, T>> {
    let data = pins::open(&pins::map_of(instance, map))?;
    Array::try_from(Map::Array(data)).with_context(|| format!("{map} has another type"))
}

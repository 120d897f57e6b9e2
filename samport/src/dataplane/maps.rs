//! The maps, typed, and written in the forms `samport-common` gives.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use samport_common::flow::{Endpoint, EndpointKey};
use samport_common::layout::{Backend, Life, Owners, Service};
use samport_common::wire::protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A map key or value. The derives of zerocopy are the proof that aya's `Pod` asks for.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct MapCell<T>(pub T);

// SAFETY: T has no padding and no invalid bit pattern (IntoBytes, FromBytes), no interior
// mutability (Immutable), and is plain data ('static, Copy).
unsafe impl<T: IntoBytes + FromBytes + Immutable + Copy + 'static> Pod for MapCell<T> {}

type Hash<A, V> = HashMap<MapData, MapCell<EndpointKey<A>>, MapCell<V>>;

/// The maps the loader writes, and the counters it reads.
pub(super) struct Maps {
    ports: Array<MapData, u64>,
    services4: Hash<[u8; 4], Service>,
    services6: Hash<[u8; 16], Service>,
    table: Array<MapData, u32>,
    backends: Array<MapData, MapCell<Backend>>,
    owners4: Hash<[u8; 4], Owners>,
    owners6: Hash<[u8; 16], Owners>,
    verdicts: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            ports: typed(ebpf, "PORTS")?,
            services4: typed(ebpf, "SERVICES4")?,
            services6: typed(ebpf, "SERVICES6")?,
            table: typed(ebpf, "TABLE")?,
            backends: typed(ebpf, "BACKENDS")?,
            owners4: typed(ebpf, "OWNERS4")?,
            owners6: typed(ebpf, "OWNERS6")?,
            verdicts: typed(ebpf, "VERDICTS")?,
        })
    }

    pub(super) fn listen(&mut self, port: u16, on: bool) -> Result<()> {
        let (word, bit) = (u32::from(port) / 64, u32::from(port) % 64);
        let before = self.ports.get(&word, 0)?;
        let after = if on { before | 1 << bit } else { before & !(1 << bit) };
        Ok(self.ports.set(word, after, 0)?)
    }

    pub(super) fn write_table(&mut self, base: u32, slots: &[u32]) -> Result<()> {
        for (index, id) in (base..).zip(slots) {
            self.table.set(index, id, 0)?;
        }
        Ok(())
    }

    pub(super) fn set_backend(&mut self, index: u32, value: Backend) -> Result<()> {
        self.backends.set(index, MapCell(value), 0)?;
        Ok(())
    }

    pub(super) fn retire_backend(&mut self, index: u32) -> Result<()> {
        let MapCell(mut value) = self.backends.get(&index, 0)?;
        value.life = Life::Down as u8;
        self.set_backend(index, value)
    }

    pub(super) fn set_owners(&mut self, endpoint: SocketAddr, owners: &Owners) -> Result<()> {
        match endpoint.ip() {
            IpAddr::V4(ip) => put(&mut self.owners4, ip.octets(), endpoint.port(), *owners),
            IpAddr::V6(ip) => put(&mut self.owners6, ip.octets(), endpoint.port(), *owners),
        }
    }

    pub(super) fn remove_owners(&mut self, endpoint: SocketAddr) -> Result<()> {
        match endpoint.ip() {
            IpAddr::V4(ip) => drop_key(&mut self.owners4, ip.octets(), endpoint.port()),
            IpAddr::V6(ip) => drop_key(&mut self.owners6, ip.octets(), endpoint.port()),
        }
    }

    pub(super) fn set_frontend(&mut self, vip: SocketAddr, service: Service) -> Result<()> {
        // TEMPORARY: until services have a protocol.
        match vip.ip() {
            IpAddr::V4(ip) => {
                self.services4.insert(udp_key(ip.octets(), vip.port()), MapCell(service), 0)?;
            }
            IpAddr::V6(ip) => {
                self.services6.insert(udp_key(ip.octets(), vip.port()), MapCell(service), 0)?;
            }
        }
        match vip.ip() {
            IpAddr::V4(ip) => put(&mut self.services4, ip.octets(), vip.port(), service),
            IpAddr::V6(ip) => put(&mut self.services6, ip.octets(), vip.port(), service),
        }
    }

    pub(super) fn remove_frontend(&mut self, vip: SocketAddr) -> Result<()> {
        match vip.ip() {
            IpAddr::V4(ip) => drop_key(&mut self.services4, ip.octets(), vip.port()),
            IpAddr::V6(ip) => drop_key(&mut self.services6, ip.octets(), vip.port()),
        }
    }

    pub(super) fn verdicts(&self) -> Result<Vec<u64>> {
        sums(&self.verdicts)
    }
}

/// The sums over all CPUs of an array of counters.
pub(super) fn sums(counters: &PerCpuArray<MapData, u64>) -> Result<Vec<u64>> {
    counters.iter().map(|values| Ok(values?.iter().sum())).collect()
}

pub(super) fn typed<T>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name} has another type"))
}

fn put<A, V>(map: &mut Hash<A, V>, addr: A, port: u16, value: V) -> Result<()>
where
    A: samport_common::family::Address,
    V: IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    Ok(map.insert(key(addr, port), MapCell(value), 0)?)
}

/// Removes a key; one that is not there is fine.
fn drop_key<A, V>(map: &mut Hash<A, V>, addr: A, port: u16) -> Result<()>
where
    A: samport_common::family::Address,
    V: IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    match map.remove(&key(addr, port)) {
        Err(MapError::KeyNotFound) => Ok(()),
        result => Ok(result?),
    }
}

const fn udp_key<A: samport_common::family::Address>(
    addr: A,
    port: u16,
) -> MapCell<EndpointKey<A>> {
    let endpoint = Endpoint { addr, port: port.to_be_bytes() };
    MapCell(EndpointKey::new(endpoint, protocol::UDP))
}

const fn key<A: samport_common::family::Address>(addr: A, port: u16) -> MapCell<EndpointKey<A>> {
    let endpoint = Endpoint { addr, port: port.to_be_bytes() };
    MapCell(EndpointKey::new(endpoint, protocol::TCP))
}

//! The maps, typed, and written in the forms `samport-common` gives.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use aya::{Ebpf, Pod};
use samport_common::exit::Generation;
use samport_common::failover;
use samport_common::family::Address;
use samport_common::flow::{Endpoint, EndpointKey};
use samport_common::layout::{
    self, Backend, BackendLoad, BackendState, BackendStats, Evidence, Handshakes, ReverseNat,
    Service, Suspicion, port_bit,
};
use samport_common::wire::protocol::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::batch::Slots;
use super::port_cache::PortCache;
use crate::model::ports::Listen;
use crate::plan::{BackendId, Source};

/// A map key or value. The derives of zerocopy are the proof that aya's `Pod` asks for.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct MapCell<T>(pub T);

// SAFETY: T has no padding and no invalid bit pattern (IntoBytes, FromBytes), no interior
// mutability (Immutable), and is plain data ('static, Copy).
unsafe impl<T: IntoBytes + FromBytes + Immutable + Copy + 'static> Pod for MapCell<T> {}

type Key<A> = MapCell<EndpointKey<A>>;
type Hash<A, V> = HashMap<MapData, Key<A>, MapCell<V>>;

/// The maps the loader writes, and the counters it reads.
pub(super) struct Maps {
    ports: Array<MapData, u64>,
    services4: Hash<[u8; 4], Service>,
    services6: Hash<[u8; 16], Service>,
    table: Slots,
    backends: Array<MapData, MapCell<Backend>>,
    reverse_nat4: Hash<[u8; 4], ReverseNat>,
    reverse_nat6: Hash<[u8; 16], ReverseNat>,
    backend_load: Array<MapData, MapCell<BackendLoad>>,
    evidence: Array<MapData, MapCell<Evidence>>,
    suspects: Array<MapData, MapCell<Suspicion>>,
    open_correction: Array<MapData, u64>,
    stats: PerCpuArray<MapData, MapCell<BackendStats>>,
    handshakes: PerCpuArray<MapData, MapCell<Handshakes>>,
    verdicts: PerCpuArray<MapData, u64>,
    port_cache: PortCache,
    routes: Array<MapData, u32>,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            ports: typed(ebpf, "PORTS")?,
            services4: typed(ebpf, "SERVICES4")?,
            services6: typed(ebpf, "SERVICES6")?,
            table: Slots::of(ebpf.take_map("TABLE").context("the object has no map TABLE")?)?,
            backends: typed(ebpf, "BACKENDS")?,
            reverse_nat4: typed(ebpf, "REV_NAT4")?,
            reverse_nat6: typed(ebpf, "REV_NAT6")?,
            backend_load: typed(ebpf, "BACKEND_LOAD")?,
            evidence: typed(ebpf, "EVIDENCE")?,
            suspects: typed(ebpf, "SUSPECTS")?,
            open_correction: typed(ebpf, "OPEN_CORRECTION")?,
            stats: typed(ebpf, "BACKEND_STATS")?,
            handshakes: typed(ebpf, "HANDSHAKES")?,
            verdicts: typed(ebpf, "VERDICTS")?,
            port_cache: PortCache::new(typed(ebpf, "PORT_CACHE")?),
            routes: typed(ebpf, "ROUTES")?,
        })
    }

    pub(super) fn listen(&mut self, on: Listen, open: bool) -> Result<()> {
        let bit = port_bit(on.protocol, on.port);
        let (word, bit) = (bit / 64, bit % 64);
        let before = self.ports.get(&word, 0)?;
        let after = if open { before | 1 << bit } else { before & !(1 << bit) };
        Ok(self.ports.set(word, after, 0)?)
    }

    /// Raises the generation of the host's routes.
    pub(super) fn raise_routes(&mut self) -> Result<()> {
        let before = u16::try_from(self.routes.get(&0, 0)?).unwrap_or(0);
        Ok(self.routes.set(0, u32::from(Generation(before).next().0), 0)?)
    }

    pub(super) fn write_table(&mut self, base: u32, slots: &[u32]) -> Result<()> {
        self.table.write(base, slots)
    }

    pub(super) fn set_backend(&mut self, index: u32, value: Backend) -> Result<()> {
        let MapCell(before) = self.backends.get(&index, 0)?;
        if before.generation != value.generation {
            // Nothing of what is known of the one before is about this one.
            self.open_correction.set(index, 0, 0)?;
            self.backend_load.set(index, MapCell(BackendLoad::default()), 0)?;
            self.evidence.set(index, MapCell(Evidence::default()), 0)?;
            self.suspects.set(index, MapCell(Suspicion::default()), 0)?;
            clear(&mut self.stats, index)?;
            clear(&mut self.handshakes, index)?;
        }
        self.backends.set(index, MapCell(value), 0)?;
        Ok(())
    }

    /// Makes new flows avoid a backend that a check has confirmed to fail. Ticks for which they do; `None` if it
    /// is another's number by now.
    pub(super) fn confirm(&mut self, id: BackendId, now_tick: u32) -> Result<Option<u32>> {
        let Some(before) = self.suspicion(id)? else { return Ok(None) };
        // The kernel has cleared it if the backend has taken a connection since.
        let in_a_row = if before.until == 0 { 1 } else { before.in_a_row.saturating_add(1) };
        let ticks = failover::suspicion(in_a_row);
        let until = now_tick.saturating_add(ticks);
        let confirmed = before.confirmed.saturating_add(1);
        let after = Suspicion { until, in_a_row, confirmed, ..before };
        self.suspects.set(id.index, MapCell(after), 0)?;
        Ok(Some(ticks))
    }

    /// Drops the evidence against a backend that a check has found well.
    pub(super) fn refute(&mut self, id: BackendId) -> Result<()> {
        let Some(before) = self.suspicion(id)? else { return Ok(()) };
        let MapCell(evidence) = self.evidence.get(&id.index, 0)?;
        // When it has asked stays: it does not ask more often for that.
        let evidence = Evidence { clients: Default::default(), ..evidence };
        self.evidence.set(id.index, MapCell(evidence), 0)?;
        let refuted = before.refuted.saturating_add(1);
        Ok(self.suspects.set(id.index, MapCell(Suspicion { refuted, ..before }), 0)?)
    }

    fn suspicion(&self, id: BackendId) -> Result<Option<Suspicion>> {
        let MapCell(backend) = self.backends.get(&id.index, 0)?;
        let MapCell(suspicion) = self.suspects.get(&id.index, 0)?;
        Ok((backend.generation == id.generation).then_some(suspicion))
    }

    /// Refuses a backend's flows. Nothing of them is counted any more, so that the counters are at rest when the next
    /// backend of this index begins.
    pub(super) fn retire_backend(&mut self, id: BackendId) -> Result<()> {
        let MapCell(before) = self.backends.get(&id.index, 0)?;
        let after =
            Backend { state: BackendState::Down as u8, generation: id.next().generation, ..before };
        Ok(self.backends.set(id.index, MapCell(after), 0)?)
    }

    /// Says whose a backend's endpoint is; no service's, with `None`.
    pub(super) fn set_reverse_nat(
        &mut self,
        of: Source,
        reverse_nat: Option<&ReverseNat>,
    ) -> Result<()> {
        let Source { endpoint, protocol } = of;
        let (v4, v6, port) = (&mut self.reverse_nat4, &mut self.reverse_nat6, endpoint.port());
        self.port_cache.reverse_nat(of, reverse_nat, || match endpoint.ip() {
            IpAddr::V4(ip) => put_or_drop(v4, key(ip.octets(), port, protocol), reverse_nat),
            IpAddr::V6(ip) => put_or_drop(v6, key(ip.octets(), port, protocol), reverse_nat),
        })
    }

    /// Says what service a frontend is; none, with `None`.
    pub(super) fn set_frontend(
        &mut self,
        addr: IpAddr,
        on: Listen,
        to: Option<&Service>,
    ) -> Result<()> {
        let (v4, v6) = (&mut self.services4, &mut self.services6);
        self.port_cache.frontend(addr, on, to, || match addr {
            IpAddr::V4(ip) => put_frontend(v4, key(ip.octets(), on.port, on.protocol), to),
            IpAddr::V6(ip) => put_frontend(v6, key(ip.octets(), on.port, on.protocol), to),
        })
    }

    /// Makes the shortcuts that follow from what others have written.
    pub(super) fn fill_port_cache(&mut self) -> Result<()> {
        for (of, reverse_nat) in self.all_reverse_nat()? {
            self.port_cache.reverse_nat(of, Some(&reverse_nat), || Ok(()))?;
        }
        for ((addr, on), to) in self.all_frontends()? {
            self.port_cache.frontend(addr, on, Some(&to), || Ok(()))?;
        }
        Ok(())
    }

    /// Flows of a backend that are open.
    pub(super) fn open_flows(&self, index: u32) -> Result<u64> {
        let MapCell(condition) = self.backend_load.get(&index, 0)?;
        Ok(open(&condition, self.open_correction.get(&index, 0)?))
    }

    pub(super) fn verdicts(&self) -> Result<Vec<u64>> {
        sums(&self.verdicts)
    }

    /// Every backend there ever was, by its index.
    pub(super) fn all_backends(&self) -> Result<Vec<Backend>> {
        self.backends.iter().map(|value| Ok(value?.0)).collect()
    }

    pub(super) fn all_reverse_nat(&self) -> Result<Vec<(Source, ReverseNat)>> {
        let (v4, v6) = (entries(&self.reverse_nat4)?, entries(&self.reverse_nat6)?);
        let source = |(endpoint, protocol, value)| (Source { endpoint, protocol }, value);
        Ok(v4.into_iter().chain(v6).map(source).collect())
    }

    pub(super) fn all_frontends(&self) -> Result<Vec<((IpAddr, Listen), Service)>> {
        let (v4, v6) = (entries(&self.services4)?, entries(&self.services6)?);
        let place = |(at, protocol, value): (SocketAddr, Protocol, Service)| {
            ((at.ip(), Listen { port: at.port(), protocol, addr: None }), value)
        };
        Ok(v4.into_iter().chain(v6).map(place).collect())
    }

    pub(super) fn all_ports(&self) -> Result<BTreeSet<Listen>> {
        let mut open = BTreeSet::new();
        for (index, word) in (0u32..).zip(self.ports.iter()) {
            let word = word?;
            let bits = (0..64).filter(|bit| word >> bit & 1 != 0);
            open.extend(bits.map(|bit| listen_of(index * 64 + bit)));
        }
        Ok(open)
    }
}

/// The port a bit of `PORTS` stands for: see [`port_bit`].
fn listen_of(bit: u32) -> Listen {
    let port = u16::try_from(bit & 0xffff).unwrap_or(u16::MAX);
    if bit == port_bit(Protocol::Tcp, port) { Listen::tcp(port) } else { Listen::udp(port) }
}

fn entries<A, V>(map: &Hash<A, V>) -> Result<Vec<(SocketAddr, Protocol, V)>>
where
    A: Address + Into<IpAddr>,
    V: IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    let mut entries = Vec::new();
    for entry in map {
        let (MapCell(key), MapCell(value)) = entry?;
        let endpoint =
            SocketAddr::new(key.endpoint.addr.into(), u16::from_be_bytes(key.endpoint.port));
        // Only these are ever written.
        if let Some(protocol) = Protocol::from_number(key.protocol) {
            entries.push((endpoint, protocol, value));
        }
    }
    Ok(entries)
}

/// Sets a value to its default on every CPU.
fn clear<T>(map: &mut PerCpuArray<MapData, MapCell<T>>, index: u32) -> Result<()>
where
    T: Default + IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::Error::from(error).context(path))?;
    let zeros = PerCpuValues::try_from(vec![MapCell(T::default()); cpus])?;
    Ok(map.set(index, zeros, 0)?)
}

/// Open flows: those that opened, less those that were seen to end, and those that were lost sight of.
/// Negative for a moment, when a flow ends before its opening has been counted.
pub(super) fn open(condition: &BackendLoad, open_correction: u64) -> u64 {
    let counted = condition.opened.wrapping_sub(condition.ended);
    u64::try_from(counted.wrapping_sub(open_correction).cast_signed()).unwrap_or(0)
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

fn put_or_drop<A, V>(map: &mut Hash<A, V>, key: Key<A>, value: Option<&V>) -> Result<()>
where
    A: Address,
    V: IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    match value {
        Some(value) => Ok(map.insert(key, MapCell(*value), 0)?),
        None => if_there(map.remove(&key)),
    }
}

/// The outcome of removing a key: one that is not there is fine.
pub(super) fn if_there(removed: Result<(), MapError>) -> Result<()> {
    match removed {
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Writes the value of a frontend, which says of which key it is, or removes it.
fn put_frontend<A: Address>(
    map: &mut Hash<A, Service>,
    at: Key<A>,
    to: Option<&Service>,
) -> Result<()> {
    let complete = to.map(|value| {
        let slots = layout::Slots::from_bits(value.slots);
        let slots = layout::Slots { key_fold: at.0.fold(), ..slots };
        Service { slots: slots.to_bits(), ..*value }
    });
    put_or_drop(map, at, complete.as_ref())
}

const fn key<A: Address>(addr: A, port: u16, protocol: Protocol) -> Key<A> {
    let endpoint = Endpoint { addr, port: port.to_be_bytes() };
    MapCell(EndpointKey::new(endpoint, protocol.number()))
}

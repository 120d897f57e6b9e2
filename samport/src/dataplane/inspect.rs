//! Reading the pinned maps of an instance, also of one that was killed.

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use samport_common::layout::{
    BackendLoad, BackendStats, GcStats, Handshakes, Held, Suspicion, SynRate, UNPROVEN,
};

use super::maps::{MapCell, open, sums};
use super::pins;

/// The counters of one instance.
pub struct Counters {
    /// Packets by verdict, in the order of their ids.
    pub verdicts: Vec<u64>,
    /// The flow tables.
    pub flows: Flows,
    stats: PerCpuArray<MapData, MapCell<BackendStats>>,
    backend_load: Array<MapData, MapCell<BackendLoad>>,
    suspects: Array<MapData, MapCell<Suspicion>>,
    open_correction: Array<MapData, u64>,
    handshakes: PerCpuArray<MapData, MapCell<Handshakes>>,
}

/// The state of the flow tables, IPv4 and IPv6 together unless said otherwise.
#[derive(Clone, Copy, Default, Debug)]
pub struct Flows {
    /// Most flows for IPv4.
    pub capacity4: u32,
    /// Most flows for IPv6.
    pub capacity6: u32,
    /// Flows for IPv4, when the collector was last there.
    pub left4: u64,
    /// Flows for IPv6, as of then.
    pub left6: u64,
    /// Entries ever made.
    pub inserted: u64,
    /// Entries taken out because they were over, until the collector's last round.
    pub expired: u64,
    /// Entries that had to make room for others, as of then.
    pub evicted: u64,
    /// Flows that found no room, and are kept beside the tables, as of then.
    pub overflow: u64,
    /// Flows whose client is not proven, in both tables.
    pub unproven: u64,
}

impl Counters {
    /// Opens the pinned counters of an instance.
    pub fn open(instance: &str) -> Result<Self> {
        let verdicts =
            PerCpuArray::<MapData, u64>::try_from(Map::PerCpuArray(data(instance, "VERDICTS")?))
                .context("VERDICTS has another type")?;
        let stats = PerCpuArray::try_from(Map::PerCpuArray(data(instance, "BACKEND_STATS")?))
            .context("BACKEND_STATS has another type")?;
        let handshakes = PerCpuArray::try_from(Map::PerCpuArray(data(instance, "HANDSHAKES")?))
            .context("HANDSHAKES has another type")?;
        let backend_load = Array::try_from(Map::Array(data(instance, "BACKEND_LOAD")?))
            .context("BACKEND_LOAD has another type")?;
        let suspects = Array::try_from(Map::Array(data(instance, "SUSPECTS")?))
            .context("SUSPECTS has another type")?;
        let open_correction = Array::try_from(Map::Array(data(instance, "OPEN_CORRECTION")?))
            .context("OPEN_CORRECTION has another type")?;
        let (verdicts, flows) = (sums(&verdicts)?, flows(instance)?);
        Ok(Self { verdicts, flows, stats, backend_load, suspects, open_correction, handshakes })
    }

    /// Flows of a backend that are open.
    pub fn open_flows(&self, id: u32) -> Result<u64> {
        let MapCell(condition) = self.backend_load.get(&id, 0).context("read BACKEND_LOAD")?;
        Ok(open(&condition, self.open_correction.get(&id, 0).context("read OPEN_CORRECTION")?))
    }

    /// What checks on evidence have found out about a backend.
    pub fn suspicion(&self, id: u32) -> Result<Suspicion> {
        let MapCell(suspicion) = self.suspects.get(&id, 0).context("read SUSPECTS")?;
        Ok(suspicion)
    }

    /// How long a backend took to answer, summed over the CPUs.
    pub fn handshakes(&self, id: u32) -> Result<Handshakes> {
        let values = self.handshakes.get(&id, 0).context("read HANDSHAKES")?;
        Ok(values.iter().fold(Handshakes::default(), |mut all, MapCell(one)| {
            for (class, count) in all.classes.iter_mut().zip(one.classes) {
                *class += count;
            }
            all.sum += one.sum;
            all
        }))
    }

    /// The counters of a backend, summed over the CPUs.
    pub fn backend(&self, id: u32) -> Result<BackendStats> {
        let values = self.stats.get(&id, 0).with_context(|| format!("read backend {id}"))?;
        Ok(values.iter().fold(BackendStats::default(), |sum, MapCell(one)| BackendStats {
            flows: sum.flows + one.flows,
            packets_in: sum.packets_in + one.packets_in,
            bytes_in: sum.bytes_in + one.bytes_in,
            packets_out: sum.packets_out + one.packets_out,
            bytes_out: sum.bytes_out + one.bytes_out,
            refused: sum.refused + one.refused,
            silent: sum.silent + one.silent,
            unreachable: sum.unreachable + one.unreachable,
            for_one_peer: sum.for_one_peer + one.for_one_peer,
        }))
    }
}

fn flows(instance: &str) -> Result<Flows> {
    let capacity4 = capacity(instance, "FLOWS4")?;
    let capacity6 = capacity(instance, "FLOWS6")?;
    let syn_rate: PerCpuArray<MapData, MapCell<SynRate>> =
        PerCpuArray::try_from(Map::PerCpuArray(data(instance, "SYN_RATE")?))
            .context("SYN_RATE has another type")?;
    let gc_stats: Array<MapData, MapCell<GcStats>> =
        Array::try_from(Map::Array(data(instance, "GC_STATS")?))
            .context("GC_STATS has another type")?;
    let syn_rate = syn_rate.get(&0, 0).context("read SYN_RATE")?;
    let MapCell(GcStats { removed, left4, left6, evicted, overflow }) =
        gc_stats.get(&0, 0).context("read GC_STATS")?;
    let inserted = syn_rate.iter().map(|MapCell(cpu)| cpu.inserts).sum();
    let held: Array<MapData, MapCell<Held>> =
        Array::try_from(Map::Array(data(instance, "HELD")?)).context("HELD has another type")?;
    let freed: Array<MapData, u64> =
        Array::try_from(Map::Array(data(instance, "FREED")?)).context("FREED has another type")?;
    let MapCell(unproven) = held.get(&UNPROVEN, 0).context("read HELD")?;
    let unproven = unproven.now(freed.get(&UNPROVEN, 0).context("read FREED")?);
    let expired = removed.saturating_sub(evicted);
    let tables = Flows { capacity4, capacity6, left4, left6, ..Flows::default() };
    Ok(Flows { inserted, expired, evicted, overflow, unproven, ..tables })
}

fn capacity(instance: &str, map: &str) -> Result<u32> {
    let info = data(instance, map)?.info().with_context(|| format!("ask about {map}"))?;
    Ok(info.max_entries())
}

fn data(instance: &str, map: &str) -> Result<MapData> {
    pins::open(&pins::map_of(instance, map))
}

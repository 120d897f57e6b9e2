//! Reading the pinned maps of an instance, also of one that was killed.

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use samport_common::layout::BackendStats;

use super::maps::{MapCell, sums};
use super::pins;

/// The counters of one instance.
pub struct Counters {
    /// Packets by verdict, in the order of their ids.
    pub verdicts: Vec<u64>,
    stats: PerCpuArray<MapData, MapCell<BackendStats>>,
}

impl Counters {
    /// Opens the pinned counters of an instance.
    pub fn open(instance: &str) -> Result<Self> {
        let verdicts =
            PerCpuArray::<MapData, u64>::try_from(Map::PerCpuArray(data(instance, "VERDICTS")?))
                .context("VERDICTS has another type")?;
        let stats = PerCpuArray::try_from(Map::PerCpuArray(data(instance, "BACKEND_STATS")?))
            .context("BACKEND_STATS has another type")?;
        Ok(Self { verdicts: sums(&verdicts)?, stats })
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
        }))
    }
}

fn data(instance: &str, map: &str) -> Result<MapData> {
    let path = pins::map_of(instance, map);
    MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))
}

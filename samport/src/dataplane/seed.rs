//! The seed that the programs choose by: written before anything is attached, and never changed.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, Map, MapData};
use samport_common::seed::Seed;

use super::maps::MapCell;
use super::pins;

/// The map's name.
pub(super) const MAP: &str = "HASH_SEED";

/// Has the programs choose by this seed.
pub(super) fn set(ebpf: &mut Ebpf, seed: Seed) -> Result<()> {
    let map = ebpf.map_mut(MAP).with_context(|| format!("the object has no map {MAP}"))?;
    let mut map: Array<_, MapCell<Seed>> =
        Array::try_from(map).with_context(|| format!("{MAP} is another type"))?;
    map.set(0, MapCell(seed), 0).with_context(|| format!("write {MAP}"))
}

/// What the programs of an instance choose by; `None` if they are of a version that knew no seed.
pub(super) fn of(instance: &str) -> Result<Option<Seed>> {
    let pin = pins::map_of(instance, MAP);
    if !pin.exists() {
        return Ok(None);
    }
    let map: Array<MapData, MapCell<Seed>> = Array::try_from(Map::Array(pins::open(&pin)?))
        .with_context(|| format!("{MAP} has another type"))?;
    let MapCell(seed) = map.get(&0, 0).with_context(|| format!("read {MAP}"))?;
    Ok(Some(seed))
}

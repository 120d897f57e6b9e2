//! Carrying what maps hold over into others of another size, when a samport takes over from one that was
//! told other limits.

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use samport_common::flow::{EndpointKey, Flow, FlowKey};
use samport_common::layout::{Backend, BackendStats, Condition, Handshakes, Life, Owners};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::batch::HashTable;
use super::load::{self, Options};
use super::maps::MapCell;
use super::pins::{self, Folder};
use crate::exit::{Exit, coded};

/// The pinned maps that have another size than is wanted.
///
/// # Errors
/// [`Exit::Usage`] if a smaller one would have no room for what is in use.
pub(super) fn resized(options: Options, pins: &Folder) -> Result<Vec<&'static str>> {
    let mut resized = Vec::new();
    for (name, wanted) in load::sizes(options) {
        let pin = pins.map(name);
        if !pin.exists() {
            continue;
        }
        let info = pins::open(&pin)?.info().with_context(|| format!("ask about {name}"))?;
        if info.max_entries() != wanted {
            resized.push(name);
        }
    }
    if resized.contains(&"BACKENDS") {
        let backends: Array<_, MapCell<Backend>> = array(&pins.map("BACKENDS"))?;
        let serves = |index: &u32| {
            let value = backends.get(index, 0);
            value.is_ok_and(|MapCell(one)| Life::from_byte(one.life).serves())
        };
        let last = (0..backends.len()).rev().find(serves).unwrap_or(0);
        if last > options.backends {
            let message = format!(
                "--max-backends {} is too small to take over what runs: backend number {last} is in \
                 use; give at least that, or run `samport clean` first",
                options.backends
            );
            return Err(coded(Exit::Usage, message));
        }
    }
    Ok(resized)
}

/// Copies what the pinned maps of these names hold, and this run's own maps do not yet.
pub(super) fn copy(pins: &Folder, names: &[&str]) -> Result<()> {
    for name in names {
        let copied = match *name {
            "FLOWS4" => hash::<FlowKey<[u8; 4]>, Flow>(pins, name),
            "FLOWS6" => hash::<FlowKey<[u8; 16]>, Flow>(pins, name),
            "OWNERS4" => hash::<EndpointKey<[u8; 4]>, Owners>(pins, name),
            "OWNERS6" => hash::<EndpointKey<[u8; 16]>, Owners>(pins, name),
            "BACKENDS" => values::<MapCell<Backend>>(pins, name),
            "CONDITIONS" => values::<MapCell<Condition>>(pins, name),
            "LOST" => values::<u64>(pins, name),
            "BACKEND_STATS" => values_by_cpu::<BackendStats>(pins, name),
            "HANDSHAKES" => values_by_cpu::<Handshakes>(pins, name),
            // Another size means that there were no local clients, or will be none.
            "LOCAL_PEERS" | "LOCAL_SENDERS" | "LOCAL_CHOICES" => Ok(()),
            _ => bail!("nobody knows how to copy {name}"),
        };
        copied.with_context(|| format!("copy {name}"))?;
    }
    Ok(())
}

fn hash<K, V>(pins: &Folder, name: &str) -> Result<()>
where
    K: FromBytes + IntoBytes + Immutable + Copy,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    let to = HashTable::<K, V>::open(&pins.map_of_run(name))?;
    let mut failed = Ok(());
    HashTable::<K, V>::open(&pins.map(name))?.for_each(|key, value| {
        if failed.is_ok() {
            failed = to.add(key, value);
        }
    })?;
    Ok(failed?)
}

fn array<V: aya::Pod>(pin: &std::path::Path) -> Result<Array<MapData, V>> {
    Ok(Array::try_from(Map::Array(pins::open(pin)?))?)
}

fn values<V: aya::Pod>(pins: &Folder, name: &str) -> Result<()> {
    let from: Array<_, V> = array(&pins.map(name))?;
    let mut to: Array<_, V> = array(&pins.map_of_run(name))?;
    for index in 0..from.len().min(to.len()) {
        to.set(index, from.get(&index, 0)?, 0)?;
    }
    Ok(())
}

fn values_by_cpu<V>(pins: &Folder, name: &str) -> Result<()>
where
    V: IntoBytes + FromBytes + Immutable + Copy + 'static,
{
    let open = |pin: &std::path::Path| -> Result<PerCpuArray<MapData, MapCell<V>>> {
        Ok(PerCpuArray::try_from(Map::PerCpuArray(pins::open(pin)?))?)
    };
    let (from, mut to) = (open(&pins.map(name))?, open(&pins.map_of_run(name))?);
    for index in 0..from.len().min(to.len()) {
        to.set(index, from.get(&index, 0)?, 0)?;
    }
    Ok(())
}

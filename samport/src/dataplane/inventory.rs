//! What BPF objects the kernel holds, to compare before and after.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, Result};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};

/// Ids of all programs, maps and links in the kernel, whoever they belong to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Inventory {
    /// Programs, with their names.
    pub programs: BTreeSet<(u32, String)>,
    /// Maps, with their names.
    pub maps: BTreeSet<(u32, String)>,
    /// Links.
    pub links: BTreeSet<u32>,
}

/// Asks the kernel for all BPF objects. Objects that vanish while it answers are left out.
pub fn inventory() -> Result<Inventory> {
    let mut inventory = Inventory::default();
    for program in loaded_programs() {
        let program = program.context("list BPF programs")?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        inventory.programs.insert((program.id(), name));
    }
    for map in loaded_maps() {
        let map = map.context("list BPF maps")?;
        let name = map.name_as_str().unwrap_or_default().to_owned();
        inventory.maps.insert((map.id(), name));
    }
    for link in loaded_links() {
        inventory.links.insert(link.context("list BPF links")?.id());
    }
    Ok(inventory)
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, maps, links) = (self.programs.len(), self.maps.len(), self.links.len());
        write!(f, "{programs} BPF programs, {maps} maps, {links} links")
    }
}

//! What is in the kernel, read back from it: a samport that was killed has left its maps and programs at
//! work, and the next one goes on from there. Pure.
//!
//! The maps say what is in force. They do not say who a backend was, or which port of the command line a
//! service stands for: that is in the [`IdManifest`], which is written before any number of it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use samport_common::flow::ServiceId;
use samport_common::layout::{DeviceInfo, DeviceSet, Scope};
use serde::{Deserialize, Serialize};

use super::actual::{Actual, Attributes, Installed, LocalTable};
use super::change::{
    BackendId, BackendKey, Change, Frontend, ReverseNatTable, Role, Route, ServiceKey, Tunnel,
};
use crate::model::ports::Listen;
use crate::plan::table::{Recipe, Region};

/// Who is meant by the kernel's numbers. It may name more than the kernel has: changes that were about to
/// be made.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct IdManifest {
    services: Vec<NumberedService>,
    backends: Vec<NumberedBackend>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
struct NumberedService {
    listen: Listen,
    v6: bool,
    id: u16,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
struct NumberedBackend {
    index: u32,
    generation: u32,
    listen: Listen,
    id: String,
    endpoint: SocketAddr,
    route: Route,
}

impl IdManifest {
    /// The numbers in use, and those that `changes` will use.
    #[must_use]
    pub fn of(actual: &Actual, changes: &[Change]) -> Self {
        let services = actual.services.iter().map(|(key, installed)| NumberedService {
            listen: key.listen,
            v6: key.v6,
            id: installed.id.get(),
        });
        let planned = changes.iter().filter_map(|change| match change {
            Change::SetBackend { key, id, .. } => Some((key, *id)),
            _ => None,
        });
        let backends = actual.backends().chain(planned).map(|(key, id)| NumberedBackend {
            index: id.index,
            generation: id.generation,
            listen: key.listen,
            id: key.id.clone(),
            endpoint: key.endpoint,
            route: key.route,
        });
        let backends: BTreeSet<_> = backends.collect();
        Self { services: services.collect(), backends: backends.into_iter().collect() }
    }

    /// Whether all of another one's backends are in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let known: BTreeSet<_> = self.backends.iter().collect();
        other.backends.iter().all(|one| known.contains(one)) && other.services == self.services
    }

    /// The backends and their numbers.
    pub fn backends(&self) -> impl Iterator<Item = (BackendKey, BackendId)> {
        self.backends.iter().map(|one| {
            let NumberedBackend { index, generation, listen, id, endpoint, route } = one.clone();
            (BackendKey { listen, id, endpoint, route }, BackendId { index, generation })
        })
    }

    fn services(&self) -> impl Iterator<Item = (ServiceKey, ServiceId)> {
        self.services.iter().filter_map(|one| {
            Some((ServiceKey { listen: one.listen, v6: one.v6 }, ServiceId::new(one.id)?))
        })
    }
}

/// What the kernel's maps say.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KernelContents {
    /// Backends of the ledger that serve, just as it says.
    pub backends: BTreeMap<BackendKey, (BackendId, Attributes)>,
    /// Numbers in use of which it does not know, or knows otherwise.
    pub orphans: Vec<BackendId>,
    /// The generation of every number; as many as there is room for, and number 0.
    pub generations: Vec<u32>,
    /// Whose replies come from where.
    pub reverse_nat: ReverseNatTable,
    /// What is served.
    pub frontends: BTreeMap<(IpAddr, Listen), Frontend>,
    /// Networks that are allowed.
    pub allowed: BTreeSet<(ServiceId, IpNet)>,
    /// Ports that are looked at.
    pub ports: BTreeSet<Listen>,
    /// Programs that are attached to devices.
    pub attached: BTreeSet<(Role, u32)>,
    /// What the programs know of devices.
    pub devices: BTreeMap<u32, DeviceInfo>,
    /// What they know of addresses.
    pub sources: BTreeMap<IpAddr, DeviceSet>,
    /// Other nodes, by where the tunnels to them end, with their indices.
    pub nodes: BTreeMap<SocketAddr, (u32, Tunnel)>,
}

/// What has no meaning any more, and has to be undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Orphan {
    /// An unknown backend.
    Backend(BackendId),
    /// A network that an unknown service allows: the next one of that number must not inherit it.
    Allowed(ServiceId, IpNet),
}

impl Actual {
    /// Goes on from what was found in the kernel, and says what has to be undone.
    #[must_use]
    pub fn adopt(ledger: &IdManifest, found: KernelContents) -> (Self, Vec<Orphan>) {
        let KernelContents { backends, orphans, frontends, allowed, .. } = found;
        let KernelContents { generations, reverse_nat, ports, attached, .. } = found;
        let KernelContents { devices, sources, nodes, .. } = found;
        let known = Self { devices, sources, nodes, generations, ..Self::with_room_for(0) };
        let mut actual = Self { reverse_nat, ports, attached, ..known };
        let by_id: BTreeMap<ServiceId, ServiceKey> =
            ledger.services().map(|(key, id)| (id, key)).collect();
        for (id, key) in &by_id {
            let region_of = |is_local: bool| {
                let mut of_service = frontends.values().filter(|to| to.id == *id);
                let found = of_service.find(|to| (to.scope == Scope::Local) == is_local);
                found.map_or(Region::EMPTY, |to| to.region)
            };
            let (region, local) = (region_of(false), region_of(true));
            // What the slots hold was not read: they are written again. One table may serve both.
            let local = if local == region {
                LocalTable { region: Region::EMPTY, recipe: Recipe::NOTHING }
            } else {
                LocalTable { region: local, recipe: Recipe::UNKNOWN }
            };
            let installed = Installed { id: *id, region, recipe: Recipe::UNKNOWN, local };
            actual.services.insert(*key, installed);
        }
        for to in frontends.values() {
            actual.tables.take(to.region);
        }
        actual.next_service = by_id.keys().next_back().map_or(0, |id| id.get() + 1);
        actual.last_id = backends.values().map(|(id, _)| id.index).max().unwrap_or(0);
        for id in &orphans {
            // What they are retired to.
            if let Some(generation) = actual.generations.get_mut(id.index as usize) {
                *generation = id.next().generation;
            }
        }
        let mut unknown: Vec<_> = orphans.into_iter().map(Orphan::Backend).collect();
        for (id, net) in allowed {
            match by_id.get(&id) {
                Some(service) => {
                    actual.allowed.insert((*service, net));
                }
                None => unknown.push(Orphan::Allowed(id, net)),
            }
        }
        // When the others were given back is not known.
        let in_use: BTreeSet<u32> = backends.values().map(|(id, _)| id.index).collect();
        let of_some_backend = (0u32..).zip(&actual.generations).filter(|(_, of)| **of != 0);
        actual.retired =
            of_some_backend.map(|(id, _)| id).filter(|id| !in_use.contains(id)).collect();
        (actual.backends, actual.frontends) = (backends, frontends);
        (actual, unknown)
    }
}

#[cfg(test)]
mod tests;

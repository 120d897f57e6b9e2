//! What is in the kernel, learned from the changes that were made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use samport_common::flow::ServiceId;
use samport_common::layout::{BackendState, DEFAULT_BACKENDS, DeviceInfo, DeviceSet};

use super::change::{
    BackendId, BackendKey, Change, Frontend, Part, ReverseNatTable, Role, ServiceKey, Tunnel,
};
use crate::model::ports::Listen;
use crate::plan::table::{Recipe, Region, Tables};

/// What is in the kernel, as far as we have put it there.
#[derive(Clone, Debug)]
pub struct Actual {
    pub(super) backends: BTreeMap<BackendKey, (BackendId, Attributes)>,
    pub(super) reverse_nat: ReverseNatTable,
    pub(super) services: BTreeMap<ServiceKey, Installed>,
    /// By address and port, whichever service has them.
    pub(super) frontends: BTreeMap<(IpAddr, Listen), Frontend>,
    pub(super) allowed: BTreeSet<(ServiceKey, IpNet)>,
    pub(super) ports: BTreeSet<Listen>,
    pub(super) attached: BTreeSet<(Role, u32)>,
    pub(super) devices: BTreeMap<u32, DeviceInfo>,
    pub(super) sources: BTreeMap<IpAddr, DeviceSet>,
    /// Other nodes, by where the tunnels to them end, with their indices.
    pub(super) nodes: BTreeMap<SocketAddr, (u32, Tunnel)>,
    pub(super) tables: Tables,
    /// By backend id; as many as there is room for, and id 0.
    pub(super) generations: Vec<u32>,
    /// Backend ids that were in use when a program may have begun that is still running.
    pub(super) retired: BTreeSet<u32>,
    pub(super) last_id: u32,
    pub(super) next_service: u16,
}

/// What may change of a backend while its id is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Other services use the same endpoint.
    pub shared: bool,
    /// Its share relative to the others.
    pub weight: u32,
    /// Whether it takes new flows, and keeps which.
    pub state: BackendState,
    /// The devices its replies may come in by.
    pub answers_on: DeviceSet,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Installed {
    pub(super) id: ServiceId,
    pub(super) region: Region,
    /// What the table there follows from.
    pub(super) recipe: Recipe,
    /// The table of the backends of this machine alone, if there are others.
    pub(super) local: LocalTable,
}

impl Installed {
    /// One without a table.
    pub(super) const fn new(id: ServiceId) -> Self {
        let local = LocalTable { region: Region::EMPTY, recipe: Recipe::NOTHING };
        Self { id, region: Region::EMPTY, recipe: Recipe::NOTHING, local }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LocalTable {
    pub(super) region: Region,
    pub(super) recipe: Recipe,
}

impl Default for Actual {
    fn default() -> Self {
        Self::with_room_for(DEFAULT_BACKENDS)
    }
}

impl Actual {
    /// A kernel with room for this many backends, and nothing in it yet.
    #[must_use]
    pub fn with_room_for(backends: u32) -> Self {
        Self {
            backends: BTreeMap::new(),
            reverse_nat: BTreeMap::new(),
            services: BTreeMap::new(),
            frontends: BTreeMap::new(),
            allowed: BTreeSet::new(),
            ports: BTreeSet::new(),
            attached: BTreeSet::new(),
            devices: BTreeMap::new(),
            sources: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tables: Tables::default(),
            generations: vec![0; backends as usize + 1],
            retired: BTreeSet::new(),
            last_id: 0,
            next_service: 0,
        }
    }

    /// The backends and their ids.
    pub fn backends(&self) -> impl Iterator<Item = (&BackendKey, BackendId)> {
        self.backends.iter().map(|(key, (id, _))| (key, *id))
    }

    /// The backends, and whether they take no new flows.
    pub fn draining_by_backend(&self) -> impl Iterator<Item = (&BackendKey, bool)> {
        self.backends.iter().map(|(key, (_, marks))| (key, marks.state != BackendState::Serving))
    }

    /// The id of a backend the kernel has.
    #[must_use]
    pub fn id_of(&self, key: &BackendKey) -> Option<BackendId> {
        self.backends.get(key).map(|(id, _)| *id)
    }

    /// Records a change that was made.
    pub fn record(&mut self, change: &Change) {
        match change {
            Change::SetBackend { key, id, shared, weight, state, answers_on } => {
                let (shared, weight, state) = (*shared, *weight, *state);
                let marks = Attributes { shared, weight, state, answers_on: *answers_on };
                self.last_id = id.index;
                self.generations[id.index as usize] = id.generation;
                self.backends.insert(key.clone(), (*id, marks));
            }
            Change::SetNode { at, index, tunnel } => {
                self.nodes.insert(*at, (*index, *tunnel));
            }
            Change::RemoveNode { at, .. } => {
                self.nodes.remove(at);
            }
            Change::SetDevice(ifindex, device) => {
                self.devices.insert(*ifindex, *device);
            }
            Change::RemoveDevice(ifindex) => {
                self.devices.remove(ifindex);
            }
            Change::SetSource(addr, devices) => {
                self.sources.insert(*addr, *devices);
            }
            Change::RemoveSource(addr) => {
                self.sources.remove(addr);
            }
            Change::SetReverseNat { source, reverse_nat } => {
                self.reverse_nat.insert(*source, reverse_nat.clone());
            }
            Change::Attach(role, ifindex) => {
                self.attached.insert((*role, *ifindex));
            }
            Change::WriteTable { service, part, region, recipe, .. } => {
                self.tables.take(*region);
                if let Some(installed) = self.services.get_mut(service) {
                    let (in_use, of) = match part {
                        Part::All => (&mut installed.region, &mut installed.recipe),
                        Part::Local => (&mut installed.local.region, &mut installed.local.recipe),
                    };
                    let before = std::mem::replace(in_use, *region);
                    of.clone_from(recipe);
                    self.give_back(before);
                }
            }
            Change::Allow { service, net, .. } => {
                self.allowed.insert((*service, *net));
            }
            Change::Disallow { service, net, .. } => {
                self.allowed.remove(&(*service, *net));
            }
            Change::Settle => {
                self.tables.settle();
                self.retired.clear();
            }
            Change::SetFrontend { addr, listen, to } => {
                let before = self.frontends.insert((*addr, *listen), *to);
                if let Some(before) = before {
                    self.give_back(before.region);
                }
            }
            Change::OpenPort(listen) => {
                self.ports.insert(*listen);
            }
            Change::ClosePort(listen) => {
                self.ports.remove(listen);
            }
            Change::RemoveFrontend { addr, listen } => {
                let before = self.frontends.remove(&(*addr, *listen));
                if let Some(before) = before {
                    self.give_back(before.region);
                }
            }
            Change::RemoveReverseNat(source) => {
                self.reverse_nat.remove(source);
            }
            Change::RetireBackend { key, id } => {
                self.backends.remove(key);
                self.generations[id.index as usize] = id.next().generation;
                self.retired.insert(id.index);
            }
            Change::Detach(role, ifindex) => {
                self.attached.remove(&(*role, *ifindex));
            }
        }
    }

    /// Gives a table's room back, unless somebody reads it: a change may have failed before all of its
    /// frontends were led to the next one.
    fn give_back(&mut self, region: Region) {
        let is_read = self.frontends.values().any(|to| to.region == region)
            || self
                .services
                .values()
                .any(|installed| installed.region == region || installed.local.region == region);
        if !is_read {
            self.tables.give_back(region);
        }
    }
}

//! From what is wanted and what is there to a list of changes. Pure.
//!
//! The order of the changes is what makes them safe under traffic: a backend is set before its
//! replies are understood, its replies are understood before a table names it, a table is whole
//! before a service points to it, and everything is taken away the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use samport_common::flow::ServiceId;
use samport_common::layout::{MAX_BACKENDS, SHARED_BY};

use crate::model::Place;
use crate::table::{Region, Tables, slots_for};

/// How packets get to a backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Route {
    /// Straight into the namespace behind a veth.
    Peer(Place),
    /// By the neighbour table.
    Neighbour {
        /// The device packets leave by.
        ifindex: u32,
        /// The device answers come in by: the same, or a port of that bridge.
        answers_on: u32,
    },
    /// Through the host's stack.
    Stack,
}

/// What makes a backend that backend. If any of it changes it is another one, and no flow of the
/// old one is its.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BackendKey {
    /// The host port it serves.
    pub listen: u16,
    /// Its name.
    pub name: String,
    /// Where it answers.
    pub endpoint: SocketAddr,
    /// How packets get there.
    pub route: Route,
}

/// What may change in a backend's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Relative to the others; 0 takes no new flows.
    pub weight: u32,
    /// Keeps its flows, takes no new ones.
    pub draining: bool,
}

/// What is wanted of the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// Ports, and the addresses each is served on.
    pub frontends: BTreeMap<u16, BTreeSet<IpAddr>>,
    /// Backends.
    pub backends: BTreeMap<BackendKey, Share>,
    /// Interfaces clients come in by.
    pub interfaces: BTreeSet<u32>,
}

/// Where a program sits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Forward, at ingress of an interface clients come in by.
    Forward,
    /// Reverse, at ingress of a device backends answer from.
    Reverse,
    /// Reverse, at egress of an interface clients come in by.
    Egress,
}

/// A kernel service: one port for one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServiceKey {
    /// The port.
    pub port: u16,
    /// IPv6 rather than IPv4.
    pub v6: bool,
}

/// One step from what is there to what is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Writes a backend nobody refers to yet, or its `shared` mark.
    SetBackend {
        /// Who it is.
        key: BackendKey,
        /// Under which id and generation.
        id: BackendId,
        /// Whether other services use the same endpoint.
        shared: bool,
    },
    /// Says whose replies come from an endpoint.
    SetOwners {
        /// The endpoint.
        endpoint: SocketAddr,
        /// Its services and backend ids.
        owners: Vec<(ServiceId, BackendId)>,
    },
    /// Attaches a program.
    Attach(Role, u32),
    /// Writes a table into a region nobody reads.
    WriteTable {
        /// The service it is for.
        service: ServiceKey,
        /// Where it is written.
        region: Region,
        /// Backend ids.
        slots: Vec<u32>,
    },
    /// Waits until no running program can still read a region that was given back.
    Settle,
    /// Points an address and port to a service's current table.
    SetFrontend {
        /// The address.
        addr: IpAddr,
        /// The port.
        port: u16,
        /// The service's id.
        id: ServiceId,
        /// Its table.
        region: Region,
    },
    /// Lets packets to a port be looked at.
    OpenPort(u16),
    /// Stops that.
    ClosePort(u16),
    /// Stops serving a port on an address.
    RemoveFrontend {
        /// The address.
        addr: IpAddr,
        /// The port.
        port: u16,
    },
    /// Forgets an endpoint's replies.
    RemoveOwners(SocketAddr),
    /// Refuses a backend's flows from now on, and frees its id.
    RetireBackend {
        /// Who it was.
        key: BackendKey,
        /// Under which id.
        id: BackendId,
    },
    /// Detaches a program.
    Detach(Role, u32),
}

/// Index into `BACKENDS` and how often it has been used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BackendId {
    /// The index, above 0.
    pub index: u32,
    /// The generation, 24 bits.
    pub generation: u32,
}

/// What is in the kernel, as far as we have put it there.
#[derive(Clone, Debug)]
pub struct Actual {
    backends: BTreeMap<BackendKey, (BackendId, bool)>,
    owners: BTreeMap<SocketAddr, Vec<(ServiceId, BackendId)>>,
    services: BTreeMap<ServiceKey, Installed>,
    frontends: BTreeMap<(IpAddr, u16), (ServiceId, Region)>,
    ports: BTreeSet<u16>,
    attached: BTreeSet<(Role, u32)>,
    tables: Tables,
    generations: Vec<u32>,
    last_id: u32,
    next_service: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Installed {
    id: ServiceId,
    region: Region,
    slots: Vec<u32>,
}

impl Default for Actual {
    fn default() -> Self {
        Self {
            backends: BTreeMap::new(),
            owners: BTreeMap::new(),
            services: BTreeMap::new(),
            frontends: BTreeMap::new(),
            ports: BTreeSet::new(),
            attached: BTreeSet::new(),
            tables: Tables::default(),
            generations: vec![0; MAX_BACKENDS as usize],
            last_id: 0,
            next_service: 0,
        }
    }
}

impl Actual {
    /// The backends and their ids.
    pub fn backends(&self) -> impl Iterator<Item = (&BackendKey, BackendId)> {
        self.backends.iter().map(|(key, (id, _))| (key, *id))
    }

    /// Takes note of a change that was made.
    pub fn record(&mut self, change: &Change) {
        match change {
            Change::SetBackend { key, id, shared } => {
                self.last_id = id.index;
                self.generations[id.index as usize] = id.generation;
                self.backends.insert(key.clone(), (*id, *shared));
            }
            Change::SetOwners { endpoint, owners } => {
                self.owners.insert(*endpoint, owners.clone());
            }
            Change::Attach(role, ifindex) => {
                self.attached.insert((*role, *ifindex));
            }
            Change::WriteTable { service, region, slots } => {
                self.tables.take(*region);
                if let Some(installed) = self.services.get_mut(service) {
                    self.tables.give_back(installed.region);
                    installed.region = *region;
                    installed.slots.clone_from(slots);
                }
            }
            Change::Settle => self.tables.settle(),
            Change::SetFrontend { addr, port, id, region } => {
                self.frontends.insert((*addr, *port), (*id, *region));
            }
            Change::OpenPort(port) => {
                self.ports.insert(*port);
            }
            Change::ClosePort(port) => {
                self.ports.remove(port);
            }
            Change::RemoveFrontend { addr, port } => {
                self.frontends.remove(&(*addr, *port));
            }
            Change::RemoveOwners(endpoint) => {
                self.owners.remove(endpoint);
            }
            Change::RetireBackend { key, .. } => {
                self.backends.remove(key);
            }
            Change::Detach(role, ifindex) => {
                self.attached.remove(&(*role, *ifindex));
            }
        }
    }
}

/// The changes that lead from `actual` to `desired`, in the order they must be made.
///
/// `actual` is only changed by giving numbers to services it has not seen, which is no change in the
/// kernel; everything else it learns by [`Actual::record`] as changes are made.
///
/// # Errors
/// When a limit would be exceeded; the message names it. Then nothing is to be changed.
pub fn plan(desired: &Desired, actual: &mut Actual) -> Result<Vec<Change>> {
    number_services(desired, actual)?;
    let mut changes = Vec::new();
    let ids = plan_backends(desired, actual, &mut changes)?;
    let owners = owners_of(desired, actual, &ids)?;
    for (endpoint, of) in &owners {
        if actual.owners.get(endpoint) != Some(of) {
            changes.push(Change::SetOwners { endpoint: *endpoint, owners: of.clone() });
        }
    }
    let wanted = attachments(desired);
    let attach = |on: fn(Role) -> bool| {
        wanted.difference(&actual.attached).filter(move |(role, _)| on(*role)).copied()
    };
    // Replies must be understood before the first packet goes out.
    changes.extend(attach(|r| r != Role::Forward).map(|(role, on)| Change::Attach(role, on)));
    plan_services(desired, actual, &ids, &mut changes)?;
    changes.extend(attach(|r| r == Role::Forward).map(|(role, on)| Change::Attach(role, on)));

    for (key, (id, _)) in &actual.backends {
        if !desired.backends.contains_key(key) {
            changes.push(Change::RetireBackend { key: key.clone(), id: *id });
        }
    }
    for endpoint in actual.owners.keys().filter(|endpoint| !owners.contains_key(endpoint)) {
        changes.push(Change::RemoveOwners(*endpoint));
    }
    for (role, ifindex) in actual.attached.difference(&wanted) {
        changes.push(Change::Detach(*role, *ifindex));
    }
    Ok(changes)
}

/// Gives every wanted service an id. Ids are not used twice until all have been used once, and
/// flows carry their backend's generation, so that a new service never finds an old one's flows.
fn number_services(desired: &Desired, actual: &mut Actual) -> Result<()> {
    for port in desired.frontends.keys() {
        for v6 in [false, true] {
            let key = ServiceKey { port: *port, v6 };
            if actual.services.contains_key(&key) {
                continue;
            }
            let used: BTreeSet<u16> = actual.services.values().map(|s| s.id.get()).collect();
            let free = (0..ServiceId::LIMIT)
                .map(|step| (actual.next_service + step) % ServiceId::LIMIT)
                .find(|id| !used.contains(id));
            let Some(id) = free.and_then(ServiceId::new) else {
                bail!("more than {} services", ServiceId::LIMIT);
            };
            actual.next_service = (id.get() + 1) % ServiceId::LIMIT;
            let installed = Installed { id, region: Region::EMPTY, slots: Vec::new() };
            actual.services.insert(key, installed);
        }
    }
    Ok(())
}

/// Ids for all wanted backends, and the changes that set the new ones.
fn plan_backends<'a>(
    desired: &'a Desired,
    actual: &Actual,
    changes: &mut Vec<Change>,
) -> Result<BTreeMap<&'a BackendKey, BackendId>> {
    let mut used: BTreeSet<u32> = actual.backends.values().map(|(id, _)| id.index).collect();
    let mut last = actual.last_id;
    let mut services_at: BTreeMap<SocketAddr, BTreeSet<u16>> = BTreeMap::new();
    for key in desired.backends.keys() {
        services_at.entry(key.endpoint).or_default().insert(key.listen);
    }
    let mut ids = BTreeMap::new();
    for key in desired.backends.keys() {
        let shared = services_at.get(&key.endpoint).is_some_and(|ports| ports.len() > 1);
        let id = match actual.backends.get(key) {
            Some((id, was_shared)) if *was_shared == shared => {
                ids.insert(key, *id);
                continue;
            }
            Some((id, _)) => *id,
            None => {
                let Some(index) = (1..MAX_BACKENDS)
                    .map(|step| 1 + (last + step - 1) % (MAX_BACKENDS - 1))
                    .find(|index| !used.contains(index))
                else {
                    bail!("more than {} backends", MAX_BACKENDS - 1);
                };
                used.insert(index);
                last = index;
                let generation = next_generation(actual.generations[index as usize]);
                BackendId { index, generation }
            }
        };
        ids.insert(key, id);
        changes.push(Change::SetBackend { key: key.clone(), id, shared });
    }
    Ok(ids)
}

const fn next_generation(generation: u32) -> u32 {
    (generation + 1) & samport_common::flow::FlowWord::MAX_GENERATION
}

/// Which services and backends each endpoint answers for.
fn owners_of(
    desired: &Desired,
    actual: &Actual,
    ids: &BTreeMap<&BackendKey, BackendId>,
) -> Result<BTreeMap<SocketAddr, Vec<(ServiceId, BackendId)>>> {
    let mut owners: BTreeMap<SocketAddr, Vec<(ServiceId, BackendId)>> = BTreeMap::new();
    for (key, id) in ids {
        let service = ServiceKey { port: key.listen, v6: key.endpoint.is_ipv6() };
        let Some(installed) = actual.services.get(&service) else {
            bail!("backend {} is for port {}, which is not served", key.name, key.listen);
        };
        let of = owners.entry(key.endpoint).or_default();
        of.push((installed.id, *id));
        if of.len() > SHARED_BY {
            bail!("{} serves more than {SHARED_BY} ports with one of its own", key.endpoint);
        }
    }
    debug_assert!(owners.len() <= desired.backends.len());
    Ok(owners)
}

/// Where programs must be attached.
fn attachments(desired: &Desired) -> BTreeSet<(Role, u32)> {
    let mut wanted: BTreeSet<_> =
        desired.interfaces.iter().map(|ifindex| (Role::Forward, *ifindex)).collect();
    for key in desired.backends.keys() {
        match key.route {
            Route::Peer(place) => {
                wanted.insert((Role::Reverse, place.ifindex));
            }
            Route::Neighbour { answers_on, .. } => {
                wanted.insert((Role::Reverse, answers_on));
            }
            Route::Stack => {
                wanted.extend(desired.interfaces.iter().map(|on| (Role::Egress, *on)));
            }
        }
    }
    wanted
}

/// Tables, frontends and ports.
fn plan_services(
    desired: &Desired,
    actual: &Actual,
    ids: &BTreeMap<&BackendKey, BackendId>,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let mut tables = actual.tables.clone();
    for (key, installed) in &actual.services {
        let addresses = desired.frontends.get(&key.port);
        let slots = if addresses.is_some() { table_of(desired, ids, *key) } else { Vec::new() };
        let region = if slots == installed.slots {
            installed.region
        } else {
            if tables.find(&slots).is_none() {
                changes.push(Change::Settle);
                tables.settle();
            }
            let Some(region) = tables.find(&slots) else {
                bail!("no room for a table of {} slots", slots.len());
            };
            tables.take(region);
            changes.push(Change::WriteTable { service: *key, region, slots });
            region
        };
        for addr in addresses.into_iter().flatten().filter(|addr| addr.is_ipv6() == key.v6) {
            if actual.frontends.get(&(*addr, key.port)) != Some(&(installed.id, region)) {
                let (addr, port, id) = (*addr, key.port, installed.id);
                changes.push(Change::SetFrontend { addr, port, id, region });
            }
        }
    }
    for port in desired.frontends.keys().filter(|port| !actual.ports.contains(port)) {
        changes.push(Change::OpenPort(*port));
    }
    for port in actual.ports.iter().filter(|port| !desired.frontends.contains_key(port)) {
        changes.push(Change::ClosePort(*port));
    }
    for (addr, port) in actual.frontends.keys() {
        if !desired.frontends.get(port).is_some_and(|addresses| addresses.contains(addr)) {
            changes.push(Change::RemoveFrontend { addr: *addr, port: *port });
        }
    }
    Ok(())
}

/// A service's table: the backends that take new flows, or, if there is none, those that drain:
/// better served by a leaving backend than not at all.
fn table_of(
    desired: &Desired,
    ids: &BTreeMap<&BackendKey, BackendId>,
    service: ServiceKey,
) -> Vec<u32> {
    let of_service = || {
        desired
            .backends
            .iter()
            .filter(|(key, _)| key.listen == service.port && key.endpoint.is_ipv6() == service.v6)
    };
    let weighted = |draining: bool| -> Vec<(u32, u32)> {
        of_service()
            .filter(|(_, share)| share.draining == draining)
            .filter_map(|(key, share)| Some((ids.get(key)?.index, share.weight)))
            .filter(|(_, weight)| *weight > 0)
            .collect()
    };
    let active = weighted(false);
    slots_for(&if active.is_empty() { weighted(true) } else { active })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

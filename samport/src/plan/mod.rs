//! From what is wanted and what is there to a list of changes. Pure.
//!
//! The order of the changes is what makes them safe under traffic: a backend is set before its
//! replies are understood, its replies are understood before a table names it, a table is whole
//! before a service points to it, and everything is taken away the other way round.

mod actual;
mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Result, bail};
use samport_common::flow::ServiceId;
use samport_common::layout::{MAX_BACKENDS, SHARED_BY};

use crate::table::{Region, slots_for};
use actual::Installed;
use change::Owners;

pub use actual::Actual;
pub use change::{BackendId, BackendKey, Change, Desired, Owner, Role, Route, ServiceKey, Share};

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
    // Tables may name those who own an endpoint no longer until they are rewritten.
    let before = actual.owners.clone();
    let between =
        owners.iter().map(|(endpoint, new)| (*endpoint, joined(new, before.get(endpoint))));
    let between: BTreeMap<_, _> = between.collect();
    set_owners(&before, &between, &mut changes);
    let wanted = attachments(desired);
    let attach = |on: fn(Role) -> bool| {
        wanted.difference(&actual.attached).filter(move |(role, _)| on(*role)).copied()
    };
    // Replies must be understood before the first packet goes out.
    changes.extend(attach(|r| r != Role::Forward).map(|(role, on)| Change::Attach(role, on)));
    plan_services(desired, actual, &ids, &mut changes)?;
    changes.extend(attach(|r| r == Role::Forward).map(|(role, on)| Change::Attach(role, on)));

    set_owners(&between, &owners, &mut changes);
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
) -> Result<Owners> {
    let mut owners = Owners::new();
    for (key, id) in ids {
        let service = ServiceKey { port: key.listen, v6: key.endpoint.is_ipv6() };
        let Some(installed) = actual.services.get(&service) else {
            bail!("backend {} is for port {}, which is not served", key.endpoint, key.listen);
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

/// The owners of an endpoint while some come and some go: the new ones, and as many of the old ones
/// as there is room for.
fn joined(new: &[Owner], old: Option<&Vec<Owner>>) -> Vec<Owner> {
    let leaving = old.into_iter().flatten().filter(|owner| !new.contains(owner));
    new.iter().chain(leaving).take(SHARED_BY).copied().collect()
}

/// The changes from some owners to others; endpoints without any are left to `RemoveOwners`.
fn set_owners(from: &Owners, to: &Owners, changes: &mut Vec<Change>) {
    for (endpoint, owners) in to {
        if from.get(endpoint) != Some(owners) {
            changes.push(Change::SetOwners { endpoint: *endpoint, owners: owners.clone() });
        }
    }
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
mod tests;

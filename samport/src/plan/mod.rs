//! From what is wanted and what is there to a list of changes. Pure.
//!
//! The order of the changes is what makes them safe under traffic: a backend is set before its
//! replies are understood, its replies are understood before a table names it, a table is whole
//! before a service points to it, and everything is taken away the other way round.

mod actual;
mod adopt;
mod change;
mod matched;
mod roll;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use samport_common::flow::ServiceId;
use samport_common::layout::{MAX_FRONTENDS, SHARED_BY, Scope};

use crate::ports::Listen;
use crate::table::{Recipe, Region, Tables};
use actual::Installed;
use change::Owners;
use matched::matched;
use roll::Roll;

pub use actual::{Actual, Marks};
pub use adopt::{Found, Ledger, Stray};
pub use change::{
    BackendId, BackendKey, Change, Desired, Frontend, Owner, Policy, Role, Route, ServiceKey,
    Share, Source,
};

/// The changes that lead from `actual` to `desired`, in the order they must be made.
///
/// `actual` is only changed by giving numbers to services it has not seen, which is no change in the
/// kernel; everything else it learns by [`Actual::record`] as changes are made.
///
/// # Errors
/// When a limit would be exceeded; the message names it. Then nothing is to be changed.
pub fn plan(desired: &Desired, actual: &mut Actual) -> Result<Vec<Change>> {
    check_frontends(desired)?;
    number_services(desired, actual)?;
    let mut changes = Vec::new();
    let roll = Roll::of(desired);
    let ids = plan_backends(desired, actual, &roll, &mut changes)?;
    let owners = owners_of(desired, actual, &ids)?;
    // Tables may name those who own an endpoint no longer until they are rewritten.
    let moving: Vec<_> = matched(&owners, &actual.owners)
        .filter(|(_, new, old)| Some(*new) != *old)
        .map(|(source, new, old)| (*source, joined(new, old), new))
        .collect();
    for (source, between, _) in &moving {
        if actual.owners.get(source) != Some(between) {
            changes.push(Change::SetOwners { source: *source, owners: between.clone() });
        }
    }
    let wanted = attachments(desired);
    let attach = |on: fn(Role) -> bool| {
        wanted.difference(&actual.attached).filter(move |(role, _)| on(*role)).copied()
    };
    // Replies must be understood before the first packet goes out.
    changes.extend(attach(|r| !r.is_entrance()).map(|(role, on)| Change::Attach(role, on)));
    // Before a frontend is restricted to them, and until it is no longer: who may be served before and
    // afterwards is served all the time, and who may not never is.
    let allowed = allowed(desired);
    changes.extend(allowed.difference(&actual.allowed).filter_map(|(service, net)| {
        let id = actual.services.get(service)?.id;
        Some(Change::Allow { service: *service, id, net: *net })
    }));
    plan_services(desired, actual, &roll, &ids, &mut changes)?;
    changes.extend(actual.allowed.difference(&allowed).filter_map(|(service, net)| {
        let id = actual.services.get(service)?.id;
        Some(Change::Disallow { service: *service, id, net: *net })
    }));
    changes.extend(attach(Role::is_entrance).map(|(role, on)| Change::Attach(role, on)));

    for (source, between, new) in moving {
        if between != *new {
            changes.push(Change::SetOwners { source, owners: new.clone() });
        }
    }
    for (key, (id, _), wanted) in matched(&actual.backends, &desired.backends) {
        if wanted.is_none() {
            changes.push(Change::RetireBackend { key: key.clone(), id: *id });
        }
    }
    for (source, _, wanted) in matched(&actual.owners, &owners) {
        if wanted.is_none() {
            changes.push(Change::RemoveOwners(*source));
        }
    }
    for (role, ifindex) in actual.attached.difference(&wanted) {
        changes.push(Change::Detach(*role, *ifindex));
    }
    Ok(changes)
}

/// Refuses more frontends than the kernel's maps hold.
fn check_frontends(desired: &Desired) -> Result<()> {
    for v6 in [false, true] {
        let of_family = |addr: &&IpAddr| addr.is_ipv6() == v6;
        let count: usize =
            desired.frontends.values().map(|on| on.keys().filter(of_family).count()).sum();
        if count > MAX_FRONTENDS as usize {
            bail!(
                "{} ports on all their {} addresses are {count} places to serve, more than the \
                 {MAX_FRONTENDS} there is room for; serve fewer ports, or fewer interfaces",
                desired.frontends.len(),
                if v6 { "IPv6" } else { "IPv4" },
            );
        }
    }
    Ok(())
}

/// Gives every wanted service an id. Ids are not used twice until all have been used once, and
/// flows carry their backend's generation, so that a new service never finds an old one's flows.
fn number_services(desired: &Desired, actual: &mut Actual) -> Result<()> {
    for listen in desired.frontends.keys() {
        for v6 in [false, true] {
            let key = ServiceKey { listen: *listen, v6 };
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
            let installed = Installed { id, region: Region::EMPTY, recipe: Recipe::NOTHING };
            actual.services.insert(key, installed);
        }
    }
    Ok(())
}

/// Ids for all wanted backends, in their order, and the changes that set the new ones.
fn plan_backends<'a>(
    desired: &'a Desired,
    actual: &Actual,
    roll: &Roll<'a>,
    changes: &mut Vec<Change>,
) -> Result<Vec<(&'a BackendKey, BackendId)>> {
    let mut used: BTreeSet<u32> = actual.backends.values().map(|(id, _)| id.index).collect();
    let mut last = actual.last_id;
    let room = u32::try_from(actual.generations.len()).unwrap_or(u32::MAX);
    let mut ids = Vec::with_capacity(desired.backends.len());
    for (key, share, known) in matched(&desired.backends, &actual.backends) {
        let weight = roll.share_of(key).unwrap_or(share.weight);
        let wanted = Marks { shared: roll.is_shared(key), weight, draining: share.drains() };
        let id = match known {
            Some((id, marks)) if *marks == wanted => {
                ids.push((key, *id));
                continue;
            }
            Some((id, _)) => *id,
            None => {
                let Some(index) = (1..room)
                    .map(|step| 1 + (last + step - 1) % (room - 1))
                    .find(|index| !used.contains(index))
                else {
                    bail!(
                        "more than {} backends; --max-backends is how many there may be",
                        room - 1
                    );
                };
                used.insert(index);
                last = index;
                let generation = next_generation(actual.generations[index as usize]);
                BackendId { index, generation }
            }
        };
        ids.push((key, id));
        let Marks { shared, weight, draining } = wanted;
        changes.push(Change::SetBackend { key: key.clone(), id, shared, weight, draining });
    }
    Ok(ids)
}

const fn next_generation(generation: u32) -> u32 {
    (generation + 1) & samport_common::flow::FlowWord::MAX_GENERATION
}

/// Which services and backends each socket answers for.
fn owners_of(
    desired: &Desired,
    actual: &Actual,
    ids: &[(&BackendKey, BackendId)],
) -> Result<Owners> {
    let mut owners = Owners::new();
    for (key, id) in ids {
        let Some(installed) = actual.services.get(&key.service()) else {
            let port = key.listen.brief();
            bail!("backend {} is for port {port}, which is not served", key.endpoint);
        };
        let of = owners.entry(key.source()).or_default();
        of.push((installed.id, *id));
        if of.len() > SHARED_BY {
            bail!("{} serves more than {SHARED_BY} ports with one of its own", key.endpoint);
        }
    }
    debug_assert!(owners.len() <= desired.backends.len());
    Ok(owners)
}

/// The owners of a socket while some come and some go: the new ones, and as many of the old ones
/// as there is room for.
fn joined(new: &[Owner], old: Option<&Vec<Owner>>) -> Vec<Owner> {
    let leaving = old.into_iter().flatten().filter(|owner| !new.contains(owner));
    new.iter().chain(leaving).take(SHARED_BY).copied().collect()
}

/// Where programs must be attached.
fn attachments(desired: &Desired) -> BTreeSet<(Role, u32)> {
    let mut wanted: BTreeSet<_> =
        desired.interfaces.iter().map(|ifindex| (Role::Forward, *ifindex)).collect();
    wanted.extend(desired.bridges.iter().map(|bridge| (Role::Inside, *bridge)));
    for key in desired.backends.keys() {
        match key.route {
            Route::Peer(place) => {
                wanted.insert((Role::Reverse, place.ifindex));
            }
            // Another device than the one towards it is a bridge's port: its veth.
            Route::Neighbour { ifindex, answers_on } => {
                let role = if answers_on == ifindex { Role::Device } else { Role::Reverse };
                wanted.insert((role, answers_on));
            }
            Route::Child(place) => {
                wanted.insert((Role::Egress, place.ifindex));
            }
            Route::Stack => {
                // Wherever a client may be: its replies pass there last.
                let clients = desired.interfaces.union(&desired.bridges);
                wanted.extend(clients.map(|on| (Role::Egress, *on)));
            }
        }
    }
    wanted
}

/// The networks of each service. One without any of its family serves nobody by it, if it has others.
fn allowed(desired: &Desired) -> BTreeSet<(ServiceKey, IpNet)> {
    let served = desired.allowed.iter().filter(|(port, _)| desired.frontends.contains_key(port));
    served
        .flat_map(|(listen, networks)| {
            let service = |net: &IpNet| ServiceKey { listen: *listen, v6: net.addr().is_ipv6() };
            networks.iter().map(move |net| (service(net), *net))
        })
        .collect()
}

/// Tables, frontends and ports.
fn plan_services(
    desired: &Desired,
    actual: &Actual,
    roll: &Roll<'_>,
    ids: &[(&BackendKey, BackendId)],
    changes: &mut Vec<Change>,
) -> Result<()> {
    // First of all, so that there is room for those that take their place. Where only the service is
    // another, the new one is put over the old one.
    let (places, ports) = places(desired);
    for (addr, listen) in actual.frontends.keys().filter(|place| !places.contains(place)) {
        changes.push(Change::RemoveFrontend { addr: *addr, listen: *listen });
    }
    let mut tables = actual.tables.clone();
    for (key, installed) in &actual.services {
        let addresses = desired.frontends.get(&key.listen);
        let policy = desired.policies.get(&key.listen).copied().unwrap_or_default();
        let recipe = match addresses {
            Some(_) => roll.recipe(*key, policy.balance, ids),
            None => Recipe::NOTHING,
        };
        let region = if recipe == installed.recipe {
            installed.region
        } else {
            plan_table(*key, recipe, &mut tables, changes)?
        };
        let shared = roll.has_shared(*key);
        let restricted = desired.allowed.get(&key.listen).is_some_and(|nets| !nets.is_empty());
        let listen = key.listen.everywhere();
        for (addr, scope) in addresses.into_iter().flatten() {
            let to =
                Frontend { id: installed.id, region, scope: *scope, restricted, shared, policy };
            if addr.is_ipv6() == key.v6 && actual.frontends.get(&(*addr, listen)) != Some(&to) {
                changes.push(Change::SetFrontend { addr: *addr, listen, to });
            }
        }
        // An address that goes over to another service reads the old table until that one's turn.
        let goes_over = |(place, to): (&(IpAddr, Listen), &Frontend)| {
            let stays = addresses.is_some_and(|on| on.contains_key(&place.0));
            to.id == installed.id && !stays && places.contains(place)
        };
        if region != installed.region && !actual.frontends.iter().any(goes_over) {
            // Its room may be the next one's, as soon as nobody reads it any more.
            tables.give_back(installed.region);
        }
    }
    changes.extend(ports.difference(&actual.ports).copied().map(Change::OpenPort));
    changes.extend(actual.ports.difference(&ports).copied().map(Change::ClosePort));
    Ok(())
}

/// What the kernel knows of frontends, whichever service has them: addresses with their ports, and ports.
fn places(desired: &Desired) -> (BTreeSet<(IpAddr, Listen)>, BTreeSet<Listen>) {
    let on = |(listen, on): (&Listen, &BTreeMap<IpAddr, Scope>)| -> Vec<_> {
        on.keys().map(|addr| (*addr, listen.everywhere())).collect()
    };
    let places = desired.frontends.iter().flat_map(on).collect();
    (places, desired.frontends.keys().map(|listen| listen.everywhere()).collect())
}

/// Writes a table where nobody reads, and says where that is.
fn plan_table(
    service: ServiceKey,
    recipe: Recipe,
    tables: &mut Tables,
    changes: &mut Vec<Change>,
) -> Result<Region> {
    if tables.find(recipe.len()).is_none() {
        changes.push(Change::Settle);
        tables.settle();
    }
    let Some(region) = tables.find(recipe.len()) else {
        let port = service.listen.brief();
        bail!("no room for a table of {} slots for port {port}; serve fewer ports", recipe.len());
    };
    tables.take(region);
    changes.push(Change::WriteTable { service, region, slots: recipe.slots(), recipe });
    Ok(region)
}

#[cfg(test)]
mod allow_tests;
#[cfg(test)]
mod given_tests;
#[cfg(test)]
mod tests;

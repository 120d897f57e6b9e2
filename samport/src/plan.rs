//! From what is wanted and what is there to a list of changes. Pure.
//!
//! The order of the changes is what makes them safe under traffic: a backend is set before its
//! replies are understood, its replies are understood before a table names it, a table is whole
//! before a service points to it, and everything is taken away the other way round.

mod actual;
mod adopt;
mod change;
mod merge_join;
pub(crate) mod policy;
mod room;
mod roster;
mod sources;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use samport_common::layout::{MAX_NODES, SHARED_BY, Scope};
use samport_common::outbound;

use crate::model::ports::Listen;
use crate::plan::table::{Placed, Recipe, Region, Tables};
use change::ReverseNatTable;
use merge_join::merge_join;
use room::Room;
use roster::Roster;

pub use actual::{Actual, Attributes};
pub use adopt::{IdManifest, KernelContents, Orphan};
pub use change::{
    BackendId, BackendKey, Change, Desired, Frontend, Part, Policy, Role, Route, ServiceBackend,
    ServiceKey, Share, Source, Tunnel,
};

/// The changes that lead from `actual` to `desired`, in the order they must be made.
///
/// `actual` is only changed by giving numbers to services it has not seen, which is no change in the
/// kernel; everything else it learns by [`Actual::record`] as changes are made.
///
/// What finds no room before others have gone is left to the next plan: carry out plans until one is empty.
///
/// # Errors
/// When something finds no room and there is nothing else left to change; the message names it and the limit.
pub fn plan(desired: &Desired, actual: &mut Actual) -> Result<Vec<Change>> {
    let mut room = Room::beside(actual);
    room::number_services(desired, actual, &mut room);
    let mut changes = Vec::new();
    let roster = Roster::of(desired);
    plan_nodes(desired, actual, &mut room, &mut changes);
    let ids = plan_backends(desired, actual, &roster, &mut room, &mut changes);
    let reverse_nat = reverse_nat_of(desired, actual, &ids)?;
    // Tables may name those who own an endpoint no longer until they are rewritten.
    let moving: Vec<_> = merge_join(&reverse_nat, &actual.reverse_nat)
        .filter(|(_, new, old)| Some(*new) != *old)
        .map(|(source, new, old)| (*source, joined(new, old), new))
        .collect();
    for (source, between, _) in &moving {
        if actual.reverse_nat.get(source) != Some(between) {
            changes.push(Change::SetReverseNat { source: *source, reverse_nat: between.clone() });
        }
    }
    let wanted = attachments(desired);
    let attach = |on: fn(Role) -> bool| {
        wanted.difference(&actual.attached).filter(move |(role, _)| on(*role)).copied()
    };
    let devices = sources::devices(desired);
    // What is asked of a packet's source is known before the first packet comes.
    changes.extend(
        merge_join(&devices, &actual.devices)
            .filter(|(_, new, old)| Some(*new) != *old)
            .filter(|(ifindex, _, old)| old.is_some() || room.takes_device(**ifindex))
            .map(|(ifindex, new, _)| Change::SetDevice(*ifindex, *new)),
    );
    // Replies must be understood before the first packet goes out.
    changes.extend(attach(|r| !r.is_entrance()).map(|(role, on)| Change::Attach(role, on)));
    // A container's address is tied to its veth only while there is a program to see what comes in there.
    let sources = sources::sources(desired);
    changes.extend(
        merge_join(&sources, &actual.sources)
            .filter(|(_, new, old)| Some(*new) != *old)
            .filter(|(addr, _, old)| old.is_some() || room.takes_source(**addr))
            .map(|(addr, new, _)| Change::SetSource(*addr, *new)),
    );
    changes.extend(
        merge_join(&actual.sources, &sources)
            .filter(|(_, _, wanted)| wanted.is_none())
            .map(|(addr, ..)| Change::RemoveSource(*addr)),
    );
    // Before a frontend is restricted to them, and until it is no longer: who may be served before and
    // afterwards is served all the time, and who may not never is.
    let allowed = allowed(desired);
    changes.extend(allowed.difference(&actual.allowed).filter_map(|(service, net)| {
        let id = actual.services.get(service)?.id;
        room.takes_network(service, *net).then_some(())?;
        Some(Change::Allow { service: *service, id, net: *net })
    }));
    plan_services(desired, actual, &roster, &ids, &mut room, &mut changes);
    changes.extend(actual.allowed.difference(&allowed).filter_map(|(service, net)| {
        let id = actual.services.get(service)?.id;
        Some(Change::Disallow { service: *service, id, net: *net })
    }));
    changes.extend(attach(Role::is_entrance).map(|(role, on)| Change::Attach(role, on)));

    for (source, between, new) in moving {
        if between != *new {
            changes.push(Change::SetReverseNat { source, reverse_nat: new.clone() });
        }
    }
    for (key, (id, _), wanted) in merge_join(&actual.backends, &desired.backends) {
        if wanted.is_none() {
            changes.push(Change::RetireBackend { key: key.clone(), id: *id });
        }
    }
    for (at, (index, _), wanted) in merge_join(&actual.nodes, &desired.nodes) {
        if wanted.is_none() {
            changes.push(Change::RemoveNode { at: *at, index: *index });
        }
    }
    for (source, _, wanted) in merge_join(&actual.reverse_nat, &reverse_nat) {
        if wanted.is_none() {
            changes.push(Change::RemoveReverseNat(*source));
        }
    }
    for (role, ifindex) in actual.attached.difference(&wanted) {
        changes.push(Change::Detach(*role, *ifindex));
    }
    for (ifindex, _, wanted) in merge_join(&actual.devices, &devices) {
        if wanted.is_none() {
            changes.push(Change::RemoveDevice(*ifindex));
        }
    }
    if changes.is_empty() {
        room.shortage()?;
    }
    Ok(changes)
}

/// Indices for all wanted nodes, before a backend is one of them.
fn plan_nodes(desired: &Desired, actual: &Actual, room: &mut Room, changes: &mut Vec<Change>) {
    let mut used: BTreeSet<u32> = actual.nodes.values().map(|(index, _)| *index).collect();
    for (at, tunnel, known) in merge_join(&desired.nodes, &actual.nodes) {
        let index = match known {
            Some((_, before)) if before == tunnel => continue,
            Some((index, _)) => Some(*index),
            None => (0..MAX_NODES).find(|index| !used.contains(index)),
        };
        let Some(index) = index else {
            room.lacks_node(*at);
            continue;
        };
        used.insert(index);
        changes.push(Change::SetNode { at: *at, index, tunnel: *tunnel });
    }
}

/// Ids for all wanted backends, in their order, and the changes that set the new ones. One has no id while
/// all are in use.
fn plan_backends<'a>(
    desired: &'a Desired,
    actual: &Actual,
    roster: &Roster<'a>,
    room: &mut Room,
    changes: &mut Vec<Change>,
) -> Vec<(&'a BackendKey, Option<BackendId>)> {
    let mut used: BTreeSet<u32> = actual.backends.values().map(|(id, _)| id.index).collect();
    let mut last = actual.last_id;
    let mut retired = &actual.retired;
    let none = BTreeSet::new();
    let len = u32::try_from(actual.generations.len()).unwrap_or(u32::MAX);
    let mut ids = Vec::with_capacity(desired.backends.len());
    for (key, share, known) in merge_join(&desired.backends, &actual.backends) {
        let weight = roster.share_of(key).unwrap_or(share.weight);
        let wanted = Attributes {
            shared: roster.is_shared(key),
            weight,
            state: roster.backend_state_of(key, share),
            answers_on: share.answers_on,
        };
        let id = match known {
            Some((id, marks)) if *marks == wanted => {
                ids.push((key, Some(*id)));
                continue;
            }
            Some((id, _)) => *id,
            None => {
                // Most of all when they are full, one look must do.
                let is_full = used.len() + 1 >= len as usize;
                let ids_in_turn = (1..len).map(|step| 1 + (last + step - 1) % (len - 1));
                let free = ids_in_turn.filter(|index| !is_full && !used.contains(index));
                let mut rested = free.clone().filter(|index| !retired.contains(index));
                let Some(index) = rested.next().or_else(|| free.clone().next()) else {
                    room.lacks_backend(&share.name, len - 1);
                    ids.push((key, None));
                    continue;
                };
                if retired.contains(&index) {
                    // A program that is running may have seen the backend before.
                    changes.push(Change::Settle);
                    retired = &none;
                }
                used.insert(index);
                last = index;
                BackendId { index, generation: actual.generations[index as usize] }.next()
            }
        };
        ids.push((key, Some(id)));
        let Attributes { shared, weight, state, answers_on } = wanted;
        let key = key.clone();
        changes.push(Change::SetBackend { key, id, shared, weight, state, answers_on });
    }
    ids
}

/// Which services and backends each socket answers for.
fn reverse_nat_of(
    desired: &Desired,
    actual: &Actual,
    ids: &[(&BackendKey, Option<BackendId>)],
) -> Result<ReverseNatTable> {
    let mut reverse_nat = ReverseNatTable::new();
    // What comes back from a node has the address that was dialled.
    for (key, id) in ids.iter().filter(|(key, _)| !matches!(key.route, Route::Node(_))) {
        if !desired.frontends.contains_key(&key.listen) {
            let port = key.listen.brief();
            bail!("backend {} is for port {port}, which is not served", key.endpoint);
        }
        let (Some(installed), Some(id)) = (actual.services.get(&key.service()), id) else {
            continue;
        };
        let of = reverse_nat.entry(key.source()).or_default();
        of.push((installed.id, *id));
        if of.len() > SHARED_BY {
            bail!("{} serves more than {SHARED_BY} ports with one endpoint", key.endpoint);
        }
    }
    debug_assert!(reverse_nat.len() <= desired.backends.len());
    Ok(reverse_nat)
}

/// The owners of a socket while some come and some go: the new ones, and as many of the old ones
/// as there is room for.
fn joined(new: &[ServiceBackend], old: Option<&Vec<ServiceBackend>>) -> Vec<ServiceBackend> {
    let leaving = old.into_iter().flatten().filter(|entry| !new.contains(entry));
    new.iter().chain(leaving).take(SHARED_BY).copied().collect()
}

/// Where programs must be attached.
fn attachments(desired: &Desired) -> BTreeSet<(Role, u32)> {
    let mut wanted: BTreeSet<_> =
        desired.interfaces.iter().map(|ifindex| (Role::Forward, *ifindex)).collect();
    wanted.extend(desired.bridges.iter().map(|bridge| (Role::Inside, *bridge)));
    if desired.frontends.keys().any(|listen| takes_answers(desired, *listen)) {
        let exits = desired.interfaces.union(&desired.bridges);
        wanted.extend(exits.map(|on| (Role::Outbound, *on)));
    }
    for (key, share) in &desired.backends {
        // Which of its links a container answers by is for its own routes to say.
        wanted.extend(share.veths(key.route).map(|veth| (Role::Reverse, veth)));
        wanted.extend(share.leaves_by.iter().map(|parent| (Role::Egress, *parent)));
        // Wherever a client may be, what the stack sends there passes last.
        let clients = desired.interfaces.union(&desired.bridges);
        let egress = clients.map(|on| (Role::Egress, *on));
        match key.route {
            Route::Neighbour { ifindex, answers_on } => {
                if answers_on == ifindex {
                    wanted.insert((Role::Device, ifindex));
                }
                // The stack tells clients what size is right, in the name of what they have dialled.
                if desired.narrow.contains(&ifindex) {
                    wanted.extend(egress);
                }
            }
            // What other nodes send comes in by the interfaces.
            Route::Peer(_) | Route::Node(_) => {}
            Route::Child(place) => {
                wanted.insert((Role::Egress, place.ifindex));
            }
            Route::Stack => wanted.extend(egress),
        }
    }
    wanted
}

/// Whether a service opens flows for packets that may be answers to what the host or a container has begun from its port.
fn takes_answers(desired: &Desired, listen: Listen) -> bool {
    let policy = desired.policies.get(&listen).copied().unwrap_or_default();
    outbound::is_of_concern(listen.protocol, policy.balance.is_by_hash())
}

/// The networks of each service. One without any of its family serves no client by it, if it has others.
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
    roster: &Roster<'_>,
    ids: &[(&BackendKey, Option<BackendId>)],
    room: &mut Room,
    changes: &mut Vec<Change>,
) {
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
            Some(_) => roster.recipe(*key, policy.balance, ids),
            None => Recipe::NOTHING,
        };
        let local_recipe = addresses.and_then(|_| roster.local_recipe(*key, policy.balance, ids));
        let nodes = local_recipe.is_some();
        let local_recipe = local_recipe.unwrap_or(Recipe::NOTHING);
        let mut renewed = |part, recipe: &Recipe, before: &Recipe, region| {
            if recipe == before {
                return region;
            }
            plan_table(*key, part, recipe, &mut tables, changes).unwrap_or_else(|| {
                // What is there goes on until there is room.
                room.lacks_table(key.listen, recipe.len());
                region
            })
        };
        let region = renewed(Part::All, &recipe, &installed.recipe, installed.region);
        let before = &installed.local;
        let local = renewed(Part::Local, &local_recipe, &before.recipe, before.region);
        let shared = roster.has_shared(*key);
        let restricted = desired.allowed.contains_key(&key.listen);
        let listen = key.listen.everywhere();
        let wanted = addresses_of(desired, key.listen);
        for (addr, scope) in &wanted {
            let region = if *scope == Scope::Local && nodes { local } else { region };
            let (id, scope) = (installed.id, *scope);
            let to = Frontend { id, region, scope, restricted, shared, nodes, policy };
            if addr.is_ipv6() == key.v6 && actual.frontends.get(&(*addr, listen)) != Some(&to) {
                changes.push(Change::SetFrontend { addr: *addr, listen, to });
            }
        }
        // An address that goes over to another service reads the old table until that one's turn.
        let goes_over = |(place, to): (&(IpAddr, Listen), &Frontend)| {
            to.id == installed.id && !wanted.contains_key(&place.0) && places.contains(place)
        };
        if actual.frontends.iter().any(goes_over) {
            continue;
        }
        for (now, before) in [(region, installed.region), (local, before.region)] {
            if now != before {
                // Its room may be the next one's, as soon as it is not read any more.
                tables.give_back(before);
            }
        }
    }
    changes.extend(ports.difference(&actual.ports).copied().map(Change::OpenPort));
    changes.extend(actual.ports.difference(&ports).copied().map(Change::ClosePort));
}

/// What the kernel knows of frontends, whichever service has them: addresses with their ports, and ports.
fn places(desired: &Desired) -> (BTreeSet<(IpAddr, Listen)>, BTreeSet<Listen>) {
    let on = |listen: &Listen| -> Vec<_> {
        let addresses = addresses_of(desired, *listen);
        addresses.into_keys().map(|addr| (addr, listen.everywhere())).collect()
    };
    let places = desired.frontends.keys().flat_map(on).collect();
    let ports = desired.frontends.keys().map(|listen| listen.everywhere());
    (places, ports.chain(desired.tunnel_port.map(Listen::udp)).collect())
}

/// The addresses a port is served on, and to whom; none if it is not wanted. In a cluster also the one that stands for
/// whatever address of another node it has been dialled at.
fn addresses_of(desired: &Desired, listen: Listen) -> BTreeMap<IpAddr, Scope> {
    let Some(own) = desired.frontends.get(&listen) else { return BTreeMap::new() };
    let mut addresses = own.clone();
    let everywhere = listen.everywhere();
    let mut of_port = desired.frontends.keys().filter(|one| one.everywhere() == everywhere);
    // Of services that share a port by their addresses, the one without an address, or the first.
    let stands_for_port = listen == everywhere
        || (of_port.next() == Some(&listen) && !desired.frontends.contains_key(&everywhere));
    if desired.tunnel_port.is_some() && stands_for_port {
        let unspecified = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
        addresses.extend(unspecified.map(|addr| (addr, Scope::Local)));
    }
    addresses
}

/// Writes a table where nothing is read, and says where that is; `None` if there is no room.
fn plan_table(
    service: ServiceKey,
    part: Part,
    recipe: &Recipe,
    tables: &mut Tables,
    changes: &mut Vec<Change>,
) -> Option<Region> {
    let Placed { settles, region } = tables.place(recipe.len());
    if settles {
        changes.push(Change::Settle);
    }
    let region = region?;
    let (slots, recipe) = (recipe.slots(), recipe.clone());
    changes.push(Change::WriteTable { service, part, region, slots, recipe });
    Some(region)
}

#[cfg(test)]
mod allow_tests;
#[cfg(test)]
mod given_tests;
#[cfg(test)]
mod links_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod tests;

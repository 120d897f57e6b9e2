//! Room in the kernel's maps while a plan is made: what is there and what is to come must fit beside each
//! other, because the new is added before the old goes. What finds no room waits for the next plan.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use ipnet::IpNet;
use samport_common::flow::ServiceId;
use samport_common::layout::{MAX_ALLOWED, MAX_DEVICES, MAX_NODES, MAX_SOURCES, TABLE_SLOTS};

use super::actual::{Actual, Installed};
use super::change::{Desired, ServiceKey};
use crate::model::ports::Listen;
use crate::plan::table::Region;

/// Ids of services that nothing is known under any more are kept up to here, so that a service that comes back
/// finds its own.
const SPARE_SERVICES: usize = 2_048;

/// How much more each map takes, and what has found no room in any.
pub(super) struct Room {
    devices: usize,
    /// By family: IPv4, IPv6; and so is the next one.
    sources: [usize; 2],
    networks: [usize; 2],
    lacking: Option<String>,
}

impl Room {
    /// The room beside what is in the kernel.
    pub(super) fn beside(actual: &Actual) -> Self {
        let left = |most: u32, used: usize| (most as usize).saturating_sub(used);
        let sources = |v6| actual.sources.keys().filter(|addr| addr.is_ipv6() == v6).count();
        let networks = |v6| actual.allowed.iter().filter(|(of, _)| of.v6 == v6).count();
        Self {
            devices: left(MAX_DEVICES, actual.devices.len()),
            sources: [false, true].map(|v6| left(MAX_SOURCES, sources(v6))),
            networks: [false, true].map(|v6| left(MAX_ALLOWED, networks(v6))),
            lacking: None,
        }
    }

    /// Takes the room for a device with a hook, if there is any.
    pub(super) fn takes_device(&mut self, ifindex: u32) -> bool {
        let has_room = take(&mut self.devices);
        self.unless(has_room, || {
            format!(
                "the source of packets is not validated by device {ifindex}: there is room for \
                 {MAX_DEVICES} devices with a hook"
            )
        })
    }

    /// Takes the room for an address that belongs to a device or to the host.
    pub(super) fn takes_source(&mut self, addr: IpAddr) -> bool {
        let has_room = take(&mut self.sources[usize::from(addr.is_ipv6())]);
        self.unless(has_room, || {
            format!(
                "{addr} as the source of packets is validated by routes alone: there is room for \
                 {MAX_SOURCES} addresses of this host and of containers for each family"
            )
        })
    }

    /// Takes the room for a network in a service's allow-list.
    pub(super) fn takes_network(&mut self, service: &ServiceKey, net: IpNet) -> bool {
        let has_room = take(&mut self.networks[usize::from(service.v6)]);
        self.unless(has_room, || {
            format!(
                "clients of {net} are not served on port {}: there is room for {MAX_ALLOWED} networks in \
                 all allow-lists, for each family",
                service.listen.brief()
            )
        })
    }

    /// A backend has found no id.
    pub(super) fn lacks_backend(&mut self, name: &str, most: u32) {
        self.unless(false, || {
            format!("{name} is not served: there is room for {most} backends; raise --max-backends")
        });
    }

    /// A node has found no index.
    pub(super) fn lacks_node(&mut self, at: SocketAddr) {
        self.unless(false, || {
            format!("the node at {at} gets no packets: there is room for {MAX_NODES} other nodes")
        });
    }

    /// A service has found no room for its table.
    pub(super) fn lacks_table(&mut self, listen: Listen, slots: u32) {
        self.unless(false, || {
            format!(
                "port {} goes on with the backends it had: no room for a table of {slots} slots beside the \
                 others, {TABLE_SLOTS} in all; serve fewer ports",
                listen.brief()
            )
        });
    }

    /// A service has found no id.
    fn lacks_service(&mut self, listen: Listen) {
        self.unless(false, || {
            format!(
                "port {} is not served: there is room for {} services, two for each port",
                listen.brief(),
                ServiceId::LIMIT
            )
        });
    }

    /// What has found no room first, if anything has.
    pub(super) fn shortage(self) -> Result<()> {
        match self.lacking {
            Some(lacking) => bail!(lacking),
            None => Ok(()),
        }
    }

    fn unless(&mut self, has_room: bool, lacking: impl FnOnce() -> String) -> bool {
        if !has_room {
            self.lacking.get_or_insert_with(lacking);
        }
        has_room
    }
}

/// Takes one of what is left.
const fn take(left: &mut usize) -> bool {
    let has_room = *left > 0;
    *left = left.saturating_sub(1);
    has_room
}

/// Gives every wanted service an id. Ids are not used twice until all have been used once, and
/// flows carry their backend's generation, so that a new service never finds an old one's flows.
pub(super) fn number_services(desired: &Desired, actual: &mut Actual, room: &mut Room) {
    let families = |listen: &Listen| [false, true].map(|v6| ServiceKey { listen: *listen, v6 });
    let wanted = desired.frontends.keys().flat_map(families);
    let new: Vec<_> = wanted.filter(|key| !actual.services.contains_key(key)).collect();
    if new.is_empty() {
        return;
    }
    let most = 2 * desired.frontends.len() + SPARE_SERVICES;
    if actual.services.len() + new.len() > most.min(ServiceId::LIMIT.into()) {
        forget_services(desired, actual);
    }
    let mut used: BTreeSet<u16> = actual.services.values().map(|one| one.id.get()).collect();
    for key in new {
        let is_full = used.len() >= ServiceId::LIMIT.into();
        let ids = (0..ServiceId::LIMIT).map(|step| (actual.next_service + step) % ServiceId::LIMIT);
        let free = ids.filter(|_| !is_full).find(|id| !used.contains(id));
        let Some(id) = free.and_then(ServiceId::new) else {
            room.lacks_service(key.listen);
            continue;
        };
        used.insert(id.get());
        actual.next_service = (id.get() + 1) % ServiceId::LIMIT;
        let installed = Installed::new(id);
        actual.services.insert(key, installed);
    }
}

/// Forgets services that are wanted no longer, and of which the kernel has nothing.
fn forget_services(desired: &Desired, actual: &mut Actual) {
    let of_backends = actual.backends.keys().map(super::BackendKey::service);
    let of_networks = actual.allowed.iter().map(|(service, _)| *service);
    let in_use: BTreeSet<ServiceKey> = of_backends.chain(of_networks).collect();
    let of_frontends = actual.frontends.values().map(|to| to.id);
    let of_reverse_nat = actual.reverse_nat.values().flatten().map(|(id, _)| *id);
    let ids: BTreeSet<u16> = of_frontends.chain(of_reverse_nat).map(ServiceId::get).collect();
    actual.services.retain(|key, installed| {
        desired.frontends.contains_key(&key.listen)
            || installed.region != Region::EMPTY
            || installed.local.region != Region::EMPTY
            || in_use.contains(key)
            || ids.contains(&installed.id.get())
    });
}

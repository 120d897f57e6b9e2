//! Which addresses each port is served on.

use std::collections::BTreeSet;

use samport_common::layout::Scope;

use super::{Reconciler, complain};
use crate::control::peers::Peers;
use crate::model::ports::Listen;
use crate::net::frontends;
use crate::net::netlink::Devices;
use crate::plan::Desired;

impl Reconciler {
    /// Gives the wanted ports their addresses: those of this machine that no other samport serves already.
    pub(super) fn settle_fronts(&mut self, desired: &mut Desired, devices: &Devices) {
        let listens: BTreeSet<Listen> = desired.frontends.keys().copied().collect();
        let assigned = frontends::assign(devices, &self.config.interfaces, &listens);
        for complaint in &assigned.complaints {
            complain(&mut self.complained, complaint);
        }
        desired.frontends = assigned.on;
        let peers = Peers::running(self.instance.name(), self.config.namespace);
        self.yield_to(&peers, listens.into_iter().filter(|listen| listen.addr.is_none()));
        for (listen, on) in desired.frontends.iter_mut().filter(|(on, _)| on.addr.is_none()) {
            on.retain(|addr, scope| {
                let is_left = self.left_alone.contains(&(*listen, *addr))
                    || peers.owns(*listen, *addr, *scope, devices)
                    || (self.yielded.contains(listen) && *scope == Scope::Internal);
                !is_left
            });
        }
    }

    /// Finds out for which ports another samport keeps the machine's own addresses, and says so when
    /// that changes.
    fn yield_to(&mut self, peers: &Peers, listens: impl Iterator<Item = Listen>) {
        let mut yielded = BTreeSet::new();
        for listen in listens {
            let owner = peers.owner(listen, self.instance.name(), &self.written.inside);
            let (Some((name, pid)), port) = (owner, listen.brief()) else { continue };
            yielded.insert(listen);
            if !self.yielded.contains(&listen) {
                tracing::warn!(
                    "port {port} on this machine's other addresses (loopback, bridges) stays with samport \
                     {name} (pid {pid}) as long as that runs"
                );
            }
        }
        for listen in self.yielded.difference(&yielded) {
            let port = listen.brief();
            self.news.push(format!("port {port} on this machine's other addresses is ours now"));
        }
        self.yielded = yielded;
    }

    /// The ports for which we keep the machine's own addresses.
    pub(super) fn owned_inside(&self, desired: &Desired) -> BTreeSet<Listen> {
        // Where nothing is served yet nothing is kept: another may be before us.
        let served = desired.frontends.iter().filter(|(_, on)| !on.is_empty());
        let everywhere = served.map(|(listen, _)| *listen).filter(|listen| listen.addr.is_none());
        everywhere.filter(|listen| !self.yielded.contains(listen)).collect()
    }
}

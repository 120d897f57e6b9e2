//! What the kernel should be like, by what is known of containers, devices and orders.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use samport_common::layout::SHARED_BY;

use super::records::starting_record;
use super::{Reconciler, complain};
use crate::groups::Group;
use crate::model::{Candidate, Site, Snapshot, State};
use crate::netlink::Devices;
use crate::plan::{BackendKey, Desired, Route, Share, Source};
use crate::{allow, instance, listening};

impl Reconciler {
    /// What the kernel should be like now.
    pub(super) async fn desire(&mut self, snapshot: &Snapshot, devices: &Devices) -> Desired {
        self.health.keep_only(&snapshot.candidates);
        self.routes.keep_only(&snapshot.candidates);
        self.starting.clear();
        let mut desired = Desired::default();
        for device in devices.values() {
            if self.job.interfaces.contains(&device.name) {
                desired.interfaces.insert(device.ifindex);
            } else if device.is_bridge {
                desired.bridges.insert(device.ifindex);
            }
        }
        for name in &self.job.interfaces {
            if devices.values().all(|device| device.name != *name) {
                let about = format!("interface {name} is gone; it is served again when it is back");
                complain(&mut self.complained, &about);
            }
        }
        for port in &self.job.ports {
            desired.frontends.insert(port.listen, BTreeMap::new());
        }
        let group_weights = self.group_weights(snapshot);
        let mut uses: BTreeMap<Source, usize> = BTreeMap::new();
        for candidate in &snapshot.candidates {
            if !candidate.listen.is_of_family(candidate.endpoint.is_ipv6()) {
                continue;
            }
            let state = self.health.state(candidate);
            if state == State::Starting {
                self.starting.push(starting_record(candidate));
            }
            if !self.is_admitted(candidate, state) {
                continue;
            }
            // Its container has just stopped, or started again: the engine's next word says which. No
            // other way leads there.
            if let Some(Site::Veth(place)) = candidate.place
                && !devices.contains_key(&place.ifindex)
            {
                continue;
            }
            let forward = self.job.forward;
            let found = match self.may_open(candidate, &desired, &uses) {
                Ok(()) => self.routes.to(candidate, forward, &self.netlink, devices).await,
                Err(trouble) => Err(trouble),
            };
            let route = match found {
                Ok(route) => route,
                Err(trouble) => {
                    let about = format!("{} is not served: {trouble:#}", candidate.name);
                    complain(&mut self.complained, &about);
                    continue;
                }
            };
            let key = key_of(candidate, route);
            // Also one that is unhealthy: who orders it does not want to wait for its recovery.
            let state = if self.orders.drains(candidate) { State::Draining } else { state };
            desired.frontends.entry(candidate.listen).or_default();
            let (name, weight) = (candidate.name.clone(), self.orders.weight_of(candidate));
            let group = Group::of(candidate, &group_weights);
            *uses.entry(key.source()).or_default() += 1;
            desired.backends.insert(key, Share { name, weight, group, state });
        }
        self.settle_fronts(&mut desired, devices);
        let ports = desired.frontends.keys();
        desired.allowed = allow::allowed(ports, &self.job.rules.allow, &snapshot.candidates);
        desired
    }

    /// Whether one more backend fits. A label may open a port only if nobody has it: not a server of
    /// this host, not another samport.
    ///
    /// `uses` says how many ports lead to an endpoint already.
    fn may_open(
        &self,
        candidate: &Candidate,
        desired: &Desired,
        uses: &BTreeMap<Source, usize>,
    ) -> Result<()> {
        let listen = candidate.listen;
        let source = Source { endpoint: candidate.endpoint, protocol: listen.protocol };
        if uses.get(&source).is_some_and(|uses| *uses >= SHARED_BY) {
            let port = listen.brief();
            bail!("at most {SHARED_BY} ports of the host lead to one of a container's; not {port}");
        }
        let most = self.job.limits.max_backends;
        if desired.backends.len() >= most as usize {
            bail!(
                "this samport has room for {most} backends; --max-backends is how many there may be"
            );
        }
        if desired.frontends.contains_key(&listen) || self.shown.keys().any(|k| k.listen == listen)
        {
            return Ok(());
        }
        listening::refuse_taken(&[listen])?;
        instance::refuse_overlap(&self.job.interfaces, &[listen], self.job.namespace)
    }

    /// Whether a candidate takes part: it has become healthy, or it leaves and still has flows.
    fn is_admitted(&self, candidate: &Candidate, state: State) -> bool {
        match state {
            State::Active | State::Unhealthy => true,
            State::Starting => false,
            State::Draining | State::Down => self.actual.backends().any(|(key, _)| {
                key.id == candidate.id
                    && key.endpoint == candidate.endpoint
                    && key.listen == candidate.listen
            }),
        }
    }
}

fn key_of(candidate: &Candidate, route: Route) -> BackendKey {
    BackendKey {
        listen: candidate.listen,
        id: candidate.id.clone(),
        endpoint: candidate.endpoint,
        route,
    }
}

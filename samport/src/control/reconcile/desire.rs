//! What the kernel should be like, by what is known of containers, devices and orders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use samport_common::layout::{DeviceInfo, DeviceSet, device};

use super::records::starting_record;
use super::{Reconciler, complain};
use crate::control::admission;
use crate::control::handle::BackendRef;
use crate::model::allow;
use crate::model::groups::Group;
use crate::model::{Candidate, Condition, Reach, Snapshot, State};
use crate::net::frontends::is_link_local;
use crate::net::netlink::{Device, Devices};
use crate::net::port_conflicts;
use crate::net::reply_devices::{Namespaces, ReplyDevices};
use crate::net::reverse_path::{self, ReversePaths};
use crate::net::routes;
use crate::net::routes::Network;
use crate::plan::{BackendKey, Desired, Route, Share, Source};
use crate::system::instance;

impl Reconciler {
    /// What the kernel should be like now.
    pub(super) async fn desire(&mut self, snapshot: &Snapshot, devices: &Arc<Devices>) -> Desired {
        self.health.keep_only(&snapshot.candidates);
        self.routes.begin(&snapshot.candidates, &self.netlink);
        self.starting.clear();
        let mut desired = Desired {
            hash_seed: self.config.hash_seed.seed,
            tunnel_port: self.config.cluster.as_ref().map(|cluster| cluster.tunnel_port),
            is_drained: self.orders.drains_this_node(),
            ..Desired::default()
        };
        for device in devices.values() {
            if self.config.interfaces.contains(&device.name) {
                desired.interfaces.insert(device.ifindex);
            } else if device.is_bridge {
                desired.bridges.insert(device.ifindex);
            }
        }
        let widest = desired.interfaces.union(&desired.bridges).filter_map(|on| devices.get(on));
        let widest = widest.map(|device| device.mtu).max().unwrap_or_default();
        let narrow = devices.values().filter(|device| device.mtu < widest);
        desired.narrow = narrow.map(|device| device.ifindex).collect();
        self.progress.waits_for("routes and policy rules");
        self.know_sources(&mut desired, devices).await;
        desired.nodes = self.tunnels(devices).await;
        for name in &self.config.interfaces {
            if devices.values().all(|device| device.name != *name) {
                let about = format!("interface {name} is gone; it is served again when it is back");
                complain(&mut self.complained, &about);
            }
        }
        for port in &self.config.ports {
            desired.frontends.insert(port.listen, BTreeMap::new());
        }
        let group_weights = self.group_weights(snapshot);
        let network = self.network(devices);
        let admitted = self.admitted(snapshot, devices);
        self.progress.waits_for("the places of backends");
        self.routes.look_for(admitted.iter().map(|(candidate, _)| *candidate), &network);
        self.routes.wait(&self.netlink, routes::BRIEFLY).await;
        let mut uses: BTreeMap<Source, usize> = BTreeMap::new();
        let mut left_out = BTreeSet::new();
        for (candidate, state) in admitted {
            if let Err(why) = self.has_room(candidate, &desired, &uses) {
                let (name, port) = (&candidate.name, candidate.listen.brief());
                left_out.insert(format!("{name} is left out on port {port}: {why}"));
                continue;
            }
            let found = match self.may_open(candidate, &desired) {
                Ok(()) => self.routes.to(candidate, &network),
                Err(trouble) => Err(trouble),
            };
            let way = match found {
                Ok(Some(way)) => way,
                // It comes with a later round.
                Ok(None) => continue,
                Err(trouble) => {
                    let about = format!("{} is not served: {trouble:#}", candidate.name);
                    complain(&mut self.complained, &about);
                    continue;
                }
            };
            if let Route::Node(at) = way.route {
                // New connections go elsewhere, and those that it had are reset: they would get no answer.
                let is_down = candidate.condition == Condition::Unhealthy;
                if is_down || !desired.nodes.contains_key(&at) {
                    continue;
                }
            }
            let key = key_of(candidate, way.route);
            // Also one that is unhealthy: who orders it does not want to wait for its recovery.
            let state = if self.orders.drains(candidate) { State::Draining } else { state };
            desired.frontends.entry(candidate.listen).or_default();
            let (name, weight) = (candidate.name.clone(), self.orders.weight_of(candidate));
            let group = Group::of(candidate, &group_weights);
            *uses.entry(key.source()).or_default() += 1;
            self.complain_of_links(&candidate.name, &way.replies, devices);
            let ReplyDevices { answers_on, leaves_by, .. } = way.replies;
            let route_back = candidate.egress.leads_out;
            let share = Share { name, weight, group, state, answers_on, leaves_by, route_back };
            desired.backends.insert(key, share);
        }
        self.routes.end();
        self.tell_left_out(1, left_out);
        self.settle_fronts(&mut desired, devices);
        let ports = desired.frontends.keys();
        desired.allowed = allow::allowed(ports, &self.config.rules.allow, &self.restricted);
        desired
    }

    fn network(&self, devices: &Arc<Devices>) -> Network {
        Network {
            forward: self.config.forward,
            interfaces: self.config.interfaces.clone().into(),
            netlink: self.netlink.clone(),
            devices: Arc::clone(devices),
            namespaces: Arc::new(Namespaces::of(devices, &self.config.interfaces)),
        }
    }

    /// The candidates that take part, and where they are in their lives.
    fn admitted<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        devices: &Devices,
    ) -> Vec<(&'a Candidate, State)> {
        let mut admitted = Vec::new();
        for candidate in self.served_first(&snapshot.candidates) {
            if !candidate.listen.is_of_family(candidate.endpoint.is_ipv6()) {
                continue;
            }
            let state = self.health.state(candidate);
            if state == State::Starting {
                self.starting.push(starting_record(candidate));
            }
            // Its container has just stopped, or started again: the engine's next word says which. No
            // other way leads there.
            let has_gone = matches!(candidate.place, Some(Reach::Veth(place))
                if !devices.contains_key(&place.ifindex));
            if self.is_admitted(candidate, state) && !has_gone {
                admitted.push((candidate, state));
            }
        }
        admitted
    }

    /// The candidates, those before the others that the kernel has already: where there is no room for all, these stay.
    fn served_first<'a>(
        &self,
        candidates: &'a [Candidate],
    ) -> impl Iterator<Item = &'a Candidate> + use<'a> {
        let served: BTreeSet<BackendRef> =
            self.actual.backends().map(|(key, _)| BackendRef::from(key)).collect();
        let is_served = |candidate: &&Candidate| served.contains(&BackendRef::from(*candidate));
        let (served, others): (Vec<_>, Vec<_>) = candidates.iter().partition(is_served);
        served.into_iter().chain(others)
    }

    /// Says which links of a container are not watched, because there are too many.
    fn complain_of_links(&mut self, name: &str, replies: &ReplyDevices, devices: &Devices) {
        if replies.left_out.is_empty() {
            return;
        }
        let names: Vec<_> =
            replies.left_out.iter().filter_map(|ifindex| devices.get(ifindex)).collect();
        let names = names.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
        let about = format!(
            "{name} has more than {} links to this machine, and replies are not recognised on: {names}; \
             take it out of networks it does not need",
            DeviceSet::MAX
        );
        complain(&mut self.complained, &about);
    }

    /// What sources are validated by. If the kernel does not say, nothing is held against a source but what
    /// devices and addresses say.
    async fn know_sources(&mut self, desired: &mut Desired, devices: &Devices) {
        let paths = match ReversePaths::find(&self.netlink, devices).await {
            Ok(paths) => Some(paths),
            Err(error) => {
                complain(
                    &mut self.complained,
                    &format!("sources are validated loosely: {error:#}"),
                );
                None
            }
        };
        let is_strict = |name: &String| reverse_path::is_strict(name).unwrap_or(false);
        if self.config.interfaces.iter().any(is_strict) {
            for reason in paths.iter().flat_map(|paths| &paths.reasons) {
                complain(&mut self.complained, reason);
            }
        }
        let facts = |one: &Device| match &paths {
            Some(paths) => facts(one, paths),
            None => DeviceInfo { master: one.master.unwrap_or_default(), ..DeviceInfo::default() },
        };
        desired.devices = devices.values().map(|one| (one.ifindex, facts(one))).collect();
        let own = devices.values().flat_map(|one| one.addresses.union(&one.broadcasts));
        // A link-local address is the host's on one link, and may be anybody's on the next.
        desired.own = own.copied().filter(|addr| !is_link_local(*addr)).collect();
    }

    /// Whether one more backend fits. `uses` says how many ports lead to an endpoint already.
    fn has_room(
        &self,
        candidate: &Candidate,
        desired: &Desired,
        uses: &BTreeMap<Source, usize>,
    ) -> std::result::Result<(), String> {
        let protocol = candidate.listen.protocol;
        let source = Source { endpoint: candidate.endpoint, protocol };
        let ports = uses.get(&source).copied().unwrap_or_default();
        admission::has_room(desired.backends.len(), self.config.limits.max_backends, ports)
    }

    /// Whether a candidate's port may be served. A label may open one only if it is free: not a server of this
    /// host, not another samport.
    fn may_open(&self, candidate: &Candidate, desired: &Desired) -> Result<()> {
        let listen = candidate.listen;
        if desired.frontends.contains_key(&listen) || self.shown.keys().any(|k| k.listen == listen)
        {
            return Ok(());
        }
        port_conflicts::refuse_taken(&[listen])?;
        let own = Some(self.instance.name());
        instance::refuse_overlap(&self.config.interfaces, &[listen], self.config.namespace, own)
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

/// What is known of a device for the validation of sources.
fn facts(device: &Device, paths: &ReversePaths) -> DeviceInfo {
    let path_of = |ifindex: u32| paths.of.get(&ifindex).copied().unwrap_or_default();
    let (path, master) = (path_of(device.ifindex), device.master.unwrap_or_default());
    let lookup_ifindex = if path.in_vrf {
        device.ifindex
    } else if path_of(master).in_vrf {
        // A port of a bridge in a VRF.
        master
    } else {
        DeviceSet::HOST
    };
    let [v4, v6] = path.multipath;
    let flags = if v4 { device::MULTIPATH4 } else { 0 } | if v6 { device::MULTIPATH6 } else { 0 };
    DeviceInfo { lookup_ifindex, master, rp_filter: path.rp_filter, flags, ..DeviceInfo::default() }
}

fn key_of(candidate: &Candidate, route: Route) -> BackendKey {
    BackendKey {
        listen: candidate.listen,
        id: candidate.id.clone(),
        endpoint: candidate.endpoint,
        route,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::net::reverse_path::ReversePath;

    /// The kernel asks from `lo` for packets to itself, and from inside of a VRF.
    #[test]
    fn routes_are_asked_for_from_the_vrf_a_device_or_its_bridge_is_in() {
        let device = |ifindex, master| Device {
            ifindex,
            name: format!("dev{ifindex}"),
            is_veth: false,
            is_bridge: false,
            is_vrf: ifindex == 2,
            peer_namespace: None,
            is_ethernet: true,
            is_running: true,
            mtu: 1_500,
            master,
            addresses: BTreeSet::new(),
            broadcasts: BTreeSet::new(),
        };
        let path = |in_vrf| ReversePath { rp_filter: 1, multipath: [in_vrf, false], in_vrf };
        let paths = ReversePaths {
            of: [(2, path(true)), (3, path(true)), (4, path(false)), (5, path(false))].into(),
            reasons: Vec::new(),
        };
        for (ifindex, master, expected) in
            [(5, None, 1), (3, Some(2), 3), (4, Some(3), 3), (4, Some(5), 1)]
        {
            let facts = facts(&device(ifindex, master), &paths);
            assert_eq!(facts.lookup_ifindex, expected, "{ifindex} of {master:?}");
            assert_eq!((facts.master, facts.rp_filter), (master.unwrap_or(0), 1));
            assert_eq!(facts.flags, if ifindex == 3 { device::MULTIPATH4 } else { 0 });
        }
    }
}

//! Tests of the plan: a model of the kernel watches that no change ever leaves a packet in between.

use std::net::SocketAddr;

use proptest::prelude::*;
use samport_common::choose::Balance;
use samport_common::flow::ServiceId;
use samport_common::layout::{BackendState, DeviceInfo, DeviceSet, Scope};
use samport_common::source::Side;

use super::*;
use crate::model::{HostDevice, State};

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 17, 0, 1));

fn key(name: u8, listen: u16) -> BackendKey {
    BackendKey {
        listen: Listen::tcp(listen),
        id: format!("web-{name}"),
        endpoint: SocketAddr::from(([172, 17, 0, name], 9090)),
        route: Route::Peer(HostDevice { ifindex: u32::from(name), mac: [name; 6], polls: false }),
    }
}

/// A node as a backend.
fn node(name: u8, listen: u16) -> BackendKey {
    let at = SocketAddr::from(([10, 0, 0, name], 6_080));
    BackendKey {
        id: format!("node:n{name}"),
        endpoint: SocketAddr::new(at.ip(), listen),
        route: Route::Node(at),
        ..key(name, listen)
    }
}

fn over_udp(key: BackendKey) -> BackendKey {
    BackendKey { listen: Listen::udp(key.listen.port), ..key }
}

pub(super) fn active(weight: u32) -> Share {
    Share {
        name: "web".into(),
        weight,
        group: None,
        state: State::Active,
        answers_on: DeviceSet::NONE,
        leaves_by: Vec::new(),
        route_back: None,
    }
}

fn draining() -> Share {
    Share { state: State::Draining, ..active(1) }
}

fn wish(backends: &[(BackendKey, Share)]) -> Desired {
    let listens: BTreeSet<Listen> = backends.iter().map(|(key, _)| key.listen).collect();
    let on = |listen: &Listen| {
        let given_away = listen.addr.is_none() && listens.contains(&listen.at(VIP));
        (*listen, BTreeMap::from_iter((!given_away).then_some((VIP, Scope::External))))
    };
    let tunnel = |(key, _): &(BackendKey, Share)| match key.route {
        Route::Node(at) => {
            Some((at, Tunnel { own: VIP, ifindex: 2, mtu: 1_500, own_drains: false }))
        }
        _ => None,
    };
    let nodes: BTreeMap<_, _> = backends.iter().filter_map(tunnel).collect();
    Desired {
        frontends: listens.iter().map(on).collect(),
        backends: backends.iter().cloned().collect(),
        interfaces: [2].into(),
        tunnel_port: (!nodes.is_empty()).then_some(6_080),
        nodes,
        ..Desired::default()
    }
}

/// Plans and carries out, as the reconcile loop does.
pub(super) fn reach(desired: &Desired, actual: &mut Actual) -> Vec<Change> {
    let changes = plan(desired, actual).unwrap();
    for change in &changes {
        actual.record(change);
    }
    changes
}

#[test]
fn nothing_to_do_is_an_empty_plan() {
    let mut actual = Actual::default();
    let desired = wish(&[(key(1, 80), active(1)), (key(2, 80), active(1))]);
    assert!(!reach(&desired, &mut actual).is_empty());
    assert_eq!(reach(&desired, &mut actual), []);
}

#[test]
fn a_new_backend_is_set_understood_and_attached_before_a_table_names_it() {
    let mut actual = Actual::default();
    reach(&wish(&[(key(1, 80), active(1))]), &mut actual);
    let changes = reach(&wish(&[(key(1, 80), active(1)), (key(3, 80), active(1))]), &mut actual);
    let kinds: Vec<_> = changes.iter().map(kind).collect();
    assert_eq!(kinds, ["set", "owners", "device", "attach", "source", "write", "frontend"]);
}

#[test]
fn a_backend_that_goes_leaves_the_table_before_it_is_retired() {
    let mut actual = Actual::default();
    reach(&wish(&[(key(1, 80), active(1)), (key(3, 80), active(1))]), &mut actual);
    let changes = reach(&wish(&[(key(1, 80), active(1))]), &mut actual);
    let kinds: Vec<_> = changes.iter().map(kind).collect();
    let expected =
        ["forget source", "write", "frontend", "retire", "forget", "detach", "forget device"];
    assert_eq!(kinds, expected);
}

#[test]
fn draining_backends_take_no_new_flows_unless_all_drain() {
    let mut actual = Actual::default();
    let both = [(key(1, 80), active(1)), (key(2, 80), draining())];
    let one = table(&reach(&wish(&both), &mut actual));
    assert_eq!(one.len(), 1);
    let all = [(key(1, 80), draining()), (key(2, 80), draining())];
    let two = table(&reach(&wish(&all), &mut actual));
    assert_eq!(two.len(), 2, "better served by a leaving backend than not at all");
}

/// Datagrams leave who is unhealthy only if there is somebody else.
#[test]
fn who_is_unhealthy_is_marked_while_others_take_new_flows() {
    let unhealthy = || Share { state: State::Unhealthy, ..active(1) };
    let life_of_two = |wanted: &[(BackendKey, Share)]| {
        let mut actual = Actual::default();
        reach(&wish(wanted), &mut actual);
        actual.backends[&key(2, 80)].1.state
    };
    let second = (key(2, 80), unhealthy());
    assert_eq!(life_of_two(&[(key(1, 80), active(1)), second.clone()]), BackendState::Unhealthy);
    for other in [unhealthy(), draining(), Share { weight: 0, ..active(1) }] {
        assert_eq!(life_of_two(&[(key(1, 80), other), second.clone()]), BackendState::Draining);
    }
    // Another service's are no others.
    assert_eq!(life_of_two(&[(key(1, 81), active(1)), second.clone()]), BackendState::Draining);
    let drains = (key(2, 80), draining());
    assert_eq!(life_of_two(&[(key(1, 80), active(1)), drains]), BackendState::Draining);
}

#[test]
fn weights_become_slots() {
    let mut actual = Actual::default();
    let slots =
        table(&reach(&wish(&[(key(1, 80), active(3)), (key(2, 80), active(1))]), &mut actual));
    assert_eq!(slots, [1, 1, 1, 2]);
    let slots =
        table(&reach(&wish(&[(key(1, 80), active(0)), (key(2, 80), active(1))]), &mut actual));
    assert_eq!(slots, [2]);
}

#[test]
fn a_backend_behind_another_veth_is_another_backend() {
    let mut actual = Actual::default();
    let before = key(1, 80);
    reach(&wish(&[(before.clone(), active(1))]), &mut actual);
    let route = Route::Peer(HostDevice { ifindex: 77, mac: [1; 6], polls: false });
    let after = BackendKey { route, ..before.clone() };
    reach(&wish(&[(after.clone(), active(1))]), &mut actual);
    let ids: Vec<_> = actual.backends().map(|(key, id)| (key.clone(), id.index)).collect();
    assert_eq!(ids, [(after, 2)]);
    assert!(actual.attached.contains(&(Role::Reverse, 77)));
    assert!(!actual.attached.contains(&(Role::Reverse, 1)));
}

#[test]
fn an_endpoint_behind_two_ports_is_marked_as_shared() {
    let mut actual = Actual::default();
    reach(&wish(&[(key(1, 80), active(1))]), &mut actual);
    reach(&wish(&[(key(1, 80), active(1)), (key(1, 443), active(1))]), &mut actual);
    assert!(actual.backends.values().all(|(_, marks)| marks.shared));
    assert_eq!(actual.reverse_nat[&key(1, 80).source()].len(), 2);
    reach(&wish(&[(key(1, 80), active(1))]), &mut actual);
    assert!(actual.backends.values().all(|(_, marks)| !marks.shared));
}

#[test]
fn one_port_under_two_protocols_is_two_services_and_its_endpoint_two_sockets() {
    let mut actual = Actual::default();
    let both = [(key(1, 53), active(1)), (over_udp(key(1, 53)), active(1))];
    let changes = reach(&wish(&both), &mut actual);
    for listen in [Listen::tcp(53), Listen::udp(53)] {
        assert!(changes.contains(&Change::OpenPort(listen)));
        assert_eq!(served(&actual, VIP, listen), Some(Scope::External));
    }
    let ids: BTreeSet<_> = actual.frontends.values().map(|to| to.id).collect();
    assert_eq!(ids.len(), 2);
    assert!(actual.backends.values().all(|(_, marks)| !marks.shared));
    assert!(actual.reverse_nat.values().all(|reverse_nat| reverse_nat.len() == 1));
    assert_eq!(actual.reverse_nat.len(), 2);

    let changes = reach(&wish(&both[..1]), &mut actual);
    assert!(changes.contains(&Change::ClosePort(Listen::udp(53))));
    assert!(!changes.contains(&Change::ClosePort(Listen::tcp(53))));
    assert_eq!(served(&actual, VIP, Listen::udp(53)), None);
    assert_eq!(actual.reverse_nat.len(), 1);
}

fn served(actual: &Actual, addr: IpAddr, listen: Listen) -> Option<Scope> {
    actual.frontends.get(&(addr, listen)).map(|to| to.scope)
}

#[test]
fn an_address_that_moves_to_an_interface_is_everybodys_in_one_step_and_back() {
    let mut actual = Actual::default();
    let mut desired = wish(&[(key(1, 80), active(1))]);
    let listen = Listen::tcp(80);
    let mut serve_other = |scope: Option<Scope>, actual: &mut Actual| {
        let on = desired.frontends.get_mut(&listen).unwrap();
        match scope {
            Some(scope) => on.insert(OTHER, scope),
            None => on.remove(&OTHER),
        };
        let changes = reach(&desired, actual);
        assert_eq!(served(actual, VIP, listen), Some(Scope::External));
        assert_eq!(served(actual, OTHER, listen), scope);
        changes
    };
    serve_other(Some(Scope::Internal), &mut actual);
    for scope in [Scope::External, Scope::Internal] {
        let changes = serve_other(Some(scope), &mut actual);
        let [Change::SetFrontend { addr: OTHER, to, .. }] = &changes[..] else {
            panic!("more than one step: {changes:?}")
        };
        assert_eq!(to.scope, scope);
    }
    let changes = serve_other(None, &mut actual);
    assert_eq!(changes, [Change::RemoveFrontend { addr: OTHER, listen }]);
}

#[test]
fn where_there_is_no_room_for_both_the_old_address_goes_before_the_new_one_comes() {
    let mut actual = Actual::default();
    let mut desired = wish(&[(key(1, 80), active(1))]);
    reach(&desired, &mut actual);
    let on = desired.frontends.get_mut(&Listen::tcp(80)).unwrap();
    *on = BTreeMap::from([(OTHER, Scope::External)]);
    let kinds: Vec<_> = reach(&desired, &mut actual).iter().map(kind).collect();
    assert_eq!(kinds, ["remove", "frontend"]);
}

#[test]
fn more_ports_on_one_endpoint_than_the_kernel_holds_are_refused() {
    let ports = 80..=80 + u16::try_from(SHARED_BY).unwrap();
    let backends: Vec<_> = ports.map(|port| (key(1, port), active(1))).collect();
    let error = plan(&wish(&backends), &mut Actual::default()).unwrap_err().to_string();
    assert!(error.contains("172.17.0.1:9090"), "{error}");
}

#[test]
fn the_stack_needs_a_program_at_egress() {
    let through_stack = BackendKey { route: Route::Stack, ..key(1, 80) };
    let mut actual = Actual::default();
    let changes = reach(&wish(&[(through_stack, active(1))]), &mut actual);
    assert!(changes.contains(&Change::Attach(Role::Egress, 2)));
}

#[test]
fn bridges_get_their_programs_as_they_come_and_go() {
    let mut actual = Actual::default();
    let mut desired = wish(&[(key(1, 80), active(1))]);
    desired.bridges = [7].into();
    let changes = reach(&desired, &mut actual);
    // An entrance as any other: when everything behind it is in place.
    assert_eq!(changes.last(), Some(&Change::Attach(Role::Inside, 7)));
    let kinds: Vec<_> = changes.iter().map(kind).collect();
    let kinds: Vec<_> = kinds.into_iter().filter(|kind| *kind != "device").collect();
    let expected =
        ["set", "owners", "attach", "source", "write", "frontend", "open", "attach", "attach"];
    assert_eq!(kinds, expected);

    desired.bridges = [8].into();
    let changes = reach(&desired, &mut actual);
    let inside = DeviceInfo { side: Side::Internal as u8, ..DeviceInfo::default() };
    let expected = [
        Change::SetDevice(8, inside),
        Change::Attach(Role::Inside, 8),
        Change::Detach(Role::Inside, 7),
        Change::RemoveDevice(7),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn replies_that_come_by_the_stack_pass_at_egress_of_the_bridges_too() {
    let through_stack = BackendKey { route: Route::Stack, ..key(1, 80) };
    let mut desired = wish(&[(through_stack, active(1))]);
    desired.bridges = [7, 8].into();
    let mut actual = Actual::default();
    reach(&desired, &mut actual);
    let at_egress = |actual: &Actual| -> Vec<u32> {
        let egress = actual.attached.iter().filter(|(role, _)| *role == Role::Egress);
        egress.map(|(_, on)| *on).collect()
    };
    assert_eq!(at_egress(&actual), [2, 7, 8]);
    desired.bridges = [8].into();
    reach(&desired, &mut actual);
    assert_eq!(at_egress(&actual), [2, 8]);
}

#[test]
fn a_backend_for_a_port_nobody_serves_is_an_error() {
    let mut desired = wish(&[(key(1, 80), active(1))]);
    desired.frontends.clear();
    assert!(plan(&desired, &mut Actual::default()).is_err());
}

fn kind(change: &Change) -> &'static str {
    match change {
        Change::SetBackend { .. } => "set",
        Change::SetReverseNat { .. } => "owners",
        Change::SetNode { .. } => "node",
        Change::RemoveNode { .. } => "forget node",
        Change::SetDevice(..) => "device",
        Change::RemoveDevice(_) => "forget device",
        Change::SetSource(..) => "source",
        Change::RemoveSource(_) => "forget source",
        Change::Attach(..) => "attach",
        Change::WriteTable { .. } => "write",
        Change::Settle => "settle",
        Change::Allow { .. } => "allow",
        Change::Disallow { .. } => "disallow",
        Change::SetFrontend { .. } => "frontend",
        Change::OpenPort(_) => "open",
        Change::ClosePort(_) => "close",
        Change::RemoveFrontend { .. } => "remove",
        Change::RemoveReverseNat(_) => "forget",
        Change::RetireBackend { .. } => "retire",
        Change::Detach(..) => "detach",
    }
}

fn table(changes: &[Change]) -> Vec<u32> {
    changes
        .iter()
        .find_map(|change| match change {
            Change::WriteTable { slots, .. } => Some(slots.clone()),
            _ => None,
        })
        .expect("a table was written")
}

/// The kernel, as far as a packet can tell.
#[derive(Default)]
pub(super) struct Model {
    slots: BTreeMap<u32, u32>,
    serving: BTreeMap<u32, BackendKey>,
    /// Generations of ids that a program may have seen in use that is still running, and will count for.
    retired: BTreeMap<u32, u32>,
    reverse_nat: BTreeMap<Source, Vec<(ServiceId, BackendId)>>,
    frontends: BTreeMap<(IpAddr, Listen), Region>,
    attached: BTreeSet<(Role, u32)>,
    devices: BTreeMap<u32, DeviceInfo>,
    sources: BTreeMap<IpAddr, DeviceSet>,
    nodes: BTreeMap<SocketAddr, u32>,
}

impl Model {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::SetBackend { key, id, .. } => {
                assert!(!self.retired.contains_key(&id.index), "{id:?} may still be seen in use");
                self.serving.insert(id.index, key.clone());
            }
            Change::RetireBackend { id, .. } => {
                self.serving.remove(&id.index);
                self.retired.insert(id.index, id.generation);
            }
            Change::SetReverseNat { source, reverse_nat } => {
                self.reverse_nat.insert(*source, reverse_nat.clone());
            }
            Change::RemoveReverseNat(source) => {
                self.reverse_nat.remove(source);
            }
            Change::WriteTable { region, slots, .. } => {
                for live in self.frontends.values().filter(|live| live.len > 0) {
                    let apart = region.base + region.len <= live.base
                        || live.base + live.len <= region.base;
                    assert!(
                        apart || region.len == 0,
                        "{region:?} is written while {live:?} is read"
                    );
                }
                self.slots.extend((region.base..).zip(slots.iter().copied()));
            }
            Change::SetFrontend { addr, listen, to } => {
                self.frontends.insert((*addr, *listen), to.region);
            }
            Change::RemoveFrontend { addr, listen } => {
                self.frontends.remove(&(*addr, *listen));
            }
            Change::Attach(role, ifindex) => {
                self.attached.insert((*role, *ifindex));
            }
            Change::Detach(role, ifindex) => {
                self.attached.remove(&(*role, *ifindex));
            }
            Change::SetDevice(ifindex, info) => {
                self.devices.insert(*ifindex, *info);
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
            Change::SetNode { at, index, .. } => {
                let other = self.nodes.iter().find(|(other, used)| *other != at && *used == index);
                assert_eq!(other, None, "two nodes of index {index}");
                self.nodes.insert(*at, *index);
            }
            Change::RemoveNode { at, .. } => {
                self.nodes.remove(at);
            }
            Change::Settle => self.retired.clear(),
            Change::OpenPort(_)
            | Change::ClosePort(_)
            | Change::Allow { .. }
            | Change::Disallow { .. } => {}
        }
    }

    /// Whatever a packet may be given to serves, and its replies come back; where packets are seen it is
    /// known what sources may come in, and no address is tied to a device where nothing looks.
    pub(super) fn check(&self) {
        for (role, ifindex) in &self.attached {
            if matches!(role, Role::Forward | Role::Inside | Role::Reverse) {
                assert!(self.devices.contains_key(ifindex), "{role:?} on {ifindex}");
            }
        }
        for ifindex in self.sources.values().flat_map(|devices| devices.ifindex) {
            let is_seen = self.attached.contains(&(Role::Reverse, ifindex));
            assert!(ifindex == 0 || is_seen, "a source is tied to {ifindex}");
        }
        for ((addr, listen), region) in &self.frontends {
            for slot in region.base..region.base + region.len {
                let id = self.slots[&slot];
                let backend = self.serving.get(&id).unwrap_or_else(|| panic!("id {id} is not set"));
                let port = backend.listen.everywhere();
                assert_eq!(port, *listen, "{backend:?} is in another port's table");
                if let Route::Node(at) = backend.route {
                    assert!(!addr.is_unspecified(), "a node's packets go to another node");
                    assert!(self.nodes.contains_key(&at), "{backend:?}");
                    continue;
                }
                let reverse_nat = &self.reverse_nat[&backend.source()];
                assert!(reverse_nat.iter().any(|(_, entry)| entry.index == id), "{backend:?}");
                let Route::Peer(place) = backend.route else { panic!("only peers here") };
                assert!(self.attached.contains(&(Role::Reverse, place.ifindex)), "{backend:?}");
            }
        }
    }
}

/// A node that is drained begins connections only where no other can, and takes what others send it.
#[test]
fn a_drained_node_leaves_new_connections_to_others_that_take_them() {
    let unspecified = IpAddr::from([0; 4]);
    for (other, all, own_life) in [
        (active(3), "2", BackendState::Draining),
        (draining(), "1", BackendState::Serving),
        (Share { weight: 0, ..active(3) }, "1", BackendState::Serving),
    ] {
        let mut actual = Actual::default();
        let mut desired = wish(&[(key(1, 80), active(1)), (node(2, 80), other)]);
        desired.is_drained = true;
        let mut model = Model::default();
        for change in reach(&desired, &mut actual) {
            if let Change::SetBackend { key: set, state, .. } = &change
                && *set == key(1, 80)
            {
                assert_eq!(*state, own_life);
            }
            model.apply(&change);
        }
        let table = |addr| {
            let region = model.frontends[&(addr, Listen::tcp(80))];
            let slots = region.base..region.base + region.len;
            let routes = slots.map(|slot| model.serving[&model.slots[&slot]].route);
            let is_node = |route| matches!(route, Route::Node(_));
            routes.map(|route| if is_node(route) { "2" } else { "1" }).collect::<BTreeSet<_>>()
        };
        assert_eq!(table(VIP), [all].into());
        assert_eq!(table(unspecified), ["1"].into());
        desired.is_drained = false;
        assert!(plan(&desired, &mut actual).unwrap().is_empty() == (all == "1"));
    }
}

/// A table that is still read is not free, also when the change to the next one has failed half way.
#[test]
fn a_table_is_given_back_when_its_last_frontend_reads_another() {
    let mut actual = Actual::default();
    let first = wish(&[(key(1, 80), active(1))]);
    for change in plan(&first, &mut actual).unwrap() {
        actual.record(&change);
    }
    let read = actual.frontends.values().next().unwrap().region;
    let next = wish(&[(key(1, 80), active(1)), (key(2, 80), active(1))]);
    let changes = plan(&next, &mut actual).unwrap();
    let switch = changes.iter().position(|change| matches!(change, Change::SetFrontend { .. }));
    let (made, rest) = changes.split_at(switch.unwrap());
    for change in made {
        actual.record(change);
    }
    actual.tables.settle();
    assert_ne!(actual.tables.find(read.len).unwrap().base, read.base, "it is read");
    for change in rest {
        actual.record(change);
    }
    actual.tables.settle();
    assert_eq!(actual.tables.find(read.len).unwrap().base, read.base);
}

pub(super) fn hints() -> impl Strategy<Value = Vec<Desired>> {
    let listens = vec![Listen::tcp(80), Listen::udp(80), Listen::tcp(443), Listen::tcp(80).at(VIP)];
    let backend = (1u8..12, prop::sample::select(listens), 0u32..4, any::<bool>());
    let backends = (prop::collection::vec(backend, 0..10), any::<bool>());
    prop::collection::vec(backends, 1..12).prop_map(|hints| {
        hints
            .into_iter()
            .map(|(backends, is_drained)| {
                let backends: Vec<_> = backends
                    .into_iter()
                    .map(|(name, listen, weight, draining)| {
                        let of = if name > 9 { node } else { key };
                        let key = BackendKey { listen, ..of(name, listen.port) };
                        (
                            key,
                            Share {
                                state: if draining { State::Draining } else { State::Active },
                                ..active(weight)
                            },
                        )
                    })
                    .collect();
                Desired { is_drained, ..wish(&backends) }
            })
            .collect()
    })
}

/// A program that has read the backend before from the kernel's map may be running yet.
#[test]
fn an_id_is_used_again_after_a_grace_period_if_it_was_given_back_since_the_last() {
    let mut actual = Actual::with_room_for(3);
    let mut model = Model::default();
    let mut settled = 0;
    for names in [&[1, 2][..], &[3, 2], &[1, 3], &[1], &[4, 5, 1], &[6]] {
        let backends: Vec<_> = names.iter().map(|name| (key(*name, 80), active(1))).collect();
        while let changes = reach(&wish(&backends), &mut actual)
            && !changes.is_empty()
        {
            settled += changes.iter().filter(|change| **change == Change::Settle).count();
            for change in &changes {
                model.apply(change);
            }
            model.check();
        }
        assert_eq!(model.serving.len(), names.len());
    }
    assert_eq!(settled, 3, "one for all ids that a plan uses again");
    // Nothing of a backend that has gone is counted for the next one.
    let generations: Vec<_> = actual.backends().map(|(_, id)| (id.index, id.generation)).collect();
    assert_eq!(generations.len(), 1, "{generations:?}");
    assert!(generations.iter().all(|(_, generation)| generation % 2 == 1), "{generations:?}");
}

proptest! {
    /// After every single change, whatever way the wishes go, no packet meets a backend that is not
    /// set, a reply that is not understood, or a table that is being written.
    #[test]
    fn no_packet_ever_meets_half_a_change(hints in hints()) {
        let (mut actual, mut model) = (Actual::default(), Model::default());
        for desired in hints {
            for change in plan(&desired, &mut actual).unwrap() {
                actual.record(&change);
                model.apply(&change);
                model.check();
            }
            prop_assert_eq!(plan(&desired, &mut actual).unwrap(), vec![]);
            let wanted: BTreeSet<_> = desired.backends.keys().collect();
            prop_assert_eq!(wanted, model.serving.values().collect::<BTreeSet<_>>());
            let frontends: BTreeSet<_> = model.frontends.keys().copied().collect();
            let addresses = [VIP, IpAddr::from([0; 4]), IpAddr::from([0; 16])];
            let addresses = &addresses[..if desired.tunnel_port.is_some() { 3 } else { 1 }];
            let at = |on: &Listen| addresses.iter().map(|addr| (*addr, on.everywhere())).collect::<Vec<_>>();
            let ports: BTreeSet<_> = desired.frontends.keys().flat_map(at).collect();
            prop_assert_eq!(frontends, ports);
            prop_assert_eq!(model.nodes.keys().collect::<Vec<_>>(), desired.nodes.keys().collect::<Vec<_>>());
        }
    }
}

/// What other nodes send is served by this machine's own backends, so that no packet goes through two tunnels.
#[test]
fn what_comes_out_of_a_clusters_tunnel_has_a_table_without_nodes() {
    let mut actual = Actual::default();
    let both = wish(&[(key(1, 80), active(1)), (node(2, 80), active(3))]);
    let changes = reach(&both, &mut actual);
    let slots = |wanted: Part| {
        let written = |change: &Change| match change {
            Change::WriteTable { part, slots, .. } if *part == wanted => Some(slots.clone()),
            _ => None,
        };
        changes.iter().find_map(written)
    };
    assert_eq!((slots(Part::All), slots(Part::Local)), (Some(vec![1, 1, 1, 2]), Some(vec![2])));
    let unspecified = IpAddr::from([0; 4]);
    let to = |addr| actual.frontends[&(addr, Listen::tcp(80))];
    assert!(to(VIP).nodes && to(VIP).region != to(unspecified).region);
    assert_eq!((to(unspecified).scope, to(unspecified).id), (Scope::Local, to(VIP).id));
    let opened = changes.iter().filter(|change| matches!(change, Change::OpenPort(_))).count();
    assert_eq!(opened, 2, "the service's port, and the tunnel's");
    // A reply of a node has the address that was dialled.
    assert_eq!(actual.reverse_nat.len(), 1);
    // Without nodes that take part there is one table again, and the other's room is given back.
    let mut alone = wish(&[(key(1, 80), active(1))]);
    alone.tunnel_port = Some(6_080);
    reach(&alone, &mut actual);
    let to = |addr| actual.frontends[&(addr, Listen::tcp(80))];
    assert!(!to(VIP).nodes && to(VIP).region == to(unspecified).region);
    assert_eq!(actual.nodes, BTreeMap::new());
    actual.tables.settle();
    assert_eq!(actual.tables.find(1).unwrap().base, 0);
}

#[test]
fn a_macvlan_child_is_answered_for_at_its_parent_alone() {
    let route = Route::Child(HostDevice { ifindex: 2, mac: [1; 6], polls: false });
    let mut desired = wish(&[(BackendKey { route, ..key(1, 80) }, active(1))]);
    desired.interfaces = [2, 3].into();
    desired.bridges = [5].into();
    let replies = attachments(&desired).into_iter().filter(|(role, _)| !role.is_entrance());
    assert_eq!(replies.collect::<Vec<_>>(), [(Role::Egress, 2)]);
}

#[test]
fn what_is_begun_here_is_watched_while_a_service_could_take_its_answers() {
    let watched = |desired: &Desired, actual: &mut Actual| -> Vec<u32> {
        reach(desired, actual);
        let outbound = actual.attached.iter().filter(|(role, _)| *role == Role::Outbound);
        outbound.map(|(_, on)| *on).collect()
    };
    let mut actual = Actual::default();
    let mut tcp = wish(&[(key(1, 80), active(1))]);
    tcp.bridges = [7].into();
    assert!(watched(&tcp, &mut actual).is_empty());
    let mut udp = wish(&[(key(1, 80), active(1)), (over_udp(key(1, 80)), active(1))]);
    udp.bridges = [7].into();
    assert_eq!(watched(&udp, &mut actual), [2, 7]);
    assert!(watched(&tcp, &mut actual).is_empty());
    let by_hash = change::Policy { balance: Balance::Maglev, ..change::Policy::default() };
    tcp.policies.insert(Listen::tcp(80), by_hash);
    assert_eq!(watched(&tcp, &mut actual), [2, 7]);
}

#[test]
fn a_neighbour_on_a_smaller_link_needs_a_program_at_egress() {
    let neighbour = Route::Neighbour { ifindex: 9, answers_on: 9 };
    let mut desired = wish(&[(BackendKey { route: neighbour, ..key(1, 80) }, active(1))]);
    let egress = |desired: &Desired| {
        let changes = reach(desired, &mut Actual::default());
        changes.contains(&Change::Attach(Role::Egress, 2))
    };
    assert!(!egress(&desired));
    desired.narrow = [9].into();
    assert!(egress(&desired));
}

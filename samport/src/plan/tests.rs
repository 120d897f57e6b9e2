//! Tests of the plan: a model of the kernel watches that no change ever leaves a packet in between.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::model::Place;

fn key(name: u8, listen: u16) -> BackendKey {
    BackendKey {
        listen,
        id: format!("web-{name}"),
        endpoint: SocketAddr::from(([172, 17, 0, name], 9090)),
        route: Route::Peer(Place { ifindex: u32::from(name), mac: [name; 6] }),
    }
}

fn active(weight: u32) -> Share {
    Share { name: "web".into(), weight, draining: false }
}

fn draining() -> Share {
    Share { draining: true, ..active(1) }
}

fn wish(backends: &[(BackendKey, Share)]) -> Desired {
    let addr = IpAddr::from([192, 0, 2, 1]);
    Desired {
        frontends: backends.iter().map(|(key, _)| (key.listen, [addr].into())).collect(),
        backends: backends.iter().cloned().collect(),
        interfaces: [2].into(),
    }
}

/// Plans and carries out, as the reconcile loop does.
fn reach(desired: &Desired, actual: &mut Actual) -> Vec<Change> {
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
    let changes = reach(&wish(&[(key(1, 80), active(1)), (key(2, 80), active(1))]), &mut actual);
    let kinds: Vec<_> = changes.iter().map(kind).collect();
    assert_eq!(kinds, ["set", "owners", "attach", "write", "frontend"]);
}

#[test]
fn a_backend_that_goes_leaves_the_table_before_it_is_retired() {
    let mut actual = Actual::default();
    reach(&wish(&[(key(1, 80), active(1)), (key(2, 80), active(1))]), &mut actual);
    let changes = reach(&wish(&[(key(1, 80), active(1))]), &mut actual);
    let kinds: Vec<_> = changes.iter().map(kind).collect();
    assert_eq!(kinds, ["write", "frontend", "retire", "forget", "detach"]);
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
    let route = Route::Peer(Place { ifindex: 77, mac: [1; 6] });
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
    assert!(actual.backends.values().all(|(_, shared)| *shared));
    assert_eq!(actual.owners[&key(1, 80).endpoint].len(), 2);
    reach(&wish(&[(key(1, 80), active(1))]), &mut actual);
    assert!(actual.backends.values().all(|(_, shared)| !*shared));
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
fn a_backend_for_a_port_nobody_serves_is_an_error() {
    let mut desired = wish(&[(key(1, 80), active(1))]);
    desired.frontends.clear();
    assert!(plan(&desired, &mut Actual::default()).is_err());
}

fn kind(change: &Change) -> &'static str {
    match change {
        Change::SetBackend { .. } => "set",
        Change::SetOwners { .. } => "owners",
        Change::Attach(..) => "attach",
        Change::WriteTable { .. } => "write",
        Change::Settle => "settle",
        Change::SetFrontend { .. } => "frontend",
        Change::OpenPort(_) => "open",
        Change::ClosePort(_) => "close",
        Change::RemoveFrontend { .. } => "remove",
        Change::RemoveOwners(_) => "forget",
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
struct Model {
    slots: BTreeMap<u32, u32>,
    serving: BTreeMap<u32, BackendKey>,
    owners: BTreeMap<SocketAddr, Vec<(ServiceId, BackendId)>>,
    frontends: BTreeMap<(IpAddr, u16), Region>,
    attached: BTreeSet<(Role, u32)>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::SetBackend { key, id, .. } => {
                self.serving.insert(id.index, key.clone());
            }
            Change::RetireBackend { id, .. } => {
                self.serving.remove(&id.index);
            }
            Change::SetOwners { endpoint, owners } => {
                self.owners.insert(*endpoint, owners.clone());
            }
            Change::RemoveOwners(endpoint) => {
                self.owners.remove(endpoint);
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
            Change::SetFrontend { addr, port, region, .. } => {
                self.frontends.insert((*addr, *port), *region);
            }
            Change::RemoveFrontend { addr, port } => {
                self.frontends.remove(&(*addr, *port));
            }
            Change::Attach(role, ifindex) => {
                self.attached.insert((*role, *ifindex));
            }
            Change::Detach(role, ifindex) => {
                self.attached.remove(&(*role, *ifindex));
            }
            Change::Settle | Change::OpenPort(_) | Change::ClosePort(_) => {}
        }
    }

    /// Whatever a packet may be given to serves, and its replies come back.
    fn check(&self) {
        for ((_, port), region) in &self.frontends {
            for slot in region.base..region.base + region.len {
                let id = self.slots[&slot];
                let backend = self.serving.get(&id).unwrap_or_else(|| panic!("id {id} is not set"));
                assert_eq!(backend.listen, *port, "{backend:?} is in another port's table");
                let owners = &self.owners[&backend.endpoint];
                assert!(owners.iter().any(|(_, owner)| owner.index == id), "{backend:?}");
                let Route::Peer(place) = backend.route else { panic!("only peers here") };
                assert!(self.attached.contains(&(Role::Reverse, place.ifindex)), "{backend:?}");
            }
        }
    }
}

fn wishes() -> impl Strategy<Value = Vec<Desired>> {
    let backend = (1u8..12, prop::sample::select(vec![80u16, 443, 8080]), 0u32..4, any::<bool>());
    let backends = prop::collection::vec(backend, 0..10);
    prop::collection::vec(backends, 1..12).prop_map(|wishes| {
        wishes
            .into_iter()
            .map(|backends| {
                let backends: Vec<_> = backends
                    .into_iter()
                    .map(|(name, port, weight, draining)| {
                        (key(name, port), Share { draining, ..active(weight) })
                    })
                    .collect();
                wish(&backends)
            })
            .collect()
    })
}

proptest! {
    /// After every single change, whatever way the wishes go, no packet meets a backend that is not
    /// set, a reply nobody understands, or a table that is being written.
    #[test]
    fn no_packet_ever_meets_half_a_change(wishes in wishes()) {
        let (mut actual, mut model) = (Actual::default(), Model::default());
        for desired in wishes {
            for change in plan(&desired, &mut actual).unwrap() {
                actual.record(&change);
                model.apply(&change);
                model.check();
            }
            prop_assert_eq!(plan(&desired, &mut actual).unwrap(), vec![]);
            let wanted: BTreeSet<_> = desired.backends.keys().collect();
            prop_assert_eq!(wanted, model.serving.values().collect::<BTreeSet<_>>());
            let frontends: BTreeSet<_> = model.frontends.keys().copied().collect();
            let vip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
            let ports: BTreeSet<_> = desired.frontends.keys().map(|port| (vip, *port)).collect();
            prop_assert_eq!(frontends, ports);
        }
    }
}

//! Tests of services that are given an address of their own.

use std::net::{Ipv4Addr, SocketAddr};

use samport_common::layout::{DeviceSet, Scope};

use super::*;
use crate::model::{HostDevice, State};

const WEB: Listen = Listen::tcp(80);
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Ports with the addresses they are served on, and a backend behind each: the same for all.
fn wish(ports: &[(Listen, &[IpAddr])]) -> Desired {
    let backend = |listen| BackendKey {
        listen,
        id: "web-1".into(),
        endpoint: SocketAddr::from(([172, 17, 0, 2], 9090)),
        route: Route::Peer(HostDevice { ifindex: 9, mac: [9; 6], polls: false }),
    };
    let share = Share {
        name: "web-1".into(),
        weight: 1,
        group: None,
        state: State::Active,
        answers_on: DeviceSet::NONE,
        leaves_by: Vec::new(),
        route_back: None,
    };
    let everybody =
        |on: &[IpAddr]| on.iter().map(|addr| (*addr, Scope::External)).collect::<BTreeMap<_, _>>();
    Desired {
        frontends: ports.iter().map(|(listen, on)| (*listen, everybody(on))).collect(),
        backends: ports.iter().map(|(listen, _)| (backend(*listen), share.clone())).collect(),
        interfaces: [2].into(),
        ..Desired::default()
    }
}

fn reach(ports: &[(Listen, &[IpAddr])], actual: &mut Actual) -> Vec<Change> {
    let changes = plan(&wish(ports), actual).unwrap();
    for change in &changes {
        actual.record(change);
    }
    assert_eq!(plan(&wish(ports), actual).unwrap(), []);
    changes
}

fn service_at(addr: IpAddr, actual: &Actual) -> ServiceKey {
    let id = actual.frontends[&(addr, WEB)].id;
    let mut services = actual.services.iter();
    *services.find(|(_, installed)| installed.id == id).unwrap().0
}

#[test]
fn an_address_and_the_port_everywhere_are_two_services_that_share_an_endpoint() {
    let mut actual = Actual::default();
    reach(&[(WEB, &[HOST]), (WEB.at(VIP), &[VIP])], &mut actual);
    assert_eq!(service_at(VIP, &actual).listen, WEB.at(VIP));
    assert_eq!(service_at(HOST, &actual).listen, WEB);
    assert_eq!(actual.reverse_nat.values().map(Vec::len).collect::<Vec<_>>(), [2]);
    assert!(actual.backends.values().all(|(_, marks)| marks.shared));
    assert!(actual.frontends.values().all(|to| to.shared));
}

#[test]
fn an_address_goes_from_one_service_to_the_other_in_one_step() {
    let mut actual = Actual::default();
    let apart: [(Listen, &[IpAddr]); 2] = [(WEB, &[HOST]), (WEB.at(VIP), &[VIP])];
    reach(&[(WEB, &[HOST, VIP])], &mut actual);
    for (ports, entry) in [(&apart[..], WEB.at(VIP)), (&[(WEB, &[HOST, VIP][..])], WEB)] {
        let changes = reach(ports, &mut actual);
        let at_vip: Vec<_> = changes
            .iter()
            .filter(|change| match change {
                Change::SetFrontend { addr, .. } | Change::RemoveFrontend { addr, .. } => {
                    *addr == VIP
                }
                _ => false,
            })
            .collect();
        assert!(matches!(at_vip[..], [Change::SetFrontend { .. }]), "{changes:?}");
        assert_eq!(service_at(VIP, &actual).listen, entry);
    }
}

#[test]
fn a_port_is_open_as_long_as_any_service_has_it() {
    let mut actual = Actual::default();
    let gate = |changes: &[Change]| -> Vec<Change> {
        let of_gate =
            |change: &&Change| matches!(change, Change::OpenPort(_) | Change::ClosePort(_));
        changes.iter().filter(of_gate).cloned().collect()
    };
    let given: (Listen, &[IpAddr]) = (WEB.at(VIP), &[VIP]);
    assert_eq!(gate(&reach(&[(WEB, &[HOST]), given], &mut actual)), [Change::OpenPort(WEB)]);
    assert_eq!(gate(&reach(&[given], &mut actual)), []);
    assert_eq!(gate(&reach(&[], &mut actual)), [Change::ClosePort(WEB)]);
}

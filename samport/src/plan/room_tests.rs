//! Every map whose entries a plan adds and removes, filled: what is new waits until what is old has gone, what
//! finds no room is named when everything else is done, and joins when there is room.

use std::net::{Ipv4Addr, SocketAddr};

use samport_common::choose::Balance;
use samport_common::flow::ServiceId;
use samport_common::layout::{DeviceInfo, MAX_ALLOWED, MAX_DEVICES, MAX_SOURCES, TABLE_SLOTS};

use super::*;
use crate::model::allow::Networks;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn addr(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n)
}

fn backend(port: u16, n: u32, weight: u32) -> (BackendKey, Share) {
    let endpoint = SocketAddr::new(addr(n).into(), 9_090);
    let route = Route::Stack;
    let key = BackendKey { listen: Listen::tcp(port), id: format!("web-{n}"), endpoint, route };
    let share = Share { name: format!("web-{n}"), ..tests::active(weight) };
    (key, share)
}

/// One address, these ports, these backends.
fn wish(
    ports: impl IntoIterator<Item = u16>,
    backends: impl IntoIterator<Item = (BackendKey, Share)>,
) -> Desired {
    let on = BTreeMap::from([(VIP, Scope::External)]);
    Desired {
        frontends: ports.into_iter().map(|port| (Listen::tcp(port), on.clone())).collect(),
        backends: backends.into_iter().collect(),
        ..Desired::default()
    }
}

/// Plans and carries out until nothing is left to do; what could not be done, in words.
fn reach(desired: &Desired, actual: &mut Actual) -> Option<String> {
    for _ in 0..16 {
        match plan(desired, actual) {
            Ok(changes) if changes.is_empty() => return None,
            Ok(changes) => changes.iter().for_each(|change| actual.record(change)),
            Err(error) => return Some(error.to_string()),
        }
        assert_fits(actual);
    }
    panic!("there is always something left to do");
}

/// Nothing has more entries than its map.
fn assert_fits(actual: &Actual) {
    for v6 in [false, true] {
        let of = |service: &ServiceKey| service.v6 == v6;
        let allowed = actual.allowed.iter().filter(|(service, _)| of(service)).count();
        assert!(allowed <= MAX_ALLOWED as usize, "{allowed} networks");
        let sources = actual.sources.keys().filter(|addr| addr.is_ipv6() == v6).count();
        assert!(sources <= MAX_SOURCES as usize, "{sources} addresses");
    }
    assert!(actual.devices.len() <= MAX_DEVICES as usize);
    assert!(actual.backends.len() < actual.generations.len());
    assert!(actual.services.len() <= ServiceId::LIMIT.into());
}

/// All backends are exchanged for as many others although there is no room for one more: the kernel never has
/// more than there may be.
#[test]
fn backends_are_exchanged_for_others_when_all_numbers_are_taken() {
    let mut actual = Actual::with_room_for(4);
    let with = |from: u32, count: u32| wish([80], (from..from + count).map(|n| backend(80, n, 1)));
    assert_eq!(reach(&with(0, 4), &mut actual), None);
    assert_eq!(reach(&with(3, 4), &mut actual), None);
    assert_eq!(actual.backends.len(), 4);
    assert_eq!(reach(&with(10, 4), &mut actual), None);
    let error = reach(&with(10, 5), &mut actual).unwrap();
    assert!(error.contains("web-14") && error.contains("room for 4 backends"), "{error}");
    // The others are served.
    assert_eq!(actual.backends.len(), 4);
    assert_eq!(reach(&with(11, 4), &mut actual), None);
}

#[test]
fn one_backend_is_exchanged_for_another_when_there_is_room_for_one() {
    let mut actual = Actual::with_room_for(1);
    for n in 0..3 {
        assert_eq!(reach(&wish([80], [backend(80, n, 1)]), &mut actual), None);
        assert_eq!(actual.backends.keys().next().unwrap().id, format!("web-{n}"));
    }
}

#[test]
fn an_allow_list_is_exchanged_for_another_when_there_is_no_room_for_both() {
    let networks = |from: u32, count: u32| -> Networks {
        (from..from + count).map(|n| IpAddr::V4(addr(n)).into()).collect()
    };
    let mut actual = Actual::default();
    let mut desired = wish([80, 443], []);
    let most = MAX_ALLOWED;
    desired.allowed =
        [(Listen::tcp(443), networks(0, 1)), (Listen::tcp(80), networks(0, most - 1))].into();
    assert_eq!(reach(&desired, &mut actual), None);
    desired.allowed.insert(Listen::tcp(80), networks(most, most - 1));
    assert_eq!(reach(&desired, &mut actual), None);
    // One too many, and one more port.
    desired.allowed.insert(Listen::tcp(80), networks(most, most));
    let on = desired.frontends[&Listen::tcp(80)].clone();
    desired.frontends.insert(Listen::tcp(81), on);
    let error = reach(&desired, &mut actual).unwrap();
    assert!(error.contains("port 80") && error.contains("16384 networks"), "{error}");
    assert!(actual.ports.contains(&Listen::tcp(81)), "others are served");
    desired.allowed.insert(Listen::tcp(80), networks(0, 5));
    assert_eq!(reach(&desired, &mut actual), None);
}

/// A port that is restricted is never open while its networks find no room.
#[test]
fn a_restricted_port_without_room_for_its_networks_serves_nobody() {
    let mut actual = Actual::default();
    let mut desired = wish([80, 81], []);
    let all: Networks = (0..MAX_ALLOWED).map(|n| IpAddr::V4(addr(n)).into()).collect();
    desired.allowed =
        [(Listen::tcp(80), all), (Listen::tcp(81), [IpAddr::V4(addr(1)).into()].into())].into();
    assert!(reach(&desired, &mut actual).is_some());
    assert!(actual.frontends.values().all(|to| to.restricted));
    desired.allowed.insert(Listen::tcp(81), Networks::new());
    assert_eq!(reach(&desired, &mut actual), None);
    assert!(actual.frontends.values().all(|to| to.restricted), "no network is not all networks");
}

#[test]
fn addresses_of_the_host_are_exchanged_for_others_when_there_is_no_room_for_both() {
    let mut actual = Actual::default();
    let mut desired = wish([80], []);
    let own = |from: u32, count: u32| (from..from + count).map(|n| addr(n).into()).collect();
    desired.own = own(0, MAX_SOURCES);
    assert_eq!(reach(&desired, &mut actual), None);
    desired.own = own(MAX_SOURCES, MAX_SOURCES);
    assert_eq!(reach(&desired, &mut actual), None);
    desired.own = own(0, MAX_SOURCES + 1);
    let error = reach(&desired, &mut actual).unwrap();
    assert!(error.contains("65536 addresses"), "{error}");
    desired.own = own(0, 1);
    assert_eq!(reach(&desired, &mut actual), None);
}

#[test]
fn devices_are_exchanged_for_others_when_there_is_no_room_for_both() {
    let mut actual = Actual::default();
    let mut desired = wish([80], []);
    let known = |ifindex: u32| (ifindex, DeviceInfo { master: 1, ..DeviceInfo::default() });
    desired.devices = (0..4 * MAX_DEVICES).map(known).collect();
    desired.bridges = (1..=MAX_DEVICES).collect();
    assert_eq!(reach(&desired, &mut actual), None);
    desired.bridges = (MAX_DEVICES + 1..=2 * MAX_DEVICES).collect();
    assert_eq!(reach(&desired, &mut actual), None);
    desired.bridges.insert(1);
    let error = reach(&desired, &mut actual).unwrap();
    assert!(error.contains("32768 devices"), "{error}");
}

/// Ports come and go: their numbers are used again, and none is taken from a port that is served.
#[test]
fn numbers_of_services_do_not_run_out() {
    let mut actual = Actual::default();
    for round in 0..12_u16 {
        let ports = (0..1_000).map(|n| 1_000 + 1_000 * round + n);
        assert_eq!(reach(&wish(ports.chain([80]), []), &mut actual), None);
        assert_eq!(actual.ports.len(), 1_001);
    }
    assert!(actual.services.len() <= 2 * 1_001 + 2_048 + 2 * 1_001, "{}", actual.services.len());
    let ids: BTreeSet<_> = actual.services.values().map(|one| one.id).collect();
    assert_eq!(ids.len(), actual.services.len());
}

/// Weights that need the longest tables, in all arrangements, on as many ports as there may be.
#[test]
fn tables_of_many_ports_fit_beside_each_other() {
    let ports = |count: u16| 1_000..1_000 + count;
    for balance in [Balance::Random, Balance::RoundRobin, Balance::Maglev] {
        let mut actual = Actual::with_room_for(16_384);
        for (count, weight) in [(1, 4_093), (300, 4_093), (1_000, 4_091), (2, 1), (1_000, 4_089)] {
            let backends =
                ports(count).flat_map(|port| [backend(port, 1, weight), backend(port, 2, 1)]);
            let mut desired = wish(
                ports(count),
                backends.map(|(key, share)| {
                    let id = format!("{}-{}", key.id, key.listen.port);
                    let endpoint = SocketAddr::new(key.endpoint.ip(), key.listen.port);
                    (BackendKey { id, endpoint, ..key }, share)
                }),
            );
            let policy = Policy { balance, ..Policy::default() };
            desired.policies = ports(count).map(|port| (Listen::tcp(port), policy)).collect();
            assert_eq!(reach(&desired, &mut actual), None, "{balance:?} on {count} ports");
            let used: u32 = actual.services.values().map(|one| one.region.len).sum();
            assert!(used <= TABLE_SLOTS);
        }
    }
}

//! Tests of who may be served while that changes.

use proptest::prelude::*;
use samport_common::flow::ServiceId;
use samport_common::layout::Scope;

use super::*;
use crate::model::allow::Networks;

const WEB: Listen = Listen::tcp(80);
const DNS: Listen = Listen::udp(53);
const NETWORKS: [&str; 4] = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "fd00::/8"];

fn networks(list: &[&str]) -> Networks {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// Ports on an address of each family, and who may use them; everybody, if no network is named.
fn wish(ports: &[(Listen, Networks)]) -> Desired {
    let on: BTreeMap<IpAddr, Scope> = ["203.0.113.1", "2001:db8:1::1"]
        .map(|addr| (addr.parse().unwrap(), Scope::External))
        .into();
    Desired {
        frontends: ports.iter().map(|(listen, _)| (*listen, on.clone())).collect(),
        allowed: ports.iter().filter(|(_, networks)| !networks.is_empty()).cloned().collect(),
        ..Desired::default()
    }
}

/// The changes that concern who may be served, in words.
fn steps(desired: &Desired, actual: &mut Actual) -> Vec<String> {
    let changes = plan(desired, actual).unwrap();
    for change in &changes {
        actual.record(change);
    }
    let words = |change: &Change| match change {
        Change::Allow { net, .. } => Some(format!("allow {net}")),
        Change::Disallow { net, .. } => Some(format!("disallow {net}")),
        Change::SetFrontend { addr, to, .. } if addr.is_ipv4() => {
            Some(if to.restricted { "restrict" } else { "open" }.to_owned())
        }
        Change::RemoveFrontend { addr, .. } if addr.is_ipv4() => Some("remove".to_owned()),
        _ => None,
    };
    changes.iter().filter_map(words).collect()
}

#[test]
fn networks_are_let_in_before_the_door_closes_and_out_when_it_is_open() {
    let mut actual = Actual::default();
    let [office, home] = [networks(&["10.0.0.0/8"]), networks(&["192.0.2.0/24"])];
    for (networks, expected) in [
        (Networks::new(), &["open"][..]),
        (office.clone(), &["allow 10.0.0.0/8", "restrict"]),
        (office.clone(), &[]),
        (home.clone(), &["allow 192.0.2.0/24", "disallow 10.0.0.0/8"]),
        (Networks::new(), &["open", "disallow 192.0.2.0/24"]),
    ] {
        assert_eq!(steps(&wish(&[(WEB, networks)]), &mut actual), expected);
    }
}

#[test]
fn a_port_that_is_served_no_more_leaves_no_networks_to_the_next_one() {
    let mut actual = Actual::default();
    let office = networks(&["10.0.0.0/8"]);
    assert_eq!(steps(&wish(&[(WEB, office)]), &mut actual), ["allow 10.0.0.0/8", "restrict"]);
    assert_eq!(steps(&wish(&[]), &mut actual), ["remove", "disallow 10.0.0.0/8"]);
    assert!(actual.allowed.is_empty());
}

#[test]
fn networks_of_one_family_close_the_door_of_the_other() {
    let mut actual = Actual::default();
    steps(&wish(&[(WEB, networks(&["10.0.0.0/8"]))]), &mut actual);
    assert!(actual.frontends.values().all(|to| to.restricted));
    let v4 = ServiceKey { listen: WEB, v6: false };
    assert_eq!(actual.allowed, [(v4, "10.0.0.0/8".parse().unwrap())].into());
}

/// What the kernel knows of who may be served.
#[derive(Clone, Default)]
struct Admitted {
    restricted: BTreeMap<(IpAddr, Listen), (ServiceId, bool)>,
    allowed: BTreeSet<(ServiceId, IpNet)>,
}

impl Admitted {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::SetFrontend { addr, listen, to } => {
                self.restricted.insert((*addr, *listen), (to.id, to.restricted));
            }
            Change::RemoveFrontend { addr, listen } => {
                self.restricted.remove(&(*addr, *listen));
            }
            Change::Allow { id, net, .. } => {
                self.allowed.insert((*id, *net));
            }
            Change::Disallow { id, net, .. } => {
                self.allowed.remove(&(*id, *net));
            }
            _ => {}
        }
    }

    /// Which networks' clients are served where.
    fn served(&self) -> BTreeSet<(IpAddr, Listen, IpNet)> {
        let networks = networks(&NETWORKS);
        let at = |((addr, listen), (id, restricted)): (&(IpAddr, Listen), &(ServiceId, bool))| {
            let may = |net: &IpNet| !restricted || self.allowed.contains(&(*id, *net));
            let of_family = networks.iter().filter(|net| net.addr().is_ipv4() == addr.is_ipv4());
            let served = of_family.filter(|net| may(net)).map(|net| (*addr, *listen, *net));
            served.collect::<Vec<_>>()
        };
        self.restricted.iter().flat_map(at).collect()
    }
}

fn hints() -> impl Strategy<Value = Vec<Desired>> {
    let port = (prop::sample::select(vec![WEB, DNS]), prop::sample::subsequence(&NETWORKS, 0..=4));
    let ports = prop::collection::btree_map(port.0, port.1, 0..=2);
    prop::collection::vec(ports, 1..10).prop_map(|hints| {
        let ports = |wish: BTreeMap<Listen, Vec<&str>>| -> Vec<(Listen, Networks)> {
            wish.into_iter().map(|(listen, list)| (listen, networks(&list))).collect()
        };
        hints.into_iter().map(|one| wish(&ports(one))).collect()
    })
}

proptest! {
    /// After every single change: who may be served before and afterwards is, who may be neither is
    /// not.
    #[test]
    fn nobody_is_locked_out_or_let_in_half_way(hints in hints()) {
        let (mut actual, mut door) = (Actual::default(), Admitted::default());
        for desired in hints {
            let changes = plan(&desired, &mut actual).unwrap();
            let before = door.served();
            let mut at_the_end = door.clone();
            for change in &changes {
                at_the_end.apply(change);
            }
            let after = at_the_end.served();
            for change in &changes {
                actual.record(change);
                door.apply(change);
                let now = door.served();
                prop_assert!(before.intersection(&after).all(|one| now.contains(one)), "{change:?}");
                prop_assert!(now.iter().all(|one| before.contains(one) || after.contains(one)), "{change:?}");
            }
            for (listen, networks) in &desired.allowed {
                for (addr, of, net) in after.iter().filter(|(_, of, _)| of == listen) {
                    prop_assert!(networks.is_empty() || networks.contains(net), "{net} at {addr} {of}");
                }
            }
            prop_assert_eq!(plan(&desired, &mut actual).unwrap(), vec![]);
        }
    }
}

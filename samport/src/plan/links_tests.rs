//! Tests of backends that answer by several links.

use std::net::SocketAddr;

use samport_common::layout::DeviceSet;

use super::*;
use crate::model::{HostDevice, State};

fn wish(route: Route, answers_on: &[u32], leaves_by: &[u32]) -> Desired {
    let key = BackendKey {
        listen: Listen::tcp(80),
        id: "web".into(),
        endpoint: SocketAddr::from(([172, 17, 0, 2], 9090)),
        route,
    };
    let share = Share {
        name: "web".into(),
        weight: 1,
        group: None,
        state: State::Active,
        answers_on: answers_on.iter().copied().collect(),
        leaves_by: leaves_by.to_vec(),
        route_back: None,
    };
    Desired {
        frontends: [(key.listen, BTreeMap::new())].into(),
        backends: [(key, share)].into(),
        interfaces: [2].into(),
        ..Desired::default()
    }
}

fn reach(desired: &Desired, actual: &mut Actual) -> Vec<Change> {
    let changes = tests::reach(desired, actual);
    assert_eq!(plan(desired, actual).unwrap(), []);
    changes
}

fn peer(ifindex: u32) -> Route {
    Route::Peer(HostDevice { ifindex, mac: [2; 6], polls: false })
}

/// What happens when a network is connected to a container, and disconnected: its flows' backend stays.
#[test]
fn links_come_and_go_while_the_backend_stays() {
    let mut actual = Actual::default();
    reach(&wish(peer(9), &[9], &[]), &mut actual);
    let id = actual.backends().next().unwrap().1;
    let changes = reach(&wish(peer(9), &[12, 9], &[]), &mut actual);
    let set = |change: &Change| matches!(change, Change::SetBackend { answers_on, .. } if answers_on.contains(12));
    let attach = |change: &Change| *change == Change::Attach(Role::Reverse, 12);
    // Whose it is must be known before replies are looked at there.
    assert!(changes.iter().position(set).unwrap() < changes.iter().position(attach).unwrap());
    let changes = reach(&wish(peer(9), &[9], &[]), &mut actual);
    assert!(changes.contains(&Change::Detach(Role::Reverse, 12)), "{changes:?}");
    assert_eq!(actual.backends().next().unwrap().1, id);
}

#[test]
fn replies_are_taken_on_every_link_whatever_the_route() {
    let child = Route::Child(HostDevice { ifindex: 2, mac: [2; 6], polls: false });
    let neighbour = |answers_on| Route::Neighbour { ifindex: 5, answers_on };
    for (route, answers_on, leaves_by, expected) in [
        (peer(9), &[12, 9][..], &[][..], &[(Role::Reverse, 9), (Role::Reverse, 12)][..]),
        (peer(9), &[9, DeviceSet::HOST], &[3], &[(Role::Reverse, 9), (Role::Egress, 3)]),
        (neighbour(9), &[9, 12], &[], &[(Role::Reverse, 9), (Role::Reverse, 12)]),
        (neighbour(5), &[5], &[], &[(Role::Device, 5)]),
        // A veth that is no port of a bridge.
        (neighbour(5), &[5, 12], &[], &[(Role::Reverse, 12), (Role::Device, 5)]),
        (child, &[12, DeviceSet::HOST], &[2], &[(Role::Reverse, 12), (Role::Egress, 2)]),
        (Route::Stack, &[5, 6], &[], &[(Role::Egress, 2)]),
    ] {
        let all = attachments(&wish(route, answers_on, leaves_by));
        let replies: Vec<_> = all.into_iter().filter(|(role, _)| !role.is_entrance()).collect();
        assert_eq!(replies, expected, "{route:?}");
    }
}

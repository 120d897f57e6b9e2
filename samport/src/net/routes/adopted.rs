//! Where backends were when another samport was killed. They stay there until the kernel says that they are somewhere
//! else, as they would have if that samport had gone on: its connections lead there.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::find::FoundRoute;
use super::{Forward, Network};
use crate::model::target::Target;
use crate::model::{HostDevice, Reach};
use crate::plan::{BackendKey, Route};

/// Ways of another samport, by the ids and endpoints of the backends. Each is used once.
#[derive(Default)]
pub(super) struct Adopted(BTreeMap<(String, SocketAddr), Route>);

impl Adopted {
    pub(super) fn of<'a>(backends: impl Iterator<Item = &'a BackendKey>) -> Self {
        Self(backends.map(|key| ((key.id.clone(), key.endpoint), key.route)).collect())
    }

    /// Takes out what is known of a backend, if that can be a way to it on this machine as it is now.
    pub(super) fn take(
        &mut self,
        target: &Target,
        at: u64,
        network: &Network,
    ) -> Option<FoundRoute> {
        let (id, endpoint, reach) = target;
        let route = self.0.remove(&(id.clone(), *endpoint))?;
        found(route, *reach, at, network)
    }

    /// Forgets whoever is not wanted.
    pub(super) fn keep_only(&mut self, mut is_wanted: impl FnMut(&str, SocketAddr) -> bool) {
        self.0.retain(|(id, endpoint), _| is_wanted(id, *endpoint));
    }
}

/// What that samport had found, as far as the route tells it.
fn found(route: Route, reach: Option<Reach>, at: u64, network: &Network) -> Option<FoundRoute> {
    let Network { forward, devices, .. } = network;
    if matches!(reach, Some(Reach::Host | Reach::Macvlan(_))) {
        return None;
    }
    let (device, place) = match (route, forward) {
        (Route::Peer(place), Forward::Auto | Forward::Peer) => {
            let veth = devices.get(&place.ifindex).filter(|device| device.is_veth)?;
            if network.is_uplink(place.ifindex) {
                return None;
            }
            let master = veth.master.and_then(|master| devices.get(&master));
            let bridge = master.filter(|master| master.is_bridge);
            (bridge.unwrap_or(veth).ifindex, Some(place))
        }
        (Route::Neighbour { ifindex, answers_on }, Forward::Auto | Forward::Neighbour) => {
            devices.get(&ifindex)?;
            devices.get(&answers_on)?;
            // Its MAC is in no record: it is learned as soon as the neighbour is heard of.
            let veth = HostDevice { ifindex: answers_on, mac: [0; 6], polls: false };
            (ifindex, (answers_on != ifindex).then_some(veth))
        }
        _ => return None,
    };
    Some(FoundRoute { route, device: Some(device), place, at, held: None })
}

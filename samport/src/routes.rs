//! How packets get to each backend: found out once, kept until a device on the way disappears.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use crate::health::{Target, target};
use crate::model::{Candidate, Site};
use crate::netlink::{Devices, Netlink};
use crate::plan::Route;

/// How packets are to get to backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forward {
    /// By `Peer` where the backend's veth is known, by `Neighbour` elsewhere.
    Auto,
    /// Straight into the container.
    Peer,
    /// By the neighbour table.
    Neighbour,
    /// Through the host's stack.
    Stack,
}

/// The routes found so far.
#[derive(Default)]
pub struct Routes(BTreeMap<Target, Route>);

impl Routes {
    /// Forgets whatever is not among `candidates`.
    pub fn keep_only(&mut self, candidates: &[Candidate]) {
        let wanted: Vec<_> = candidates.iter().map(target).collect();
        self.0.retain(|target, _| wanted.contains(target));
    }

    /// How packets get to a candidate.
    ///
    /// # Errors
    /// Why they cannot, for the user.
    pub async fn to(
        &mut self,
        candidate: &Candidate,
        forward: Forward,
        netlink: &Netlink,
        devices: &Devices,
    ) -> Result<Route> {
        let target = target(candidate);
        if let Some(route) = self.0.get(&target)
            && is_there(*route, devices)
        {
            return Ok(*route);
        }
        let route = find(candidate, forward, netlink, devices).await?;
        self.0.insert(target, route);
        Ok(route)
    }
}

async fn find(
    candidate: &Candidate,
    forward: Forward,
    netlink: &Netlink,
    devices: &Devices,
) -> Result<Route> {
    let addr = candidate.endpoint.ip();
    let is_veth = |ifindex| devices.get(&ifindex).is_some_and(|device| device.is_veth);
    let place = match candidate.place {
        // There is but one way to these.
        Some(Site::Host) => return Ok(Route::Stack),
        Some(Site::Macvlan(place)) => return Ok(Route::Child(place)),
        _ if forward == Forward::Stack => return Ok(Route::Stack),
        Some(Site::Veth(place)) if is_veth(place.ifindex) => Some(place),
        _ => None,
    };
    if let (Some(place), Forward::Auto | Forward::Peer) = (place, forward) {
        return Ok(Route::Peer(place));
    }
    if devices.values().any(|device| device.addresses.contains(&addr)) {
        bail!("{addr} is an address of this host itself, which this version cannot balance to");
    }
    let device = netlink.route(addr).await?.and_then(|ifindex| devices.get(&ifindex));
    let device = device.with_context(|| format!("there is no route to {addr}"))?;
    if !device.is_ethernet {
        bail!("{addr} is behind {}, which carries no Ethernet frames (a tunnel)", device.name);
    }
    let place = match place {
        Some(place) => Some(place),
        None => netlink.place_of(addr, device, devices).await,
    };
    let answers_on = place.map_or(device.ifindex, |place| place.ifindex);
    match (forward, place) {
        (Forward::Auto | Forward::Peer, Some(place)) => Ok(Route::Peer(place)),
        (Forward::Peer, None) => {
            bail!("it is not behind a veth, so --forward peer cannot reach it; use auto")
        }
        _ => Ok(Route::Neighbour { ifindex: device.ifindex, answers_on }),
    }
}

/// Whether the devices a route needs still exist.
fn is_there(route: Route, devices: &Devices) -> bool {
    match route {
        Route::Peer(place) | Route::Child(place) => devices.contains_key(&place.ifindex),
        Route::Neighbour { ifindex, answers_on } => {
            devices.contains_key(&ifindex) && devices.contains_key(&answers_on)
        }
        Route::Stack => true,
    }
}

//! How packets get to each backend: found out once, kept until a device on the way disappears or the
//! kernel's route leads to another one.

use std::collections::{BTreeMap, BTreeSet};

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
pub struct Routes(BTreeMap<Target, Found>);

/// A route, and what it was found by.
struct Found {
    route: Route,
    /// The device the kernel's route led to, if it was asked.
    device: Option<u32>,
    /// How many changes the kernel had told of then.
    at: u64,
}

impl Routes {
    /// Forgets whatever is not among `candidates`.
    pub fn keep_only(&mut self, candidates: &[Candidate]) {
        let wanted: BTreeSet<_> = candidates.iter().map(target).collect();
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
        let (target, at) = (target(candidate), netlink.changes());
        if let Some(found) = self.0.get_mut(&target)
            && is_there(found.route, devices)
            && (found.at == at || !found.has_moved(candidate, netlink, devices).await)
        {
            found.at = at;
            return Ok(found.route);
        }
        let (route, device) = find(candidate, forward, netlink, devices).await?;
        self.0.insert(target, Found { route, device, at });
        Ok(route)
    }
}

impl Found {
    /// Whether the kernel's route leads to another device now. Where there is none any more, the old one
    /// stays: routes are often taken away just before they are made anew.
    async fn has_moved(&self, candidate: &Candidate, netlink: &Netlink, devices: &Devices) -> bool {
        let Some(before) = self.device else { return false };
        match netlink.route(candidate.endpoint.ip()).await {
            Ok(Some(now)) => now != before && devices.contains_key(&now),
            Ok(None) | Err(_) => false,
        }
    }
}

/// The route, and the device the kernel's own leads to, if that was asked.
async fn find(
    candidate: &Candidate,
    forward: Forward,
    netlink: &Netlink,
    devices: &Devices,
) -> Result<(Route, Option<u32>)> {
    let addr = candidate.endpoint.ip();
    let is_veth = |ifindex| devices.get(&ifindex).is_some_and(|device| device.is_veth);
    let place = match candidate.place {
        // There is but one way to these.
        Some(Site::Host) => return Ok((Route::Stack, None)),
        Some(Site::Macvlan(place)) => return Ok((Route::Child(place), None)),
        _ if forward == Forward::Stack => return Ok((Route::Stack, None)),
        Some(Site::Veth(place)) if is_veth(place.ifindex) => Some(place),
        _ => None,
    };
    if let (Some(place), Forward::Auto | Forward::Peer) = (place, forward) {
        return Ok((Route::Peer(place), None));
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
    let route = match (forward, place) {
        (Forward::Auto | Forward::Peer, Some(place)) => Route::Peer(place),
        (Forward::Peer, None) => {
            bail!("it is not behind a veth, so --forward peer cannot reach it; use auto")
        }
        _ => Route::Neighbour { ifindex: device.ifindex, answers_on },
    };
    Ok((route, Some(device.ifindex)))
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

//! Where one backend is, asked of the kernel.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Forward, Network};
use crate::model::{HostDevice, Reach};
use crate::net::netlink;
use crate::plan::Route;

/// How long a backend stays behind a veth that is down while the kernel's route leads elsewhere: the route is taken away
/// with the link, and what is left may be the default route. Longer than a link flaps and than samport takes to start.
pub(super) const HOLD: Duration = Duration::from_mins(1);

/// The same where the veth is up: whoever takes the route away and makes it again, as after a link has come back, needs a
/// moment for it.
pub(super) const HOLD_UP: Duration = Duration::from_secs(5);

/// Why a backend stays behind a veth although the kernel's route leads elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    /// Since when, or since the link has gone down or come back.
    since: Instant,
    is_up: bool,
}

/// A route, and what it was found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FoundRoute {
    pub(super) route: Route,
    /// The device the kernel's route led to, if it was asked.
    pub(super) device: Option<u32>,
    /// Where it is, if the kernel's neighbours said so.
    pub(super) place: Option<HostDevice>,
    /// How many changes the kernel had told of then.
    pub(super) at: u64,
    /// Set if the kernel's route leads elsewhere.
    pub(super) held: Option<Held>,
}

/// What has come of looking for a backend.
pub(super) enum Outcome {
    Found(FoundRoute),
    /// Packets cannot be sent there; why, for the user.
    Failed {
        why: String,
        at: u64,
    },
    /// The kernel has not said whether one that is known is still there.
    Unknown,
}

/// What is to be found out.
pub(super) struct Question {
    pub(super) addr: IpAddr,
    pub(super) reach: Option<Reach>,
    /// Where it was.
    pub(super) known: Option<FoundRoute>,
    /// Whether its neighbour has been heard of somewhere else.
    pub(super) may_have_moved: bool,
    /// How many changes the kernel has told of.
    pub(super) at: u64,
}

impl Question {
    pub(super) async fn answer(self, network: &Network) -> Outcome {
        let Self { addr, reach, known, may_have_moved, at } = self;
        if let Some(known) = known {
            let is_elsewhere = async {
                anyhow::Ok(
                    known.is_routed_elsewhere(addr, network).await?
                        || may_have_moved && known.is_elsewhere(addr, network).await?,
                )
            };
            match is_elsewhere.await {
                Ok(false) => return Outcome::Found(FoundRoute { at, held: None, ..known }),
                Ok(true) => {
                    if let Some(held) = known.held(Instant::now(), &network.devices) {
                        let now = find(addr, reach, network, at).await;
                        // It may be behind another veth all the same.
                        let other = now.ok().filter(|now| matches!(now.route, Route::Peer(_)));
                        let held = FoundRoute { at, held: Some(held), ..known };
                        return Outcome::Found(other.unwrap_or(held));
                    }
                }
                Err(error) => {
                    tracing::debug!("{addr} stays where it was found: {error:#}");
                    return Outcome::Unknown;
                }
            }
        }
        match find(addr, reach, network, at).await {
            Ok(found) => Outcome::Found(found),
            Err(error) => Outcome::Failed { why: format!("{error:#}"), at },
        }
    }
}

impl FoundRoute {
    /// Whether it is somewhere else when the kernel's routes are.
    pub(super) const fn follows_routes(&self) -> bool {
        self.device.is_some() || matches!(self.route, Route::Stack)
    }

    /// Whether the kernel's route leads to another device now. Where there is no route any more, the old one
    /// stays: routes are often taken away just before they are made again.
    async fn is_routed_elsewhere(&self, addr: IpAddr, network: &Network) -> Result<bool> {
        if !self.follows_routes() {
            return Ok(false);
        }
        let now = network.netlink.route(addr).await?.map(|leads| leads.device);
        Ok(now.is_some_and(|now| Some(now) != self.device && network.devices.contains_key(&now)))
    }

    /// Whether the backend's address is behind another veth now, or has another MAC. Where it is not to be found, it
    /// stays where it was.
    async fn is_elsewhere(&self, addr: IpAddr, network: &Network) -> Result<bool> {
        let device = self.device.and_then(|ifindex| network.devices.get(&ifindex));
        let (Some(before), Some(device)) = (self.place, device) else { return Ok(false) };
        let now = network.place_of(addr, device).await?;
        Ok(now.is_some_and(|now| (now.ifindex, now.mac) != (before.ifindex, before.mac)))
    }

    /// Whether it stays behind its veth for now: the link may come back, and then the route.
    fn held(&self, now: Instant, devices: &netlink::Devices) -> Option<Held> {
        let Route::Peer(place) = self.route else { return None };
        let is_down = |ifindex: u32| devices.get(&ifindex).is_some_and(|device| !device.is_running);
        let is_up = !is_down(place.ifindex) && !self.device.is_some_and(is_down);
        let held = self.held.filter(|held| held.is_up == is_up);
        let held = held.unwrap_or(Held { since: now, is_up });
        let limit = if is_up { HOLD_UP } else { HOLD };
        (now.duration_since(held.since) < limit).then_some(held)
    }
}

impl Network {
    /// The veth and the MAC of a backend that no provider has located, if it has its own veth. One that
    /// clients come in by leads to a whole network: what is sent into it directly has the addresses of a router there.
    async fn place_of(&self, addr: IpAddr, via: &netlink::Device) -> Result<Option<HostDevice>> {
        let place = self.netlink.place_of(addr, via, &self.devices).await?;
        Ok(place.filter(|place| !self.is_uplink(place.ifindex)))
    }

    pub(super) fn is_uplink(&self, ifindex: u32) -> bool {
        self.devices.get(&ifindex).is_some_and(|device| self.interfaces.contains(&device.name))
    }

    /// The veth a provider has located a backend behind, if that is to be used.
    fn given_veth(&self, reach: Option<Reach>) -> Option<HostDevice> {
        let Some(Reach::Veth(place)) = reach else { return None };
        let is_veth = self.devices.get(&place.ifindex).is_some_and(|device| device.is_veth);
        (is_veth && !self.is_uplink(place.ifindex)).then_some(place)
    }
}

/// How packets get to a backend of which nothing has to be asked: there is but one way to it.
pub(super) fn given(reach: Option<Reach>, at: u64, network: &Network) -> Option<FoundRoute> {
    let route = match (reach, network.forward) {
        (Some(Reach::Macvlan(place)), _) => Route::Child(place),
        // The way to a node is looked for once, for all of its services.
        (Some(Reach::Node(at)), _) => Route::Node(at),
        (Some(Reach::Host), _) | (_, Forward::Stack | Forward::Neighbour) => return None,
        _ => Route::Peer(network.given_veth(reach)?),
    };
    Some(FoundRoute { route, device: None, place: None, at, held: None })
}

/// How packets get to a backend, as it is now.
async fn find(
    addr: IpAddr,
    reach: Option<Reach>,
    network: &Network,
    at: u64,
) -> Result<FoundRoute> {
    if let Some(found) = given(reach, at, network) {
        return Ok(found);
    }
    let Network { forward, netlink, devices, .. } = network;
    let found = |route, device, place| Ok(FoundRoute { route, device, place, at, held: None });
    let leads = netlink.route(addr).await;
    if matches!(reach, Some(Reach::Host)) || *forward == Forward::Stack {
        return found(Route::Stack, leads?.map(|leads| leads.device), None);
    }
    if devices.values().any(|device| device.addresses.contains(&addr)) {
        bail!("{addr} is an address of this host itself, which this version cannot balance to");
    }
    let leads = leads?.with_context(|| format!("there is no route to {addr}"))?;
    let device = devices.get(&leads.device);
    let device = device.with_context(|| format!("there is no route to {addr}"))?;
    if !device.is_ethernet {
        bail!("{addr} is behind {}, which carries no Ethernet frames (a tunnel)", device.name);
    }
    let given = network.given_veth(reach);
    let learned = match given {
        // What is behind a gateway is no neighbour.
        None if leads.is_on_link => network.place_of(addr, device).await?,
        _ => None,
    };
    let place = given.or(learned);
    let answers_on = place.map_or(device.ifindex, |place| place.ifindex);
    let route = match (forward, place) {
        (Forward::Auto | Forward::Peer, Some(place)) => Route::Peer(place),
        (Forward::Peer, None) => {
            bail!("it does not have its own veth, so --forward peer cannot reach it; use auto")
        }
        _ => Route::Neighbour { ifindex: device.ifindex, answers_on },
    };
    found(route, Some(device.ifindex), learned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netlink::{Device, Devices};

    const VETH: u32 = 7;
    const BRIDGE: u32 = 3;

    fn devices(is_veth_running: bool, is_bridge_running: bool) -> Devices {
        let device = |ifindex, is_running| Device { is_running, ..Device::named(ifindex, "dev") };
        [(VETH, is_veth_running), (BRIDGE, is_bridge_running)]
            .map(|(ifindex, is_running)| (ifindex, device(ifindex, is_running)))
            .into()
    }

    #[test]
    fn a_backend_is_held_behind_its_veth_but_not_for_ever() {
        let place = HostDevice { ifindex: VETH, mac: [2; 6], polls: false };
        let route = Route::Peer(place);
        let found =
            FoundRoute { route, device: Some(BRIDGE), place: Some(place), at: 1, held: None };
        let now = Instant::now();
        let just_before = |limit: Duration| limit.saturating_sub(Duration::from_secs(1));
        for (veth, bridge) in [(true, true), (false, true), (true, false)] {
            let is_up = veth && bridge;
            let held = found.held(now, &devices(veth, bridge));
            assert_eq!(held, Some(Held { since: now, is_up }), "{veth} {bridge}");
            let (held, limit) = (FoundRoute { held, ..found }, if is_up { HOLD_UP } else { HOLD });
            assert_eq!(held.held(now + just_before(limit), &devices(veth, bridge)), held.held);
            assert_eq!(held.held(now + limit, &devices(veth, bridge)), None);
        }
        // The route comes back a moment after the link, however long that was down.
        let down = FoundRoute { held: Some(Held { since: now, is_up: false }), ..found };
        let later = now + just_before(HOLD);
        let back = down.held(later, &devices(true, true));
        assert_eq!(back, Some(Held { since: later, is_up: true }));
        assert_eq!(
            FoundRoute { held: back, ..found }.held(later + HOLD_UP, &devices(true, true)),
            None
        );
        // What is reached by a neighbour table follows the kernel's routes.
        let route = Route::Neighbour { ifindex: BRIDGE, answers_on: BRIDGE };
        let neighbour = FoundRoute { route, place: None, ..found };
        assert_eq!(neighbour.held(now, &devices(false, false)), None);
    }
}

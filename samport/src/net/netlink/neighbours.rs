//! Which backends may be somewhere else than they were found, by what the kernel tells of its neighbours and of its
//! bridges' forwarding tables.
//!
//! All there is to hear is heard, but only what concerns a backend is remembered, and looked into a while later, so
//! that a storm of messages costs one look at each backend that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_sys::{AsyncSocketExt as _, TokioSocket};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::{Notify, watch};

use super::changes::{is_overrun, listen, listen_again};
use super::mac_in;
use crate::model::HostDevice;
use crate::system::resyncs::{Gap, Resyncs};

/// How long messages are gathered before backends are looked for.
const SETTLE: Duration = Duration::from_millis(250);

/// Longest message there is about a neighbour, with room to spare.
const MESSAGE: usize = 4 * 1024;

const GROUPS: [MulticastGroup; 1] = [MulticastGroup::Neigh];

/// Where a backend was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The device that the route to it leads to: its veth, or the bridge that is a port of.
    pub device: u32,
    /// Its veth and its MAC.
    pub place: HostDevice,
}

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    /// A neighbour on a device has this MAC.
    Neighbour { addr: IpAddr, device: u32, mac: [u8; 6] },
    /// A bridge has heard a MAC on this port.
    Port { mac: [u8; 6], bridge: u32, port: u32 },
}

/// Where backends were found, and which of them may have moved since.
#[derive(Default, Debug)]
struct Watched {
    known: BTreeMap<IpAddr, Known>,
    by_mac: BTreeSet<([u8; 6], IpAddr)>,
    moved: BTreeSet<IpAddr>,
}

impl Watched {
    fn watch(&mut self, addr: IpAddr, known: Known) {
        self.forget(addr);
        self.known.insert(addr, known);
        self.by_mac.insert((known.place.mac, addr));
    }

    fn forget(&mut self, addr: IpAddr) {
        if let Some(before) = self.known.remove(&addr) {
            self.by_mac.remove(&(before.place.mac, addr));
        }
        self.moved.remove(&addr);
    }

    fn keep_only(&mut self, addresses: &BTreeSet<IpAddr>) {
        let gone: Vec<_> =
            self.known.keys().filter(|addr| !addresses.contains(addr)).copied().collect();
        for addr in gone {
            self.forget(addr);
        }
    }

    /// Takes a message in. Whether a backend may have moved of which that was not known.
    fn hear(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Neighbour { addr, device, mac } => {
                let has_moved = |known: &Known| known.device == device && known.place.mac != mac;
                self.known.get(&addr).is_some_and(has_moved) && self.moved.insert(addr)
            }
            Heard::Port { mac, bridge, port } => {
                let first = IpAddr::from([0; 4]);
                let of_mac = self.by_mac.range((mac, first)..).take_while(|(of, _)| *of == mac);
                let has_moved = |addr: &IpAddr| {
                    self.known
                        .get(addr)
                        .is_some_and(|known| known.device == bridge && known.place.ifindex != port)
                };
                let moved: Vec<_> = of_mac.map(|(_, addr)| *addr).filter(has_moved).collect();
                let before = self.moved.len();
                self.moved.extend(moved);
                self.moved.len() > before
            }
        }
    }

    /// Whether somebody who is watched may have moved of whom that was not known.
    fn doubt(&mut self, addr: IpAddr) -> bool {
        self.known.contains_key(&addr) && self.moved.insert(addr)
    }

    fn doubt_all(&mut self) -> bool {
        self.moved = self.known.keys().copied().collect();
        !self.moved.is_empty()
    }
}

/// Where backends were found that no provider has located, and whether they are still there.
#[derive(Clone, Default)]
pub struct Neighbours {
    watched: Arc<Mutex<Watched>>,
    marked: Arc<Notify>,
}

impl Neighbours {
    /// Begins to listen. The number changes when there is something to look into.
    ///
    /// # Errors
    /// Without a netlink socket.
    pub fn follow(&self, resyncs: Resyncs) -> Result<watch::Receiver<u64>> {
        let socket = listen(&GROUPS).context("cannot open a netlink socket")?;
        tokio::spawn(self.clone().hear_all(socket, resyncs));
        let (counter, moves) = watch::channel(0);
        let marked = Arc::clone(&self.marked);
        tokio::spawn(async move {
            loop {
                marked.notified().await;
                tokio::time::sleep(SETTLE).await;
                counter.send_modify(|count| *count += 1);
            }
        });
        Ok(moves)
    }

    /// Remembers where a backend was found.
    pub fn watch(&self, addr: IpAddr, known: Known) {
        self.change(|watched| {
            watched.watch(addr, known);
            false
        });
    }

    /// Forgets whoever has none of these addresses.
    pub fn keep_only(&self, addresses: &BTreeSet<IpAddr>) {
        self.change(|watched| {
            watched.keep_only(addresses);
            false
        });
    }

    /// Has somebody looked for, if he is watched: there is a reason to think that he is not where he was found.
    pub fn doubt(&self, addr: IpAddr) {
        self.change(|watched| watched.doubt(addr));
    }

    /// Those that may have moved since this was asked last.
    #[must_use]
    pub fn take_moved(&self) -> BTreeSet<IpAddr> {
        let mut moved = BTreeSet::new();
        self.change(|watched| {
            moved = std::mem::take(&mut watched.moved);
            false
        });
        moved
    }

    async fn hear_all(self, mut socket: TokioSocket, resyncs: Resyncs) {
        let mut message = Vec::with_capacity(MESSAGE);
        loop {
            message.clear();
            match socket.recv(&mut message).await {
                Ok(()) => self.take_in(&message),
                Err(error) => {
                    resyncs.count(Gap::Neighbours);
                    if !is_overrun(&error) {
                        socket = listen_again(&GROUPS, &error).await;
                    }
                    // Any of them may have moved meanwhile.
                    self.doubt_all();
                }
            }
        }
    }

    /// Has all who are watched looked for.
    pub fn doubt_all(&self) {
        self.change(Watched::doubt_all);
    }

    fn take_in(&self, message: &[u8]) {
        let payload = NetlinkMessage::deserialize(message).map(|message| message.payload);
        if let Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))) =
            payload
            && let Some(heard) = heard(&message)
        {
            self.change(|watched| watched.hear(heard));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Watched) -> bool) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if change(&mut watched) {
            self.marked.notify_one();
        }
    }
}

/// What a message says, if it may concern us. An entry that the kernel has given up says nothing of who is there now.
fn heard(message: &NeighbourMessage) -> Option<Heard> {
    let mac = mac_in(&message.attributes)?;
    let attribute =
        |find: fn(&NeighbourAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(find);
    if message.header.family == AddressFamily::Bridge {
        let bridge = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Controller(bridge) => Some(*bridge),
            _ => None,
        })?;
        return Some(Heard::Port { mac, bridge, port: message.header.ifindex });
    }
    if matches!(
        message.header.state,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
    ) {
        return None;
    }
    let addr = attribute(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => Some((*addr).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => Some((*addr).into()),
        _ => None,
    })?;
    Some(Heard::Neighbour { addr, device: message.header.ifindex, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 3;
    const VETH: u32 = 7;
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn addr(last: u8) -> IpAddr {
        [172, 30, 0, last].into()
    }

    fn known(mac: [u8; 6]) -> Known {
        Known { device: BRIDGE, place: HostDevice { ifindex: VETH, mac, polls: false } }
    }

    fn watched() -> Watched {
        let mut watched = Watched::default();
        watched.watch(addr(10), known(MAC));
        watched.watch("2001:db8:2::10".parse().unwrap(), known(MAC));
        watched.watch(addr(11), known(OTHER_MAC));
        watched
    }

    const fn neighbour(addr: IpAddr, device: u32, mac: [u8; 6]) -> Heard {
        Heard::Neighbour { addr, device, mac }
    }

    #[test]
    fn a_backend_has_moved_when_its_address_has_another_mac() {
        let mut watched = watched();
        // What was known, another address, and the same address on another link.
        for heard in [
            neighbour(addr(10), BRIDGE, MAC),
            neighbour(addr(12), BRIDGE, OTHER_MAC),
            neighbour(addr(10), BRIDGE + 1, OTHER_MAC),
        ] {
            assert!(!watched.hear(heard), "{heard:?}");
        }
        assert!(watched.hear(neighbour(addr(10), BRIDGE, OTHER_MAC)));
        assert_eq!(watched.moved, [addr(10)].into());
        // Once it is found there, that is what is known.
        watched.watch(addr(10), known(OTHER_MAC));
        assert!(watched.moved.is_empty());
        assert!(!watched.hear(neighbour(addr(10), BRIDGE, OTHER_MAC)));
    }

    #[test]
    fn all_addresses_of_a_mac_have_moved_when_it_is_heard_on_another_port() {
        let mut watched = watched();
        for heard in [
            Heard::Port { mac: MAC, bridge: BRIDGE, port: VETH },
            Heard::Port { mac: MAC, bridge: BRIDGE + 1, port: VETH + 1 },
            Heard::Port { mac: [2; 6], bridge: BRIDGE, port: VETH + 1 },
        ] {
            assert!(!watched.hear(heard), "{heard:?}");
        }
        assert!(watched.hear(Heard::Port { mac: MAC, bridge: BRIDGE, port: VETH + 1 }));
        assert_eq!(watched.moved, [addr(10), "2001:db8:2::10".parse().unwrap()].into());
    }

    #[test]
    fn a_storm_of_messages_is_one_look_at_those_it_is_about() {
        let mut watched = watched();
        let mut looks = 0;
        for number in 0..100_000_u32 {
            let [_, b, c, d] = number.to_be_bytes();
            let heard = neighbour([10, b, c, d].into(), BRIDGE, MAC);
            looks += u32::from(watched.hear(heard));
            looks += u32::from(watched.hear(neighbour(addr(10), BRIDGE, [2, 1, 0, b, c, d])));
        }
        assert_eq!((looks, watched.moved.len()), (1, 1));
    }

    #[test]
    fn who_is_doubted_or_may_have_been_missed_is_looked_for_if_watched() {
        let mut watched = watched();
        assert!(!watched.doubt(addr(99)));
        assert!(watched.doubt(addr(11)) && !watched.doubt(addr(11)));
        assert!(watched.doubt_all());
        assert_eq!(watched.moved.len(), 3);
        watched.keep_only(&[addr(11)].into());
        assert_eq!((watched.moved.len(), watched.known.len(), watched.by_mac.len()), (1, 1, 1));
        assert!(!Watched::default().doubt_all());
    }

    #[test]
    fn messages_are_read_as_the_kernel_sends_them() {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = BRIDGE;
        message.header.state = NeighbourState::Reachable;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([172, 30, 0, 10].into())),
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        ];
        assert_eq!(heard(&message), Some(neighbour(addr(10), BRIDGE, MAC)));
        for given_up in [NeighbourState::Failed, NeighbourState::Incomplete] {
            message.header.state = given_up;
            assert_eq!(heard(&message), None);
        }
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = VETH;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(MAC.to_vec())];
        assert_eq!(heard(&message), None, "of no bridge");
        message.attributes.push(NeighbourAttribute::Controller(BRIDGE));
        assert_eq!(heard(&message), Some(Heard::Port { mac: MAC, bridge: BRIDGE, port: VETH }));
    }
}

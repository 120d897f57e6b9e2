//! Where a neighbour is: its MAC, and the veth it is behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error, Handle};

use super::{Device, Devices, Netlink, mac_in};
use crate::model::HostDevice;

/// Pauses between looks for a neighbour's MAC, in milliseconds: 100 in all.
const PAUSES: [u64; 7] = [2, 3, 5, 10, 20, 30, 30];

impl Netlink {
    /// The veth a neighbour is behind, and its MAC, if it is behind one: directly, or through a
    /// bridge's forwarding table.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn place_of(
        &self,
        addr: IpAddr,
        via: &Device,
        devices: &Devices,
    ) -> Result<Option<HostDevice>> {
        if !via.is_veth && !via.is_bridge {
            return Ok(None);
        }
        let Some(mac) = self.mac_of(addr, via.ifindex).await? else { return Ok(None) };
        let place = |ifindex| HostDevice { ifindex, mac, polls: false };
        if via.is_veth {
            return Ok(Some(place(via.ifindex)));
        }
        let port = self.bridge_port_of(mac, via.ifindex).await?;
        let is_veth = |port: &u32| devices.get(port).is_some_and(|port| port.is_veth);
        Ok(port.filter(is_veth).map(place))
    }

    /// A neighbour's MAC, asking it if it is not known.
    async fn mac_of(&self, addr: IpAddr, ifindex: u32) -> Result<Option<[u8; 6]>> {
        for (attempt, pause) in PAUSES.into_iter().enumerate() {
            if let Some(mac) = self.known_mac(addr, ifindex).await? {
                return Ok(Some(mac));
            }
            if attempt == 0 || pause == PAUSES[PAUSES.len() - 1] {
                provoke_resolution(addr);
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.known_mac(addr, ifindex).await
    }

    async fn known_mac(&self, addr: IpAddr, ifindex: u32) -> Result<Option<[u8; 6]>> {
        let mut question = NeighbourMessage::default();
        let (family, destination) = match addr {
            IpAddr::V4(addr) => (AddressFamily::Inet, NeighbourAddress::Inet(addr)),
            IpAddr::V6(addr) => (AddressFamily::Inet6, NeighbourAddress::Inet6(addr)),
        };
        question.header.family = family;
        question.header.ifindex = ifindex;
        question.attributes.push(NeighbourAttribute::Destination(destination));
        let what = format!("ask for the neighbour {addr}");
        let found = self.requests.ask(&what, |handle| one(handle, question)).await?;
        Ok(unless_unknown(found).context(what)?.and_then(|found| mac_in(&found.attributes)))
    }

    /// The port of a bridge a MAC was last heard on.
    async fn bridge_port_of(&self, mac: [u8; 6], bridge: u32) -> Result<Option<u32>> {
        let mut question = NeighbourMessage::default();
        question.header.family = AddressFamily::Bridge;
        question.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Controller(bridge),
        ];
        let what = "ask for a bridge's port";
        let found = self.requests.ask(what, |handle| one(handle, question)).await?;
        match unless_unknown(found) {
            Ok(Some(entry)) => Ok(Some(entry.header.ifindex)),
            // The kernel was asked about no VLAN, and a bridge that knows VLANs has the MAC in one.
            Ok(None) | Err(_) => self.listed_bridge_port_of(mac, bridge).await,
        }
    }

    async fn listed_bridge_port_of(&self, mac: [u8; 6], bridge: u32) -> Result<Option<u32>> {
        let list = |handle: Handle| async move {
            let of_bridges = handle.neighbours().get().set_address_family(AddressFamily::Bridge);
            let mut entries = of_bridges.execute();
            let mut found = None;
            while let Some(entry) = entries.try_next().await? {
                let on_bridge = entry.attributes.iter().any(
                    |attribute| matches!(attribute, NeighbourAttribute::Controller(c) if *c == bridge),
                );
                if on_bridge && mac_in(&entry.attributes) == Some(mac) {
                    found = Some(entry.header.ifindex);
                }
            }
            Ok(found)
        };
        let what = "list forwarding tables";
        self.requests.list(what, list).await?.context(what)
    }
}

/// The one neighbour a question is about; rtnetlink lists all.
async fn one(
    mut handle: Handle,
    question: NeighbourMessage,
) -> Result<Option<NeighbourMessage>, Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(request)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => {
                return Ok(Some(found));
            }
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    // The connection has ended before the answer.
    Err(Error::RequestFailed)
}

/// That there is no such neighbour, or no such device any more, is an answer.
fn unless_unknown(
    found: Result<Option<NeighbourMessage>, Error>,
) -> Result<Option<NeighbourMessage>, Error> {
    match found {
        Err(Error::NetlinkError(error))
            if matches!(-error.raw_code(), libc::ENOENT | libc::ENODEV) =>
        {
            Ok(None)
        }
        found => found,
    }
}

/// Makes the kernel ask for a neighbour's MAC: a datagram to the discard port (RFC 863) has to be
/// addressed to somebody. It needs no listener there.
fn provoke_resolution(addr: IpAddr) {
    let any: IpAddr =
        if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    if let Ok(socket) = UdpSocket::bind(SocketAddr::new(any, 0)) {
        let _ = socket.send_to(&[], SocketAddr::new(addr, 9));
    }
}

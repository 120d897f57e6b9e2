//! What the kernel knows of devices, addresses, routes and neighbours, asked over netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::watch;

use crate::model::Place;

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Whether its frames begin with an Ethernet header.
    pub is_ethernet: bool,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What may change about a device without samport doing anything about it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LinkState {
    /// Whether it is switched on.
    pub is_up: bool,
    /// The kernel's number of the XDP program on it.
    pub xdp: Option<u32>,
}

/// All devices of this network namespace, by index.
pub type Devices = BTreeMap<u32, Device>;

/// A connection to the kernel.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
    changes: watch::Receiver<u64>,
}

impl Netlink {
    /// Connects, and says whenever a link, an address or a route changes (the number counts changes).
    pub fn connect() -> Result<(Self, watch::Receiver<u64>)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, handle, mut messages) =
            new_multicast_connection(&groups).context("open a netlink socket")?;
        tokio::spawn(connection);
        let (counter, changed) = watch::channel(0);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                counter.send_modify(|count| *count += 1);
            }
        });
        Ok((Self { handle, changes: changed.clone() }, changed))
    }

    /// How many changes there have been so far: while it stays the same, routes do.
    #[must_use]
    pub fn changes(&self) -> u64 {
        *self.changes.borrow()
    }

    /// All devices with their addresses.
    pub async fn devices(&self) -> Result<Devices> {
        let mut devices = Devices::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.context("list links")? {
            devices.insert(link.header.index, device(&link));
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.context("list addresses")? {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(addr) => Some(*addr),
                _ => None,
            });
            let addr = local.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(addr) => Some(*addr),
                    _ => None,
                })
            });
            if let (Some(addr), Some(device)) = (addr, devices.get_mut(&message.header.index)) {
                device.addresses.insert(addr);
            }
        }
        Ok(devices)
    }

    /// The state of each device, by index.
    pub async fn links(&self) -> Result<BTreeMap<u32, LinkState>> {
        let links = self.handle.link().get().execute();
        let links: Vec<_> = links.try_collect().await.context("list links")?;
        Ok(links.iter().map(|link| (link.header.index, state(link))).collect())
    }

    /// The device packets to an address leave by.
    pub async fn route(&self, to: IpAddr) -> Result<Option<u32>> {
        let message = match to {
            IpAddr::V4(to) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build()
            }
            IpAddr::V6(to) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build()
            }
        };
        let mut routes = self.handle.route().get(message).execute();
        // No route is an answer, not a failure.
        let Ok(Some(route)) = routes.try_next().await else { return Ok(None) };
        Ok(route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        }))
    }

    /// The veth a neighbour is behind, and its MAC, if it is behind one: directly, or through a
    /// bridge's forwarding table.
    pub async fn place_of(&self, addr: IpAddr, via: &Device, devices: &Devices) -> Option<Place> {
        let mac = self.mac_of(addr, via.ifindex).await?;
        if via.is_veth {
            return Some(Place { ifindex: via.ifindex, mac, polls: false });
        }
        if !via.is_bridge {
            return None;
        }
        let ifindex = self.bridge_port_of(mac, via.ifindex).await?;
        devices.get(&ifindex).filter(|port| port.is_veth).map(|_| Place {
            ifindex,
            mac,
            polls: false,
        })
    }

    /// A neighbour's MAC, asking it if nobody has lately.
    async fn mac_of(&self, addr: IpAddr, ifindex: u32) -> Option<[u8; 6]> {
        for attempt in 0..20 {
            if let Some(mac) = self.known_mac(addr, ifindex).await {
                return Some(mac);
            }
            if attempt % 10 == 0 {
                provoke_resolution(addr);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    async fn known_mac(&self, addr: IpAddr, ifindex: u32) -> Option<[u8; 6]> {
        let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let mut neighbours = self.handle.neighbours().get().set_address_family(family).execute();
        let mut found = None;
        while let Ok(Some(neighbour)) = neighbours.try_next().await {
            let is_it = neighbour.header.ifindex == ifindex
                && neighbour.attributes.iter().any(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => addr == *ip,
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => addr == *ip,
                    _ => false,
                });
            if is_it {
                found = found.or(mac_in(&neighbour.attributes));
            }
        }
        found
    }

    /// The port of a bridge a MAC was last heard on.
    async fn bridge_port_of(&self, mac: [u8; 6], bridge: u32) -> Option<u32> {
        let mut entries =
            self.handle.neighbours().get().set_address_family(AddressFamily::Bridge).execute();
        let mut found = None;
        while let Ok(Some(entry)) = entries.try_next().await {
            let on_bridge = entry.attributes.iter().any(
                |attribute| matches!(attribute, NeighbourAttribute::Controller(c) if *c == bridge),
            );
            if on_bridge && mac_in(&entry.attributes) == Some(mac) {
                found = Some(entry.header.ifindex);
            }
        }
        found
    }
}

/// Removes a device's clsact qdisc if no filter is left under it. Works from synchronous code; a
/// failure is reported and leaves the qdisc.
pub fn remove_empty_clsact(ifindex: u32) {
    let removed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            let index = i32::try_from(ifindex).context("device index")?;
            let ingress = handle.traffic_filter(index).get().ingress().execute();
            let egress = handle.traffic_filter(index).get().egress().execute();
            let filters: Vec<_> = ingress.chain(egress).try_collect().await?;
            if filters.is_empty() {
                let mut request = handle.qdisc().del(index);
                // ffff:fff1 is where ingress and clsact live (TC_H_CLSACT, pkt_sched.h).
                request.message_mut().header.parent = TcHandle::from(0xffff_fff1);
                request.execute().await?;
            }
            anyhow::Ok(())
        })
    })
    .join();
    if let Ok(Err(error)) = removed {
        tracing::error!("the clsact qdisc on device {ifindex} could not be removed: {error:#}");
    }
}

fn device(link: &LinkMessage) -> Device {
    let kind = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        }),
        _ => None,
    });
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    Device {
        ifindex: link.header.index,
        name: name.unwrap_or_default(),
        is_veth: kind == Some(InfoKind::Veth),
        is_bridge: kind == Some(InfoKind::Bridge),
        is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        addresses: BTreeSet::new(),
    }
}

fn state(link: &LinkMessage) -> LinkState {
    let mut xdp = link.attributes.iter().flat_map(|attribute| match attribute {
        LinkAttribute::Xdp(about) => &about[..],
        _ => &[],
    });
    let xdp = xdp.find_map(|about| match about {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    LinkState { is_up: link.header.flags.contains(LinkFlags::Up), xdp }
}

fn mac_in(attributes: &[NeighbourAttribute]) -> Option<[u8; 6]> {
    attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

/// Makes the kernel ask for a neighbour's MAC: a datagram to the discard port (RFC 863) has to be
/// addressed to somebody. That nobody listens there does no harm.
fn provoke_resolution(addr: IpAddr) {
    let any: IpAddr =
        if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    if let Ok(socket) = UdpSocket::bind(SocketAddr::new(any, 0)) {
        let _ = socket.send_to(&[], SocketAddr::new(addr, 9));
    }
}

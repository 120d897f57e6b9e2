//! What the kernel knows of devices, addresses, routes and neighbours, asked over netlink.

mod changes;
mod device;
mod multipath;
mod neighbours;
mod place;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use samport_common::source::{NextHop, Route};
use tokio::sync::watch;

use crate::system::resyncs::Resyncs;
use changes::Changes;
pub use device::{Device, Devices, LinkState};
use device::{add_address, device, state};
use multipath::NextHopList;
pub use multipath::NextHops;
pub use neighbours::{Known, Neighbours};
use requests::Requests;

/// Connections to the kernel: what is asked has its own socket, and so has what the kernel tells.
#[derive(Clone)]
pub struct Netlink {
    requests: Arc<Requests>,
    changes: watch::Receiver<u64>,
    next_hops: NextHopList,
    neighbours: Neighbours,
}

impl Netlink {
    /// Connects, and says whenever a link, an address, a route, a next hop or a device's rp_filter or
    /// forwarding changes (the number counts changes). Changes that were lost are counted.
    pub fn connect(resyncs: &Resyncs) -> Result<(Self, watch::Receiver<u64>)> {
        let (counter, changed) = watch::channel(0);
        let told =
            Changes::listen(counter, resyncs.clone()).context("cannot open a netlink socket")?;
        tokio::spawn(told.follow());
        let requests = Arc::new(Requests::connect().context("cannot open a netlink socket")?);
        let (next_hops, neighbours) = (NextHopList::default(), Neighbours::default());
        Ok((Self { requests, changes: changed.clone(), next_hops, neighbours }, changed))
    }

    /// How many changes there have been so far: while it stays the same, routes do.
    #[must_use]
    pub fn changes(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Where backends were found, and which of them may have moved.
    #[must_use]
    pub const fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// All devices with their addresses.
    pub async fn devices(&self) -> Result<Devices> {
        let links = self.links_as_told().await?;
        let mut devices: Devices =
            links.iter().map(|link| (link.header.index, device(link))).collect();
        let list =
            |handle: Handle| async move { handle.address().get().execute().try_collect().await };
        let what = "list addresses";
        let addresses: Vec<AddressMessage> = self.requests.list(what, list).await?.context(what)?;
        for message in addresses {
            if let Some(device) = devices.get_mut(&message.header.index) {
                add_address(device, &message);
            }
        }
        Ok(devices)
    }

    /// The state of each device, by index.
    pub async fn links(&self) -> Result<BTreeMap<u32, LinkState>> {
        let links = self.links_as_told().await?;
        Ok(links.iter().map(|link| (link.header.index, state(link))).collect())
    }

    async fn links_as_told(&self) -> Result<Vec<LinkMessage>> {
        let list =
            |handle: Handle| async move { handle.link().get().execute().try_collect().await };
        let what = "list links";
        self.requests.list(what, list).await?.context(what)
    }

    /// The device packets to an address leave by, and whether the address is on its link: behind a gateway there is
    /// no neighbour of that address. None if no route leads there.
    pub async fn route(&self, to: IpAddr) -> Result<Option<Leads>> {
        let message = match to {
            IpAddr::V4(to) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build()
            }
            IpAddr::V6(to) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build()
            }
        };
        let Some(route) = self.ask_for_route(to, message).await? else { return Ok(None) };
        let device = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        });
        let is_gateway = |one: &RouteAttribute| {
            matches!(one, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
        };
        let is_on_link = !route.attributes.iter().any(is_gateway);
        Ok(device.map(|device| Leads { device, is_on_link }))
    }

    /// No route is an answer, not a failure.
    async fn ask_for_route(
        &self,
        to: IpAddr,
        question: RouteMessage,
    ) -> Result<Option<RouteMessage>> {
        let get =
            |handle: Handle| async move { handle.route().get(question).execute().try_next().await };
        let what = format!("ask for the route to {to}");
        match self.requests.ask(&what, get).await? {
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(error.raw_code()) => Ok(None),
            answer => answer.context(what),
        }
    }

    /// The route to an address for what the host itself sends from another, out of a VRF if one is given: what
    /// the kernel programs ask `bpf_fib_lookup`, as long as forwarding is on.
    /// The second part is the gateway's address, if there is one.
    pub async fn route_from(
        &self,
        to: IpAddr,
        from: Option<IpAddr>,
        vrf: Option<u32>,
    ) -> Result<(Route, Option<IpAddr>)> {
        let mut message = match (to, from) {
            (IpAddr::V4(to), None | Some(IpAddr::V4(_))) => {
                let mut route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32);
                if let Some(IpAddr::V4(from)) = from {
                    route = route.source_prefix(from, 32);
                }
                route.build()
            }
            (IpAddr::V6(to), None | Some(IpAddr::V6(_))) => {
                let mut route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128);
                if let Some(IpAddr::V6(from)) = from {
                    route = route.source_prefix(from, 128);
                }
                route.build()
            }
            _ => return Ok((Route::None, None)),
        };
        message.attributes.extend(vrf.map(RouteAttribute::Oif));
        let route = self.ask_for_route(to, message).await?;
        Ok(route.map_or((Route::None, None), |route| found_route(&route)))
    }

    /// The IPv4 policy rules.
    pub async fn rules(&self) -> Result<Vec<RuleMessage>> {
        let list = |handle: Handle| async move {
            handle.rule().get(IpVersion::V4).execute().try_collect().await
        };
        let what = "list policy rules";
        match self.requests.list(what, list).await? {
            // The kernel was built without them.
            Err(rtnetlink::Error::NetlinkError(error))
                if matches!(-error.raw_code(), libc::EOPNOTSUPP | libc::EAFNOSUPPORT) =>
            {
                Ok(Vec::new())
            }
            rules => rules.context(what),
        }
    }

    /// The filters on a device's ingress, or on its egress: their priorities and handles.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn filters(&self, ifindex: u32, egress: bool) -> Result<BTreeSet<(u16, u32)>> {
        let index = i32::try_from(ifindex).context("device index")?;
        let list = |handle: Handle| async move {
            let filters = handle.traffic_filter(index).get();
            let filters = if egress { filters.egress() } else { filters.ingress() };
            filters.execute().try_collect::<Vec<_>>().await
        };
        let what = "list filters";
        match self.requests.list(what, list).await? {
            // There is no qdisc they could be under, or no such device.
            Err(rtnetlink::Error::NetlinkError(error))
                if matches!(-error.raw_code(), libc::EINVAL | libc::ENODEV | libc::ENOENT) =>
            {
                Ok(BTreeSet::new())
            }
            filters => {
                let of = |filter: &TcMessage| {
                    (priority_of(filter.header.info), filter.header.handle.into())
                };
                Ok(filters.context(what)?.iter().map(of).collect())
            }
        }
    }

    /// The next hops of multipath routes, of all tables and both families. As they are now, but where routes
    /// are many: [`NextHopList`] says how old an answer may be.
    pub async fn next_hops(&self) -> Result<NextHops> {
        self.next_hops.get(self.changes()).await
    }

    /// Waits until next hops are known that were not in time for [`Self::next_hops`].
    pub async fn late_next_hops(&self) {
        self.next_hops.late().await;
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
            // One after the other: the kernel refuses a second list on a socket while it sends the first.
            let ingress = handle.traffic_filter(index).get().ingress().execute();
            let mut filters: Vec<_> = ingress.try_collect().await?;
            let egress = handle.traffic_filter(index).get().egress().execute();
            filters.extend(egress.try_collect::<Vec<_>>().await?);
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

/// The priority in what a filter's message says of priority and protocol (TC_H_MAJ, linux/pkt_sched.h).
const fn priority_of(info: u32) -> u16 {
    (info >> 16) as u16
}

/// Where the kernel sends packets to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leads {
    /// The device they leave by.
    pub device: u32,
    /// Whether the address itself is on that device's link, rather than behind a gateway there.
    pub is_on_link: bool,
}

/// A route as `bpf_fib_lookup` answers it: it does not follow those into a tunnel without a device.
fn found_route(route: &RouteMessage) -> (Route, Option<IpAddr>) {
    if route.header.kind != RouteType::Unicast {
        return (Route::None, None);
    }
    let (mut via, mut gateway, mut is_encapsulated) = (None, None, false);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => via = Some(*ifindex),
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) => gateway = Some((*addr).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(addr)) => gateway = Some((*addr).into()),
            RouteAttribute::EncapType(_) => is_encapsulated = true,
            _ => {}
        }
    }
    let via = via.filter(|_| !is_encapsulated);
    (via.map_or(Route::Unknown, |via| Route::Via(via, NextHop::OnLink)), gateway)
}

/// Whether the kernel has answered that there is no route, or that it is unreachable, prohibited or a
/// blackhole (`fib_props` in net/ipv4/fib_semantics.c).
const fn is_no_route(code: i32) -> bool {
    matches!(-code, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
}

fn mac_in(attributes: &[NeighbourAttribute]) -> Option<[u8; 6]> {
    attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

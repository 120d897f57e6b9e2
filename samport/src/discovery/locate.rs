//! Finds how a container is connected to this machine by what its network namespace looks like.
//!
//! The kernel lists another namespace's links to whoever may administer that namespace: samport does not enter it, which
//! would take far more power (CAP_SYS_ADMIN, and CAP_SYS_PTRACE to open it).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Handle, new_connection_with_strict_check};

use super::container::Attachment;
use super::egress::{egress, routes_of};
use crate::model::{Egress, HostDevice, Reach};
use crate::net::netdev;

/// Longest wait for all that is asked of the kernel about a container.
const LIMIT: Duration = Duration::from_secs(5);

/// How a container is connected.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Located {
    /// `None` if that could not be found out.
    pub(super) reach: Option<Reach>,
    /// Its address on the link that leads here, if its network's own link leads elsewhere: of a
    /// container in an overlay network, that in `docker_gwbridge`.
    pub(super) instead: Option<Ipv4Addr>,
    /// How its packets leave it, IPv4 and IPv6.
    pub(super) egress: [Egress; 2],
}

impl Located {
    /// Where what is offered at `endpoint` answers to this machine, if it does.
    pub(super) fn endpoint(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        match (self.instead, endpoint) {
            (None, _) => Some(endpoint),
            (Some(instead), SocketAddr::V4(own)) => Some((instead, own.port()).into()),
            (Some(_), SocketAddr::V6(_)) => None,
        }
    }

    /// How packets leave it that answer clients of such an address.
    pub(super) fn egress_of(&self, endpoint: SocketAddr) -> Egress {
        self.egress[usize::from(endpoint.is_ipv6())].clone()
    }
}

/// How the process `pid` is in this network, as far as it can be told from its side. Nothing if the
/// process is gone or not ours to look into.
pub(super) async fn find(pid: u32, network: Attachment) -> Located {
    let began = Instant::now();
    let looked = tokio::time::timeout(LIMIT, look(pid, network)).await;
    match looked.unwrap_or_else(|_| Err(anyhow!("no answer from the kernel within {LIMIT:?}"))) {
        Ok(located) => {
            tracing::debug!("process {pid} is at {located:?}, found in {:?}", began.elapsed());
            located
        }
        Err(error) => {
            tracing::debug!("process {pid} cannot be located: {error:#}");
            Located::default()
        }
    }
}

async fn look(pid: u32, network: Attachment) -> Result<Located> {
    // Only then is an address asked for in another namespace than one's own.
    let (connection, handle, _) =
        new_connection_with_strict_check().context("cannot open netlink")?;
    let connection = tokio::spawn(connection);
    let located = ask(&handle, pid, network).await;
    connection.abort();
    located
}

async fn ask(handle: &Handle, pid: u32, network: Attachment) -> Result<Located> {
    let theirs = number_of(handle, pid).await?;
    let here = number_of(handle, std::process::id()).await?;
    let on_host = network.addresses().all(|addr| addr.is_unspecified());
    match (theirs == here, on_host) {
        (true, true) => return Ok(Located { reach: Some(Reach::Host), ..Located::default() }),
        (true, false) => bail!("it is in our own network namespace"),
        (false, true) => bail!("the engine's host is another network namespace"),
        (false, false) => {}
    }
    let mut links = handle.link().get();
    links.message_mut().attributes.push(LinkAttribute::IfNetnsId(theirs));
    let links: Vec<LinkMessage> =
        links.execute().try_collect().await.context("cannot list links")?;
    let mut addresses = handle.address().get();
    addresses.message_mut().attributes.push(AddressAttribute::TargetNetNsId(theirs));
    let addresses = addresses.execute().try_collect::<Vec<AddressMessage>>().await;
    let mut located =
        choose_link(&links, &addresses.context("cannot list addresses")?, network, here);
    located.egress = egress(&links, routes_of(pid), here);
    if let Some(Reach::Veth(place)) = &mut located.reach {
        place.polls = netdev::takes_frames(place.ifindex).unwrap_or_else(|error| {
            tracing::debug!("whether device {} takes bare frames: {error}", place.ifindex);
            false
        });
    }
    Ok(located)
}

/// The number by which our namespace knows that of a process, its own too. It is given one if it has none.
async fn number_of(handle: &Handle, pid: u32) -> Result<i32> {
    /// The kernel is to choose it.
    const ANY: i32 = -1;
    if let Some(number) = known_number_of(handle, pid).await? {
        return Ok(number);
    }
    let mut wish = NsidMessage::default();
    wish.attributes.extend([NsidAttribute::Id(ANY), NsidAttribute::Pid(pid)]);
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNsId(wish));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut answers = handle.clone().request(request).context("number a namespace")?;
    // What it says does not matter: another task may have been faster.
    while answers.next().await.is_some() {}
    known_number_of(handle, pid).await?.context("the kernel gives its namespace no number")
}

async fn known_number_of(handle: &Handle, pid: u32) -> Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Pid(pid));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers =
        handle.clone().request(request).context("cannot ask for a namespace's number")?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                return Ok(answer.attributes.iter().find_map(|attribute| match attribute {
                    // -1: none was ever given.
                    NsidAttribute::Id(id) => Some(*id).filter(|id| *id >= 0),
                    _ => None,
                }));
            }
            NetlinkPayload::Error(error) => bail!("ask for a namespace's number: {error}"),
            _ => {}
        }
    }
    Ok(None)
}

/// The container's connection, from its links and addresses; `here` is the number of our namespace.
fn choose_link(
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    network: Attachment,
    here: i32,
) -> Located {
    let by_mac = links.iter().find(|link| network.mac.is_some() && mac(link) == network.mac);
    let by_address = || {
        let wanted: Vec<IpAddr> = network.addresses().collect();
        let message = addresses.iter().find(|of| ips(of).any(|ip| wanted.contains(&ip)))?;
        links.iter().find(|link| link.header.index == message.header.index)
    };
    let Some(link) = by_mac.or_else(by_address) else { return Located::default() };
    let leads_here = |link: &LinkMessage| leads_to(link, here);
    let reach = match kind(link) {
        Some(InfoKind::Veth) if leads_here(link) => place(link).map(Reach::Veth),
        Some(InfoKind::MacVlan) if leads_here(link) => place(link).map(Reach::Macvlan),
        Some(InfoKind::IpVlan) => Some(Reach::Ipvlan),
        Some(InfoKind::Veth | InfoKind::MacVlan) if namespace(link).is_some() => {
            let other = links
                .iter()
                .filter(|link| kind(link) == Some(&InfoKind::Veth) && leads_here(link))
                .find_map(|link| Some((place(link)?, ipv4_of(link, addresses)?)));
            if let Some((place, address)) = other {
                return Located {
                    reach: Some(Reach::Veth(place)),
                    instead: Some(address),
                    ..Located::default()
                };
            }
            Some(Reach::Elsewhere)
        }
        _ => None,
    };
    Located { reach, ..Located::default() }
}

fn ips(message: &AddressMessage) -> impl Iterator<Item = IpAddr> {
    message.attributes.iter().filter_map(|attribute| match attribute {
        AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })
}

fn ipv4_of(link: &LinkMessage, addresses: &[AddressMessage]) -> Option<Ipv4Addr> {
    let of_link = addresses.iter().filter(|of| of.header.index == link.header.index);
    of_link.flat_map(ips).find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

/// The other end of a veth, or the parent of a child, and the link's own MAC.
fn place(link: &LinkMessage) -> Option<HostDevice> {
    Some(HostDevice { ifindex: other_end(link)?, mac: mac(link)?, polls: false })
}

/// The index of the other end of a veth, or of the parent of a child.
pub(super) fn other_end(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// Whether that is in the namespace of this number.
pub(super) fn leads_to(link: &LinkMessage, number: i32) -> bool {
    namespace(link) == Some(number)
}

/// The number of the namespace the other end or the parent is in, if it is another one.
fn namespace(link: &LinkMessage) -> Option<i32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => Some(*id),
        _ => None,
    })
}

/// What kind of device it is.
pub(super) fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    })
}

fn mac(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: i32 = 5;
    const OVERLAY: i32 = 0;

    fn link(index: u32, kind: InfoKind, namespace: i32) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
            LinkAttribute::Link(index + 100),
            LinkAttribute::LinkNetNsId(namespace),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        link
    }

    fn address(index: u32, last: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local([10, 0, 0, last].into())];
        message
    }

    /// The container's own network is that of link 1, by its MAC.
    fn of(links: &[LinkMessage]) -> Located {
        let network = Attachment { mac: Some([2, 0, 0, 0, 0, 1]), ..Attachment::default() };
        choose_link(links, &[address(1, 1), address(2, 2)], network, HERE)
    }

    fn place(index: u32) -> HostDevice {
        let mac = [2, 0, 0, 0, 0, u8::try_from(index).unwrap()];
        HostDevice { ifindex: index + 100, mac, polls: false }
    }

    fn at(reach: Reach) -> Located {
        Located { reach: Some(reach), ..Located::default() }
    }

    #[test]
    fn a_veth_or_macvlan_that_leads_here_has_a_place() {
        assert_eq!(of(&[link(1, InfoKind::Veth, HERE)]), at(Reach::Veth(place(1))));
        assert_eq!(of(&[link(1, InfoKind::MacVlan, HERE)]), at(Reach::Macvlan(place(1))));
        assert_eq!(of(&[link(1, InfoKind::IpVlan, HERE)]), at(Reach::Ipvlan));
    }

    #[test]
    fn without_a_mac_the_link_is_found_by_its_address() {
        let network = Attachment { ipv4: Some([10, 0, 0, 2].into()), ..Attachment::default() };
        let links = [link(1, InfoKind::Veth, HERE), link(2, InfoKind::Veth, HERE)];
        let found = choose_link(&links, &[address(1, 1), address(2, 2)], network, HERE);
        assert_eq!(found, at(Reach::Veth(place(2))));
    }

    #[test]
    fn without_any_of_its_marks_there_is_no_place() {
        for missing in 0..4 {
            let mut link = link(1, InfoKind::Veth, HERE);
            link.attributes.remove(missing);
            let network = Attachment { ipv4: Some([10, 0, 0, 1].into()), ..Attachment::default() };
            let found = choose_link(&[link], &[address(1, 1)], network, HERE);
            assert_eq!(found, Located::default(), "attribute {missing}");
        }
    }

    #[test]
    fn a_veth_that_leads_elsewhere_is_used_by_the_one_that_leads_here() {
        let overlay = link(1, InfoKind::Veth, OVERLAY);
        let found = of(&[overlay.clone(), link(2, InfoKind::Veth, HERE)]);
        let instead = Some([10, 0, 0, 2].into());
        let reach = Some(Reach::Veth(place(2)));
        assert_eq!(found, Located { reach, instead, ..Located::default() });
        let v4 = found.endpoint("10.9.9.9:80".parse().unwrap());
        assert_eq!(v4, Some("10.0.0.2:80".parse().unwrap()));
        assert_eq!(found.endpoint("[2001:db8::9]:80".parse().unwrap()), None);
        // Of rootless Podman there is no other.
        assert_eq!(of(&[overlay]), at(Reach::Elsewhere));
        assert_eq!(of(&[link(1, InfoKind::MacVlan, OVERLAY)]), at(Reach::Elsewhere));
    }

    #[tokio::test]
    async fn our_own_process_and_a_missing_one_have_no_place() {
        let network = Attachment { ipv4: Some([10, 0, 0, 1].into()), ..Attachment::default() };
        assert_eq!(find(std::process::id(), network).await, Located::default());
        assert_eq!(find(u32::MAX, network).await, Located::default());
    }

    #[tokio::test]
    async fn a_process_on_our_network_is_at_home() {
        let unspecified = Some(Ipv4Addr::UNSPECIFIED);
        let network = Attachment { ipv4: unspecified, ..Attachment::default() };
        assert_eq!(find(std::process::id(), network).await, at(Reach::Host));
    }
}

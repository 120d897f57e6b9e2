//! Finds how a container is connected to this machine by asking in the container's network namespace.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::Handle;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::container::Attachment;
use crate::model::{Place, Site};

/// How a container is connected.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Located {
    /// `None` if that could not be found out.
    pub(super) site: Option<Site>,
    /// Its address on the link that leads here, if its network's own link leads elsewhere: of a
    /// container in an overlay network, that in `docker_gwbridge`.
    pub(super) instead: Option<Ipv4Addr>,
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
}

/// How the process `pid` is in this network, as far as it can be told from its side. Nothing if the
/// process is gone or not ours to look into.
pub(super) async fn find(pid: u32, network: Attachment) -> Located {
    let began = Instant::now();
    match in_own_thread(pid, network).await {
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

/// A thread's namespace is its own, and it ends with the thread: nobody else may run on it.
async fn in_own_thread(pid: u32, network: Attachment) -> Result<Located> {
    let (sender, receiver) = oneshot::channel();
    let task = move || {
        // The receiver is gone if nobody waits any more.
        let _ = sender.send(enter_and_ask(pid, network));
    };
    thread::Builder::new().name("locate".into()).spawn(task).context("start a thread")?;
    receiver.await.context("the thread ended early")?
}

fn enter_and_ask(pid: u32, network: Attachment) -> Result<Located> {
    let path = format!("/proc/{pid}/ns/net");
    let theirs = File::open(&path).with_context(|| format!("open {path}"))?;
    let ours = File::open("/proc/self/ns/net").context("open /proc/self/ns/net")?;
    let on_host = network.addresses().all(|addr| addr.is_unspecified());
    match (theirs.metadata()?.ino() == ours.metadata()?.ino(), on_host) {
        (true, true) => return Ok(Located { site: Some(Site::Host), instead: None }),
        (true, false) => bail!("it is in our own network namespace"),
        (false, true) => bail!("the engine's host is another network namespace"),
        (false, false) => {}
    }
    move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {path}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(ask(network, ours.as_fd()))
}

async fn ask(network: Attachment, ours: BorrowedFd<'_>) -> Result<Located> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
    let connection = tokio::spawn(connection);
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.context("list links")?;
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.context("list addresses")?;
    let here = number_of(&handle, ours).await?;
    connection.abort();
    let mut located = judge(&links, &addresses, network, here);
    if let Some(Site::Veth(place)) = &mut located.site {
        let link = links.iter().find(|link| mac(link) == Some(place.mac));
        place.polls = link.and_then(name).is_some_and(|name| merges(&name).unwrap_or(false));
    }
    Ok(located)
}

/// Whether receive offload (GRO) is on for a device of this thread's network namespace: then a veth
/// polls.
fn merges(device: &str) -> Result<bool> {
    /// `SIOCETHTOOL` in linux/sockios.h, `ETHTOOL_GGRO` in linux/ethtool.h.
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GGRO: u32 = 0x2b;
    // `struct ethtool_value`: the command, and what it is about.
    let mut value = [ETHTOOL_GGRO, 0];
    // SAFETY: plain data, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        bail!("{device:?} is no name of a device");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the request and what it points to live until the call has returned.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("ask for GRO");
    }
    let [_, on] = value;
    Ok(on != 0)
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The number by which this namespace's links name another namespace; `None` if they cannot.
async fn number_of(handle: &Handle, namespace: BorrowedFd<'_>) -> Result<Option<i32>> {
    let mut question = NsidMessage::default();
    let fd = u32::try_from(namespace.as_raw_fd()).context("a file descriptor")?;
    question.attributes.push(NsidAttribute::Fd(fd));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(request).context("ask for a namespace's number")?;
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

/// The container's connection, from its links and addresses; `here` is its number of our namespace.
fn judge(
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    network: Attachment,
    here: Option<i32>,
) -> Located {
    let by_mac = links.iter().find(|link| network.mac.is_some() && mac(link) == network.mac);
    let by_address = || {
        let wanted: Vec<IpAddr> = network.addresses().collect();
        let message = addresses.iter().find(|of| ips(of).any(|ip| wanted.contains(&ip)))?;
        links.iter().find(|link| link.header.index == message.header.index)
    };
    let Some(link) = by_mac.or_else(by_address) else { return Located::default() };
    let leads_here = |link: &LinkMessage| here.is_some() && namespace(link) == here;
    let site = match kind(link) {
        Some(InfoKind::Veth) if leads_here(link) => place(link).map(Site::Veth),
        Some(InfoKind::MacVlan) if leads_here(link) => place(link).map(Site::Macvlan),
        Some(InfoKind::IpVlan) => Some(Site::Ipvlan),
        Some(InfoKind::Veth | InfoKind::MacVlan) if namespace(link).is_some() => {
            let other = links
                .iter()
                .filter(|link| kind(link) == Some(&InfoKind::Veth) && leads_here(link))
                .find_map(|link| Some((place(link)?, ipv4_of(link, addresses)?)));
            if let Some((place, address)) = other {
                return Located { site: Some(Site::Veth(place)), instead: Some(address) };
            }
            Some(Site::Elsewhere)
        }
        _ => None,
    };
    Located { site, instead: None }
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
fn place(link: &LinkMessage) -> Option<Place> {
    let ifindex = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })?;
    Some(Place { ifindex, mac: mac(link)?, polls: false })
}

/// The number of the namespace the other end or the parent is in, if it is another one.
fn namespace(link: &LinkMessage) -> Option<i32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => Some(*id),
        _ => None,
    })
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
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
        judge(links, &[address(1, 1), address(2, 2)], network, Some(HERE))
    }

    fn place(index: u32) -> Place {
        let mac = [2, 0, 0, 0, 0, u8::try_from(index).unwrap()];
        Place { ifindex: index + 100, mac, polls: false }
    }

    fn at(site: Site) -> Located {
        Located { site: Some(site), instead: None }
    }

    #[test]
    fn a_veth_or_macvlan_that_leads_here_has_a_place() {
        assert_eq!(of(&[link(1, InfoKind::Veth, HERE)]), at(Site::Veth(place(1))));
        assert_eq!(of(&[link(1, InfoKind::MacVlan, HERE)]), at(Site::Macvlan(place(1))));
        assert_eq!(of(&[link(1, InfoKind::IpVlan, HERE)]), at(Site::Ipvlan));
    }

    #[test]
    fn without_a_mac_the_link_is_found_by_its_address() {
        let network = Attachment { ipv4: Some([10, 0, 0, 2].into()), ..Attachment::default() };
        let links = [link(1, InfoKind::Veth, HERE), link(2, InfoKind::Veth, HERE)];
        let found = judge(&links, &[address(1, 1), address(2, 2)], network, Some(HERE));
        assert_eq!(found, at(Site::Veth(place(2))));
    }

    #[test]
    fn without_any_of_its_marks_there_is_no_place() {
        for missing in 0..4 {
            let mut link = link(1, InfoKind::Veth, HERE);
            link.attributes.remove(missing);
            let network = Attachment { ipv4: Some([10, 0, 0, 1].into()), ..Attachment::default() };
            let found = judge(&[link], &[address(1, 1)], network, Some(HERE));
            assert_eq!(found, Located::default(), "attribute {missing}");
        }
    }

    #[test]
    fn a_veth_that_leads_elsewhere_is_used_by_the_one_that_leads_here() {
        let overlay = link(1, InfoKind::Veth, OVERLAY);
        let found = of(&[overlay.clone(), link(2, InfoKind::Veth, HERE)]);
        let instead = Some([10, 0, 0, 2].into());
        assert_eq!(found, Located { site: Some(Site::Veth(place(2))), instead });
        let v4 = found.endpoint("10.9.9.9:80".parse().unwrap());
        assert_eq!(v4, Some("10.0.0.2:80".parse().unwrap()));
        assert_eq!(found.endpoint("[2001:db8::9]:80".parse().unwrap()), None);
        // Of rootless Podman there is no other.
        assert_eq!(of(&[overlay]), at(Site::Elsewhere));
        assert_eq!(of(&[link(1, InfoKind::MacVlan, OVERLAY)]), at(Site::Elsewhere));
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
        assert_eq!(find(std::process::id(), network).await, at(Site::Host));
    }
}

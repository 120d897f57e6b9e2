//! Finds the host's end of a container's veth by asking in the container's network namespace.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::container::Attachment;
use crate::model::Place;

/// The host's end of the veth by which the process `pid` is in this network, as far as the
/// process's side can tell: that the index means a device of *our* namespace is the caller's to
/// check. `None` if it is no veth, or the process is gone or not ours to look into.
pub(super) async fn place(pid: u32, network: Attachment) -> Option<Place> {
    let began = Instant::now();
    match in_own_thread(pid, network).await {
        Ok(place) => {
            tracing::debug!("process {pid} has {place:?}, found in {:?}", began.elapsed());
            place
        }
        Err(error) => {
            tracing::debug!("no place for process {pid}: {error:#}");
            None
        }
    }
}

/// A thread's namespace is its own, and it ends with the thread: nobody else may run on it.
async fn in_own_thread(pid: u32, network: Attachment) -> Result<Option<Place>> {
    let (sender, receiver) = oneshot::channel();
    let task = move || {
        // The receiver is gone if nobody waits any more.
        let _ = sender.send(enter_and_ask(pid, network));
    };
    thread::Builder::new().name("locate".into()).spawn(task).context("start a thread")?;
    receiver.await.context("the thread ended early")?
}

fn enter_and_ask(pid: u32, network: Attachment) -> Result<Option<Place>> {
    let path = format!("/proc/{pid}/ns/net");
    let theirs = File::open(&path).with_context(|| format!("open {path}"))?;
    let ours = File::open("/proc/self/ns/net").context("open /proc/self/ns/net")?;
    if theirs.metadata()?.ino() == ours.metadata()?.ino() {
        bail!("it is in our own network namespace");
    }
    move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {path}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(ask(network))
}

async fn ask(network: Attachment) -> Result<Option<Place>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
    let connection = tokio::spawn(connection);
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.context("list links")?;
    let by_mac = links.iter().find(|link| network.mac.is_some() && mac(link) == network.mac);
    let place = if let Some(link) = by_mac {
        host_end(link)
    } else {
        let index = index_of(&handle, network).await?;
        links.iter().find(|link| Some(link.header.index) == index).and_then(host_end)
    };
    connection.abort();
    Ok(place)
}

/// The index of the link that has one of the addresses.
async fn index_of(handle: &Handle, network: Attachment) -> Result<Option<u32>> {
    let wanted: Vec<IpAddr> = network.addresses().collect();
    let mut addresses = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = addresses.try_next().await.context("list addresses")? {
        let is_wanted = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => wanted.contains(ip),
            _ => false,
        };
        if message.attributes.iter().any(is_wanted) {
            return Ok(Some(message.header.index));
        }
    }
    Ok(None)
}

/// The other end of a veth, if it is in another namespace.
fn host_end(link: &LinkMessage) -> Option<Place> {
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    if !is_veth(link) || !link.attributes.iter().any(elsewhere) {
        return None;
    }
    let ifindex = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })?;
    Some(Place { ifindex, mac: mac(link)? })
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
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

    fn veth() -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Link(7),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        link
    }

    #[test]
    fn a_veth_with_its_peer_elsewhere_has_a_place() {
        assert_eq!(host_end(&veth()), Some(Place { ifindex: 7, mac: [2, 0, 0, 0, 0, 1] }));
    }

    #[test]
    fn without_any_of_its_marks_there_is_no_place() {
        for missing in 0..4 {
            let mut link = veth();
            link.attributes.remove(missing);
            assert_eq!(host_end(&link), None, "attribute {missing}");
        }
        let mut macvlan = veth();
        macvlan.attributes[3] = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVlan)]);
        assert_eq!(host_end(&macvlan), None);
    }

    #[tokio::test]
    async fn our_own_process_and_a_missing_one_have_no_place() {
        let network = Attachment { mac: Some([0; 6]), ..Attachment::default() };
        assert_eq!(place(std::process::id(), network).await, None);
        assert_eq!(place(u32::MAX, network).await, None);
    }
}

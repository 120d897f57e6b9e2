//! Other nodes: hosts that run samport, too, and balance over containers of their own.
//!
//! A source says which nodes there are and how many ready containers each has behind its ports. Each becomes a
//! candidate, beside this node's own containers: the node that a client dials selects a node, and that node selects
//! one of its containers. Once it has started, no trouble ends a source: it keeps its last good state, says so, and
//! tries again.

mod file;
mod health;
mod node;
mod offer;
mod path_mtu;
mod probe;
mod probe_socket;
pub mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::model::ports::PortSpec;
use crate::model::{Snapshot, Spread};
use crate::net::frontends::is_link_local;
use crate::net::netlink::{Devices, Netlink};
use crate::system::provider_status::ProviderStatus;
use crate::system::resyncs::Resyncs;
use health::{Healths, OwnEnd};
use offer::NodeOffer;

pub use health::NodeHealth;
pub use node::{Node, address, name};
pub use samport_common::layout::MAX_NODES;

/// Where the tunnels of nodes end that say nothing else, a UDP port.
pub const TUNNEL_PORT: u16 = 6080;

/// Who knows the other nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeSource {
    /// A file that is followed.
    File(PathBuf),
}

/// What a node is told of its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Who knows the other nodes.
    pub source: NodeSource,
    /// This node's name.
    pub node: String,
    /// Where other nodes reach this one, if that was said; see [`Settings::own_end`].
    pub address: Option<IpAddr>,
    /// The UDP port of tunnels: this node's, and that of nodes that say nothing else.
    pub tunnel_port: u16,
    /// Which containers connections are shared out to, as far as labels say nothing else.
    pub spread: Spread,
    /// Most nodes that are listened to.
    pub max_nodes: u32,
}

impl Settings {
    /// Where this node's end of the tunnel to a node of that address is: at the address that was said, else at the
    /// first of its family of the first of these interfaces.
    #[must_use]
    pub fn own_end(&self, to: IpAddr, interfaces: &[String], devices: &Devices) -> Option<IpAddr> {
        let is_of_family = |address: &IpAddr| address.is_ipv6() == to.is_ipv6();
        let first = interfaces.first();
        let device = devices.values().find(|device| Some(&device.name) == first);
        let addresses = device.into_iter().flat_map(|device| &device.addresses).copied();
        let mut addresses = addresses.filter(|address| !is_link_local(*address));
        self.address.filter(is_of_family).or_else(|| addresses.find(is_of_family))
    }
}

/// The other nodes as they are now. Whoever has a clone sees them change.
#[derive(Clone, Debug)]
pub struct NodeList {
    nodes: watch::Receiver<Vec<Node>>,
    healths: watch::Receiver<Healths>,
}

impl NodeList {
    /// Those of a node that has no cluster.
    #[must_use]
    pub fn none() -> Self {
        Self { nodes: watch::channel(Vec::new()).1, healths: no_healths() }
    }

    /// These, which stay as they are.
    #[cfg(test)]
    pub(crate) fn fixed(nodes: Vec<Node>, healths: Healths) -> Self {
        Self { nodes: watch::channel(nodes).1, healths: watch::channel(healths).1 }
    }

    /// All of them, by their names. Those whose candidates still drain are not among them.
    #[must_use]
    pub fn current(&self) -> Vec<Node> {
        self.nodes.borrow().clone()
    }

    /// How each of them is, by its address, as far as it was probed.
    #[must_use]
    pub fn health(&self) -> BTreeMap<IpAddr, NodeHealth> {
        self.healths.borrow().clone()
    }

    /// What a kernel of this version cannot do for packets of theirs; see [`lacks`].
    #[must_use]
    pub fn lack(&self, version: (u16, u8)) -> Option<&'static str> {
        lacks(version, self.nodes.borrow().iter().any(|node| node.address.is_ipv4()))
    }

    /// Waits until they, or how they are, have changed; forever, if neither can any more.
    pub async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.nodes.changed() => {}
            Ok(()) = self.healths.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// A cluster that is followed.
pub struct Cluster {
    /// What it offers: candidates of other nodes only.
    pub snapshots: watch::Receiver<Snapshot>,
    /// The other nodes.
    pub nodes: NodeList,
    /// How its source is doing.
    pub status: Arc<ProviderStatus>,
}

/// How nodes are probed.
pub struct ProbedFrom<'a> {
    /// Where clients come in.
    pub interfaces: &'a [String],
    /// Addresses of backends that have connections from before: a node among them is up until it does not answer.
    pub used_before: BTreeSet<IpAddr>,
}

/// How nodes are that are not probed.
fn no_healths() -> watch::Receiver<Healths> {
    watch::channel(Healths::new()).1
}

/// The oldest kernel that takes a packet of one family out of a tunnel of the other.
const MIXES_FAMILIES: (u16, u8) = (6, 3);

/// What a kernel of this version cannot do for packets of other nodes, and the way out. Nodes with IPv4 addresses get
/// connections over IPv6 through tunnels over IPv4.
#[must_use]
pub fn lacks(version: (u16, u8), over_ipv4: bool) -> Option<&'static str> {
    (over_ipv4 && version < MIXES_FAMILIES).then_some(
        "connections over IPv6 that come from other nodes are dropped here (rewrite-failed): taking them out of tunnels \
         over IPv4 needs Linux 6.3; take a newer kernel, or have clients use IPv4",
    )
}

/// Finds this machine's own addresses.
type OwnAddresses = Box<dyn Fn() -> BoxFuture<'static, Result<BTreeSet<IpAddr>>> + Send + Sync>;

/// Follows the other nodes, and returns when it knows the first of their states. `ports` is the `-p` list; if it is
/// empty, the nodes say which ports there are. `drain` says how long a service of a node that is offered no longer
/// keeps its connections.
///
/// # Errors
/// A source that is not good, and says why.
pub async fn start(
    settings: &Settings,
    ports: &[PortSpec],
    drain: impl Fn() -> Duration + Send + 'static,
    probing: Option<ProbedFrom<'_>>,
    netlink: &Netlink,
    resyncs: &Resyncs,
) -> Result<Cluster> {
    let asked = netlink.clone();
    let own: OwnAddresses = Box::new(move || {
        let netlink = asked.clone();
        Box::pin(async move {
            let devices = netlink.devices().await?;
            Ok(devices.into_values().flat_map(|device| device.addresses).collect())
        })
    });
    let NodeSource::File(path) = &settings.source;
    let status = ProviderStatus::of("cluster-file");
    let nodes = file::start(path, settings, own, Arc::clone(&status), resyncs).await?;
    let healths = match probing {
        Some(ProbedFrom { interfaces, used_before }) => {
            let own = own_end(settings, interfaces, netlink);
            health::start(nodes.clone(), own, used_before)
        }
        None => no_healths(),
    };
    let list = NodeList { nodes: nodes.clone(), healths: healths.clone() };
    let snapshots = NodeOffer::start(nodes, healths, ports.to_vec(), Box::new(drain));
    Ok(Cluster { snapshots, nodes: list, status })
}

/// Finds where this node's end of a tunnel is, as interfaces are then.
fn own_end(settings: &Settings, interfaces: &[String], netlink: &Netlink) -> OwnEnd {
    let (settings, interfaces) = (settings.clone(), interfaces.to_vec());
    let netlink = netlink.clone();
    Arc::new(move |to| {
        let (settings, interfaces) = (settings.clone(), interfaces.clone());
        let netlink = netlink.clone();
        Box::pin(async move {
            let devices = netlink.devices().await.unwrap_or_default();
            settings.own_end(to, &interfaces, &devices)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netlink::Device;

    pub(super) fn settings(path: PathBuf) -> Settings {
        Settings {
            source: NodeSource::File(path),
            node: "n1".to_owned(),
            address: None,
            tunnel_port: TUNNEL_PORT,
            spread: Spread::All,
            max_nodes: 3,
        }
    }

    #[test]
    fn what_an_old_kernel_lacks_is_said() {
        assert_eq!(lacks((6, 3), true), None);
        assert_eq!(lacks((6, 1), false), None);
        assert!(lacks((6, 1), true).unwrap().contains("Linux 6.3"));
    }

    #[test]
    fn a_tunnel_begins_at_the_given_address_or_the_first_of_its_family() {
        let device = |ifindex, name: &str, addresses: &[&str]| Device {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Device::named(ifindex, name)
        };
        let devices: Devices = [
            device(1, "lo", &["127.0.0.1"]),
            device(2, "eth1", &["192.0.2.9"]),
            device(3, "eth0", &["192.0.2.2", "192.0.2.1", "fe80::1", "2001:db8::1"]),
            device(4, "eth2", &["fe80::1"]),
        ]
        .map(|device| (device.ifindex, device))
        .into_iter()
        .collect::<BTreeMap<_, _>>();
        let mut settings = settings("nodes.toml".into());
        let ends = |settings: &Settings, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            ["192.0.2.77", "2001:db8::77"].map(|to| {
                let end = settings.own_end(to.parse().unwrap(), &names, &devices);
                end.map_or_else(String::new, |end| end.to_string())
            })
        };
        assert_eq!(ends(&settings, &["eth0", "eth1"]), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(ends(&settings, &["eth2", "eth1"]), ["", ""]);
        settings.address = Some("203.0.113.7".parse().unwrap());
        assert_eq!(ends(&settings, &["eth0"]), ["203.0.113.7", "2001:db8::1"]);
    }

    #[tokio::test]
    async fn nobody_hears_of_nodes_that_there_are_none_of() {
        let mut none = NodeList::none();
        assert_eq!(none.current(), []);
        let changed = tokio::time::timeout(Duration::from_millis(20), none.changed());
        assert!(changed.await.is_err());
    }
}

//! What is known of another node, whether it makes sense, and what it offers. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};

use super::Settings;
use crate::model::allow::Networks;
use crate::model::ports::{Listen, PortSpec};
use crate::model::{Candidate, Condition, Egress, Reach, ServiceHints};

/// Most ready containers that a node may claim to have behind one port.
pub(super) const MAX_WEIGHT: u32 = 65_535;
/// Characters in a node's name.
const MAX_NAME: usize = 128;

/// A host that runs samport.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// What it is called.
    pub name: String,
    /// Where its tunnel ends.
    pub address: IpAddr,
    /// And at which UDP port.
    pub port: u16,
    /// The number of its ready containers behind each port; 0 takes no new connections.
    pub services: BTreeMap<Listen, u32>,
}

impl Node {
    /// Where the tunnel to it ends.
    #[must_use]
    pub const fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// Reads the name of a node. It stands in lists, in paths of engines, and between words of a command.
pub fn name(text: &str) -> Result<String, String> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(is_fine) {
        return Err(format!(
            "invalid node name {text:?}: expected letters, digits and - _ . after a letter or digit"
        ));
    }
    if text.len() > MAX_NAME {
        let length = text.len();
        return Err(format!("a node name of {length} characters, expected {MAX_NAME} at most"));
    }
    Ok(text.to_owned())
}

/// Reads an address that other nodes can be reached at.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let invalid = |what: &str| Err(format!("invalid node address {text:?}: {what}"));
    let Ok(address) = text.parse::<IpAddr>() else { return invalid("expected an IP address") };
    let address = address.to_canonical();
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    match address {
        _ if address.is_loopback() => invalid("a loopback address is every host's own"),
        _ if address.is_multicast() => invalid("a multicast address is not one host's"),
        _ if address.is_unspecified() => invalid("expected the address of a host"),
        _ if is_link_local => invalid("a link-local address is not known beyond its link"),
        IpAddr::V4(address) if address.is_broadcast() => {
            invalid("a broadcast address is not one host's")
        }
        _ => Ok(address),
    }
}

/// What other nodes are told from.
pub(super) struct OwnNode<'a> {
    pub(super) settings: &'a Settings,
    /// All addresses of this machine.
    pub(super) addresses: &'a BTreeSet<IpAddr>,
}

impl OwnNode<'_> {
    /// The nodes that are not this one, by their names.
    ///
    /// # Errors
    /// Nodes that cannot be told from each other or from this one, or too many of them.
    pub(super) fn others(&self, mut nodes: Vec<Node>) -> Result<Vec<Node>> {
        let Settings { node: own, address: own_address, max_nodes, .. } = self.settings;
        if nodes.len() > *max_nodes as usize {
            bail!("{} nodes, expected {max_nodes} at most (--max-nodes)", nodes.len());
        }
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].name == pair[1].name) {
            bail!("node {:?} is given twice; keep one", pair[0].name);
        }
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for node in &nodes {
            let (name, address) = (&node.name, node.address);
            if let Some(other) = seen.insert(address, name) {
                bail!(
                    "nodes {other:?} and {name:?} have one address, {address}; give each its own"
                );
            }
            let is_own = *own_address == Some(address) || self.addresses.contains(&address);
            if is_own && name != own {
                bail!(
                    "node {name:?} has an address of this host, {address}, which is node {own:?}; name it so \
                     there, or start this samport with --node {name}"
                );
            }
        }
        nodes.retain(|node| node.name != *own);
        Ok(nodes)
    }
}

/// What nodes offer, and sentences about what they do not. `ports` is the `-p` list; if it is empty, all ports are.
pub(super) fn offered(nodes: &[Node], ports: &[PortSpec]) -> (Vec<Candidate>, BTreeSet<String>) {
    let (mut candidates, mut remarks) = (Vec::new(), BTreeSet::new());
    for node in nodes {
        let is_open =
            |listen: &Listen| ports.is_empty() || ports.iter().any(|spec| spec.listen == *listen);
        let (open, closed): (Vec<_>, Vec<_>) =
            node.services.iter().partition(|(listen, _)| is_open(listen));
        if !closed.is_empty() {
            let ports: Vec<_> = closed.iter().map(|(listen, _)| listen.brief()).collect();
            remarks.insert(format!(
                "node {} offers {}, which no -p opens here",
                node.name,
                ports.join(", ")
            ));
        }
        for (listen, weight) in open {
            candidates
                .extend(endpoints(node, *listen).map(|at| candidate(node, *listen, *weight, at)));
        }
        if node.address.is_ipv6() && !node.services.is_empty() {
            remarks.insert(format!(
                "node {} has an IPv6 address: this version reaches its containers over IPv6 only; give it an IPv4 \
                 address for clients of both families",
                node.name
            ));
        }
    }
    (candidates, remarks)
}

/// Where a node serves a port, once for each family of clients. Through a tunnel of IPv4 both are reached.
fn endpoints(node: &Node, listen: Listen) -> impl Iterator<Item = SocketAddr> {
    let mapped = match node.address {
        IpAddr::V4(address) => Some(IpAddr::V6(address.to_ipv6_mapped())),
        IpAddr::V6(_) => None,
    };
    let all = [Some(node.address), mapped].into_iter().flatten();
    let all = all.filter(move |address| listen.is_of_family(address.is_ipv6()));
    all.map(move |address| SocketAddr::new(address, listen.port))
}

fn candidate(node: &Node, listen: Listen, weight: u32, endpoint: SocketAddr) -> Candidate {
    Candidate {
        id: format!("node:{}", node.name),
        name: node.name.clone(),
        listen,
        endpoint,
        weight,
        drain: None,
        // A port of one address is not served at the node's own: a check there would say nothing.
        condition: if listen.addr.is_none() { Condition::Ready } else { Condition::Unchecked },
        allow: Networks::new(),
        hints: ServiceHints::default(),
        place: Some(Reach::Node(node.tunnel())),
        egress: Egress::default(),
        started: None,
    }
}

#[cfg(test)]
mod tests;
